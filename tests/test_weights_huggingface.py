"""transformers' models against ours: same tensors, same numbers, both ways."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torch_reference import import_torch, import_transformers
from vit_jax.errors import UserError
from vit_jax.models import ViT
from vit_jax.weights import files, google, huggingface
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import abstract_params, read_params, write_tensors
from vit_jax.weights.resample import resize_positions

NONE = Options()
PROBLEMS = ('missing_keys', 'unexpected_keys', 'mismatched_keys')
SIZES = {
  'hidden_size': 32,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'image_size': 12,
  'patch_size': 4,
}
GATED = {'use_gated_mlp': True, 'hidden_act': 'silu', 'intermediate_size': 40}
# Name: (class, its config without the sizes).
CASES = {
  'ViT': ('ViTForImageClassification', {'num_labels': 5}),
  'ViT 8x20': (
    'ViTForImageClassification',
    {'num_labels': 5, 'image_size': [8, 20], 'hidden_act': 'quick_gelu'},
  ),
  'ViT, pooler, no qkv bias': ('ViTModel', {'qkv_bias': False}),
  'DINOv2': ('Dinov2Model', {'mlp_ratio': 2}),
  'DINOv2, classifier': (
    'Dinov2ForImageClassification',
    {'mlp_ratio': 2, 'num_labels': 5},
  ),
  'DINOv2, SwiGLU': ('Dinov2Model', {'mlp_ratio': 3, 'use_swiglu_ffn': True}),
  'DINOv2, registers': (
    'Dinov2WithRegistersModel',
    {'mlp_ratio': 2, 'num_register_tokens': 2},
  ),
  'DINOv2, registers, classifier': (
    'Dinov2WithRegistersForImageClassification',
    {'mlp_ratio': 2, 'num_register_tokens': 3, 'num_labels': 5},
  ),
  'DINOv3': ('DINOv3ViTModel', {'num_register_tokens': 2}),
  'DINOv3, no registers': ('DINOv3ViTModel', {'key_bias': True}),
  'DINOv3, gated': (
    'DINOv3ViTModel',
    {**GATED, 'num_register_tokens': 2, 'rope_theta': 30.0, 'mlp_bias': False},
  ),
  'SigLIP': ('SiglipVisionModel', {}),
  'SigLIP, classifier': ('SiglipForImageClassification', {'num_labels': 5}),
}


def torch_model(name, **more):
  """A transformers model with all parameters random, and its config."""
  torch = import_torch()
  transformers = import_transformers()
  class_name, fields = CASES[name]
  cls = getattr(transformers, class_name)
  fields = {**SIZES, **fields, **more}
  if 'mlp_ratio' not in fields and 'intermediate_size' not in fields:
    fields['intermediate_size'] = 48
  if class_name == 'SiglipForImageClassification':
    labels = fields.pop('num_labels')
    text = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1}
    config = transformers.SiglipConfig(
      text_config=text, vision_config=fields, num_labels=labels
    )
  else:
    config = cls.config_class(**fields)
  model = cls(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for key, p in model.named_parameters():
      scale = bool(
        p.ndim == 1 and key.endswith('weight') or key.endswith('lambda1')
      )
      fan = math.prod(p.shape[1:]) if p.ndim > 1 else 4
      fan = 4 if 'embeddings.' in key and p.ndim != 4 else fan
      p.normal_(float(scale), 1.5 / math.sqrt(max(fan, 1)), generator=generator)
  return model


def save(model, folder, version):
  """As the library writes it (names of 4), or as it is in memory (of 5)."""
  if version == 4:
    model.save_pretrained(folder)
    return
  from safetensors.torch import save_file

  model.config.save_pretrained(folder)
  state = {k: v.contiguous() for k, v in model.state_dict().items()}
  save_file(state, folder / 'model.safetensors')


def load(path, options=NONE):
  """(model, params, description) of a file, by the format's functions."""
  return understood(*files.read(path), options)


cached_params = functools.lru_cache(abstract_params)


def understood(tensors, config, options=NONE):
  assert huggingface.matches(set(tensors))
  assert not google.matches(set(tensors))
  description = huggingface.describe(tensors, config, options)
  model = ViT(**description.fields)
  size = description.preprocessing.size
  model.check(size)
  params = read_params(
    huggingface.entries(model, description),
    tensors,
    cached_params(model, size),
    description.ignored,
  )
  return model, params, description


