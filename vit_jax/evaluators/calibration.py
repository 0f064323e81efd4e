"""How often a model is right, and whether it knows how often."""

import numpy as np
from jaxtyping import Bool, Float

from vit_jax.data.context import Pixels
from vit_jax.errors import UserError
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

  With a folder, `reliability.png` too, and what each one has in `predictions`.

  Args:
    view: of the model.
    bins: of the calibration error, 1 to 1000.
  """
  if bins > 1000:
    raise UserError(f'classification(bins={bins}): 1 to 1000.')
  rows = view.outputs
  hits, confidence = rows['accuracy'] > 0, rows['confidence'].astype(float)
  metrics = {
    name: float(rows[name].astype(float).mean())
    for name in ('accuracy', 'top5', 'nll', 'brier')
  }
  error = calibration_error(confidence, hits, bins)
  view.keep('classification', **rows)
  if view.folder:
    # Only here: every Setup imports this module, and few draw.
    from vit_jax.viz.reliability import draw_reliability

    figure = draw_reliability(*bins_of(confidence, hits, bins), error)
    view.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(view.folder / 'reliability.png')
  return metrics | {'ece': error}
