"""A folder of pictures: PATH/train/CLASS/*.jpg, and PATH/test or a hold-out."""

import contextlib
import hashlib
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from vit_jax.data.images import EXTENSIONS, decode, header
from vit_jax.data.sources import (
  Record,
  location,
  place_of,
  split_base,
  split_range,
)
from vit_jax.errors import BadRecord, UserError, did_you_mean

_HEADERS = 20_000  # larger folders are sampled, and decoded as they are read


def read_bytes(path: Any) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    why = error.strerror or type(error).__name__
    raise BadRecord(f'{path} cannot be read: {why}.') from error


def _subfolders(path: Any) -> list[str]:
  return sorted(
    p.name for p in path.iterdir() if p.is_dir() and p.name[0] not in '._'
  )


def picture_files(root: Any, name: str) -> list[str]:
  """Pictures below root/name, relative to root, in order; a word on others."""
  found, others = [], []
  for path in sorted((root / name).rglob('*')):
    relative = path.relative_to(root).as_posix()
    if path.name.startswith('.') or path.is_dir():
      continue
    image = path.suffix.lower() in EXTENSIONS
    (found if image else others).append(relative)
  if others:
    logging.warning(
      '%s: %d files are not pictures (%s) and are left out, such as %s',
      root / name,
      len(others),
      ', '.join(EXTENSIONS),
      others[0],
    )
  return found


def held_out(files: list[str], holdout: float, test: bool) -> list[str]:
  """The files that are, or are not, of the fraction that is held out."""
  limit = holdout * 2**64
  return [f for f in files if (place_of(f) < limit) == test]