def run_torch(model, images, **kwargs):
  """[tokens after each block], and the logits or pooled features."""
  torch, after, hooks = import_torch(), [], []

  def keep(module, inputs, output):
    output = output[0] if isinstance(output, tuple) else output
    after.append(output.numpy().copy())

  for module in model.modules():
    if type(module).__name__.endswith('Layer'):
      hooks.append(module.register_forward_hook(keep))
  with torch.no_grad():
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    result = model(pixels, **kwargs)
  for hook in hooks:
    hook.remove()
  found = result.get('logits', result.get('pooler_output'))
  return after, found.numpy()


def run_ours(model, params, images):
  apply = jax.jit(model.apply, static_argnames='capture')
  logits, outputs = apply(
    {'params': params}, jnp.asarray(images), capture=('tokens',)
  )
  return list(np.asarray(outputs['tokens'])), np.asarray(logits)


def images(size, count=2):
  rng = np.random.default_rng(3)
  return rng.normal(size=(count, *size, 3)).astype(np.float32)


def error(actual, expected):
  assert actual.shape == expected.shape
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def first_apart(ours, theirs, limit=1e-4):
  """The first layer where they disagree, None; and the largest error."""
  (blocks, end), (expected, logits) = ours, theirs
  assert len(blocks) == len(expected)
  found = [*map(error, blocks, expected), error(end, logits)]
  names = [f'block {i}' for i in range(len(blocks))] + ['logits']
  apart = [n for n, e in zip(names, found, strict=True) if not e < limit]
  return (apart[0] if apart else None), max(found)


@pytest.mark.slow
@pytest.mark.parametrize('version', [4, 5])
@pytest.mark.parametrize('name', CASES)
def test_tokens_of_each_block_and_logits(tmp_path, name, version):
  theirs = torch_model(name)
  save(theirs, tmp_path, version)
  model, params, description = load(tmp_path)
  size = description.preprocessing.size
  assert size == ((8, 20) if '8x20' in name else (12, 12))
  x = images(size)
  result = first_apart(run_ours(model, params, x), run_torch(theirs, x))
  assert result[0] is None, result
  assert result[1] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_written_and_read_by_both(tmp_path, name):
  """from_pretrained: the same logits; read again: the same bits."""
  transformers = import_transformers()
  theirs = torch_model(name)
  save(theirs, tmp_path / 'theirs', 4)
  model, params, found = load(tmp_path / 'theirs')
  labels = tuple('abcde'[: model.classes])
  fresh = Description('', found.fields, found.preprocessing, labels=labels)
  tensors = write_tensors(huggingface.entries(model, fresh), params)
  config = huggingface.config_json(model, fresh)
  files.write(tmp_path / 'ours' / 'model.safetensors', tensors, config)
  cls = getattr(transformers, config['architectures'][0])
  assert cls is type(theirs)
  again, info = cls.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not any(info[k] for k in PROBLEMS), info
  x = images(found.preprocessing.size)
  result = first_apart(run_torch(again.eval(), x), run_torch(theirs, x), 1e-6)
  assert result[0] is None, result
  last, read, description = load(tmp_path / 'ours')
  assert dataclasses.asdict(last) == dataclasses.asdict(model)
  assert description.labels == labels
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, read)))


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['ViT', 'DINOv2', 'DINOv2, registers', 'DINOv3', 'SigLIP']
)
def test_at_another_size(tmp_path, name):
  """Not square, with the positions that transformers interpolates."""
  theirs = torch_model(name)
  save(theirs, tmp_path, 4)
  model, params, _ = load(tmp_path)
  x = images((16, 28))
  flag = {'interpolate_pos_encoding': True}
  there = run_torch(theirs, x, **(flag if name in ('ViT', 'SigLIP') else {}))
  if model.positions == 'learned':
    prefix, sharp = len(model.special), 'registers' in name
    table = params['positions']['table']

    def resized(antialias):
      new = resize_positions(
        table, (3, 3), (4, 7), prefix, 'bicubic-torch', antialias
      )
      return params | {'positions': {'table': np.asarray(new)}}

    # The other kernel is another model.
    other = run_ours(model, resized(not sharp), x)
    assert first_apart(other, there)[0] == 'block 0'
    params = resized(sharp)
  result = first_apart(run_ours(model, params, x), there)
  assert result[0] is None, result


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ViT', 'SigLIP', 'DINOv3, gated'])
def test_the_comparison_can_fail(tmp_path, name):
  theirs = torch_model(name)
  save(theirs, tmp_path, 4)
  model, params, _ = load(tmp_path)
  x = images((12, 12))
  there = run_torch(theirs, x)
  gelu = 'tanh' if model.gelu == 'exact' else 'exact'
  other = {'rope_theta': 100.0} if 'gated' in name else {'gelu': gelu}
  apart, _ = first_apart(
    run_ours(model.clone(**other), params, x), there, limit=1e-5
  )
  assert apart == 'block 0'
  coarse = model.clone(epsilon=0.01)
  assert first_apart(run_ours(coarse, params, x), there)[0] == 'block 0'
  blocks = params['encoder']['blocks']
  kernel = blocks['attention']['query']['kernel'].copy()
  kernel[1] = kernel[1].swapaxes(1, 2).reshape(kernel[1].shape)
  blocks['attention']['query']['kernel'] = kernel  # of one layer
  assert first_apart(run_ours(model, params, x), there)[0] == 'block 1'


