"""Looking at data before training on them: every record."""

import collections
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vit_jax.data import masks
from vit_jax.data.images import decode, header
from vit_jax.data.sources import IGNORE, Source
from vit_jax.errors import BadRecord, UserError
from vit_jax.setup import open_group

_SHOWN = 10  # records of a kind that are listed by name


def _masks(source: Source) -> bool:
  return getattr(source, 'masks', False)


def _look(source: Source, index: int) -> tuple[int, int, int, bool, Any]:
  """(hash, h, w, whether it is grey, label) of a record, wholly decoded.

  Of a mask the number of pixels of each label, (256,).
  """
  record = source[index]
  image, key = record['image'], record['key']
  if isinstance(image, bytes):
    grey = header(image, key)[1]
    image = decode(image, 1 if grey else 3, key)
  h, w, channels = image.shape
  grey = channels == 1
  # Of pixels: a source may keep them decoded, in one split and not in another.
  pixels = np.broadcast_to(image, (h, w, 3)).tobytes()
  digest = hashlib.blake2b(
    f'{h} {w} '.encode() + pixels, digest_size=8
  ).digest()
  label = record['label']
  if _masks(source):
    mask = masks.read(record, len(source.classes))
    label = np.bincount(mask.ravel(), minlength=256)
  return int.from_bytes(digest, 'big'), h, w, grey, label


def _walk(source: Source, workers: int) -> Iterator[Any]:
  """What `_look` finds of each record, in order, or the BadRecord it raised."""

  def attempt(index):
    try:
      return _look(source, index)
    except BadRecord as error:
      return error

  with ThreadPoolExecutor(max(1, workers)) as pool:
    for start in range(0, len(source), 1024):  # bounded: 100 M may come
      yield from pool.map(attempt, range(start, min(start + 1024, len(source))))


def _of_split(source: Source, name: str, workers: int) -> tuple[dict, Any]:
  """The report of a split, and the hash of each sound record by its index."""
  size = len(source)
  sizes, count = np.zeros((size, 2), np.int32), len(source.classes)
  counts, pixels = np.zeros(count, np.int64), np.zeros(256, np.int64)
  hashes, grey = np.zeros(size, np.uint64), np.zeros(size, bool)
  bad = np.zeros(size, bool)
  unreadable = list(getattr(source, 'broken', ()))
  found = track(
    _walk(source, workers),
    f'checking {name}',
    total=size,
    console=Console(stderr=True),
    disable=not Console(stderr=True).is_terminal,
  )
  for i, result in enumerate(found):
    if isinstance(result, BadRecord):
      bad[i] = True
      if str(result) not in unreadable:
        unreadable.append(str(result))
    else:
      hashes[i], *sizes[i], grey[i], label = result
      if _masks(source):
        pixels += label
        counts += label[:count] > 0
      else:
        counts[label] += 1
  good = ~bad
  if not good.any():
    raise UserError(f'split {name!r}: no record can be read: {unreadable[0]}')
  sound = np.flatnonzero(good)
  _, first = np.unique(hashes[good], return_index=True)
  copies = np.setdiff1d(np.arange(len(sound)), first)
  report = {
    'examples': size,
    'unreadable': unreadable,
    'duplicates': len(copies),
    'duplicate_keys': [source[int(sound[i])]['key'] for i in copies[:_SHOWN]],
    'grey': int(grey[good].sum()),
    'height': [int(x) for x in np.percentile(sizes[good, 0], (0, 50, 100))],
    'width': [int(x) for x in np.percentile(sizes[good, 1], (0, 50, 100))],
    'classes': dict(zip(source.classes, counts.tolist(), strict=True)),
    'fingerprint': source.fingerprint,
  }
  if _masks(source):
    shares = pixels[:count] / pixels[:count].sum()
    report |= {
      'pixels': dict(zip(source.classes, shares.tolist(), strict=True)),
      'ignored': float(pixels[IGNORE] / pixels.sum()),
    }
  return report, (hashes, sound)


def check(
  config: ml_collections.FrozenConfigDict, splits: Sequence[str]
) -> dict[str, Any]:
  """Reads every record of some splits: what is there and what is wrong.

  Args:
    config: complete; its group `data` says what to read.
    splits: groups of config.data, or expressions such as 'train[:10%]'.

  Returns:
    {split: counts, sizes [least, median, largest], unreadable, duplicates by
    content, examples of each class, fingerprint; of masks, each class's share
    of the counted pixels, and what is not counted}, and under 'shared' the
    number of pictures that stand in two splits.

  Raises:
    UserError: a split cannot be opened, or nothing of it can be read.
  """
  report: dict[str, Any] = {}
  seen: dict[str, Any] = {}
  for split in splits:
    source = open_group(config.data, split, on_error='skip')
    workers = config.data.workers
    report[split], (hashes, sound) = _of_split(source, split, workers)
    seen[split] = hashes[sound]
  report['shared'] = {
    f'{a} and {b}': len(np.intersect1d(seen[a], seen[b]))
    for i, a in enumerate(splits)
    for b in splits[i + 1 :]
  }
  return report


def text(report: dict[str, Any]) -> str:
  """The report as a table and lists, for people."""
  console = Console(width=100, highlight=False)
  splits = [name for name in report if name != 'shared']
  table = Table('', *splits)
  for row in ('examples', 'duplicates', 'grey', 'height', 'width'):
    cells = [report[s][row] for s in splits]
    table.add_row(
      row,
      *(
        f'{c[0]} to {c[2]}, median {c[1]}' if isinstance(c, list) else f'{c:,}'
        for c in cells
      ),
    )
  table.add_row(
    'unreadable', *(f'{len(report[s]["unreadable"]):,}' for s in splits)
  )
  if 'pixels' in report[splits[0]]:
    for row in ('pixels', 'ignored'):
      table.add_row(row, *(_of_pixels(report[s][row]) for s in splits))
  for label in ('classes', 'fewest', 'most', 'fingerprint'):
    table.add_row(label, *(_about(report[s], label) for s in splits))
  with console.capture() as capture:
    console.print(table)
    for split in splits:
      for line in report[split]['unreadable'][:_SHOWN]:
        console.print(f'unreadable: {line}', markup=False, soft_wrap=True)
      for key in report[split]['duplicate_keys']:
        console.print(f'duplicate: {key}', markup=False, soft_wrap=True)
    for pair, count in report['shared'].items():
      if count:
        console.print(f'{count:,} pictures are in both {pair}.')
  return capture.get().rstrip()


def _of_pixels(shares: dict[str, float] | float) -> str:
  if isinstance(shares, float):
    return f'{shares:.1%}'
  (least, low), *_, (most, high) = sorted(shares.items(), key=lambda x: x[1])
  return f'{low:.1%} of {least} to {high:.1%} of {most}'


def _about(split: dict[str, Any], label: str) -> str:
  counts = collections.Counter(split['classes'])
  if label == 'classes':
    return str(len(counts))
  if label == 'fingerprint':
    return split['fingerprint'][:16]
  name, count = (
    counts.most_common()[-1] if label == 'fewest' else counts.most_common()[0]
  )
  return f'{count:,} of {name}'
