"""What formats of weights ask of a file and of a model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights.resample import grid_of


def shape_of(
  tensors: Mapping[str, np.ndarray],
  names: Collection[str],
  name: str,
  rank: int,
) -> tuple[int, ...]:
  """The shape of a tensor.

  Raises:
    UserError: the file (whose names are `names`) lacks it, or its shape has
      not `rank` numbers.
  """
  if name not in names:
    raise UserError(f'the file lacks {name}, which such a model has.')
  shape = tensors[name].shape
  if len(shape) != rank:
    raise UserError(f'{name} is of {shape}, and not of {rank} dimensions.')
  return shape


def square(name: str, side: Sequence[int]) -> int:
  """The side of a patch.

  Raises:
    UserError: it is not square.
  """
  if len(side) != 2 or side[0] != side[1]:
    raise UserError(
      f'{name}: patches of {"x".join(map(str, side))}, and not of a square.'
    )
  return side[0]


def table_grid(
  rows: int, prefix: int, *grids: tuple[int, int] | None
) -> tuple[int, int]:
  """The grid of a position table: the first that is given, or a square.

  Raises:
    UserError: the table is not of the grid that is given, or no square.
  """
  for grid in grids:
    if grid is None:
      continue
    if grid[0] * grid[1] != rows - prefix:
      raise UserError(
        f'{rows} positions without {prefix} for other tokens are no grid of '
        f'{grid[0]}x{grid[1]} patches.'
      )
    return grid
  return grid_of(rows, prefix)


def require(model: ViT, of: str, **allowed: Collection[Any]):
  """Raises UserError unless each field of the model is among those allowed.

  The message names the field: `of` is the format, in words.
  """
  for field, values in allowed.items():
    value = getattr(model, field)
    if value not in values:
      raise UserError(
        f'{of} has no {field} = {value!r}, only '
        f'{" or ".join(map(repr, values))}: write another format.'
      )
