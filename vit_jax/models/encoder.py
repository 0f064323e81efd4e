"""The encoder: pre-norm blocks, stacked by a scan over the layers.

Section 1.1 of the notes: an encoder only, no decoder; unlike the original
Transformer each block normalises first and attends after (arXiv 2010.11929,
eq. 2 and 3).
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.attention import Attention
from vit_jax.sharding import constrain

Gelu = Literal['exact', 'tanh']
Remat = Literal['none', 'dots', 'full']

_POLICIES: dict[str, Callable[..., Any] | None] = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': None,  # save nothing but the residual stream
}


class Mlp(nn.Module):
  """Two linear layers with a GELU between: D -> F -> D (section 1.6)."""

  hidden: int
  gelu: Gelu
  dropout: float
  train: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    def dense(width, name):
      return nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(1e-6),
        name=name,
      )

    y = dense(self.hidden, 'up')(x)
    y = nn.gelu(y, approximate=self.gelu == 'tanh')
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    return dense(x.shape[-1], 'down')(y)


class DropPath(nn.Module):
  """Stochastic depth: drops a branch for a whole example (arXiv 1603.09382)."""

  train: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N D'], rate: Float[Array, '']
  ) -> Float[Array, 'B N D']:
    if not self.train:
      return x
    keep = 1 - rate
    shape = (x.shape[0], 1, 1)
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    return x * (mask / keep).astype(x.dtype)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Returns the tokens and those of ('tokens', 'attention') asked for in
  `capture`: what a scan stacks along a new first axis, layer by layer.
  """

  heads: int
  hidden: int
  gelu: Gelu
  epsilon: float
  dropout: float
  drop_path: bool
  train: bool
  capture: tuple[str, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D'], rate: Float[Array, '']):
    def branch(y):
      y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
      return DropPath(self.train)(y, rate) if self.drop_path else y

    x = constrain(x)
    y = LayerNorm(self.epsilon, self.dtype, name='norm1')(x)
    y, weights = Attention(self.heads, self.dtype, name='attention')(y)
    x = x + branch(y)
    y = LayerNorm(self.epsilon, self.dtype, name='norm2')(x)
    x = x + branch(
      Mlp(
        self.hidden,
        self.gelu,
        self.dropout,
        self.train,
        self.dtype,
        name='mlp',
      )(y)
    )
    outputs = {'tokens': x, 'attention': weights}
    return x, {name: outputs[name] for name in self.capture}


def LayerNorm(epsilon: float, dtype: jnp.dtype, name: str) -> nn.Module:
  """Statistics in float32 by one pass (two cost 45 % of a step on CPU)."""
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=True, name=name
  )


class Encoder(nn.Module):
  """`depth` blocks whose parameters live stacked, axis 0 the layer.

  Attributes:
    depth: L.
    drop_path: rate of the last block; it grows linearly from 0 at the first.
    remat: what the backward pass recomputes: 'none'; 'dots', all but matrix
      products; 'full', everything within a block.
    unroll: layers per iteration of the loop; 0: all, and no loop.
  """

  depth: int
  heads: int
  hidden: int
  gelu: Gelu
  epsilon: float
  dropout: float
  drop_path: float
  dtype: jnp.dtype
  remat: Remat
  unroll: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N D'],
    *,
    train: bool,
    capture: tuple[str, ...],
  ):
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block,
        policy=_POLICIES[self.remat],
        # Between loops nothing is merged; without one XLA would undo it.
        prevent_cse=not 0 < self.unroll < self.depth,
      )
    blocks = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
      unroll=self.unroll or self.depth,
    )(
      heads=self.heads,
      hidden=self.hidden,
      gelu=self.gelu,
      epsilon=self.epsilon,
      dropout=self.dropout,
      drop_path=self.drop_path > 0,
      train=train,
      capture=capture,
      dtype=self.dtype,
      name='blocks',
    )
    return blocks(x, jnp.linspace(0, self.drop_path, self.depth))
