"""What the parameters show: filters of the embedding, likeness of positions."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit_jax.models.positions import sincos1d, sincos2d
from vit_jax.models.vit import ViT

_SHOWN = 28


def filters(
  model: ViT, params: Any, channels: int
) -> Float[np.ndarray, 'n P P c']:
  """Principal components of the patch embedding's filters, the largest first.

  As in arXiv 2010.11929, figure 7, left. A hybrid has a stem: the filters of
  its first convolution.
  """
  if 'stem' in params:
    kernel = np.asarray(params['stem']['root']['kernel'], np.float32)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    side = math.isqrt(len(kernel) // channels)
  else:
    kernel = np.asarray(params['embed']['linear']['kernel'], np.float32)
    side = model.patch
  _, _, components = np.linalg.svd(
    kernel.T - kernel.mean(1), full_matrices=False
  )
  found = components[:_SHOWN].reshape(-1, side, side, channels)
  low = found.min((1, 2, 3), keepdims=True)
  high = found.max((1, 2, 3), keepdims=True)
  return (found - low) / np.maximum(high - low, 1e-12)


def position_table(
  model: ViT, params: Any, grid: tuple[int, int]
) -> Float[np.ndarray, 'N D'] | None:
  """What is added to the patches; None where nothing is added."""
  width, patches = model.shape.width, math.prod(grid)
  if model.positions == 'learned':
    table = np.asarray(params['positions']['table'], np.float32)
    return table[-patches:]
  if model.positions == 'sincos2d':
    return sincos2d(grid, width)
  if model.positions == 'sincos1d':
    prefix = len(model.special) if model.prefix_positions else 0
    return sincos1d(patches + prefix, width)[-patches:]
  return None


def similarity(
  table: Float[np.ndarray, 'N D'], grid: tuple[int, int]
) -> Float[np.ndarray, 'gh gw gh gw']:
  """The cosine of each position with each other one."""
  unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
  return (unit @ unit.T).reshape(*grid, *grid)


def draw_filters(found: Float[np.ndarray, 'n P P c']) -> Figure:
  """Each filter as a picture."""
  columns = 7
  rows = math.ceil(len(found) / columns)
  figure = Figure((columns * 0.9, rows * 0.9), dpi=110)
  figure.set_layout_engine('constrained', w_pad=0.03, h_pad=0.03)
  axes = figure.subplots(rows, columns, squeeze=False)
  for i, axis in enumerate(axes.flat):
    axis.set_axis_off()
    if i < len(found):
      axis.imshow(found[i].squeeze(), cmap='gray', interpolation='nearest')
  return figure


def draw_similarity(alike: Float[np.ndarray, 'gh gw gh gw']) -> Figure:
  """A tile for each position: how like it is to every other one."""
  gh, gw = alike.shape[:2]
  rows = np.linspace(0, gh - 1, min(gh, 14)).round().astype(int)
  columns = np.linspace(0, gw - 1, min(gw, 14)).round().astype(int)
  figure = Figure((0.62 * len(columns) + 1.4, 0.62 * len(rows) + 0.7), dpi=110)
  axes = figure.subplots(
    len(rows),
    len(columns),
    squeeze=False,
    gridspec_kw={'wspace': 0.08, 'hspace': 0.08, 'right': 0.8, 'top': 0.95},
  )
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      tile = axes[i, j].imshow(
        alike[row, column], cmap='viridis', vmin=alike.min(), vmax=1
      )
      axes[i, j].set(xticks=[], yticks=[])
  figure.supxlabel('column of the patch', fontsize=9)
  figure.supylabel('row of the patch', fontsize=9)
  place = figure.add_axes((0.83, 0.15, 0.02, 0.7))
  figure.colorbar(tile, cax=place).set_label('cosine similarity', fontsize=8)
  return figure
