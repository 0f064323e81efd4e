"""Distillation: the loss that makes a student's logits those of a teacher."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit_jax.errors import UserError

Kind = Literal['soft', 'hard']


def check(weight: float, temperature: float):
  """Raises UserError unless the values are those of `loss`."""
  if not 0 <= weight <= 1:
    raise UserError(f'config.task.distill_weight = {weight}: 0 to 1.')
  if temperature <= 0:
    raise UserError(f'config.task.temperature = {temperature}: above 0.')


def loss(
  student: Float[Array, 'B Y'],
  teacher: Float[Array, 'B Y'],
  kind: Kind,
  temperature: float,
) -> Float[Array, 'B']:
  """Of each example in nats (arXiv 2012.12877, eq. 2 and 3).

  'hard': cross-entropy with the teacher's decision. 'soft': T² times the
  Kullback-Leibler divergence of the student's distribution from the teacher's,
  both of logits / T (arXiv 1503.02531). Summed over the classes, as the paper
  has it; the authors' code takes the mean over them.
  """
  if kind == 'hard':
    decision = jnp.argmax(teacher, -1)
    return optax.softmax_cross_entropy_with_integer_labels(student, decision)
  of, to = (jax.nn.log_softmax(x / temperature) for x in (student, teacher))
  return temperature**2 * (jnp.exp(to) * (to - of)).sum(-1)
