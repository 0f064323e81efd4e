"""Multi-head self-attention (sections 1.1 and 1.5 of the notes)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models import kernels
from vit_jax.models.positions import Rotation, rotate


def _forward(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B M H K'],
  value: Float[Array, 'B M H K'],
) -> tuple[Float[Array, 'B N H K'], Float[Array, 'B H N M']]:
  scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  logits = jnp.einsum(
    'BNHK,BMHK->BHNM',
    query * scale,
    key,
    preferred_element_type=jnp.float32,
  )
  weights = jax.nn.softmax(logits).astype(query.dtype)
  return jnp.einsum('BHNM,BMHK->BNHK', weights, value), weights


@jax.custom_vjp
def dot_product_attention(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B M H K'],
  value: Float[Array, 'B M H K'],
) -> tuple[Float[Array, 'B N H K'], Float[Array, 'B H N M']]:
  """softmax(QKᵀ / √K) V with K = D / H, and the attention weights.

  arXiv 1706.03762, eq. 1. The softmax is in float32, whatever the inputs are.
  Its gradient is written out because JAX's keeps the weights in float32 beside
  those in the type of the inputs, which are enough.
  """
  return _forward(query, key, value)


def _attention_forward(query, key, value):
  y, weights = _forward(query, key, value)
  return (y, weights), (query, key, value, weights)


def _attention_backward(kept, gradients):
  query, key, value, weights = kept
  dy, dweights = gradients
  dtype, wide = query.dtype, jnp.float32
  scale = jnp.asarray(query.shape[-1] ** -0.5, dtype)
  dvalue = jnp.einsum('BHNM,BNHK->BMHK', weights, dy)
  dweights = dweights + jnp.einsum(
    'BNHK,BMHK->BHNM', dy, value, preferred_element_type=wide
  )
  # Of the softmax: rows of diag(w) - w wᵀ.
  pull = weights * dweights
  dlogits = pull - weights * pull.sum(-1, keepdims=True)
  dlogits = dlogits.astype(dtype)
  dquery = jnp.einsum('BHNM,BMHK->BNHK', dlogits, key) * scale
  dkey = jnp.einsum('BHNM,BNHK->BMHK', dlogits, query * scale)
  return dquery, dkey, dvalue


dot_product_attention.defvjp(_attention_forward, _attention_backward)


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
  """Statistics in float32 by one pass (two cost 45 % of a step on CPU).

  For the gradient it keeps its input as it is, not what it is in float32.
  """
  return nn.remat(nn.LayerNorm, prevent_cse=False)(
    epsilon=epsilon, dtype=dtype, use_fast_variance=True, name=name
  )
