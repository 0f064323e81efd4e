"""mIoU at the pictures' own sizes, by windows of the model's."""

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


def _exchanged(sums: np.ndarray, lowest: np.ndarray):
  """Sums of all processes, and the lowest (mIoU, record) of any."""
  # Words of 32 bits: JAX would round the 64 of a count.
  words = multihost_utils.process_allgather(sums.astype(np.int64).view('u4'))
  words = np.ascontiguousarray(words).reshape(
    -1, *sums.shape[:-1], 2 * sums.shape[-1]
  )
  found = np.asarray(multihost_utils.process_allgather(lowest))
  rows = found.reshape(-1, 2)
  rows = rows[np.isfinite(rows[:, 0])]
  order = np.argsort(rows[:, 0], kind='stable')[:_WORST]
  return words.view(np.int64).sum(0), rows[order, 1].astype(int)


def segmentation(
  view: View, stride: Area = 2 / 3, side: Count = 0, whole: bool = False
) -> dict[str, float]:
  """mIoU, pixel accuracy and each class's IoU, of masks as they are stored.

  Each process takes its share of the pictures. With a folder, a PNG of each of
  the pictures of the lowest mIoU, in `worst`.

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
  names, mine = setup.info.classes, jax.process_index()
  model = Segmenting(setup, view.params, stride=stride, side=side, whole=whole)
  numbers = range(mine, len(source), jax.process_count())
  skip = setup.config.data.on_error == 'skip'
  records = _Records(source, numbers, len(names), skip)
  sums, each = np.zeros((4, len(names)), np.int64), []
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
    found = count(prediction, label, len(names))
    sums[:3] += found
    each.append((_metrics(found)['miou'], number))
  sums[3, 0] = len(each)
  lowest = np.full((_WORST, 2), np.nan, np.float32)
  worst = sorted(each)[:_WORST]
  lowest[: len(worst)] = np.array(worst, np.float32).reshape(-1, 2)
  sums, order = _exchanged(sums, lowest)
  check_skipped(setup, int(sums[3, 0]), len(source))
  if view.folder and distributed.primary():
    _draw(view, model, order.tolist())
  prefix = 'whole' if whole else 'slide'
  metrics = _metrics(sums[:3], names)
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
