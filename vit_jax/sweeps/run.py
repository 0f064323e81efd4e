"""The loop of a sweep: claim, start, look, until nothing is left to do."""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from vit_jax.errors import UserError
from vit_jax.signals import Stop
from vit_jax.sweeps import queue
from vit_jax.sweeps.experiment import Experiment, Overrides
from vit_jax.sweeps.local import Process
from vit_jax.sweeps.queue import Run
from vit_jax.sweeps.table import Table

_LOOK = 0.5  # seconds between looks at the runs
FINISHED, INTERRUPTED = 0, 75


class Points:
  """Runs of points that are all known before the first one starts."""

  impossible = 0  # points that no run can have

  def __init__(self, experiment: Experiment, folder: Path, retries: int):
    plans = list(experiment.plans())
    self.runs = [Run(planned, folder, retries) for planned in plans]

  def more(self) -> bool:
    """Whether runs may be added yet."""
    return False

  def look(self, run: Run) -> bool:  # noqa: ARG002
    """Whether a run is not worth going on."""
    return False

  def settle(self, run: Run):
    """Tells how a run ended."""

  def news(self) -> Iterator[str]:
    """What to say that is of no run."""
    return iter(())


class Trials:
  """Runs that a search makes up as it goes."""

  def __init__(
    self, experiment: Experiment, folder: Path, retries: int, storage: str
  ):
    from vit_jax.sweeps.study import Study

    assert experiment.search
    list(experiment.plans())  # the ends of the space: a mistake is told now
    self._experiment, self._folder = experiment, folder
    self._retries = retries
    self.impossible = 0
    self._study = Study(
      experiment.search, experiment.path.stem, folder, storage
    )
    self._numbers: dict[str, int] = {}
    self.runs: list[Run] = []
    self._adopt()

  def _add(self, number: int, point: Any) -> bool:
    """Its run; False if the ends of the space were possible, but not this."""
    try:
      planned = self._experiment.plan(point, number)
    except UserError as error:
      if list(self._folder.glob(f'{number:04}-*/config.json')):
        raise  # it was possible: CONFIG has changed
      self._study.refuse(number, str(error))
      return False
    run = Run(planned, self._folder, self._retries)
    run.check()
    self._numbers[planned.name] = number
    self.runs.append(run)
    return True

  def _adopt(self):
    """Trials that this or another sweep began."""
    known = set(self._numbers.values())
    for number, point in self._study.trials():
      if number not in known:
        self._add(number, point)

  def more(self) -> bool:
    """Asks for one more trial, unless there are as many as wanted."""
    self._adopt()
    while asked := self._study.ask():
      if self._add(*asked):
        return True
    return False

  def news(self) -> Iterator[str]:
    """What to say that is of no run."""
    errors = self._study.impossible()
    yield from (f'impossible: {error}' for error in errors[self.impossible :])
    self.impossible = len(errors)

  def look(self, run: Run) -> bool:
    """Reports its evaluations; whether a rung of ASHA ends it."""
    values = run.progress()[1]
    number = self._numbers[run.planned.name]
    return bool(values) and self._study.report(number, values)

  def settle(self, run: Run):
    """Tells Optuna the last value, or that it failed or was pruned."""
    state, values = run.settled, run.progress()[1]
    value = values[-1] if values and state == queue.FINISHED else None
    number = self._numbers[run.planned.name]
    if value is not None:
      self._study.report(number, values)
    self._study.tell(number, value, state == queue.PRUNED)


