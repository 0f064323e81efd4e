"""Learning rate by step: warm-up, a decay, and a cool-down."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Name = Literal['cosine', 'linear', 'constant', 'rsqrt']


def schedule(
  name: Name,
  *,
  peak: float,
  total: int,
  warmup: int,
  cooldown: int = 0,
  final: float = 0.0,
) -> Callable[[jax.Array | int], jax.Array]:
  """A function from the step, counted from 0, to its learning rate.

  Linear from 0 to `peak` over `warmup` steps (step 0 has peak / warmup), then
  'cosine' or 'linear' to `final` after the last step, 'constant', or 'rsqrt':
  peak * sqrt(warmup / step) (arXiv 2106.04560, section 3.4). Over the last
  `cooldown` steps it is also multiplied by a line to 0.

  Args:
    name: the decay.
    peak: the highest rate.
    total: steps of the run.
    warmup: steps until the peak.
    cooldown: steps of the cool-down.
    final: rate at the end of 'cosine' and 'linear', a fraction of the peak.
  """

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / max(1, total - warmup), 0, 1)
    decay = {
      'cosine': final + (1 - final) * (1 + jnp.cos(jnp.pi * progress)) / 2,
      'linear': 1 - (1 - final) * progress,
      'constant': jnp.ones_like(step),
      'rsqrt': jax.lax.rsqrt(jnp.maximum(step, max(1, warmup)))
      * max(1, warmup) ** 0.5,
    }[name]
    rise = jnp.minimum(1, (step + 1) / max(1, warmup))
    fall = jnp.clip((total - step) / max(1, cooldown), 0, 1)
    return peak * rise * decay * (fall if cooldown else 1.0)

  return rate
