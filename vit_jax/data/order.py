"""The order of the data: which record is where in which epoch, in O(1).

A permutation of n records that needs no table: a Feistel network (Luby and
Rackoff, 1988) on the indices, walked until it falls below n (Black and
Rogaway, 2002). So batch `t` is a function of (seed, t), whatever the number of
hosts, workers or restarts, for 100 M records as for 100.
"""

import functools

import numpy as np

_ROUNDS = 12
_SMALL = 2**16  # records of which the order of an epoch is kept at hand
_BLOCK = 2**16  # examples in which a mixture keeps its shares exactly


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64 that scatters its bits (splitmix64)."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=2**16)
def hash64(*numbers: int) -> int:
  """One 64-bit hash of some integers, in order: (seed, epoch) -> key.

  `mix` in Python's integers, which are faster one by one.
  """
  state, mask = 0, 2**64 - 1
  for number in numbers:
    x = (state ^ (number & mask)) + 0x9E3779B97F4A7C15 & mask
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    state = x ^ (x >> 31)
  return state


def shuffle(index: np.ndarray, n: int, key: int) -> np.ndarray:
  """Where a permutation of range(n), chosen by `key`, sends the indices.

  Args:
    index: integers in [0, n), any shape.
    n: number of records.
    key: a 64-bit key; each gives another permutation.
  """
  half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
  mask = (np.uint64(1) << half) - np.uint64(1)
  keys = [np.uint64(hash64(key, r)) for r in range(_ROUNDS)]

  def network(x):
    left, right = x >> half, x & mask
    for k in keys:
      left, right = right, left ^ (mix(right ^ k) & mask)
    return (left << half) | right

  result = network(np.asarray(index).astype(np.uint64))
  while (outside := result >= n).any():
    result[outside] = network(result[outside])
  return result.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _table(n: int, key: int) -> np.ndarray:
  """All of a small permutation, kept for the batches of its epoch."""
  return shuffle(np.arange(n), n, key)


def records_at(
  positions: np.ndarray, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """(epoch, record) of positions in the endless stream of shuffled epochs.

  Args:
    positions: (R,) integers from 0; batch t holds [t * B, (t + 1) * B).
    n: number of records.
    seed: the run's seed.
  """
  epochs, places = np.divmod(np.asarray(positions, np.int64), n)
  records = np.empty_like(places)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    key = hash64(seed, int(epoch))
    records[here] = (
      _table(n, key)[places[here]]
      if n <= _SMALL
      else shuffle(places[here], n, key)
    )
  return epochs, records


def shares(weights: tuple[float, ...]) -> np.ndarray:
  """How many of a block's examples each source gives: largest remainders."""
  exact = np.array(weights) / sum(weights) * _BLOCK
  counts = np.floor(exact).astype(np.int64)
  short = _BLOCK - counts.sum()
  counts[np.argsort(counts - exact, kind='stable')[:short]] += 1
  return counts


@functools.lru_cache(maxsize=4)
def _schedule(
  weights: tuple[float, ...], key: int
) -> tuple[np.ndarray, np.ndarray]:
  """(source, its examples before) of each place in a block."""
  ends = np.cumsum(shares(weights))
  places = shuffle(np.arange(_BLOCK), _BLOCK, key)
  source = np.searchsorted(ends, places, side='right')
  before = np.empty(_BLOCK, np.int64)
  for number in range(len(weights)):
    here = source == number
    before[here] = np.arange(here.sum())
  return source, before


def mixture_at(
  positions: np.ndarray,
  parts: tuple[tuple[int, float], ...],
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """(epoch, record) of positions in the endless stream of several sources.

  Each source is shuffled by epochs of its own; of every 65,536 examples in a
  row each gives its share, to the example. Found in O(1) from the position.

  Args:
    positions: (R,) integers from 0.
    parts: (records, weight) of each source; records are counted through, those
      of the second source after those of the first.
    seed: the run's seed.
  """
  if len(parts) == 1:
    return records_at(positions, parts[0][0], seed)
  positions = np.asarray(positions, np.int64)
  lengths, weights = zip(*parts, strict=True)
  counts, starts = shares(weights), np.cumsum((0, *lengths))
  blocks, places = np.divmod(positions, _BLOCK)
  epochs, records = np.empty_like(positions), np.empty_like(positions)
  for block in np.unique(blocks):
    source, before = _schedule(weights, hash64(seed, len(parts), int(block)))
    for number, length in enumerate(lengths):
      here = (blocks == block) & (source[places] == number)
      at = block * counts[number] + before[places[here]]
      found = records_at(at, length, hash64(seed, number, length))
      epochs[here], records[here] = found[0], found[1] + starts[number]
  return epochs, records
