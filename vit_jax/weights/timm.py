"""timm's safetensors: ViT, DeiT, DINOv2, DINOv3, SigLIP, CLIP, hybrids.

What timm builds is told by the names and shapes, except for the number of
heads, the GELU, what is pooled, and a grid that is not square: these come from
the architecture's name in config.json, or from an option.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import (
  Description,
  Options,
  Preprocessing,
  size_fields,
)
from vit_jax.weights.mapping import Entry
from vit_jax.weights.timm_args import check, choose
from vit_jax.weights.timm_entries import all_entries
from vit_jax.weights.timm_file import TimmFile, find_gelu, find_heads, find_pool
from vit_jax.weights.timm_names import POOLS

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


def matches(names: Collection[str]) -> bool:
  """Whether these are the names of one of timm's ViTs."""
  block = re.compile(r'blocks\.\d+\.(norm1|attn|mlp)\.')
  embed = any(name.startswith('patch_embed.proj.') for name in names)
  return embed and any(block.match(name) for name in names)


def _preprocessing(file: TimmFile, size: tuple[int, int]) -> Preprocessing:
  mean, std, crop = _FAMILIES[file.family]
  channels = file.channels
  if channels != 3:
    mean, std = (0.5,) * channels, (0.5,) * channels
  crop = 1.0 if crop == 0.9 and size[0] >= 384 else crop
  interpolation = file.data.get('interpolation', 'bicubic')
  if interpolation not in ('bicubic', 'bilinear', 'lanczos'):
    raise UserError(
      f'config.json: interpolation = {interpolation!r} is unknown here; '
      "'bicubic' and 'bilinear' are not."
    )
  squash = file.data.get('crop_mode') == 'squash'
  return Preprocessing(
    size=size,
    mean=tuple(file.data.get('mean', mean)),
    std=tuple(file.data.get('std', std)),
    interpolation=interpolation,
    crop=file.data.get('crop_pct', crop),
    mode='squash' if squash else 'center',
  )


def _notes(file: TimmFile, fields: Mapping[str, Any]) -> tuple[str, ...]:
  notes = []
  if not file.name:
    notes.append(
      f'no config.json names the architecture: taken for {file.family}, with '
      f'{ViT(**fields).shape.heads} heads, pool {fields["pool"]!r}, GELU '
      f'{fields["gelu"]!r}, epsilon {fields["epsilon"]} and the mean, std and '
      'crop that timm has for it.'
    )
    hints = {
      'ViT': 'DeiT, MAE and DINO look the same and have other mean and std: '
      '--architecture=deit_base_patch16_224',
      'CLIP': "OpenAI's, DFN's and MetaCLIP's own weights need the quick GELU: "
      '--architecture=vit_base_patch16_clip_quickgelu_224',
      'SigLIP': "trained with the tanh GELU, which timm's do not all have",
    }
    if file.family in hints:
      notes.append(hints[file.family] + '.')
  if fields['embed_norm']:
    notes.append('no bias of the patches in the file: zero.')
  if file.eva and fields['qkv_bias']:
    notes.append('no bias of the keys in the file: zero.')
  if fields['registers'] and file.positions()[1] and not file.eva:
    notes.append('positions of registers are added to the registers.')
  return tuple(notes)


def _labels(file: TimmFile, classes: int) -> tuple[str, ...]:
  names = file.config.get('label_names', file.data.get('label_names')) or ()
  words = file.config.get('label_descriptions') or file.data.get(
    'label_descriptions'
  )
  words = words if isinstance(words, dict) else {}
  labels = tuple(str(words.get(name, name)) for name in names)
  return labels if len(labels) == classes else ()


