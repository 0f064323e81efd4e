"""Position encodings (section 1.4 of the notes): added, or rotations."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError

Kind = Literal['learned', 'sincos1d', 'sincos2d', 'rope2d', 'none']
# Cosines and sines; (N, K), or (B, N, K) where images keep other patches.
Rotation = tuple[Float[Array, '*B N K'], Float[Array, '*B N K']]


def sincos1d(length: int, width: int) -> Float[np.ndarray, 'N D']:
  """The Transformer's table: sin at even places, cos at odd ones.

  PE(n, 2i) = sin(n / 10000^(2i/D)), PE(n, 2i + 1) = cos(the same); arXiv
  1706.03762, section 3.5. Row 0 is the CLS token's where there is one.
  """
  rates = 10_000.0 ** (-np.arange(0, width, 2) / width)
  angles = np.arange(length)[:, None] * rates
  table = np.zeros((length, width), np.float32)
  table[:, 0::2] = np.sin(angles)
  table[:, 1::2] = np.cos(angles[:, : width // 2])
  return table


def sincos2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, 'N D']:
  """A quarter each of sin(x), cos(x), sin(y), cos(y), on the patch grid.

  As in MoCo v3 (arXiv 2104.02057) and big_vision: rates 10000^-(i / (D/4 - 1)).

  Raises:
    UserError: the width is not a multiple of 4, or is 4.
  """
  if width % 4 or width < 8:
    raise UserError(
      f"config.model.positions = 'sincos2d' needs a width that is a multiple "
      f'of 4, at least 8, not {width}.'
    )
  y, x = np.mgrid[: grid[0], : grid[1]]
  rates = 10_000.0 ** (-np.arange(width // 4) / (width // 4 - 1))
  x, y = (np.outer(axis.ravel(), rates) for axis in (x, y))
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)
  return table.astype(np.float32)


def rope2d(
  grid: tuple[int, int], width: int, theta: float, prefix: int
) -> Rotation:
  """Axial rotary positions as in DINOv3 (arXiv 2508.10104, section 3.2).

  The first half of a head's K / 2 pairs turns with the row, the other with the
  column, by 2π · c · θ^(-4i/K), where c in (-1, 1) is the centre of the patch:
  so angles depend on the place in the picture, not on its resolution.

  Args:
    grid: patches down and across.
    width: K, a multiple of 4.
    theta: θ.
    prefix: tokens before the patches, which are not turned.
  """
  rates = theta ** -(np.arange(width // 4) * 4 / width)
  centres = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid]
  y, x = np.meshgrid(*centres, indexing='ij')
  angles = [2 * np.pi * np.outer(c.ravel(), rates) for c in (y, x)]
  half = np.pad(np.concatenate(angles, 1), ((prefix, 0), (0, 0)))
  both = np.concatenate([half, half], 1)
  return (
    jnp.asarray(np.cos(both), jnp.float32),
    jnp.asarray(np.sin(both), jnp.float32),
  )


def rotate(
  x: Float[Array, 'B N H K'], rotation: Rotation
) -> Float[Array, 'B N H K']:
  """Turns the pairs (x[i], x[i + K/2]) by the angles of each token."""
  cos, sin = (table[..., None, :] for table in rotation)
  low, high = jnp.split(x.astype(jnp.float32), 2, -1)
  turned = jnp.concatenate([-high, low], -1)
  return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


class Positions(nn.Module):
  """Adds a position encoding to tokens of which the first `prefix` are CLS etc.

  'learned': a table of shape (N + 1, D), CLS included, or (N, D) without CLS,
  drawn from a normal of 0.02. The notes (1.4.1) give (N, P²·C): the same
  number of columns only for B/16 on RGB, where D = P²·C = 768.
  'sincos2d' leaves the CLS token as it is; 'rope2d' adds nothing here.
  """

  kind: Kind
  grid: tuple[int, int]
  prefix: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    _, n, width = x.shape
    if self.kind in ('none', 'rope2d'):
      return x
    if self.kind == 'learned':
      init = nn.initializers.normal(0.02)
      table = self.param('table', init, (n, width))
    elif self.kind == 'sincos1d':
      table = sincos1d(n, width)
    else:
      table = np.pad(sincos2d(self.grid, width), ((self.prefix, 0), (0, 0)))
    return x + jnp.asarray(table, x.dtype)
