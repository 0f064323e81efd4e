"""Evaluation of a split, within training and by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.data.loader import Loader
from vit_jax.errors import UserError
from vit_jax.evaluators import View, check_data, check_labels, run_all
from vit_jax.evaluators.view import check_skipped, collect, write_rows
from vit_jax.setup import Setup


def evaluate(
  setup: Setup,
  loader: Loader,
  params: Any,
  keep: Path | None = None,
  split: str = '',
) -> dict[str, float]:
  """The task's metrics over a split, each example counted once; and `count`.

  Args:
    setup, loader, params: of what, on what.
    keep: a file to write what each example has to: NumPy's .npz of `record`,
      its number in the split, `label`, `prediction`, and the metrics.
    split: what the split is called, kept in the file.
  """
  totals: dict[str, Any] = {}
  pending: list[Any] = []  # sums of the last batch, fetched during the next

  def add():
    # In double precision on the host: counts of pixels pass 2**24.
    for name, pair in jax.device_get(pending.pop()).items() if pending else ():
      new = [np.asarray(x, np.float64) for x in pair]
      old = totals.get(name, (0.0, 0.0))
      totals[name] = tuple(a + b for a, b in zip(old, new, strict=True))

  def step(batch):
    sums, values = setup.eval_step(params, batch)
    add()
    pending.append(sums)
    return values

  if keep:
    write_rows(keep, collect(loader, step), loader.source, split)
  else:
    for batch in loader.evaluate():
      step(batch)
  add()
  count = int(next(iter(totals.values()))[1])
  if not count:
    raise UserError('no example of the split to evaluate can be read.')
  means = {name: total / weight for name, (total, weight) in totals.items()}
  metrics = setup.task.summary(means) | {'count': count}
  if count < len(loader.source):
    metrics['skipped'] = len(loader.source) - count
  check_skipped(setup, count, len(loader.source))
  return metrics


def predictions(workdir: Path, split: str) -> Path:
  """Where a run keeps what its examples have."""
  return workdir / 'predictions' / f'{split}.npz'


def run(
  setup: Setup,
  params: Any,
  *,
  split: str = '',
  keep: Path | None = None,
  evaluators: Sequence[str] = (),
  pictures: Path | None = None,
) -> dict[str, Any]:
  """Evaluates parameters: {'split', and the metrics}.

  Args:
    setup: of the run, or made for the weights.
    params: to evaluate.
    split: a group of config.data, or an expression such as 'train[1150:]',
      read with the ops of 'test'; '': the first evaluation of the config.
    keep: see `evaluate`.
    evaluators: calls of evaluators.EVALUATORS.
    pictures: a folder for what they draw.
  """
  check_labels('--evaluators', evaluators, setup.task)
  check_data('--evaluators', evaluators, setup)
  # Of features alone: weights may have no head, or one for other classes.
  heads = getattr(setup.model, 'classes', 0) == len(setup.info.classes)
  if keep and not heads:
    raise UserError(
      f'--keep={keep}: the head is not for these classes, so there is nothing '
      "to keep; --pictures=DIR has the evaluators' predictions."
    )
  name = split or (setup.evaluations or ['test'])[0]
  loader = setup.loader(name, setup.source(name))
  with jax.set_mesh(setup.mesh):
    result = {'split': name}
    if heads:
      result |= evaluate(setup, loader, params, keep, name)
    view = View(setup, params, loader, pictures, name)
    return result | run_all('--evaluators', evaluators, view)
