"""Weights of timm: the same numbers layer by layer, in both directions."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.torch_reference import import_timm
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights import files
from vit_jax.weights import timm as ours
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import (
  abstract_params,
  read_params,
  write_tensors,
)
from vit_jax.weights.timm_names import NAMES, SIZES, implied

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4  # of the largest number in a layer
TINY = {'embed_dim': 48, 'depth': 3, 'num_heads': 3}
HYBRID = {'embed_dim': 48, 'depth': 2, 'num_heads': 3}

# Name: architecture, arguments, image (h, w), classes.
FAMILIES = {
  'vit': ('vit_tiny_patch16_224', TINY, (48, 48), 7),
  'vit wide': ('vit_tiny_patch16_224', TINY, (32, 80), 7),
  'vit headless': ('vit_tiny_patch16_224', TINY, (32, 32), 0),
  'vit qk_norm': (
    'vit_tiny_patch16_224',
    {**TINY, 'qk_norm': True, 'qkv_bias': False},
    (32, 48),
    7,
  ),
  'vit four channels': (
    'vit_tiny_patch16_224',
    {**TINY, 'in_chans': 4},
    (32, 32),
    7,
  ),
  'vit tokens': (
    'vit_tiny_patch16_224',
    {**TINY, 'global_pool': ''},
    (32, 32),
    7,
  ),
  'vit no positions': (
    'vit_tiny_patch16_224',
    {**TINY, 'pos_embed': 'none'},
    (48, 32),
    7,
  ),
  'mae fine-tuned': (
    'vit_base_patch16_224',
    {**TINY, 'global_pool': 'avg'},
    (48, 48),
    7,
  ),
  'gap': ('vit_base_patch16_gap_224', TINY, (64, 48), 7),
  'gap registers': ('vit_medium_patch16_reg4_gap_256', TINY, (48, 64), 7),
  'registers with positions': (
    'vit_medium_patch16_reg4_gap_256',
    {**TINY, 'no_embed_class': False},
    (48, 64),
    7,
  ),
  'map registers': (
    'vit_base_patch16_siglip_224',
    {**TINY, 'reg_tokens': 2, 'pool_include_prefix': True},
    (48, 64),
    7,
  ),
  'deit': ('deit_tiny_patch16_224', TINY, (48, 48), 7),
  'deit distilled': ('deit_tiny_distilled_patch16_224', TINY, (32, 64), 7),
  'deit3': ('deit3_small_patch16_224', TINY, (64, 32), 7),
  'flexivit': ('flexivit_small', TINY, (48, 48), 7),
  'dinov2': ('vit_small_patch14_dinov2', TINY, (42, 56), 0),
  'dinov2 registers': ('vit_small_patch14_reg4_dinov2', TINY, (42, 56), 0),
  'dinov2 swiglu': (
    'vit_giant_patch14_dinov2',
    {**TINY, 'mlp_ratio': 16 / 3},
    (42, 28),
    0,
  ),
  'dinov3': ('vit_small_patch16_dinov3', TINY, (48, 80), 0),
  'dinov3 cls': (
    'vit_small_patch16_dinov3',
    {**TINY, 'global_pool': 'token'},
    (48, 80),
    7,
  ),
  'dinov3 biases': ('vit_base_patch16_dinov3_qkvb', TINY, (64, 48), 0),
  'dinov3 swiglu': ('vit_small_plus_patch16_dinov3', TINY, (32, 48), 0),
  'dinov3 7b': ('vit_7b_patch16_dinov3', TINY, (32, 48), 0),
  'siglip': ('vit_base_patch16_siglip_224', TINY, (48, 64), 0),
  'siglip tanh': ('vit_so400m_patch16_siglip_256', TINY, (48, 48), 7),
  'clip': ('vit_base_patch16_clip_224', TINY, (48, 64), 7),
  'clip quick': ('vit_base_patch16_clip_quickgelu_224', TINY, (48, 48), 7),
  'R+Ti': ('vit_tiny_r_s16_p8_224', HYBRID, (64, 96), 7),
  'R26+S': ('vit_small_r26_s32_224', HYBRID, (64, 64), 7),
  'R26+B': ('vit_base_r26_s32_224', HYBRID, (96, 64), 7),
  'R50+B': ('vit_base_r50_s16_224', HYBRID, (64, 64), 7),
  'R50+L': ('vit_large_r50_s32_224', HYBRID, (64, 64), 7),
}


def randomise(model, torch):
  """No parameter at its initial value; embeddings small, so that the first
  LayerNorm's epsilon matters."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      scale = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.3
      if name.split('.')[0] in ('pos_embed', 'cls_token', 'patch_embed'):
        scale = 0.01 if 'backbone' not in name else scale
      p.copy_(torch.randn_like(p) * scale)
      if p.ndim == 1 and not name.endswith('bias'):
        p.add_(1.0)  # a norm's scale, LayerScale
  return model.eval()


