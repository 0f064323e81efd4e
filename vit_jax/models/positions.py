"""Position encodings, added to the tokens (section 1.4 of the notes)."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError

Kind = Literal['learned', 'sincos1d', 'sincos2d', 'none']


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


class Positions(nn.Module):
  """Adds a position encoding to CLS (where there is one) and patch tokens.

  'learned': a table of shape (N + 1, D), CLS included, or (N, D) without CLS,
  drawn from a normal of 0.02. The notes (1.4.1) give (N, P²·C): the same
  number of columns only for B/16 on RGB, where D = P²·C = 768.
  'sincos2d' leaves the CLS token as it is.
  """

  kind: Kind
  grid: tuple[int, int]
  cls: bool

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    _, n, width = x.shape
    if self.kind == 'none':
      return x
    if self.kind == 'learned':
      init = nn.initializers.normal(0.02)
      table = self.param('table', init, (n, width))
    elif self.kind == 'sincos1d':
      table = sincos1d(n, width)
    else:
      table = np.pad(sincos2d(self.grid, width), ((int(self.cls), 0), (0, 0)))
    return x + jnp.asarray(table, x.dtype)
