"""The user's mistakes: one line that names the thing, its value, a way out."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake of the user's; the command line exits 2 with its message."""


class BadRecord(UserError):
  """An example that cannot be read; `config.data.on_error` says what then."""


def did_you_mean(value: object, choices: Iterable[object]) -> str:
  """The nearest valid choice and the whole list, as the end of a message."""
  names = [str(choice) for choice in choices]
  near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return f'{hint} Choices: {", ".join(names)}.' if names else ''


def check_choice(field: str, value: object, choices: Iterable[object]) -> None:
  """Raises UserError unless `value` is among `choices`."""
  choices = list(choices)
  if value not in choices:
    raise UserError(
      f'{field} = {value!r} is unknown.{did_you_mean(value, choices)}'
    )
