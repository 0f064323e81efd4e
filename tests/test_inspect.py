"""FLOPs, parameters and memory of models, and the command that shows them."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.torch_reference import import_timm, import_torch
from vit_jax import inspect_model
from vit_jax.cli import main
from vit_jax.inspect_model import activation_bytes, report, shapes
from vit_jax.models import ViT, flops
from vit_jax.models.variants import parse

# ../shared/reference/numbers.md, 12e and 12a: GFLOP of a forward pass, at 1000
# classes.
REFERENCE = [
  ('Ti/16', 224, 2.51, 5_717_416),
  ('S/32', 224, 2.29, 22_878_952),
  ('S/16', 224, 9.20, 22_050_664),
  ('M/16', 224, 15.98, None),
  ('B/32', 224, 8.82, 88_224_232),
  ('B/16', 224, 35.13, 86_567_656),
  ('B/16', 384, 110.97, 86_859_496),
  ('B/8', 224, 156.30, 86_576_872),
  ('L/16', 224, 123.11, 304_326_632),
  ('L/16', 384, 382.13, 304_715_752),
  ('So400m/14', 224, 219.86, None),
  ('H/14', 224, 334.59, 632_045_800),
  ('g/14', 224, 534.06, None),
  ('G/14', 224, 967.50, None),
  ('e/14', 224, 1981.35, None),
  ('22B/14', 224, 11255.8, None),
]
SMALL = {
  'classes': 3,
  'variant': 'Ti/2',
  'width': 16,
  'depth': 2,
  'hidden': 24,
  'heads': 2,
}


@pytest.mark.parametrize('variant, size, gflop, parameters', REFERENCE)
def test_against_published_numbers(variant, size, gflop, parameters):
  model = ViT(classes=1000, variant=variant)
  total = sum(flops.forward(model, (size, size)).values())
  assert total == pytest.approx(gflop * 1e9, rel=0.005)
  if parameters:
    params = shapes(model, (size, size))
    counts = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    assert sum(counts) == parameters


def counted(jaxpr):
  """FLOPs of the matrix products and convolutions in a program."""
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == 'dot_general':
      out = eqn.outvars[0].aval
      (contract, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += 2 * out.size * math.prod(shape[i] for i in contract)
    elif name == 'conv_general_dilated':
      out = eqn.outvars[0].aval
      kernel = eqn.invars[1].aval
      total += 2 * out.size * math.prod(kernel.shape[:-1])  # HWIO
    times = eqn.params['length'] if name == 'scan' else 1
    for inner in jaxprs_in_params(eqn.params):
      total += times * counted(inner)
  return total


OPTIONS = [
  {},
  {'pool': 'map', 'cls_token': 'yes', 'registers': 3},
  {'pool': 'none', 'representation': 5},
  {'pool': 'mean', 'mlp': 'swiglu', 'qk_norm': True, 'positions': 'rope2d'},
  {'distill_token': True, 'representation': 5},
  {'classes': 0, 'representation': 5},
  {'variant': 'R26+S/32'},
  {'variant': 'R+Ti/16'},
  {'variant': 'R50+B/16'},
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('fields', OPTIONS, ids=str)
def test_against_the_operations_of_the_program(fields, train):
  model = ViT(**SMALL | fields, patch_dropout=0.4)
  size, channels = (64, 96), 4
  if 'variant' not in fields:
    size = (8, 12)
  jaxpr = jax.make_jaxpr(
    lambda params, images: model.apply(
      {'params': params},
      images,
      train=train,
      rngs={'dropout': jax.random.key(0)},
    )
  )(
    shapes(model, size, channels),
    jax.ShapeDtypeStruct((1, *size, channels), jnp.float32),
  )
  parts = flops.forward(model, size, channels, train=train)
  assert sum(parts.values()) == counted(jaxpr.jaxpr)
  stem = bool(parse(model.variant)[2])
  assert ('stem' in parts) == stem and ('head' in parts) == bool(model.classes)
  wider = flops.forward(model.clone(width=32), size, channels, train=train)
  assert wider['encoder'] > parts['encoder']


@pytest.mark.slow
@pytest.mark.parametrize(
  'variant, name',
  [
    ('Ti/16', 'vit_tiny_patch16_224'),
    ('R+Ti/16', 'vit_tiny_r_s16_p8_224'),
    ('R26+S/32', 'vit_small_r26_s32_224'),
    ('R50+B/16', 'vit_base_r50_s16_224'),
  ],
)
def test_against_the_operations_of_timm(variant, name):
  timm, torch = import_timm(), import_torch()
  from torch.utils.flop_counter import FlopCounterMode

  with torch.device('meta'):
    other = timm.create_model(name).eval()
    images = torch.zeros(1, 3, 224, 224)
  with torch.no_grad(), FlopCounterMode(display=False) as counter:
    other(images)
  model = ViT(classes=other.num_classes, variant=variant)
  total = sum(flops.forward(model, (224, 224)).values())
  assert total == counter.get_total_flops()


def test_activation_memory():
  model = ViT(**SMALL | {'depth': 6})
  kept = {
    remat: activation_bytes(model.clone(remat=remat), (8, 12))
    for remat in ('none', 'dots', 'full')
  }
  assert kept['full'] < kept['dots'] < kept['none']
  # Under full remat each layer keeps its input, 25 tokens of 16 floats.
  deeper = activation_bytes(model.clone(remat='full', depth=8), (8, 12))
  assert deeper - kept['full'] == 2 * 25 * 16 * 4
  # The parameters do not count: twice the classes is no more than the logits.
  wide = activation_bytes(model.clone(classes=1003), (8, 12))
  assert wide - kept['none'] <= 1000 * 4
  half = activation_bytes(model.clone(dtype='bfloat16'), (8, 12))
  assert 0.4 * kept['none'] < half < 0.9 * kept['none']
  dropped = activation_bytes(model.clone(dropout=0.1), (8, 12))
  assert dropped > kept['none']


def test_activation_memory_is_what_xla_allocates():
  model = ViT(**SMALL | {'depth': 4})
  size = (16, 16)
  params = shapes(model, size)

  def temporaries(count):
    images = jax.ShapeDtypeStruct((count, *size, 3), jnp.float32)
    step = jax.jit(
      jax.grad(lambda p, x: jnp.sum(model.apply({'params': p}, x) ** 2))
    )
    memory = step.lower(params, images).compile().memory_analysis()
    return memory.temp_size_in_bytes

  measured = (temporaries(24) - temporaries(8)) / 16
  assert activation_bytes(model, size) == pytest.approx(measured, rel=0.35)


def test_a_report_accounts_for_all():
  model = ViT(**SMALL, registers=2, pool='map', layer_scale=0.1)
  params = shapes(model, (4, 6))
  result = report(model, params, (4, 6), 3)
  assert sum(m['parameters'] for m in result['modules']) == result['parameters']
  assert sum(p['parameters'] for p in result['parts']) == result['parameters']
  assert sum(p['flops'] for p in result['parts']) == result['flops']
  assert result['training_flops'] == 3 * result['flops']
  assert result['parameter_bytes'] == 4 * result['parameters']
  assert result['tokens'] == 8
  names = [p['name'] for p in result['parts']]
  assert names == [n for n in inspect_model.ORDER if n in params]
  table = inspect_model.text(result)
  for m in result['modules']:
    assert m['path'] in table
  assert f'{result["parameters"]:,}' in table
  assert json.loads(json.dumps(result)) == result


def test_every_part_of_every_model_has_a_place():
  for fields in [*OPTIONS, {'embed_norm': True, 'positions': 'none'}]:
    model = ViT(**SMALL | fields)
    size = (64, 64) if 'variant' in fields else (4, 4)
    parts = set(shapes(model, size))
    assert parts <= set(inspect_model.ORDER)
    assert set(flops.forward(model, size)) <= parts


# The command.


@pytest.fixture
def run(root, monkeypatch, capsys):
  """Runs main in the repository: exit code, stdout, stderr."""
  monkeypatch.chdir(root)
  monkeypatch.setattr('vit_jax.cli._cache_compilations', lambda: None)

  def call(*argv):
    code = main(['inspect', *map(str, argv)])
    return code, *capsys.readouterr()

  return call


def test_of_a_config(run):
  code, out, err = run('--config=configs/digits.py')
  assert (code, err) == (0, '')
  assert out.startswith('Ti/2 on 8x8x1, 16 tokens\n')
  assert '4x96x3x32' in out and 'parameters   449,002 (1.8 MB)' in out


def test_of_a_config_as_json_with_overrides(run):
  flags = ('--config.model.depth=6', '--size=16', '--json')
  code, out, _ = run('--config=configs/digits.py', *flags)
  result = json.loads(out)
  assert code == 0
  assert (result['size'], result['channels']) == ([16, 16], 1)
  assert result['model']['depth'] == 6 and result['tokens'] == 64


def test_data_that_are_not_there_need_not_be(run):
  flags = ('--config=configs/folder.py', '--config.data.name=folder:/nowhere')
  code, _, err = run(*flags)
  assert code == 2 and '/nowhere' in err
  stated = (
    '--config.data.classes=1000',
    '--config.data.examples=1281167',
    '--config.model.variant=S/16',
    '--config.size=224',
    '--json',
  )
  code, out, err = run(*flags, *stated)
  assert (code, err) == (0, '')
  result = json.loads(out)
  assert (result['model']['classes'], result['channels']) == (1000, 3)


def test_of_weights(run, tmp_path):
  weights = pytest.importorskip('vit_jax.weights')
  formats = pytest.importorskip('vit_jax.weights.formats')
  model = ViT(classes=7, variant='Ti/16', depth=2)
  params = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(model, (32, 48))
  )
  path = tmp_path / 'model.safetensors'
  seen = formats.Preprocessing(size=(32, 48))
  weights.save(path, model, params, format='vit_jax', preprocessing=seen)
  code, out, err = run(f'--weights={path}', '--json')
  assert code == 0, err
  result = json.loads(out)
  assert result['size'] == [32, 48] and result['format'] == 'vit_jax'
  assert result['modules'] == report(model, params, (32, 48), 3)['modules']
  code, out, err = run(f'--weights={path}', '--size=64')
  assert code == 0 and '64x64x3, 17 tokens' in out


@pytest.mark.parametrize(
  'flags, says',
  [
    ((), '--config=FILE'),
    (('--config=configs/digits.py', '--weights=x.npz'), '--weights'),
    (('--weights=x.npz', '--config.model.depth=3'), '--config'),
    (('--config=configs/digits.py', '--size=9'), '9x9'),
    (('--config=configs/digits.py', '--sise=8'), '--size'),
    (('--weights=nowhere.npz',), 'nowhere.npz'),
  ],
)
def test_mistakes(run, flags, says):
  code, out, err = run(*flags)
  assert code == 2 and out == '' and says in err, err
