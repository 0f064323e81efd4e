"""The baseline: a ViT as flax's documentation would have one write it.

`nn.MultiHeadDotProductAttention`, `nn.LayerNorm`, `nn.Dense`, a Python loop
over the blocks, defaults throughout. `params_of` carries our parameters over.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit_jax.models.variants import parse


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  heads: int
  hidden: int
  approximate: bool

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(self.heads)(y)
    y = nn.LayerNorm()(x)
    y = nn.gelu(nn.Dense(self.hidden)(y), approximate=self.approximate)
    return x + nn.Dense(x.shape[-1])(y)


class Textbook(nn.Module):
  """Images -> logits, in float32, from the CLS token."""

  variant: str
  classes: int
  depth: int = 0  # 0: the variant's
  approximate: bool = True  # GELU by tanh, flax's default

  @nn.compact
  def __call__(self, images: Float[Array, 'B h w c']) -> Float[Array, 'B Y']:
    shape, patch, _ = parse(self.variant)
    x = nn.Conv(shape.width, (patch, patch), (patch, patch))(images)
    x = x.reshape(x.shape[0], -1, shape.width)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, shape.width))
    x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
    init = nn.initializers.normal(0.02)
    x = x + self.param('positions', init, (1, *x.shape[1:]))
    for _ in range(self.depth or shape.depth):
      x = Block(shape.heads, shape.hidden, self.approximate)(x)
    return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


def params_of(params: Any, depth: int, patch: int) -> dict[str, Any]:
  """Our parameters (cls, learned positions) under the textbook's names."""
  stacked = params['encoder']['blocks']

  def block(i: int) -> dict[str, Any]:
    own = jax.tree.map(lambda leaf: leaf[i], stacked)
    names = ('query', 'key', 'value', 'out')
    return {
      'LayerNorm_0': own['norm1'],
      'MultiHeadDotProductAttention_0': {n: own['attention'][n] for n in names},
      'LayerNorm_1': own['norm2'],
      'Dense_0': own['mlp']['up'],
      'Dense_1': own['mlp']['down'],
    }

  kernel = params['embed']['linear']['kernel']
  return {
    'Conv_0': {
      'kernel': kernel.reshape(patch, patch, -1, kernel.shape[-1]),
      'bias': params['embed']['linear']['bias'],
    },
    'cls': params['cls'][None],
    'positions': params['positions']['table'][None],
    **{f'Block_{i}': block(i) for i in range(depth)},
    'LayerNorm_0': params['norm'],
    'Dense_0': params['head']['linear'],
  }


class Renamed:
  """A model that is given the parameters of another one.

  Attributes:
    net: the model.
    own: from what it is given to its own parameters.
  """

  def __init__(self, net: nn.Module, own: Callable[[Any], Any]):
    self.net, self.own = net, own

  def apply(self, variables: Any, images: jax.Array) -> jax.Array:
    params = self.own(variables['params'])
    return self.net.apply({'params': params}, images)


def make_loss(model: nn.Module | Renamed) -> Callable[..., jax.Array]:
  """(params, images, labels) -> the mean cross-entropy."""

  def loss(params, images, labels):
    logits = model.apply({'params': params}, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()

  return loss


def make_step(
  model: nn.Module | Renamed, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
  """(params, optimizer's state, images, labels) -> (those two, loss)."""

  def step(params, state, images, labels):
    gradient = jax.value_and_grad(make_loss(model))
    value, grads = gradient(params, images, labels)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  return step
