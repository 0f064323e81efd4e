"""mIoU at the pictures' own sizes, by windows of the model's."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Int, UInt8
from rich.progress import track

from vit_jax import distributed
from vit_jax.data import images, masks
from vit_jax.data.context import Area, Count
from vit_jax.data.sources import IGNORE, Source
from vit_jax.errors import BadRecord
from vit_jax.evaluators.view import View, check_skipped
from vit_jax.tasks.segmentation import scores
from vit_jax.windows import Segmenting

_WORST = 12  # pictures that are drawn


def count(
  prediction: UInt8[np.ndarray, 'h w'],
  label: UInt8[np.ndarray, 'h w'],
  classes: int,
) -> Int[np.ndarray, '3 Y']:
  """Counted pixels of each class: in the label, the prediction, and both."""
  counted = label != IGNORE
  true, said = label[counted], prediction[counted]
  parts = (true, said, true[true == said])
  return np.stack([np.bincount(x, minlength=classes) for x in parts])


def _metrics(sums: np.ndarray, names: tuple[str, ...] = ()) -> dict[str, float]:
  kinds = ('true', 'predicted', 'both')
  return scores(dict(zip(kinds, sums, strict=True)), names)


class _Records:
  """Records of a source that can be read, one after another."""

  def __init__(self, source: Source, numbers: Any, classes: int, skip: bool):
    self._source, self._numbers = source, numbers
    self._classes, self._skip = classes, skip
    self.read: list[tuple[int, np.ndarray]] = []  # number and label

  def __iter__(self) -> Iterator[tuple[Any, str]]:
    for number in self._numbers:
      try:
        record = self._source[int(number)]
        label = masks.read(record, self._classes)
        image, key = record['image'], record['key']
        if isinstance(image, bytes):  # here, where what is damaged may be left
          images.decode(image, self._source.channels, key)
      except BadRecord as error:
        if not self._skip:
          raise
        logging.log_first_n(logging.WARNING, 'skipped: %s', 10, error)
        continue
      self.read.append((int(number), label))
      yield image, key


def _exchanged(numbers: np.ndarray, found: np.ndarray, most: int):
  """Records and their counts (n, 3, Y) of all processes, by record.

  Args:
    numbers: of the records of this process.
    found: their counts, below 2^31 each, as a picture's pixels are.
    most: records that a process may have.
  """
  rows = np.full((most, 1 + math.prod(found.shape[1:])), -1, np.int32)
  rows[: len(numbers), 0] = numbers
  rows[: len(numbers), 1:] = found.reshape(len(numbers), -1)
  every = np.asarray(multihost_utils.process_allgather(rows))
  every = every.reshape(-1, rows.shape[1])
  every = every[every[:, 0] >= 0]
  every = every[np.argsort(every[:, 0])]
  return every[:, 0], every[:, 1:].reshape(-1, *found.shape[1:])


def segmentation(
  view: View, stride: Area = 2 / 3, side: Count = 0, whole: bool = False
) -> dict[str, float]:
  """mIoU, pixel accuracy and each class's IoU, of masks as they are stored.

  Each process takes its share of the pictures. With a folder, what each one has
  in `predictions`, and a PNG of each of those of the lowest mIoU in `worst`.

  Args:
    view: of the model.
    stride: from one window to the next, of the window.
    side: shorter side that pictures are resized to before; 0: by the ops of the
      evaluation (see windows.scaled).
    whole: the picture at once instead of windows: a program for each size.

  Returns:
    `slide_miou`, `slide_pixel_accuracy`, `slide_iou_NAME`; or `whole_...`.
  """
  setup, source = view.setup, view.loader.source
  names = setup.info.classes
  model = Segmenting(setup, view.params, stride=stride, side=side, whole=whole)
  numbers = range(jax.process_index(), len(source), jax.process_count())
  skip = setup.config.data.on_error == 'skip'
  records = _Records(source, numbers, len(names), skip)
  found = np.zeros((len(numbers), 3, len(names)), np.int64)
  shown = track(
    model.classes(records),
    'segmentation',
    total=len(numbers),
    transient=True,
    disable=not distributed.primary(),
  )
  for i, prediction in enumerate(shown):
    number, label = records.read[i]
    records.read[i] = (number, label[:0])  # no longer needed
    found[i] = count(prediction, label, len(names))
  mine = np.array([number for number, _ in records.read], np.int32)
  most = -(-len(source) // jax.process_count())
  with jax.set_mesh(setup.mesh):
    record, found = _exchanged(mine, found[: len(mine)], most)
  check_skipped(setup, len(record), len(source))
  each = [_metrics(counts) for counts in found]
  rows = {
    name: np.array([metrics[name] for metrics in each])
    for name in ('miou', 'pixel_accuracy')
  }
  true, predicted, both = found.swapaxes(0, 1)
  rows |= {'true': true, 'predicted': predicted, 'both': both}
  prefix = 'whole' if whole else 'slide'
  view.keep(f'{prefix}_segmentation', record=record, **rows)
  if view.folder and distributed.primary():
    worst = record[np.argsort(rows['miou'], kind='stable')[:_WORST]]
    _draw(view, model, worst.tolist())
  metrics = _metrics(found.sum(0, dtype=np.int64), names)
  return {f'{prefix}_{name}': value for name, value in metrics.items()}


def _draw(view: View, model: Segmenting, order: list[int]):
  # Only here: every Setup imports this module, and few draw.
  from vit_jax.viz.overlay import draw_masks

  source, names = view.loader.source, view.setup.info.classes
  records = _Records(source, order, len(names), False)
  context = view.loader.context(0, 0)
  for i, prediction in enumerate(model.classes(records)):
    number, label = records.read[i]
    record = source[number]
    picture = record['image']
    if isinstance(picture, bytes):
      picture = images.decode(picture, context.channels, record['key'])
    iou = _metrics(count(prediction, label, len(names)))['miou']
    draw_masks(
      picture,
      {'label': label, 'prediction': prediction},
      names,
      f'{i + 1}. {record["key"]}: mIoU {iou:.3f}',
      view.folder / 'worst' / f'{i + 1:02d}.png',
    )
