"""Typed fields: from signatures to checked values and readable messages."""

import ast
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from beartype.door import is_bearable

from vit_jax.errors import UserError, check_choice, did_you_mean

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Field:
  """A config field: what it may hold, and what it holds if nothing is said."""

  hint: Any
  default: Any


def keyword_fields(function: Callable[..., Any]) -> dict[str, Field]:
  """The keyword-only parameters of a function or class that have defaults.

  Those without a default are what the program supplies (the number of
  classes), not the config.
  """
  target = function.__init__ if inspect.isclass(function) else function
  hints = typing.get_type_hints(target)
  if dataclasses.is_dataclass(function):
    hints |= typing.get_type_hints(function)
  hidden = ('parent', 'name')  # linen's own
  return {
    name: Field(hints[name], parameter.default)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    and parameter.default is not REQUIRED
    and name not in hidden
  }


def describe(hint: Any) -> str:
  """A type in words for a message."""
  if typing.get_origin(hint) is Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(hint)))
  if typing.get_origin(hint) in (types.UnionType, typing.Union):
    return ' or '.join(describe(h) for h in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    args = typing.get_args(hint)
    if args[-1] is Ellipsis:
      one = describe(args[0])
      plural = one if one[0] == '(' else one.partition(' ')[2] + 's'
      return f'a tuple of {plural}'
    return '(' + ', '.join(describe(h) for h in args) + ')'
  words = {int: 'an int', float: 'a number', str: 'a string', bool: 'a bool'}
  return words.get(hint, getattr(hint, '__name__', str(hint)))


def _literals(hint: Any) -> tuple[Any, ...]:
  return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _accepts(hint: Any, kind: type) -> bool:
  members = (
    typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union)
    else (hint,)
  )
  return kind in members


def _tuples(value: Any, hint: Any) -> Any:
  """Lists as tuples, as deep as they go, and ints as floats that `hint` has."""
  if isinstance(value, list | tuple):
    hints = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    if hints[1:] == (Ellipsis,):
      hints = hints[:1] * len(value)
    hints += (None,) * (len(value) - len(hints))
    return tuple(map(_tuples, value, hints))
  return float(value) if type(value) is int and hint is float else value


def coerce(path: str, value: Any, hint: Any) -> Any:
  """The value as the field's type: 1 -> 1.0, 1e3 -> 1000, [..] -> (..).

  Raises:
    UserError: it is of another type, or not among the choices.
  """
  value = _tuples(value, hint)
  if isinstance(value, float) and value.is_integer() and hint is not float:
    value = int(value)
  if isinstance(value, bool) and not _accepts(hint, bool):
    pass  # a bool is an int to Python, not to us
  elif is_bearable(value, hint):
    return value
  near = did_you_mean(value, _literals(hint)) if _literals(hint) else ''
  raise UserError(
    f'{path} = {value!r}: expected {describe(hint)}.'
    + (near.split(' Choices')[0] if near else '')
  )


def parse(path: str, text: str, hint: Any) -> Any:
  """A value from the command line, as the field's type.

  Raises:
    UserError: the text does not read as that type.
  """
  if _accepts(hint, str) or any(isinstance(x, str) for x in _literals(hint)):
    if text == 'None':
      raise UserError(f"{path} = None: write '' for nothing.")
    return coerce(path, text, hint)
  literal = {'true': 'True', 'false': 'False'}.get(text.lower(), text)
  try:
    value = ast.literal_eval(literal)
  except (ValueError, SyntaxError):
    value = text
  return coerce(path, value, hint)


def _finite(value: Any) -> bool:
  if isinstance(value, tuple):
    return all(map(_finite, value))
  return not isinstance(value, float) or math.isfinite(value)


def _argument(field: str, value: Any, hint: Any) -> Any:
  """The value as the type says, finite, within its limits."""
  words, within = '', lambda _: True
  if typing.get_origin(hint) is Annotated:
    hint, words, within = typing.get_args(hint)
  value = coerce(field, value, hint)
  if not _finite(value):  # 1e400, which is Python's infinity
    raise UserError(f'{field} = {value!r} is not finite.')
  if not within(value):
    raise UserError(f'{field} = {value!r}: expected a number {words}.')
  return value


def _read_call(field: str, text: str, what: str) -> tuple[str, list, dict]:
  """'affine(10, shear=0.2)' -> ('affine', [10], {'shear': 0.2})."""
  try:
    tree = ast.parse(text.strip(), mode='eval').body
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
      raise ValueError
    args = [ast.literal_eval(a) for a in call.args]
    given = [(str(k.arg), ast.literal_eval(k.value)) for k in call.keywords]
  except (SyntaxError, ValueError):
    raise UserError(
      f"{field}: {text!r} is not an {what}. Write 'name' or 'name(10, 0.1)'."
    ) from None
  kwargs = dict(given)
  for name in kwargs:  # to the parser the last one counts
    values = [repr(value) for key, value in given if key == name]
    if len(values) > 1:
      raise UserError(
        f'{field}: {text!r}: {name} is given more than once: '
        f'{", ".join(values)}. Keep one.'
      )
  return call.func.id, args, kwargs


def parse_call(
  field: str,
  text: str,
  table: Mapping[str, Callable],
  *,
  given: int,
  what: str,
) -> tuple[str, dict[str, Any]]:
  """A call in a config, 'affine(10, shear=0.2)', checked: (name, arguments).

  Args:
    field: the config field, for messages.
    text: the call.
    table: functions by name. An argument with limits is Annotated[type, words,
      test].
    given: how many arguments, from the first, are not the config's.
    what: 'op', for messages.

  Raises:
    UserError: an unknown name, or arguments that it does not take.
  """
  name, args, kwargs = _read_call(field, text, what)
  check_choice(f'{field}: {what}', name, table)
  function = table[name]
  hints = typing.get_type_hints(function, include_extras=True)
  try:
    bound = inspect.signature(function).bind(*[None] * given, *args, **kwargs)
  except TypeError as error:
    names = list(inspect.signature(function).parameters)[given:]
    raise UserError(
      f'{field}: {text!r}: {error}. Arguments: {", ".join(names) or "none"}.'
    ) from None
  bound.apply_defaults()
  return name, {
    key: _argument(f'{field}: {text!r}: {key}', value, hints[key])
    for key, value in list(bound.arguments.items())[given:]
  }
