"""From tokens to one vector, and from that to logits."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.attention import LayerNorm, dot_product_attention
from vit_jax.models.mlp import Gelu, Mlp

Pool = Literal['cls', 'mean', 'cls_mean', 'map', 'none']


def is_head(path: str) -> bool:
  """Whether a parameter is of a classifier or a decoder, which a task makes."""
  return path.split('/')[0] in ('head', 'distill_head', 'decoder')


class AttentionPool(nn.Module):
  """One learned query attends to all tokens, then an MLP (MAP).

  arXiv 1810.00825, as in arXiv 2106.04560, section 3.3: x = attention(probe,
  tokens), then x + mlp(norm(x)).
  """

  heads: int
  hidden: int
  gelu: Gelu
  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B D']:
    b, _, width = x.shape
    init = nn.initializers.xavier_uniform()
    probe = self.param('probe', init, (1, width))
    probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, width))

    def project(name, y):
      features = (self.heads, width // self.heads)
      return nn.DenseGeneral(
        features, dtype=self.dtype, kernel_init=init, name=name
      )(y)

    y, _ = dot_product_attention(
      project('query', probe), project('key', x), project('value', x)
    )
    y = nn.DenseGeneral(
      width, axis=(-2, -1), dtype=self.dtype, kernel_init=init, name='out'
    )(y)
    z = LayerNorm(self.epsilon, self.dtype, 'norm')(y)
    mlp = Mlp(
      self.hidden, 'gelu', self.gelu, 0.0, False, self.dtype, name='mlp'
    )
    return (y + mlp(z))[:, 0]


class Head(nn.Module):
  """A linear classifier, zero at first, so that all classes are equally likely.

  Computed in float32. `bias`: the initial bias; about -log(classes) suits the
  sigmoid loss.
  """

  classes: int
  bias: float

  @nn.compact
  def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... Y']:
    return nn.Dense(
      self.classes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.bias),
      name='linear',
    )(x)
