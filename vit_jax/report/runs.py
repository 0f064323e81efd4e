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
    state: 'finished', 'failed', 'pruned', or where it is: 'step 40 of 100'.
    error: of a run of a sweep that failed.
    config: its fields, flat.
    lines: of metrics.jsonl.
    metric: what it is judged by, as in 'eval/test/accuracy'.
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
    return max((v for _, v in self.values(self.metric)), default=math.nan)

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


def _read(path: Path) -> Found:
  saved = workdir.read_json(path / 'config.json')
  config = config_lib.resolve(saved)
  lines = read_metrics(path / 'metrics.jsonl')
  result = workdir.read_json(path / 'result.json') or {}
  provenance = workdir.read_json(path / 'provenance.json') or {}
  sweep = workdir.read_json(path / 'sweep.json') or {}
  metric, cost, total = '', math.nan, 0
  if provenance:
    info = read_data_info(path)
    setup = Setup(config, info)
    total = setup.total
    metric = f'eval/{(setup.evaluations or ["test"])[0]}/{setup.task.best}'
    cost = sum(flops.forward(setup.model, info.size, info.channels).values())
  tries = sweep.get('tries', [])
  if result:
    state = 'finished'
  elif sweep.get('pruned'):
    state = 'pruned'
  elif lines:
    state = f'step {lines[-1]["step"]} of {total}'
  else:
    state = 'failed' if tries else 'not begun'
  error = tries[-1]['error'] if tries and state != 'finished' else ''
  flat = config_lib.flat(config)
  return Found(
    path, state, error, flat, lines, metric, cost, result, provenance
  )


def find(paths: Iterable[Path]) -> list[Found]:
  """The runs of workdirs, and of folders of workdirs.

  Raises:
    UserError: there is none in one of them.
  """
  found = []
  for path in paths:
    if (path / 'config.json').exists():
      runs = [path]
    else:
      runs = sorted(file.parent for file in path.glob('*/config.json'))
    if not runs:
      what = 'holds no run' if path.is_dir() else 'no such folder'
      raise UserError(f'{path}: {what} (a folder with config.json).')
    found += [_read(run) for run in runs]
  return found


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


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in their seed only."""

  values: dict[str, Any]  # of the fields that vary
  runs: list[Found]

  @property
  def name(self) -> str:
    """'lr 0.001, depth 4'."""
    return ', '.join(
      f'{k.rpartition(".")[2]} {show(v)}' for k, v in self.values.items()
    )

  @property
  def scores(self) -> list[float]:
    """Final values of finished runs."""
    return [r.last(r.metric) for r in self.runs if r.state == 'finished']

  @property
  def mean(self) -> float:
    """Of the scores; nan if there are none."""
    return statistics.fmean(self.scores) if self.scores else math.nan

  @property
  def spread(self) -> float:
    """Standard deviation over the seeds; nan for fewer than two."""
    return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


def grouped(runs: Sequence[Found]) -> list[Group]:
  """The best first; what has not finished last."""
  fields, groups = varying(runs), {}
  for run in runs:
    values = {name: run.config.get(name) for name in fields}
    groups.setdefault(repr(values), Group(values, [])).runs.append(run)
  return sorted(
    groups.values(), key=lambda g: -math.inf if math.isnan(g.mean) else g.mean
  )[::-1]


def show(value: Any) -> str:
  """A value of a config, short."""
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, tuple | list):
    return ' '.join(map(show, value))
  return str(value)
