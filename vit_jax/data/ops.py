"""Preprocessing: a tuple of strings in the config, each a pure function.

`config.data.train.ops=('decode', 'fit', 'affine(10, 0.1)', 'range(-1, 1)')`:
an op is a function of (image, context) and the arguments in the brackets; the
context holds the size to reach and a random generator keyed by (seed, epoch,
record), so that an example is augmented alike on any number of hosts. `OPS` is
the table; the pipeline is tried on one example before the run starts.
"""

import ast
import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.images import decode as decode_bytes
from vit_jax.errors import UserError, check_choice
from vit_jax.schema import coerce

cv2.setNumThreads(0)  # the loader's threads are enough


@dataclasses.dataclass(frozen=True)
class Context:
  """What an op may know besides the image."""

  size: tuple[int, int]  # (h, w) the model takes
  channels: int
  seed: tuple[int, int] = (0, 0)  # of the random numbers, 64 bits each
  key: str = ''  # of the record, for messages

  @functools.cached_property
  def rng(self) -> np.random.Generator:
    """Made when an op first draws: many pipelines never do."""
    key = np.array(self.seed, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


_KERNELS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'area': Image.Resampling.BOX,
}
Kernel = Literal['bilinear', 'bicubic', 'area']


def _resize(image: np.ndarray, size: tuple[int, int], kernel: str):
  """Antialiased, as Pillow does it; image uint8 (h, w, c)."""
  if image.shape[:2] == size:
    return image
  grey = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if grey else image)
  result = np.asarray(picture.resize(size[::-1], _KERNELS[kernel]))
  return result[..., None] if grey else result


def decode(image, context: Context):
  """Bytes of a file -> uint8 (h, w, c); pixels get the model's channels."""
  if isinstance(image, bytes):
    return decode_bytes(image, context.channels, context.key)
  if image.shape[-1] == context.channels:
    return image
  if context.channels == 1:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
  return np.repeat(image, 3, -1)


def resize(image, context: Context, kernel: Kernel = 'bilinear'):
  """To the model's size, whatever becomes of the aspect ratio."""
  return _resize(image, context.size, kernel)


def fit(image, context: Context, kernel: Kernel = 'bilinear'):
  """The largest centred crop of the model's aspect ratio, at its size."""
  h, w = image.shape[:2]
  scale = min(h / context.size[0], w / context.size[1])
  ch, cw = (max(1, round(s * scale)) for s in context.size)
  top, left = (h - ch) // 2, (w - cw) // 2
  return _resize(image[top : top + ch, left : left + cw], context.size, kernel)


def resize_small(
  image, context: Context, side: int, kernel: Kernel = 'bilinear'
):
  """The shorter side to `side` pixels, the other in proportion."""
  del context
  h, w = image.shape[:2]
  short = min(h, w)
  return _resize(image, (side * h // short, side * w // short), kernel)


def central_crop(image, context: Context):
  """The middle, of the model's size."""
  (h, w), (ch, cw) = image.shape[:2], context.size
  if h < ch or w < cw:
    raise UserError(
      f"{context.key}: 'central_crop' of {ch}x{cw} from {h}x{w}: resize first."
    )
  top, left = round((h - ch) / 2), round((w - cw) / 2)
  return image[top : top + ch, left : left + cw]


def flip(image, context: Context):
  """Left to right, half of the time."""
  return image[:, ::-1] if context.rng.random() < 0.5 else image


_BORDERS = {
  'edge': cv2.BORDER_REPLICATE,
  'zero': cv2.BORDER_CONSTANT,
  'reflect': cv2.BORDER_REFLECT_101,
}


def affine(
  image,
  context: Context,
  rotate: float = 10.0,
  scale: float = 0.1,
  shift: float = 0.1,
  shear: float = 0.1,
  border: Literal['edge', 'zero', 'reflect'] = 'edge',
  probability: float = 1.0,
):
  """A small random affine map about the centre, bicubic.

  Args:
    image: (h, w, c).
    context: gives the random numbers.
    rotate: at most so many degrees either way.
    scale: each axis by a factor in [1 - scale, 1 + scale].
    shift: at most this fraction of the size, each way.
    shear: at most this tangent.
    border: what lies outside of the picture.
    probability: how often it is applied at all.
  """
  h, w = image.shape[:2]
  u = context.rng.uniform(-1, 1, 6)
  if context.rng.random() >= probability:
    return image
  angle = math.radians(rotate * u[0])
  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, -sin], [sin, cos]])
  skew = np.array([[1 + scale * u[1], shear * u[2]], [0, 1 + scale * u[3]]])
  matrix = turn @ skew
  centre = np.array([(w - 1) / 2, (h - 1) / 2])
  offset = centre - matrix @ centre + shift * u[4:] * (w, h)
  result = cv2.warpAffine(
    image,
    np.column_stack([matrix, offset]),
    (w, h),
    flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
    borderMode=_BORDERS[border],
  )
  return result.reshape(image.shape)


