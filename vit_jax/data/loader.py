"""Batches on devices: the rows that this process needs, loaded ahead.

The batch of step t is a function of (seed, t): nothing is carried from one to
the next, so a resumed run asks for step t and has it, on any layout.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from vit_jax.data import ops
from vit_jax.data.order import hash64, records_at
from vit_jax.data.sources import Source

Batch = dict[str, Any]  # image (B, h, w, c), label (B,), mask (B,)

_AUGMENT = 0x617567  # keeps its random numbers apart from the order's


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
  workers: int = 2

  def context(self, epoch: int, record: int, key: str = '') -> ops.Context:
    """What the ops see for a record in an epoch."""
    bits = [hash64(self.seed, _AUGMENT, epoch), record]
    rng = np.random.Generator(np.random.Philox(key=np.array(bits, np.uint64)))
    return ops.Context(self.size, self.channels, rng, key)

  def check(self, field: str):
    """Raises UserError unless the ops give what the model takes."""
    record = self.source[0]
    context = self.context(0, 0, record['key'])
    ops.check(field, self.pipeline, record['image'], context)

  def _fill(self, batch: Batch, row: int, epoch: int, record: int):
    example = self.source[record]
    context = self.context(epoch, record, example['key'])
    batch['image'][row] = self.pipeline(example['image'], context)
    batch['label'][row] = example['label']
    batch['mask'][row] = 1

  def _place(self, fill_rows: Callable[[Batch, np.ndarray], None]) -> Batch:
    """Global arrays of which this process fills the rows that it holds."""
    shape = (self.batch_size,)
    slices = self.sharding.addressable_devices_indices_map(shape).values()
    wanted = sorted({s[0].indices(self.batch_size)[:2] for s in slices})
    rows = np.unique(np.concatenate([np.arange(a, b) for a, b in wanted]))
    image = (*self.size, self.channels)
    local = {
      'image': np.zeros((len(rows), *image), np.float32),
      'label': np.zeros(len(rows), np.int32),
      'mask': np.zeros(len(rows), np.float32),
    }
    fill_rows(local, rows)

    def assemble(array: np.ndarray) -> jax.Array:
      def part(index):
        start, stop, _ = index[0].indices(self.batch_size)
        first = int(np.searchsorted(rows, start))
        return array[first : first + stop - start]

      whole = (self.batch_size, *array.shape[1:])
      return jax.make_array_from_callback(whole, self.sharding, part)

    return {name: assemble(array) for name, array in local.items()}

  def train_batch(self, step: int) -> Batch:
    """The batch that step number `step` (from 0) trains on."""

    def fill_rows(local, rows):
      n = len(self.source)
      where = records_at(step * self.batch_size + rows, n, self.seed)
      for i, (epoch, record) in enumerate(zip(*where, strict=True)):
        self._fill(local, i, int(epoch), int(record))

    return self._place(fill_rows)

  def eval_batch(self, number: int) -> Batch:
    """Records in order; beyond the last one the mask is 0."""

    def fill_rows(local, rows):
      for i, record in enumerate(number * self.batch_size + rows):
        if record < len(self.source):
          self._fill(local, i, 0, int(record))

    return self._place(fill_rows)

  def train(self, start: int, stop: int) -> Iterator[Batch]:
    """Batches of steps start to stop - 1, loaded ahead by the workers."""
    return self._ahead(self.train_batch, start, stop)

  def evaluate(self) -> Iterator[Batch]:
    """Every record exactly once, the tail padded and masked."""
    batches = -(-len(self.source) // self.batch_size)
    return self._ahead(self.eval_batch, 0, batches)

  def _ahead(self, load: Callable[[int], Batch], start: int, stop: int):
    if not self.workers:
      yield from map(load, range(start, stop))
      return
    pool = ThreadPoolExecutor(self.workers, thread_name_prefix='loader')
    try:
      ahead = start + self.workers + 1
      queue = deque(
        pool.submit(load, t) for t in range(start, min(ahead, stop))
      )
      for t in range(start, stop):
        batch = queue.popleft().result()
        if t + self.workers + 1 < stop:
          queue.append(pool.submit(load, t + self.workers + 1))
        yield batch
    finally:  # also when the loop stops early: no thread outlives it
      pool.shutdown(wait=True, cancel_futures=True)