def _sizes(file: TimmFile) -> dict[str, Any]:
  """Variant, or width, depth, hidden and heads, and what the MLPs are."""
  width, hidden = file.width, file.shape('blocks.0.mlp.fc2.weight', 2)[1]
  separate = file.has('blocks.0.mlp.fc1_g.weight')
  swiglu = separate or (
    file.shape('blocks.0.mlp.fc1.weight', 2)[0] == 2 * hidden
  )
  blocks = {n.split('.')[1] for n in file.tensors if n.startswith('blocks.')}
  heads = find_heads(file, width, len(blocks), hidden)
  if width % heads:
    raise UserError(f'{heads} heads do not divide the width {width}.')
  stem, patch = file.stem.split('-')[0], file.patch
  return size_fields(width, len(blocks), hidden, heads, patch, stem) | {
    'mlp': 'swiglu' if swiglu else 'gelu'
  }


def _fields(file: TimmFile, size: tuple[int, int]) -> dict[str, Any]:
  has = file.has
  cls, pool, learned = has('cls_token'), find_pool(file), has('pos_embed')
  scaled = has('blocks.0.ls1.gamma') or has('blocks.0.gamma_1')
  small = 1e-5 if file.eva or has('norm_pre.weight') else 1e-6
  return _sizes(file) | {
    'classes': file.shape('head.bias', 1)[0] if has('head.bias') else 0,
    'pool': pool,
    'cls_token': 'auto' if cls == (pool == 'cls') else 'yes' if cls else 'no',
    'distill_token': has('dist_token'),
    'registers': file.registers,
    'positions': 'learned' if learned else 'rope2d' if file.eva else 'none',
    'prefix_positions': file.positions()[1],
    'rope_theta': float(file.said('rope_temperature', 100.0)),
    'pool_norm': 'after' if has('fc_norm.weight') else 'before',
    'embed_norm': has('norm_pre.weight'),
    'gelu': find_gelu(file, size),
    'epsilon': file.implied.get('eps', small),
    'qkv_bias': has('blocks.0.attn.qkv.bias') or has('blocks.0.attn.q_bias'),
    'qk_norm': has('blocks.0.attn.q_norm.weight'),
    'layer_scale': float(file.args.get('init_values') or 1e-5) * scaled,
    'stem': 'timm',
  }


def describe(
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  options: Options,
) -> Description:
  """From names and shapes, config.json and options, in words and fields.

  Raises:
    UserError: something only an option can tell, or no model of ours.
  """
  file = TimmFile(tensors, config, options)
  grid, patch = file.positions()[0], file.patch
  size = (grid[0] * patch, grid[1] * patch) if grid else file.input_size()
  size = size or ((256, 256) if file.eva else (224, 224))
  fields = _fields(file, size)
  return Description(
    family=f'timm {file.family}',
    fields=fields,
    preprocessing=_preprocessing(file, size),
    ignored=lambda name: name.startswith(('mask_token', 'decoder_')),
    labels=_labels(file, fields['classes']),
    notes=_notes(file, fields),
  )


def entries(model: ViT, description: Description) -> list[Entry]:
  """Which tensor holds which parameter.

  Raises:
    UserError: timm has nothing like the model.
  """
  check(model)
  return all_entries(model, description)


def config_json(model: ViT, description: Description) -> dict[str, Any]:
  """What timm.create_model needs: architecture, model_args, pretrained_cfg.

  Raises:
    UserError: timm has nothing like the model.
  """
  preprocessing = description.preprocessing
  name, args = choose(model, preprocessing)
  names = {ours: theirs for theirs, ours in POOLS.items()}
  heads = ['head', 'head_dist'] if model.distill_token else 'head'
  config = {
    'architecture': name,
    'num_classes': model.classes,
    'num_features': model.shape.width,
    'global_pool': names[model.pool],
    'model_args': args,
    'pretrained_cfg': {
      'tag': 'vit_jax',
      'custom_load': False,
      'input_size': [len(preprocessing.mean), *preprocessing.size],
      'fixed_input_size': True,
      'interpolation': preprocessing.interpolation,
      'crop_pct': preprocessing.crop,
      'crop_mode': preprocessing.mode,
      'mean': list(preprocessing.mean),
      'std': list(preprocessing.std),
      'num_classes': model.classes,
      'first_conv': 'patch_embed.proj',
      'classifier': heads,
    },
  }
  if description.labels:
    config['label_names'] = list(description.labels)
  return config
