"""Ops on where the pixels are: decoding, resizing, crops.

Each is a function of (image uint8 (h, w, c), context, arguments): pure, but for
the random numbers that it takes from `context.rng`, and the mask that it moves
along. How many numbers it takes depends on the arguments, not on the picture.
"""

import math

import cv2
import numpy as np

from vit_jax.data import images, resample
from vit_jax.data.context import (
  Area,
  Border,
  Context,
  Count,
  Kernel,
  Level8,
  Pixels,
  Positive,
)
from vit_jax.data.sources import IGNORE
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
  context.move(resample.nearest, context.size)
  return resample.resize(image, context.size, kernel)


def fit(image, context: Context, kernel: Kernel = 'bilinear'):
  """The largest centred crop of the model's aspect ratio, at its size."""
  h, w = image.shape[:2]
  scale = min(h / context.size[0], w / context.size[1])
  ch, cw = (max(1, round(s * scale)) for s in context.size)
  top, left = (h - ch) // 2, (w - cw) // 2
  context.move(resample.nearest, context.size, (top, left, ch, cw))
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
  context.move(resample.nearest, size)
  return resample.resize(image, size, kernel)


def scale_jitter(
  image,
  context: Context,
  min_scale: Positive = 0.5,
  max_scale: Positive = 2.0,
  side: Count = 0,
  kernel: Kernel = 'bilinear',
):
  """The shorter side to `side` pixels by a random factor; then crop_or_pad.

  MMSegmentation's Resize(ratio_range=...), by which Segmenter is trained
  (arXiv 2105.05633, section 4.2); but that a longer side may be over four times
  the shorter one.

  Args:
    image: (h, w, c).
    context: gives the size and the random numbers.
    min_scale: the smallest factor, all being as likely.
    max_scale: the largest.
    side: in pixels; 0: the model's shorter side.
    kernel: of the resizing, antialiased.
  """
  factor = context.rng.uniform(min_scale, max_scale)
  side = max(1, round(factor * (side or min(context.size))))
  return resize_small(image, context, side, kernel)


def _part(pixels, top: int, left: int, h: int, w: int):
  return pixels[top : top + h, left : left + w]


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
  box = (round(down / 2), round(right / 2), *context.size)
  context.move(_part, *box)
  return _part(image, *box)


BORDERS = {
  'edge': cv2.BORDER_REPLICATE,
  'zero': cv2.BORDER_CONSTANT,
  'reflect': cv2.BORDER_REFLECT_101,
}


def random_crop(
  image, context: Context, padding: Count = 4, border: Border = 'zero'
):
  """A crop of the model's size, anywhere in the padded picture (CIFAR's)."""
  u = context.rng.random(2)
  padded = cv2.copyMakeBorder(image, *(padding,) * 4, BORDERS[border])
  padded = padded.reshape(*padded.shape[:2], image.shape[-1])
  room = _room('random_crop', padded, context)
  top, left = (int(x * (r + 1)) for x, r in zip(u, room, strict=True))
  context.move(_padded, *(padding,) * 4)
  context.move(_part, top, left, *context.size)
  return _part(padded, top, left, *context.size)


def _padded(mask, *margins: int):
  """A mask with pixels that are not counted above, below, left and right."""
  return cv2.copyMakeBorder(
    mask, *margins, cv2.BORDER_CONSTANT, value=(IGNORE,)
  )


def _even(mask, largest: float) -> bool:
  """Whether no class has more of the counted pixels than `largest` of them."""
  counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]
  return bool(0 < counts.max() <= largest * counts.sum())


def crop_or_pad(
  image, context: Context, fill: Level8 = 128, max_share: Area = 1.0
):
  """A random crop of the model's size, padded right and below if smaller.

  Args:
    image: (h, w, c).
    context: gives the size and the random numbers.
    fill: grey level of the padding; it is not counted.
    max_share: with a mask, the first of ten crops in which no class has more of
      the counted pixels, else the last (MMSegmentation's RandomCrop has 0.75).
  """
  u, (h, w) = context.rng.random((10, 2)).tolist(), context.size
  down, right = max(0, image.shape[0] - h), max(0, image.shape[1] - w)
  places = [(int(y * (down + 1)), int(x * (right + 1))) for y, x in u]
  top, left = places[0]
  if max_share < 1 and context.mask is not None:
    good = (
      p for p in places if _even(_part(context.mask, *p, h, w), max_share)
    )
    top, left = next(good, places[-1])
  context.move(_part, top, left, h, w)
  image = _part(image, top, left, h, w)
  below, beside = h - image.shape[0], w - image.shape[1]
  if not below and not beside:
    return image
  context.move(_padded, 0, below, 0, beside)
  padded = np.full((h, w, image.shape[-1]), fill, np.uint8)
  padded[: h - below, : w - beside] = image
  return padded


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
  context.move(resample.nearest, context.size, box)
  if jpeg:
    spare = min(b / (2 * s) for b, s in zip(box[2:], context.size, strict=True))
    reduce = next((r for r in (8, 4, 2) if spare >= r), 1)
    rows = box[0] + box[2]  # the rest is not even decoded
    image = images.decode(image, context.channels, context.key, reduce, rows)
    box = tuple(b / reduce for b in box)
  return resample.crop(image, box, context.size, kernel)
