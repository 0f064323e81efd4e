"""Checkpoints: Orbax, and what it lacks: a digest, and a way back.

A checkpoint is a folder `checkpoints/STEP` with the items `params`, `ema`,
`optimizer` and `meta`; meta holds a digest of each item (trees.digest), checked
after loading, so that a flipped byte is refused; shapes and dtypes are compared
before it.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from vit_jax import distributed, trees
from vit_jax.errors import UserError
from vit_jax.step import TrainState

ITEMS = ('params', 'ema', 'optimizer')


def _told(record: Any) -> bool:
  """Not what Orbax logs of an error that it then raises as well."""
  return not (record.exc_info and 'orbax' in record.pathname)


logging.get_absl_logger().addFilter(_told)


def _free(folder: Path, name: str) -> Path:
  """A path that does not exist yet: NAME, NAME.2, NAME.3, ..."""
  names = itertools.chain([name], (f'{name}.{i}' for i in itertools.count(2)))
  return next(p for p in map(folder.joinpath, names) if not p.exists())


class Damaged(Exception):
  """A checkpoint is there but is not what was saved."""

  verdict, sound = 'is damaged', 'is sound'


class Unfit(Damaged):
  """A checkpoint has arrays of another shape or dtype than is wanted."""

  verdict, sound = 'does not fit', 'fits'


def _check_fit(saved: dict[str, Any], wanted: dict[str, Any]):
  """Compares shapes and dtypes before a byte is read: Orbax would cast.

  Args:
    saved: Orbax's metadata of the items; what it does not know is passed over.
    wanted: ShapeDtypeStructs of items.

  Raises:
    Unfit: names the first array that differs, what it was and should be.
  """
  wrong = []
  for item in wanted:
    if not saved.get(item):
      continue
    was, now = (
      {n: f'{leaf.dtype} {tuple(leaf.shape)}' for n, leaf in trees.paths(tree)}
      for tree in (saved[item], wanted[item])
    )
    wrong += [
      f'{item}/{name}: saved as {was.get(name, "nothing")}, '
      f'wanted as {now.get(name, "nothing")}'
      for name in {**now, **was}
      if was.get(name) != now.get(name)
    ]
  if wrong:
    more = f'; and {len(wrong) - 1} more' if wrong[1:] else ''
    raise Unfit(wrong[0] + more)


class Checkpoints:
  """The checkpoints of a workdir: the latest two and the best are kept."""

  def __init__(self, directory: Path):
    self._directory = directory.absolute()
    self._open()

  def _open(self):
    policies = ocp.training.preservation_policies
    self._checkpointer = ocp.training.Checkpointer(
      self._directory,
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(2),
          policies.BestN(
            get_metric_fn=lambda metrics: metrics['best'],
            n=1,
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    return sorted(info.step for info in self._checkpointer.checkpoints)

  def save(self, state: TrainState, best: float | None = None):
    """Saves in the background; returns once the arrays are copied.

    Args:
      state: what to save, under its own step number.
      best: higher is better; the best one is kept. None: not evaluated here.
    """
    step = int(state.step)
    if step in self.steps():
      return
    items = {name: getattr(state, name) for name in ITEMS}
    items = {name: item for name, item in items.items() if item is not None}
    digests = {name: trees.digest(item) for name, item in items.items()}
    ranked = best is not None and math.isfinite(best)
    self._checkpointer.save_checkpointables_async(
      step,
      {**items, 'meta': {'step': step, 'digests': digests}},
      force=True,
      metrics={'best': best} if ranked else None,
    )

  def wait(self):
    """Returns once all is on disk; raises what went wrong in the background."""
    self._checkpointer.wait()

  def close(self):
    """Waits, and lets go of the directory."""
    self._checkpointer.close()

  def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    failed: Exception | None = None
    loaded, digests = {}, {}
    try:
      saved = self._checkpointer.checkpointables_metadata(step).metadata
      _check_fit(saved, abstract)
      loaded = self._checkpointer.load_checkpointables(
        step, {**abstract, 'meta': None}
      )
      digests = loaded.pop('meta')['digests']
    except MemoryError:
      raise
    except Exception as error:  # orbax raises many kinds for a damaged folder
      failed = error
    if not distributed.agree(failed is None):
      if isinstance(failed, Unfit):
        raise failed
      kind = type(failed).__name__ if failed else 'another process'
      raise Damaged(f'{kind}: {failed or "could not read it"}') from failed
    for name, item in loaded.items():
      if trees.digest(item) != digests.get(name):
        raise Damaged(f'{name} differs from what was saved')
    return loaded

  def load(
    self, abstract: dict[str, Any], step: int | None = None
  ) -> tuple[int, dict[str, Any]] | None:
    """The newest sound checkpoint: (step, items), or None if there is none.

    Args:
      abstract: ShapeDtypeStructs with shardings, of the items wanted.
      step: this one and no other.

    Raises:
      UserError: there is no such step, or no checkpoint is sound and fits.
    """
    steps = self.steps()
    if step is not None and step not in steps:
      raise UserError(
        f'--step={step}: {self._directory} has '
        + (', '.join(map(str, steps)) or 'no checkpoint')
        + '.'
      )
    wanted = steps[::-1] if step is None else [step]
    why, sound = '', ''
    for number in wanted:
      try:
        return number, self._load(number, abstract)
      except Damaged as error:
        why, sound = ' '.join(str(error).split())[:300], error.sound
        path = self._directory / str(number)
        logging.error('%s: the checkpoint %s (%s)', path, error.verdict, why)
    if wanted:
      raise UserError(
        f'{self._directory}: no checkpoint {sound} among '
        f'{", ".join(map(str, wanted))} ({why}).'
      )
    return None

  def discard_after(self, step: int):
    """Sets damaged checkpoints aside: their steps can then be saved again."""
    later = [number for number in self.steps() if number > step]
    if not later:
      return
    self._checkpointer.close()
    for number in later if distributed.primary() else ():
      path = self._directory / str(number)
      path.rename(_free(self._directory.parent, f'damaged-checkpoint-{number}'))
    distributed.agree(True)  # the others look at the folder after that
    self._open()


def abstract_items(state: TrainState, names=ITEMS) -> dict[str, Any]:
  """The items of an abstract state (with shardings) that a checkpoint holds."""
  items = {name: getattr(state, name) for name in names}
  return {name: item for name, item in items.items() if item is not None}


def restore(
  checkpoints: Checkpoints, abstract: TrainState
) -> TrainState | None:
  """The state of the newest sound checkpoint, or None if there is none."""
  found = checkpoints.load(abstract_items(abstract))
  if found is None:
    return None
  step, items = found
  checkpoints.discard_after(step)
  number = jax.device_put(
    jax.numpy.asarray(step, abstract.step.dtype), abstract.step.sharding
  )
  return abstract.replace(step=number, ema=None).replace(**items)
