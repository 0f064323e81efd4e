"""The MLP of a block (section 1.6 of the notes)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kind = Literal['gelu', 'swiglu']
# erf; its tanh approximation; x * sigmoid(1.702 x), as OpenAI's CLIP has it.
Gelu = Literal['exact', 'tanh', 'quick']


def gelu(x: jax.Array, flavour: Gelu) -> jax.Array:
  """The Gaussian error linear unit (arXiv 1606.08415), in three flavours."""
  if flavour == 'quick':
    return x * jax.nn.sigmoid(1.702 * x)
  return nn.gelu(x, approximate=flavour == 'tanh')


class Mlp(nn.Module):
  """D -> F -> D: two linear layers with a GELU between.

  'swiglu' has a third: down(silu(gate(x)) * up(x)) (arXiv 2002.05202).
  """

  hidden: int
  kind: Kind
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
    if self.kind == 'swiglu':
      y = nn.silu(dense(self.hidden, 'gate')(x)) * y
    else:
      # For the gradient it keeps its input, and nothing in float32.
      y = jax.checkpoint(gelu, prevent_cse=False, static_argnums=1)(
        y, self.gelu
      )
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    return dense(x.shape[-1], 'down')(y)
