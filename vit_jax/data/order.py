"""The order of the data: which record is where in which epoch, in O(1).

A permutation of n records that needs no table: a Feistel network (Luby and
Rackoff, 1988) on the indices, walked until it falls below n (Black and
Rogaway, 2002). So batch `t` is a function of (seed, t), whatever the number of
hosts, workers or restarts, for 100 M records as for 100.
"""

import numpy as np

_ROUNDS = 12


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64 that scatters its bits (splitmix64)."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def hash64(*numbers: int) -> int:
  """One 64-bit hash of some integers, in order: (seed, epoch) -> key."""
  state = np.zeros(1, np.uint64)
  for number in numbers:
    state = mix(state ^ np.array([number % 2**64], np.uint64))
  return int(state[0])


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
    records[here] = shuffle(places[here], n, hash64(seed, int(epoch)))
  return epochs, records
