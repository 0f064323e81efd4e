"""What differs between two runs, besides what they learned."""

from pathlib import Path
from typing import Any

from vit_jax import config as config_lib
from vit_jax import workdir
from vit_jax.errors import UserError


def _about(path: Path) -> dict[str, dict[str, Any]]:
  """{part: {name: value}} of a run."""
  config = workdir.read_json(path / 'config.json')
  if config is None:
    raise UserError(f'{path} holds no run (no config.json).')
  saved = workdir.read_json(path / 'provenance.json') or {}
  starts = saved.get('starts') or [{}]
  last = starts[-1]
  return {
    'config': config_lib.flat(config_lib.resolve(config)),
    'code': {'commit': last.get('commit')},
    'versions': last.get('versions', {}),
    'data': saved.get('data', {}),
    'devices': last.get('devices', {}),
    'starts': {'starts': len(saved.get('starts', []))},
  }


def diff(one: Path, other: Path) -> dict[str, dict[str, list[Any]]]:
  """{part: {name: [the one's, the other's]}}, of what is not the same.

  Of code, versions and devices by the last start of each.

  Raises:
    UserError: one of them is no run.
  """
  first, second = _about(one), _about(other)
  found = {}
  for part in first:
    a, b = first[part], second[part]
    names = sorted(a.keys() | b.keys())
    differing = {n: [a.get(n), b.get(n)] for n in names if a.get(n) != b.get(n)}
    if differing:
      found[part] = differing
  return found


def text(one: Path, other: Path, found: dict[str, Any]) -> str:
  """For people."""
  lines = [f'- {one}', f'+ {other}']
  for part, names in found.items():
    lines += ['', part]
    for name, (a, b) in names.items():
      lines.append(f'  {name}: {a!r} -> {b!r}')
  return '\n'.join(lines if found else [*lines, '', 'no difference'])
