"""transformers' config.json of a ViT, both ways."""

from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Description
from vit_jax.weights.huggingface_names import to_write

GELU = {
  'gelu': 'exact',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
  'quick_gelu': 'quick',
}
# model_type, LayerNorm epsilon and GELU where config.json has none.
_FAMILIES = {
  'vit': (('vit',), 1e-12, 'gelu'),
  'dinov2': (('dinov2', 'dinov2_with_registers'), 1e-6, 'gelu'),
  'dinov3': (('dinov3_vit',), 1e-5, 'gelu'),
  'siglip': (('siglip_vision_model', 'siglip'), 1e-6, 'gelu_pytorch_tanh'),
}


def tower(config: Mapping[str, Any], family: str) -> dict[str, Any]:
  """The part of config.json on the image tower."""
  config = dict(config.get('vision_config', config))
  types, epsilon, gelu = _FAMILIES[family]
  if config.get('model_type', types[0]) not in types:
    raise UserError(
      f'config.json: model_type = {config["model_type"]!r} with tensors of '
      f'{types[0]!r} is no model that is known here.'
    )
  config = {'layer_norm_eps': epsilon, 'hidden_act': gelu, **config}
  gated = config.get('use_gated_mlp')
  known = ('silu',) if gated else tuple(GELU)
  if config['hidden_act'] not in known:
    raise UserError(
      f'config.json: hidden_act = {config["hidden_act"]!r}, not of {known}.'
    )
  if config.get('pooler_act', 'tanh') != 'tanh':
    raise UserError(
      f"config.json: pooler_act = {config['pooler_act']!r}, and not 'tanh'."
    )
  return config


def _mlp_ratio(model: ViT) -> int:
  """Dinov2Config's, from which transformers works out the width of the MLP."""
  width, hidden = model.shape.width, model.shape.hidden
  for ratio in range(1, 33):
    wide = width * ratio
    if model.mlp == 'swiglu':
      wide = (int(wide * 2 / 3) + 7) // 8 * 8
    if wide == hidden:
      return ratio
  raise UserError(
    f'Dinov2 has no MLP of {hidden} for a width of {width}: it is worked out '
    'from a whole mlp_ratio.'
  )


def config_json(model: ViT, description: Description) -> dict[str, Any]:
  """A config.json with which from_pretrained makes the same model.

  Raises:
    UserError: transformers has no such model.
  """
  preprocessing = description.preprocessing
  family = to_write(model, preprocessing.size).family
  shape, (h, w) = model.shape, preprocessing.size
  act = {flavour: act for act, flavour in GELU.items()}[model.gelu]
  config = {
    'hidden_size': shape.width,
    'num_hidden_layers': shape.depth,
    'num_attention_heads': shape.heads,
    'intermediate_size': shape.hidden,
    'hidden_act': act,
    'layer_norm_eps': model.epsilon,
    'image_size': h if h == w else [h, w],
    'patch_size': model.patch,
    'num_channels': len(preprocessing.mean),
    'dtype': 'float32',
  }
  kind = 'ForImageClassification' if model.classes else 'Model'
  if family == 'vit':
    name = 'ViT'
    config |= {'model_type': 'vit', 'qkv_bias': model.qkv_bias}
    if model.representation:
      config['pooler_output_size'] = model.representation
  elif family == 'dinov2':
    name = 'Dinov2WithRegisters' if model.registers else 'Dinov2'
    config |= {
      'model_type': 'dinov2_with_registers' if model.registers else 'dinov2',
      'qkv_bias': model.qkv_bias,
      'mlp_ratio': _mlp_ratio(model),
      'use_swiglu_ffn': model.mlp == 'swiglu',
      'layerscale_value': model.layer_scale,
      'use_mask_token': False,
    }
    if model.registers:
      config['num_register_tokens'] = model.registers
  elif family == 'dinov3':
    name = 'DINOv3ViT'
    config |= {
      'model_type': 'dinov3_vit',
      'hidden_act': 'silu' if model.mlp == 'swiglu' else act,
      **{f'{x}_bias': model.qkv_bias for x in ('query', 'key', 'value')},
      'use_gated_mlp': model.mlp == 'swiglu',
      'layerscale_value': model.layer_scale,
      'num_register_tokens': model.registers,
      'rope_theta': model.rope_theta,
    }
  else:
    name = 'Siglip'
    config['model_type'] = 'siglip_vision_model'
    config['vision_use_head'] = model.pool == 'map'
    if model.classes:
      config = {'model_type': 'siglip', 'vision_config': config}
    else:
      kind = 'VisionModel'
  config['architectures'] = [name + kind]
  if model.classes:
    labels = description.labels or [f'LABEL_{i}' for i in range(model.classes)]
    config['id2label'] = {str(i): label for i, label in enumerate(labels)}
    config['label2id'] = {label: i for i, label in enumerate(labels)}
  return config
