"""What a run leaves when it ends: result.json, curves, mistakes."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import distributed, speed, trees, workdir
from vit_jax.evaluate import predictions
from vit_jax.log import Log
from vit_jax.setup import Setup
from vit_jax.viz.curves import draw_curves
from vit_jax.viz.mistakes import draw_mistakes
from vit_jax.writers import Terminal, read_metrics


def _draw(path: Path, setup: Setup, evaluations: dict, lines: list):
  """The pictures of a finished run."""
  draw_curves(lines, path / 'curves.png')
  for name, loader in list(evaluations.items())[:1]:
    kept = predictions(path, name)
    if not kept.exists():  # of a run that was cut to the steps it had done
      continue
    with np.load(kept) as file:
      rows = dict(file)
    if 'prediction' in rows:
      group = setup.config.data[name]
      figure = draw_mistakes(loader, group.ops, rows, setup.info.classes)
      figure.savefig(path / 'mistakes.png')


def finish(
  path: Path, setup: Setup, evaluations: dict, state: Any, log: Log
) -> dict[str, Any]:
  """Writes the pictures and result.json, which is returned.

  Args:
    path: the workdir.
    setup: of the run.
    evaluations: loaders of its evaluations, the first one's mistakes are drawn.
    state: the last one.
    log: of the run, all starts of it.
  """
  lines = read_metrics(path / 'metrics.jsonl')
  final, best = {}, {}
  metric = f'/{setup.task.best}'
  for line in lines:
    final |= {k: v for k, v in line.items() if k != 'step'}
    for name, value in line.items():
      if re.fullmatch(f'eval/.*{metric}', name) and value is not None:
        record = {'value': value, 'step': line['step']}
        best[name] = max(
          best.get(name, record), record, key=lambda r: r['value']
        )
  result = {
    'metrics': final,
    'best': best,
    'steps': setup.total,
    'seconds': round(log.elapsed, 2),
    'time': speed.sums(lines, setup.config.batch_size, log.saving),
    'parameters': trees.count(state.params),
    'parameters_sha256': trees.digest(state.params),
  }
  if distributed.primary():
    _draw(path, setup, evaluations, lines)
    workdir.write_json(path / 'result.json', result)
  return result


def report(path: Path, result: dict, terminal: Terminal):
  """Says what a finished run has reached, and where it is written."""
  shown = [
    f'{name} {value:.4f}'
    for name, value in result['metrics'].items()
    if name.startswith('eval/') and isinstance(value, float)
  ]
  terminal.say(
    f'finished {result["steps"]} steps in {result["seconds"]:.0f} s: '
    + ', '.join(shown)
  )
  drawn = [n for n in ('curves', 'mistakes') if (path / f'{n}.png').exists()]
  pictures = ''.join(f'{name}: {path}/{name}.png  ' for name in drawn)
  terminal.say(f'{pictures}all numbers: {path}/result.json')
