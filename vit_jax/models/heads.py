"""From tokens to one vector, and from that to logits."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

Pool = Literal['cls', 'mean']


def pool_tokens(x: Float[Array, 'B N D'], pool: Pool) -> Float[Array, 'B D']:
  """The CLS token (the first), or the mean of the patch tokens."""
  return x[:, 0] if pool == 'cls' else jnp.mean(x, axis=1)


class Head(nn.Module):
  """A linear classifier, zero at first, so that all classes are equally likely.

  Computed in float32. `bias`: the initial bias; about -log(classes) suits the
  sigmoid loss.
  """

  classes: int
  bias: float

  @nn.compact
  def __call__(self, x: Float[Array, 'B D']) -> Float[Array, 'B Y']:
    return nn.Dense(
      self.classes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.bias),
      name='linear',
    )(x)
