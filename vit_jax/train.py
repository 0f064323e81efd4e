"""The loop. Start reading here.

`run` makes the parts (setup.py), restores the state (checkpoint.py), and then
steps: next batch (data/loader.py), train step (step.py), and on their cadences
metrics (writers.py), evaluation (evaluate.py) and checkpoints.
"""

import math
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax import checkpoint, finetune, trees, workdir
from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.evaluate import evaluate
from vit_jax.setup import Setup
from vit_jax.signals import Stop
from vit_jax.viz.curves import draw_curves
from vit_jax.writers import Terminal, Writers, read_metrics

FINISHED, INTERRUPTED = 0, 75
_FEW = 1000  # examples, below which a rate of skipped ones says little
_STARVED = 0.2  # of the time waiting for data: worth a word


class Cadence:
  """Every so many steps, and at the last one; 0 steps: at the last one only."""

  def __init__(self, setup: Setup, field: str):
    self._every = setup.steps(setup.config[field], f'config.{field}')
    self._total = setup.total

  def due(self, step: int) -> bool:
    return step == self._total or bool(self._every and step % self._every == 0)


class Log:
  """Metrics one step late: those of step t are fetched while t + 1 runs."""

  def __init__(
    self, setup: Setup, writers: Writers, terminal: Terminal, begun: float
  ):
    self._setup, self._writers, self._terminal = setup, writers, terminal
    self._cadence = Cadence(setup, 'log_every')
    self._pending: tuple[int, Any] | None = None
    self._begun, self._since = begun, time.perf_counter()
    self._before = writers.elapsed
    self._waited, self._steps = 0.0, 0
    self.skipped = int(writers.last('train/skipped') or 0)
    self._lost = writers.last('data/skipped') or 0.0
    self._told = False

  @property
  def elapsed(self) -> float:
    """Seconds of all starts of this run."""
    return self._before + time.perf_counter() - self._begun

  def step(self, step: int, metrics: Any, waited: float):
    """Takes the metrics of `step`, still being computed; logs the last ones."""
    self.flush()
    self._pending = (step, metrics)
    self._waited += waited
    self._steps += 1

  def flush(self):
    """Logs what is pending; raises UserError if it was not finite."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if not values.pop('finite'):
      self._nonfinite(step)
    self._count_lost(step, values.pop('skipped', 0.0))
    if not self._cadence.due(step):
      return
    seconds = time.perf_counter() - self._since
    images = self._steps * self._setup.config.batch_size
    line = {f'train/{name}': value for name, value in values.items()} | {
      'time/images_per_second': images / seconds,
      'time/input_wait': self._waited / max(1, self._steps),
      'time/elapsed': self.elapsed,
    }
    if self.skipped:
      line['train/skipped'] = self.skipped
    if self._setup.config.data.on_error == 'skip':
      line['data/skipped'] = self._lost
    self._tell_if_starved(seconds)
    self._writers.write(step, line)
    left = (self._setup.total - step) * seconds / max(1, self._steps)
    self._terminal.advance(step, line, left)
    self.restart_clock()

  def say(self, text: str):
    """A line that stays."""
    self._terminal.say(text)

  def restart_clock(self):
    """Leaves what happened since the last step out of images per second."""
    self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

  def _count_lost(self, step: int, lost: float):
    """Raises UserError if more examples were skipped than is allowed."""
    if not lost:
      return
    self._lost += lost
    self._writers.write(step, {'data/skipped': self._lost})
    data, seen = self._setup.config.data, step * self._setup.config.batch_size
    if self._lost > data.max_skipped * max(seen, _FEW):
      raise UserError(
        f'step {step}: {self._lost:.0f} of {seen:,} examples cannot be read, '
        f'more than config.data.max_skipped = {data.max_skipped} allows. '
        '`vit_jax data check` lists them.'
      )

  def _tell_if_starved(self, seconds: float):
    share = self._waited / seconds
    if self._told or share < _STARVED or self._steps < 5:
      return
    self._told = True
    workers = self._setup.config.data.workers
    self.say(
      f'{share:.0%} of the time is spent waiting for data: the run is '
      f'input-bound. Try more --config.data.workers (now {workers}, CPUs '
      f'{os.cpu_count()}), cheaper config.data.train.ops, or pictures stored '
      'at about the size of the model (docs/data.md).'
    )

  def _nonfinite(self, step: int):
    self.skipped += 1
    if self._setup.config.on_nonfinite == 'halt':
      raise UserError(
        f'step {step}: the loss or its gradient is not finite. Lower '
        'config.optim.lr or lengthen config.optim.warmup, in another workdir; '
        'or go on in this one with --config.on_nonfinite=skip. Nothing that is '
        'not finite was saved.'
      )
    self._terminal.say(f'step {step}: not finite, skipped')


def _best_before(setup: Setup, writers: Writers) -> float:
  if not setup.evaluations:
    return -math.inf
  name = f'eval/{setup.evaluations[0]}/{setup.task.best}'
  scores = [line[name] for line in writers.kept if line.get(name) is not None]
  return max(scores, default=-math.inf)


def _finish(path: Path, setup: Setup, state: Any, seconds: float) -> dict:
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
    'seconds': round(seconds, 2),
    'parameters': trees.count(state.params),
    'parameters_sha256': trees.digest(state.params),
  }
  draw_curves(lines, path / 'curves.png')
  workdir.write_json(path / 'result.json', result)
  return result


def _report(path: Path, result: dict, terminal: Terminal):
  shown = [
    f'{name} {value:.4f}'
    for name, value in result['metrics'].items()
    if name.startswith('eval/') and isinstance(value, float)
  ]
  terminal.say(
    f'finished {result["steps"]} steps in {result["seconds"]:.0f} s: '
    + ', '.join(shown)
  )
  terminal.say(
    f'curves: {path / "curves.png"}  all numbers: {path}/result.json'
  )


def run(
  config: ml_collections.FrozenConfigDict,
  path: Path,
  stop: Stop | None = None,
) -> int:
  """Trains, or goes on with, the run in the workdir `path`.

  Args:
    config: complete, from config.load.
    path: the workdir.
    stop: asks the loop to save and leave; None: nothing does.

  Returns:
    The exit code: FINISHED, or INTERRUPTED by a signal and saved.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
  """
  begun = time.perf_counter()
  config = finetune.adopt(config, path)
  setup = Setup(config)
  with workdir.locked(path):
    workdir.check_resumable(path, config)
    return _run(setup, path, stop or Stop(), begun)


def _run(setup: Setup, path: Path, stop: Stop, begun: float) -> int:
  done = workdir.read_json(path / 'result.json')
  if done and done['steps'] >= setup.total:
    terminal = Terminal(setup.total, setup.total)
    _report(path, done, terminal)
    terminal.close()
    return FINISHED
  sources = {name: setup.source(name) for name in setup.evaluations}
  evaluations = {n: setup.loader(n, source) for n, source in sources.items()}
  batches = setup.loader('train', setup.train_source)
  workdir.write_provenance(path, setup.info)
  workdir.write_json(path / 'config.json', config_lib.to_json(setup.config))
  with jax.set_mesh(setup.mesh):
    return _loop(setup, path, stop, begun, batches, evaluations)


def _evaluate_all(setup, evaluations, state, step, writers, log) -> float:
  """Writes the metrics of each split; returns what picks the best."""
  best = None
  for name, loader in evaluations.items():
    begun = time.perf_counter()
    metrics = evaluate(setup, loader, state.averaged)
    line = {f'eval/{name}/{key}': value for key, value in metrics.items()}
    line[f'time/eval_{name}'] = time.perf_counter() - begun
    line['time/elapsed'] = log.elapsed
    writers.write(step, line)
    score = metrics[setup.task.best]
    log.say(f'step {step}  {name} {setup.task.best} {score:.4f}')
    best = score if best is None else best  # the first split decides
  return -math.inf if best is None else best


def _loop(setup, path, stop, begun, batches, evaluations) -> int:
  checkpoints = checkpoint.Checkpoints(path / 'checkpoints')
  state = checkpoint.restore(checkpoints, setup.abstract_state) or (
    finetune.initial(setup)
  )
  start = int(state.step)
  if start > setup.total:
    checkpoints.close()
    raise UserError(
      f'config.total = {setup.total} steps, but the run in {path} has done '
      f'{start}.'
    )
  writers = Writers(path, start)
  terminal = Terminal(setup.total, start)
  terminal.say(setup.describe(trees.count(state.params)))
  if start:
    terminal.say(f'resuming after step {start}')
  evaluation, save = Cadence(setup, 'eval_every'), Cadence(setup, 'save_every')
  log = Log(setup, writers, terminal, begun)
  stream = batches.train(start, setup.total)
  record = _best_before(setup, writers)
  try:
    for step in range(start + 1, setup.total + 1):
      waiting = time.perf_counter()
      batch = next(stream)
      waited = time.perf_counter() - waiting
      state, metrics = setup.train_step(state, batch)
      stop.armed = True  # from here on there is something to save
      log.step(step, metrics, waited)
      if step == start + 1:  # it compiled
        log.restart_clock()
      best, improved = None, False
      if evaluation.due(step):
        log.flush()
        best = _evaluate_all(setup, evaluations, state, step, writers, log)
        improved = best > record  # never by nan, which must not become one
        record = best if improved else record
        log.restart_clock()
      if save.due(step) or improved or stop.requested:
        log.flush()
        writers.sync()  # a checkpoint's metrics are on disk before it is
        checkpoints.save(state, best)
        log.restart_clock()
      if stop.requested and step < setup.total:
        checkpoints.wait()
        terminal.say(
          f'{stop.requested}: saved after step {step}; '
          'the same command goes on from here'
        )
        return INTERRUPTED
    checkpoints.wait()
    writers.close()
    result = _finish(path, setup, state, log.elapsed)
    terminal.close()
    _report(path, result, terminal)
    return FINISHED
  finally:
    stream.close()
    terminal.close()
    writers.close()
    checkpoints.close()
