"""Attention of short sequences: a Pallas kernel for TPUs.

All tokens of a head are on the chip at once, so that nothing of size (N, N) is
written to memory, and the gradient needs only queries, keys and values: it
computes the weights again. Where splash wants heads first and lengths that are
multiples of 128, rows are taken as the projections make them, (N, D).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

# Columns that a TPU's matrix unit takes at once. Narrower heads are taken side
# by side, and zeros hide the others: their lanes would be idle otherwise.
_LANES = 128
_BLOCK = 2**19  # bytes of an operand on the chip at once, if an image is less


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
  """The product of two matrices over a dimension of each, in float32."""
  numbers = (((over[0],), (over[1],)), ((), ()))
  return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _softmax(logits: Array) -> Array:
  raised = jnp.exp(logits - logits.max(-1, keepdims=True))
  return raised / raised.sum(-1, keepdims=True)


def _heads(refs: tuple, image: Array, width: int):
  """Calls for each group of heads: where it is, its lanes' owners, operands."""
  depth = refs[0].shape[-1]
  lanes = max(width, _LANES)
  owner = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // width
  for start in range(0, depth, lanes):
    where = (image, slice(None), pl.ds(start, lanes))
    own = [owner == head for head in range(lanes // width)]
    yield where, own, [ref[where] for ref in refs]


def _forward(q_ref, k_ref, v_ref, y_ref, *, width: int):
  """y = softmax(q kᵀ) v for the images of a block."""

  def one(image, _):
    refs = (q_ref, k_ref, v_ref)
    for where, own, (q, k, v) in _heads(refs, image, width):
      y = jnp.zeros(v.shape, jnp.float32)
      for mine in own:
        weights = _softmax(_dot(jnp.where(mine, q, 0), k, (1, 1)))
        y = jnp.where(mine, _dot(weights.astype(v.dtype), v, (1, 0)), y)
      y_ref[where] = y.astype(y_ref.dtype)
    return 0

  jax.lax.fori_loop(0, q_ref.shape[0], one, 0)


def _backward(
  q_ref, k_ref, v_ref, dy_ref, dq_ref, dk_ref, dv_ref, *, width: int
):
  """The gradients of `_forward`, by queries, keys and values."""

  def one(image, _):
    refs = (q_ref, k_ref, v_ref, dy_ref)
    for where, own, (q, k, v, dy) in _heads(refs, image, width):
      dq = dk = dv = jnp.zeros(v.shape, jnp.float32)
      for mine in own:
        query, pull = jnp.where(mine, q, 0), jnp.where(mine, dy, 0)
        weights = _softmax(_dot(query, k, (1, 1)))
        dv += _dot(weights.astype(v.dtype), pull, (0, 0))
        pull = weights * _dot(pull, v, (1, 1))
        dlogits = pull - weights * pull.sum(-1, keepdims=True)
        dlogits = dlogits.astype(q.dtype)
        dq = jnp.where(mine, _dot(dlogits, k, (1, 0)), dq)
        dk += _dot(dlogits, query, (0, 0))
      for ref, gradient in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv)):
        ref[where] = gradient.astype(ref.dtype)
    return 0

  jax.lax.fori_loop(0, q_ref.shape[0], one, 0)


def _call(kernel, products: int, outputs: int, width: int, interpret: bool):
  """A kernel over blocks of images; arrays are (B, N, D)."""

  def call(*arrays: Array):
    b, n, d = arrays[0].shape
    size = arrays[0].dtype.itemsize
    images = math.gcd(b, 2 ** int(math.log2(max(1, _BLOCK // (n * d * size)))))
    block = pl.BlockSpec((images, n, d), lambda i: (i, 0, 0))
    cost = pl.CostEstimate(
      flops=2 * products * b * n * n * d,
      transcendentals=b * n * n * d // width,
      bytes_accessed=(len(arrays) + outputs) * b * n * d * size,
    )
    return pl.pallas_call(
      functools.partial(kernel, width=width),
      grid=(b // images,),
      in_specs=[block] * len(arrays),
      out_specs=[block] * outputs,
      out_shape=[jax.ShapeDtypeStruct((b, n, d), arrays[0].dtype)] * outputs,
      cost_estimate=cost,
      interpret=interpret,
      name=f'short_attention{kernel.__name__}',
    )(*arrays)

  return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(
  query: Float[Array, 'B N D'],
  key: Float[Array, 'B N D'],
  value: Float[Array, 'B N D'],
  width: int,
  interpret: bool,
) -> Float[Array, 'B N D']:
  """softmax(QKᵀ) V of heads side by side, `width` columns each; no 1 / √K.

  Args:
    query: queries, key: keys, value: values.
    width: of a head.
    interpret: runs the kernel step by step, on any platform.
  """
  return _call(_forward, 2, 1, width, interpret)(query, key, value)[0]


def _keep(query, key, value, width, interpret):
  return attend(query, key, value, width, interpret), (query, key, value)


def _pull(width, interpret, kept, dy):
  return tuple(_call(_backward, 5, 3, width, interpret)(*kept, dy))


attend.defvjp(_keep, _pull)
