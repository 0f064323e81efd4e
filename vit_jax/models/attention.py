"""Multi-head self-attention (sections 1.1 and 1.5 of the notes)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import sharding
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
  # Heads first: to (B, N, H, K) einsum would multiply the other way around, and
  # lay out the weights anew, which are the largest array (2x slower on CPUs).
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  logits = jnp.einsum(
    'BHNK,BHMK->BHNM',
    query * scale,
    key,
    preferred_element_type=jnp.float32,
  )
  weights = jax.nn.softmax(logits).astype(query.dtype)
  y = jnp.einsum('BHNM,BHMK->BHNK', weights, value)
  return y.swapaxes(1, 2), weights


@jax.custom_vjp
def attend(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B M H K'],
  value: Float[Array, 'B M H K'],
) -> Float[Array, 'B N H K']:
  """`dot_product_attention` without the weights, and with a leaner gradient.

  JAX's keeps the weights in float32 beside those in the type of the inputs,
  which are enough; and what a softmax subtracts, the sum of weights times their
  gradients, is that of outputs times theirs (arXiv 2205.14135, appendix B.4).
  """
  return dot_product_attention(query, key, value)[0]


def _attend(query, key, value):
  y, weights = dot_product_attention(query, key, value)
  return y, (query, key, value, y, weights)


def _attend_backward(kept, dy):
  query, key, value, y, weights = kept
  scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  dvalue = jnp.einsum('BHNM,BNHK->BMHK', weights, dy)
  dweights = jnp.einsum(
    'BNHK,BMHK->BHNM', dy, value, preferred_element_type=jnp.float32
  )
  mean = jnp.einsum('BNHK,BNHK->BHN', y, dy, preferred_element_type=jnp.float32)
  dlogits = weights * (dweights - mean[..., None])
  dlogits = dlogits.astype(query.dtype)
  dquery = jnp.einsum('BHNM,BMHK->BNHK', dlogits, key) * scale
  dkey = jnp.einsum('BHNM,BNHK->BMHK', dlogits, query * scale)
  return dquery, dkey, dvalue


attend.defvjp(_attend, _attend_backward)


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

    shape = (self.heads, width // self.heads)
    layers = [
      Linear((width,), shape, self.qkv_bias, self.dtype, name=name)
      for name in ('query', 'key', 'value')
    ]
    query, key, value = (
      y.reshape(*x.shape[:2], *shape) for y in side_by_side(layers, x)
    )
    if self.qk_norm:
      query = LayerNorm(self.epsilon, self.dtype, 'query_norm')(query)
      key = LayerNorm(self.epsilon, self.dtype, 'key_norm')(key)
    if rotation is not None:
      query, key = rotate(query, rotation), rotate(key, rotation)
    weights = None
    if show_weights:
      y, weights = dot_product_attention(query, key, value)
    elif (kernel := kernels.pick(self.kernel, query)) == 'xla':
      y = attend(query, key, value)
    else:
      y = kernels.KERNELS[kernel](query, key, value)
    out = Linear(shape, (width,), True, self.dtype, name='out')
    return out(y.reshape(*x.shape[:2], -1)), weights


class Linear(nn.Module):
  """(..., I) -> (..., O), by a kernel that is kept as (*inputs, *outputs).

  As nn.DenseGeneral for heads, but the product has all of their columns side by
  side: of 64 at a time accelerators make arrays that are copied, to be laid out
  otherwise.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  use_bias: bool
  dtype: jnp.dtype
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  def setup(self):
    flat = math.prod(self.inputs), math.prod(self.outputs)

    def init(key, shape):
      return nn.initializers.xavier_uniform()(key, flat).reshape(shape)

    self.kernel = self.param('kernel', init, (*self.inputs, *self.outputs))
    if self.use_bias:
      self.bias = self.param('bias', self.bias_init, self.outputs)

  def matrix(self) -> tuple[Float[Array, 'I O'], Float[Array, 'O'] | None]:
    """Kernel and bias to compute with."""
    kernel = jnp.asarray(self.kernel, self.dtype)
    kernel = kernel.reshape(math.prod(self.inputs), -1)
    if not self.use_bias:
      return kernel, None
    return kernel, jnp.asarray(self.bias, self.dtype).reshape(-1)

  def __call__(self, x: Float[Array, '*b I']) -> Float[Array, '*b O']:
    kernel, bias = self.matrix()
    y = x.astype(self.dtype) @ kernel
    return y if bias is None else y + bias


def side_by_side(
  layers: list[Linear], x: Float[Array, 'B N I']
) -> list[Float[Array, 'B N O']]:
  """What each of some layers makes of x, as one product.

  Each by itself where a mesh divides their columns.
  """
  if sharding.ways('tensor') > 1:
    return [layer(x) for layer in layers]
  kernels, biases = zip(*(layer.matrix() for layer in layers), strict=True)
  y = x.astype(layers[0].dtype) @ jnp.concatenate(kernels, 1)
  if biases[0] is not None:
    y += jnp.concatenate(biases)
  return jnp.split(y, len(layers), -1)


def LayerNorm(epsilon: float, dtype: jnp.dtype, name: str) -> nn.Module:
  """Statistics in float32 by one pass (two cost 45 % of a step on CPU).

  For the gradient it keeps its input as it is, not what it is in float32.
  """
  return nn.remat(nn.LayerNorm, prevent_cse=False)(
    epsilon=epsilon, dtype=dtype, use_fast_variance=True, name=name
  )
