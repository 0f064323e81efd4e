"""Configs: load a file, apply overrides, check every field, fill the rest.

`SECTIONS` is the schema of the groups: a table of names and, for each name,
the keyword-only parameters of what it names. Adding a parameter to a model or
an optimizer makes it a config field; there is no second list.
"""

import dataclasses
import importlib.util
import inspect
import json
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from vit_jax import data, models, optim, tasks
from vit_jax.defaults import Defaults, get_config
from vit_jax.errors import UserError, check_choice, did_you_mean
from vit_jax.schema import Field, coerce, keyword_fields, parse

# group: (what the names stand for, a function whose parameters all share).
SECTIONS = {
  'task': (tasks.TASKS, None),
  'model': (models.MODELS, None),
  'optim': (optim.OPTIMIZERS, optim.make),
  'data': (data.SOURCES, data.open_split),
}

Schema = dict[str, Any]  # name -> Field, or a Schema for a group


def _dataclass_schema(cls: type) -> Schema:
  hints = typing.get_type_hints(cls)
  return {
    field.name: _dataclass_schema(hints[field.name])
    if dataclasses.is_dataclass(hints[field.name])
    else Field(hints[field.name], field.default)
    for field in dataclasses.fields(cls)
  }


def _section_schema(section: str, values: Mapping[str, Any]) -> Schema:
  table, shared = SECTIONS[section]
  name = values.get('name', next(iter(table)))
  schema: Schema = {'name': Field(str, name)}
  schema |= keyword_fields(shared) if shared else {}
  if section != 'data':
    check_choice(f'config.{section}.name', name, table)
    schema |= keyword_fields(table[name])
  else:  # every other group is a split to train or test on
    schema |= data.source_fields(str(name))
    splits = ['train', 'test']
    splits += [k for k, v in values.items() if isinstance(v, Mapping)]
    schema |= {s: _dataclass_schema(data.Split) for s in splits}
  return schema


def schema_of(values: Mapping[str, Any]) -> Schema:
  """All fields, given the names that `values` chooses."""
  schema = _dataclass_schema(Defaults)
  for section in SECTIONS:
    group = values.get(section, {})
    if not isinstance(group, Mapping):
      raise UserError(f'config.{section} = {group!r}: expected a group.')
    schema[section] = _section_schema(section, group)
  return schema


def _fill(values: Mapping[str, Any], schema: Schema, path: str) -> dict:
  unknown = [name for name in values if name not in schema]
  if unknown:
    raise UserError(
      f'{path}.{unknown[0]} is not a config field.'
      + did_you_mean(unknown[0], schema)
    )
  filled = {}
  for name, field in schema.items():
    where = f'{path}.{name}'
    if isinstance(field, dict):
      group = values.get(name, {})
      if not isinstance(group, Mapping):
        raise UserError(
          f'{where} is a group of fields: '
          + ', '.join(f'{where}.{key}' for key in field)
        )
      filled[name] = _fill(group, field, where)
    else:
      value = values.get(name, field.default)
      filled[name] = coerce(where, value, field.hint)
  return filled


