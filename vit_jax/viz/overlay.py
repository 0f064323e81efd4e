"""Masks as colours on their pictures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.sources import IGNORE


def _colors() -> UInt8[np.ndarray, '256 3']:
  """Pascal VOC's: bits 0, 3, 6 of a label are the highest of red, and so on.

  The first is black, and that of IGNORE nearly white.
  """
  labels = np.arange(256)
  result = np.zeros((256, 3), np.int64)
  for place in range(8):
    for channel in range(3):
      bit = labels >> (3 * place + channel) & 1
      result[:, channel] |= bit << (7 - place)
  return result.astype(np.uint8)


COLORS = _colors()


def overlay(
  images: UInt8[np.ndarray, '*n h w c'],
  masks: UInt8[np.ndarray, '*n h w'],
  strength: float = 0.6,
) -> UInt8[np.ndarray, '*n h w 3']:
  """Pictures under the colours of their labels.

  Args:
    images: grey or RGB.
    masks: classes and IGNORE.
    strength: of the colours; 0: the pictures themselves, in RGB.
  """
  mixed = images * (1 - strength) + COLORS[masks] * strength
  return np.rint(mixed).astype(np.uint8)


def legend(
  masks: UInt8[np.ndarray, '*n h w'], classes: Sequence[str]
) -> list[tuple[str, tuple[int, ...]]]:
  """Name and colour of each label that is there."""
  return [
    ('ignored' if i == IGNORE else classes[i], tuple(COLORS[i].tolist()))
    for i in np.unique(masks).tolist()
  ]