def build(family, timm):
  import torch

  name, kwargs, size, classes = FAMILIES[family]
  model = timm.create_model(name, num_classes=classes, img_size=size, **kwargs)
  return randomise(model, torch)


def config_of(model, folder):
  """config.json as timm itself writes it."""
  from timm.models._hub import save_config_for_hf

  save_config_for_hf(model, str(folder / 'theirs.json'))
  return json.loads((folder / 'theirs.json').read_text())


def tensors_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def load(tensors, config):
  assert ours.matches(tensors)
  description = ours.describe(tensors, config, Options())
  model = ViT(**description.fields)
  size = description.preprocessing.size
  model.check(size)
  channels = len(description.preprocessing.mean)
  params = read_params(
    ours.entries(model, description),
    tensors,
    abstract_params(model, size, channels),
    description.ignored,
  )
  return model, params, description


def watched(model):
  """{layer: timm's module}, in order."""
  units = {}
  backbone = getattr(model.patch_embed, 'backbone', None)
  for i, stage in enumerate(getattr(backbone, 'stages', ())):
    for j, unit in enumerate(stage.blocks):
      units[f'stage{i + 1}_unit{j + 1}'] = unit
  if backbone is not None:
    units['stem'] = backbone
  blocks = {f'block {i}': block for i, block in enumerate(model.blocks)}
  return units | {'embed': model.patch_embed} | blocks


def theirs_by_layer(model, images):
  """{layer: its output} of timm's model, in order."""
  import torch

  outputs, hooks = {}, []
  for name, module in watched(model).items():
    hooks.append(
      module.register_forward_hook(
        lambda _, __, y, name=name: outputs.update({name: y})
      )
    )
  with torch.no_grad():
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    features = model.forward_features(x)
    if getattr(model, 'dist_token', None) is None:
      outputs['pooled'] = model.forward_head(features, pre_logits=True)
    outputs['logits'] = model.forward_head(features)
  for hook in hooks:
    hook.remove()
  found = {}
  for name, y in outputs.items():
    if name.startswith('st'):
      y = y.permute(0, 2, 3, 1)
    found[name] = (y.flatten(1, -2) if name == 'embed' else y).numpy()
  return found


def ours_by_layer(model, params, images):
  def run(params, x):
    return model.apply(
      {'params': params},
      x,
      capture=('tokens', 'pooled'),
      mutable=['intermediates'],
      capture_intermediates=lambda module, _: (
        module.name in ('stem', 'embed') or 'unit' in (module.name or '')
      ),
    )

  options = {'xla_backend_optimization_level': 0}  # faster to compile
  (logits, outputs), seen = jax.jit(run, compiler_options=options)(
    params, jnp.asarray(images)
  )
  seen = flatten_dict(seen['intermediates'])
  found = {name: y[0] for (*_, name, _), y in seen.items()}
  found |= {f'block {i}': y for i, y in enumerate(outputs['tokens'])}
  return found | {'pooled': outputs['pooled'], 'logits': logits}


