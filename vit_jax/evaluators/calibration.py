"""How often a model is right, and whether it knows how often."""

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from vit_jax.data.context import Pixels
from vit_jax.evaluators.view import View


def bins_of(
  confidence: Float[np.ndarray, 'n'], hits: Bool[np.ndarray, 'n'], bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(examples, mean confidence, accuracy) of bins of equal width, each (bins,).

  Both means are nan of an empty bin. The last bin holds 1.
  """
  which = np.minimum((confidence * bins).astype(int), bins - 1)
  count = np.bincount(which, minlength=bins)
  with np.errstate(invalid='ignore'):
    mean = np.bincount(which, confidence, bins) / count
    accuracy = np.bincount(which, hits, bins) / count
  return count, mean, accuracy


def calibration_error(
  confidence: Float[np.ndarray, 'n'], hits: Bool[np.ndarray, 'n'], bins: int
) -> float:
  """Expected calibration error, 0 to 1 (arXiv 1706.04599, eq. 3)."""
  count, mean, accuracy = bins_of(confidence, hits, bins)
  apart = np.abs(np.nan_to_num(mean - accuracy))
  return float((count * apart).sum() / count.sum())


def classification(view: View, bins: Pixels = 15) -> dict[str, float]:
  """Top-1, top-5, negative log-likelihood in nats, Brier score, and ECE.

  With a folder, `reliability.png` too.

  Args:
    view: of the model.
    bins: of the calibration error.
  """
  rows = view.outputs
  hits, confidence = rows['accuracy'] > 0, rows['confidence'].astype(float)
  metrics = {
    name: float(rows[name].astype(float).mean())
    for name in ('accuracy', 'top5', 'nll', 'brier')
  }
  error = calibration_error(confidence, hits, bins)
  if view.folder:
    figure = draw_reliability(*bins_of(confidence, hits, bins), error)
    view.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(view.folder / 'reliability.png')
  return metrics | {'ece': error}


def draw_reliability(
  count: np.ndarray, mean: np.ndarray, accuracy: np.ndarray, error: float
) -> Figure:
  """Accuracy over confidence, and how many examples have which."""
  bins = len(count)
  left = np.arange(bins) / bins
  figure = Figure((4.6, 5.2), dpi=110, layout='constrained')
  above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  above.plot([0, 1], [0, 1], color='grey', linestyle=':', label='calibrated')
  above.bar(
    left,
    np.nan_to_num(accuracy),
    1 / bins,
    align='edge',
    edgecolor='white',
    color='C0',
    label='accuracy',
  )
  above.plot(mean, accuracy, 'o', color='C1', label='mean confidence')
  above.set(
    ylabel='accuracy',
    ylim=(0, 1),
    xlim=(0, 1),
    title=f'expected calibration error {error:.4f}, {bins} bins',
  )
  above.legend(loc='upper left')
  share = count / count.sum()
  below.bar(left, share, 1 / bins, align='edge', edgecolor='white', color='C7')
  below.set(xlabel='confidence', ylabel='share of examples', ylim=(0, 1))
  for axis in (above, below):
    axis.grid(alpha=0.3)
  return figure
