"""Sources: random access to records, by a protocol any data set can meet."""

import functools
import gzip
import hashlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from vit_jax.errors import UserError

IGNORE = 255  # in a mask: a pixel that is not counted


class Record(TypedDict):
  """One example as stored."""

  image: bytes | np.ndarray  # an encoded file, or uint8 (h, w, c)
  # Of the image; or its mask, where the source has `masks`: the class of each
  # pixel, or IGNORE, as uint8 (h, w) or the bytes of such a PNG.
  label: int | bytes | np.ndarray
  key: str  # what a message about this record names


@runtime_checkable
class Source(Protocol):
  """Records by index; the order belongs to the loader.

  Optional: `masks`, True where a label is a mask, and `classes` are those of
  pixels; `parts`, see mixture.py; `broken`, messages of the records that were
  found damaged when the source was opened; `key(index)`, a record's key where
  that is known without reading it. A record that cannot be read raises
  BadRecord. Several threads read at once.
  """

  classes: tuple[str, ...]  # names, in the order of the labels
  size: tuple[int, int]  # (h, w) to train at if the config does not say
  channels: int
  # Changes with names, sizes or labels; with bytes of all records, or of a
  # sample where there are many.
  fingerprint: str

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Record: ...


def parse_name(name: str) -> tuple[str, str]:
  """'folder:/data/pets' -> ('folder', '/data/pets')."""
  kind, _, argument = name.partition(':')
  return kind, argument


def location(text: str) -> Any:
  """A Path, or what is used like one: of fsspec, 's3://bucket/images'.

  Raises:
    UserError: a protocol of which the package is not installed.
  """
  if '://' not in text:
    return Path(text).expanduser()
  from upath import UPath  # only here: its import takes a while

  try:
    path = UPath(text)
    _ = path.fs  # its package is imported here, not at the first read
    return path
  except (ImportError, ValueError) as error:
    raise UserError(f'{text} cannot be opened: {error}.') from error


def place_of(name: str) -> int:
  """64 bits of the hash of a name: a place that no other record changes."""
  hashed = hashlib.sha256(os.fsencode(name)).digest()[:8]
  return int.from_bytes(hashed, 'big')


def split_base(text: str) -> str:
  """'train[:90%]' -> 'train'."""
  return text.partition('[')[0]


def split_range(text: str, length: int) -> range:
  """The records that a split expression selects out of `length`.

  Args:
    text: 'train', 'train[1150:]', 'train[:90%]', 'train[-100:]'.
    length: records in the whole split.

  Raises:
    UserError: not an expression of that form, or it selects nothing.
  """
  number = r'(-?\d+%?)?'
  match = re.fullmatch(rf'[\w./-]+(?:\[{number}:{number}\])?', text)
  if not match:
    raise UserError(
      f"split {text!r}: write 'train', 'train[1150:]' or 'train[:90%]'."
    )

  def position(part: str | None) -> int | None:
    if part is None:
      return None
    if part.endswith('%'):
      return round(length * int(part[:-1]) / 100)
    return int(part)

  selected = range(length)[slice(position(match[1]), position(match[2]))]
  if not selected:
    raise UserError(f'split {text!r} selects none of the {length} examples.')
  return selected


def check_stated(source: Source, split: str, examples: int, classes: int):
  """Raises UserError unless the source is what the config stated."""
  if classes and classes != len(source.classes):
    raise UserError(
      f'config.data.classes = {classes}, but the source has '
      f'{len(source.classes)}.'
    )
  if examples and split == 'train' and examples != len(source):
    raise UserError(
      f'config.data.examples = {examples}, but split {split!r} has '
      f'{len(source)}.'
    )


@functools.cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 (1797, 8, 8, 1) and labels, without importing scikit-learn."""
  spec = importlib.util.find_spec('sklearn')
  assert spec and spec.origin
  path = Path(spec.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
  with gzip.open(path, 'rt') as file:
    table = np.loadtxt(file, delimiter=',')
  images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
  return images.reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)


class Digits:
  """The 1,797 real handwritten digits that ship with scikit-learn, 8x8 grey.

  A fixed split: `RandomState(0).permutation`, the first 1,437 are 'train', the
  other 360 'test' (Alpaydin and Kaynak, UCI Optical Recognition, 1998).
  """

  classes = tuple('0123456789')
  size = (8, 8)
  channels = 1

  def __init__(self, argument: str, split: str):
    if argument:
      raise UserError(
        f"config.data.name = 'digits:{argument}': write 'digits'."
      )
    images, labels = _read_digits()
    order = np.random.RandomState(0).permutation(len(images))
    parts = {'train': order[:1437], 'test': order[1437:]}
    base = split_base(split)
    if base not in parts:
      raise UserError(f"digits has no split {base!r}, only 'train' and 'test'.")
    part = parts[base]
    part = part[list(split_range(split, len(part)))]
    self._images, self._labels, self._ids = images[part], labels[part], part
    sha = hashlib.sha256(self._images.tobytes() + self._labels.tobytes())
    self.fingerprint = sha.hexdigest()

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> Record:
    return {
      'image': self._images[index],
      'label': int(self._labels[index]),
      'key': f'digits {self._ids[index]}',
    }
