"""What the loop of `train` costs beside its bare step.

A whole run's images a second of all steps but the first, as its result.json
says, beside the jitted step on one batch that is on the device. Of digits the
step is short and the batches are small; of JPEGs it is long, and they are cut,
resized and flipped. `idle` is a run, too, whose loader gives one batch again
and again: on a CPU loading has the cores of the step, and what the loop itself
costs is seen without it.
"""

import contextlib
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import input as inputs
from benchmarks import measure, peers
from vit_jax import config as config_lib
from vit_jax.workdir import read_json

LEAST = 0.97
_STEPS = {'digits': 300, 'JPEGs': 12}  # of a round
_PICTURES = 64
_SIDES = ('step', 'loop', 'idle')


def bare(config: Any, steps: int) -> Callable[[], float]:
  """Images/s of the jitted step, from its first to the last one's end."""
  import jax

  from vit_jax.setup import Setup

  setup = Setup(config)
  batch, state = next(peers.stream(setup)), setup.init()

  def once() -> float:
    nonlocal state
    begun = time.perf_counter()
    with jax.set_mesh(setup.mesh):
      for _ in range(steps):
        state, _ = setup.train_step(state, batch)
      jax.block_until_ready(state)
    return steps * config.batch_size / (time.perf_counter() - begun)

  return once


def _again(self: Any, start: int, stop: int, _: Any) -> Iterator[Any]:
  """In place of Loader.train."""
  batch = self.train_batch(start)
  for _ in range(start, stop):
    yield batch


def whole(config: Any, steps: int, idle: bool = False) -> Callable[[], float]:
  """Images/s of a run of `train` that saves and evaluates at its end only."""
  from vit_jax import train
  from vit_jax.data.loader import Loader

  if idle:  # in the process of this side
    Loader.train = _again

  values = config.to_dict() | {'total': f'{steps + 1} steps'}
  never = ('eval_every', 'save_every', 'log_every')
  config = config_lib.resolve(values | dict.fromkeys(never, '0 steps'))

  def once() -> float:
    with tempfile.TemporaryDirectory() as name:
      path = Path(name) / 'run'
      with contextlib.redirect_stdout(io.StringIO()):
        train.run(config, path)
      return read_json(path / 'result.json')['time']['images_per_second']

  return once


def _side(folder: Path, name: str):
  """'loop on digits', as measure.in_turn has it."""
  what, data = name.split(' on ')
  if data == 'digits':
    root = Path(__file__).parent.parent
    config = config_lib.load(str(root / 'configs' / 'digits.py'))
  else:
    fields = {'batch_size': 8, 'model__unroll': 0}
    config = peers.config_of(folder / 'jpeg', peers.OURS, **fields)
  make = {'step': bare, 'loop': whole}.get(
    what, functools.partial(whole, idle=True)
  )
  return make(config, _STEPS[data]), None


def run(rounds: int) -> dict[str, Any]:
  """Makes the pictures and measures; the record."""
  load = os.getloadavg()[0]
  names = [f'{what} on {data}' for data in _STEPS for what in _SIDES]
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    inputs.make_pictures(folder, _PICTURES)
    side = functools.partial(_side, folder)
    found, _ = measure.in_turn(side, names, rounds)
  rows, goals = [], {}
  for data in _STEPS:
    step = found[f'step on {data}']
    rows.append((data, 'step', measure.median(step), '', '', ''))
    for side in _SIDES[1:]:
      rates = found[f'{side} on {data}']
      ratios = [a / b for a, b in zip(rates, step, strict=True)]
      low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
      rows.append((data, side, measure.median(rates), middle, low, high))
      goals[f'{side} / step on {data}'] = measure.goal(middle, least=LEAST)
  columns = ('', '', 'images/s', 'of its step', 'from', 'to')
  return measure.record(
    'loop',
    load=load,
    about=f'Medians of {rounds} rounds of {_STEPS["digits"]} and '
    f'{_STEPS["JPEGs"]} steps, and quartiles of the ratio; unroll=0',
    rates={name: measure.median(values) for name, values in found.items()},
    tables={'The loop and its bare step': measure.table(columns, rows)},
    goals=goals,
    rounds=found,
  )
