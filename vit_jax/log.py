"""What the loop says: metrics one step late, and words where they are due."""

import os
import time
from typing import Any

import jax

from vit_jax.errors import UserError
from vit_jax.rollback import NotFinite
from vit_jax.setup import Setup
from vit_jax.speed import Utilization
from vit_jax.writers import Terminal, Writers

_FEW = 1000  # examples, below which a rate of skipped ones says little
_ALWAYS = ('asked', 'finite', 'skipped')  # of the metrics: acted upon at once
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
    self,
    setup: Setup,
    writers: Writers,
    terminal: Terminal,
    begun: float,
    rollbacks: int = 0,
  ):
    self._setup, self._writers, self._terminal = setup, writers, terminal
    self._cadence = Cadence(setup, 'log_every')
    self._utilization = Utilization(setup)
    self._pending: tuple[int, Any] | None = None
    self._begun, self._since = begun, time.perf_counter()
    self._before = writers.elapsed
    self._waited, self._steps = 0.0, 0
    self._compiled = False
    self.saving = 0.0  # seconds for checkpoints that no line has told yet
    self.skipped = int(writers.last('train/skipped') or 0)
    self._lost = writers.last('data/skipped') or 0.0
    self._told, self._rollbacks = False, rollbacks
    self.asked = False  # by a signal to any process, known in all of them

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
    """Logs what is pending.

    Raises:
      UserError: it was not finite, and that is to end the run.
      NotFinite: and that is to send it back.
    """
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    due = self._cadence.due(step)
    if not due:  # each number fetched is work for a core
      metrics = {k: v for k, v in metrics.items() if k in _ALWAYS}
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if not self._compiled:  # the first step of this start, now it is done
      self._compiled = True
      self.restart_clock()
    self.asked |= values.pop('asked', 0.0) > 0
    if not values.pop('finite'):
      self._nonfinite(step)
    self._count_lost(step, values.pop('skipped', 0.0))
    if not due:
      return
    line = {f'train/{name}': value for name, value in values.items()}
    line['time/elapsed'] = self.elapsed
    seconds = time.perf_counter() - self._since
    line |= self._speed(seconds)
    if self.saving:
      line['time/checkpoint'], self.saving = self.saving, 0.0
    if self.skipped:
      line['train/skipped'] = self.skipped
    if self._rollbacks:
      line['train/rollbacks'] = self._rollbacks
    if self._setup.config.data.on_error == 'skip':
      line['data/skipped'] = self._lost
    self._tell_if_starved(seconds)
    self._writers.write(step, line)
    left = (self._setup.total - step) * seconds / max(1, self._steps)
    self._terminal.advance(step, line, left if self._steps else None)
    self.restart_clock()

  def _speed(self, seconds: float) -> dict[str, float]:
    """Of the steps on the clock; of none, nothing."""
    if not self._steps:
      return {}
    images = self._steps * self._setup.config.batch_size
    return {
      'time/images_per_second': images / seconds,
      'time/training': seconds,
      'time/input_wait': self._waited / self._steps,
    } | self._utilization.of(self._steps, seconds)

  def saved(self, seconds: float):
    """Training waited so long for a checkpoint: the next line tells it."""
    self.saving += seconds

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
    if self._told or self._steps < 5:
      return
    share = self._waited / seconds
    if share < _STARVED:
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
    if self._setup.config.on_nonfinite == 'rollback':
      raise NotFinite(step)
    self.skipped += 1
    if self._setup.config.on_nonfinite == 'halt':
      raise UserError(
        f'step {step}: the loss or its gradient is not finite. Lower '
        'config.optim.lr or lengthen config.optim.warmup, in another workdir; '
        'or go on in this one with --config.on_nonfinite=skip or rollback. '
        'Nothing that is not finite was saved.'
      )
    self._terminal.say(f'step {step}: not finite, skipped')
