"""Preprocessing: a tuple of strings in the config, each a pure function.

`config.data.train.ops=('decode', 'inception_crop', 'flip', 'range(-1, 1)')`:
an op is a function of (image, context) and the arguments in the brackets; the
context holds the size to reach and a random generator keyed by (seed, epoch,
record), so that an example is augmented alike on any number of hosts. `OPS` is
the table; names, types and limits of arguments are checked when the pipeline is
built, and it is tried on one example before the run starts.
"""

import ast
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from vit_jax.data import color, geometry, policies
from vit_jax.data.context import Context
from vit_jax.errors import UserError, check_choice
from vit_jax.schema import coerce

__all__ = ['OPS', 'Context', 'Pipeline', 'build', 'check']

OPS: dict[str, Callable] = {
  'decode': geometry.decode,
  'resize': geometry.resize,
  'fit': geometry.fit,
  'resize_small': geometry.resize_small,
  'central_crop': geometry.central_crop,
  'random_crop': geometry.random_crop,
  'inception_crop': geometry.inception_crop,
  'flip': geometry.flip,
  'affine': geometry.affine,
  'elastic': geometry.elastic,
  'randaugment': policies.randaugment,
  'three_augment': policies.three_augment,
  'color_jitter': policies.color_jitter,
  'grayscale': color.grayscale,
  'solarize': color.solarize,
  'gaussian_blur': color.gaussian_blur,
  'range': color.value_range,
  'normalize': color.normalize,
  'random_erasing': color.random_erasing,
}


def _parse(field: str, text: str) -> tuple[str, list, dict[str, Any]]:
  """'affine(10, shear=0.2)' -> ('affine', [10], {'shear': 0.2})."""
  try:
    tree = ast.parse(text.strip(), mode='eval').body
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
      raise ValueError
    name = call.func.id
    args = [ast.literal_eval(a) for a in call.args]
    kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError):
    raise UserError(
      f"{field}: {text!r} is not an op. Write 'flip' or 'affine(10, 0.1)'."
    ) from None
  check_choice(f'{field}: op', name, OPS)
  return name, args, kwargs


def _argument(field: str, value: Any, hint: Any) -> Any:
  """The value as the type says, within its limits."""
  if typing.get_origin(hint) is not Annotated:
    return coerce(field, value, hint)
  hint, words, within = typing.get_args(hint)
  value = coerce(field, value, hint)
  if not within(value):
    raise UserError(f'{field} = {value!r}: expected a number {words}.')
  return value


def _bind(field: str, text: str) -> Callable:
  """'affine(10, shear=0.2)' -> a function of (image, context)."""
  name, args, kwargs = _parse(field, text)
  function = OPS[name]
  hints = typing.get_type_hints(function, include_extras=True)
  try:
    bound = inspect.signature(function).bind(None, None, *args, **kwargs)
  except TypeError as error:
    names = list(inspect.signature(function).parameters)[2:]
    raise UserError(
      f'{field}: {text!r}: {error}. Arguments: {", ".join(names) or "none"}.'
    ) from None
  bound.apply_defaults()
  values = {
    key: _argument(f'{field}: {text!r}: {key}', value, hints[key])
    for key, value in list(bound.arguments.items())[2:]
  }
  for low in (key for key in values if key.startswith('min_')):
    high = low.replace('min_', 'max_')
    if values[low] > values[high]:
      raise UserError(
        f'{field}: {text!r}: {low} = {values[low]} is over {high} = '
        f'{values[high]}.'
      )
  return lambda image, context: function(image, context, **values)


class Pipeline:
  """The ops of a split as one function of (image or bytes, context).

  Attributes:
    host: all ops; `on_device` all but a last 'range' or 'normalize': a byte a
      value then travels to an accelerator, not four.
    affine: (scale, offset) of what is left, each (1,) or (c,) in float32; None:
      nothing is.
    dtype: of what `host` gives.
  """

  def __init__(self, field: str, texts: Sequence[str], on_device: bool = False):
    functions = [_bind(field, text) for text in texts]
    names = [_parse(field, text)[0] for text in texts]
    self._last, self.affine = None, None
    if names and names[-1] in ('range', 'normalize'):
      affine = _affine(field, texts[-1], functions[-1])
      if on_device:
        self._last, self.affine = functions.pop(), affine
    if names[:2] == ['decode', 'inception_crop']:
      functions = functions[1:]  # the crop decodes, and only what it needs
    self._functions = functions
    self.dtype = np.dtype(np.uint8 if self.affine else np.float32)

  def host(self, image, context: Context) -> np.ndarray:
    """What is to be done before the image goes to a device."""
    for function in self._functions:
      image = function(image, context)
    return image

  def __call__(self, image, context: Context) -> np.ndarray:
    image = self.host(image, context)
    if self._last:
      if image.dtype != np.uint8:
        raise ValueError(f'the last op takes uint8, not {image.dtype}')
      image = self._last(image, context)
    return np.ascontiguousarray(image)


def _affine(
  field: str, text: str, function: Callable
) -> tuple[np.ndarray, np.ndarray]:
  """(scale, offset) of an op that is x * scale + offset in each channel."""
  for channels in (1, 3):
    ends = np.zeros((2, 1, channels), np.uint8)
    ends[1] = 255
    try:
      low, high = function(ends, Context((2, 1), channels)).reshape(2, -1)
    except UserError:  # of another number of channels
      continue
    return (high - low) / np.float32(255), low
  raise UserError(f'{field}: {text!r}: give one number, or one a channel.')


def build(
  field: str, texts: Sequence[str], on_device: bool = False
) -> Pipeline:
  """The ops of a split.

  Args:
    field: the config field, for messages.
    texts: the ops, in order.
    on_device: see Pipeline.

  Raises:
    UserError: an unknown op, or arguments that it does not take.
  """
  return Pipeline(field, texts, on_device)


def check_shape(field: str, image: np.ndarray, context: Context):
  """Raises UserError unless the image has the model's shape."""
  want = (*context.size, context.channels)
  if image.shape != want:
    raise UserError(
      f'{field}: the ops give {image.shape} for {context.key}, but the model '
      f"takes {want}. Add 'fit' or 'resize', or set config.size."
    )


def check(field: str, pipeline: Pipeline, image, context: Context):
  """Raises UserError unless the ops turn `image` into what the model takes."""
  try:
    result = pipeline(image, context)
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f'{field}: the ops fail on {context.key} ({error}). An image folder '
      "begins with 'decode'."
    ) from error
  check_shape(field, result, context)
  if result.dtype != np.float32:
    raise UserError(
      f"{field}: the ops give {result.dtype}. End with 'range(-1, 1)'."
    )