def errors(found, expected):
  """{layer: largest difference, relative to the largest number}."""
  return {
    name: float(np.abs(found[name] - y).max() / np.abs(y).max())
    for name, y in expected.items()
  }


def first_wrong(found, expected):
  """The first layer that disagrees; '' if none does."""
  for name, error in errors(found, expected).items():
    if not error <= TOLERANCE:
      return f'{name}: {error:.2e}'
  return ''


@pytest.fixture(scope='module')
def timm():
  return import_timm()


@pytest.fixture
def images():
  def draw(model, description):
    size = description.preprocessing.size
    channels = len(description.preprocessing.mean)
    shape = (2, *size, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)

  return draw


@pytest.mark.parametrize('family', FAMILIES)
def test_agrees_with_timm_both_ways(family, timm, images, tmp_path):
  import torch

  reference = build(family, timm)
  tensors = tensors_of(reference)
  model, params, description = load(tensors, config_of(reference, tmp_path))
  assert description.preprocessing.size == FAMILIES[family][2]
  x = images(model, description)
  expected = theirs_by_layer(reference, x)
  found = ours_by_layer(model, params, x)
  print(family, f'{max(errors(found, expected).values()):.1e}')
  assert first_wrong(found, expected) == ''

  entries = ours.entries(model, description)
  written = write_tensors(entries, params)
  config = ours.config_json(model, description)
  files.write(tmp_path / 'model.safetensors', written, config)
  again, config = files.read(tmp_path)
  if family not in ('registers with positions', 'map registers'):
    assert set(again) == set(tensors)
    for name, value in tensors.items():
      np.testing.assert_array_equal(again[name], value, err_msg=name)
  twin = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    **config['model_args'],
  ).eval()
  states = {name: torch.from_numpy(again[name]) for name in again}
  twin.load_state_dict(states, strict=True)
  assert first_wrong(theirs_by_layer(twin, x), expected) == ''

  model2, params2, description2 = load(again, config)
  assert model2 == model
  assert description2.preprocessing == description.preprocessing
  flat, flat2 = (flatten_dict(p, sep='/') for p in (params, params2))
  assert set(flat) == set(flat2)
  for name, value in flat.items():
    np.testing.assert_array_equal(flat2[name], value, err_msg=name)


@pytest.mark.parametrize('family', ['vit wide', 'clip quick', 'dinov3 biases'])
def test_timm_opens_the_folder(family, timm, images, tmp_path):
  reference = build(family, timm)
  model, params, description = load(
    tensors_of(reference), config_of(reference, tmp_path)
  )
  written = write_tensors(ours.entries(model, description), params)
  config = ours.config_json(model, description)
  files.write(tmp_path / 'model.safetensors', written, config)
  twin = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
  x = images(model, description)
  expected = theirs_by_layer(reference, x)
  assert first_wrong(theirs_by_layer(twin, x), expected) == ''
  preprocessing = description.preprocessing
  assert twin.pretrained_cfg['mean'] == list(preprocessing.mean)
  assert tuple(twin.pretrained_cfg['input_size'][1:]) == preprocessing.size
  assert twin.pretrained_cfg['crop_pct'] == preprocessing.crop


def swap(params, a, b):
  flat = flatten_dict(params, sep='/')
  for kind in ('kernel', 'bias'):
    first, second = (f'encoder/blocks/attention/{n}/{kind}' for n in (a, b))
    flat[first], flat[second] = flat[second], flat[first]
  return unflatten_dict(flat, sep='/')