# From ../shared/reference/numbers.md, 12a to 12c; timm's DINOv3 has no biases
# of queries and values, its DINOv2 with registers no position of CLS.
COUNTS = {
  'ViT-B/16': (
    'ViTForImageClassification',
    {'num_labels': 1000},
    86_567_656,
    'B/16',
  ),
  'DINOv2 B/14': ('Dinov2Model', {'image_size': 518}, 86_579_712, 'B/14'),
  'DINOv2 g/14': (
    'Dinov2Model',
    {
      'hidden_size': 1536,
      'num_hidden_layers': 40,
      'num_attention_heads': 24,
      'use_swiglu_ffn': True,
      'image_size': 518,
    },
    1_136_479_232,
    'S/14',
  ),
  'DINOv2 B/14, registers': (
    'Dinov2WithRegistersModel',
    {'image_size': 518, 'patch_size': 14},
    86_579_712 + 4 * 768,
    'B/14',
  ),
  'DINOv3 S': (
    'DINOv3ViTModel',
    {'num_register_tokens': 4},
    21_586_944 + 12 * 2 * 384,
    'S/16',
  ),
  'DINOv3 H+': (
    'DINOv3ViTModel',
    {
      'hidden_size': 1280,
      'num_hidden_layers': 32,
      'num_attention_heads': 20,
      'intermediate_size': 5120,
      'use_gated_mlp': True,
      'hidden_act': 'silu',
      'num_register_tokens': 4,
    },
    840_509_440 + 32 * 2 * 1280,
    'S/16',
  ),
  'SigLIP B/16': ('SiglipVisionModel', {}, 92_884_224, 'B/16'),
  'SigLIP So400m/14': (
    'SiglipVisionModel',
    {
      'hidden_size': 1152,
      'num_hidden_layers': 27,
      'num_attention_heads': 16,
      'intermediate_size': 4304,
      'patch_size': 14,
    },
    427_680_704,
    'So400m/14',
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', COUNTS)
def test_counts_of_real_sizes(name):
  torch = import_torch()
  transformers = import_transformers()
  class_name, fields, expected, variant = COUNTS[name]
  cls = getattr(transformers, class_name)
  with torch.device('meta'):
    theirs = cls(cls.config_class(**fields))
  tensors = {
    key: np.broadcast_to(np.float32(0), tuple(p.shape))
    for key, p in theirs.state_dict().items()
    if 'pooler' not in key and 'position_ids' not in key
  }
  config = theirs.config.to_dict()
  description = huggingface.describe(tensors, config, NONE)
  model = ViT(**description.fields)
  size = description.preprocessing.size
  ours = sum(math.prod(x.shape) for x in abstract_params(model, size).values())
  zeros = 0
  if model.positions == 'rope2d':  # the key biases that it has not
    zeros = model.shape.depth * model.shape.width
  assert ours - zeros == expected
  assert model.variant == variant
  entries = huggingface.entries(model, description)
  names = {n for e in entries for n in e.theirs}
  assert {n for n in tensors if not description.ignored(n)} == names


@pytest.mark.slow
@pytest.mark.parametrize(
  'fields, name',
  [
    ({'pool': 'cls'}, 'ViTForImageClassification'),
    ({'pool': 'mean'}, 'SiglipForImageClassification'),
    ({'pool': 'map', 'classes': 0}, 'SiglipVisionModel'),
    ({'pool': 'cls', 'classes': 0, 'representation': 7}, 'ViTModel'),
  ],
  ids=str,
)
def test_models_of_ours_in_transformers(tmp_path, fields, name):
  """Such as Google's, with GELU by tanh; biases, keys' too, are not zero."""
  transformers = import_transformers()
  sizes = {'width': 32, 'depth': 3, 'hidden': 40, 'heads': 4, 'classes': 5}
  sizes |= {'variant': 'Ti/4', 'gelu': 'tanh'}
  model = ViT(**(sizes | fields))
  abstract = abstract_params(model, (12, 12))
  rng = np.random.default_rng(0)
  flat = {
    k: rng.normal(0, 0.3, v.shape).astype(np.float32)
    for k, v in abstract.items()
  }
  from flax.traverse_util import unflatten_dict

  params = unflatten_dict(flat, sep='/')
  description = Description('', {}, Preprocessing((12, 12)))
  config = huggingface.config_json(model, description)
  tensors = write_tensors(huggingface.entries(model, description), params)
  files.write(tmp_path / 'model.safetensors', tensors, config)
  assert config['architectures'] == [name]
  cls = getattr(transformers, name)
  theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info[k] for k in PROBLEMS), info
  x = images((12, 12))
  result = first_apart(run_ours(model, params, x), run_torch(theirs.eval(), x))
  assert result[0] is None, result


# Without PyTorch.


def written(tmp_path, change=None, **fields):
  """(folder, tensors) of a small model in transformers' format."""
  sizes = {'width': 16, 'depth': 2, 'hidden': 24, 'heads': 2, 'classes': 3}
  model = ViT(**{**sizes, 'variant': 'Ti/4', 'epsilon': 1e-12, **fields})
  abstract = abstract_params(model, (8, 8))
  rng = np.random.default_rng(0)
  flat = {
    k: rng.normal(size=v.shape).astype(np.float32) for k, v in abstract.items()
  }
  from flax.traverse_util import unflatten_dict

  params = unflatten_dict(flat, sep='/')
  description = Description('', {}, Preprocessing((8, 8)))
  tensors = write_tensors(huggingface.entries(model, description), params)
  config = huggingface.config_json(model, description)
  files.write(tmp_path / 'model.safetensors', tensors, config | (change or {}))
  return params, tensors


DINO3 = {'positions': 'rope2d', 'layer_scale': 1.0, 'classes': 0}
DINO3 |= {'registers': 2, 'epsilon': 1e-5}


def test_refused_files(tmp_path):
  _, tensors = written(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())

  def refused(tensors, **change):
    with pytest.raises(UserError) as error:
      understood(tensors, config | change)
    return str(error.value)

  for name in tensors:  # each is needed
    rest = {n: x for n, x in tensors.items() if n != name}
    if huggingface.matches(rest) and name != 'classifier.weight':
      message = refused(rest)
      assert name.removeprefix('vit.') in message, message
  some = [n for n in tensors if '.layer.0.' in n or 'embed' in n]
  for name in some:  # and of its shape
    assert refused(tensors | {name: tensors[name][..., :-1]}), name
  extra = {'vit.embeddings.distillation_token': np.ones((1, 1, 16), 'f')}
  assert 'unexpected' in refused(tensors | extra)
  assert 'vit_mae' in refused(tensors, model_type='vit_mae')
  assert 'mish' in refused(tensors, hidden_act='mish')
  assert '2x3' in refused(tensors, image_size=[8, 12])
  assert 'more than one' in refused(
    tensors | {f'other.{n}': x for n, x in tensors.items()}
  )


def test_without_config(tmp_path):
  params, _ = written(tmp_path)
  (tmp_path / 'config.json').unlink()
  with pytest.raises(UserError, match='--heads'):
    load(tmp_path)
  model, read, description = load(tmp_path, Options(heads=2))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, read)))
  assert (model.epsilon, model.gelu) == (1e-12, 'exact')
  assert any('config.json' in note for note in description.notes)


