"""The MLP of a block (section 1.6 of the notes)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.models import kernels
from vit_jax.models.attention import Linear

Kernel = Literal['auto', 'xla', 'fused']
Kind = Literal['gelu', 'swiglu']
# erf; its tanh approximation; x * sigmoid(1.702 x), as OpenAI's CLIP has it.
Gelu = Literal['exact', 'tanh', 'quick']

# What the fused kernel was compiled for. Other TPUs have half the memory for
# kernels or less, or two cores, of which it would use one.
_MADE_FOR = ('TPU v5 lite', 'TPU v6 lite')
# Of that memory: the rest is XLA's, to keep what comes from one operation for
# the next. Where a kernel takes more than a third, XLA copies more by its own
# count (B/16), and of narrow MLPs it keeps enough by itself (docs/scaling.md).
_SHARE = {'auto': 1 / 3, 'fused': 3 / 4}
_WIDE = 384

_BIAS = nn.initializers.normal(1e-6)


def gelu(x: jax.Array, flavour: Gelu) -> jax.Array:
  """The Gaussian error linear unit (arXiv 1606.08415), in three flavours."""
  if flavour == 'quick':
    return x * jax.nn.sigmoid(1.702 * x)
  return nn.gelu(x, approximate=flavour == 'tanh')


def refusal(kernel: Kernel, dtype: str, kind: Kind) -> str:
  """Why a kernel cannot take such an MLP, or ''."""
  if kernel != 'fused':
    return ''
  if dtype != 'bfloat16':
    return f"fused takes dtype = 'bfloat16', not {dtype!r}"
  return '' if kind == 'gelu' else f"fused takes mlp = 'gelu', not {kind!r}"


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

  def _why_not(self, x: jax.Array) -> str:
    """Why the fused kernel does not compute it, or ''."""
    platform, kind = kernels.device()
    if platform != 'tpu':
      return f'fused is for TPUs, this is a {platform}'
    if kind not in _MADE_FOR:
      return f'fused is for {" and ".join(_MADE_FOR)}, this is a {kind}'
    if self.train and self.dropout:
      return 'fused takes no dropout'
    if sharding.ways('tensor') > 1:
      return 'fused takes whole matrices: mesh.tensor = 1'
    if why := refusal('fused', str(self.dtype), self.kind):
      return why
    from vit_jax.models import fused  # Pallas, whose 0.15 s most do without

    share, most = fused.share(*x.shape[1:], self.hidden), _SHARE[self.kernel]
    if share > most:
      return f'fused would take {share:.0%} of the chip, and {most:.0%} is most'
    return ''

  def _is_fused(self, x: jax.Array) -> bool:
    """Whether it is; where it is asked for, a line of the log says why not."""
    if self.kernel == 'xla':
      return False
    why = self._why_not(x)
    if self.kernel == 'auto':
      # Of divided matrices XLA sends slices while it multiplies.
      return not why and x.shape[-1] >= _WIDE and sharding.ways('fsdp') == 1
    if why:
      kernels.say('mlp', why)
    return not why

  @nn.compact
  def __call__(self, x: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
    def dense(width, name):
      return nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=_BIAS,
        name=name,
      )

    if self._is_fused(x):
      from vit_jax.models import fused

      outer, inner = x.shape[-1:], (self.hidden,)
      up = Linear(outer, inner, True, self.dtype, _BIAS, name='up')
      down = Linear(inner, outer, True, self.dtype, _BIAS, name='down')
      return fused.mlp(x, up.matrix(), down.matrix(), self.gelu)
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
