"""Evaluators: what a split, or the features of one, say about a model.

`EVALUATORS` is the table of the calls in `config.evaluators` and `evaluate
--evaluators='knn(20), fewshot(10)'`: functions of a View and their own
arguments, to metrics by name. `view.py` has what they share.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vit_jax.errors import UserError
from vit_jax.evaluators.calibration import classification
from vit_jax.evaluators.neighbours import knn
from vit_jax.evaluators.pixels import segmentation
from vit_jax.evaluators.probes import fewshot, linear_probe
from vit_jax.evaluators.real import labels_of, real
from vit_jax.evaluators.sets import corrupted_sets, imagenet_c, on, other_set
from vit_jax.evaluators.view import View, local_mesh
from vit_jax.schema import parse_call

__all__ = [
  'EVALUATORS',
  'OF_FEATURES',
  'View',
  'check',
  'check_data',
  'check_labels',
  'run_all',
  'split_calls',
]

EVALUATORS: dict[str, Callable[..., dict[str, float]]] = {
  'classification': classification,
  'knn': knn,
  'fewshot': fewshot,
  'linear_probe': linear_probe,
  'real': real,
  'on': on,
  'imagenet_c': imagenet_c,
  'segmentation': segmentation,
}
# What an evaluator needs besides the split: opened before the first step, too,
# so that a mistake is told then, not after the last one.
_NEEDS = {'on': other_set, 'imagenet_c': corrupted_sets, 'real': labels_of}
_OF_MASKS = ('segmentation',)  # the others want one label an image
_PART = r"""(?s)'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|."""  # quoted, or a letter
OF_FEATURES = ('knn', 'fewshot', 'linear_probe')  # and no head


def check(field: str, texts: Sequence[str]) -> list[tuple[str, dict]]:
  """(name, arguments) of each call.

  Raises:
    UserError: an unknown evaluator, or arguments that it does not take.
  """
  given = {'table': EVALUATORS, 'given': 1, 'what': 'evaluator'}
  return [parse_call(field, text, **given) for text in texts]


def check_labels(field: str, texts: Sequence[str], task: Any):
  """Raises UserError for an evaluator that the task's labels are not for."""
  masks = getattr(task, 'masks', False)
  for name, _ in check(field, texts):
    if masks is None:  # no labels are learned; those of the data can be probed
      if name not in OF_FEATURES:
        raise UserError(
          f'{field}: {name!r} is for models with a head; for this task there '
          f'are {", ".join(OF_FEATURES)}.'
        )
      continue
    if (name in _OF_MASKS) != masks:
      fit = [n for n in EVALUATORS if (n in _OF_MASKS) == masks]
      raise UserError(
        f'{field}: {name!r} is for '
        + ('one label an image' if masks else 'masks')
        + f'; the labels of this task have {", ".join(fit)}.'
      )


def check_data(field: str, texts: Sequence[str], setup: Any):
  """Opens what evaluators need besides the split.

  Raises:
    UserError: it is not there, or not what the evaluator takes.
  """
  for name, arguments in check(field, texts):
    if name in _NEEDS:
      _NEEDS[name](setup, **arguments)


def run_all(field: str, texts: Sequence[str], view: View) -> dict[str, float]:
  """The metrics of all, in order; of one that is there, 'NAME_again1'."""
  metrics: dict[str, float] = {}
  for name, arguments in check(field, texts):
    with jax.set_mesh(local_mesh()):  # the View's own work is on the whole one
      found = EVALUATORS[name](view, **arguments)
    for key, value in found.items():
      number = sum(k == key or k.startswith(f'{key}_again') for k in metrics)
      metrics[f'{key}_again{number}' if number else key] = value
  return metrics


def split_calls(text: str) -> tuple[str, ...]:
  """'knn(20), on(a, b)' -> ('knn(20)', 'on(a, b)')."""
  calls, depth = [''], 0
  for part in re.findall(_PART, text):
    depth += (part in ('(', '[')) - (part in (')', ']'))
    if part == ',' and not depth:
      calls.append('')
    else:
      calls[-1] += part
  return tuple(call.strip() for call in calls if call.strip())
