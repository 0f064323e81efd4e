"""The user's mistakes: one line that names the thing, its value, a way out."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

_LISTED = 50  # choices; the nearest is looked for among all of them


class UserError(Exception):
  """A mistake of the user's; the command line exits 2 with its message."""


class BadRecord(UserError):
  """An example that cannot be read; `config.data.on_error` says what then."""


def did_you_mean(value: object, choices: Iterable[object]) -> str:
  """The nearest valid choice and a list of them, as the end of a message."""
  names = [str(choice) for choice in choices]
  folded = {name.casefold(): name for name in names}
  near = difflib.get_close_matches(str(value).casefold(), folded, 1, 0.5)
  hint = f' Did you mean {folded[near[0]]!r}?' if near else ''
  listed = names[:_LISTED] + ['...'] * (len(names) > _LISTED)
  return f'{hint} Choices: {", ".join(listed)}.' if names else ''


def check_choice(field: str, value: object, choices: Iterable[object]) -> None:
  """Raises UserError unless `value` is among `choices`."""
  choices = list(choices)
  if value not in choices:
    raise UserError(
      f'{field} = {value!r} is unknown.{did_you_mean(value, choices)}'
    )


def check_output(flag: str, path: Path, folder: bool = False, suffix: str = ''):
  """Raises UserError, before any work, if a flag's file could not be written.

  Args:
    flag: '--output'.
    path: its value.
    folder: whether that is itself a folder.
    suffix: of a file, if it has to have one.
  """
  if not folder and path.is_dir():
    raise UserError(f'{flag}={path} is a folder; give a file.')
  if suffix and path.suffix != suffix:
    raise UserError(f'{flag}={path}: a name that ends in {suffix}.')
  where = path.absolute() if folder else path.absolute().parent
  while not where.exists():
    where = where.parent
  if not where.is_dir():
    hint = '; give a folder' if folder else ''
    raise UserError(
      f'{flag}={path} cannot be written: {where} is a file{hint}.'
    )
  if not os.access(path if path.exists() else where, os.W_OK):
    raise UserError(f'{flag}={path} cannot be written: no permission.')
