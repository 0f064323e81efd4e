"""Batches on devices: the rows that this process needs, loaded ahead.

The batch of step t is a function of (seed, t): nothing is carried from one to
the next, so a resumed run asks for step t and has it, on any layout.
"""

import dataclasses
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging

from vit_jax.data import host, masks, ops
from vit_jax.data.order import hash64, mixture_at
from vit_jax.data.sources import IGNORE, Record, Source
from vit_jax.errors import BadRecord

# image (B, h, w, c); label (B,), of masks (B, h, w), IGNORE where not counted;
# mask (B,), 0 where there is no example; skipped (B,) where that may happen
Batch = dict[str, Any]
Fill = Callable[[Batch, int, int], None]
Run = Callable[..., Any]  # map, or that of a pool

_AUGMENT = 0x617567  # keeps its random numbers apart from the order's


# Examples that a thread loads at a time, and batches that are loaded ahead.
_CHUNK, _AHEAD = 16, 2


@functools.partial(jax.jit, static_argnames='sharding')
def _scaled(image: jax.Array, scale: Any, offset: Any, sharding: Any):
  """Pixels to float32, on the devices: a byte a value has to travel there."""
  image = image.astype(jax.numpy.float32) * scale + offset
  return jax.lax.with_sharding_constraint(image, sharding)


