"""What compiling takes, and what the compiled step needs, by depth and remat.

Of S/16 in float32 at 224, the recipe's scan (unroll=1): compile time at depth
12 and 24, and temporaries of a step at batch 8 with and without remat. What the
TPU compiler says is in tpu.py.
"""

import os
import time
from typing import Any

import jax
from rich.progress import track

from benchmarks import measure

DEPTHS = (12, 24)
REMATS = ('none', 'dots', 'full')
BATCH = 8


def lowered(**fields: Any) -> Any:
  """The training step of S/16 at 224, not compiled yet."""
  from vit_jax import config
  from vit_jax.setup import Setup
  from vit_jax.workdir import DataInfo

  values = {
    'size': 224,
    'batch_size': BATCH,
    'total': '1000 steps',
    'optim': {'warmup': '0 steps'},
    'model': {'variant': 'S/16', 'unroll': 1, **fields},
  }
  info = DataInfo(tuple(map(str, range(1000))), (224, 224), 3, 1000, '')
  setup = Setup(config.resolve(values), info, devices=jax.devices()[:1])
  with jax.set_mesh(setup.mesh):
    return setup.train_step.lower(setup.abstract_state, setup.abstract_batch)


def temporaries(remat: str, **fields: Any) -> int:
  """Bytes of the step beside its state, batch and results."""
  compiled = lowered(remat=remat, **fields).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def _seconds(depth: int) -> float:
  program = lowered(depth=depth)
  begun = time.perf_counter()
  program.compile()
  return time.perf_counter() - begun


def run(rounds: int) -> dict[str, Any]:
  """Measures; the record."""
  load = os.getloadavg()[0]
  kept: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    for i in track(range(rounds + 1), 'compiling', transient=True):
      for depth in DEPTHS:
        jax.clear_caches()
        kept[depth] += [_seconds(depth)] if i else []
    sizes = {remat: temporaries(remat) for remat in REMATS}
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
  medians = {depth: measure.median(values) for depth, values in kept.items()}
  one, two = DEPTHS
  share = sizes['full'] / sizes['none']
  rows = [
    (remat, size / 1e6, size / sizes['none']) for remat, size in sizes.items()
  ]
  timed = [
    (depth, value, min(kept[depth]), max(kept[depth]))
    for depth, value in medians.items()
  ]
  return measure.record(
    'compile',
    load=load,
    about=f'S/16 at 224, float32, batch {BATCH}, unroll=1, medians of '
    f'{rounds} compilations without the cache, in turn',
    rates={f'depth {d}, 1/s': 1 / value for d, value in medians.items()},
    tables={
      'Compile time': measure.table(
        ('depth', 'seconds', 'least', 'most'), timed
      ),
      'Temporaries': measure.table(('`model.remat`', 'MB', 'of `none`'), rows),
    },
    goals={
      f'compile time, depth {two} / {one}': measure.goal(
        medians[two] / medians[one], most=1.1
      ),
      'temporaries, scan + remat / no remat': measure.goal(share, most=0.1),
    },
  )
