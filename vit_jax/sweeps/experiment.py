"""An experiment file: its question, its CONFIG, and the runs it asks for.

FIXED, where there is one, is of fields that all runs have otherwise than
CONFIG.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from vit_jax import config as config_lib
from vit_jax import finetune
from vit_jax.errors import UserError, check_choice
from vit_jax.setup import Setup
from vit_jax.sweeps.points import Point, Search, plain
from vit_jax.workdir import DataInfo

Overrides = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run that is to be.

  Attributes:
    name: of its folder; says what differs, and is another for another point.
    point: its fields.
    config: complete.
    total: its steps.
    metric: the objective's flat name.
    least: whether less of it is better.
  """

  name: str
  point: Point
  config: ml_collections.FrozenConfigDict
  total: int
  metric: str
  least: bool = False


def _text(value: Any) -> str:
  """A value as it is written on a command line."""
  return value if isinstance(value, str) else repr(value)


def run_name(point: Point) -> str:
  """'lr=0.001,seed=0': last words of the fields, if these tell them apart.

  Where that does not say all of the point, a digest of it follows.
  """
  leaves = [field.rpartition('.')[2] for field in point]
  names = leaves if len(set(leaves)) == len(leaves) else list(point)
  pairs = zip(names, point.values(), strict=True)
  whole = ','.join(f'{name}={_short(value)}' for name, value in pairs)
  name = re.sub(r'[^A-Za-z0-9=.,+_-]+', '-', whole.replace('/', '_'))[:100]
  if len(whole) <= 100 and all(_plain(value) for value in point.values()):
    return name
  exact = json.dumps(point, default=str)
  return f'{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}'


def _short(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _plain(value: Any) -> bool:
  """Whether the name of a run tells it from every other value."""
  if isinstance(value, str):  # of '/', ' ' and '-' each, or 'S/16' is not plain
    return bool(re.fullmatch(r'[A-Za-z0-9/]+( [a-z]+)?|', value))
  if isinstance(value, float):
    return float(f'{value:.4g}') == value
  return value is None or isinstance(value, bool | int)


def _is_point(value: Any) -> bool:
  return isinstance(value, dict) and all(isinstance(k, str) for k in value)


class Experiment:
  """A file of experiments/.

  Attributes:
    path: of the file.
    question: the first line of its docstring.
    search: what sweep() returned, if that is a Search; else None.
  """

  def __init__(self, path: Path, overrides: Overrides = ()):
    """Runs the file; `overrides` apply to CONFIG.

    Raises:
      UserError: no such file; no CONFIG or sweep(); sweep() raises; or a point
        that sets what `overrides` set.
    """
    path = config_lib.find_file('--experiment', str(path), 'experiments')
    self.path = path
    module = config_lib.run_file(path)
    self.question = (module.__doc__ or '').strip().partition('\n')[0]
    self._target = self._config_of(module)
    fixed = getattr(module, 'FIXED', {})
    if not _is_point(fixed):
      raise UserError(f'{path}: FIXED = {fixed!r:.80} is not {{field: value}}.')
    self._overrides = [(k, _text(v)) for k, v in fixed.items()]
    self._overrides += [*overrides]
    result = config_lib.call(path, self._function(module))
    self.search = result if isinstance(result, Search) else None
    self._points = [] if self.search else self._checked(result)
    self._infos: dict[str, DataInfo] = {}
    fields = {f for p in self._points for f in p}
    fields |= set(self.search.space if self.search else ())
    for field, text in overrides:
      if field in fields:
        raise UserError(
          f'--config.{field}={text}: {path} sweeps over it; change it there.'
        )

  def _function(self, module: ModuleType):
    if not hasattr(module, 'sweep'):
      raise UserError(f'{self.path} has no function sweep().')
    return module.sweep

  def _config_of(self, module: ModuleType) -> str:
    """CONFIG, from here or from the folder above the experiment's."""
    target = getattr(module, 'CONFIG', None)
    if not isinstance(target, str):
      raise UserError(f"{self.path} has no CONFIG = 'configs/NAME.py'.")
    name = target.partition(':')[0]
    beside = self.path.absolute().parent.parent / target
    if not Path(name).is_file() and (beside.parent / Path(name).name).is_file():
      return str(beside)
    return target

  def _checked(self, result: Any) -> list[Point]:
    points = list(result) if isinstance(result, list | tuple) else None
    if not points or not all(p and _is_point(p) for p in points):
      raise UserError(
        f'{self.path}: sweep() returned {result!r:.80}; it has to return '
        'points, as grid(...), zipped(...), product(...) and sample(...) do, '
        'or a Search.'
      )
    points = [{k: plain(v) for k, v in p.items()} for p in points]
    names = [run_name(point) for point in points]
    for name in names:
      if names.count(name) > 1:
        raise UserError(f'{self.path}: sweep() has the point {name} twice.')
    return points

  def plan(self, point: Point, number: int | None = None) -> Planned:
    """The run of a point; everything of it is checked.

    Args:
      point: of the experiment.
      number: of a trial, which heads the name.

    Raises:
      UserError: a field or a value that cannot be.
    """
    name = run_name(point)
    try:
      texts = [(field, _text(value)) for field, value in point.items()]
      overrides = [*self._overrides, *texts]
      loaded = config_lib.load(self._target, overrides)
      finetune.check_start(loaded)
      finetune.check_asked(loaded, Path(os.devnull), overrides)
      config = finetune.adopt(loaded, Path(os.devnull))
      # The same data for all: opened once.
      data = {k: config[k] for k in ('size', 'channels')}
      known = json.dumps([config.data.to_dict(), data], default=str)
      setup = Setup(config, self._infos.get(known))
      self._infos[known] = setup.info
    except UserError as error:
      raise UserError(f'{self.path}, {name}: {error}') from error
    return Planned(
      name if number is None else f'{number:04}-{name}',
      point,
      config,
      setup.total,
      self._metric(setup),
      bool(self.search and self.search.direction == 'minimize'),
    )

  def _metric(self, setup: Setup) -> str:
    splits = setup.evaluations
    if not splits:
      raise UserError(f'{self.path}: its CONFIG evaluates nothing.')
    wanted = self.search.objective if self.search else ''
    if wanted:
      known = [f'eval/{s}/{m}' for s in splits for m in setup.task.metrics]
      check_choice(f'{self.path}: objective', wanted, known)
    return wanted or f'eval/{splits[0]}/{setup.task.best}'

  def plans(self) -> Iterator[Planned]:
    """Every run; of a search, the ends of its space, which stand for all."""
    if self.search is None:
      yield from map(self.plan, self._points)
      return
    space = self.search.space
    middle = {name: where.ends[0] for name, where in space.items()}
    for name, where in space.items():
      for value in where.ends:
        yield self.plan(middle | {name: value})

  def differences(self, planned: Planned) -> dict[str, tuple[Any, Any]]:
    """{field: (CONFIG's, the run's)} where the resolved configs differ."""
    base = config_lib.flat(config_lib.load(self._target))
    own = config_lib.flat(planned.config)
    return {
      name: (base.get(name), own.get(name))
      for name in sorted(base.keys() | own.keys())
      if base.get(name) != own.get(name)
    }
