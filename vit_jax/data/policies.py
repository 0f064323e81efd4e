"""Ops that draw one or several of the changes of colour and geometry."""

import dataclasses
import math

import numpy as np

from vit_jax.data import color
from vit_jax.data.context import (
  Amount,
  Context,
  Count,
  Hue,
  Level,
  Probability,
)
from vit_jax.data.warps import warp

_CORNER = (-0.5, -0.5)  # x and y of where the first pixel begins


def _about(
  image,
  p: float,
  q: float,
  r: float,
  s: float,
  at: tuple[float, float],
  context,
):
  """By the matrix ((p, q), (r, s)), which leaves the point where it is."""
  x, y = at
  matrix = (p, q, x - (p * x + q * y)), (r, s, y - (r * x + s * y))
  return warp(image, matrix, context)


def rotate(image, degrees: float, context: Context | None = None):
  """About the centre, counter-clockwise."""
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  h, w = image.shape[:2]
  middle = ((w - 1) / 2, (h - 1) / 2)
  return _about(image, cos, -sin, sin, cos, middle, context)


def shear_x(image, tangent: float, context: Context | None = None):
  """Rows moved left, the lower the more."""
  return _about(image, 1.0, tangent, 0.0, 1.0, _CORNER, context)


def shear_y(image, tangent: float, context: Context | None = None):
  """Columns moved up, the further right the more."""
  return _about(image, 1.0, 0.0, tangent, 1.0, _CORNER, context)


def translate(image, x: float, y: float, context: Context | None = None):
  """Left and up, by parts of the width and the height."""
  h, w = image.shape[:2]
  matrix = ((1.0, 0.0, float(x * w)), (0.0, 1.0, float(y * h)))
  return warp(image, matrix, context)


def cutout(image, part: float, place: np.ndarray):
  """A grey box of a part of the sides, about a place (arXiv 1708.04552)."""
  image = image.copy()
  size = np.array(image.shape[:2])
  middle, half = (place * size).astype(int), (part * size / 2).astype(int)
  (top, left), (bottom, right) = np.maximum(middle - half, 0), middle + half
  image[top:bottom, left:right] = 128
  return image


@dataclasses.dataclass(frozen=True)
class _Draw:
  """What an op of RandAugment is told."""

  u: float  # strength: level / 10
  sign: int
  place: np.ndarray  # (y, x), parts of the sides
  context: Context | None = None

  @property
  def signed(self) -> float:
    return self.sign * self.u

  @property
  def around(self) -> float:
    """A factor on either side of 1."""
    return max(0.1, 1 + 0.9 * self.signed)


# Moves of 100 pixels and boxes of 80 are meant for 224: here parts of the side.
_BOTH = {
  'autocontrast': lambda x, _: color.autocontrast(x),
  'equalize': lambda x, _: color.equalize(x),
  'invert': lambda x, _: color.invert(x),
  'rotate': lambda x, d: rotate(x, 30 * d.signed, d.context),
  'solarize_add': lambda x, d: color.add_below(x, int(110 * d.u)),
  'shear_x': lambda x, d: shear_x(x, 0.3 * d.signed, d.context),
  'shear_y': lambda x, d: shear_y(x, 0.3 * d.signed, d.context),
  'translate_x': lambda x, d: translate(x, 0.45 * d.signed, 0.0, d.context),
  'translate_y': lambda x, d: translate(x, 0.0, 0.45 * d.signed, d.context),
}
CLASSIC = _BOTH | {
  'posterize': lambda x, d: color.posterize(x, _bits(int(4 * d.u))),
  'solarize': lambda x, d: color.invert_above(x, int(256 * d.u)),
  'color': lambda x, d: color.saturation(x, 0.1 + 1.8 * d.u),
  'contrast': lambda x, d: color.contrast(x, 0.1 + 1.8 * d.u),
  'brightness': lambda x, d: color.brightness(x, 0.1 + 1.8 * d.u),
  'sharpness': lambda x, d: color.sharpness(x, 0.1 + 1.8 * d.u),
  'cutout': lambda x, d: cutout(x, 0.36 * d.u, d.place),
}
INCREASING = _BOTH | {
  'posterize': lambda x, d: color.posterize(x, _bits(4 - int(4 * d.u))),
  'solarize': lambda x, d: color.invert_above(x, 256 - int(256 * d.u)),
  'color': lambda x, d: color.saturation(x, d.around),
  'contrast': lambda x, d: color.contrast(x, d.around),
  'brightness': lambda x, d: color.brightness(x, d.around),
  'sharpness': lambda x, d: color.sharpness(x, d.around),
}


