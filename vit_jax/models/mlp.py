"""The MLP of a block (section 1.6 of the notes)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.models import kernels

Kernel = Literal['auto', 'xla', 'fused']
Kind = Literal['gelu', 'swiglu']
# erf; its tanh approximation; x * sigmoid(1.702 x), as OpenAI's CLIP has it.
Gelu = Literal['exact', 'tanh', 'quick']

# Of the memory for kernels: the rest is XLA's, to keep what comes from one
# operation for the next. Where the kernel takes more than a third, XLA copies
# more than is saved (B/16 on v5e; docs/performance.md).
_SHARE = {'auto': 1 / 3, 'fused': 3 / 4}
# Of narrower ones XLA keeps enough on the chip by itself (Ti/16).
_WIDE = 384

_KERNEL, _BIAS = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)


def gelu(x: jax.Array, flavour: Gelu) -> jax.Array:
  """The Gaussian error linear unit (arXiv 1606.08415), in three flavours."""
  if flavour == 'quick':
    return x * jax.nn.sigmoid(1.702 * x)
  return nn.gelu(x, approximate=flavour == 'tanh')


def refusal(dtype: str, kind: str) -> str:
  """Why the fused kernel cannot take such an MLP, or ''."""
  if dtype != 'bfloat16':
    return f"fused takes dtype = 'bfloat16', not {dtype!r}"
  return '' if kind == 'gelu' else f"fused takes mlp = 'gelu', not {kind!r}"


def _fused(
  asked: Kernel,
  dtype: jnp.dtype,
  kind: Kind,
  dropout: bool,
  x: jax.Array,
  hidden: int,
) -> bool:
  """Whether it is computed by the fused kernel.

  By 'auto' on TPUs where it can be had and moves less. If it is asked for and
  cannot be had, one line of the log says why.
  """
  if asked == 'xla':
    return False
  why, (tokens, width) = refusal(str(dtype), kind), x.shape[1:]
  if kernels.platform() != 'tpu':
    why = f'fused is for TPUs, this is a {kernels.platform()}'
  elif dropout and not why:
    why = 'fused takes no dropout'
  elif sharding.ways('tensor') > 1 and not why:
    why = 'fused takes whole matrices: tensor = 1'
  elif not why:
    from vit_jax.models import fused

    wanted = fused.memory(tokens, width, hidden) / kernels.vector_memory()
    if wanted > _SHARE[asked]:
      why = f'fused would take {wanted:.0%} of what kernels have on the chip'
  if why and asked == 'fused':
    kernels.say('mlp', why)
  return not why and (asked == 'fused' or width >= _WIDE)


class _Parameters(nn.Module):
  """Those of a linear layer, for a kernel that computes more than one."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, inputs: int) -> tuple[Array, Array]:
    kernel = self.param('kernel', _KERNEL, (inputs, self.width))
    bias = self.param('bias', _BIAS, (self.width,))
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class Mlp(nn.Module):
  """D -> F -> D: two linear layers with a GELU between.

  'swiglu' has a third: down(silu(gate(x)) * up(x)) (arXiv 2002.05202).
  `kernel` says who computes it, where it can be had: XLA, or fused.py.
  """

  hidden: int
  kind: Kind
  gelu: Gelu
  dropout: float
  train: bool
  dtype: jnp.dtype
  kernel: Kernel = 'xla'

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    def dense(width, name):
      return nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=_KERNEL,
        bias_init=_BIAS,
        name=name,
      )

    dropout = self.train and self.dropout > 0
    if _fused(self.kernel, self.dtype, self.kind, dropout, x, self.hidden):
      from vit_jax.models import fused  # Pallas, whose 0.15 s most do without

      up = _Parameters(self.hidden, self.dtype, name='up')(x.shape[-1])
      down = _Parameters(x.shape[-1], self.dtype, name='down')(self.hidden)
      return fused.mlp(x, up, down, self.gelu)
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
