"""Ops on where the pixels are: decoding, resizing, crops, flips, warps.

Each is a function of (image uint8 (h, w, c), context, arguments): pure, but for
the random numbers that it takes from `context.rng`. How many it takes depends
on the arguments, not on the picture.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import cv2
import numpy as np

from vit_jax.data import images, resample
from vit_jax.data.context import (
  Amount,
  Area,
  Border,
  Context,
  Count,
  Fraction,
  Kernel,
  Pixels,
  Probability,
)
from vit_jax.errors import BadRecord, UserError

cv2.setNumThreads(0)  # the loader's threads are enough


def decode(image, context: Context):
  """Bytes of a file -> uint8 (h, w, c); pixels get the model's channels."""
  if isinstance(image, bytes):
    return images.decode(image, context.channels, context.key)
  if image.shape[-1] == context.channels:
    return image
  if context.channels == 1:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
  return np.repeat(image, 3, -1)


def resize(image, context: Context, kernel: Kernel = 'bilinear'):
  """To the model's size, whatever becomes of the aspect ratio."""
  return resample.resize(image, context.size, kernel)


def fit(image, context: Context, kernel: Kernel = 'bilinear'):
  """The largest centred crop of the model's aspect ratio, at its size."""
  h, w = image.shape[:2]
  scale = min(h / context.size[0], w / context.size[1])
  ch, cw = (max(1, round(s * scale)) for s in context.size)
  top, left = (h - ch) // 2, (w - cw) // 2
  image = image[top : top + ch, left : left + cw]
  return resample.resize(image, context.size, kernel)


def resize_small(
  image, context: Context, side: Pixels, kernel: Kernel = 'bilinear'
):
  """The shorter side to `side` pixels, the other in proportion."""
  h, w = image.shape[:2]
  short = min(h, w)
  size = side * h // short, side * w // short
  if size[0] * size[1] > images.MOST_PIXELS:  # a line, say
    raise BadRecord(
      f'{context.key}: {h}x{w} resized to {size[0]}x{size[1]} pixels would be '
      f'more than {images.MOST_PIXELS:,}. Remove or replace it.'
    )
  return resample.resize(image, size, kernel)


def _room(op: str, image, context: Context) -> tuple[int, int]:
  """Pixels (down, right) that a crop of the model's size can move by."""
  (h, w), (ch, cw) = image.shape[:2], context.size
  if h < ch or w < cw:
    raise UserError(
      f'{context.key}: {op!r} of {ch}x{cw} from {h}x{w}: resize first.'
    )
  return h - ch, w - cw


def central_crop(image, context: Context):
  """The middle, of the model's size."""
  down, right = _room('central_crop', image, context)
  (top, left), (h, w) = (round(down / 2), round(right / 2)), context.size
  return image[top : top + h, left : left + w]


_BORDERS = {
  'edge': cv2.BORDER_REPLICATE,
  'zero': cv2.BORDER_CONSTANT,
  'reflect': cv2.BORDER_REFLECT_101,
}


def random_crop(
  image, context: Context, padding: Count = 4, border: Border = 'zero'
):
  """A crop of the model's size, anywhere in the padded picture (CIFAR's)."""
  u = context.rng.random(2)
  padded = cv2.copyMakeBorder(image, *(padding,) * 4, _BORDERS[border])
  padded = padded.reshape(*padded.shape[:2], image.shape[-1])
  room, (h, w) = _room('random_crop', padded, context), context.size
  top, left = (int(x * (r + 1)) for x, r in zip(u, room, strict=True))
  return padded[top : top + h, left : left + w]


def inception_box(
  h: int,
  w: int,
  rng: np.random.Generator,
  min_area: float,
  max_area: float,
) -> tuple[int, int, int, int]:
  """Top, left, height and width of an inception crop of an h x w picture.

  The first that fits of ten draws, each of an area, a fraction of the picture's
  and uniform, and of width / height, log-uniform in [3/4, 4/3]. If none fits,
  the middle: all of it, or what that range of ratios leaves (as torchvision).
  """
  # Plain numbers: ten at once take NumPy five times as long.
  u = rng.random(22).tolist()
  for area, ratio in zip(u[:10], u[10:20], strict=True):
    area = (min_area + (max_area - min_area) * area) * h * w
    ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
    ch, cw = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    if 0 < ch <= h and 0 < cw <= w:
      return int(u[20] * (h - ch + 1)), int(u[21] * (w - cw + 1)), ch, cw
  ch = min(h, max(1, round(w * 4 / 3)))
  cw = min(w, max(1, round(h * 4 / 3)))
  return (h - ch) // 2, (w - cw) // 2, ch, cw