def _bits(bits: int) -> int:
  """At least one: none would be a black picture."""
  return min(8, max(1, bits))


def randaugment(
  image,
  context: Context,
  layers: Count = 2,
  magnitude: Level = 10.0,
  noise: Amount = 0.0,
  increasing: bool = False,
  probability: Probability = 1.0,
):
  """RandAugment (arXiv 1909.13719): `layers` of 16 changes, drawn evenly.

  `randaugment(2, 10)` is AugReg's (arXiv 2106.10270) and big_vision's, after
  AutoAugment's TensorFlow code: levels are tenths of its largest strength (30
  degrees, a factor of 1.9 ...), and 15 or 20 go beyond; some ops grow weaker
  with the level (at 10 'solarize' does nothing). `randaugment(2, 9, 0.5, True,
  0.5)` is DeiT's (arXiv 2012.12877), timm's 'rand-m9-mstd0.5-inc1': all grow
  stronger, contrast and the like go both ways, and there is no cutout.

  Differs from both: interpolation is always bilinear, moves and boxes are parts
  of the sides, 'posterize' leaves a bit.

  Args:
    image: (h, w, c).
    context: gives the random numbers.
    layers: ops in a row.
    magnitude: the level, 0 to 30.
    noise: standard deviation of the level, which stays within 0 and 10, or the
      magnitude if that is more.
    increasing: the second variant.
    probability: how often each is applied.
  """
  table = INCREASING if increasing else CLASSIC
  rng = context.rng
  names = rng.choice(list(table), layers)
  signs, skip = rng.choice([-1, 1], layers), rng.random(layers) >= probability
  levels = magnitude + noise * rng.standard_normal(layers)
  if noise:
    levels = np.clip(levels, 0, max(10, magnitude))
  places = rng.random((layers, 2))
  for i in np.flatnonzero(~skip):
    draw = _Draw(float(levels[i]) / 10, int(signs[i]), places[i], context)
    image = table[names[i]](image, draw)
  return image


def three_augment(image, context: Context):
  """Grey, solarized or blurred, one of the three (DeiT III, arXiv 2204.07118).

  The paper's 3-Augment is a crop, 'flip', 'three_augment',
  'color_jitter(0.3, 0.3, 0.3)'. The width of the blur is uniform
  in 0.1 to 2 pixels.
  """
  choice, sigma = context.rng.integers(3), context.rng.uniform(0.1, 2.0)
  if choice == 0:
    return color.to_grey(image)
  if choice == 1:
    return color.invert_above(image, 128)
  return color.blur(image, sigma)


def color_jitter(
  image,
  context: Context,
  brightness: Amount = 0.3,
  contrast: Amount = 0.3,
  saturation: Amount = 0.3,
  hue: Hue = 0.0,
  probability: Probability = 1.0,
):
  """Four changes in random order (torchvision's ColorJitter).

  Args:
    image: (h, w, c).
    context: gives the random numbers.
    brightness: by a factor in [max(0, 1 - brightness), 1 + brightness].
    contrast: likewise.
    saturation: likewise.
    hue: by a part of the circle in [-hue, hue].
    probability: how often it is applied at all.
  """
  order, u = context.rng.permutation(4), context.rng.random(4)
  if context.rng.random() >= probability:
    return image
  changes = (color.brightness, color.contrast, color.saturation)
  amounts = (brightness, contrast, saturation)
  for i in order:
    if i == 3:
      image = color.hue(image, hue * (2 * u[3] - 1)) if hue else image
    elif amounts[i]:
      low, high = max(0, 1 - amounts[i]), 1 + amounts[i]
      image = changes[i](image, low + (high - low) * u[i])
  return image