def test_key_biases_that_are_not_there_are_zero(tmp_path):
  params, tensors = written(tmp_path, {'key_bias': False}, **DINO3)
  config = json.loads((tmp_path / 'config.json').read_text())
  rest = {n: x for n, x in tensors.items() if 'k_proj.bias' not in n}
  assert len(tensors) - len(rest) == 2
  files.write(tmp_path / 'model.safetensors', rest, config)
  model, read, found = load(tmp_path)
  key = read['encoder']['blocks']['attention']['key']['bias']
  assert not key.any()
  entries = huggingface.entries(model, found)
  assert set(write_tensors(entries, read)) == set(rest) - {
    'embeddings.mask_token'
  }
  with pytest.raises(UserError, match='is not zero'):
    write_tensors(entries, params)
  # Of a single layer it is an error.
  rest = {
    n: x for n, x in tensors.items() if n != 'layer.1.attention.k_proj.bias'
  }
  files.write(tmp_path / 'model.safetensors', rest, config)
  with pytest.raises(UserError, match='layer.1.attention.k_proj.bias'):
    load(tmp_path)


def test_classifiers_of_dinov2_read_cls_and_mean(tmp_path):
  """In this order, and registers are no part of the mean."""
  fields = {'pool': 'cls_mean', 'layer_scale': 1.0, 'registers': 2}
  params, tensors = written(tmp_path, **fields, width=8, hidden=16)
  assert tensors['classifier.weight'].shape == (3, 16)
  model, _, _ = load(tmp_path)
  x = jnp.asarray(images((8, 8)))
  logits = model.apply({'params': params}, x)
  assert model.pool == 'cls_mean'
  head = params.pop('head')['linear']

  def pooled(pool):
    other = model.clone(pool=pool, cls_token='yes', classes=0)
    return other.apply({'params': params}, x)

  both = np.concatenate([pooled('cls'), pooled('mean')], 1)
  np.testing.assert_allclose(pooled('cls_mean'), both, rtol=1e-6)
  expected = both @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_tower_of_a_larger_model(tmp_path):
  """Beside a text tower, and deep within a language model."""
  fields = {'pool': 'map', 'classes': 0, 'epsilon': 1e-6, 'gelu': 'tanh'}
  params, tensors = written(tmp_path, **fields)
  config = json.loads((tmp_path / 'config.json').read_text())
  for lead, other in (
    ('', 'text_model.head.weight'),
    ('model.vision_tower.', 'model.language_model.norm.weight'),
  ):
    names = {lead + n: x for n, x in tensors.items()}
    whole = {'model_type': 'any', 'vision_config': config}
    path = tmp_path / lead.replace('.', '_') / 'model.safetensors'
    files.write(path, names | {other: np.ones(3, np.float32)}, whole)
    model, read, _ = load(path)
    assert (model.pool, model.gelu, model.shape.heads) == ('map', 'tanh', 2)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, read)))


