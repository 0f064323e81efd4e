"""Files of weights: names and arrays, read lazily; never a pickle."""

import functools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_jax.errors import UserError

_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.pkl', '.pickle', '.npy')
_UNREADABLE = (
  ValueError,
  zipfile.BadZipFile,
  EOFError,
  OSError,
  SafetensorError,
)


class Tensors(Mapping):
  """Arrays by name; each is read when it is asked for, and not kept."""

  def __init__(self, names: Mapping[str, Callable[[], np.ndarray]], path: Path):
    self._read, self.path = names, path

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._read:
      raise KeyError(name)
    try:
      array = self._read[name]()
    except _UNREADABLE as error:
      why = (
        'objects are pickles, which can run code'
        if ('allow_pickle' in str(error))
        else str(error)
      )
      raise UserError(
        f'{self.path}: {name!r} cannot be read: {why}.'
      ) from error
    return array

  def __contains__(self, name: object) -> bool:
    return name in self._read

  def __iter__(self) -> Iterator[str]:
    return iter(self._read)

  def __len__(self) -> int:
    return len(self._read)

  def renamed(self, function: Callable[[str], str | None]) -> 'Tensors':
    """With other names; those for which the function gives None left out."""
    names = {function(name): read for name, read in self._read.items()}
    names = {name: read for name, read in names.items() if name is not None}
    return Tensors(names, self.path)


def _safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
  def read(name: str) -> np.ndarray:
    # Opened for each: pages of a file that stays mapped stay in memory.
    with safe_open(path, 'numpy') as file:
      return file.get_tensor(name)

  try:
    with safe_open(path, 'numpy') as file:
      names = file.keys()
  except (SafetensorError, OSError) as error:
    raise UserError(f'{path} is truncated or damaged: {error}') from error
  return {name: functools.partial(read, name) for name in names}


def _npz(path: Path) -> dict[str, Callable[[], np.ndarray]]:
  if not zipfile.is_zipfile(path):  # its directory stands at the end
    raise UserError(f'{path} is truncated or damaged: no .npz archive.')
  file = np.load(path, allow_pickle=False)
  return {name: (lambda name=name: file[name]) for name in file.files}


def _sharded(index: Path) -> dict[str, Callable[[], np.ndarray]]:
  parts = json.loads(index.read_text())['weight_map']
  names = {}
  for file in sorted(set(parts.values())):
    if not (index.parent / file).is_file():
      raise UserError(f'{index.parent / file}: missing, but named in {index}.')
    names |= _safetensors(index.parent / file)
  return names


def read(path: Path) -> tuple[Tensors, dict[str, Any]]:
  """The tensors of a file or folder, and the config.json beside them, if any.

  Raises:
    UserError: no such file, a pickle, or a damaged file.
  """
  if path.is_dir():
    for name in ('model.safetensors.index.json', 'model.safetensors'):
      if (path / name).is_file():
        path = path / name
        break
    else:
      raise UserError(f'{path}: no model.safetensors in this folder.')
  if not path.is_file():
    raise UserError(f'{path}: no such file of weights.')
  if path.suffix in _PICKLES:
    raise UserError(
      f'{path}: {path.suffix} files are pickles, which can run code when they '
      'are read, so they are refused. Save them as safetensors where you trust '
      "them: safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )
  if path.name.endswith('.index.json'):
    names = _sharded(path)
  elif path.suffix == '.safetensors':
    names = _safetensors(path)
  elif path.suffix == '.npz':
    names = _npz(path)
  else:
    raise UserError(f'{path}: weights are .safetensors or .npz files.')
  beside = path.parent / 'config.json'
  try:
    config = json.loads(beside.read_text()) if beside.is_file() else {}
  except ValueError as error:
    raise UserError(f'{beside} is not JSON: {error}') from error
  return Tensors(names, path), config


def write(
  path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
):
  """Writes .safetensors, with config.json beside it, or .npz."""
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
  if path.suffix == '.npz':
    np.savez(path, allow_pickle=False, **arrays)
    return
  save_file(arrays, path, metadata={'format': 'pt'})
  (path.parent / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
