"""Where data sets of TensorFlow Datasets lie on disk. No network, ever."""

import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, did_you_mean

_VERSION = r'\d+\.\d+\.\d+'


def root_of(data_dir: str) -> Path:
  """Where data sets are: data_dir, TFDS_DATA_DIR or ~/tensorflow_datasets."""
  path = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return Path(path).expanduser()


def command(argument: str, data_dir: str) -> str:
  """What prepares a data set."""
  flag = f' --data_dir={data_dir}' if data_dir else ''
  return f'`python -m vit_jax data prepare tfds:{argument}{flag}`'


def _on_disk(root: Path) -> list[tuple[str, str, str]]:
  """(name, config or '', version) of all data sets below a root."""
  paths = [
    p.relative_to(root).parts[:-1]
    for depth in ('*/*/', '*/*/*/')
    for p in root.glob(f'{depth}dataset_info.json')
  ]
  return sorted(
    (name, config[0] if config else '', version)
    for name, *config, version in paths
    if re.fullmatch(_VERSION, version)
  )


def _default_config(path: Path) -> str:
  """What tfds wrote down as the config to take if none is named."""
  try:
    metadata = json.loads((path / '.config' / 'metadata.json').read_text())
    return str(metadata['default_config_name'])
  except (OSError, ValueError, KeyError):
    return ''


def locate(argument: str, data_dir: str) -> Path | None:
  """The directory of NAME[/CONFIG][:VERSION], the latest version.

  Args:
    argument: that, or the directory itself.
    data_dir: where to look; '': see root_of.

  Returns:
    None if no such data set is on disk.

  Raises:
    UserError: several configs and none named, or not a name at all.
  """
  if argument[:1] in ('/', '.', '~'):
    path = Path(argument).expanduser()
    return path if (path / 'dataset_info.json').is_file() else None
  pattern = rf'([\w-]+)(?:/(?!{_VERSION}$)([^/:]+))?(?:[:/]([\d.*]+))?'
  match = re.fullmatch(pattern, argument)
  if not match:
    raise UserError(
      f"config.data.name = 'tfds:{argument}': write tfds:NAME, "
      'tfds:NAME/CONFIG, tfds:NAME:1.0.0 or tfds:/DIRECTORY/NAME/1.0.0.'
    )
  root = root_of(data_dir)
  name, config, version = match[1], match[2] or '', match[3] or '*'
  config = config or _default_config(root / name)
  found = [
    entry
    for entry in _on_disk(root)
    if entry[0] == name
    and entry[1] in ((config,) if config else (entry[1],))
    and fnmatch.fnmatch(entry[2], version)
  ]
  configs = sorted({entry[1] for entry in found})
  if len(configs) > 1:
    raise UserError(
      f"config.data.name = 'tfds:{argument}': {root / name} has several "
      'configs: ' + ', '.join(f'tfds:{name}/{c}' for c in configs if c)
    )
  if not found:
    return None
  latest = max(found, key=lambda entry: [*map(int, entry[2].split('.'))])
  return root.joinpath(*filter(None, latest))


def missing(argument: str, data_dir: str) -> UserError:
  """Says that a data set is not on disk, and what to do."""
  field = f"config.data.name = 'tfds:{argument}'"
  if argument[:1] in ('/', '.', '~'):
    path = Path(argument).expanduser()
    below = [p.parent for p in path.glob('**/dataset_info.json')]
    return UserError(
      f'{field}: no dataset_info.json in it.' + did_you_mean(path, below)
    )
  root = root_of(data_dir)
  known = _on_disk(root)
  names = {f'{n}/{c}'.rstrip('/') for n, c, _ in known}
  if re.split('[:/]', argument)[0] in {n for n, _, _ in known}:
    names = {f'{n}/{c}'.rstrip('/') + f':{v}' for n, c, v in known}
  return UserError(
    f'{field} is not on disk in {root} (config.data.data_dir).'
    + did_you_mean(argument, sorted(names))
    + f' {command(argument, data_dir)} prepares it.'
  )


def open_builder(path: Path) -> Any:
  """tfds's builder of a directory.

  Raises:
    UserError: what lies there is not what tfds wrote.
  """
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(path)
  except Exception as error:  # json, features, versions: tfds has many
    raise UserError(
      f'{path}: tfds cannot read this data set ({error}).'
    ) from error
