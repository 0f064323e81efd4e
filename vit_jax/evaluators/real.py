"""ReaL: other labels for the pictures of ImageNet's validation set."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.sources import key_of
from vit_jax.errors import UserError
from vit_jax.evaluators.view import View


def labels_of(setup: Any, file: str) -> list[list[int]]:
  """What `real` needs: the labels of each picture."""
  try:
    labels = json.loads(Path(file).read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'real({file!r}): {error}') from error
  listed = isinstance(labels, list) and all(
    isinstance(answers, list) and all(isinstance(x, int) for x in answers)
    for answers in labels
  )
  if not listed:
    raise UserError(f'real({file!r}): a list of lists of numbers is needed.')
  most, count = (
    max(map(max, filter(None, labels)), default=0),
    len(setup.info.classes),
  )
  if most >= count:
    raise UserError(
      f'real({file!r}) has labels up to {most}, the model {count} classes.'
    )
  return labels


def real(view: View, file: str) -> dict[str, float]:
  """Accuracy by ReaL labels (arXiv 2006.07159): any of several is right.

  Args:
    view: of the model, on ImageNet's validation set.
    file: real.json (github.com/google-research/reassessed-imagenet): a list of
      labels for each picture, by its number. Those without any are left out.
  """
  labels = labels_of(view.setup, file)
  rows, source = view.outputs, view.loader.source
  hits, kept = [], []
  for record, prediction in zip(
    rows['record'], rows['prediction'], strict=True
  ):
    key = key_of(source, int(record))
    if 'val_' not in key:  # of tfds the record itself has the file's name
      key = source[int(record)]['key']
    number = re.search(r'val_0*(\d+)', key)
    if number is None or int(number[1]) > len(labels):
      raise UserError(
        f'real({file!r}): {key} is no picture of the validation set '
        '(ILSVRC2012_val_00000001).'
      )
    answers = labels[int(number[1]) - 1]
    hits += [int(prediction) in answers] if answers else []
    kept += [record] if answers else []
  if not hits:
    raise UserError(f'real({file!r}) has no label for any picture.')
  view.keep('real', record=np.array(kept), accuracy=np.array(hits))
  return {'real': float(np.mean(hits))}
