"""What an experiment's sweep() returns: points, or a space to search.

A point is {'optim.lr': 1e-3, 'seed': 0}: fields of the config, without
`config.`, and their values.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError, check_choice

Point = dict[str, Any]


def plain(value: Any) -> Any:
  """A number of NumPy's as Python's, which prints as itself."""
  return value.item() if isinstance(value, np.generic) else value


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from low to high, both included; ints if both are.

  Attributes:
    low, high: the ends.
    log: evenly by the logarithm.
  """

  low: int | float
  high: int | float
  log: bool = False

  def __post_init__(self):
    for name in ('low', 'high'):
      object.__setattr__(self, name, plain(getattr(self, name)))
    if not self.low <= self.high or (self.log and self.low <= 0):
      raise UserError(f'{self}: low <= high, and above 0 for log=True.')

  @property
  def whole(self) -> bool:
    """Whether its values are ints."""
    return isinstance(self.low, int) and isinstance(self.high, int)

  @property
  def ends(self) -> tuple[Any, ...]:
    """Values that stand for all when a config is checked."""
    return (self.low, self.high)

  def draw(self, rng: np.random.Generator) -> float | int:
    """A value."""
    low, high = self.low, self.high
    if self.whole and not self.log:
      return int(rng.integers(low, high, endpoint=True))
    if self.whole:  # each int has its share of the logarithm
      low, high = low - 0.5, high + 0.5
    if self.log:
      value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
      value = float(rng.uniform(low, high))
    value = min(max(value, self.low), self.high)
    return round(value) if self.whole else value


@dataclasses.dataclass(frozen=True, init=False)
class Choice:
  """One of some values."""

  values: tuple[Any, ...]

  def __init__(self, *values: Any):
    object.__setattr__(self, 'values', tuple(map(plain, values)))
    if not values:
      raise UserError('Choice(): of which values?')

  @property
  def ends(self) -> tuple[Any, ...]:
    """Values that stand for all when a config is checked."""
    return self.values

  def draw(self, rng: np.random.Generator) -> Any:
    """A value."""
    return self.values[rng.integers(len(self.values))]


Space = Mapping[str, Range | Choice]


@dataclasses.dataclass(frozen=True)
class Search:
  """Trials that Optuna chooses by what the ones before have reached.

  Attributes:
    space: where to look.
    trials: how many, pruned ones included.
    objective: a metric by its flat name; '': the task's, on the first split.
    direction: whether more or less of it is better.
    sampler: 'tpe' (tree-structured Parzen estimator, NeurIPS 2011) or 'random'.
    pruner: 'asha' ends a trial whose objective is not among the best
      1 / reduction at a rung, an evaluation (arXiv 1810.05934); 'none'.
    rung: the evaluation, from 1, after which the first are pruned; the next
      rungs are `reduction` times as late each.
    reduction: of ASHA, at least 2.
    seed: of the sampler, which gives each trial its own. With several jobs
      what TPE tries depends on which trial ends first.
  """

  space: Mapping[str, Any]  # a Space, checked in words below
  trials: int
  objective: str = ''
  direction: str = 'maximize'
  sampler: str = 'tpe'
  pruner: str = 'asha'
  rung: int = 1
  reduction: int = 3
  seed: int = 0

  def __post_init__(self):
    for name, choices in (
      ('direction', ('maximize', 'minimize')),
      ('sampler', ('tpe', 'random')),
      ('pruner', ('asha', 'none')),
    ):
      check_choice(f'Search: {name}', getattr(self, name), choices)
    for name, least in (('trials', 1), ('rung', 1), ('reduction', 2)):
      if getattr(self, name) < least:
        raise UserError(
          f'Search: {name} = {getattr(self, name)}: at least {least}.'
        )
    if not (isinstance(self.space, Mapping) and self.space):
      raise UserError(f'Search: space = {self.space!r:.80}: {{field: Range}}.')
    for name, where in self.space.items():
      if not isinstance(where, Range | Choice):
        raise UserError(
          f'Search: {name} = {where!r:.80}: a Range(...) or a Choice(...).'
        )


def grid(values: Mapping[str, Iterable[Any]]) -> list[Point]:
  """All combinations, the last field changing fastest."""
  lists = [list(_listed(name, v)) for name, v in values.items()]
  return [
    dict(zip(values, row, strict=True)) for row in itertools.product(*lists)
  ]


def zipped(values: Mapping[str, Iterable[Any]]) -> list[Point]:
  """The first of each, the second of each, and so on.

  Raises:
    UserError: the lists are not of one length.
  """
  lists = {name: list(_listed(name, v)) for name, v in values.items()}
  if len({len(v) for v in lists.values()}) > 1:
    raise UserError(
      'zipped: lists of one length, not '
      + ', '.join(f'{len(v)} of {name}' for name, v in lists.items())
    )
  return [
    dict(zip(lists, row, strict=True))
    for row in zip(*lists.values(), strict=True)
  ]


def product(*lists: Iterable[Point]) -> list[Point]:
  """Each point of the first with each of the second, and so on."""
  rows = itertools.product(*map(list, lists))
  return [{k: v for point in row for k, v in point.items()} for row in rows]


def sample(space: Space, count: int, seed: int = 0) -> list[Point]:
  """`count` points at random, no two alike; more of the same if count grows.

  Raises:
    UserError: there are not so many.
  """
  rng, points = np.random.default_rng(seed), []
  for _ in range(100 * count):
    point = {name: where.draw(rng) for name, where in space.items()}
    if point not in points:
      points.append(point)
    if len(points) == count:
      return points
  raise UserError(
    f'sample: {count} points of a space with about {len(points)}; grid() has '
    'them all.'
  )


def _listed(name: str, values: Any) -> Iterable[Any]:
  if isinstance(values, str) or not isinstance(values, Iterable):
    raise UserError(f'{name}: a list of values, not {values!r}.')
  return values
