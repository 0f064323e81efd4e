"""Google's .npz: vision_transformer (ViT, AugReg, SAM, hybrids), big_vision.

Kernels have this project's layout; only names differ. Both keep layers apart,
except big_vision models trained with a scan, which are stacked as ours are.
Published vision_transformer files number the modules of a block in one row,
big_vision each kind by itself; where the position table lies tells whether CLS
has a row in it.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.variants import STEMS
from vit_jax.weights.checks import shape_of, square, table_grid
from vit_jax.weights.formats import (
  Description,
  Options,
  Preprocessing,
  size_fields,
)
from vit_jax.weights.google_names import (
  BIG_VISION,
  BLOCKS,
  TABLES,
  Found,
  Names,
  config_json,
  entries,
)

__all__ = ['matches', 'describe', 'entries', 'config_json']

# Of parameters in a checkpoint of a training run, and of a tower of two.
_PREFIX = re.compile(
  rf'((?:opt/target/)?(?:params/)?(?:img/)?){BLOCKS}(?:_0)?/LayerNorm_0/bias'
)


def _prefixes(names: Collection[str]) -> list[str]:
  found = {match[1] for name in names if (match := _PREFIX.fullmatch(name))}
  return sorted(p for p in found if f'{p}embedding/kernel' in names)


def matches(names: Collection[str]) -> bool:
  """Whether these are the names of a ViT saved by Google's code."""
  return bool(_prefixes(names))


def _stem(names: Collection[str]) -> tuple[str, int]:
  """The name in STEMS, and the stride, of the convolutions in a file."""
  if 'conv_root/kernel' not in names:
    return '', 1
  found = {re.match(r'block(\d+)/unit\d+/', name) for name in names}
  units = {match[0]: int(match[1]) for match in found if match}
  stages = [list(units.values()).count(i + 1) for i in range(4)]
  for stem, (known, stride) in STEMS.items():
    if stem and [*known, 0, 0, 0, 0][:4] == stages:
      return stem, stride
  raise UserError(f'a stem of {stages} units in its stages is none of ours.')


def _architecture(
  names: Names, stem: str, big: bool, pool: str, head: bool
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
  """What to call it, how it sees pictures, and what remains to be said."""
  if stem:
    family = 'vision_transformer hybrid'
  else:
    family = 'big_vision' if big else 'vision_transformer'
  notes = ()
  if big and head and pool != 'map' and 'img/' not in names.prefix:
    notes = (
      'big_vision classifiers are evaluated on the middle of a picture resized '
      "by TensorFlow's 'area' (seen in its configs for 224 pixels); here by "
      'bilinear with antialias, and for any size.',
    )
    return family, {'mode': 'center', 'crop': 0.875}, notes
  notes = (
    'the original resizes by bilinear without antialias (TensorFlow), here it '
    'is with antialias.',
  )
  return family, {'mode': 'squash'}, notes


def _positions(
  rows: int, cls: bool, big: bool, grid: tuple[int, int] | None
) -> tuple[tuple[int, int], bool]:
  """The grid of a table of `rows`, and whether CLS has a row in it."""
  on_cls = cls
  if cls and big:  # as before 2022
    patches = grid[0] * grid[1] if grid else math.isqrt(rows - 1) ** 2
    on_cls = rows > 1 and rows - 1 == patches
  return table_grid(rows, int(on_cls), grid), on_cls


def describe(
  tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Options
) -> Description:
  """From names and shapes alone."""
  del config
  prefixes = _prefixes(set(tensors))
  if len(prefixes) > 1:
    raise UserError(f'more than one model in the file, under {prefixes}.')
  prefix = prefixes[0]
  inside = {n.removeprefix(prefix) for n in tensors if n.startswith(prefix)}
  every = set(tensors)

  def shape(name, rank=1):
    return shape_of(tensors, every, prefix + name, rank)

  def block(name, rank=1):  # of any layer, without the axis of layers
    names = f'{BLOCKS}{"" if scanned else "_0"}/{name}'
    return shape(names, rank + scanned)[int(scanned) :]

  scanned = f'{BLOCKS}/LayerNorm_0/bias' in inside
  layers = [re.match(rf'{BLOCKS}_(\d+)/', name) for name in inside]
  depth = 1 + max((int(match[1]) for match in layers if match), default=-1)
  if scanned:
    depth = shape(f'{BLOCKS}/LayerNorm_0/bias', 2)[0]
  numbers = Names().numbers
  if not any('/MlpBlock_3/' in name for name in inside):
    numbers = BIG_VISION.numbers
  table = next((name for name in TABLES if name in inside), None)
  big = table != TABLES[0] and numbers == BIG_VISION.numbers
  names = Names(prefix, numbers, table or TABLES[2], scanned)
  stem, stride = _stem(inside)
  *patch, channels, width = shape('embedding/kernel', 4)
  patch = stride * square('embedding/kernel', patch)
  channels = shape('conv_root/kernel', 4)[2] if stem else channels
  heads, _ = block(f'MultiHeadDotProductAttention_{numbers[1]}/query/bias', 2)
  (hidden,) = block(f'MlpBlock_{numbers[3]}/Dense_0/bias')
  head = any(name.startswith('head/') for name in inside)
  represent = any(name.startswith('pre_logits/') for name in inside)
  pool = 'cls' if 'cls' in inside else 'mean'
  if 'MAPHead_0/probe' in inside:
    pool = 'map'
  elif pool == 'mean' and any('llm/' in name for name in every):
    pool = 'none'  # PaliGemma's tower gives each token to the language model
  family, seen, notes = _architecture(names, stem, big, pool, head)
  if table or not big:
    rows = shape(table or TABLES[0], 3)[1]
    grid, on_cls = _positions(rows, pool == 'cls', big, options.grid)
  else:
    grid, on_cls = options.grid or (224 // patch, 224 // patch), False
    notes += (
      'there is no table of positions, so they are taken to be the fixed ones '
      f'(sincos2d) of {grid[0]}x{grid[1]} patches; any other grid works too.',
    )
  size = (grid[0] * patch, grid[1] * patch)
  return Found(
    family=family,
    fields={
      'classes': shape('head/bias')[0] if head else 0,
      **size_fields(
        width, depth, hidden, heads, patch, stem.removesuffix('-3')
      ),
      'pool': pool,
      'positions': 'learned' if table else 'sincos2d',
      'prefix_positions': on_cls,
      'representation': shape('pre_logits/bias')[0] if represent else 0,
      'gelu': 'tanh',
      'epsilon': 1e-6,
      'stem': 'google',
    },
    preprocessing=Preprocessing(
      size,
      mean=(0.5,) * channels,
      std=(0.5,) * channels,
      interpolation='bilinear',
      **seen,
    ),
    # Of what is under the prefix nothing is left out.
    ignored=lambda name: not name.startswith(prefix),
    notes=notes,
    names=names,
  )
