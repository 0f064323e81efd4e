"""Learning curves from metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure


def _series(lines: Sequence[dict[str, Any]], name: str):
  pairs = [
    (line['step'], line[name]) for line in lines if line.get(name) is not None
  ]
  return np.array(pairs, float).reshape(-1, 2).T


def _smooth(values: np.ndarray) -> np.ndarray:
  """A centred mean over 5 % of the curve: batches are noisy."""
  width = max(1, len(values) // 20) // 2 * 2 + 1
  padded = np.pad(values, width // 2, mode='edge')
  return np.convolve(padded, np.ones(width) / width, mode='valid')


def draw_curves(lines: Sequence[dict[str, Any]], path: Path):
  """Writes a PNG: loss, error of evaluations, learning rate over steps."""
  with matplotlib.rc_context(
    {'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.4}
  ):
    figure = Figure(figsize=(11, 3.4), dpi=120, layout='constrained')
    loss, score, rate = figure.subplots(1, 3)
    steps, values = _series(lines, 'train/loss')
    if steps.size:
      loss.plot(steps, values, color='C0', alpha=0.3, linewidth=0.8)
      loss.plot(steps, _smooth(values), color='C0', label='train')
    names = sorted({k for line in lines for k in line if k.startswith('eval/')})
    colors: dict[str, str] = {}
    for name in names:
      _, split, metric = name.split('/')
      color = colors.setdefault(split, f'C{len(colors) + 1}')
      style = {'color': color, 'marker': '.', 'label': split}
      if metric == 'loss':
        loss.plot(*_series(lines, name), **style)
      elif metric == 'accuracy':
        steps, values = _series(lines, name)
        score.plot(steps, 100 * values, **style)
        score.annotate(
          f'{100 * values[-1]:.2f} %',
          (steps[-1], 100 * values[-1]),
          xytext=(0, -16),
          textcoords='offset points',
          ha='right',
          color=color,
        )
    loss.set(title='loss', xlabel='step', yscale='log')
    score.set(title='accuracy, %', xlabel='step')
    rate.plot(*_series(lines, 'train/lr'), color='C0')
    rate.set(title='learning rate', xlabel='step')
    for axis, place in ((loss, 'upper right'), (score, 'lower right')):
      if axis.has_data():
        axis.legend(loc=place)
    figure.savefig(path)
