"""Where the pictures of tar shards begin: scanned once, then kept."""

import hashlib
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vit_jax.data.images import EXTENSIONS
from vit_jax.data.sources import place_of
from vit_jax.errors import UserError

_LABELS = ('.cls', '.json')


def expand(pattern: str) -> list[str]:
  """'a-{00..02}.tar' -> ['a-00.tar', 'a-01.tar', 'a-02.tar']."""
  match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
  if not match:
    return [pattern]
  first, last = int(match[1]), int(match[2])
  if first > last:
    raise ValueError(f'{match[0]} is an empty range')
  numbers = [str(i).zfill(len(match[1])) for i in range(first, last + 1)]
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [text for n in numbers for text in expand(before + n + after)]


def open_shards(pattern: str, whole: bool) -> tuple[Any, list[str]]:
  """The file system of a pattern and the shards there, in order.

  Args:
    pattern: with '*' or '{000..146}'.
    whole: whether each number of a range has to have its shard.
  """
  import fsspec  # only here: its import takes a while

  try:
    texts = expand(pattern)
    fs = fsspec.core.url_to_fs(texts[0])[0]
    found, missing = [], []
    for text in texts:
      path = fs._strip_protocol(text)
      if re.search(r'[*?[]', path):
        found += fs.glob(path)
      else:
        (found if fs.isfile(path) else missing).append(path)
    if missing and not found and fs.isdir(missing[0]):
      raise ValueError(f"a folder; write '{missing[0]}/*.tar'")
  except (ImportError, ValueError, OSError) as error:
    raise UserError(
      f"config.data.name = 'tar:{pattern}' cannot be opened: {error}."
    ) from error
  if whole and found and missing:
    raise UserError(
      f"config.data.name = 'tar:{pattern}': {len(missing)} of {len(texts)} "
      f'shards are missing: {", ".join(missing[:3])}.'
    )
  return fs, sorted(found)


def _label(shard: str, name: str, extension: str, content: bytes) -> str:
  """The text of a .cls file, or the 'label' of a .json file."""
  try:
    text = content.decode().strip()
    value = json.loads(text)['label'] if extension == '.json' else text
    if value is None or value == '':
      raise ValueError('it is empty')
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{shard}: {name} gives no label ({error!r}): a .cls file holds it, a '
      ".json file has it under 'label'."
    ) from error
  return str(value)


def scan(fs: Any, shard: str) -> dict[str, np.ndarray]:
  """Where the pictures of a shard are, and what they show."""
  pictures: dict[str, tuple[int, int]] = {}
  labels: dict[str, str] = {}
  cut, end, others = '', 0, []
  with fs.open(shard, 'rb') as file:
    try:
      with tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
          folder, _, base = member.name.rpartition('/')
          stem, dot, rest = base.partition('.')
          name, extension = f'{folder}/{stem}', '.' + rest.lower()
          if not member.isfile() or not dot:
            continue
          if name in pictures and extension in EXTENSIONS:
            logging.warning('%s: two pictures %s, the last counts', shard, name)
          if rest.lower().endswith(EXTENSIONS) and extension not in EXTENSIONS:
            others.append(base)
          if extension in EXTENSIONS:
            pictures[name] = member.offset_data, member.size
          elif extension in _LABELS:
            content = tar.extractfile(member)
            assert content is not None
            labels[name] = _label(shard, base, extension, content.read())
          end = member.offset_data + -(-member.size // 512) * 512
      file.seek(end)
      if file.read(512) != bytes(512):
        cut = 'it has no end'
    except (tarfile.TarError, OSError, EOFError) as error:
      cut = str(error)
  if others:
    logging.warning(
      '%s: %d pictures such as %s are left out: a key ends at the first dot',
      shard,
      len(others),
      others[0],
    )
  names = [name for name in pictures if name in labels]
  if not cut and len(names) < len(pictures):
    lost = next(name for name in pictures if name not in labels)
    raise UserError(f'{shard}: {lost.lstrip("/")} has no .cls or .json file.')
  places = [place_of(name) for name in names]
  return {
    'offset': np.array([pictures[n][0] for n in names], np.int64),
    'size': np.array([pictures[n][1] for n in names], np.int64),
    'place': np.array(places, np.uint64),
    'label': np.array([labels[n].encode() for n in names], np.bytes_),
    'name': np.array([n.lstrip('/').encode() for n in names], np.bytes_),
    'cut': np.array(cut),
  }


def index_of(fs: Any, shard: str, folder: Path) -> dict[str, np.ndarray]:
  """The index of a shard: from the cache, or made and kept there."""
  unique = f'{shard} {fs.ukey(shard)}'
  path = folder / f'{hashlib.sha256(unique.encode()).hexdigest()[:32]}.npz'
  try:
    with np.load(path) as kept:
      return dict(kept)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    index = scan(fs, shard)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.npz')
    np.savez(temporary, **index)
    temporary.replace(path)
  except OSError as error:
    logging.warning('%s: the index is not kept (%s)', path, error)
  return index
