"""The encoder: pre-norm blocks, stacked by a scan over the layers.

Section 1.1 of the notes: an encoder only, no decoder; unlike the original
Transformer each block normalises first and attends after (arXiv 2010.11929,
eq. 2 and 3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import mlp as mlps
from vit_jax.models.attention import Attention, LayerNorm
from vit_jax.models.kernels import Kind as Kernel
from vit_jax.models.positions import Rotation
from vit_jax.sharding import constrain

Remat = Literal['none', 'dots', 'full']

_POLICIES: dict[str, Callable[..., Any] | None] = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': None,  # save nothing but the residual stream
}


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


@dataclasses.dataclass(frozen=True)
class Layer:
  """What all blocks of an encoder are made of; see ViT for the meanings."""

  heads: int
  hidden: int
  mlp: mlps.Kind
  gelu: mlps.Gelu
  epsilon: float
  qkv_bias: bool
  qk_norm: bool
  layer_scale: float
  dropout: float
  drop_path: float
  dtype: jnp.dtype
  attention: Kernel
  mlp_kernel: mlps.Kernel


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Returns the tokens and those of ('tokens', 'attention') asked for in
  `capture`: what a scan stacks along a new first axis, layer by layer.
  """

  layer: Layer
  train: bool = False
  capture: tuple[str, ...] = ()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N D'],
    rate: Float[Array, ''],
    rotation: Rotation | None,
  ):
    of = self.layer

    def branch(y, name):
      if of.layer_scale:  # arXiv 2103.17239
        init = nn.initializers.constant(of.layer_scale)
        y *= self.param(name, init, y.shape[-1:]).astype(y.dtype)
      y = nn.Dropout(of.dropout, deterministic=not self.train)(y)
      return DropPath(self.train)(y, rate) if of.drop_path else y

    x = constrain(x)
    y = LayerNorm(of.epsilon, of.dtype, name='norm1')(x)
    y, weights = Attention(
      of.heads,
      of.qkv_bias,
      of.qk_norm,
      of.epsilon,
      of.dtype,
      of.attention,
      name='attention',
    )(y, rotation, 'attention' in self.capture)
    x = x + branch(y, 'scale1')
    y = LayerNorm(of.epsilon, of.dtype, name='norm2')(x)
    mlp = mlps.Mlp(
      of.hidden,
      of.mlp,
      of.gelu,
      of.dropout,
      self.train,
      of.dtype,
      of.mlp_kernel,
      name='mlp',
    )
    x = x + branch(mlp(y), 'scale2')
    outputs = {'tokens': x, 'attention': weights}
    return x, {name: outputs[name] for name in self.capture}


class Encoder(nn.Module):
  """`depth` blocks whose parameters live stacked, axis 0 the layer.

  Attributes:
    depth: L.
    layer: of each; `drop_path` is the last block's, and grows from 0.
    remat: what the backward pass recomputes: 'none'; 'dots', all but matrix
      products; 'full', everything within a block.
    unroll: layers per iteration of the loop; 0: all, and no loop.
  """

  depth: int
  layer: Layer
  remat: Remat
  unroll: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N D'],
    rotation: Rotation | None,
    *,
    train: bool,
    capture: tuple[str, ...],
  ):
    block, layer = Block, self.layer
    if self.remat == 'dots' and layer.mlp_kernel == 'auto':
      # A fused kernel would compute again the products that 'dots' keeps.
      layer = dataclasses.replace(layer, mlp_kernel='xla')
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
      in_axes=(0, nn.broadcast),
      length=self.depth,
      unroll=self.unroll or self.depth,
    )(layer, train, capture, name='blocks')
    rates = jnp.linspace(0, self.layer.drop_path, self.depth)
    return blocks(x, rates, rotation)