@pytest.mark.parametrize(
  'fields',
  [
    {'pool': 'map', 'classes': 3},
    {'pool': 'cls', 'layer_scale': 0.1},
    {'registers': 2},
    {'representation': 4},
    {'pool': 'cls', 'qk_norm': True},
    {'positions': 'rope2d', 'layer_scale': 0.0},
    {'pool': 'mean', 'qkv_bias': False},
    {'prefix_positions': False},
    {'positions': 'sincos2d'},
  ],
  ids=str,
)
def test_models_that_transformers_has_not(fields):
  model = ViT(**{'classes': 3, 'variant': 'Ti/4', **fields})
  description = Description('', {}, Preprocessing((8, 8)))
  with pytest.raises(UserError) as error:
    huggingface.config_json(model, description)
  assert any(name in str(error.value) for name in fields)


def test_what_is_not_transformers():
  clip = ['embeddings.patch_embedding.weight', 'embeddings.class_embedding']
  block = 'encoder.layers.0.'
  clip += [f'{block}layer_norm1.weight', f'{block}self_attn.q_proj.weight']
  assert huggingface.matches({n for n in clip if 'class' not in n})
  assert not huggingface.matches(set(clip))
  assert not huggingface.matches({'blocks.0.norm1.weight', 'cls_token'})


PROCESSORS = [
  (
    {'size': {'height': 8, 'width': 8}, 'resample': 3, 'image_mean': [0.1] * 3},
    {'mode': 'squash', 'interpolation': 'bicubic', 'mean': (0.1,) * 3},
    0,
  ),
  (
    {
      'size': {'shortest_edge': 10},
      'crop_size': {'height': 8, 'width': 8},
      'do_center_crop': True,
    },
    {'mode': 'center', 'crop': 0.8, 'mean': (0.5,) * 3},
    0,
  ),
  ({'size': 6}, {'mode': 'squash', 'size': (8, 8)}, 1),
  (
    {'do_normalize': False, 'rescale_factor': 1 / 127.5},
    {'mean': (0.0,) * 3, 'std': (0.5,) * 3},
    0,
  ),
]


@pytest.mark.parametrize('saved, expected, notes', PROCESSORS, ids=str)
def test_preprocessing_travels(tmp_path, saved, expected, notes):
  written(tmp_path)
  _, _, description = load(tmp_path)
  assert 'preprocessor_config' in description.notes[0]
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(saved))
  _, _, description = load(tmp_path)
  assert len(description.notes) == notes
  found = description.preprocessing
  for field, value in expected.items():
    assert getattr(found, field) == pytest.approx(value), field
  again = huggingface.processor_json(found)
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(again))
  _, _, description = load(tmp_path)
  assert description.preprocessing == found
