"""The files of a run: lock, config, provenance, result; all written whole."""

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax import config as config_lib
from vit_jax.defaults import RESUMABLE
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataInfo:
  """What a model has to know of the data; kept so that it outlives them."""

  classes: tuple[str, ...]
  size: tuple[int, int]  # (h, w)
  channels: int
  examples: int  # of the training split
  fingerprint: str


def write_json(path: Path, value: Any):
  """Replaces the file in one go: a reader never sees half of it."""
  text = value if isinstance(value, str) else json.dumps(value, indent=2) + '\n'
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(text)
  temporary.replace(path)


def read_json(path: Path) -> Any:
  """The value of a JSON file, or None where there is none.

  Raises:
    UserError: it is damaged.
  """
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise UserError(f'{path} is damaged: {error}') from error


def identity(path: Path) -> str:
  """A word of its own for a folder, which it keeps when it is moved."""
  file = path / '.id'
  if not file.exists():
    write_json(file, secrets.token_hex(8))
  return file.read_text().strip()


@contextmanager
def locked(path: Path) -> Iterator[None]:
  """Holds the workdir; the system lets go of it when the process ends.

  Raises:
    UserError: it cannot be written, or another process holds it.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    file = open(path / '.lock', 'a+')  # noqa: SIM115 (held until the end)
  except OSError as error:
    raise UserError(
      f'--workdir={path} cannot be written to: {error.strerror}.'
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.seek(0)
      holder = file.read().strip() or 'another process'
      raise UserError(f'--workdir={path} is in use by {holder}.') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    yield


# What only a writer is told; and what a reader, of the data, may be told too.
_FULL = 'no space left on device|disk quota exceeded|file too large'
_DISK = _FULL + (
  '|read-only file system|permission denied|operation not permitted|'
  'input/output error|stale file handle'
)


def disk_error(error: BaseException | None, path: Path) -> str:
  """What the disk of a workdir said, if it is the cause of an error; else ''.

  Writers of other libraries (TensorStore's) raise it as text, with the path of
  the file; Python leaves that out where a file that is open cannot be written.
  """
  while error is not None:
    text = str(error)
    of_workdir = str(path.absolute()) in text or str(path) in text
    bare = isinstance(error, OSError) and error.filename is None
    found = re.search(
      _DISK if of_workdir else _FULL if bare else '(?!)', text, re.IGNORECASE
    )
    if found:
      return found[0]
    error = error.__cause__ or error.__context__
  return ''


def _show(values: dict[str, Any], name: str) -> str:
  return repr(values[name]) if name in values else 'absent'


def check_resumable(path: Path, config: ml_collections.FrozenConfigDict):
  """Raises UserError if the workdir holds a run of another config."""
  saved = read_json(path / 'config.json')
  if saved is None:
    if (path / 'checkpoints').exists():
      raise UserError(f'--workdir={path} has checkpoints but no config.json.')
    return
  old = config_lib.flat(config_lib.resolve(saved))
  new = config_lib.flat(config)
  changed = [
    f'config.{name} was {_show(old, name)}, is now {_show(new, name)}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
    and not {name, name.split('.')[0]} & set(RESUMABLE)
    or name == 'task.teacher'  # may move, not come or go
    and bool(old.get(name)) != bool(new.get(name))
  ]
  if changed:
    raise UserError(
      f'--workdir={path} holds a run of another config: '
      + '; '.join(changed)
      + '. Use the same values to resume it, or another --workdir.'
    )


def _commit() -> str | None:
  """The commit of this code, with '+' where files were changed since."""
  root = Path(__file__).parent

  def git(*args):
    command = ['git', '-C', str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=10)

  try:
    head = git('rev-parse', 'HEAD')
    if head.returncode:
      return None
    changed = git('status', '--porcelain', '--untracked-files=no').stdout
    return head.stdout.strip() + ('+' if changed.strip() else '')
  except (OSError, subprocess.TimeoutExpired):
    return None


_PACKAGES = ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


def provenance_of_code() -> dict[str, Any]:
  """What code runs now, and where."""
  devices = jax.devices()
  return {
    'commit': _commit(),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
    'devices': {
      'kind': devices[0].device_kind,
      'count': len(devices),
      'processes': jax.process_count(),
    },
    'host': socket.gethostname(),
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
  }


def write_provenance(path: Path, info: DataInfo):
  """Adds this start to provenance.json: {'data': ..., 'starts': [...]}.

  Raises:
    UserError: the data are not those that the run began with.
  """
  entry = provenance_of_code()
  data = json.loads(json.dumps(dataclasses.asdict(info)))
  saved = read_json(path / 'provenance.json') or {'data': data, 'starts': []}
  if saved['data'] != data:
    names = [name for name in data if data[name] != saved['data'].get(name)]
    raise UserError(
      f'--workdir={path}: the data changed since the run began '
      f'({", ".join(names)}). Restore them, or use another --workdir.'
    )
  saved['starts'].append(entry)
  write_json(path / 'provenance.json', saved)


def check_same(path: Path, name: str, value: str, what: str):
  """Adds a fact to provenance.json, or compares it with what stands there.

  Raises:
    UserError: it changed since the run began.
  """
  saved = read_json(path / 'provenance.json')
  if saved.setdefault(name, value) != value:
    raise UserError(
      f'--workdir={path}: {what} is not the one that the run began with. '
      'Restore it, or use another --workdir.'
    )
  write_json(path / 'provenance.json', saved)


def read_data_info(path: Path) -> DataInfo:
  """What the run in a workdir was trained on.

  Raises:
    UserError: there is no run.
  """
  saved = read_json(path / 'provenance.json')
  if saved is None:
    raise UserError(f'--workdir={path} holds no run (no provenance.json).')
  data = {
    k: tuple(v) if isinstance(v, list) else v for k, v in saved['data'].items()
  }
  return DataInfo(**data)
