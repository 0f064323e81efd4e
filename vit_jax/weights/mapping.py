"""One parameter here, one or more tensors there: both ways, checked."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.errors import UserError

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
  """Some of our parameters and the tensors that hold the same numbers.

  Attributes:
    ours: paths such as 'encoder/blocks/mlp/up/kernel'.
    theirs: names in the file.
    read: their arrays to ours (of one layer), in these orders.
    write: the inverse.
    layer: the row of our stacked parameters; None: not stacked.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  read: Callable[[Arrays], Arrays]
  write: Callable[[Arrays], Arrays]
  layer: int | None = None


def one(
  ours: str,
  theirs: str,
  read: Callable[[np.ndarray], np.ndarray] = lambda x: x,
  write: Callable[[np.ndarray], np.ndarray] = lambda x: x,
  layer: int | None = None,
) -> Entry:
  """An entry of one parameter and one tensor; by default the same array."""
  return Entry(
    (ours,),
    (theirs,),
    lambda arrays: [read(arrays[0])],
    lambda arrays: [write(arrays[0])],
    layer,
  )


def transposed(ours: str, theirs: str, layer: int | None = None) -> Entry:
  """A linear layer's kernel: theirs is (out, in), ours (in, out)."""
  return one(ours, theirs, np.transpose, np.transpose, layer)


def abstract_params(model: Any, size: tuple[int, int], channels: int = 3):
  """{path: ShapeDtypeStruct} of a model for images (h, w, channels)."""
  image = jax.ShapeDtypeStruct((1, *size, channels), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  return flatten_dict(shapes, sep='/')


def _some(names: Iterable[str], between: str = ', ') -> str:
  names = sorted(names)
  more = f' and {len(names) - 6} more' if len(names) > 6 else ''
  return between.join(names[:6]) + more if names else 'none'


def _difference(missing: Iterable[str], unexpected: Iterable[str]) -> str:
  return f'missing: {_some(missing)}; unexpected: {_some(unexpected)}'


def _read(
  entry: Entry, tensors: Mapping[str, np.ndarray], want: Sequence[Any]
) -> Arrays:
  """Our arrays of one entry; raises UserError unless they have these shapes."""
  arrays = [np.asarray(tensors[name]) for name in entry.theirs]
  names = ', '.join(entry.theirs)
  for name, array in zip(entry.theirs, arrays, strict=True):
    if not np.issubdtype(array.dtype, np.floating) and (
      array.dtype.name != 'bfloat16'
    ):
      raise UserError(f'{name} holds {array.dtype}, not floats')
  try:
    values = entry.read(arrays)
  except ValueError as error:
    shapes = ', '.join(str(a.shape) for a in arrays)
    raise UserError(f'{names} of {shapes} do not fit: {error}') from error
  for path, value, shape in zip(entry.ours, values, want, strict=True):
    if value.shape != shape:
      raise UserError(
        f'{names}: {value.shape} where the model has {shape} ({path})'
      )
  return values


def read_params(
  entries: Sequence[Entry],
  tensors: Mapping[str, np.ndarray],
  abstract: Mapping[str, Any],
  ignored: Callable[[str], bool] = lambda _: False,
  place: Callable[[str, np.ndarray], Any] = lambda _, array: array,
) -> dict[str, Any]:
  """Our parameter tree (float32) from the tensors of a file.

  A parameter is handed to `place` once its last layer is read, and let go of:
  on the host there is never more than one of them, or the few of an entry.

  Args:
    entries: what belongs to what.
    tensors: by name.
    abstract: what our parameters have to be: {path: shape and dtype}.
    ignored: whether a tensor without an entry is none of the model's.
    place: from (path, array) to what stands in the tree.

  Raises:
    UserError: tensors are missing, unexpected, or of a wrong shape or type.
  """
  wanted = {name for entry in entries for name in entry.theirs}
  missing = wanted - set(tensors)
  unexpected = {n for n in set(tensors) - wanted if not ignored(n)}
  if missing or unexpected:
    raise UserError(
      'the tensors are not those of the model: '
      + _difference(missing, unexpected)
      + '.'
    )
  left = collections.Counter(path for e in entries for path in e.ours)
  if set(left) != set(abstract):
    raise ValueError(f'no entry for, or no such {set(left) ^ set(abstract)}')
  host: dict[str, np.ndarray] = {}
  placed, wrong = {}, []

  def store(entry: Entry):
    shapes = [abstract[path].shape for path in entry.ours]
    stacked = entry.layer is not None
    values = _read(entry, tensors, [s[1:] if stacked else s for s in shapes])
    for path, value, shape in zip(entry.ours, values, shapes, strict=True):
      if not stacked:
        host[path] = np.ascontiguousarray(value, np.float32)
        continue
      if path not in host:
        host[path] = np.empty(shape, np.float32)
      host[path][entry.layer] = value

  def order(entry: Entry):
    """By parameter, not by layer; the largest first, while there is room."""
    return -sum(abstract[path].size for path in entry.ours), entry.ours

  for entry in sorted(entries, key=order):
    try:
      store(entry)
    except UserError as error:
      wrong.append(str(error).removesuffix('.'))
    left.subtract(entry.ours)
    for path in entry.ours:
      if not left[path] and not wrong:
        placed[path] = place(path, host.pop(path))
  if wrong:
    raise UserError(f'{_some(wrong, "; ")}.')
  return unflatten_dict(placed, sep='/')


def write_tensors(
  entries: Sequence[Entry], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The tensors of a file from our parameter tree: the inverse."""
  flat = {k: np.asarray(v) for k, v in flatten_dict(params, sep='/').items()}
  tensors = {}
  for entry in entries:
    layer = entry.layer
    values = [flat[p] if layer is None else flat[p][layer] for p in entry.ours]
    tensors |= zip(entry.theirs, entry.write(values), strict=True)
  return tensors
