"""Tar shards of WebDataset: KEY.jpg and KEY.cls; indexed once, read by offset.

An index holds where each picture begins, so that any record is one read, in any
order; a shard is scanned once and its index kept in the user's cache, or in
`data.index_dir` (a shared disk, for many hosts). In memory a record takes about
50 bytes and no Python object.
"""

import hashlib
import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from vit_jax.data.images import EXTENSIONS, header
from vit_jax.data.sources import Record, split_base, split_range
from vit_jax.data.tar_index import index_of, open_shards
from vit_jax.errors import BadRecord, UserError

_SPARSE = 100_000  # a label from here on is a mistake, if most are not used
_SAMPLE = 64  # pictures of which the headers tell size and channels


class Tar:
  """Records of tar shards, on a disk or at a URL of fsspec's.

  `tar:PATTERN` with '*' or '{000..146}'. '{split}' in it stands for the split:
  'train', and 'test' or else 'val' or 'validation'; without it `holdout` of the
  records, chosen by the hash of their keys, are the split 'test'. Labels are
  numbers, named by the lines of a classes.txt beside the shards if there is
  one, or names, numbered in sorted order. Records are in the order of their
  keys' hashes, so that 'train[:90%]' is a fair sample.

  Attributes:
    broken: which shards are cut short.
  """

  def __init__(
    self,
    argument: str,
    split: str,
    *,
    holdout: float = 0.2,
    index_dir: str = '',
  ):
    if not 0 < holdout < 1:
      raise UserError(f'config.data.holdout = {holdout}: a fraction, 0 to 1.')
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    self._folder = Path(index_dir) if index_dir else cache / 'vit_jax' / 'tar'
    self._pattern, base = argument, split_base(split)
    held = '{split}' not in argument
    if held and base not in ('train', 'test'):
      raise UserError(
        f"split {split!r}: 'tar:{argument}' has 'train' and 'test' only; write "
        "'{split}' where the names of its shards have the split."
      )
    self._load('train')
    self.classes = self._name_classes()
    if len(self.classes) < 2:
      raise UserError(
        f"'tar:{argument}': all labels are {self.classes[0]!r}; at least two "
        'classes are needed.'
      )
    if not held and base != 'train':
      self._load(base)
    self._labels = self._number_labels()
    place = np.concatenate([index['place'] for index in self._indices])
    order = np.argsort(place, kind='stable')
    if held:
      test = place[order] < np.uint64(holdout * 2**64)
      order = order[test if base == 'test' else ~test]
    part = split_range(split, len(order))
    self._order = order[part.start : part.stop]
    self._survey()

  def _load(self, base: str):
    """The shards of a split and their indices, one after the other."""
    others = ('val', 'validation') if base == 'test' else ()
    for name in (base, *others):
      fs, shards = open_shards(
        self._pattern.replace('{split}', name),
        # Of a range for all splits, the others may have less.
        whole=name == 'train',
      )
      if shards:
        break
    else:
      raise UserError(
        f"config.data.name = 'tar:{self._pattern}': no shards"
        + (f' of the split {base!r}.' if '{split}' in self._pattern else '.')
      )
    self._fs, self._shards = fs, shards
    with ThreadPoolExecutor(8) as pool:
      run = pool.map(lambda shard: index_of(fs, shard, self._folder), shards)
      self._indices = []
      for number, index in enumerate(run, 1):
        self._indices.append(index)
        logging.log_every_n_seconds(
          logging.INFO, 'indexed %d of %d shards', 30, number, len(shards)
        )
    self.broken = tuple(
      f'{shard} is damaged after {len(index["name"])} records ({index["cut"]}).'
      for shard, index in zip(shards, self._indices, strict=True)
      if str(index['cut'])
    )
    self._starts = np.cumsum([0] + [len(i['name']) for i in self._indices])
    if not self._starts[-1]:
      raise UserError(
        f'{shards[0]}: no pictures ({", ".join(EXTENSIONS)}) with a .cls or '
        '.json file of the same name. ' + ' '.join(self.broken[:1])
      )

  def _texts(self) -> np.ndarray:
    return np.concatenate([index['label'] for index in self._indices])

  def _name_classes(self) -> tuple[str, ...]:
    texts = [text.decode() for text in np.unique(self._texts())]
    if not all(re.fullmatch(r'\d+', text) for text in texts):
      return tuple(sorted(texts))
    beside = self._shards[0].rpartition('/')[0] + '/classes.txt'
    if self._fs.exists(beside):
      return tuple(self._fs.cat_file(beside).decode().splitlines())
    most = max(texts, key=int)
    if int(most) >= max(_SPARSE, 100 * len(texts)):
      raise UserError(
        f"'tar:{self._pattern}': label {most} among {len(texts)} different "
        'ones: number the classes from 0, or write classes.txt beside the '
        'shards, a name a line.'
      )
    return tuple(map(str, range(1 + int(most))))

  def _number_labels(self) -> np.ndarray:
    known = {name: number for number, name in enumerate(self.classes)}
    texts, inverse = np.unique(self._texts(), return_inverse=True)
    numbers = []
    for text in (text.decode() for text in texts):
      digits = re.fullmatch(r'\d+', text) and text not in known
      number = int(text) if digits else known.get(text, len(known))
      if number >= len(known):
        raise UserError(
          f"'tar:{self._pattern}': label {text!r} is none of the "
          f'{len(known)} classes.'
        )
      numbers.append(number)
    return np.array(numbers, np.int32)[inverse]

  def _survey(self):
    """Size and channels of some, and the fingerprint of all."""
    step = max(1, len(self) // _SAMPLE)
    looked, sha = [], hashlib.sha256(repr(self.classes).encode())
    for index in range(0, len(self), step):
      try:
        record = self[index]
        sha.update(record['image'])
        looked.append(header(record['image'], record['key']))
      except BadRecord:
        continue
    if not looked:
      raise UserError(f"'tar:{self._pattern}': no picture can be read.")
    self.channels = 1 if all(grey for _, grey in looked) else 3
    side = min(64, round(statistics.median(min(s) for s, _ in looked)))
    self.size = (side, side)
    for shard, index in zip(self._shards, self._indices, strict=True):
      sha.update(shard.rpartition('/')[2].encode())
      for key in ('place', 'size', 'offset'):
        sha.update(index[key].tobytes())
    sha.update(self._order.tobytes() + self._labels.tobytes())
    self.fingerprint = sha.hexdigest()

  def __len__(self) -> int:
    return len(self._order)

  def _place(self, index: int) -> tuple[int, int]:
    """(number of the shard, number in it) of a record."""
    number = int(self._order[index])
    which = int(np.searchsorted(self._starts, number, side='right')) - 1
    return which, number - int(self._starts[which])

  def _key(self, which: int, at: int) -> str:
    name = self._indices[which]['name'][at].decode()
    return f'{self._shards[which]}: {name}'

  def key(self, index: int) -> str:
    return self._key(*self._place(index))

  def __getitem__(self, index: int) -> Record:
    which, at = self._place(index)
    rows, key = self._indices[which], self._key(which, at)
    start, size = int(rows['offset'][at]), int(rows['size'][at])
    try:
      image = self._fs.cat_file(
        self._shards[which], start=start, end=start + size
      )
    except OSError as error:
      raise BadRecord(f'{key} cannot be read: {error}.') from error
    if len(image) != size:
      raise BadRecord(f'{key} is cut short: {len(image)} of {size} bytes.')
    label = int(self._labels[self._order[index]])
    return {'image': image, 'label': label, 'key': key}
