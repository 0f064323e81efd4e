"""Multi-head self-attention (sections 1.1 and 1.5 of the notes)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import kernels
from vit_jax.models.positions import Rotation, rotate


def dot_product_attention(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B M H K'],
  value: Float[Array, 'B M H K'],
) -> tuple[Float[Array, 'B N H K'], Float[Array, 'B H N M']]:
  """softmax(QKᵀ / √K) V with K = D / H, and the attention weights.

  arXiv 1706.03762, eq. 1. The softmax is in float32, whatever the inputs are.
  """
  scale = query.shape[-1] ** -0.5
  logits = jnp.einsum(
    'BNHK,BMHK->BHNM',
    query * jnp.asarray(scale, query.dtype),
    key,
    preferred_element_type=jnp.float32,
  )
  weights = jax.nn.softmax(logits).astype(query.dtype)
  return jnp.einsum('BHNM,BMHK->BNHK', weights, value), weights


class Attention(nn.Module):
  """Projections to queries, keys and values of D / H each, and back to D.

  Returns the tokens and, if asked for, the attention weights (B, H, N, N): then
  attention is XLA's, because fused kernels do not tell them.

  Attributes:
    heads: H.
    qkv_bias: whether queries, keys and values have biases.
    qk_norm: a LayerNorm of each head's queries and keys, which keeps the
      logits of large models bounded (arXiv 2302.05442, section 2).
    epsilon: of those LayerNorms.
    kernel: see kernels.py.
  """

  heads: int
  qkv_bias: bool
  qk_norm: bool
  epsilon: float
  dtype: jnp.dtype
  kernel: kernels.Kind

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B N D'],
    rotation: Rotation | None,
    show_weights: bool,
  ) -> tuple[Float[Array, 'B N D'], Float[Array, 'B H N N'] | None]:
    width = x.shape[-1]

    def project(name):
      return nn.DenseGeneral(
        (self.heads, width // self.heads),
        use_bias=self.qkv_bias,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        name=name,
      )(x)

    query, key, value = map(project, ('query', 'key', 'value'))
    if self.qk_norm:
      query = LayerNorm(self.epsilon, self.dtype, 'query_norm')(query)
      key = LayerNorm(self.epsilon, self.dtype, 'key_norm')(key)
    if rotation is not None:
      query, key = rotate(query, rotation), rotate(key, rotation)
    kernel = 'xla' if show_weights else kernels.pick(self.kernel, query)
    if kernel == 'xla':
      y, weights = dot_product_attention(query, key, value)
    else:
      y, weights = kernels.KERNELS[kernel](query, key, value), None
    out = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      name='out',
    )
    return out(y), weights


def LayerNorm(epsilon: float, dtype: jnp.dtype, name: str) -> nn.Module:
  """Statistics in float32 by one pass (two cost 45 % of a step on CPU)."""
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=True, name=name
  )
