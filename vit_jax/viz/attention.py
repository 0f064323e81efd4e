"""Where a model looks: maps by head, rollout, and how far heads look."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

Maps = Float[np.ndarray, 'L H N N']  # of one image: query tokens by key tokens

_ROWS, _COLUMNS = 8, 16  # of layers and heads shown


def to_patches(
  attention: Maps, prefix: int, cls: bool, grid: tuple[int, int]
) -> Float[np.ndarray, 'L H gh gw']:
  """From CLS to the patches; without one, from the mean of the patches.

  Args:
    attention: of an image.
    prefix: tokens before the patches.
    cls: whether the first of them is CLS.
    grid: patches down and across.
  """
  rows = attention[:, :, 0] if cls else attention[:, :, prefix:].mean(2)
  return rows[..., prefix:].reshape(*attention.shape[:2], *grid)


def rollout(attention: Maps) -> Float[np.ndarray, 'N N']:
  """What of each input token is in each output token.

  Attention rollout (arXiv 2005.00928, eq. 1): the mean over the heads, half of
  it the residual's identity, multiplied from the first layer to the last.
  """
  n = attention.shape[-1]
  total = np.eye(n)
  for layer in attention:
    mixed = 0.5 * layer.mean(0) + 0.5 * np.eye(n)
    total = mixed @ total
  return total / total.sum(-1, keepdims=True)


def distances(
  attention: Maps, prefix: int, grid: tuple[int, int], patch: int
) -> Float[np.ndarray, 'L H']:
  """Mean attention distance in pixels, as in arXiv 2010.11929, figure 7.

  For each patch the distance to what it attends to, weighted by the attention
  among patches; the mean over the patches. Small: a local head, as a
  convolution is (section 1.7 of the notes).
  """
  places = np.indices(grid).reshape(2, -1).T * patch
  apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
  among = attention[..., prefix:, prefix:]
  weights = among / np.maximum(among.sum(-1, keepdims=True), 1e-12)
  return (weights * apart).sum(-1).mean(-1)


def spread_evenly(count: int, most: int) -> list[int]:
  """At most `most` of range(count), the first and the last among them."""
  return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def enlarge(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A map of the patches (gh, gw) as large as the picture (h, w)."""
  picture = Image.fromarray(heat.astype(np.float32))
  resized = picture.resize(size[::-1], Image.Resampling.BICUBIC)
  return np.asarray(resized)


def overlay(axis, picture: np.ndarray, heat: np.ndarray):
  """The picture in grey, the map over it in colour, from 0 to its maximum."""
  axis.imshow(picture.mean(-1), cmap='gray', vmin=0, vmax=1)
  heat = np.clip(enlarge(heat, picture.shape[:2]), 0, None)
  axis.imshow(heat, cmap='inferno', alpha=0.65, vmin=0)
  axis.set_axis_off()


def draw_heads(
  picture: Float[np.ndarray, 'h w c'],
  maps: Float[np.ndarray, 'L H gh gw'],
  rolled: Float[np.ndarray, 'gh gw'],
) -> Figure:
  """A row a layer, a column a head; at the left the picture and the rollout."""
  layers = spread_evenly(len(maps), _ROWS)
  heads = spread_evenly(maps.shape[1], _COLUMNS)
  columns, rows = len(heads) + 1, max(2, len(layers))
  figure = Figure((1.35 * columns + 0.5, 1.35 * rows + 0.4), dpi=110)
  figure.set_layout_engine('constrained', w_pad=0.02, h_pad=0.02)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  axes[0, 0].imshow(picture.squeeze(), cmap='gray', vmin=0, vmax=1)
  axes[0, 0].set_title('picture', fontsize=8)
  overlay(axes[1, 0], picture, rolled)
  axes[1, 0].set_title('rollout', fontsize=8)
  for row, layer in enumerate(layers):
    for column, head in enumerate(heads):
      axis = axes[row, column + 1]
      overlay(axis, picture, maps[layer, head])
      axis.set_title(f'layer {layer + 1}, head {head + 1}', fontsize=7, pad=2)
  return figure


def draw_distances(
  measured: Sequence[Float[np.ndarray, 'L H']], patch: int
) -> Figure:
  """A dot a head, over the layers; the mean over the images."""
  mean = np.mean(measured, 0)
  layers = np.arange(1, len(mean) + 1)
  figure = Figure((6, 3.6), dpi=110, layout='constrained')
  axis = figure.subplots()
  for head in mean.T:
    axis.plot(layers, head, 'o', color='C0', alpha=0.6, markersize=5)
  axis.plot(layers, mean.mean(1), color='C1', label='mean of the heads')
  axis.axhline(patch, color='grey', linewidth=0.8, linestyle=':')
  axis.annotate(
    'one patch',
    (layers[-1], patch),
    fontsize=8,
    color='grey',
    xytext=(0, 2),
    textcoords='offset points',
    ha='right',
  )
  axis.set(xlabel='layer', ylabel='mean attention distance, pixels', ylim=0)
  axis.set_xticks(layers if len(layers) < 25 else layers[::4])
  axis.grid(alpha=0.3)
  axis.legend()
  return figure