def attempted(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """The function, which gives the error that a bad record raises."""

  def attempt(item):
    try:
      return function(item)
    except BadRecord as error:
      return error

  return attempt


class Folder:
  """Pictures in a folder a class, on a disk or at a URL of fsspec's.

  `PATH/train/CLASS/*.{png,jpg,jpeg,webp}` and `PATH/test/CLASS/...` (or
  `val/`); without a test folder, `holdout` of the files, chosen by the hash of
  their names, are the split 'test'. `PATH/CLASS/...` without `train/` works
  too, and has a split 'all'. Labels are the sorted class folders of the
  training split; records are in the order of their names' hashes, so that
  'train[:90%]' is a fair sample. A folder of which the decoded pixels fit
  `cache_mb` is decoded once, at first.

  Attributes:
    broken: what is wrong with the files that were found damaged.
  """

  kind, masks = 'folder', False

  def __init__(
    self,
    argument: str,
    split: str,
    *,
    holdout: float = 0.2,
    cache_mb: int = 512,
  ):
    self._path = location(argument)
    if not argument or not self._path.is_dir():
      near: list[str] = []
      with contextlib.suppress(OSError):  # also what may not be listed
        near = sorted(path.name for path in self._path.parent.iterdir())
      raise UserError(
        f"config.data.name = '{self.kind}:{argument}': no such folder."
        + did_you_mean(self._path.name, near)
      )
    if not 0 < holdout < 1:
      raise UserError(f'config.data.holdout = {holdout}: a fraction, 0 to 1.')
    self._find(split, holdout)
    selected = split_range(split, len(self._items))
    self._items = [self._items[i] for i in selected]
    self._cache: list[tuple[np.ndarray, Any] | BadRecord] | None = None
    self._survey(cache_mb)

  def _find(self, split: str, holdout: float):
    path, base = self._path, split_base(split)
    train = path / 'train' if (path / 'train').is_dir() else path
    folders = {'train': train}
    for name in ('val', 'test'):  # the later one wins
      if train != path and (path / name).is_dir():
        folders['test'] = folders[name] = path / name
    if train == path:
      folders['all'] = path
    if base not in folders and base != 'test':
      raise UserError(
        f'split {split!r}: {path} has no folder {base!r}, only '
        + ', '.join(sorted({*folders, 'test'}))
      )
    self.classes = tuple(_subfolders(train))
    if 'images' in self.classes and {*self.classes} & {'masks', 'annotations'}:
      raise UserError(
        f'{train} has images and masks: config.data.name = '
        f"'masks:{path}' reads them."
      )
    if len(self.classes) < 2:
      what = f'only {self.classes[0]!r}' if self.classes else 'none'
      raise UserError(
        f'{train} needs a subfolder of pictures for each class, at least two; '
        f'it has {what}.'
      )
    root = folders.get(base, train)
    extra = sorted(set(_subfolders(root)) - set(self.classes))
    if extra:
      raise UserError(f'{root / extra[0]}: no such class in {train}.')
    self._root = root
    self._items: list[tuple[str, Any]] = []  # a picture, its label
    for label, name in enumerate(self.classes):
      if not (root / name).is_dir():
        continue
      files = picture_files(root, name)
      if root is train and not files:
        raise UserError(
          f'{root / name}: no pictures ({", ".join(EXTENSIONS)}).'
        )
      if 'test' not in folders and base != 'all':
        files = held_out(files, holdout, base == 'test')
      self._items += [(file, label) for file in files]
    self._items.sort(key=lambda item: place_of(item[0]))
    if not self._items:
      raise UserError(
        f'split {split!r}: no pictures in {root}'
        + (
          '.' if 'test' in folders else f' at config.data.holdout = {holdout}.'
        )
      )

  def _survey(self, cache_mb: int):
    """Size, channels and fingerprint from the headers; decodes if it fits."""
    step = max(1, len(self._items) // 512) if len(self) > _HEADERS else 1
    items = self._items[::step]
    with ThreadPoolExecutor(4) as pool:
      looked = list(pool.map(attempted(self._look), items))
      read = [x for x in looked if not isinstance(x, BadRecord)]
      good = [(size, grey) for size, grey, _ in read]
      if not good:
        raise UserError(f'{self._root}: no picture can be read: {looked[0]}')
      sizes = [size for size, _ in good]
      self.channels = 1 if all(grey for _, grey in good) else 3
      side = min(64, round(statistics.median(min(s) for s in sizes)))
      self.size = (side, side)
      size = sum(h * w for h, w in sizes) * (self.channels + self.masks)
      if step == 1 and size <= cache_mb * 2**20 and len(good) == len(items):
        looked = self._cache = list(pool.map(attempted(self._decode), items))
    self.broken = tuple(str(x) for x in looked if isinstance(x, BadRecord))
    sha = hashlib.sha256(repr(self.classes).encode())
    for name, label in self._items:
      path = self._root / name
      size = path.stat().st_size if path.exists() else -1
      sha.update(f'{name} {label} {size}\n'.encode())
    for *_, digest in read:  # of all files, or of a sample of many
      sha.update(digest)
    self.fingerprint = sha.hexdigest()

  def _look(self, item: tuple[str, Any]):
    """Size, whether it is grey, and a digest, without decoding."""
    path = self._root / item[0]
    data = read_bytes(path)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return *header(data, str(path)), digest

  def _read(self, item: tuple[str, Any]) -> tuple[bytes, Any]:
    """The bytes of a picture, and its label."""
    return read_bytes(self._root / item[0]), item[1]

  def _decode(self, item: tuple[str, Any]) -> tuple[np.ndarray, Any]:
    data, label = self._read(item)
    return decode(data, self.channels, str(self._root / item[0])), label

  def __len__(self) -> int:
    return len(self._items)

  def key(self, index: int) -> str:
    """The path of a record, which is not read."""
    # Not by pathlib, which takes longer than all else that `[]` does.
    return f'{self._root}/{self._items[index][0]}'

  def __getitem__(self, index: int) -> Record:
    cached = self._cache
    found = cached[index] if cached else self._read(self._items[index])
    if isinstance(found, BadRecord):
      raise found
    image, label = found
    return {'image': image, 'label': label, 'key': self.key(index)}
