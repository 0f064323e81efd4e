"""One parameter here, one or more tensors there: both ways, checked."""

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


def _difference(missing: Iterable[str], unexpected: Iterable[str]) -> str:
  def some(names):
    names = sorted(names)
    more = f' and {len(names) - 6} more' if len(names) > 6 else ''
    return ', '.join(names[:6]) + more if names else 'none'

  return f'missing: {some(missing)}; unexpected: {some(unexpected)}'


def read_params(
  entries: Sequence[Entry],
  tensors: Mapping[str, np.ndarray],
  abstract: Mapping[str, Any],
  ignored: Callable[[str], bool] = lambda _: False,
) -> dict[str, Any]:
  """Our parameter tree (float32, in memory) from the tensors of a file.

  Args:
    entries: what belongs to what.
    tensors: by name.
    abstract: what our parameters have to be: {path: shape and dtype}.
    ignored: whether a tensor without an entry is none of the model's.

  Raises:
    UserError: a tensor is missing, unexpected, or of a wrong shape or type.
  """
  wanted = {name for entry in entries for name in entry.theirs}
  missing = wanted - set(tensors)
  unexpected = {n for n in set(tensors) - wanted if not ignored(n)}
  if missing or unexpected:
    raise UserError(
      'the tensors are not those of the model: '
      + _difference(missing, unexpected)
    )
  flat: dict[str, np.ndarray] = {}
  for entry in entries:
    arrays = [np.asarray(tensors[name]) for name in entry.theirs]
    for name, array in zip(entry.theirs, arrays, strict=True):
      if not np.issubdtype(array.dtype, np.floating) and (
        array.dtype.name != 'bfloat16'
      ):
        raise UserError(f'{name} holds {array.dtype}, not floats.')
    try:
      values = entry.read(arrays)
    except ValueError as error:
      shapes = ', '.join(str(a.shape) for a in arrays)
      raise UserError(
        f'{", ".join(entry.theirs)} of {shapes} do not fit: {error}.'
      ) from error
    for path, value in zip(entry.ours, values, strict=True):
      if path not in abstract:
        raise ValueError(f'no parameter {path}')
      want = abstract[path].shape
      if path not in flat:
        flat[path] = np.empty(want, np.float32)
      target = flat[path] if entry.layer is None else flat[path][entry.layer]
      if value.shape != target.shape:
        raise UserError(
          f'{", ".join(entry.theirs)}: {value.shape} where the model has '
          f'{target.shape} ({path}).'
        )
      target[...] = value
  if set(flat) != set(abstract):
    names = sorted(set(abstract) - set(flat))
    raise ValueError(f'no entry for {names}')
  return unflatten_dict(flat, sep='/')


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
