"""timm's safetensors: ViT, DeiT, DINOv2, DINOv3, SigLIP, CLIP, hybrids.

What timm builds is told by the names and shapes, except for the number of
heads, the GELU, what is pooled, and a grid that is not square: these come from
the architecture's name in config.json, or from an option.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.variants import STEMS
from vit_jax.models.vit import ViT
from vit_jax.weights import timm_names as names_of
from vit_jax.weights.formats import (
  Description,
  Options,
  Preprocessing,
  size_fields,
  standard_heads,
)
from vit_jax.weights.mapping import Entry
from vit_jax.weights.resample import grid_of
from vit_jax.weights.timm_entries import all_entries

_HALF = (0.5,) * 3
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
# Mean, standard deviation, crop: timm's, where config.json does not say.
_FAMILIES = {
  'ViT': (_HALF, _HALF, 0.9),
  'hybrid ViT': (_HALF, _HALF, 0.9),
  'FlexiViT': (_HALF, _HALF, 0.95),
  'SigLIP': (_HALF, _HALF, 0.9),
  'CLIP': (*_CLIP, 1.0),
  'DeiT': (*_IMAGENET, 0.9),
  'DeiT III': (*_IMAGENET, 1.0),
  'DINOv2': (*_IMAGENET, 1.0),
  'DINOv3': (*_IMAGENET, 1.0),
  'ViT with ImageNet statistics': (*_IMAGENET, 0.9),
}
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


def matches(names: Collection[str]) -> bool:
  """Whether these are the names of one of timm's ViTs."""
  block = re.compile(r'blocks\.\d+\.(norm1|attn|mlp)\.')
  embed = any(name.startswith('patch_embed.proj.') for name in names)
  return embed and any(block.match(name) for name in names)
