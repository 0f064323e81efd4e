"""Learned positions on another grid, patch kernels for another patch size.

Both are separable: a matrix for the rows, one for the columns. Done in NumPy
and float64, once, while weights are loaded.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError

Kernel = Literal['bilinear', 'bicubic', 'bicubic-torch', 'corners']
Grid = tuple[int, int]
Table = Float[np.ndarray, 'N D'] | Float[Array, 'N D']
Resized = Float[np.ndarray, 'M D'] | Float[Array, 'M D']


def grid_of(length: int, prefix: int) -> Grid:
  """The square grid of a table of `length` rows, `prefix` of them not patches.

  Raises:
    UserError: not a square; which other grid it is cannot be told.
  """
  patches = length - prefix
  side = math.isqrt(max(patches, 0))
  if not patches > 0 or side**2 != patches:
    raise UserError(
      f'{length} positions without {prefix} for other tokens are {patches} '
      f'patches, which is no square: state the grid (rows, columns).'
    )
  return side, side


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(0, 1 - np.abs(x))


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
  """Keys' kernel of support 2; `a` is its slope at 1."""

  def kernel(x):
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))

  return kernel


def matrix(
  old: int, new: int, kernel: Kernel, antialias: bool
) -> Float[np.ndarray, 'new old']:
  """What resizes a signal of `old` samples to `new`, by pixel centres.

  'bilinear' and 'bicubic' (a = -0.5) are those of jax.image.resize: weights
  beyond the border are left out and the others scaled to a sum of 1.
  'bicubic-torch' is torch.nn.functional.interpolate(mode='bicubic',
  align_corners=False): a = -0.75, and beyond the border lies the last sample.
  With `antialias` PyTorch does as the others: a = -0.5, left out. 'corners' is
  bilinear from the centres of the corner samples to each other, never
  antialiased: scipy.ndimage.zoom(order=1), as Google's ViTs are resized.
  """
  repeat = kernel == 'bicubic-torch' and not antialias
  function = {
    'bilinear': _triangle,
    'corners': _triangle,
    'bicubic': _cubic(-0.5),
    'bicubic-torch': _cubic(-0.75 if repeat else -0.5),
  }[kernel]
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  if kernel == 'corners':
    centres, antialias = np.linspace(0, old - 1, new), False
  stretch = max(old / new, 1) if antialias else 1
  border = 2 if repeat else 0
  samples = np.arange(-border, old + border)
  weights = function((centres[:, None] - samples) / stretch)
  if repeat:
    first, middle, last = np.split(weights, [border, -border], axis=1)
    middle[:, 0] += first.sum(1)
    middle[:, -1] += last.sum(1)
    weights = middle
  return weights / weights.sum(1, keepdims=True)


def resize_positions(
  table: Table,
  old_grid: Grid,
  new_grid: Grid,
  prefix: int,
  kernel: Kernel = 'bilinear',
  antialias: bool = False,
) -> Resized:
  """A learned table of (prefix + gh * gw, D) for another grid of patches.

  timm resizes by ('bicubic-torch', antialias), which is ('bicubic',
  antialias); Hugging Face by 'bicubic-torch'; Google by 'corners'.

  Args:
    table: positions, those of the first `prefix` tokens stay as they are.
    old_grid: rows and columns of the table.
    new_grid: rows and columns of the result; if the same, so is the table.
    prefix: tokens before the patches that have positions.
    kernel: see `matrix`.
    antialias: a wider kernel when the new grid is smaller.

  Raises:
    UserError: the table has another length than its grid says.
  """
  if len(table) != prefix + math.prod(old_grid):
    raise UserError(
      f'{len(table)} positions are not {prefix} and a grid of '
      f'{old_grid[0]}x{old_grid[1]}.'
    )
  if tuple(old_grid) == tuple(new_grid):
    return table
  table = np.asarray(table)
  rows, columns = (
    matrix(old, new, kernel, antialias)
    for old, new in zip(old_grid, new_grid, strict=True)
  )
  patches = table[prefix:].reshape(*old_grid, -1).astype(np.float64)
  patches = np.einsum('ia,jb,abd->ijd', rows, columns, patches, optimize=True)
  patches = patches.reshape(-1, table.shape[1]).astype(table.dtype)
  return np.concatenate([table[:prefix], patches])


def resize_patches(
  kernel: Table,
  old: int,
  new: int,
  resize: Kernel = 'bicubic',
  antialias: bool = True,
) -> Resized:
  """A patch embedding's kernel for another patch size (FlexiViT).

  arXiv 2212.08013, section 3.4: by the pseudo-inverse of what resizes patches,
  so that the token of a patch made larger is the token of the patch.

  Args:
    kernel: (P * P * c, D), rows in the order (row, column, channel).
    old: P.
    new: side of the patches of the result; if the same, so is the kernel.
    resize: of the patches; the default is timm's, big_vision's is 'bilinear'
      without antialias.
    antialias: of the patches.

  Raises:
    UserError: the kernel is not of the size `old`.
  """
  if len(kernel) % old**2:
    raise UserError(f'a kernel of {len(kernel)} rows is not of {old}x{old}.')
  if old == new:
    return kernel
  kernel = np.asarray(kernel)
  inverse = np.linalg.pinv(matrix(old, new, resize, antialias))  # (P, Q)
  x = kernel.reshape(old, old, -1, kernel.shape[1]).astype(np.float64)
  x = np.einsum('ai,bj,abcd->ijcd', inverse, inverse, x, optimize=True)
  return x.reshape(-1, kernel.shape[1]).astype(kernel.dtype)
