"""What the loop of `train` costs beside its bare step.

A run of `train` and the jitted step on one batch that is on the device, in one
process: they take turns about every second, since a machine that others use as
well may be slower by a half for seconds at a time. Of digits the step is short
and the batches are small; of JPEGs it is long, and they are cut, resized and
flipped. `idle` is a run, too, whose loader gives one batch again and again: on
a CPU loading has the cores of the step, and what the loop itself costs is seen
without it.
"""

import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.progress import Progress

from benchmarks import input as inputs
from benchmarks import measure, peers
from vit_jax import config as config_lib

LEAST = 0.97
# Steps of a turn, and turns of a round. The loader is at most two batches
# ahead, and may still load these when the bare step's turn begins.
_STEPS = {'digits': 50, 'JPEGs': 6}
_TURNS = {'digits': 8, 'JPEGs': 4}
_PICTURES = 64
_KINDS = ('loop', 'idle')


def bare(config: Any, steps: int) -> Callable[[], float]:
  """Seconds of the jitted step, `steps` times, to the last one's end."""
  import jax

  from vit_jax.setup import Setup

  setup = Setup(config)
  batch, state = next(peers.stream(setup)), setup.init()

  def turn() -> float:
    nonlocal state
    begun = time.perf_counter()
    with jax.set_mesh(setup.mesh):
      for _ in range(steps):
        state, _ = setup.train_step(state, batch)
      jax.block_until_ready(state)
    return time.perf_counter() - begun

  return turn


def in_turn(
  config: Any, steps: int, turns: int, idle: bool = False
) -> list[tuple[float, float]]:
  """Seconds that `steps` take (the loop, the bare step), turn by turn.

  The run logs as its config says, to no terminal; it saves and evaluates at its
  end only. It waits in its loader while the bare step has its turn. The first
  turn of each warms up.
  """
  import jax

  from vit_jax import train
  from vit_jax.data.loader import Loader

  total = {'total': f'{(turns + 1) * steps + 1} steps'}
  never = dict.fromkeys(('eval_every', 'save_every'), '0 steps')
  config = config_lib.resolve(config.to_dict() | total | never)
  other, load, last = bare(config, steps), Loader.train, None
  found: list[tuple[float, float]] = []

  class Log(train.Log):
    """Knows the newest metrics: when they are there, all steps are done."""

    def step(self, step: int, metrics: Any, waited: float):
      nonlocal last
      last = metrics
      super().step(step, metrics, waited)

  def stream(*args: Any) -> Iterator[Any]:
    with contextlib.closing(load(*args)) as batches:
      source = itertools.repeat(next(batches)) if idle else batches
      begun = time.perf_counter()
      for step, batch in enumerate(source):
        if step and step % steps == 0:
          jax.block_until_ready(last)
          found.append((time.perf_counter() - begun, other()))
          begun = time.perf_counter()
        yield batch

  with (
    tempfile.TemporaryDirectory() as name,
    mock.patch.object(Loader, 'train', stream),
    mock.patch.object(train, 'Log', Log),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    train.run(config, Path(name) / 'run')
  return found[1:]


def _config(data: str, folder: Path) -> Any:
  if data == 'digits':
    root = Path(__file__).parent.parent
    return config_lib.load(str(root / 'configs' / 'digits.py'))
  fields = {'batch_size': 8, 'model__unroll': 0}
  return peers.config_of(folder / 'jpeg', peers.OURS, **fields)


def run(rounds: int) -> dict[str, Any]:
  """Makes the pictures and measures; the record."""
  load = os.getloadavg()[0]
  rows, goals, rates, found = [], {}, {}, {}
  sides = list(itertools.product(_STEPS, _KINDS))
  with tempfile.TemporaryDirectory() as name, Progress() as progress:
    inputs.make_pictures(Path(name), _PICTURES)
    for data, kind in progress.track(sides):
      config, steps = _config(data, Path(name)), _STEPS[data]
      pairs = in_turn(config, steps, _TURNS[data] * rounds, kind == 'idle')
      ours, step = (
        steps * config.batch_size / measure.median(seconds)
        for seconds in zip(*pairs, strict=True)
      )
      ratios = [b / a for a, b in pairs]
      low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
      rows.append((data, kind, step, ours, middle, low, high))
      found[f'{kind} on {data}'] = pairs
      rates[f'{kind} on {data}'] = ours
      goals[f'{kind} / step on {data}'] = measure.goal(middle, least=LEAST)
  columns = ('', '', 'step, images/s', 'it', 'it / step', 'from', 'to')
  return measure.record(
    'loop',
    load=load,
    about='Medians, and quartiles of the ratio, of '
    + ' and '.join(
      f'{_TURNS[name] * rounds} turns of {_STEPS[name]} steps on {name}'
      for name in _STEPS
    )
    + ' (Ti/16 at 224, batch 8); unroll=0',
    rates=rates,
    tables={'The loop and its bare step': measure.table(columns, rows)},
    goals=goals,
    turns=found,
  )
