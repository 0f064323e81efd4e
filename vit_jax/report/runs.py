"""Finished and unfinished runs, read from their workdirs."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vit_jax import config as config_lib
from vit_jax import workdir
from vit_jax.errors import UserError
from vit_jax.evaluate import predictions
from vit_jax.models import flops
from vit_jax.setup import Setup
from vit_jax.workdir import read_data_info
from vit_jax.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class Found:
  """A run.

  Attributes:
    path: its workdir.
    state: 'finished', 'pruned', 'failed', 'not begun', or where it is: 'step
      40 of 100', after 'failed' where it broke there.
    error: of a run of a sweep that failed.
    config: its fields, flat.
    lines: of metrics.jsonl.
    metric: what it is judged by, as in 'eval/test/accuracy': a search's
      objective, else the task's; '' of a run that has not begun.
    least: whether less of it is better.
    flops: of the forward pass, an image.
    result: result.json, or {}.
    provenance: provenance.json, or {}.
  """

  path: Path
  state: str
  error: str
  config: dict[str, Any]
  lines: list[dict[str, Any]]
  metric: str
  least: bool
  flops: int | float
  result: dict[str, Any]
  provenance: dict[str, Any]

  def values(self, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric."""
    return [
      (x['step'], x[metric]) for x in self.lines if x.get(metric) is not None
    ]

  def last(self, metric: str) -> float:
    """The last value of a metric; nan if there is none."""
    found = self.values(metric)
    return found[-1][1] if found else math.nan

  @property
  def best(self) -> float:
    """The best value of what it is judged by."""
    best = min if self.least else max
    return best((v for _, v in self.values(self.metric)), default=math.nan)

  @property
  def seconds(self) -> float:
    """Of all its starts."""
    return self.result.get('seconds', self.last('time/elapsed'))

  @property
  def images_per_second(self) -> float:
    """The median of what was logged."""
    rates = [v for _, v in self.values('time/images_per_second')]
    return statistics.median(rates) if rates else math.nan

  @property
  def predictions(self) -> Path:
    """What its examples have, on the split it is judged by."""
    return predictions(self.path, self.metric.split('/')[1])


def _state(path: Path, lines, total: int, starts) -> tuple[str, str]:
  """(where it is, what went wrong last)."""
  result = workdir.read_json(path / 'result.json') or {}
  sweep = workdir.read_json(path / 'sweep.json') or {}
  if total and result.get('steps', 0) >= total:  # else it goes on, to a new end
    return 'finished', ''
  if sweep.get('pruned'):
    return 'pruned', ''
  where = f'step {lines[-1]["step"]} of {total}' if lines else ''
  tries = sweep.get('tries')
  if tries and not (starts and starts[-1]['time'] > tries[-1]['time']):
    return ', '.join(filter(None, ('failed', where))), tries[-1]['error']
  return where or 'not begun', ''


def _read(path: Path) -> Found:
  saved = workdir.read_json(path / 'config.json')
  config = config_lib.resolve(saved)
  lines = read_metrics(path / 'metrics.jsonl')
  provenance = workdir.read_json(path / 'provenance.json') or {}
  sweep = workdir.read_json(path / 'sweep.json') or {}
  metric, cost, total = '', math.nan, 0
  if provenance:
    info = read_data_info(path)
    setup = Setup(config, info)
    total = setup.total
    metric = f'eval/{(setup.evaluations or ["test"])[0]}/{setup.task.best}'
    metric = sweep.get('metric', metric)
    cost = sum(flops.forward(setup.model, info.size, info.channels).values())
  state, error = _state(path, lines, total, provenance.get('starts'))
  return Found(
    path=path,
    state=state,
    error=error,
    config=config_lib.flat(config),
    lines=lines,
    metric=metric,
    least=sweep.get('least', False),
    flops=cost,
    result=workdir.read_json(path / 'result.json') or {},
    provenance=provenance,
  )


def find(paths: Iterable[Path]) -> list[Found]:
  """The runs of workdirs, and of folders of workdirs.

  Raises:
    UserError: there is none in one of them.
  """
  found: dict[Path, Found] = {}  # a run that is named twice is one
  for path in paths:
    if (path / 'config.json').exists():
      runs = [path]
    else:
      runs = sorted(file.parent for file in path.glob('*/config.json'))
    if not runs:
      what = 'holds no run' if path.is_dir() else 'no such folder'
      raise UserError(f'{path}: {what} (a folder with config.json).')
    for run in runs:
      found.setdefault(run.resolve(), _read(run))
  return list(found.values())


# How a run is computed and written says nothing of what it learns.
_ASIDE = ('seed', 'log_every', 'save_every', 'data.workers', 'data.cache_mb')


def varying(runs: Sequence[Found]) -> list[str]:
  """The fields of the config that are not the same in all, without the seed."""
  names = {name for run in runs for name in run.config}
  return sorted(
    name
    for name in names
    if name not in _ASIDE
    and len({repr(run.config.get(name)) for run in runs}) > 1
  )


def short(fields: Sequence[str]) -> list[str]:
  """Their last words, if these tell them apart."""
  leaves = [field.rpartition('.')[2] for field in fields]
  return leaves if len(set(leaves)) == len(leaves) else list(fields)


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in their seed only."""

  values: dict[str, Any]  # of the fields that vary
  runs: list[Found]

  @property
  def name(self) -> str:
    """'lr 0.001, depth 4'."""
    names = short(list(self.values))
    pairs = zip(names, self.values.values(), strict=True)
    return ', '.join(f'{name} {show(value)}' for name, value in pairs)

  @property
  def done(self) -> list[Found]:
    """Finished runs, one a seed: a second one of a seed is no other sample."""
    finished = [r for r in self.runs if r.state == 'finished']
    return list({r.config['seed']: r for r in reversed(finished)}.values())[
      ::-1
    ]

  @property
  def scores(self) -> list[float]:
    """Final values, one a seed."""
    return [r.last(r.metric) for r in self.done]

  @property
  def mean(self) -> float:
    """Of the scores; nan if there are none."""
    return statistics.fmean(self.scores) if self.scores else math.nan

  @property
  def spread(self) -> float:
    """Standard deviation over the seeds; nan for fewer than two."""
    return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

  @property
  def rank(self) -> float:
    """The higher the better; what has not finished is last."""
    mean = -self.mean if self.runs[0].least else self.mean
    return -math.inf if math.isnan(mean) else mean


def grouped(runs: Sequence[Found]) -> list[Group]:
  """The best first; what has not finished last."""
  fields, groups = varying(runs), {}
  for run in runs:
    values = {name: run.config.get(name) for name in fields}
    groups.setdefault(repr(values), Group(values, [])).runs.append(run)
  return sorted(groups.values(), key=lambda g: g.rank, reverse=True)


def show(value: Any) -> str:
  """A value of a config, short."""
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, tuple | list):
    return ' '.join(map(show, value))
  return str(value)