def elastic(image, context: Context, strength: float = 0.05, grid: int = 3):
  """A smooth random distortion (Simard et al., 2003), bicubic.

  Args:
    image: (h, w, c).
    context: gives the random numbers.
    strength: standard deviation of the displacement, as a fraction of the size.
    grid: displacements are drawn on grid x grid points and interpolated.
  """
  h, w = image.shape[:2]
  coarse = context.rng.normal(0, strength, (grid, grid, 2)).astype(np.float32)
  field = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
  y, x = np.mgrid[:h, :w].astype(np.float32)
  result = cv2.remap(
    image,
    x + field[..., 0] * w,
    y + field[..., 1] * h,
    cv2.INTER_CUBIC,
    borderMode=cv2.BORDER_REPLICATE,
  )
  return result.reshape(image.shape)


def value_range(image, _: Context, low: float = -1.0, high: float = 1.0):
  """uint8 0..255 -> float32 low..high."""
  scale = np.float32((high - low) / 255)
  return image.astype(np.float32) * scale + np.float32(low)


def normalize(
  image,
  context: Context,
  mean: tuple[float, ...] = (0.5,),
  std: tuple[float, ...] = (0.5,),
):
  """uint8 -> float32 (x / 255 - mean) / std, of each channel or of all.

  Without arguments: those of the weights in config.init_from, or -1 to 1.
  """
  del context
  scale = np.asarray(std, np.float32)
  return (image.astype(np.float32) / 255 - np.asarray(mean, np.float32)) / scale


OPS: dict[str, Callable] = {
  'decode': decode,
  'resize': resize,
  'fit': fit,
  'resize_small': resize_small,
  'central_crop': central_crop,
  'flip': flip,
  'affine': affine,
  'elastic': elastic,
  'range': value_range,
  'normalize': normalize,
}


def bind(field: str, text: str) -> Callable:
  """'affine(10, shear=0.2)' -> a function of (image, context)."""
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
  function = OPS[name]
  hints = typing.get_type_hints(function)
  try:
    bound = inspect.signature(function).bind(None, None, *args, **kwargs)
  except TypeError as error:
    names = list(inspect.signature(function).parameters)[2:]
    raise UserError(
      f'{field}: {text!r}: {error}. Arguments: {", ".join(names) or "none"}.'
    ) from None
  values = {
    key: coerce(f'{field}: {text!r}: {key}', value, hints[key])
    for key, value in list(bound.arguments.items())[2:]
  }
  return lambda image, context: function(image, context, **values)


class Pipeline:
  """The ops of a split as one function of (image or bytes, context).

  Attributes:
    host: all ops but a last 'range' or 'normalize', which is left to the
      devices: a byte a value travels there, not four.
    affine: (scale, offset) of what is left, each (1,) or (c,) in float32; None:
      nothing is.
    dtype: of what `host` gives.
  """

  def __init__(self, field: str, texts: Sequence[str]):
    functions = [bind(field, text) for text in texts]
    self._last, self.affine = None, None
    if texts and texts[-1].split('(')[0].strip() in ('range', 'normalize'):
      self._last = functions.pop()
      ends = np.array([[[0]], [[255]]], np.uint8)
      low, high = self._last(ends, Context((2, 1), 1)).reshape(2, -1)
      self.affine = (high - low) / np.float32(255), low
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


def build(field: str, texts: Sequence[str]) -> Pipeline:
  """The ops of a split.

  Args:
    field: the config field, for messages.
    texts: the ops, in order.

  Raises:
    UserError: an unknown op, or arguments that it does not take.
  """
  return Pipeline(field, texts)


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
