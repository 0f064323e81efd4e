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

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vit_jax.data import color, geometry, policies
from vit_jax.data.context import Context
from vit_jax.errors import UserError, check_choice
from vit_jax.schema import coerce

__all__ = ['OPS', 'Context', 'Pipeline', 'build', 'check', 'undo']

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
    affine: (scale, offset) of a last 'range' or 'normalize' that is left to the
      devices, each (1,) or (c,) in float32: a byte a value then travels to an
      accelerator, not four. None: nothing is left.
    dtype: of what `host` gives.
  """

  def __init__(self, field: str, texts: Sequence[str], on_device: bool = False):
    functions = [_bind(field, text) for text in texts]
    names = [_parse(field, text)[0] for text in texts]
    self._last, self.affine = None, None
    if names and names[-1] in ('range', 'normalize'):
      self._last = functions.pop()
      self._table = table = _levels(field, texts[-1], self._last)
      if on_device:
        self.affine = ((table[255] - table[0]) / np.float32(255), table[0])
    if names[:2] == ['decode', 'inception_crop']:
      functions = functions[1:]  # the crop decodes, and only what it needs
    self._functions = functions
    self.dtype = np.dtype(np.uint8 if self.affine else np.float32)

  def host(
    self, image, context: Context, out: np.ndarray | None = None
  ) -> np.ndarray:
    """What is to be done before the image goes to a device.

    Args:
      image: or the bytes of a file.
      context: size, channels, random numbers.
      out: (h, w, c), where to leave it if it has this shape.
    """
    for function in self._functions:
      image = function(image, context)
    if self._last and not self.affine:
      return self._float(image, context, out)
    if out is None or out.shape != image.shape:
      return image
    out[...] = image
    return out

  def _float(self, image, context: Context, out: np.ndarray | None):
    """The last op, by its table."""
    channels = self._table.shape[-1]
    if image.dtype != np.uint8 or channels not in (1, image.shape[-1]):
      return self._last(image, context)  # it says what is wrong
    if out is None or out.shape != image.shape:
      out = np.empty(image.shape, np.float32)
    cv2.LUT(image, self._table[None], out)
    return out

  def __call__(self, image, context: Context) -> np.ndarray:
    image = self.host(image, context)
    if self.affine:
      image = self._float(image, context, None)
    return np.ascontiguousarray(image)


def _levels(field: str, text: str, function: Callable) -> np.ndarray:
  """What a last op makes of each grey level: (256, 1 or c), float32."""
  for channels in (1, 3):
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(channels, 2)
    try:
      return function(levels, Context((256, 1), channels))[:, 0]
    except UserError:  # of another number of channels
      continue
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


def undo(
  texts: Sequence[str], images: Float[np.ndarray, '*n h w c']
) -> UInt8[np.ndarray, '*n h w c']:
  """The pictures that ops with a 'range' or a 'normalize' gave as floats."""
  names = [_parse('ops', text)[0] for text in texts]
  last = max(names.index(n) for n in ('range', 'normalize') if n in names)
  affine = build('ops', texts[: last + 1], on_device=True).affine
  assert affine is not None
  scale, offset = affine
  pixels = (images - offset) / scale
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
