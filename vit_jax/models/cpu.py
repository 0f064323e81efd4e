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


def _usual(*args, **how):
  from jax._src.lax.lax import _dot_general_lower

  return _dot_general_lower(*args, platform='cpu', **how)


def _lower(ctx, lhs, rhs, *, dimension_numbers, **how):
  (_, contracted), (_, batched) = dimension_numbers
  (out,) = ctx.avals_out
  matrix = not batched and ctx.avals_in[1].ndim - len(contracted) <= 1
  short = {x.dtype for x in (*ctx.avals_in, out)} == {jnp.dtype('bfloat16')}
  # Of others some forms end in "Unsupported element type for DotThunk".
  if not (matrix and short and native()):
    return _usual(ctx, lhs, rhs, dimension_numbers=dimension_numbers, **how)
  how['preferred_element_type'] = long = jnp.dtype('float32')
  wide = ctx.replace(avals_out=[out.update(dtype=long)])
  (y,) = _usual(wide, lhs, rhs, dimension_numbers=dimension_numbers, **how)
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
  mlir.register_lowering(dot_general_p, _lower, platform='cpu')
