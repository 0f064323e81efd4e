"""Preprocessing: a tuple of strings in the config, each a pure function.

`config.data.train.ops=('decode', 'inception_crop', 'flip', 'range(-1, 1)')`:
an op is a function of (image, context) and the arguments in the brackets; the
context holds the size to reach and a random generator keyed by (seed, epoch,
record), so that an example is augmented alike on any number of hosts. `OPS` is
the table; names, types and limits of arguments are checked when the pipeline is
built, and it is tried on one example before the run starts.
"""

import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vit_jax.data import color, geometry, policies, warps
from vit_jax.data.context import Context
from vit_jax.errors import UserError
from vit_jax.schema import parse_call

__all__ = ['OPS', 'Context', 'Pipeline', 'build', 'check', 'undo']

OPS: dict[str, Callable] = {
  'decode': geometry.decode,
  'resize': geometry.resize,
  'fit': geometry.fit,
  'resize_small': geometry.resize_small,
  'scale_jitter': geometry.scale_jitter,
  'central_crop': geometry.central_crop,
  'random_crop': geometry.random_crop,
  'crop_or_pad': geometry.crop_or_pad,
  'inception_crop': geometry.inception_crop,
  'flip': warps.flip,
  'affine': warps.affine,
  'elastic': warps.elastic,
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


def _bind(field: str, text: str) -> Callable:
  """'affine(10, shear=0.2)' -> a function of (image, context)."""
  name, values = parse_call(field, text, OPS, given=2, what='op')
  for low in (key for key in values if key.startswith('min_')):
    high = low.replace('min_', 'max_')
    if values[low] > values[high]:
      raise UserError(
        f'{field}: {text!r}: {low} = {values[low]} is over {high} = '
        f'{values[high]}.'
      )
  return functools.partial(OPS[name], **values)


# Ops that do not mind what the pixels are.
_ANY = ('flip', 'central_crop', 'random_crop', 'random_erasing')
_TO_FLOAT = ('range', 'normalize')


def _check_order(field: str, texts: Sequence[str], names: list[str]):
  """Raises UserError for an op that wants bytes after one that makes floats."""
  made = None
  for text, name in zip(texts, names, strict=True):
    if made and name not in _ANY:
      raise UserError(
        f'{field}: {text!r} after {made!r}, which leaves floats, not bytes; '
        'put it before.'
      )
    made = text if name in _TO_FLOAT else made


def _name(text: str) -> str:
  return text.partition('(')[0].strip()


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
    names = [_name(text) for text in texts]
    _check_order(field, texts, names)
    self._last, self.affine = None, None
    for text, function, name in zip(texts, functions, names, strict=True):
      if name in _TO_FLOAT:
        _levels(field, text, function)
    if names and names[-1] in _TO_FLOAT:
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
      with np.errstate(all='ignore'):
        table = function(levels, Context((256, 1), channels))[:, 0]
    except UserError:  # of another number of channels
      continue
    if not np.isfinite(table).all() or (table[0] >= table[255]).any():
      raise UserError(
        f'{field}: {text!r} makes {table[0].tolist()} of black and '
        f'{table[255].tolist()} of white: two numbers are needed, the first '
        'one smaller.'
      )
    return table
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


def whole(texts: Sequence[str]) -> tuple[str, ...]:
  """The ops with one `fit` for all that resizes or crops, if there is any."""
  sizes = ('resize', 'resize_small', 'fit', 'central_crop', 'crop_or_pad')
  of_size = [_name(text) in sizes for text in texts]
  first = of_size.index(True) if any(of_size) else -1
  return tuple(
    'fit' if i == first else text
    for i, text in enumerate(texts)
    if i == first or not of_size[i]
  )


def check_shape(field: str, image: np.ndarray, context: Context):
  """Raises UserError unless image and mask have the model's shape."""
  want = (*context.size, context.channels)
  if image.shape != want:
    raise UserError(
      f'{field}: the ops give {image.shape} for {context.key}, but the model '
      f"takes {want}. Add 'fit' or 'resize', or set config.size."
    )
  if context.mask is not None and context.mask.shape != context.size:
    raise UserError(
      f'{field}: the ops give a mask of {context.mask.shape} for {context.key} '
      f'beside an image of {context.size}: one of them moves no masks.'
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
  """The pictures of which ops, by a 'range' or a 'normalize', made floats."""
  names = [_name(text) for text in texts]
  last = max((i for i, n in enumerate(names) if n in _TO_FLOAT), default=-1)
  affine = build('ops', texts[: last + 1], on_device=True).affine
  scale, offset = affine or (1.0, 0.0)
  pixels = (images - offset) / scale
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
