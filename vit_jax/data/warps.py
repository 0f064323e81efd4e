"""Ops that move pixels within the picture: flips, affine and smooth maps.

As those of geometry.py; what a map lets in from outside is, in a mask, not
counted, whatever the border of the picture.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import cv2
import numpy as np

from vit_jax.data.context import (
  Amount,
  Border,
  Context,
  Fraction,
  Probability,
)
from vit_jax.data.geometry import BORDERS
from vit_jax.data.sources import IGNORE


def flip(image, context: Context):
  """Left to right, half of the time."""
  if context.rng.random() >= 0.5:
    return image
  context.move(cv2.flip, 1)
  return cv2.flip(image, 1).reshape(image.shape)


def warp(
  image,
  matrix: Sequence[Sequence[float]],
  context: Context | None = None,
  interpolation: int = cv2.INTER_LINEAR,
  border: int = cv2.BORDER_CONSTANT,
  fill: int = 128,
):
  """The picture seen through an affine map.

  Args:
    image: (h, w, c).
    matrix: (2, 3), from where a pixel (x, y, 1) is to where it is taken from.
    context: of which the mask is moved along.
    interpolation: OpenCV's constant.
    border: likewise.
    fill: grey level of what lies outside, if the border is constant.
  """
  matrix = np.array(matrix, np.float64)
  if context:
    context.move(
      _warped, matrix, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, IGNORE
    )
  return _warped(image, matrix, interpolation, border, fill)


def _warped(pixels, matrix, interpolation: int, border: int, fill: int):
  result = cv2.warpAffine(
    pixels,
    matrix,
    pixels.shape[1::-1],
    flags=interpolation | cv2.WARP_INVERSE_MAP,
    borderMode=border,
    borderValue=(fill,) * 4,
  )
  return result.reshape(pixels.shape)


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
  return warp(image, matrix, context, cv2.INTER_CUBIC, BORDERS[border], 0)


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
  x += field[..., 0] * w
  y += field[..., 1] * h
  context.move(
    cv2.remap, x, y, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, IGNORE
  )
  result = cv2.remap(
    image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
  )
  return result.reshape(image.shape)
