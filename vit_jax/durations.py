"""Durations with units: '300ep', '10k steps', '5%', '1M examples'."""

import math
import re
from fractions import Fraction

from vit_jax.errors import UserError

_UNITS = {
  'ep': 'epochs',
  'epoch': 'epochs',
  'epochs': 'epochs',
  'step': 'steps',
  'steps': 'steps',
  'example': 'examples',
  'examples': 'examples',
  '%': 'percent',
}
_FACTORS = {'': 1, 'k': 10**3, 'm': 10**6, 'b': 10**9}
_PATTERN = re.compile(r'(\d+(?:\.\d*)?|\.\d+)\s*([kmb]?)\s*([a-z%]+)')


def parse(text: str, field: str = 'duration') -> tuple[Fraction, str]:
  """'10k steps' -> (10000, 'steps'); exact, as decimals are fractions.

  Args:
    text: a number, optionally k, M or B, and a unit: ep, steps, examples, %.
    field: the config field, for the message.

  Raises:
    UserError: the text is not a duration.
  """
  match = _PATTERN.fullmatch(str(text).strip().lower())
  if not match or match[3] not in _UNITS:
    bare = re.fullmatch(r'[\d.]+[kmb]?', str(text).strip().lower())
    hint = f" Did you mean '{text}ep' or '{text} steps'?" if bare else ''
    raise UserError(
      f'{field} = {text!r} is not a duration.{hint} '
      "Write a number and a unit: '300ep', '10k steps', '5%', '1M examples'."
    )
  number, factor, unit = match.groups()
  return Fraction(number) * _FACTORS[factor], _UNITS[unit]


def to_steps(
  text: str,
  *,
  batch_size: int,
  examples: int,
  total: int | None = None,
  field: str = 'duration',
) -> int:
  """Optimizer steps that a duration takes, rounded up (an epoch is whole).

  Args:
    text: the duration.
    batch_size: examples a step, over all devices.
    examples: examples an epoch.
    total: steps of the whole run, which percentages refer to.
    field: the config field, for the message.

  Raises:
    UserError: not a duration, or a percentage where there is no total.
  """
  value, unit = parse(text, field)
  if unit == 'percent' and total is None:
    raise UserError(
      f"{field} = {text!r}: a percentage of what? Write '60ep' or '10k steps'."
    )
  if unit == 'epochs' and not examples:
    raise UserError(
      f'{field} = {text!r} needs the size of the training split: '
      'set config.data.examples.'
    )
  steps = {
    'steps': value,
    'epochs': value * examples / batch_size,
    'examples': value / batch_size,
    'percent': value / 100 * (total or 0),
  }[unit]
  return math.ceil(steps)