@pytest.mark.parametrize(
  'family, change',
  [
    ('vit', {'gelu': 'tanh'}),
    ('siglip tanh', {'gelu': 'exact'}),
    ('clip quick', {'gelu': 'exact'}),
    ('vit', {'epsilon': 1e-5}),
    ('clip', {'epsilon': 1e-6}),
    ('R+Ti', {'stem': 'google'}),
    ('dinov3', {'rope_theta': 10_000.0}),
    ('vit', ('query', 'key')),
  ],
  ids=str,
)
def test_the_comparison_sees_a_wrong_model(
  family, change, timm, images, tmp_path
):
  reference = build(family, timm)
  model, params, description = load(
    tensors_of(reference), config_of(reference, tmp_path)
  )
  if isinstance(change, dict):
    model = model.clone(**change)
  else:
    params = swap(params, *change)
  x = images(model, description) * (0.01 if family == 'R+Ti' else 1)
  expected = theirs_by_layer(reference, x)
  wrong = first_wrong(ours_by_layer(model, params, x), expected)
  assert wrong.startswith('stem' if family == 'R+Ti' else 'block 0')


def test_names_stand_for_what_timm_builds(timm):
  listed = [
    name
    for module in (
      'vision_transformer',
      'vision_transformer_hybrid',
      'deit',
      'eva',
    )
    for name in timm.list_models(module=module)
  ]
  assert set(NAMES) <= set(listed)
  known = [name for name in listed if implied(name)]
  assert len(known) > 100
  for name in known:
    check_name(name, timm.create_model(name, num_classes=0, device='meta'))


def check_name(name, built):
  have, block = implied(name), built.blocks[0]
  eva = type(built).__name__ == 'Eva'
  activation = type(block.mlp.act).__name__
  found = {
    'embed_dim': built.embed_dim,
    'depth': len(built.blocks),
    'num_heads': block.attn.num_heads,
    'hidden': block.mlp.fc2.in_features,
    'patch_size': built.patch_embed.patch_size[0],
    'img_size': built.patch_embed.img_size,
    'class_token': built.cls_token is not None,
    'global_pool': built.global_pool,
    'fc_norm': hasattr(built.fc_norm, 'weight'),
    'pre_norm': hasattr(built.norm_pre, 'weight'),
    'reg_tokens': 0 if built.reg_token is None else built.reg_token.shape[1],
    'init_values': hasattr(block, 'ls1')
    and hasattr(block.ls1, 'gamma')
    or getattr(block, 'gamma_1', None) is not None,
    'eps': block.norm1.eps,
    'swiglu': activation == 'SiLU',
    'rope': eva,
    'distilled': hasattr(built, 'dist_token'),
  }
  if not eva:
    found['no_embed_class'] = built.no_embed_class
    found['qkv_bias'] = block.attn.qkv.bias is not None
  else:
    found['qkv_bias'] = block.attn.q_bias is not None
  act = {'GELU': 'gelu', 'GELUTanh': 'gelu_tanh', 'QuickGELU': 'quick_gelu'}
  found['act_layer'] = act.get(activation, 'gelu')
  assert {key: have[key] for key in found} == found, name


