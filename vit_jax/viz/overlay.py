"""Masks as colours on their pictures."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.sources import IGNORE
from vit_jax.viz.contact_sheet import draw_contact_sheet


def _colors() -> UInt8[np.ndarray, '256 3']:
  """The first class black, most often the background; IGNORE nearly white.

  The hues between are a golden ratio of the circle apart, so that any few in a
  row differ.
  """
  turns = [(i * 0.618034 % 1, 1.0, 1 - 0.25 * (i % 2)) for i in range(256)]
  colors = np.array([colorsys.hsv_to_rgb(*turn) for turn in turns])
  colors[0], colors[IGNORE] = 0.0, (0.9, 0.88, 0.8)
  return np.rint(255 * colors).astype(np.uint8)


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


def draw_masks(
  picture: UInt8[np.ndarray, 'h w c'],
  masks: Mapping[str, UInt8[np.ndarray, 'h w']],
  classes: Sequence[str],
  title: str,
  path: Path,
):
  """Writes a PNG: the picture, its masks by name, and the last one over it.

  At the picture's own size, or a multiple of it; below, what colours mean.
  """
  every = np.stack(list(masks.values()))
  shown = {'image': overlay(picture, every[0], 0.0)}
  shown |= {name: COLORS[mask] for name, mask in masks.items()}
  shown['overlay'] = overlay(picture, every[-1])
  draw_contact_sheet(
    np.stack(list(shown.values())),
    list(shown),
    title,
    path,
    columns=len(shown),
    legend=legend(every, classes),
  )
