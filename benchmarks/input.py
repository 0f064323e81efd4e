"""How fast pictures come, beside tf.data, torch and Grain.

Each peer lives in a process of its own and runs its rounds in turn, so that
whatever else the machine does hits all alike. All do the same: read a JPEG of
500x375, quality 90, crop 8 to 100 % of it at 3/4 to 4/3, resize to 224, flip
half of the time, and hand over batches of 64 in float32 from -1 to 1 (ours: JAX
arrays; the others: arrays in memory). Peers (none is needed):

  pip install torch==2.13.0 tensorflow-cpu grain
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import peers
from vit_jax.workdir import provenance_of_code

_DROPPED = 6  # batches at the head of a round: made while others ran
GOALS = (
  ('ours', 'torch + Pillow', 2.0),
  ('ours', 'tf.data, not antialiased', 0.9),
  ('ours, 224x224 in memory, to the device', 'ours, to the device', 10.0),
  ('loop on digits', 'step on digits', 0.95),
  ('loop on JPEGs', 'step on JPEGs', 0.95),
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


def _serve(name: str, folder: str, batches: int, pipe: Any):
  """A peer's process: a round for each message, until None comes."""
  try:
    measure = peers.PEERS[name](Path(folder))
    pipe.send('ready')
    while pipe.recv():
      pipe.send(measure(_DROPPED, batches))
  except EOFError:
    pass
  except Exception:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(0)  # some frameworks' threads outlive the iterator


def measure(
  folder: Path, rounds: int, batches: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
  """Images a second of each peer and round; why others were left out."""
  context = multiprocessing.get_context('spawn')
  pipes, rates, missing = {}, {}, {}
  for name in peers.PEERS:
    reason = peers.missing(name)
    if reason:
      missing[name] = reason
      continue
    pipes[name], there = context.Pipe()
    # Not daemonic: a peer may have worker processes. It ends with its pipe.
    context.Process(
      target=_serve, args=(name, str(folder), batches, there)
    ).start()
    there.close()
    pipes[name].recv()  # ready
    rates[name] = []
  for number in track(range(rounds + 1), 'measuring', transient=True):
    for name in list(pipes):
      try:
        pipes[name].send(True)
        rate = pipes[name].recv()
      except (EOFError, OSError):
        missing[name] = 'its process died'
        del pipes[name], rates[name]
        continue
      rates[name] += [rate] if number else []  # the first one warms up
  for pipe in pipes.values():
    pipe.close()
  return rates, missing


def run(images: int, rounds: int, batches: int) -> dict[str, Any]:
  """Makes the pictures, measures, prints the tables; what to write as JSON."""
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    kilobytes = make_pictures(folder, images)
    agree = peers.agreement(folder)
    rates, missing = measure(folder, rounds, batches)
  medians = {name: statistics.median(values) for name, values in rates.items()}
  console = Console(highlight=False)
  table = Table('', 'images/s', 'least', 'most', 'ours / it')
  for name, values in rates.items():
    table.add_row(
      name,
      *(f'{x:,.0f}' for x in (medians[name], min(values), max(values))),
      f'{medians["ours"] / medians[name]:.2f}',
    )
  for name, reason in missing.items():
    table.add_row(name, reason)
  console.print(
    f'{images} JPEGs of {kilobytes:.0f} kB, batches of {peers.BATCH}, medians '
    f'of {rounds} rounds; load before {load:.2f}, {os.cpu_count()} CPUs'
  )
  console.print(table)
  goals = {}
  for one, other, goal in GOALS:
    if one in medians and other in medians:
      ratio = medians[one] / medians[other]
      goals[f'{one} / {other}'] = {'ratio': round(ratio, 3), 'goal': goal}
      met = 'met' if ratio >= goal else 'NOT met'
      console.print(f'{one} / {other}: {ratio:.2f}, goal {goal}: {met}')
  for name, levels in agree.items():
    console.print(f'{name} differs from Pillow by {levels:.2f} levels of 255')
  return {
    'benchmark': 'input',
    **provenance_of_code(),
    'cpu': peers.cpu(),
    'load': load,
    'kilobytes': kilobytes,
    'rates': medians,
    'rounds': rates,
    'goals': goals,
    'levels_from_pillow': agree,
    'missing': missing,
  }