# By name and classes: ../shared/reference/numbers.md, 12c (and 12a for the
# sizes and hybrids, where timm has the same).
COUNTS = {
  ('vit_tiny_patch16_224', 1000): 5_717_416,
  ('vit_small_patch16_224', 1000): 22_050_664,
  ('vit_base_patch16_224', 1000): 86_567_656,
  ('vit_base_patch32_224', 1000): 88_224_232,
  ('vit_large_patch16_224', 1000): 304_326_632,
  ('vit_huge_patch14_224', 1000): 632_045_800,
  ('vit_giant_patch14_224', 1000): 1_012_611_432,
  ('vit_gigantic_patch14_224', 0): 1_842_775_680,
  ('vit_large_patch14_224', 1000): 304_203_752,
  ('deit_tiny_distilled_patch16_224', 1000): 5_910_800,
  ('deit_small_distilled_patch16_224', 0): 21_666_432,
  ('deit_base_distilled_patch16_224', 1000): 87_338_192,
  ('deit3_small_patch16_224', 1000): 22_059_496,
  ('deit3_medium_patch16_224', 0): 38_336_512,
  ('deit3_base_patch16_224', 1000): 86_585_320,
  ('deit3_large_patch16_224', 1000): 304_374_760,
  ('deit3_huge_patch14_224', 0): 630_845_440,
  ('flexivit_small', 1000): 22_061_416,
  ('flexivit_base', 0): 85_820_160,
  ('flexivit_large', 1000): 304_355_304,
  ('vit_small_patch14_dinov2', 0): 22_056_192,
  ('vit_base_patch14_dinov2', 0): 86_579_712,
  ('vit_large_patch14_dinov2', 0): 304_367_616,
  ('vit_giant_patch14_dinov2', 0): 1_136_479_232,
  ('vit_base_patch14_reg4_dinov2', 0): 86_582_016,
  ('vit_small_patch16_dinov3', 0): 21_586_944,
  ('vit_small_plus_patch16_dinov3', 0): 28_683_264,
  ('vit_base_patch16_dinov3', 0): 85_641_216,
  ('vit_large_patch16_dinov3', 0): 303_079_424,
  ('vit_huge_plus_patch16_dinov3', 0): 840_509_440,
  ('vit_7b_patch16_dinov3', 0): 6_716_030_976,
  ('vit_base_patch16_siglip_224', 0): 92_884_224,
  ('vit_so400m_patch14_siglip_224', 0): 427_680_704,
  ('vit_so400m_patch16_siglip_256', 0): 427_888_064,
  ('vit_giantopt_patch16_siglip_256', 0): 1_163_168_256,
  ('vit_base_patch16_clip_224', 0): 85_799_424,
  ('vit_tiny_r_s16_p8_224', 1000): 6_337_704,
  ('vit_small_r26_s32_224', 1000): 36_431_912,
  ('vit_base_r26_s32_224', 1000): 101_383_976,
  ('vit_base_r50_s16_224', 1000): 98_659_112,
  ('vit_large_r50_s32_224', 1000): 328_994_856,
}


@pytest.mark.parametrize('name, classes', COUNTS, ids=lambda x: str(x))
def test_a_bare_file_becomes_the_model(name, classes, timm):
  built = timm.create_model(name, num_classes=classes, device='meta')
  tensors = {
    k: np.broadcast_to(np.float32(0), tuple(v.shape))
    for k, v in built.state_dict().items()
  }
  assert sum(v.size for v in tensors.values()) == COUNTS[name, classes]
  description = ours.describe(tensors, {}, Options())
  have, fields = implied(name), description.fields
  model = ViT(**fields)
  size = description.preprocessing.size
  assert model.shape.heads == have['num_heads']
  assert fields['classes'] == classes
  assert fields['epsilon'] == have['eps']
  assert size == have['img_size']
  abstract = abstract_params(model, size)
  entries = ours.entries(model, description)
  assert {n for e in entries for n in e.theirs} == set(tensors)
  zeros = 0
  filled = dict.fromkeys(abstract, 0)
  for entry in entries:
    for path in entry.ours:
      filled[path] += 1 if entry.layer is None else 1 / model.shape.depth
      if not entry.theirs:
        zeros += abstract[path].size
    if entry.layer in (None, 0) and entry.theirs:
      values = entry.read([tensors[n] for n in entry.theirs])
      for path, value in zip(entry.ours, values, strict=True):
        want = abstract[path].shape
        assert value.shape == (want if entry.layer is None else want[1:]), path
  assert all(abs(count - 1) < 1e-6 for count in filled.values())
  ours_count = sum(x.size for x in abstract.values())
  assert ours_count - zeros == COUNTS[name, classes]
  chosen = ours.config_json(model, description)
  assert (chosen['architecture'], chosen['model_args']) == (name, {})


def test_heads_of_a_bare_file(timm):
  assert SIZES['dinov3_huge'][2] == 20
  model = timm.create_model(
    'vit_tiny_patch16_224', embed_dim=48, depth=2, img_size=32
  )
  tensors = tensors_of(model)
  with pytest.raises(UserError, match='--heads=N'):
    ours.describe(tensors, {}, Options())
  assert ours.describe(tensors, {}, Options(heads=6)).fields['heads'] == 6


