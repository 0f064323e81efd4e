"""Shared by all tests: checked shape annotations, 8 devices, small runs."""

import os
import subprocess
import sys
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'

# Runs of the same program compile once, in this process or another's.
ROOT = Path(__file__).parent.parent
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(ROOT / '.pytest_cache' / 'xla')
# The tests compile far longer than they compute: half as long without LLVM's
# optimizations, which are not ours to test.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
# Before vit_jax is imported: every annotated shape is then checked by beartype.
install_import_hook('vit_jax', 'beartype.beartype')

# A run of seconds; the real recipe is configs/digits.py as it is.
SMALL = {
  'model.width': '32',
  'model.depth': '2',
  'model.heads': '2',
  'total': '24 steps',
  'batch_size': '32',
  'eval_every': '12 steps',
  'save_every': '6 steps',
  'log_every': '4 steps',
}


@pytest.fixture(scope='session')
def root() -> Path:
  """The repository."""
  return ROOT


@pytest.fixture
def small_config():
  """A function from overrides to a small, complete config on digits."""
  from vit_jax import config

  def load(**overrides):
    values = SMALL | {k.replace('__', '.'): v for k, v in overrides.items()}
    return config.load(
      str(ROOT / 'configs' / 'digits.py'), list(values.items())
    )

  return load


@pytest.fixture(scope='session')
def vit_jax():
  """Runs `python -m vit_jax ARGS` and gives (exit code, stdout, stderr)."""

  def run(*args, **kwargs):
    done = subprocess.run(
      [sys.executable, '-m', 'vit_jax', *map(str, args)],
      capture_output=True,
      text=True,
      cwd=ROOT,
      timeout=300,
      **kwargs,
    )
    return done.returncode, done.stdout, done.stderr

  return run


@pytest.fixture(scope='session')
def small_flags():
  """The overrides of a small run as command-line flags."""
  return [f'--config.{name}={value}' for name, value in SMALL.items()]


def red_and_blue(path: Path, count: int, h: int, w: int) -> Path:
  """Writes `count` pictures of each of two colours, path/train/red/0.png."""
  rng = np.random.default_rng(0)
  for channel, name in ((0, 'red'), (2, 'blue')):
    folder = path / 'train' / name
    folder.mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 90, (h, w, 3))
      pixels[..., channel] += 100
      Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
  return path
