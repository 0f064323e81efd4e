"""What the tokens of patches hold: principal components, and their norms."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit_jax.viz.attention import enlarge, spread_evenly

_OUTLIER = 3.0  # times the median norm of its layer


def pca_colors(features: Float[np.ndarray, 'n D']) -> Float[np.ndarray, 'n 3']:
  """The first three principal components, each from its 1st to 99th percentile.

  As DINOv2 is shown (arXiv 2304.07193, figure 1); equal colours: similar
  features. Signs are fixed by the largest weight, so pictures do not flip.
  """
  centred = features - features.mean(0)
  _, _, components = np.linalg.svd(centred, full_matrices=False)
  components = components[:3]
  largest = np.abs(components).argmax(1)
  components *= np.sign(components[np.arange(len(components)), largest])[
    :, None
  ]
  found = np.zeros((len(features), 3))
  found[:, : len(components)] = centred @ components.T
  low, high = np.percentile(found, (1, 99), axis=0)
  return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)


def outliers(tokens: Float[np.ndarray, 'L N D'], prefix: int) -> np.ndarray:
  """Of patches, by layer: which have more than three times the median norm.

  Large models keep global information in tokens of empty patches; registers
  take their place (arXiv 2309.16588).
  """
  norms = np.linalg.norm(tokens[:, prefix:], axis=-1)
  return norms > _OUTLIER * np.median(norms, axis=-1, keepdims=True)


def draw_features(
  pictures: Sequence[Float[np.ndarray, 'h w c']],
  tokens: Sequence[Float[np.ndarray, 'L N D']],
  prefix: int,
  grid: tuple[int, int],
) -> Figure:
  """A row a picture: itself, then its patches' features by layer, as colours.

  One set of components for all pictures of a layer.
  """
  layers = spread_evenly(len(tokens[0]), 5)
  rows, columns = len(pictures), len(layers) + 1
  figure = Figure((1.9 * columns, 1.9 * rows + 0.3), dpi=110)
  figure.set_layout_engine('constrained', w_pad=0.02, h_pad=0.02)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  for i, picture in enumerate(pictures):
    axes[i, 0].imshow(picture.squeeze(), cmap='gray', vmin=0, vmax=1)
  for column, layer in enumerate(layers, 1):
    patches = np.concatenate([t[layer, prefix:] for t in tokens])
    colors = pca_colors(patches).reshape(rows, *grid, 3)
    for i in range(rows):
      axes[i, column].imshow(colors[i], interpolation='nearest')
    axes[0, column].set_title(f'layer {layer + 1}', fontsize=9)
  return figure


def draw_norms(
  pictures: Sequence[Float[np.ndarray, 'h w c']],
  tokens: Sequence[Float[np.ndarray, 'L N D']],
  prefix: int,
  grid: tuple[int, int],
) -> Figure:
  """Norms of the patch tokens by layer; in the last one, over the picture."""
  norms = np.stack([np.linalg.norm(t[:, prefix:], axis=-1) for t in tokens])
  layers = np.arange(1, norms.shape[1] + 1)
  shown = min(4, len(pictures))
  figure = Figure((5 + 2.2 * shown, 3.4), dpi=110, layout='constrained')
  axes = figure.subplots(1, 1 + shown, width_ratios=[2.4] + [1] * shown)
  axes = np.atleast_1d(axes)
  by_layer = norms.transpose(1, 0, 2).reshape(len(layers), -1)
  for level, label in ((50, 'median'), (99, '99 %'), (100, 'largest')):
    axes[0].plot(layers, np.percentile(by_layer, level, axis=1), label=label)
  over = sum(outliers(t, prefix)[-1].sum() for t in tokens)
  axes[0].set(
    xlabel='layer',
    ylabel='norm of patch tokens',
    ylim=0,
    title=f'{over} of {by_layer.shape[1]} above {_OUTLIER:.0f} x the median '
    'in the last layer',
  )
  axes[0].title.set_fontsize(9)
  axes[0].legend()
  axes[0].grid(alpha=0.3)
  for axis, picture, norm in zip(axes[1:], pictures, norms[:, -1]):  # noqa: B905
    axis.imshow(picture.mean(-1), cmap='gray', vmin=0, vmax=1)
    heat = enlarge(norm.reshape(grid), picture.shape[:2])
    shownmap = axis.imshow(heat, cmap='viridis', alpha=0.65)
    figure.colorbar(shownmap, ax=axis, shrink=0.6)
    axis.set_axis_off()
  return figure
