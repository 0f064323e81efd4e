"""Ops on what the pixels are: levels, colour, blur, erasing, float32.

The functions of (image uint8 (h, w, c), amount) are Pillow's ImageOps and
ImageEnhance, within 2 grey levels; those of (image, context, ...) are ops. A
grey picture has no colour to change, but draws the same random numbers.
"""

import math
from typing import Literal

import cv2
import numpy as np

from vit_jax.data.context import (
  Area,
  Context,
  Grey,
  Positive,
  Probability,
)
from vit_jax.errors import UserError

_LEVELS = np.arange(256)


def _look_up(image, table):
  """Each level through a table (256,), or one a channel (256, c)."""
  table = np.asarray(table)
  return cv2.LUT(image, table.reshape(1, 256, -1)).reshape(image.shape)


def _clipped(levels) -> np.ndarray:
  return np.clip(levels, 0, 255).astype(np.uint8)


def _grey(image) -> np.ndarray:
  """(h, w), ITU-R 601."""
  if image.shape[-1] == 1:
    return image[..., 0]
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _blend(other, image, factor: float):
  """`other` at 0, the picture at 1, beyond it above."""
  result = cv2.addWeighted(image, factor, other, 1 - factor, 0)
  return result.reshape(image.shape)


def brightness(image, factor: float):
  """Black at 0, unchanged at 1."""
  return _look_up(image, _clipped(np.float32(factor) * _LEVELS))


def contrast(image, factor: float):
  """The mean grey everywhere at 0, unchanged at 1."""
  mean = int(_grey(image).mean() + 0.5)
  return _look_up(image, _clipped(mean + np.float32(factor) * (_LEVELS - mean)))


def saturation(image, factor: float):
  """Grey at 0, unchanged at 1."""
  if image.shape[-1] == 1:
    return image
  return _blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image, factor: float):
  """Smoothed at 0 (3 x 3, the edge is kept), unchanged at 1."""
  smooth = image.copy()
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
  inner = cv2.filter2D(image, -1, kernel).reshape(image.shape)
  smooth[1:-1, 1:-1] = inner[1:-1, 1:-1]
  return _blend(smooth, image, factor)


def hue(image, turn: float):
  """Hues moved by a part of the circle; 0.5 or -0.5 gives the opposite ones."""
  if image.shape[-1] == 1:
    return image
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # wraps
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _channels(image, table_of):
  """Each channel through a table made of its histogram."""
  tables = [
    table_of(cv2.calcHist([image], [i], None, [256], [0, 256]).ravel())
    for i in range(image.shape[-1])
  ]
  return _look_up(image, np.stack(tables, -1))


def autocontrast(image):
  """Each channel stretched to 0..255."""

  def table(histogram):
    low, high = np.flatnonzero(histogram)[[0, -1]]
    if low == high:
      return _LEVELS.astype(np.uint8)
    return _clipped((_LEVELS - low) * (255 / (high - low)))

  return _channels(image, table)