def resolve(values: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
  """The complete config: all fields present, of their type.

  Raises:
    UserError: an unknown field or name, or a value of the wrong type.
  """
  filled = _fill(values, schema_of(values), 'config')
  return ml_collections.FrozenConfigDict(filled)


def call(path: Path, function: Callable[..., Any], *args: Any) -> Any:
  """What a function of a user's Python file returns.

  Raises:
    UserError: what it raised, with the line of the file.
  """
  try:
    return function(*args)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    here = str(path.absolute())
    lines = [f.lineno for f in frames if f.filename == here]
    line = lines[-1] if lines else getattr(error, 'lineno', None)
    where = f'{path}, line {line},' if line else f'{path}'
    raise UserError(
      f'{where} raised {type(error).__name__}: ' + ' '.join(str(error).split())
    ) from error


def run_file(path: Path) -> ModuleType:
  """A user's Python file as a module; raises UserError for what it raises."""
  spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  call(path, spec.loader.exec_module, module)
  return module


def _get_config(path: Path, argument: str | None) -> Mapping[str, Any]:
  module = run_file(path)
  if not hasattr(module, 'get_config'):
    raise UserError(f'{path} has no function get_config().')
  args = () if argument is None else (argument,)
  if args and not inspect.signature(module.get_config).parameters:
    raise UserError(f'--config={path}:{argument}: it takes no argument.')
  result = call(path, module.get_config, *args)
  if not isinstance(result, Mapping | ml_collections.ConfigDict):
    raise UserError(f'{path}: get_config() returned {type(result).__name__}.')
  return ml_collections.ConfigDict(result).to_dict()


def find_file(flag: str, name: str, folder: str) -> Path:
  """A file of a flag: from here, or 'configs/NAME.py' as installed with us.

  Args:
    flag: for the message.
    name: as given.
    folder: 'configs' or 'experiments', where files of its kind are.

  Raises:
    UserError: it is not there; with the nearest name.
  """
  package = Path(__file__).parent  # beside it, in a clone
  places = [Path(name), package / name, package.parent / name]
  for path in places[: 3 if Path(name).parent == Path(folder) else 1]:
    if path.is_file():
      return path
  beside = Path(name).parent
  found = [*beside.glob('*.py'), *beside.glob('*.json')]
  for place in (Path(folder), package / folder, package.parent / folder):
    found = found or [Path(folder, p.name) for p in place.glob('*.py')]
  raise UserError(
    f'{flag}={name}: no such file.' + did_you_mean(name, sorted(found))
  )


def read(target: str) -> dict[str, Any]:
  """The values of FILE[:ARG]: a Python config, or an earlier config.json.

  Raises:
    UserError: there is no such file, or it raises.
  """
  name, _, argument = target.partition(':')
  path = find_file('--config', name, 'configs')
  if path.suffix == '.json':
    try:
      return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
      raise UserError(f'{path} is not a config in JSON: {error}') from error
  return dict(_get_config(path, argument or None))


def _swap(values: dict, section: str, name: str) -> None:
  """Overrides a name: what the new choice does not know is dropped."""
  group = values.get(section) or {}
  if not isinstance(group, Mapping):
    raise UserError(f'config.{section} = {group!r}: expected a group.')
  group = dict(group, name=name)
  known = _section_schema(section, group)
  values[section] = {k: v for k, v in group.items() if k in known}


def override(values: dict, overrides: Sequence[tuple[str, str]]) -> dict:
  """Applies ('model.variant', 'B/16') pairs, names first, then the others.

  Raises:
    UserError: no such field, or the text does not read as its type.
  """
  for path, text in overrides:
    section, _, rest = path.partition('.')
    if rest == 'name' and section in SECTIONS:
      _swap(values, section, text)
  for path, text in overrides:
    node, schema, where = values, schema_of(values), 'config'
    *groups, leaf = path.split('.')
    for key in [*groups, leaf]:
      if not isinstance(schema, dict) or key not in schema:
        known = schema if isinstance(schema, dict) else ()
        raise UserError(
          f'{where}.{key} is not a config field.' + did_you_mean(key, known)
        )
      schema, where = schema[key], f'{where}.{key}'
      if key is not leaf:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
          raise UserError(f'{where} = {node!r}: expected a group.')
    if isinstance(schema, dict):
      raise UserError(
        f'{where} is a group: set one of its fields, '
        + ', '.join(f'--{where}.{key}' for key in schema)
      )
    node[leaf] = parse(where, text, schema.hint)
  return values


def load(
  target: str | None, overrides: Sequence[tuple[str, str]] = ()
) -> ml_collections.FrozenConfigDict:
  """The complete config of FILE[:ARG] (None: the defaults) and overrides."""
  values = get_config().to_dict() if target is None else read(target)
  try:  # a typo in the file is told before an override can hide it
    _fill(values, schema_of(values), 'config')
  except UserError as error:
    raise UserError(f'{target}: {error}') from None
  return resolve(override(values, overrides))


def flat(
  values: Mapping[str, Any] | ml_collections.FrozenConfigDict, prefix: str = ''
) -> dict[str, Any]:
  """{'model.variant': 'S/16', ...}, groups joined by dots."""
  result = {}
  for key, value in values.items():
    if isinstance(value, Mapping | ml_collections.FrozenConfigDict):
      result |= flat(value, f'{prefix}{key}.')
    else:
      result[prefix + key] = value
  return result


def to_json(config: ml_collections.FrozenConfigDict) -> str:
  """The text of config.json."""
  return json.dumps(config.to_dict(), indent=2) + '\n'
