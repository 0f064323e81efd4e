"""How long checkpoints and evaluations keep training waiting.

Of S/16 with AdamW, the state that a run has: the blocking part of a save, the
rest of it (beside which training goes on), a restore, a digest, which is in
both; and an evaluation beside its bare forward passes.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from rich.progress import track

from benchmarks import measure
from vit_jax import trees
from vit_jax.checkpoint import Checkpoints, abstract_items, restore
from vit_jax.evaluate import evaluate
from vit_jax.setup import Setup


def _setup(variant: str) -> Setup:
  from vit_jax import config

  return Setup(
    config.resolve(
      {
        'batch_size': 32,
        'size': 32,
        'total': '1000 steps',
        'optim': {'warmup': '0 steps'},
        'model': {'variant': variant},
        'data': {
          'name': 'digits',
          'train': {'ops': ('fit', 'range(-1, 1)')},
          'test': {'ops': ('fit', 'range(-1, 1)')},
        },
      }
    )
  )


def _evaluation(setup: Setup, params: Any) -> tuple[float, float]:
  """Seconds of an evaluation; and of its steps, on batches that are there."""
  loader = setup.loader('test', setup.source('test'))
  evaluate(setup, loader, params, None)  # compiles
  begun = time.perf_counter()
  evaluate(setup, loader, params, None)
  whole = time.perf_counter() - begun
  batches = list(loader.evaluate())
  begun = time.perf_counter()
  jax.block_until_ready([setup.eval_step(params, batch) for batch in batches])
  return whole, time.perf_counter() - begun


def run(rounds: int, variant: str = 'S/16') -> dict[str, Any]:
  """Measures; the record."""
  load, setup = os.getloadavg()[0], _setup(variant)
  kept: dict[str, list[float]] = {}

  def timed(name: str, begun: float):
    kept.setdefault(name, []).append(time.perf_counter() - begun)

  with tempfile.TemporaryDirectory() as name, jax.set_mesh(setup.mesh):
    state = setup.init()
    size = sum(leaf.nbytes for _, leaf in trees.paths(state))
    checkpoints = Checkpoints(Path(name))
    for i in track(range(rounds + 1), 'measuring', transient=True):
      state = state.replace(step=state.step + 1)
      begun = time.perf_counter()
      trees.digest(abstract_items(state))
      timed('digest, a part of a save', begun)
      begun = time.perf_counter()
      checkpoints.save(state, None)
      timed('save, training waits', begun)
      checkpoints.wait()
      timed('save, until it is on disk', begun)
      begun = time.perf_counter()
      restore(checkpoints, setup.abstract_state)
      timed('restore', begun)
      whole, bare = _evaluation(setup, state.params)
      kept.setdefault('evaluation', []).append(whole)
      kept.setdefault('its bare steps', []).append(bare)
      if not i:
        kept.clear()
    checkpoints.close()
  medians = {key: measure.median(values) for key, values in kept.items()}
  rows = [(k, m, min(kept[k]), max(kept[k])) for k, m in medians.items()]
  return measure.record(
    'checkpoint',
    load=load,
    about=f'{variant} with AdamW, {size / 1e6:.0f} MB; evaluation of '
    f'{len(setup.source("test"))} digits at 32 pixels; '
    f'unroll={setup.config.model.unroll}, medians of {rounds}',
    rates={f'{name}, 1/s': 1 / value for name, value in medians.items()},
    tables={
      'Checkpoints and evaluation': measure.table(
        ('', 'seconds', 'least', 'most'), rows
      )
    },
    rounds=kept,
  )
