"""Which run is whose: claims by file locks, states by what the runs wrote.

There is no list of runs to fall out of step with the runs. A run is finished
when its result.json says so, failed or pruned when its sweep.json does, and
running while somebody holds the lock on its .claim. The system lets go of that
lock when all who hold it are dead: the sweep and the run itself, which has it
from the sweep. So several sweeps, on one host or on hosts that share a disk,
never run a point at once, and a point whose sweep was killed is free again.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vit_jax import config as config_lib
from vit_jax import workdir
from vit_jax.errors import UserError
from vit_jax.sweeps.experiment import Planned
from vit_jax.writers import read_metrics

WAITING, RUNNING, FINISHED = 'waiting', 'running', 'finished'
FAILED, PRUNED = 'failed', 'pruned'
SETTLED = (FINISHED, FAILED, PRUNED)
MISTAKE = 2  # the exit code that trying again does not mend


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
  """Waits for the lock of a file, and holds it."""
  with open(path, 'a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def try_lock(path: Path) -> IO | None:
  """A file whose lock is ours until it is closed; None if it is another's."""
  file = open(path, 'a')  # noqa: SIM115 (the caller's)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    file.close()
    return None
  return file


class Run:
  """A run of a sweep, in its folder.

  Attributes:
    planned: what it is.
    path: its workdir.
  """

  def __init__(self, planned: Planned, folder: Path, retries: int):
    """Args: retries: of a run that broke, before it counts as failed."""
    self.planned, self.path = planned, folder / planned.name
    self._retries, self._settled = retries, ''
    self._read: tuple[int, tuple[int, list[float]]] = 0, (0, [])

  def check(self):
    """Raises UserError if the folder holds a run of another config."""
    workdir.check_resumable(self.path, self.planned.config)

  def claim(self) -> IO | None:
    """Its lock, if nobody has it and there is something left to do.

    Then there is config.json in its folder, to train by.

    Raises:
      UserError: the folder holds a run of another config.
    """
    if self.settled:
      return None
    self.path.mkdir(parents=True, exist_ok=True)
    lock = try_lock(self.path / '.claim')
    if lock and self.settled:  # in the meantime
      lock.close()
      return None
    if lock:
      self.check()
      self._write(self.record)
      text = config_lib.to_json(self.planned.config)
      workdir.write_json(self.path / 'config.json', text)
    return lock

  @property
  def record(self) -> dict[str, Any]:
    """sweep.json: the point, what broke, and why no more is to be done."""
    planned = self.planned
    saved = workdir.read_json(self.path / 'sweep.json') or {}
    return (
      {'tries': [], 'pruned': 0}
      | saved
      | {
        'point': planned.point,
        'metric': planned.metric,
        'least': planned.least,
      }
    )

  def broke(self, code: int, error: str):
    """Notes that it ended with an exit code other than 0 and 75."""
    when = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    tried = {'code': code, 'error': error, 'time': when}
    record = self.record
    record['tries'].append(tried)
    self._write(record)

  def prune(self, step: int):
    """Notes that it is not worth going on."""
    self._write(self.record | {'pruned': step})

  def _write(self, record: dict[str, Any]):
    text = json.dumps(record, indent=2, default=str) + '\n'
    workdir.write_json(self.path / 'sweep.json', text)

  @property
  def settled(self) -> str:
    """FINISHED, FAILED or PRUNED; '' if it has to run."""
    self._settled = self._settled or self._settle()
    return self._settled

  def _settle(self) -> str:
    result = workdir.read_json(self.path / 'result.json')
    if result and result['steps'] >= self.planned.total:
      return FINISHED
    record = self.record
    tries = record['tries']
    hopeless = any(t['code'] == MISTAKE for t in tries)
    if hopeless or len(tries) > self._retries:
      return FAILED
    return PRUNED if record['pruned'] else ''

  @property
  def state(self) -> str:
    """Of the five."""
    if settled := self.settled:
      return settled
    if not (self.path / '.claim').exists():
      return WAITING
    lock = try_lock(self.path / '.claim')
    if lock is None:
      return RUNNING
    lock.close()
    return WAITING

  @property
  def error(self) -> str:
    """Of the last try."""
    tries = self.record['tries']
    return tries[-1]['error'] if tries else ''

  def progress(self) -> tuple[int, list[float]]:
    """The last step that was logged, and all values of the objective."""
    file, metric = self.path / 'metrics.jsonl', self.planned.metric
    size = file.stat().st_size if file.exists() else 0
    if size != self._read[0]:
      lines = read_metrics(file)
      values = [x[metric] for x in lines if x.get(metric) is not None]
      self._read = size, (lines[-1]['step'] if lines else 0, values)
    return self._read[1]

  @property
  def seconds(self) -> float:
    """That a finished run took, of all its starts."""
    result = workdir.read_json(self.path / 'result.json')
    return result['seconds'] if result else 0.0


def check_folder(folder: Path):
  """Makes the folder of a sweep.

  Raises:
    UserError: it cannot be, or it is a run itself.
  """
  if (folder / 'config.json').exists():
    raise UserError(
      f'--workdir={folder} is the workdir of a run; a sweep has runs in it.'
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--workdir={folder} cannot be written to: {error.strerror}.'
    ) from error
  if not os.access(folder, os.W_OK):
    raise UserError(f'--workdir={folder} cannot be written to.')
