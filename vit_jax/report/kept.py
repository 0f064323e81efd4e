"""Files of predictions, as read: of which examples they are."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_jax.errors import UserError


def origin_of(file: Mapping[str, np.ndarray]) -> tuple[str, str]:
  """(fingerprint, split) of the examples; both '' of an older file."""
  return str(file.get('fingerprint', '')), str(file.get('split', ''))


def check_same(origins: Mapping[Path, tuple[str, str]]) -> str:
  """What is to be said of files that are compared example by example.

  Args:
    origins: see `origin_of`, by file.

  Returns:
    A warning if one of them does not tell its examples; else ''.

  Raises:
    UserError: they are of different examples.
  """
  told = {path: about for path, about in origins.items() if about[0]}
  for path, (fingerprint, split) in told.items():
    first, (other, name) = next(iter(told.items()))
    if fingerprint != other:
      raise UserError(
        f'{first} is of {name!r} ({other[:16]}), {path} of {split!r} '
        f'({fingerprint[:16]}): not the same examples.'
      )
  silent = [str(path) for path in origins if path not in told]
  if not silent:
    return ''
  return f'{silent[0]} does not tell its examples: taken for the same ones.'
