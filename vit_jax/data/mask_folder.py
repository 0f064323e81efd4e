"""A folder of pictures and their masks: PATH/train/images, PATH/train/masks."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from vit_jax.data import masks
from vit_jax.data.folder import (
  Folder,
  attempted,
  held_out,
  picture_files,
  read_bytes,
)
from vit_jax.data.images import header
from vit_jax.data.sources import place_of, split_base
from vit_jax.errors import BadRecord, UserError

_SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'validation'),
  'test': ('test', 'testing'),
}
# Of pictures, of masks; the third is ADE20k's.
_LAYOUTS = (
  ('{}/images', '{}/masks'),
  ('images/{}', 'masks/{}'),
  ('images/{}', 'annotations/{}'),
)
_READ = 2000  # masks that are read for their numbers if nothing names them


def _stem(name: str, folder: str) -> str:
  return name[len(folder) + 1 :].rpartition('.')[0]


class Masks(Folder):
  """Pictures, and for each a mask of the same name, a PNG.

  `PATH/train/images/NAME.jpg` and `PATH/train/masks/NAME.png`, `val` and `test`
  likewise, or PATH/images/training and PATH/annotations/training as ADE20k has
  it; without `val` and `test`, or as PATH/images and PATH/masks, `holdout` of
  them is the split 'test'. PATH/classes.txt names the classes, one a line; the
  first has the number `mask_start` in a mask, the next one more. Without it the
  classes are the numbers in the training masks. Numbers below `mask_start` and
  those of `mask_ignore` are not counted. Else as Folder.
  """

  kind, masks = 'masks', True

  def __init__(
    self,
    argument: str,
    split: str,
    *,
    holdout: float = 0.2,
    cache_mb: int = 512,
    mask_start: int = 0,
    mask_ignore: tuple[int, ...] = (255,),
  ):
    masks.check_numbers(mask_start, mask_ignore)
    self._start, self._ignore = mask_start, mask_ignore
    super().__init__(argument, split, holdout=holdout, cache_mb=cache_mb)
    sha = hashlib.sha256(self.fingerprint.encode() + self._table.tobytes())
    self.fingerprint = sha.hexdigest()

  def _folders(self) -> dict[str, tuple[str, str]]:
    """Of each split: the folders of pictures and of masks, below PATH."""
    found = {
      split: (images.format(name), labels.format(name))
      for split, names in _SPLITS.items()
      for name in names
      for images, labels in _LAYOUTS
      if all((self._path / f.format(name)).is_dir() for f in (images, labels))
    }
    if 'test' not in found and 'val' in found:
      found['test'] = found['val']
    if 'train' in found:
      return found
    for labels in ('masks', 'annotations'):
      if (self._path / 'images').is_dir() and (self._path / labels).is_dir():
        return {'train': ('images', labels), 'all': ('images', labels)}
    raise UserError(
      f'{self._path} has no train/images and train/masks, nor images/training '
      'and annotations/training, nor images and masks.'
    )

  def _find(self, split: str, holdout: float):
    folders, base = self._folders(), split_base(split)
    if base not in folders and base != 'test':
      raise UserError(
        f'split {split!r}: {self._path} has no such folder, only '
        + ', '.join(sorted({*folders, 'test'}))
      )
    self._root = self._path
    images, labels = folders.get(base, folders['train'])
    files = picture_files(self._path, images)
    known = {_stem(f, labels) for f in self._pngs(labels)}
    alone = len(known - {_stem(f, images) for f in files})
    if alone:
      logging.warning(
        '%s: %d masks have no picture.', self._path / labels, alone
      )
    if 'test' not in folders and base != 'all':
      files = held_out(files, holdout, base == 'test')
    self._items = [(f, f'{labels}/{_stem(f, images)}.png') for f in files]
    self._items.sort(key=lambda item: place_of(item[0]))
    if not self._items:
      raise UserError(f'split {split!r}: no pictures in {self._path / images}.')
    self._name_classes(folders['train'][1])

  def _pngs(self, folder: str) -> list[str]:
    found = picture_files(self._path, folder)
    return [name for name in found if name.lower().endswith('.png')]

  def _name_classes(self, folder: str):
    path = self._path / 'classes.txt'
    if path.exists():
      lines = path.read_text().splitlines()
      self.classes = tuple(line.strip() for line in lines if line.strip())
      values = range(self._start, self._start + len(self.classes))
    else:
      values = self._numbers(folder)
      self.classes = tuple(map(str, values))
    if not 2 <= len(values) <= 254 or values[-1] > 255:
      raise UserError(
        f'{path if path.exists() else self._path / folder}: {len(values)} '
        f'classes ({", ".join(self.classes[:3])}); 2 to 254 are needed, with '
        'numbers of at most 255. Not counted are numbers below '
        f'config.data.mask_start = {self._start} and those of '
        f'config.data.mask_ignore = {self._ignore}.'
      )
    self._table = masks.table(values, self._ignore, self._start)

  def _numbers(self, folder: str) -> list[int]:
    """What stands in the masks of the training, in order."""
    names = self._pngs(folder)
    if len(names) > _READ:
      raise UserError(
        f'{self._path / "classes.txt"} is missing: a line for each class. '
        f'(Of at most {_READ:,} masks the numbers would be looked up.)'
      )

    def present(name):
      path = self._path / name
      pixels = masks.decode(read_bytes(path), str(path))
      return np.bincount(pixels.ravel(), minlength=256) > 0

    with ThreadPoolExecutor(4) as pool:
      looked = list(pool.map(attempted(present), names))
    found = [x for x in looked if not isinstance(x, BadRecord)]
    seen = np.any(found, 0) if found else np.zeros(256, bool)
    seen[: self._start] = seen[list(self._ignore)] = False
    return np.flatnonzero(seen).tolist()

  def _mask_bytes(self, item: tuple[str, Any]) -> bytes:
    try:
      return read_bytes(self._root / item[1])
    except BadRecord as error:
      raise BadRecord(f'{self._root / item[0]} has no mask: {error}') from error

  def _look(self, item: tuple[str, Any]):
    size, grey, digest = super()._look(item)
    data = self._mask_bytes(item)
    shape, _ = header(data, str(self._root / item[1]))
    masks.check_size(shape, size, str(self._root / item[0]))
    return size, grey, digest + hashlib.blake2b(data, digest_size=16).digest()

  def _read(self, item: tuple[str, Any]) -> tuple[bytes, Any]:
    image, _ = super()._read(item)
    masks.check_upright(image, f'{self._root}/{item[0]}')
    key = f'{self._root}/{item[1]}'
    data = self._mask_bytes(item)
    return image, masks.numbered(data, self._table, len(self.classes), key)
