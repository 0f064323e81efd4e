"""Hugging Face transformers: ViT, DINOv2 (with registers), DINOv3, SigLIP.

Sizes come from the tensors; heads, LayerNorm epsilon and GELU from config.json.
A pooler, as ViTModel has, is our `representation`; but a classifier does not
read it. DINOv2's classifiers read CLS and mean ('cls_mean'), SigLIP's the mean.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights import huggingface_processor as processor
from vit_jax.weights.checks import shape_of, square, table_grid
from vit_jax.weights.formats import (
  Description,
  Options,
  size_fields,
  standard_heads,
)
from vit_jax.weights.huggingface_config import GELU, config_json, tower
from vit_jax.weights.huggingface_entries import entries
from vit_jax.weights.huggingface_names import (
  QKV,
  Family,
  Found,
  Layout,
  layouts,
)
from vit_jax.weights.huggingface_processor import processor_json

__all__ = ['matches', 'describe', 'entries', 'config_json', 'processor_json']

# Beside the image tower, and of no use to it.
_OTHERS = re.compile(r'(text_model|logit_(scale|bias)|decoder)(\.|$)')
_UNUSED = ('embeddings.mask_token', 'embeddings.position_ids')


def matches(names: Collection[str]) -> bool:
  """Whether these are the names of one of transformers' ViTs."""
  return bool(layouts(names))


class _File:
  """What the tensors of a file and its config say, piece by piece."""

  def __init__(self, tensors, config):
    self.tensors, self.names = tensors, set(tensors)
    found = layouts(self.names)
    if len(found) > 1:
      prefixes = [layout.prefix for layout in found]
      raise UserError(f'more than one model in the file, under {prefixes}.')
    self.layout: Layout = found[0]
    self.family: Family = found[0].family
    self.prefix = found[0].prefix
    self.config = tower(config, self.family)
    self.notes: list[str] = []
    self.unused: list[str] = [*_UNUSED]  # below the prefix
    if not config:
      self.notes.append(
        'there is no config.json: LayerNorm epsilon and GELU are those usual '
        f'for {self.family}.'
      )

  def has(self, name: str) -> bool:
    return self.prefix + name in self.names

  def shape(self, name: str, rank: int) -> tuple[int, ...]:
    return shape_of(self.tensors, self.names, self.prefix + name, rank)

  def depth(self) -> int:
    blocks = re.escape(self.prefix + self.layout.blocks)
    layers = [re.match(rf'{blocks}(\d+)\.', name) for name in self.names]
    return 1 + max(int(match[1]) for match in layers if match)

  def mlp(self) -> tuple[bool, int]:
    """Whether it is gated, and its width."""
    first = f'{self.layout.blocks}0.mlp.'
    for name in ('gate_proj', 'weights_in'):
      if self.has(f'{first}{name}.weight'):
        rows = self.shape(f'{first}{name}.weight', 2)[0]
        return True, rows // (2 if name == 'weights_in' else 1)
    up = self.layout.block(False)['mlp/up']
    return False, self.shape(f'{self.layout.blocks}0.{up}.weight', 2)[0]

  def biasless(self, gated: bool) -> frozenset[str]:
    """Our modules of a block without biases; that others lack is an error."""
    modules = self.layout.block(gated).items()
    first = f'{self.layout.blocks}0.'
    found = {a for a, b in modules if not self.has(f'{first}{b}.bias')}
    found = {name for name in found if 'norm' not in name}
    qkv = {f'attention/{name}' for name in QKV}
    return frozenset(found if self.family == 'dinov3' or found == qkv else ())

  def head(self) -> dict[str, Any]:
    """classes, pool, representation."""
    classes, pool, width = 0, 'cls', 0
    head = 'classifier.weight' in self.names
    if head:
      classes = shape_of(self.tensors, self.names, 'classifier.weight', 2)[0]
      self.unused.append('pooler.')
    if self.family == 'dinov2' and head:
      pool = 'cls_mean'
    elif self.family == 'siglip':
      pool = 'map' if self.has('head.probe') and not head else 'mean'
      if head:
        self.unused.append('head.')
      elif pool == 'mean':
        self.notes.append('there is no head: the mean of the tokens is taken.')
    elif self.has('pooler.dense.weight') and not head:
      width = self.shape('pooler.dense.weight', 2)[0]
    return {'classes': classes, 'pool': pool, 'representation': width}

  def registers(self) -> int:
    name = 'embeddings.register_tokens'
    number = self.shape(name, 3)[1] if self.has(name) else 0
    if not number:
      self.unused.append(name)
    return number

  def size(self, patch: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(h, w) of the pictures that the positions are for."""
    saved, known = self.config.get('image_size'), None
    if saved:
      h, w = (saved, saved) if isinstance(saved, int) else saved
      known = (h // patch, w // patch)
    if self.family == 'dinov3':
      if not (grid or known):
        self.notes.append('the size of pictures is in no file: 224 is assumed.')
      grid = grid or known or (224 // patch, 224 // patch)
    else:
      cls = self.family != 'siglip'
      rows = self.shape(self.layout.table, 3 if cls else 2)[-2]
      grid = table_grid(rows, int(cls), grid, known)
    return grid[0] * patch, grid[1] * patch

  def ignored(self, name: str) -> bool:
    """Whether a tensor is none of the model's."""
    inside = name.removeprefix(self.prefix)
    if name.startswith(self.prefix) and inside.startswith(tuple(self.unused)):
      return True
    part = self.prefix.count('.') > 1  # of a larger model
    outside = not name.startswith(self.prefix) and name != 'classifier.weight'
    return bool(_OTHERS.match(name)) or (part and outside)


def describe(
  tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], options: Options
) -> Description:
  """From names, shapes and config.json; what that lacks, by the family."""
  file = _File(tensors, config)
  layout, family, known = file.layout, file.family, file.config
  width, channels, *patch = file.shape(f'{layout.embed}.weight', 4)
  patch = square(layout.embed, patch)
  depth, (gated, hidden) = file.depth(), file.mlp()
  heads = options.heads or known.get('num_attention_heads', 0)
  heads = standard_heads(width, depth, hidden, heads)
  biasless = file.biasless(gated)
  head, registers = file.head(), file.registers()
  size = file.size(patch, options.grid)
  seen, pictures, notes = processor.preprocessing(
    family, size, channels, processor.beside(getattr(tensors, 'path', None))
  )
  classes, labels = head['classes'], config.get('id2label', {})
  named = tuple(labels.get(str(i), f'LABEL_{i}') for i in range(classes))
  scaled = float(known.get('layerscale_value') or 1.0)
  return Found(
    family=f'transformers {family}{" with registers" if registers else ""}',
    fields={
      **head,
      **size_fields(width, depth, hidden, heads, patch),
      'registers': registers,
      'positions': 'rope2d' if family == 'dinov3' else 'learned',
      'prefix_positions': family in ('vit', 'dinov2'),
      'rope_theta': float(known.get('rope_theta', 100.0)),
      'mlp': 'swiglu' if gated else 'gelu',
      'gelu': GELU.get(known['hidden_act'], 'exact'),
      'epsilon': float(known['layer_norm_eps']),
      'qkv_bias': not {f'attention/{name}' for name in QKV} <= biasless,
      'layer_scale': scaled if family in ('dinov2', 'dinov3') else 0.0,
    },
    preprocessing=seen,
    ignored=file.ignored,
    labels=named if any(label[:6] != 'LABEL_' for label in named) else (),
    notes=(*file.notes, *notes),
    pictures=pictures,
    layout=Layout(family, file.prefix, layout.version, biasless),
  )
