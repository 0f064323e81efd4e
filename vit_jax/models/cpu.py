"""Products of bfloat16 on CPUs that have them: fast for float32 results only.

So XLA is asked for that, and what it gives is rounded: once, as accelerators
do. Done where JAX lowers `dot_general` for a CPU, the product is the same for
models, gradients and what remat keeps (docs/performance.md has the figures).
"""

import functools
from pathlib import Path

import jax.numpy as jnp
from jax.extend.core.primitives import dot_general_p
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

try:  # not public
  from jax._src.lax.lax import _dot_general_lower
except ImportError:  # then bfloat16 is slower on CPUs, and nothing else
  _dot_general_lower = None


def _lower(ctx, lhs, rhs, *, dimension_numbers, **how):
  (_, contracted), (_, batched) = dimension_numbers
  (out,) = ctx.avals_out
  matrix = not batched and ctx.avals_in[1].ndim - len(contracted) <= 1
  short = {x.dtype for x in (*ctx.avals_in, out)} == {jnp.dtype('bfloat16')}
  usual = functools.partial(
    _dot_general_lower, dimension_numbers=dimension_numbers, platform='cpu'
  )
  # Of others some forms end in "Unsupported element type for DotThunk".
  if not (matrix and short and native()):
    return usual(ctx, lhs, rhs, **how)
  how['preferred_element_type'] = long = jnp.dtype('float32')
  wide = ctx.replace(avals_out=[out.update(dtype=long)])
  (y,) = usual(wide, lhs, rhs, **how)
  return [stablehlo.convert(mlir.aval_to_ir_type(ctx.module_context, out), y)]


@functools.cache
def native() -> bool:
  """Whether this CPU multiplies bfloat16; on others it is no faster."""
  try:
    words = Path('/proc/cpuinfo').read_text().split()
  except OSError:  # not Linux
    return False
  return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(words)


def install():
  """From now on, in this process, on CPUs."""
  if _dot_general_lower:
    mlir.register_lowering(dot_general_p, _lower, platform='cpu')