def equalize(image):
  """Each channel with a flat histogram."""

  def table(histogram):
    counts = histogram.astype(np.int64)
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
      return _LEVELS.astype(np.uint8)
    below = np.cumsum(counts) - counts
    return _clipped((step // 2 + below) // step)

  return _channels(image, table)


def invert(image):
  """The negative."""
  return 255 - image


def posterize(image, bits: int):
  """The highest bits of each level."""
  return image & np.uint8(256 - 2 ** (8 - bits))


def invert_above(image, threshold: int):
  """Solarized: levels from the threshold on are inverted."""
  return _look_up(
    image, _clipped(np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))
  )


def add_below(image, addition: int, threshold: int = 128):
  """Levels below the threshold are raised (AutoAugment's SolarizeAdd)."""
  raised = np.where(threshold > _LEVELS, _LEVELS + addition, _LEVELS)
  return _look_up(image, _clipped(raised))


def blur(image, sigma: float):
  """Gaussian, of a standard deviation in pixels."""
  result = cv2.GaussianBlur(
    image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE
  )
  return result.reshape(image.shape)


def to_grey(image):
  """Grey, in as many channels as before."""
  return saturation(image, 0.0)


def grayscale(image, context: Context, probability: Probability = 1.0):
  """Without colour, in as many channels."""
  return to_grey(image) if context.rng.random() < probability else image


def solarize(
  image,
  context: Context,
  threshold: Grey = 128,
  probability: Probability = 1.0,
):
  """Levels from the threshold on are inverted."""
  apply = context.rng.random() < probability
  return invert_above(image, threshold) if apply else image


def gaussian_blur(
  image,
  context: Context,
  min_sigma: Positive = 0.1,
  max_sigma: Positive = 2.0,
  probability: Probability = 1.0,
):
  """Blurred by a random width, in pixels (SimCLR, arXiv 2002.05709)."""
  sigma = context.rng.uniform(min_sigma, max_sigma)
  return blur(image, sigma) if context.rng.random() < probability else image


def random_erasing(
  image,
  context: Context,
  probability: Probability = 0.25,
  min_area: Area = 0.02,
  max_area: Area = 1 / 3,
  mode: Literal['pixel', 'zero'] = 'pixel',
):
  """A random rectangle is overwritten (arXiv 1708.04896).

  Best after 'normalize' or 'range': 'pixel' then is noise of N(0, 1), 'zero'
  the mean (as timm has it). On uint8 they are uniform noise and black.

  Args:
    image: (h, w, c), float32 or uint8.
    context: gives the random numbers.
    probability: how often.
    min_area: smallest rectangle, as a fraction of the picture.
    max_area: largest; width / height is log-uniform in [0.3, 1 / 0.3].
    mode: what it is overwritten with.
  """
  (h, w), rng = image.shape[:2], context.rng
  areas = rng.uniform(min_area, max_area, 10) * (h * w)
  ratios = np.exp(rng.uniform(math.log(0.3), -math.log(0.3), 10))
  u, apply = rng.random(2), rng.random() < probability
  sides = np.rint(np.sqrt([areas / ratios, areas * ratios])).astype(int)
  fits = (sides > 0).all(0) & (sides[0] < h) & (sides[1] < w)
  if not (apply and fits.any()):
    return image
  eh, ew = (int(s) for s in sides[:, fits.argmax()])
  top, left = int(u[0] * (h - eh + 1)), int(u[1] * (w - ew + 1))
  erased = image.copy()
  part = erased[top : top + eh, left : left + ew]
  if mode == 'zero':
    part[:] = 0
  elif image.dtype == np.uint8:
    part[:] = rng.integers(0, 256, part.shape, np.uint8)
  else:
    part[:] = rng.standard_normal(part.shape, np.float32)
  return erased


def value_range(image, _: Context, low: float = -1.0, high: float = 1.0):
  """uint8 0..255 -> float32 low..high."""
  scale = np.float32((high - low) / 255)
  result = np.multiply(image, scale, dtype=np.float32)
  result += np.float32(low)
  return result


def normalize(
  image,
  context: Context,
  mean: tuple[float, ...] = (0.5,),
  std: tuple[float, ...] = (0.5,),
):
  """uint8 -> float32 (x / 255 - mean) / std, of each channel or of all.

  Without arguments: those of the weights in config.init_from, or -1 to 1.
  """
  c = image.shape[-1]
  if image.dtype != np.uint8 or not {len(mean), len(std)} <= {1, c}:
    raise UserError(
      f'{context.key}: normalize({mean}, {std}) of {image.dtype} with {c} '
      'channels: it takes uint8, and one number or one a channel.'
    )
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  table = (_LEVELS[:, None].astype(np.float32) / 255 - mean) / std
  return _look_up(image, np.broadcast_to(table, (256, c)))