@dataclasses.dataclass(frozen=True)
class Loader:
  """A split with its ops: rows by number, batches by step."""

  source: Source
  pipeline: ops.Pipeline
  size: tuple[int, int]
  channels: int
  seed: int
  batch_size: int
  sharding: jax.sharding.Sharding  # of the batch axis
  field: str = 'config.data.train.ops'  # for messages
  workers: int = 2
  on_error: str = 'raise'
  repeats: int = 1  # of each example in training

  @property
  def masks(self) -> bool:
    """Whether labels are masks."""
    return getattr(self.source, 'masks', False)

  def context(
    self, epoch: int, record: int, key: str = '', repeat: int = 0
  ) -> ops.Context:
    """What the ops see for a record in an epoch."""
    keys = (epoch, repeat) if repeat else (epoch,)
    return ops.Context(
      self.size,
      self.channels,
      (hash64(self.seed, _AUGMENT, *keys), record),
      key,
    )

  def check(self):
    """Raises UserError unless the ops give what the model takes."""
    index = 0
    while True:
      try:
        record = self.source[index]
        context = self.context(0, 0, record['key'])
        self._masked(record, context)
        return ops.check(self.field, self.pipeline, record['image'], context)
      except BadRecord:
        index += 1
        if self.on_error == 'raise' or index == min(100, len(self.source)):
          raise

  def _masked(self, record: Record, context: ops.Context):
    """The ops are to move a mask along, if there is one."""
    if self.masks:
      context.mask = masks.read(record, len(self.source.classes))

  def _put(
    self, batch: Batch, row: int, epoch: int, record: int, repeat: int = 0
  ):
    """A record, after the ops, into a row of the batch."""
    example = self.source[record]
    context = self.context(epoch, record, example['key'], repeat)
    try:
      place = batch['image'][row]
      self._masked(example, context)
      image = self.pipeline.host(example['image'], context, place)
      ops.check_shape(self.field, image, context)
    except Exception as error:
      error.add_note(f'while loading {example["key"]}')
      raise
    label = example['label'] if context.mask is None else context.mask
    batch['label'][row], batch['mask'][row] = label, 1

  def _part(self, record: int) -> tuple[int, int]:
    """(first, length) of the source, of a mixture, that has a record."""
    first = 0
    for size, _ in getattr(self.source, 'parts', ()):
      if record < first + size:
        return first, size
      first += size
    return 0, len(self.source)

  def _fill(self, batch: Batch, row: int, epoch: int, record: int, repeat: int):
    """Trains on another record, drawn by the number of the one skipped.

    Of the same source, so that a mixture keeps its shares.
    """
    chosen = record
    for attempt in range(100):
      try:
        return self._put(batch, row, epoch, chosen, repeat)
      except BadRecord as error:
        if self.on_error == 'raise' or attempt == 99:
          raise
        logging.log_first_n(logging.WARNING, 'skipped: %s', 10, error)
        first, length = self._part(record)
        chosen = first + hash64(self.seed, epoch, record, attempt) % length
        batch['skipped'][row] = 1

  def _fill_eval(self, batch: Batch, row: int, record: int):
    """What cannot be read stays masked: no example stands for another."""
    try:
      self._put(batch, row, 0, record)
    except BadRecord as error:
      if self.on_error == 'raise':
        raise
      logging.log_first_n(logging.WARNING, 'skipped: %s', 10, error)

  def _rows(self) -> np.ndarray:
    """The rows of the batch that this process holds."""
    shape = (self.batch_size,)
    slices = self.sharding.addressable_devices_indices_map(shape).values()
    wanted = sorted({s[0].indices(self.batch_size)[:2] for s in slices})
    return np.unique(np.concatenate([np.arange(a, b) for a, b in wanted]))

  def _place(self, local: Batch, rows: np.ndarray) -> Batch:
    """Global arrays of the rows that this process has."""

    def assemble(array: np.ndarray) -> jax.Array:
      def part(index):
        start, stop, _ = index[0].indices(self.batch_size)
        first = int(np.searchsorted(rows, start))
        return array[first : first + stop - start]

      whole = (self.batch_size, *array.shape[1:])
      return jax.make_array_from_callback(whole, self.sharding, part)

    return {name: assemble(array) for name, array in local.items()}

  def _load(self, fill: Fill, run: Run) -> Batch:
    """The batch of which `fill(batch, i, row)` fills row i, here number row."""
    rows = self._rows()
    image = (*self.size, self.channels)
    label = np.zeros(len(rows), np.int32)
    if self.masks:
      label = host.empty((len(rows), *self.size), label.dtype)
    local = {
      'image': host.empty((len(rows), *image), self.pipeline.dtype),
      'label': label,
      'mask': np.zeros(len(rows), np.float32),
    }
    if self.on_error == 'skip':
      local['skipped'] = np.zeros(len(rows), np.float32)

    def chunk(start: int):
      for i in range(start, min(start + _CHUNK, len(rows))):
        fill(local, i, int(rows[i]))
        if not local['mask'][i]:
          local['image'][i] = 0
          local['label'][i] = IGNORE if self.masks else 0

    for _ in run(chunk, range(0, len(rows), _CHUNK)):
      pass  # raises what was raised there
    return self._place(local, rows)

  def _train(self, step: int, run: Run) -> Batch:
    first = step * self.batch_size
    positions, repeats = np.divmod(
      first + np.arange(self.batch_size), self.repeats
    )
    parts = getattr(self.source, 'parts', ((len(self.source), 1.0),))
    epochs, records = mixture_at(positions, parts, self.seed)

    def fill(batch, i, row):
      epoch, record, repeat = epochs[row], records[row], repeats[row]
      self._fill(batch, i, int(epoch), int(record), int(repeat))

    return self._load(fill, run)

  def _evaluate(self, number: int, run: Run) -> Batch:
    def fill(batch, i, row):
      record = number * self.batch_size + row
      if record < len(self.source):
        self._fill_eval(batch, i, record)

    return self._load(fill, run)

  def _finish(self, batch: Batch) -> Batch:
    """By the loop's thread: all processes dispatch programs in one order."""
    if self.pipeline.affine is None:
      return batch
    scale, offset = self.pipeline.affine
    return batch | {
      'image': _scaled(batch['image'], scale, offset, self.sharding)
    }

  def train_batch(self, step: int) -> Batch:
    """The batch that step number `step` (from 0) trains on."""
    return self._finish(self._train(step, map))

  def eval_batch(self, number: int) -> Batch:
    """Records in order; beyond the last one the mask is 0."""
    return self._finish(self._evaluate(number, map))

  def train(
    self, start: int, stop: int, number: Callable[[int], int] = int
  ) -> Iterator[Batch]:
    """Batches of steps start to stop - 1, loaded ahead by the workers.

    Args:
      start: from 0.
      stop: exclusive.
      number: of a step's batch, where it is not the step's own.
    """

    def load(step: int, run: Run) -> Batch:
      return self._train(number(step), run)

    return self._ahead(load, start, stop)

  def evaluate(self) -> Iterator[Batch]:
    """Every record exactly once, the tail padded and masked."""
    batches = -(-len(self.source) // self.batch_size)
    return self._ahead(self._evaluate, 0, batches)

  def _ahead(self, load: Callable[[int, Run], Batch], start: int, stop: int):
    host.keep_pages()
    if not self.workers:
      for t in range(start, stop):
        yield self._finish(load(t, map))
      return
    cpu = next(iter(self.sharding.device_set)).platform == 'cpu'
    pool = functools.partial(
      ThreadPoolExecutor, initializer=host.yield_cores if cpu else None
    )
    workers = pool(self.workers, 'loader')
    batches = pool(min(_AHEAD, self.workers), 'loader-batch')
    over = threading.Event()

    def alone(chunk, starts):
      while_wanted = itertools.takewhile(lambda _: not over.is_set(), starts)
      return map(chunk, while_wanted)

    # One worker needs nobody to hand it the parts of a batch.
    run = workers.map if self.workers > 1 else alone
    try:
      queue = deque(
        batches.submit(load, t, run)
        for t in range(start, min(start + _AHEAD, stop))
      )
      for t in range(start, stop):
        batch = queue.popleft().result()
        if t + _AHEAD < stop:
          queue.append(batches.submit(load, t + _AHEAD, run))
        yield self._finish(batch)
    finally:  # also when the loop stops early: no thread outlives it
      over.set()  # what is half loaded then is never seen
      batches.shutdown(wait=False, cancel_futures=True)
      workers.shutdown(wait=True, cancel_futures=True)
      batches.shutdown(wait=True)
