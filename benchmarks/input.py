"""How fast pictures come, beside tf.data, torch and Grain.

Each peer lives in a process of its own and runs its rounds in turn, so that
whatever else the machine does hits all alike. All do the same: read a JPEG of
500x375, quality 90, crop 8 to 100 % of it at 3/4 to 4/3, resize to 224, flip
half of the time, and hand over batches of 64 in float32 from -1 to 1 (ours: JAX
arrays; the others: arrays in memory). Peers (none is needed):

  pip install torch==2.13.0 tensorflow-cpu grain
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks import measure, peers

_DROPPED = 6  # batches at the head of a round: made while others ran
GOALS = (
  ('ours', 'torch + Pillow', 2.0),
  ('ours', 'tf.data, not antialiased', 0.9),
  ('ours, 224x224 in memory, to the device', 'ours, to the device', 10.0),
)


def photo(number: int, h: int = 375, w: int = 500) -> Image.Image:
  """Smooth light, edges and texture: about as hard to code as a photograph."""
  rng = np.random.default_rng(number)
  pixels = np.zeros((h, w, 3), np.float32)
  for octave in (3, 6, 12, 24, 48, 96, 192, 384):
    waves = rng.normal(size=(max(2, octave * h // w), octave, 3))
    waves = waves.astype(np.float32)
    large = [
      Image.fromarray(waves[..., c]).resize((w, h), Image.Resampling.BICUBIC)
      for c in range(3)
    ]
    pixels += np.stack(large, -1) * (42 / (octave / 3) ** 0.33)
  for _ in range(12):  # things with edges
    y, x, a, b = (rng.random(4) * (h, w, h / 3, w / 3)).astype(int)
    pixels[y : y + a, x : x + b] += rng.normal(0, 40, 3)
  return Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int) -> float:
  """JPEGs in folder/jpeg, 224x224 PNGs in folder/png; kB of a JPEG."""
  size = 0
  for i in track(range(count), 'making pictures', transient=True):
    for split in ('train', 'test')[: 1 + (i < 2)]:
      for kind in ('jpeg', 'png'):
        path = folder / kind / split / 'ab'[i % 2] / f'{i:05}.{kind}'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = photo(i)
        if kind == 'jpeg':
          picture.save(path, quality=90)
          size += path.stat().st_size if split == 'train' else 0
        else:
          picture.resize((224, 224)).save(path)
  return size / count / 1000


def _side(folder: Path, batches: int, name: str):
  """A peer, as measure.in_turn has it."""
  once = peers.PEERS[name](folder)
  return lambda: once(_DROPPED, batches), None


def run(images: int, rounds: int, batches: int) -> dict[str, Any]:
  """Makes the pictures and measures; the record."""
  load = os.getloadavg()[0]
  absent = {name: peers.missing(name) for name in peers.PEERS}
  names = [name for name, why in absent.items() if not why]
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    kilobytes = make_pictures(folder, images)
    agree = peers.agreement(folder)
    assert agree['ours'] < 1, f'ours resizes otherwise than Pillow: {agree}'
    side = functools.partial(_side, folder, batches)
    found, died = measure.in_turn(side, names, rounds)
  rates = {name: measure.median(values) for name, values in found.items()}
  rows = [
    (
      name,
      rates[name],
      min(values),
      max(values),
      measure.ratio(found['ours'], values),
    )
    for name, values in found.items()
  ]
  missing = {n: why for n, why in (absent | died).items() if why}
  rows += [(name, why, '', '', '') for name, why in missing.items()]
  columns = ('', 'images/s', 'least', 'most', 'ours / it')
  levels = ((name, value) for name, value in agree.items())
  goals = {
    f'{one} / {other}': measure.goal(
      measure.ratio(found[one], found[other]), least=least
    )
    for one, other, least in GOALS
    if one in found and other in found
  }
  return measure.record(
    'input',
    load=load,
    about=f'{images} JPEGs of {kilobytes:.0f} kB, batches of {peers.BATCH}, '
    f'medians of {rounds} rounds, ratios of rounds',
    rates=rates,
    tables={
      'Input': measure.table(columns, rows),
      'Difference from Pillow, levels of 255': measure.table(
        ('', 'mean'), levels
      ),
    },
    goals=goals,
    kilobytes=kilobytes,
    rounds=found,
    missing=missing,
  )