class _Loop:
  """The jobs of this sweep."""

  def __init__(self, source: Any, jobs: int, table: Table):
    self.source, self.jobs, self.table = source, jobs, table
    self.processes: dict[int, Process] = {}  # by job
    self._told: set[str] = set()  # settled runs
    self._pruned: set[str] = set()

  def open(self) -> Iterator[Run]:
    """Runs that are not settled; tells of those that came to be."""
    for run in self.source.runs:
      if run.planned.name in self._told:
        continue
      if run.settled:
        self._told.add(run.planned.name)
        self.source.settle(run)
        self.table.settled(run)
      else:
        yield run

  def _next(self) -> tuple[Run, Any] | None:
    for run in itertools.chain(list(self.open()), self._added()):
      claim = run.claim()
      if claim:
        return run, claim
    return None

  def _added(self) -> Iterator[Run]:
    while self.source.more():
      yield self.source.runs[-1]

  def start(self):
    """Fills the free jobs."""
    for job in range(self.jobs):
      if job in self.processes:
        continue
      found = self._next()
      if found is None:
        return
      self.processes[job] = Process(*found, job, self.jobs)
      self.table.started(found[0])

  def look(self):
    """At each process: has it ended, is it worth going on?"""
    for job, process in list(self.processes.items()):
      run, code = process.run, process.ended()
      if code is None:
        if run.planned.name not in self._pruned and self.source.look(run):
          self._pruned.add(run.planned.name)
          run.prune(run.progress()[0])
          process.ask_to_stop()
          self.table.say(f'{run.planned.name}: pruned')
        continue
      if code not in (FINISHED, INTERRUPTED):
        run.broke(code, process.last_words())
        self.table.broke(run, code)
      process.close()
      del self.processes[job]

  def stop(self):
    """Asks all that run to save, and waits for them."""
    for process in self.processes.values():
      process.ask_to_stop()
    while any(p.ended() is None for p in self.processes.values()):
      time.sleep(0.05)


def _work(loop: _Loop, stop: Stop) -> int:
  stop.armed = True
  try:
    while True:
      loop.look()
      if stop.requested:
        loop.stop()
        loop.table.say(
          f'{stop.requested}: the runs were saved; the same command goes on'
        )
        return INTERRUPTED
      loop.start()
      for line in loop.source.news():
        loop.table.say(line)
      if not loop.processes and not list(loop.open()):
        return FINISHED
      loop.table.show(loop.source.runs, loop.source.impossible)
      time.sleep(_LOOK)
  finally:
    loop.stop()  # also if something here is wrong: it is not the runs' fault
    for process in loop.processes.values():
      process.close()


def dry_run(experiment: Experiment, folder: Path):
  """Prints what would be run, and how each differs from CONFIG."""
  print(experiment.question)
  search = experiment.search
  if search:
    print(f'{search.trials} trials of', dict(search.space))
    print('checked, one end of each field at a time:')
  for planned in experiment.plans():
    state = '' if search else Run(planned, folder, 0).state
    print(f'{planned.name}  {planned.total} steps  {state}')
    for field, (old, new) in experiment.differences(planned).items():
      print(f'  config.{field} = {new!r}, not {old!r}')


def check(args: argparse.Namespace, overrides: Overrides):
  """(the experiment, its Points or Trials), all of it sound.

  Raises:
    UserError: a mistake in the flags, the experiment or the workdir.
  """
  for name, least in (('jobs', 1), ('retries', 0)):
    if getattr(args, name) < least:
      raise UserError(f'--{name}={getattr(args, name)}: at least {least}.')
  jax.config.update('jax_platforms', 'cpu')  # the devices are the runs'
  experiment = Experiment(args.experiment, overrides)
  if args.storage and not experiment.search:
    raise UserError(
      f'--storage={args.storage} is for the trials of a search; '
      f'{args.experiment} has points.'
    )
  if args.dry_run:
    return experiment, None
  queue.check_folder(args.workdir)
  given = (experiment, args.workdir, args.retries)
  if experiment.search:
    from vit_jax.sweeps.study import storage_of

    args.storage = args.storage or storage_of(args.workdir, args.launch)
    return experiment, Trials(*given, args.storage)
  source = Points(*given)
  for one in source.runs:
    one.check()
  return experiment, source


def run(args: argparse.Namespace, overrides: Overrides, stop: Stop) -> int:
  """Runs an experiment to its end, here.

  Args:
    args: of `sweep`.
    overrides: of CONFIG.
    stop: asks to save the runs and leave.

  Returns:
    0, or 75 if interrupted.

  Raises:
    UserError: a mistake in the experiment, or runs that failed.
  """
  experiment, source = check(args, overrides)
  if args.dry_run:
    dry_run(experiment, args.workdir)
    return FINISHED
  table = Table(experiment, args.jobs)
  loop = _Loop(source, args.jobs, table)
  with table:
    code = _work(loop, stop)
  table.show(source.runs, source.impossible, last=True)
  failed = [r for r in source.runs if r.settled == queue.FAILED]
  if code == FINISHED and failed:
    raise UserError(
      f'{len(failed)} of {len(source.runs)} runs failed. '
      + '; '.join(f'{r.path}: {r.error}' for r in failed[:3])
      + f'. Mend the cause, delete their sweep.json ({failed[0].path}/'
      'sweep.json), and the same command tries them again.'
    )
  return code
