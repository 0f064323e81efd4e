"""The optimizer as a chain: clip, scale, decay, learning rate, groups."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from vit_jax.errors import UserError, check_choice
from vit_jax.optim import groups, schedules
from vit_jax.optim.optimizers import AFTER_DECAY, OPTIMIZERS

Schedule = Callable[[Any], jax.Array]


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
  rates: groups.Pairs = (),
  decays: groups.Pairs = groups.KERNELS,
  layer_decay: float = 1.0,
  head_warmup: str = '0 steps',
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
    rates: multipliers of the learning rate, decay included, see groups.py; 0
      freezes.
    decays: multipliers of `weight_decay`; what matches none has none.
    layer_decay: of the learning rate from block to block, see groups.scaled.
    head_warmup: duration in which only heads are updated.
    **options: the optimizer's own keyword parameters.

  Raises:
    UserError: a rate below 0, a warm-up longer than the run, a pattern that
      is none; by `init`, one that matches nothing.
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
  if not 0 < layer_decay <= 1:
    raise UserError(
      f'config.optim.layer_decay = {layer_decay}: above 0, at most 1 (none).'
    )
  groups.check('rates', rates)
  groups.check('decays', decays)
  steps = {
    'warmup': to_steps_of(warmup, 'config.optim.warmup'),
    'cooldown': to_steps_of(cooldown, 'config.optim.cooldown'),
    'head_warmup': to_steps_of(head_warmup, 'config.optim.head_warmup'),
  }
  for field, value in steps.items():
    if value > total:
      raise UserError(
        f'config.optim.{field} = {value} steps, but the run has {total}. '
        "Shorten it, for example to '10%'."
      )
  waits = groups.heads_first(steps.pop('head_warmup'))
  rate = schedules.schedule(
    schedule, peak=lr, total=total, final=final_lr, **steps
  )
  links = [
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    OPTIMIZERS[name](**options),
    *groups.decayed(weight_decay, decays),
    *(link() for link in AFTER_DECAY.get(name, ())),
    optax.scale_by_learning_rate(rate),
  ]
  optimizer = optax.chain(
    *groups.frozen(rates, links), *groups.scaled(rates, layer_decay), *waits
  )
  return groups.checked(optimizer, rates=rates, decays=decays), rate
