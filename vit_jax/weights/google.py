"""Google's .npz: vision_transformer (ViT, AugReg, SAM, hybrids), big_vision.

The kernels have this project's layout; only names differ. Both keep layers
apart, but for big_vision models trained with a scan.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.models.variants import STEMS
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import (
  Description,
  Options,
  Preprocessing,
  size_fields,
)
from vit_jax.weights.mapping import Entry, one
from vit_jax.weights.resample import grid_of

_BLOCK = 'Transformer/encoderblock'


def plain(name: str) -> str | None:
  """The name without a checkpoint's prefix; None: not of the parameters."""
  name = re.sub(r'^(opt/target|params|img|model)/', '', name)
  name = re.sub(r'^(params|img)/', '', name)
  return None if name.startswith(('opt/', 'txt/', 't', 'b_')) else name


def matches(names: Collection[str]) -> bool:
  """Whether these are the names of a ViT saved by Google's code."""
  return any(_BLOCK in name for name in names)


def _layer_names(big_vision: bool) -> dict[str, str]:
  """Ours: theirs, below a block; the two number the modules differently."""
  numbers = (0, 0, 1, 0) if big_vision else (0, 1, 2, 3)
  norm1, attention, norm2, mlp = numbers
  heads = f'MultiHeadDotProductAttention_{attention}'
  return {
    'norm1': f'LayerNorm_{norm1}',
    'attention/query': f'{heads}/query',
    'attention/key': f'{heads}/key',
    'attention/value': f'{heads}/value',
    'attention/out': f'{heads}/out',
    'norm2': f'LayerNorm_{norm2}',
    'mlp/up': f'MlpBlock_{mlp}/Dense_0',
    'mlp/down': f'MlpBlock_{mlp}/Dense_1',
  }
