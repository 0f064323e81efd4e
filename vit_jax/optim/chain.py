"""The optimizer as a chain: clip, scale, decay, learning rate."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from vit_jax import trees
from vit_jax.errors import UserError, check_choice
from vit_jax.optim import schedules

Schedule = Callable[[Any], jax.Array]


# Of the first moment at rest: bfloat16 saves two bytes a parameter. The second
# one stays: bfloat16's 8 bits would lose its small changes.
Moments = Literal['float32', 'bfloat16']


def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  moments: Moments = 'float32',
) -> optax.GradientTransformation:
  """Adam's scaling; the decay is decoupled (arXiv 1412.6980, 1711.05101)."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moments)


def sgd(
  *, momentum: float = 0.9, nesterov: bool = False, moments: Moments = 'float32'
) -> optax.GradientTransformation:
  """Momentum: m <- momentum * m + g; the decay is decoupled here too."""
  return optax.trace(
    decay=momentum, nesterov=nesterov, accumulator_dtype=moments
  )


OPTIMIZERS = {'adamw': adamw, 'sgd': sgd}


def decayed(params: Any) -> Any:
  """True for kernels: no decay of biases, norms, positions and CLS."""
  return trees.map_paths(lambda name, _: name.endswith('kernel'), params)


def make(
  name: str,
  total: int,
  to_steps_of: Callable[..., int],
  *,
  lr: float = 1e-3,
  schedule: schedules.Name = 'cosine',
  warmup: str = '5%',
  cooldown: str = '0 steps',
  final_lr: float = 0.0,
  weight_decay: float = 0.05,
  clip: float = 1.0,
  **options,
) -> tuple[optax.GradientTransformation, Schedule]:
  """The transformation, and the learning rate by step.

  Args:
    name: of `OPTIMIZERS`.
    total: steps of the run.
    to_steps_of: from a duration and its field's name to steps.
    lr: peak learning rate.
    schedule: of schedules.py.
    warmup: duration of the rise to the peak.
    cooldown: duration of the fall to 0 at the end, on top of the schedule.
    final_lr: of 'cosine' and 'linear', as a fraction of the peak.
    weight_decay: times the learning rate, subtracted from kernels each step.
    clip: largest global norm of the gradient; 0: no clipping.
    **options: the optimizer's own keyword parameters.

  Raises:
    UserError: a rate below 0, a warm-up longer than the run.
  """
  check_choice('config.optim.name', name, OPTIMIZERS)
  for field, value in (
    ('lr', lr),
    ('weight_decay', weight_decay),
    ('clip', clip),
    ('final_lr', final_lr),
  ):
    if value < 0:
      raise UserError(f'config.optim.{field} = {value} is negative.')
  steps = {
    'warmup': to_steps_of(warmup, 'config.optim.warmup'),
    'cooldown': to_steps_of(cooldown, 'config.optim.cooldown'),
  }
  for field, value in steps.items():
    if value > total:
      raise UserError(
        f'config.optim.{field} = {value} steps, but the run has {total}. '
        "Shorten it, for example to '10%'."
      )
  rate = schedules.schedule(
    schedule, peak=lr, total=total, final=final_lr, **steps
  )
  parts = [
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    OPTIMIZERS[name](**options),
    optax.add_decayed_weights(weight_decay, mask=decayed),
    optax.scale_by_learning_rate(rate),
  ]
  return optax.chain(*parts), rate
