"""What a run says: metrics.jsonl, TensorBoard, W&B, and the terminal."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from vit_jax.errors import UserError
from vit_jax.workdir import identity

Metrics = Mapping[str, float]


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; one cut short by a crash is left out."""
  lines = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        lines.append(json.loads(line))
      except ValueError:
        break
  return lines


def _open_wandb(workdir: Path, config: Mapping[str, Any]) -> Any:
  """A run of Weights & Biases, the same one for each start of this workdir."""
  import wandb

  try:
    run = wandb.init(
      project=config['wandb'],
      id=identity(workdir),
      resume='allow',
      name=workdir.absolute().name,
      dir=str(workdir.absolute()),
      config=dict(config),
      settings=wandb.Settings(console='off', silent=True),
    )
  except wandb.errors.Error as error:
    raise UserError(
      f'config.wandb = {config["wandb"]!r}: {error}. WANDB_MODE=offline needs '
      "neither key nor network; config.wandb='' is without."
    ) from error
  # By our step: its own counter never goes back, as a resumed run may.
  run.define_metric('*', step_metric='step')
  return run


class _Board:
  """TensorBoard's events, written by this thread.

  tensorboardX has a thread of its own: when the disk is full it dies, and who
  waits for it waits forever.
  """

  def __init__(self, workdir: Path, purge_step: int):
    """Events from `purge_step` on that are there are no longer shown."""
    self._file = EventsWriter(str(workdir / 'events'))
    start = SessionLog(status=SessionLog.START)
    self._write(step=purge_step, session_log=start)

  def _write(self, **fields: Any):
    self._file.write_event(Event(wall_time=time.time(), **fields))

  def add(self, step: int, metrics: Metrics):
    """A scalar each."""
    for name, value in metrics.items():
      self._write(step=step, summary=scalar(name, value))

  def flush(self):
    """All is in the file afterwards."""
    self._file.flush()

  def close(self):
    """Flushes, too."""
    self._file.close()


class Writers:
  """Writes metrics by step. On resume, what lies beyond `start` is dropped."""

  def __init__(
    self,
    workdir: Path,
    start: int,
    primary: bool = True,
    config: Mapping[str, Any] | None = None,
  ):
    """Opens the files.

    Args:
      workdir: where they are.
      start: the step that the run goes on from.
      primary: of several processes, this one writes, the others read.
      config: of the run; its `wandb` names a project to write to as well.
    """
    path = workdir / 'metrics.jsonl'
    lines = read_metrics(path)
    self.kept = kept = [line for line in lines if line['step'] <= start]
    self.elapsed = max((x.get('time/elapsed', 0.0) for x in kept), default=0.0)
    self._file = self._board = self._wandb = None
    if not primary:
      return
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(line) + '\n' for line in kept))
    temporary.replace(path)
    self._file = open(path, 'a')  # noqa: SIM115 (closed by close)
    self._board = _Board(workdir, start + 1)
    if config and config.get('wandb'):
      self._wandb = _open_wandb(workdir, config)

  def write(self, step: int, metrics: Metrics):
    """One line and the events of a step; what is not finite becomes null."""
    if not self._file:
      return
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    line = json.dumps({'step': step, **finite}, allow_nan=False)
    self._file.write(line + '\n')
    self._file.flush()
    self._board.add(step, metrics)
    if self._wandb:
      self._wandb.log({'step': step, **metrics})

  def last(self, name: str) -> float | None:
    """The last value up to the start of this process, or None."""
    values = [line[name] for line in self.kept if name in line]
    return values[-1] if values else None

  def sync(self):
    """All is on disk afterwards."""
    if not self._file:
      return
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def close(self):
    """All is on disk afterwards; a second call does nothing."""
    if not self._file:
      return
    file, self._file = self._file, None
    try:
      file.flush()
      os.fsync(file.fileno())
    finally:
      file.close()
      self._board.close()
      if self._wandb:
        self._wandb.finish()


class Terminal:
  """A live bar on a terminal; elsewhere plain lines."""

  def __init__(self, total: int, start: int, primary: bool = True):
    self._console = Console(highlight=False, soft_wrap=True, quiet=not primary)
    self._total = total
    self._bar: Progress | None = None
    if self._console.is_terminal and primary:
      self._bar = Progress(
        TextColumn('training'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[text]}'),
        TextColumn('ETA'),
        TimeRemainingColumn(),
        console=self._console,
      )
      self._bar.start()
      self._task = self._bar.add_task('', total=total, completed=start, text='')

  def say(self, text: str):
    """A line that stays."""
    self._console.print(text, markup=False)

  def advance(self, step: int, metrics: Metrics, seconds_left: float | None):
    """Shows where the run is; None: how long it takes is not known yet."""
    text = f'loss {metrics["train/loss"]:.4f}'
    if rate := metrics.get('time/images_per_second'):
      text += f'  {rate:.0f} images/s'
    if self._bar:
      self._bar.update(self._task, completed=step, text=text)
    else:
      if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        text += f'  ETA {minutes}:{seconds:02}'
      self.say(f'step {step}/{self._total}  {text}')

  def close(self):
    """Leaves the terminal as it was."""
    if self._bar:
      self._bar.stop()
