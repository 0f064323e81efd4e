"""The MLP of a block as one Pallas kernel, for TPUs.

XLA moves arrays (N, F) between the two products and their gradients seven times
a step. Here they stay on the chip but for one: what GELU takes is written for
the gradient, and read once. No product is computed twice, but under remat.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.models.mlp import Gelu, gelu
from vit_jax.models.short import dot

_BLOCK = 2**20  # bytes of an operand on the chip at once, if an image is less
_ROOM = 128 * 2**20  # of a v5e or v6e, for kernels and what XLA keeps there


def _padded(tokens: int, *columns: int) -> tuple[int, ...]:
  """Sides of an array in bfloat16 as they lie on the chip."""
  return -(-tokens // 16) * 16, *(-(-c // 128) * 128 for c in columns)


def _images(batch: int, tokens: int, width: int) -> int:
  """Of a block: a power of two that divides the batch."""
  size = 2 * math.prod(_padded(tokens, width))
  return math.gcd(batch, 2 ** int(math.log2(max(1, _BLOCK // size))))


def _memory(tokens: int, width: int, hidden: int, batch: int) -> int:
  """Bytes on the chip that the kernels want at most, for N, D, F and B.

  Both matrices and their gradients, these in float32 too; input, gradient,
  output and what GELU takes, twice, as the next block comes while this one is
  worked on; and four arrays (N, F) of an image.
  """
  images = _images(batch, tokens, width)
  tokens, width, hidden = _padded(tokens, width, hidden)
  matrices = 2 * width * hidden * (2 + 2 + 4)
  rows = 2 * images * tokens * (3 * width + hidden)
  return matrices + 2 * rows + 4 * 4 * tokens * hidden


def share(tokens: int, width: int, hidden: int) -> float:
  """Of what kernels and XLA have on a chip, for N, D and F, of any batch."""
  return _memory(tokens, width, hidden, 2**20) / _ROOM


def _act(x: Array, flavour: Gelu) -> Array:
  """GELU, by erf where it is exact: Pallas has no erfc for TPUs.

  That costs digits of float32 where the result is next to 0.
  """
  if flavour == 'exact':
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))
  return gelu(x, flavour)


def _forward(
  x_ref, up_ref, bias_ref, down_ref, down_bias_ref, y_ref, *kept, act
):
  """y = down(act(up(x))) for the images of a block; if `kept`, up(x) too."""

  def one(image, _):
    x = x_ref[image]
    z = (dot(x, up_ref[...], (1, 0)) + bias_ref[...]).astype(x.dtype)
    for ref in kept:
      ref[image] = z
    z = act(z.astype(jnp.float32)).astype(x.dtype)
    y = dot(z, down_ref[...], (1, 0)) + down_bias_ref[...]
    y_ref[image] = y.astype(y_ref.dtype)
    return 0

  jax.lax.fori_loop(0, x_ref.shape[0], one, 0)


def _backward(x_ref, z_ref, dy_ref, up_ref, down_ref, dx_ref, *of_all, act):
  """The gradients of `_forward`; those of parameters are summed on the chip."""
  results, sums = of_all[:4], of_all[4:]
  dup_ref, dup_bias_ref, ddown_ref, ddown_bias_ref = sums

  @pl.when(pl.program_id(0) == 0)
  def _():
    for ref in sums:
      ref[...] = jnp.zeros(ref.shape, ref.dtype)

  def one(image, _):
    x, dy = x_ref[image], dy_ref[image]
    z, pull = jax.vjp(act, z_ref[image].astype(jnp.float32))
    (dz,) = pull(dot(dy, down_ref[...], (1, 1)))
    ddown_ref[...] += dot(z.astype(x.dtype), dy, (0, 0))
    ddown_bias_ref[...] += dy.astype(jnp.float32).sum(0, keepdims=True)
    dup_bias_ref[...] += dz.sum(0, keepdims=True)
    dz = dz.astype(x.dtype)
    dup_ref[...] += dot(x, dz, (0, 0))
    dx_ref[image] = dot(dz, up_ref[...], (1, 1)).astype(dx_ref.dtype)
    return 0

  jax.lax.fori_loop(0, x_ref.shape[0], one, 0)

  @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
  def _():
    for ref, total in zip(results, sums, strict=True):
      ref[...] = total[...].astype(ref.dtype)


def _call(
  kernel: Callable[..., None],
  flavour: Gelu,
  interpret: bool,
  rows: Sequence[Array],
  matrices: Sequence[Array],
  columns: Sequence[int],
  sums: Sequence[Array] = (),
) -> Sequence[Array]:
  """A kernel over blocks of images.

  Args:
    kernel: `_forward` or `_backward`.
    flavour: of GELU.
    interpret: as of `mlp`.
    rows: operands (B, N, ...), a block of images at a time.
    matrices: those that are whole at any time.
    columns: of results that are rows too.
    sums: further results have these shapes, and are of all images.
  """
  b, n, width = rows[0].shape
  hidden, dtype = matrices[0].shape[1], rows[0].dtype
  images = _images(b, n, width)

  def block(columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((images, n, columns), lambda i: (i, 0, 0))

  def whole(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda _: (0, 0))

  out = [jax.ShapeDtypeStruct((b, n, c), dtype) for c in columns]
  out += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in sums]
  products = 4 if sums else 2
  return pl.pallas_call(
    functools.partial(kernel, act=functools.partial(_act, flavour=flavour)),
    grid=(b // images,),
    in_specs=[*(block(x.shape[-1]) for x in rows), *map(whole, matrices)],
    out_specs=[*map(block, columns), *map(whole, sums)],
    out_shape=out,
    scratch_shapes=[pltpu.VMEM(x.shape, jnp.float32) for x in sums],
    cost_estimate=pl.CostEstimate(
      flops=2 * products * b * n * width * hidden,
      transcendentals=b * n * hidden,
      bytes_accessed=sum(
        x.size * x.dtype.itemsize for x in (*rows, *matrices, *out)
      ),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('arbitrary',),  # one after the other: sums
      vmem_limit_bytes=_memory(n, width, hidden, b),
    ),
    interpret=interpret,
    name=f'fused_mlp{kernel.__name__}',
  )(*rows, *matrices)


def _run(x, params, flavour, interpret, columns):
  matrices = [jnp.atleast_2d(p) for p in params]
  return _call(_forward, flavour, interpret, [x], matrices, columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mlp(x, params, flavour, interpret):
  return _run(x, params, flavour, interpret, x.shape[-1:])[0]


def _keep(x, params, flavour, interpret):
  y, z = _run(x, params, flavour, interpret, params[0].shape)  # D and F columns
  return y, (x, z, params)


def _pull(flavour, interpret, kept, dy):
  x, z, params = kept
  sums, matrices = [jnp.atleast_2d(p) for p in params], (params[0], params[2])
  dx, *gradients = _call(
    _backward, flavour, interpret, (x, z, dy), matrices, x.shape[-1:], sums
  )
  pairs = zip(gradients, params, strict=True)
  return dx, tuple(gradient.reshape(p.shape) for gradient, p in pairs)


_mlp.defvjp(_keep, _pull)


def mlp(
  x: Float[Array, 'B N D'],
  up: tuple[Float[Array, 'D F'], Float[Array, 'F']],
  down: tuple[Float[Array, 'F D'], Float[Array, 'D']],
  flavour: Gelu,
  interpret: bool = False,
) -> Float[Array, 'B N D']:
  """down(gelu(up(x))), of what each device has of the batch.

  Args:
    x: tokens.
    up, down: matrices and biases, of the dtype of `x`.
    flavour: of GELU.
    interpret: runs the kernel step by step, on any platform.
  """

  def own(x: Array, *params: Array) -> Array:
    return _mlp(x, params, flavour, interpret)

  return sharding.by_batch(own, x, *up, *down)
