"""What a file of timm's says: by its names and shapes, and by config.json."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.variants import STEMS
from vit_jax.weights import timm_names as names_of
from vit_jax.weights.formats import Options, standard_heads
from vit_jax.weights.resample import grid_of

_WORDS = {
  'deit3': 'DeiT III',
  'deit': 'DeiT',
  'flexivit': 'FlexiViT',
  'siglip': 'SigLIP',
  'clip': 'CLIP',
  'dinov2': 'DINOv2',
  'dinov3': 'DINOv3',
  'mae': 'ViT with ImageNet statistics',
  'dino': 'ViT with ImageNet statistics',
}
# Arguments in config.json that are read, or that change no function.
_READ = {
  *('num_heads', 'global_pool', 'act_layer', 'img_size', 'num_classes'),
  *('pool_include_prefix', 'rope_temperature', 'init_values', 'embed_dim'),
  *('depth', 'patch_size', 'in_chans', 'mlp_ratio', 'class_token', 'fc_norm'),
  *('pre_norm', 'no_embed_class', 'reg_tokens', 'qkv_bias', 'qk_norm'),
  *('pos_embed', 'num_reg_tokens', 'use_fc_norm', 'swiglu_align_to'),
  *('use_pre_transformer_norm', 'dynamic_img_size', 'strict_img_size'),
  *('drop_rate', 'drop_path_rate', 'pos_drop_rate', 'patch_drop_rate'),
  *('proj_drop_rate', 'attn_drop_rate', 'weight_init', 'fix_init'),
}


class TimmFile:
  """What the names, shapes and config.json of a file say."""

  def __init__(
    self,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    options: Options,
  ):
    self.tensors, self.config, self.options = tensors, config, options
    self.name = options.architecture or config.get('architecture', '')
    self.implied = names_of.implied(self.name) or {}
    self.args = config.get('model_args') or {}
    self.data = config.get('pretrained_cfg') or config
    if self.name and not self.implied:
      raise UserError(
        f"timm's architecture {self.name!r} is none of those read here. If its "
        'blocks are those of a plain ViT, state one that is like it: '
        '--architecture=vit_base_patch16_224.'
      )
    unread = sorted(set(self.args) - _READ)
    if unread:
      raise UserError(
        f'config.json: model_args.{unread[0]} = {self.args[unread[0]]!r} is '
        'not read here, and could change the function.'
      )
    self.eva = 'blocks.0.gamma_1' in tensors and not (
      'pos_embed' in tensors or 'blocks.0.attn.qkv.bias' in tensors
    )

  def has(self, name: str) -> bool:
    return name in self.tensors

  def shape(self, name: str, rank: int) -> tuple[int, ...]:
    if name not in self.tensors:
      raise UserError(f'the tensor {name} is missing.')
    shape = self.tensors[name].shape
    if len(shape) != rank:
      raise UserError(f'{name} has {len(shape)} axes where timm has {rank}.')
    return shape

  def said(self, key: str, default: Any = None) -> Any:
    """An argument, from config.json or the architecture's name."""
    return self.args.get(key, self.implied.get(key, default))

  @property
  def stem(self) -> str:
    """Of our STEMS."""
    found = set()
    for name in self.tensors:
      match = re.match(
        r'patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)', name
      )
      if match:
        found.add((int(match[1]), int(match[2])))
    if not any(n.startswith('patch_embed.backbone.') for n in self.tensors):
      return ''
    stages = [i for i, _ in found]
    units = tuple(stages.count(i) for i in range(len(set(stages))))
    for stem, (known, _) in STEMS.items():
      if stem and known == units:
        return stem
    raise UserError(f'a ResNet of {units} units as a stem is unknown here.')

  @property
  def family(self) -> str:
    words = self.name.replace('.', '_').split('_')
    for word, family in _WORDS.items():
      if word in words:
        return family
    cls, scaled = self.has('cls_token'), self.has('blocks.0.ls1.gamma')
    signs = {
      'ViT with ImageNet statistics': 'decoder_embed.weight' in self.tensors,
      'DINOv3': self.eva,
      'hybrid ViT': bool(self.stem),
      'CLIP': self.has('norm_pre.weight'),
      'SigLIP': self.has('attn_pool.latent') and not self.has('reg_token'),
      'DeiT': self.has('dist_token'),
    }
    if not self.name and cls:
      both = scaled and (self.has('reg_token') or self.positions()[1])
      signs |= {'DINOv2': both, 'DeiT III': scaled}
      signs['FlexiViT'] = not self.positions()[1]
    return next((name for name, holds in signs.items() if holds), 'ViT')

  @property
  def patch(self) -> int:
    """Side in pixels of what a token sees."""
    _, _, p, q = self.shape('patch_embed.proj.weight', 4)
    if p != q:
      raise UserError(f'patches of {p}x{q} are not square.')
    return p * STEMS[self.stem][1]

  @property
  def width(self) -> int:
    return self.shape('patch_embed.proj.weight', 4)[0]

  @property
  def channels(self) -> int:
    """Of the images."""
    name, stem = 'patch_embed.proj.weight', self.stem
    if stem:
      root = 'stem.' if STEMS[stem][0] else ''
      name = f'patch_embed.backbone.{root}conv.weight'
    return self.shape(name, 4)[1]

  @property
  def registers(self) -> int:
    return self.shape('reg_token', 3)[1] if self.has('reg_token') else 0

  def input_size(self) -> tuple[int, int] | None:
    """(h, w) as config.json has it."""
    size = self.args.get('img_size')
    if size is None and 'input_size' in self.data:
      size = self.data['input_size'][1:]
    if size is None:
      return None
    h, w = (size, size) if isinstance(size, int) else size
    return h, w

  def positions(self) -> tuple[tuple[int, int] | None, bool]:
    """The grid of the table of positions, and whether CLS etc. have some."""
    if not self.has('pos_embed'):
      return self.options.grid, True
    prefix = sum(self.has(name) for name in ('cls_token', 'dist_token'))
    prefix += self.registers
    length, size = self.shape('pos_embed', 3)[1], self.input_size()
    patch = self.patch
    stated = self.options.grid or (
      size and (size[0] // patch, size[1] // patch)
    )
    if stated and math.prod(stated) in (length, length - prefix):
      return stated, math.prod(stated) != length or not prefix
    if self.options.grid:
      raise UserError(
        f'a grid of {stated} does not fit {length} positions, {prefix} of them '
        'not of patches.'
      )
    squares = [
      n
      for n in {prefix, 0}
      if length > n and math.isqrt(length - n) ** 2 == length - n
    ]
    if len(squares) > 1:
      if 'no_embed_class' not in self.implied:
        raise UserError(
          f'{length} positions are a square with and without {prefix} tokens '
          'before the patches: state the grid (rows, columns).'
        )
      squares = [0 if self.said('no_embed_class') else prefix]
    own = squares[0] if squares else prefix
    return grid_of(length, own), own == prefix


def find_heads(file: TimmFile, width: int, depth: int, hidden: int) -> int:
  """Stated, the architecture's, or of such a size in timm."""
  heads = file.options.heads or file.args.get('num_heads', 0)
  same = file.implied.get('embed_dim') == width or 'embed_dim' in file.args
  if not heads and same:
    heads = file.implied.get('num_heads', 0)
  if not heads:
    for name, (w, d, h, f) in names_of.SIZES.items():
      of_eva = name in ('dinov3_huge', '7b')
      if (w, d, f) == (width, depth, hidden) and (
        of_eva == (file.eva and width >= 1280)
      ):
        heads = h
  return standard_heads(width, depth, hidden, heads)


def find_pool(file: TimmFile) -> str:
  """Stated, the architecture's where its norm fits, or timm's default."""
  stated = file.args.get('global_pool', file.config.get('global_pool'))
  after = file.has('fc_norm.weight')
  if stated is None and file.implied.get('fc_norm') == after:
    stated = file.implied['global_pool']
  if stated not in (None, *names_of.POOLS):
    raise UserError(f'global_pool = {stated!r} is none that is known here.')
  if file.has('attn_pool.latent'):
    prefix = file.has('cls_token') or file.has('reg_token')
    if prefix and not file.args.get('pool_include_prefix'):
      raise UserError(
        'attention pooling that leaves CLS and registers out is unknown here.'
      )
    return 'map'
  cls = file.has('cls_token')
  if stated in ('avg', '') or (stated == 'token' and cls):
    return names_of.POOLS[stated]
  return 'cls' if cls and not (after or file.eva) else 'mean'


def find_gelu(file: TimmFile, size: tuple[int, int]) -> str:
  """The flavour, timm's for such a file where nothing is stated."""
  act = file.said('act_layer')
  if act is None:
    act = 'gelu'
    if file.family == 'SigLIP':
      row = [n for n, (w, *_) in names_of.SIZES.items() if w == file.width]
      act = names_of.siglip_act((row or [''])[0], file.patch, size[0])
  if act not in names_of.GELUS:
    raise UserError(f'act_layer = {act!r} is none that is known here.')
  return names_of.GELUS[act]
