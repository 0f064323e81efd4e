"""What the pictures of an evaluation show, not only that they are there."""

from unittest import mock

import numpy as np
import pytest

from benchmarks import results_page
from vit_jax.data.loader import Loader
from vit_jax.evaluators import calibration
from vit_jax.viz import mistakes
from vit_jax.viz.reliability import draw_reliability
from vit_jax.workdir import write_json

CLASSES = ('ant', 'bee', 'cat')
ROWS = {
  'record': np.array([7, 3, 9, 1, 5]),
  'label': np.array([0, 0, 1, 2, 0]),
  'prediction': np.array([1, 0, 2, 0, 1]),
  'confidence': np.array([0.6, 0.9, 0.8, 0.7, 0.5]),
  'nll': np.array([1.0, 9.0, 3.0, 2.0, 0.5]),  # the largest is of a right one
}


def test_the_worst_mistakes_first():
  assert mistakes.worst(ROWS).tolist() == [2, 3, 0, 4]
  other = ROWS | {'nll': -ROWS['nll']}
  assert mistakes.worst(other).tolist() == [4, 0, 3, 2]  # the control


def drawn(rows):
  """(confusion, [(title, grey)] of the mistakes, title): grey is the record."""
  loader = mock.Mock(
    spec=Loader,
    source=[{'image': np.full((2, 2, 1), i), 'key': ''} for i in range(10)],
    context=lambda epoch, record, key: None,
    pipeline=lambda image, context: image.astype(np.float32) / 255,
  )
  figure = mistakes.draw_mistakes(loader, ('range(0, 1)',), rows, CLASSES)
  left, right = figure.subfigs
  (table,) = left.axes[0].images
  shown = [
    (axis.get_title(), int(axis.images[0].get_array()[0, 0]))
    for axis in right.axes
    if axis.images
  ]
  return np.asarray(table.get_array()), shown, right.get_suptitle()


def test_pictures_of_mistakes():
  table, shown, title = drawn(ROWS)
  # Rows are true, and each is shares of its own class: two of three ants.
  expected = [[1 / 3, 2 / 3, 0], [0, 0, 1], [1, 0, 0]]
  assert np.allclose(table, expected)
  assert shown == [
    ('bee, taken for\ncat (80%)', 9),
    ('cat, taken for\nant (70%)', 1),
    ('ant, taken for\nbee (60%)', 7),
    ('ant, taken for\nbee (50%)', 5),
  ]
  assert title == '4 mistakes'
  swapped = {'label': ROWS['prediction'], 'prediction': ROWS['label']}
  table, other, _ = drawn(ROWS | swapped)  # the control
  assert not np.allclose(table, expected) and other != shown
  many = {name: np.repeat(rows, 4) for name, rows in ROWS.items()}
  table, shown, title = drawn(many)
  assert np.allclose(table, expected) and len(shown) == 12
  assert title == 'the worst 12 of 16 mistakes'


def test_bars_of_a_reliability_diagram():
  """Bars are accuracies, points are at the mean confidence."""
  confidence = np.array([0.3, 0.4, 0.6, 0.7, 0.7, 0.95])
  hits = np.array([False, True, True, True, False, True])
  count, mean, accuracy = calibration.bins_of(confidence, hits, 4)

  def heights(*values):
    above, below = draw_reliability(count, *values, 0.1).axes
    for axis in (above, below):
      assert [bar.get_x() for bar in axis.patches] == [0, 0.25, 0.5, 0.75]
    _, points = above.lines
    bars = [[b.get_height() for b in axis.patches] for axis in (above, below)]
    return *bars, points.get_xydata()

  bars, shares, points = heights(mean, accuracy)
  assert np.allclose(bars, [0, 1 / 2, 2 / 3, 1])
  assert np.allclose(shares, [0, 2 / 6, 3 / 6, 1 / 6])
  assert np.allclose(points[1:], [(0.35, 1 / 2), (2 / 3, 2 / 3), (0.95, 1)])
  bars, _, points = heights(accuracy, mean)  # the control
  assert not np.allclose(bars, [0, 1 / 2, 2 / 3, 1])
  assert not np.allclose(points[1:, 0], [0.35, 2 / 3, 0.95])


@pytest.mark.parametrize('batch, epochs', [(32, [1.0, 2.0]), (16, [0.5, 1.0])])
def test_a_curve_of_the_page_of_results(tmp_path, batch, epochs):
  """Steps as epochs of its batch, accuracy in percent, evaluations alone."""
  write_json(tmp_path / 'config.json', {'batch_size': batch})
  data = {'classes': ['a', 'b'], 'size': [8, 8], 'channels': 1, 'examples': 320}
  data['fingerprint'] = ''
  write_json(tmp_path / 'provenance.json', {'data': data})
  lines = (
    '{"step": 5, "train/loss": 2.0}\n'
    '{"step": 10, "eval/test/accuracy": 0.5, "eval/test/loss": 1.0}\n'
    '{"step": 20, "eval/test/accuracy": 0.75}\n'
  )
  (tmp_path / 'metrics.jsonl').write_text(lines)
  assert results_page._curve(tmp_path) == (epochs, [50.0, 75.0])