def inception_crop(
  image,
  context: Context,
  min_area: Area = 0.08,
  max_area: Area = 1.0,
  kernel: Kernel = 'bilinear',
):
  """A random part at the model's size (Szegedy et al. 2014, arXiv 1409.4842).

  Takes the bytes of a file too (which is how it gets them after 'decode'): of a
  JPEG it then decodes no more than twice the resolution that it needs.

  Args:
    image: (h, w, c), or bytes.
    context: gives the size and the random numbers.
    min_area: smallest part, as a fraction of the picture.
    max_area: largest part.
    kernel: of the resizing, antialiased.
  """
  jpeg = isinstance(image, bytes) and image.startswith(b'\xff\xd8')
  if jpeg:
    (h, w), _ = images.header(image, context.key)
  else:
    image = decode(image, context)
    h, w = image.shape[:2]
  box = inception_box(h, w, context.rng, min_area, max_area)
  if jpeg:
    spare = min(b / (2 * s) for b, s in zip(box[2:], context.size, strict=True))
    reduce = next((r for r in (8, 4, 2) if spare >= r), 1)
    rows = box[0] + box[2]  # the rest is not even decoded
    image = images.decode(image, context.channels, context.key, reduce, rows)
    box = tuple(b / reduce for b in box)
  return resample.crop(image, box, context.size, kernel)


def flip(image, context: Context):
  """Left to right, half of the time."""
  if context.rng.random() >= 0.5:
    return image
  return cv2.flip(image, 1).reshape(image.shape)


def warp(
  image,
  matrix: Sequence[Sequence[float]],
  interpolation: int = cv2.INTER_LINEAR,
  border: int = cv2.BORDER_CONSTANT,
  fill: int = 128,
):
  """The picture seen through an affine map.

  Args:
    image: (h, w, c).
    matrix: (2, 3), from where a pixel (x, y, 1) is to where it is taken from.
    interpolation: OpenCV's constant.
    border: likewise.
    fill: grey level of what lies outside, if the border is constant.
  """
  result = cv2.warpAffine(
    image,
    np.array(matrix, np.float64),
    image.shape[1::-1],
    flags=interpolation | cv2.WARP_INVERSE_MAP,
    borderMode=border,
    borderValue=(fill,) * 4,
  )
  return result.reshape(image.shape)


def affine(
  image,
  context: Context,
  rotate: Amount = 10.0,
  scale: Fraction = 0.1,
  shift: Amount = 0.1,
  shear: Amount = 0.1,
  border: Border = 'edge',
  probability: Probability = 1.0,
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
  # Of small pictures these few numbers are most of the time: no arrays here.
  h, w = image.shape[:2]
  turn, u1, u2, u3, u4, u5 = context.rng.uniform(-1, 1, 6).tolist()
  if context.rng.random() >= probability:
    return image
  angle = math.radians(rotate * turn)
  cos, sin = math.cos(angle), math.sin(angle)
  a, b, d = 1 + scale * u1, shear * u2, 1 + scale * u3
  p, q, r, s = cos * a, cos * b - sin * d, sin * a, sin * b + cos * d
  x, y = (w - 1) / 2, (h - 1) / 2  # stays where it is, but for the shift
  matrix = (
    (p, q, x - (p * x + q * y) + shift * u4 * w),
    (r, s, y - (r * x + s * y) + shift * u5 * h),
  )
  return warp(image, matrix, cv2.INTER_CUBIC, _BORDERS[border], 0)


def elastic(
  image,
  context: Context,
  strength: Amount = 0.05,
  grid: Annotated[int, 'at least 1', lambda x: x >= 1] = 3,
):
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
