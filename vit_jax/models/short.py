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


def dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
  """The product of two matrices over a dimension of each, in float32."""
  numbers = (((over[0],), (over[1],)), ((), ()))
  return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _softmax(logits: Array) -> Array:
  raised = jnp.exp(logits - logits.max(-1, keepdims=True))
  return raised / raised.sum(-1, keepdims=True)


def _heads(shape: tuple[int, ...], image: Array, width: int):
  """For each group of heads: its lanes' owners; where it is in q, k, v."""
  depth = shape[-1] // 3
  lanes = max(width, _LANES)
  owner = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // width
  own = [owner == head for head in range(lanes // width)]
  for start in range(0, depth, lanes):
    yield (
      own,
      [
        (image, slice(None), pl.ds(part * depth + start, lanes))
        for part in range(3)
      ],
    )


def _logits(query: Array, key: Array, width: int) -> Array:
  return dot(query, key, (1, 1)) * width**-0.5


def _forward(qkv_ref, y_ref, *, width: int):
  """y = softmax(q kᵀ / √K) v for the images of a block."""

  def one(image, _):
    for own, places in _heads(qkv_ref.shape, image, width):
      q, k, v = (qkv_ref[place] for place in places)
      y = jnp.zeros(v.shape, jnp.float32)
      for mine in own:
        weights = _softmax(_logits(jnp.where(mine, q, 0), k, width))
        y = jnp.where(mine, dot(weights.astype(v.dtype), v, (1, 0)), y)
      y_ref[places[0]] = y.astype(y_ref.dtype)
    return 0

  jax.lax.fori_loop(0, qkv_ref.shape[0], one, 0)


def _backward(qkv_ref, dy_ref, gradient_ref, *, width: int):
  """The gradients of `_forward`, by queries, keys and values."""

  def one(image, _):
    for own, places in _heads(qkv_ref.shape, image, width):
      q, k, v = (qkv_ref[place] for place in places)
      dy = dy_ref[places[0]]
      dq = dk = dv = jnp.zeros(v.shape, jnp.float32)
      for mine in own:
        query, pull = jnp.where(mine, q, 0), jnp.where(mine, dy, 0)
        weights = _softmax(_logits(query, k, width))
        dv += dot(weights.astype(v.dtype), pull, (0, 0))
        pull = weights * dot(pull, v, (1, 1))
        dlogits = pull - weights * pull.sum(-1, keepdims=True)
        dlogits = (dlogits * width**-0.5).astype(q.dtype)
        dq = jnp.where(mine, dot(dlogits, k, (1, 0)), dq)
        dk += dot(dlogits, query, (0, 0))
      for place, gradient in zip(places, (dq, dk, dv), strict=True):
        gradient_ref[place] = gradient.astype(gradient_ref.dtype)
    return 0

  jax.lax.fori_loop(0, qkv_ref.shape[0], one, 0)


def _call(kernel, products: int, columns: int, width: int, interpret: bool):
  """A kernel over blocks of images; its result has `columns` times D."""

  def call(qkv: Array, *more: Array) -> Array:
    b, n, d = *qkv.shape[:2], qkv.shape[2] // 3
    size = n * d * qkv.dtype.itemsize
    images = math.gcd(b, 2 ** int(math.log2(max(1, _BLOCK // size))))

    def block(times: int) -> pl.BlockSpec:
      return pl.BlockSpec((images, n, times * d), lambda i: (i, 0, 0))

    cost = pl.CostEstimate(
      flops=2 * products * b * n * n * d,
      transcendentals=b * n * n * d // width,
      bytes_accessed=(3 + len(more) + columns) * b * size,
    )
    return pl.pallas_call(
      functools.partial(kernel, width=width),
      grid=(b // images,),
      in_specs=[block(3), *[block(1)] * len(more)],
      out_specs=block(columns),
      out_shape=jax.ShapeDtypeStruct((b, n, columns * d), qkv.dtype),
      cost_estimate=cost,
      interpret=interpret,
      name=f'short_attention{kernel.__name__}',
    )(qkv, *more)

  return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(
  qkv: Float[Array, 'B N QKV'], width: int, interpret: bool
) -> Float[Array, 'B N D']:
  """softmax(QKᵀ / √K) V of heads side by side.

  Args:
    qkv: queries, keys and values of all heads, D columns each.
    width: K, of a head.
    interpret: runs the kernel step by step, on any platform.
  """
  return _call(_forward, 2, 1, width, interpret)(qkv)


def _keep(qkv, width, interpret):
  return attend(qkv, width, interpret), qkv


def _pull(width, interpret, qkv, dy):
  return (_call(_backward, 5, 3, width, interpret)(qkv, dy),)


attend.defvjp(_keep, _pull)
