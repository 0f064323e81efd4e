"""Going back after a loss that is not finite, and around the data that did it.

`on_nonfinite='rollback'` restores the newest checkpoint and trains on with the
data that follow those of the steps undone. The windows left out are kept in the
workdir's rollbacks.json, so that a resumed run leaves out the same: the batch
of a step is a function of (seed, step, windows).
"""

from pathlib import Path
from typing import NamedTuple

from vit_jax.errors import UserError
from vit_jax.workdir import read_json, write_json

_FILE = 'rollbacks.json'


class Window(NamedTuple):
  """From step `restored` on, the data are those of `failed` - `restored` on."""

  restored: int
  failed: int


class NotFinite(Exception):
  """The loss or the gradient of a step, where that means to go back."""

  def __init__(self, step: int):
    super().__init__(f'step {step}: the loss or its gradient is not finite')
    self.step = step


def read(path: Path) -> list[Window]:
  """The windows of the run in a workdir, as they came."""
  try:
    return [Window(**window) for window in read_json(path / _FILE) or []]
  except TypeError as error:
    raise UserError(
      f'{path / _FILE} is damaged ({error}). Without it the run would train '
      'on the data that it had left out: restore it, or use another --workdir.'
    ) from error


def write(path: Path, windows: list[Window]):
  """Keeps them for who resumes."""
  write_json(path / _FILE, [window._asdict() for window in windows])


def check(windows: list[Window], step: int, most: int):
  """Raises UserError if a run has gone back so often that it should not again.

  Args:
    windows: so far.
    step: that failed now.
    most: config.max_rollbacks.
  """
  if len(windows) >= most:
    raise UserError(
      f'step {step}: the loss or its gradient is not finite, after '
      f'{len(windows)} rollbacks (config.max_rollbacks = {most}). Lower '
      'config.optim.lr or lengthen config.optim.warmup, in another workdir. '
      'Nothing that is not finite was saved.'
    )


def words(window: Window) -> str:
  """One line for the log."""
  restored, failed = window
  return (
    f'step {failed}: not finite; back to step {restored}, and on without the '
    f'data of steps {restored + 1} to {failed}'
  )


def batch_number(step: int, windows: list[Window]) -> int:
  """Which batch of the data step number `step` (from 0) trains on."""
  return step + sum(
    w.failed - w.restored for w in windows if step >= w.restored
  )