def test_a_grid_is_not_guessed(timm):
  model = timm.create_model('vit_tiny_patch16_224', img_size=(32, 48), depth=1)
  tensors, heads = tensors_of(model), Options(heads=3)
  with pytest.raises(UserError, match='grid'):
    ours.describe(tensors, {}, heads)
  stated = Options(heads=3, grid=(3, 2))
  assert ours.describe(tensors, {}, stated).preprocessing.size == (48, 32)
  with pytest.raises(UserError, match='does not fit'):
    ours.describe(tensors, {}, Options(heads=3, grid=(3, 3)))


def test_decoder_and_mask_token_of_mae_are_left_out(timm):
  model = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=0)
  tensors = tensors_of(model)
  tensors |= {
    'mask_token': np.zeros((1, 1, 8), np.float32),
    'decoder_embed.weight': np.zeros((8, 192), np.float32),
    'decoder_blocks.0.norm1.weight': np.zeros(8, np.float32),
  }
  _, params, description = load(tensors, {})
  assert 'pool' not in params
  assert description.preprocessing.mean[0] == 0.485
  tensors['stray.weight'] = np.zeros(3, np.float32)
  with pytest.raises(UserError, match='unexpected: stray.weight'):
    load(tensors, {})


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'epsilon': 1e-12}, 'eps'),
    ({'representation': 8}, 'representation'),
    ({'positions': 'rope2d'}, 'layer_scale'),
    ({'variant': 'R+Ti/16', 'stem': 'google'}, 'epsilons'),
    ({'mlp': 'swiglu', 'pool': 'map'}, 'swiglu'),
  ],
  ids=str,
)
def test_what_timm_has_not_is_refused(fields, message, timm):
  built = timm.create_model('vit_tiny_patch16_224', depth=1, img_size=32)
  config = {'architecture': 'vit_tiny_patch16_224'}
  description = ours.describe(tensors_of(built), config, Options())
  model = ViT(**description.fields)
  with pytest.raises(UserError, match=message):
    ours.config_json(model.clone(**fields), description)


def test_a_bias_that_timm_lacks_has_to_be_zero(timm, tmp_path):
  built = build('clip', timm)
  config = config_of(built, tmp_path)
  model, params, description = load(tensors_of(built), config)
  assert any('bias of the patches' in note for note in description.notes)
  params['embed']['linear']['bias'][3] = 1
  with pytest.raises(UserError, match='embed/linear/bias'):
    write_tensors(ours.entries(model, description), params)


@pytest.mark.parametrize('positions', ['sincos1d', 'sincos2d', 'none'])
@pytest.mark.parametrize('registers', [0, 2])
def test_our_own_models_in_timm(positions, registers, timm, images):
  """Fixed tables are written as learned ones; registers get zeros in them."""
  import torch

  fields = {
    'classes': 5,
    'variant': 'Ti/16',
    **{'width': 48, 'depth': 2, 'hidden': 100, 'heads': 4},
    **{'positions': positions, 'registers': registers, 'gelu': 'tanh'},
  }
  model = ViT(**fields)
  description = Description('ours', fields, Preprocessing((32, 48)))
  x = images(model, description)
  shapes = abstract_params(model, (32, 48))
  draw = np.random.default_rng(1)
  params = {
    k: draw.normal(size=v.shape, scale=0.2).astype(np.float32)
    for k, v in shapes.items()
  }
  params = unflatten_dict(params, sep='/')
  tensors = write_tensors(ours.entries(model, description), params)
  config = ours.config_json(model, description)
  twin = timm.create_model(
    config['architecture'], num_classes=5, **config['model_args']
  ).eval()
  states = {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
  twin.load_state_dict(states, strict=True)
  expected = theirs_by_layer(twin, x)
  assert first_wrong(ours_by_layer(model, params, x), expected) == ''
  model2, params2, _ = load(tensors, config)
  assert first_wrong(ours_by_layer(model2, params2, x), expected) == ''
