"""What a classifier takes for what, and its worst mistakes as pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_jax.data import ops
from vit_jax.data.loader import Loader

_NAMED, _NUMBERED = 40, 15  # classes


def confusion(
  labels: np.ndarray, predictions: np.ndarray, classes: int
) -> np.ndarray:
  """Counts (Y, Y): a row a true class, a column a predicted one."""
  table = np.zeros((classes, classes), int)
  np.add.at(table, (labels, predictions), 1)
  return table


def worst(rows: Mapping[str, np.ndarray]) -> np.ndarray:
  """The rows (n,) of all wrong answers, that of largest loss first."""
  wrong = np.flatnonzero(rows['label'] != rows['prediction'])
  return wrong[np.argsort(-rows['nll'][wrong], kind='stable')]


def _short(name: str) -> str:
  return name if len(name) < 15 else name[:13] + '…'


def _draw_confusion(axis, table: np.ndarray, classes: Sequence[str]):
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  axis.imshow(share, cmap='Blues', vmin=0, vmax=1)
  count = len(classes)
  if count <= _NAMED:
    names = [_short(name) for name in classes]
    size = 9 if count <= _NUMBERED else 6
    axis.set_xticks(range(count), names, rotation=90, fontsize=size)
    axis.set_yticks(range(count), names, fontsize=size)
  if count <= _NUMBERED:
    for (i, j), value in np.ndenumerate(table):
      if value:
        color = 'white' if share[i, j] > 0.5 else 'black'
        axis.text(j, i, value, ha='center', va='center', color=color, size=8)
  right = np.trace(table)
  axis.set(
    xlabel='predicted',
    ylabel='true',
    title=f'{right:,} of {table.sum():,} right ({right / table.sum():.2%})',
  )


def draw_mistakes(
  loader: Loader,
  texts: Sequence[str],
  rows: Mapping[str, np.ndarray],
  classes: Sequence[str],
) -> Figure:
  """The confusion matrix, and the wrong answers of largest loss.

  Args:
    loader: of the split.
    texts: its ops, which are undone for the pictures.
    rows: label, prediction, confidence, nll, record of its examples.
    classes: names.
  """
  figure = Figure((12.5, 6), dpi=110, layout='constrained')
  left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
  table = confusion(rows['label'], rows['prediction'], len(classes))
  _draw_confusion(left.subplots(), table, classes)
  wrong = worst(rows)
  axes = right.subplots(3, 4)
  for axis in axes.flat:
    axis.set_axis_off()
  for axis, row in zip(axes.flat, wrong, strict=False):
    record = int(rows['record'][row])
    example = loader.source[record]
    context = loader.context(0, record, example['key'])
    picture = ops.undo(texts, loader.pipeline(example['image'], context))
    axis.imshow(picture.squeeze(), cmap='gray', vmin=0, vmax=255)
    true, said = (classes[rows[k][row]] for k in ('label', 'prediction'))
    axis.set_title(
      f'{_short(true)}, taken for\n{_short(said)} '
      f'({rows["confidence"][row]:.0%})',
      fontsize=8,
    )
  some = f'the worst {axes.size} of ' if len(wrong) > axes.size else ''
  right.suptitle(f'{some}{len(wrong):,} mistakes', fontsize=11)
  return figure
