"""What evaluators look at: outputs and features, each computed once."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int
from rich.progress import track

from vit_jax import distributed
from vit_jax.data.loader import Batch, Loader
from vit_jax.data.sources import Source, key_of
from vit_jax.errors import UserError

Rows = dict[str, np.ndarray]  # of each example, in the order of the split


def collect(
  loader: Loader,
  step: Callable[[Batch], dict[str, jax.Array]],
  what: str = '',
) -> Rows:
  """What a step gives of each example of a split, in its order, on every host.

  Args:
    loader: of the split.
    step: from a batch to rows by name; those of mask 0 are left out.
    what: is done, for a bar of progress; '': none is shown.

  Returns:
    The rows, and `record`, their numbers in the split.
  """
  count = -(-len(loader.source) // loader.batch_size)
  quiet = not what or not distributed.primary()
  batches = track(
    loader.evaluate(), what, total=count, transient=True, disable=quiet
  )
  parts, last = [], None
  for batch in batches:
    rows = step(batch) | {'mask': batch['mask']}
    parts += [fetch(last)] if last else []  # while the next one is computed
    last = rows
  parts.append(fetch(last))
  arrays = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
  rows = np.flatnonzero(arrays.pop('mask'))
  return {'record': rows, **{k: v[rows] for k, v in arrays.items()}}


def local_mesh() -> jax.sharding.Mesh:
  """The devices of this process, for work that each process does itself."""
  return jax.sharding.Mesh(np.array(jax.local_devices()), ('rows',))


def check_skipped(setup: Any, count: int, of: int):
  """Raises UserError if more cannot be read than config.data.max_skipped."""
  most = setup.config.data.max_skipped
  if of - count > most * of:
    raise UserError(
      f'{of - count:,} of {of:,} examples to evaluate cannot be read, more '
      f'than config.data.max_skipped = {most}.'
    )


def fetch(rows: Any) -> Rows:
  """Arrays of all processes, on each."""
  return multihost_utils.process_allgather(rows, tiled=True)


def write_rows(path: Path, rows: Rows, source: Source, split: str):
  """NumPy's .npz, by one process, whole; and which examples they are of.

  Args:
    path: of the file.
    rows: arrays of one length.
    source: of the examples; its `fingerprint` is kept, by which `report` knows
      that two files are of the same ones.
    split: what the examples are called, kept too.
  """
  if not distributed.primary():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}')
  with open(temporary, 'wb') as file:
    np.savez(file, **rows, fingerprint=source.fingerprint, split=split)
  temporary.replace(path)


class View:
  """A model on a split. All that it gives is the same on every host.

  Attributes:
    setup, params: of the model; a setup.Setup, which imports this.
    loader: of the split.
    folder: for pictures; None: none are drawn.
    source, split: of the examples that `keep` is given, and what they are
      called.
  """

  def __init__(
    self,
    setup: Any,
    params: Any,
    loader: Loader,
    folder: Path | None = None,
    split: str = '',
  ):
    self.setup, self.params, self.loader = setup, params, loader
    self.folder = folder
    self.source, self.split = loader.source, split
    self._kept: dict[str, int] = {}

  def of(self, source: Source, split: str) -> 'View':
    """The same view, which keeps what examples of another source have."""
    _ = self._look  # compiled once for both
    other = copy.copy(self)
    other.source, other.split = source, split
    return other

  def _collect(self, loader: Loader, step: Any, what: str) -> Rows:
    with jax.set_mesh(self.setup.mesh):
      rows = collect(loader, step, what)
    check_skipped(self.setup, len(rows['record']), len(loader.source))
    return rows

  @functools.cached_property
  def outputs(self) -> Rows:
    """What the task says of each example: label, prediction, nll, ..."""
    step = self.setup.eval_step
    return self._collect(
      self.loader, lambda b: step(self.params, b)[1], 'outputs'
    )

  def logits(self, loader: Loader) -> Rows:
    """`logits` (n, Y) and `label` of what another loader loads."""
    return self._run(loader, 'logits', 'logits')

  def keep(self, name: str, **rows: np.ndarray):
    """Writes what each example has into predictions/NAME.npz of the folder.

    So that two models can be compared example by example. `record`, its number
    in the split, is that of `features` if it is not given.
    """
    if self.folder:
      number = self._kept.get(name, 0)
      self._kept[name] = number + 1
      name = f'{name}_again{number}' if number else name  # as the metric
      if 'record' not in rows:
        rows['record'] = self._own['record']
      path = self.folder / 'predictions' / f'{name}.npz'
      write_rows(path, rows, self.source, self.split)

  @functools.cached_property
  def _own(self) -> Rows:
    return self._run(self.loader, 'pooled', 'features')

  @functools.cached_property
  def features(self) -> tuple[Float[np.ndarray, 'n D'], Int[np.ndarray, 'n']]:
    """What the head is given of each example, and the labels."""
    return self._own['pooled'], self._own['label']

  @functools.cached_property
  def train_source(self) -> Source:
    """The training split."""
    return self.setup.source('train')

  @functools.cached_property
  def train_features(
    self,
  ) -> tuple[Float[np.ndarray, 'm D'], Int[np.ndarray, 'm']]:
    """Of the training split, by the ops of an evaluation.

    Raises:
      UserError: an example of the split is one of the training split, too.
    """
    trained, own = (
      {key_of(source, i) for i in range(len(source))}
      for source in (self.train_source, self.loader.source)
    )
    shared = own & trained
    if shared:
      raise UserError(
        f'{len(shared):,} of the {len(own):,} examples to evaluate are of the '
        f'training split too, such as {min(shared)}: knn, fewshot and '
        'linear_probe would find each of them in what they learn from. '
        'Choose a split apart from it.'
      )
    loader = self.setup.loader('test', self.train_source)
    rows = self._run(loader, 'pooled', 'features')
    return rows['pooled'], rows['label']

  def _run(self, loader: Loader, name: str, what: str) -> Rows:
    def step(batch):
      rows = self._look(self.params, batch['image'], name)
      return {name: rows, 'label': batch['label']}

    return self._collect(loader, step, what)

  @functools.cached_property
  def _look(self):
    @functools.partial(jax.jit, static_argnums=2)
    def look(params, images, name):
      seen = self.setup.apply(params, images, capture=(name,))[1][name]
      return seen.astype(jax.numpy.float32)

    return look
