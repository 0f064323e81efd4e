"""The Vision Transformer (arXiv 2010.11929): patches, positions, encoder, head.

Read with `patches.py`, `positions.py`, `attention.py`, `encoder.py` and
`heads.py`; `docs/tour.md` walks through them in this order.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import UserError, check_choice
from vit_jax.models.encoder import Encoder, Gelu, LayerNorm, Remat
from vit_jax.models.heads import Head, Pool, pool_tokens
from vit_jax.models.patches import PatchEmbed, grid
from vit_jax.models.positions import Kind, Positions, sincos2d
from vit_jax.models.variants import Variant, parse

CAPTURES = ('tokens', 'attention', 'pooled', 'logits')


class ViT(nn.Module, kw_only=True):
  """Images (B, h, w, c) -> logits (B, Y), or pooled features if Y is 0.

  The attributes with defaults are the fields of `config.model`.

  Attributes:
    classes: Y; 0: no head.
    variant: size and patch, 'S/16'; see variants.py.
    width: D, depth: L, hidden: F, heads: H; 0: the variant's.
    pool: the head reads the CLS token ('cls'), or the mean of the patch tokens
      ('mean'; there is no CLS token then).
    positions: 'learned', 'sincos1d', 'sincos2d' or 'none'; see positions.py.
    representation: width of a tanh layer before the head; 0: none.
    head_bias: initial bias of the head.
    dropout: rate after attention, and within and after the MLP.
    drop_path: rate of stochastic depth in the last block.
    gelu: 'exact' (erf, as in PyTorch) or 'tanh' (as in Google's ViTs).
    epsilon: of the LayerNorms.
    dtype: of the computation; parameters, normalisation, softmax and loss are
      float32 in any case.
    remat, unroll: memory and speed, not the function; see encoder.py.
  """

  classes: int
  variant: str = 'S/16'
  width: int = 0
  depth: int = 0
  hidden: int = 0
  heads: int = 0
  pool: Pool = 'cls'
  positions: Kind = 'learned'
  representation: int = 0
  head_bias: float = 0.0
  dropout: float = 0.0
  drop_path: float = 0.0
  gelu: Gelu = 'exact'
  epsilon: float = 1e-6
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Remat = 'none'
  unroll: int = 1

  @property
  def shape(self) -> Variant:
    """Width, depth, MLP width and heads, the variant's unless overridden."""
    base, _ = parse(self.variant)
    return Variant(
      width=self.width or base.width,
      depth=self.depth or base.depth,
      hidden=self.hidden or (4 * self.width if self.width else base.hidden),
      heads=self.heads or base.heads,
    )

  @property
  def patch(self) -> int:
    """P, the side of a patch in pixels."""
    return parse(self.variant)[1]

  def check(self, size: tuple[int, int]):
    """Raises UserError unless the fields make a model for images (h, w)."""
    shape = self.shape
    for field in ('width', 'depth', 'hidden', 'heads', 'unroll'):
      if getattr(self, field) < 0:
        raise UserError(f'config.model.{field} = {getattr(self, field)} < 0.')
    for field in ('dropout', 'drop_path'):
      if not 0 <= getattr(self, field) < 1:
        value = getattr(self, field)
        raise UserError(f'config.model.{field} = {value}: a rate, 0 <= r < 1.')
    if shape.width % shape.heads:
      near = [h for h in range(1, shape.width + 1) if not shape.width % h]
      best = min(near, key=lambda h: abs(h - shape.heads))
      raise UserError(
        f'config.model.heads = {shape.heads} does not divide the width '
        f'{shape.width}; {best} does.'
      )
    patches = grid(size, self.patch)
    if self.positions == 'sincos2d':
      sincos2d(patches, shape.width)

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B h w c'],
    *,
    train: bool = False,
    capture: tuple[str, ...] = (),
  ):
    """Logits; with `capture`, also a dict of what it names.

    Args:
      images: (B, h, w, c), in the value range of the data's ops.
      train: dropout and stochastic depth, which need rngs={'dropout': key}.
      capture: any of 'tokens' (L, B, N, D) after each block, 'attention'
        (L, B, H, N, N), 'pooled' (B, D), 'logits' (B, Y).
    """
    for name in capture:
      check_choice('capture', name, CAPTURES)
    shape, dtype = self.shape, jnp.dtype(self.dtype)
    b, h, w, _ = images.shape
    x = PatchEmbed(shape.width, self.patch, dtype, name='embed')(images)
    if self.pool == 'cls':
      cls = self.param('cls', nn.initializers.zeros, (1, shape.width))
      cls = jnp.broadcast_to(cls.astype(dtype), (b, 1, shape.width))
      x = jnp.concatenate([cls, x], axis=1)
    patches = grid((h, w), self.patch)
    x = Positions(
      self.positions, patches, self.pool == 'cls', name='positions'
    )(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x, outputs = Encoder(
      depth=shape.depth,
      heads=shape.heads,
      hidden=shape.hidden,
      gelu=self.gelu,
      epsilon=self.epsilon,
      dropout=self.dropout,
      drop_path=self.drop_path,
      dtype=dtype,
      remat=self.remat,
      unroll=self.unroll,
      name='encoder',
    )(
      x,
      train=train,
      capture=tuple(n for n in capture if n in ('tokens', 'attention')),
    )
    x = LayerNorm(self.epsilon, dtype, name='norm')(x)
    x = pool_tokens(x, self.pool)
    outputs['pooled'] = x
    if self.representation:
      x = nn.Dense(self.representation, dtype=dtype, name='representation')(x)
      x = jnp.tanh(x)
    if self.classes:
      x = Head(self.classes, self.head_bias, name='head')(x)
    outputs['logits'] = x
    if not capture:
      return x
    return x, {name: outputs[name] for name in capture}
