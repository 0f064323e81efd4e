"""How long a user waits: for --help, and for the first step of a run.

The first start of the digits recipe compiles; the second finds its programs in
the cache on disk. Each is timed from the start of its process until the metrics
of step 1 are on disk.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks import measure

ROOT = Path(__file__).parent.parent
_TIMEOUT = 300.0


def _help() -> float:
  begun = time.perf_counter()
  command = [sys.executable, '-m', 'vit_jax', '--help']
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  return time.perf_counter() - begun


def first_step(workdir: Path, cache: Path, *flags: str) -> float:
  """Seconds until the run in a fresh workdir has logged its first step.

  Args:
    workdir: of the run, which is then stopped.
    cache: of compiled programs.
    *flags: more of `train`.
  """
  command = [sys.executable, '-m', 'vit_jax', 'train']
  command += ['--config=configs/digits.py', f'--workdir={workdir}']
  command += ['--config.log_every=1 steps', *flags]
  begun = time.perf_counter()
  with open(workdir.with_suffix('.log'), 'w') as log:
    run = subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=log,
      stderr=log,
      env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)},
    )
    metrics = workdir / 'metrics.jsonl'
    try:
      while not (metrics.exists() and b'\n' in metrics.read_bytes()):
        if run.poll() is not None or time.perf_counter() - begun > _TIMEOUT:
          raise RuntimeError(Path(log.name).read_text())
        time.sleep(0.01)
      return time.perf_counter() - begun
    finally:
      run.kill()
      run.wait()


def run(rounds: int) -> dict[str, Any]:
  """Measures; the record."""
  load, kept = os.getloadavg()[0], {}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for i in track(range(rounds + 1), 'measuring', transient=True):
      cache = folder / f'cache{i}'
      values = {
        '`--help`': _help(),
        'digits, first start to step 1': first_step(folder / f'a{i}', cache),
        'digits, second start to step 1': first_step(folder / f'b{i}', cache),
      }
      for key, value in values.items():
        kept.setdefault(key, []).extend([value] if i else [])
  medians = {key: measure.median(values) for key, values in kept.items()}
  rows = [(k, m, min(kept[k]), max(kept[k])) for k, m in medians.items()]
  return measure.record(
    'startup',
    load=load,
    about=f'Medians of {rounds} starts from the shell, unroll=0',
    rates={f'{name}, 1/s': 1 / value for name, value in medians.items()},
    tables={'Startup': measure.table(('', 'seconds', 'least', 'most'), rows)},
    goals={
      '`--help`, s': measure.goal(medians['`--help`'], most=0.4),
      'second start to step 1, s': measure.goal(
        medians['digits, second start to step 1'], most=5.0
      ),
    },
    rounds=kept,
  )
