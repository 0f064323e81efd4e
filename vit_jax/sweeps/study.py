"""Searches by Optuna: which point is next, and which is not worth going on."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from vit_jax import workdir
from vit_jax.errors import UserError
from vit_jax.sweeps.points import Choice, Point, Range, Search
from vit_jax.sweeps.queue import held

_SAMPLERS = {
  'tpe': optuna.samplers.TPESampler,
  'random': optuna.samplers.RandomSampler,
}
_FILE = 'study.json'  # what the study of a folder is about
_ATTEMPTS = 30  # at a point that was not tried before
_TWIN, _IMPOSSIBLE = 'same as', 'impossible'  # attributes of trials never run


def _stored(value: Any) -> Any:
  """A value of a Choice as databases keep it: tuples as their text."""
  simple = value is None or isinstance(value, bool | int | float | str)
  return value if simple else repr(value)


def _distribution(where: Range | Choice):
  if isinstance(where, Choice):
    values = [_stored(v) for v in where.values]
    return optuna.distributions.CategoricalDistribution(values)
  kind = optuna.distributions.FloatDistribution
  if where.whole:
    kind = optuna.distributions.IntDistribution
  return kind(where.low, where.high, log=where.log)


def storage_of(folder: Path, launch: str) -> str:
  """--storage where it was not given: what the folder has, else by launch."""
  saved = (workdir.read_json(folder / _FILE) or {}).get('storage', '')
  if saved and '//...@' not in saved:
    return saved
  return 'journal' if launch == 'slurm' else 'sqlite'


def _storage(url: str, folder: Path) -> Any:
  """SQLite in the folder, a journal file, or the database of a URL."""
  if url == 'sqlite':
    url = f'sqlite:///{folder.absolute() / "study.db"}'
  if url == 'journal':
    return JournalStorage(JournalFileBackend(str(folder / 'study.journal')))
  if not re.match(r'[a-z0-9+]+://', url):
    raise UserError(
      f'--storage={url}: sqlite, journal (for shared disks), or the URL of a '
      'database, postgresql://USER:PASSWORD@HOST/NAME.'
    )
  try:
    return optuna.storages.RDBStorage(url)
  except Exception as error:  # SQLAlchemy's and the driver's many
    reason = ' '.join(str(error).split())[:300]
    raise UserError(f'--storage={_masked(url)}: {reason}') from error


def _masked(url: str) -> str:
  return re.sub('//.*@', '//...@', url)


class Study:
  """The trials of a search, in Optuna's storage.

  Sweeps that share it take turns: what one reads and then writes, it does while
  it holds the lock of the folder.
  """

  def __init__(self, search: Search, name: str, folder: Path, url: str):
    """Args: name: of the experiment; folder: of the sweep; url: see `_storage`.

    Raises:
      UserError: the storage cannot be opened, or the study that the folder has
        is of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    self._search, self._lock = search, folder / '.ask'
    self._reported: dict[int, int] = {}
    self._exhausted = False
    pruner = optuna.pruners.NopPruner()
    if search.pruner == 'asha':
      pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=search.rung, reduction_factor=search.reduction
      )
    self._space = {k: _distribution(v) for k, v in search.space.items()}
    with held(self._lock), warnings.catch_warnings():
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      self._check(folder, url)
      self._study = optuna.create_study(
        storage=_storage(url, folder),
        # A database may have the studies of many folders.
        study_name=f'{name}-{workdir.identity(folder)}',
        direction=search.direction,
        pruner=pruner,
        load_if_exists=True,
      )

  def _check(self, folder: Path, url: str):
    """Raises UserError unless the folder's study is of this search."""
    search, file = self._search, folder / _FILE
    words = {
      'storage': _masked(url),
      'direction': search.direction,
      'objective': search.objective,
      'space': {k: repr(v) for k, v in search.space.items()},
    }
    saved = workdir.read_json(file)
    if saved is None:
      _storage(url, folder)  # a bad one leaves no trace
      workdir.write_json(file, words)
      return
    for name, value in words.items():
      if saved[name] != value:
        raise UserError(
          f'--workdir={folder} holds the trials of another search: {name} was '
          f'{saved[name]}, is now {value}. Put it back, or use another '
          '--workdir.'
        )

  def _trials(self) -> list[FrozenTrial]:
    """Those that count."""
    return [
      t
      for t in self._study.get_trials(deepcopy=False)
      if t.params.keys() == self._space.keys() and _TWIN not in t.user_attrs
    ]

  def _point(self, params: dict[str, Any]) -> Point:
    """With the values of Choices as they were given."""
    point = dict(params)
    for name, where in self._search.space.items():
      if isinstance(where, Choice):
        values = {_stored(v): v for v in where.values}
        point[name] = values[point[name]]
    return point

  def trials(self) -> list[tuple[int, Point]]:
    """(number, point) of those that were begun and can be run."""
    trials = [t for t in self._trials() if _IMPOSSIBLE not in t.user_attrs]
    return [(t.number, self._point(t.params)) for t in trials]

  def impossible(self) -> list[str]:
    """What was wrong with points that no run can have."""
    found = [t.user_attrs.get(_IMPOSSIBLE) for t in self._trials()]
    return [error for error in found if error]

  def ask(self) -> tuple[int, Point] | None:
    """A point that was not tried; None if there are as many as wanted.

    Or if the search finds no new one, `_ATTEMPTS` times in a row.
    """
    with held(self._lock):
      for _ in range(0 if self._exhausted else _ATTEMPTS):
        known = self._trials()
        if len(known) >= self._search.trials:
          return None
        # Of its own for each trial, or two sweeps, or one that was begun again,
        # would draw the same numbers.
        number = len(self._study.get_trials(deepcopy=False))
        seed = np.random.SeedSequence([self._search.seed, number])
        kind = _SAMPLERS[self._search.sampler]
        self._study.sampler = kind(seed=int(seed.generate_state(1)[0]))
        trial = self._study.ask(self._space)
        twins = [t.number for t in known if t.params == trial.params]
        if not twins:
          return trial.number, self._point(trial.params)
        trial.set_user_attr(_TWIN, twins[0])
        self._study.tell(trial.number, state=TrialState.FAIL)
      self._exhausted = True
    return None

  def _find(self, number: int) -> tuple[optuna.Trial, FrozenTrial]:
    frozen = self._study.get_trials(deepcopy=False)[number]
    return optuna.Trial(self._study, frozen._trial_id), frozen

  def refuse(self, number: int, error: str):
    """Tells that no run can have this point: as bad as one that was pruned."""
    with held(self._lock):
      trial, frozen = self._find(number)
      if not frozen.state.is_finished():
        trial.set_user_attr(_IMPOSSIBLE, error)
        self._study.tell(number, state=TrialState.PRUNED)

  def report(self, number: int, values: list[float]) -> bool:
    """Tells the values of its evaluations; whether it is not worth going on."""
    if len(values) <= self._reported.get(number, 0):
      return False
    self._reported[number] = len(values)
    prune = False
    with held(self._lock):
      trial, frozen = self._find(number)
      known = len(frozen.intermediate_values)
      if frozen.state.is_finished():  # another sweep saw its end
        return False
      for rung, value in enumerate(values[known:], known + 1):
        trial.report(value, rung)
        prune = prune or trial.should_prune()
    return prune

  def tell(self, number: int, value: float | None, pruned: bool = False):
    """The end of a trial: its objective, None if it failed."""
    if pruned:
      state = TrialState.PRUNED
    else:
      state = TrialState.FAIL if value is None else TrialState.COMPLETE
    values = value if state == TrialState.COMPLETE else None
    with held(self._lock):
      if not self._find(number)[1].state.is_finished():
        self._study.tell(number, values, state=state)
