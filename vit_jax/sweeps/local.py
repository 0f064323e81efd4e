"""A run of a sweep as a process of its own, on its share of this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from vit_jax.sweeps.queue import Run

# Started by the child before anything slow: it dies with its parent, however
# that ends, and keeps to its cores. prctl is Linux's; elsewhere a run outlives
# a sweep that is killed, and holds its claim until it ends.
_CHILD = """
import os, sys
parent, cores = int(sys.argv[1]), sys.argv[2]
if sys.platform == 'linux':
  import ctypes, signal
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  if os.getppid() != parent:
    sys.exit(75)
  if cores:
    os.sched_setaffinity(0, map(int, cores.split(',')))
from vit_jax import cli
sys.exit(cli.main(sys.argv[3:]))
"""


def _gpus() -> list[str]:
  """What CUDA_VISIBLE_DEVICES names, or all there are."""
  named = os.environ.get('CUDA_VISIBLE_DEVICES')
  if named is not None:
    return [name for name in named.split(',') if name]
  devices = [
    p.name.removeprefix('nvidia') for p in Path('/dev').glob('nvidia*')
  ]
  return sorted((name for name in devices if name.isdigit()), key=int)


def _cores() -> list[int]:
  if not hasattr(os, 'sched_getaffinity'):
    return []
  return sorted(os.sched_getaffinity(0))


def share(things: list[Any], job: int, jobs: int) -> list[Any]:
  """Those of job number `job`; if there are fewer than jobs, one is shared."""
  if len(things) <= jobs:
    return [things[job % len(things)]] if things else []
  return things[job * len(things) // jobs : (job + 1) * len(things) // jobs]


class Process:
  """A run that is being run here."""

  def __init__(self, run: Run, claim: IO, job: int, jobs: int):
    """Starts it as job number `job` of `jobs`; it inherits the claim."""
    self.run, self.job, self._claim = run, job, claim
    self.began = time.monotonic()
    environment = dict(os.environ)
    gpus = _gpus()
    if gpus:
      environment['CUDA_VISIBLE_DEVICES'] = ','.join(share(gpus, job, jobs))
    cores = share(_cores(), job, jobs)
    command = [sys.executable, '-c', _CHILD, str(os.getpid())]
    command += [','.join(map(str, cores)), 'train']
    command += [f'--config={run.path / "config.json"}']
    command += [f'--workdir={run.path}']
    with open(run.path / 'log.txt', 'a') as log:
      self._start = log.tell()
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=[claim.fileno()],
        # Ctrl-C is for the sweep, which tells the runs.
        start_new_session=True,
      )

  def ended(self) -> int | None:
    """The exit code, or None while it runs."""
    return self._process.poll()

  def ask_to_stop(self):
    """It saves, and ends with 75."""
    if self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)

  def close(self):
    """Kills it if it still runs, and lets go of the claim."""
    if self._process.poll() is None:
      self._process.kill()
    self._process.wait()
    self._claim.close()

  def last_words(self) -> str:
    """The end of what it said since it was started, as one line."""
    with open(self.run.path / 'log.txt', errors='replace') as log:
      log.seek(self._start)
      lines = [line.strip() for line in log if line.strip()]
    said = [line for line in lines if line.startswith('vit_jax: ')]
    return (said or lines or ['it said nothing'])[-1].removeprefix('vit_jax: ')
