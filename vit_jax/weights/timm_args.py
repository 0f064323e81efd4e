"""A model as timm builds it: the nearest architecture, and what differs.

In terms of the arguments of timm's VisionTransformer; those that its Eva class
(DINOv3) calls otherwise are renamed at the end.
"""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.variants import STEMS, parse
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Preprocessing
from vit_jax.weights.timm_names import GELUS, NAMES, POOLS, implied

# No argument that JSON can hold changes these.
_FIXED = ('eps', 'swiglu', 'rope', 'distilled', 'stem')
_EVA = {
  'reg_tokens': 'num_reg_tokens',
  'fc_norm': 'use_fc_norm',
  'pre_norm': 'use_pre_transformer_norm',
}


def check(model: ViT):
  """Raises UserError where timm has nothing like a model."""
  rope = model.positions == 'rope2d'
  clean = model.pool == 'cls' and model.pool_norm == 'before'
  clean = clean and model.prefix_positions and not model.registers
  stem = parse(model.variant)[2]
  reasons = {
    f'pool = {model.pool!r}': model.pool not in POOLS.values(),
    'a layer between pooling and head (representation)': model.representation,
    f"stem = {model.stem!r} (timm's has other epsilons)": stem
    and model.stem != 'timm',
    "pool = 'map' with mlp = 'swiglu'": model.pool == 'map'
    and model.mlp == 'swiglu',
    'a distillation token but as in DeiT': model.distill_token and not clean,
    'rotary positions without layer_scale': rope and not model.layer_scale,
    'rotary positions with another GELU than the exact one': rope
    and model.mlp == 'gelu'
    and model.gelu != 'exact',
    f"rotary positions with pool = '{model.pool}'": rope
    and model.pool == 'map',
  }
  for reason, holds in reasons.items():
    if holds:
      raise UserError(f'timm has no model with {reason}.')


def _wanted(model: ViT, preprocessing: Preprocessing) -> dict[str, Any]:
  """The arguments of a model, in full."""
  shape = model.shape
  _, patch, stem = parse(model.variant)
  names = {ours: theirs for theirs, ours in (POOLS | GELUS).items()}
  swiglu, rope = model.mlp == 'swiglu', model.positions == 'rope2d'
  table = model.positions != 'none' and not rope
  return {
    'embed_dim': shape.width,
    'depth': shape.depth,
    'num_heads': shape.heads,
    'hidden': shape.hidden,
    'patch_size': patch // STEMS[stem][1],
    'img_size': tuple(preprocessing.size),
    'in_chans': len(preprocessing.mean),
    'class_token': 'cls' in model.special,
    'global_pool': names[model.pool],
    'fc_norm': model.pool_norm == 'after',
    'pre_norm': model.embed_norm,
    'no_embed_class': table and model.prefix > 0 and not model.prefix_positions,
    'reg_tokens': model.registers,
    'init_values': bool(model.layer_scale),
    'qkv_bias': model.qkv_bias,
    'qk_norm': model.qk_norm,
    'act_layer': 'gelu' if swiglu else names[model.gelu],
    'pos_embed': 'none' if model.positions == 'none' else 'learn',
    'pool_include_prefix': model.pool == 'map' and model.prefix > 0,
    'rope_temperature': model.rope_theta if rope else 100.0,
    'eps': model.epsilon,
    'swiglu': swiglu,
    'rope': rope,
    'distilled': model.distill_token,
    'stem': stem,
  }


def choose(
  model: ViT, preprocessing: Preprocessing
) -> tuple[str, dict[str, Any]]:
  """The nearest of timm's architectures, and the arguments that differ.

  Raises:
    UserError: there is none.
  """
  check(model)
  want, best = _wanted(model, preprocessing), None
  for name in NAMES:
    have = implied(name) or {}
    differ = {key for key in want if want[key] != have[key]}
    if not differ.intersection(_FIXED) and (
      best is None or len(differ) < len(best[2])
    ):
      best = name, have, differ
  if best is None:
    raise UserError(
      'timm has no model with '
      + ', '.join(f'{key} = {want[key]!r}' for key in _FIXED)
      + ' together (its epsilon is 1e-6, or 1e-5 for CLIP and DINOv3).'
    )
  name, _, differ = best
  args = {key: want[key] for key in differ if key != 'hidden'}
  if 'init_values' in differ:
    args['init_values'] = model.layer_scale
  if 'global_pool' in differ:
    args['fc_norm'] = want['fc_norm']
  if differ & {'hidden', 'embed_dim'}:
    args |= _mlp_arguments(want)
  if want['rope']:
    args = {_EVA.get(key, key): value for key, value in args.items()}
  return name, dict(sorted(args.items()))


def _mlp_arguments(want: dict[str, Any]) -> dict[str, Any]:
  """mlp_ratio, which timm multiplies by the width and rounds down."""
  width, hidden = want['embed_dim'], want['hidden']
  args = {}
  if want['swiglu'] and want['rope']:
    args['swiglu_align_to'] = 1
  elif want['swiglu']:
    hidden *= 2  # gate and up as one
  ratio = hidden / width
  args['mlp_ratio'] = (
    ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
  )
  return args
