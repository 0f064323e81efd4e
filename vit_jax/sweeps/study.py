"""Searches by Optuna: which point is next, and which is not worth going on."""

import re
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from vit_jax.errors import UserError
from vit_jax.sweeps.points import Choice, Point, Range, Search

_SAMPLERS = {
  'tpe': optuna.samplers.TPESampler,
  'random': optuna.samplers.RandomSampler,
}


def _distribution(where: Range | Choice):
  if isinstance(where, Choice):
    return optuna.distributions.CategoricalDistribution(
      [tuple(v) if isinstance(v, list) else v for v in where.values]
    )
  if where.whole:
    return optuna.distributions.IntDistribution(
      int(where.low), int(where.high), log=where.log
    )
  return optuna.distributions.FloatDistribution(
    where.low, where.high, log=where.log
  )


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
    raise UserError(
      f'--storage={re.sub("//.*@", "//...@", url)}: {reason}'
    ) from error


class Study:
  """The trials of a search, in Optuna's storage."""

  def __init__(self, search: Search, name: str, folder: Path, url: str):
    """Args: name: of the study; folder: of the sweep; url: see `_storage`.

    Raises:
      UserError: the storage cannot be opened, or a value of the search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    self._search = search
    if search.trials < 1:
      raise UserError(f'Search: trials = {search.trials}: at least 1.')
    if search.reduction < 2 or search.rung < 1:
      raise UserError('Search: reduction at least 2, and rung at least 1.')
    pruner = optuna.pruners.NopPruner()
    if search.pruner == 'asha':
      pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=search.rung, reduction_factor=search.reduction
      )
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      self._study = optuna.create_study(
        storage=_storage(url, folder),
        study_name=name,
        direction=search.direction,
        sampler=_SAMPLERS[search.sampler](seed=search.seed),
        pruner=pruner,
        load_if_exists=True,
      )
    self._space = {k: _distribution(v) for k, v in search.space.items()}

  def trials(self) -> list[tuple[int, Point, bool]]:
    """(number, point, whether it has ended) of those that were begun."""
    return [
      (t.number, t.params, t.state.is_finished())
      for t in self._study.get_trials(deepcopy=False)
      if t.params.keys() == self._space.keys()
    ]

  def ask(self) -> tuple[int, Point] | None:
    """Another trial; None if there are as many as wanted."""
    if len(self.trials()) >= self._search.trials:
      return None
    trial = self._study.ask(self._space)
    return trial.number, trial.params

  def report(self, number: int, values: list[float]) -> bool:
    """Tells the values of its evaluations; whether it is not worth going on."""
    frozen = self._study.get_trials(deepcopy=False)[number]
    trial = optuna.Trial(self._study, frozen._trial_id)
    known, prune = len(frozen.intermediate_values), False
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
    self._study.tell(number, values, state=state, skip_if_finished=True)
