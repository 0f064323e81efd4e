"""Whether a model is right as often as it says: a reliability diagram."""

import numpy as np
from matplotlib.figure import Figure


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
