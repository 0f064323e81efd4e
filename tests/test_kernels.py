"""Fused attention: the same function, on one device and on several; the choice.

The Pallas kernel runs step by step on the CPU (`interpret`); the compilers for
TPUs and GPUs are in test_plan_compilers.py.
"""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax import config as config_lib
from vit_jax import sharding, workdir
from vit_jax.errors import UserError
from vit_jax.models import kernels
from vit_jax.models.attention import (
  _attend,
  _attend_backward,
  attend,
  dot_product_attention,
)
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup
from vit_jax.weights import export
from vit_jax.weights.formats import Preprocessing

interpreted = functools.partial(kernels.splash, interpret=True)


def xla(*qkv):
  return dot_product_attention(*qkv)[0]


def arrays(b, n, h, k, dtype='float32'):
  """Queries, keys, values, and a cotangent of the output."""
  rng = np.random.default_rng(n)
  return [jnp.asarray(rng.normal(size=(b, n, h, k)), dtype) for _ in range(4)]


def both(attend):
  """Jitted: (query, key, value, cotangent) -> the output, three gradients."""

  def run(query, key, value, cotangent):
    out, gradient = jax.vjp(attend, query, key, value)
    return out, *gradient(cotangent)

  return jax.jit(run)


def furthest(ours, theirs):
  """The largest difference, over all outputs."""
  pairs = zip(jax.device_get(ours), jax.device_get(theirs), strict=True)
  return max(np.abs(np.float32(a) - np.float32(b)).max() for a, b in pairs)


# Values and gradients are of the order of 1. In bfloat16 they are rounded to
# 2^-8, by either path at other places.
TOLERANCE = {'float32': 5e-6, 'bfloat16': 2e-2}


@pytest.mark.parametrize(
  'n, heads, width, dtype',
  [
    (5, 3, 16, 'float32'),
    (128, 2, 64, 'float32'),  # without padding
    (197, 3, 72, 'float32'),
    (197, 2, 64, 'bfloat16'),
    (1030, 1, 8, 'float32'),  # in two blocks
  ],
)
def test_splash_is_attention(n, heads, width, dtype, monkeypatch):
  inputs = arrays(2, n, heads, width, dtype)
  expected = both(xla)(*inputs)
  got = both(interpreted)(*inputs)
  assert all(x.dtype == dtype and x.shape == inputs[0].shape for x in got)
  assert furthest(got, expected) < TOLERANCE[dtype]
  if n == 197:  # the padding would take part
    monkeypatch.setattr(splash_attention, 'SegmentIds', lambda *ids: None)
    wrong = both(interpreted)(*inputs)
    assert furthest(wrong, expected) > 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(
  'n, heads, width, dtype',
  [
    (197, 2, 64, 'bfloat16'),  # heads side by side; no multiple of anything
    (20, 4, 32, 'float32'),
    (5, 1, 256, 'float32'),
  ],
)
def test_short_is_attention(n, heads, width, dtype):
  inputs = arrays(3, n, heads, width, dtype)
  expected = both(xla)(*inputs)
  got = both(functools.partial(kernels.short, interpret=True))(*inputs)
  assert all(x.dtype == dtype and x.shape == inputs[0].shape for x in got)
  assert furthest(got, expected) < TOLERANCE[dtype]
  # Controls: as if heads saw their neighbours, and images each other's.
  for axis in (0, 2)[: 1 + (heads > 1)]:
    moved = [inputs[0], jnp.roll(inputs[1], 1, axis), *inputs[2:]]
    wrong = both(functools.partial(kernels.short, interpret=True))(*moved)
    assert furthest(wrong, expected) > 2 * TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_our_gradient_is_the_softmax_s(dtype):
  """Written out: as what JAX makes of the same lines."""
  inputs = arrays(2, 33, 3, 16, dtype)
  expected = both(xla)(*inputs)
  assert furthest(both(attend)(*inputs), expected) < TOLERANCE[dtype]

  def without_mean(kept, dy):  # the control: a softmax that is not normalised
    query, key, value, y, weights = kept
    return _attend_backward((query, key, value, 0 * y, weights), dy)

  attend.defvjp(_attend, without_mean)
  try:
    wrong = both(attend)(*inputs)
  finally:
    attend.defvjp(_attend, _attend_backward)
  assert furthest(wrong, expected) > 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(
  'tokens, side, length',
  [
    (1, 128, 128),
    (128, 128, 128),
    (197, 256, 256),
    (577, 640, 640),
    (1024, 1024, 1024),
    (1025, 640, 1280),
    (4097, 896, 4480),
  ],
)
def test_blocks(tokens, side, length):
  assert kernels.blocks(tokens) == (side, length)


@pytest.mark.parametrize(
  'batch, heads, spec',
  [
    (8, 4, (('data', 'fsdp'), None, 'tensor', None)),
    (8, 3, (('data', 'fsdp'), None, None, None)),
    (1, 4, (None, None, 'tensor', None)),
  ],
)
def test_eight_devices_are_one(batch, heads, spec):
  inputs = arrays(batch, 130, heads, 16)
  expected = both(interpreted)(*inputs)
  assert sharding.heads_spec(inputs[0].shape) is None  # no mesh is set
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  with jax.set_mesh(mesh):
    assert sharding.heads_spec(inputs[0].shape) == PartitionSpec(*spec)
    where = NamedSharding(mesh, PartitionSpec(*spec))
    placed = jax.device_put(inputs, where)
    compiled = both(interpreted).lower(*placed).compile()
    got = compiled(*placed)
    assert furthest(got, expected) < 1e-6
    assert all(x.sharding.is_equivalent_to(where, 4) for x in got)
    assert 'all-gather' not in compiled.as_text()  # each does its own
  query, key, *others = placed  # as if devices had each other's keys
  wrong = compiled(
    query, jax.device_put(jnp.roll(key, 1, axis=(0, 2)), where), *others
  )
  assert furthest(wrong, expected) > 0.1


# --- In a model ---

SIZE = (20, 24)  # 30 patches and the CLS token
FIELDS = {'variant': 'mu/4', 'width': 16, 'heads': 2, 'depth': 2, 'classes': 3}


@pytest.fixture
def splashed(monkeypatch):
  """Has 'splash' everywhere, interpreted; gives the list of its calls."""
  calls = []

  def kernel(*qkv):
    calls.append(qkv[0].shape)
    return interpreted(*qkv)

  monkeypatch.setitem(kernels.KERNELS, 'splash', kernel)
  monkeypatch.setattr(kernels, 'device', lambda: ('tpu', 'TPU v5 lite'))
  return calls


@functools.cache
def small_model():
  """Images, and parameters of a model whose head is not zero."""
  images = jax.random.normal(jax.random.key(1), (2, *SIZE, 3))
  params = ViT(**FIELDS).init(jax.random.key(0), images)['params']
  noise = jax.random.normal(jax.random.key(2), (16, 3))
  return images, params | {
    'head': {'linear': {'kernel': noise, 'bias': jnp.zeros(3)}}
  }


def test_a_model_is_the_same_by_either_path(splashed):
  images, params = small_model()

  def outcome(attention):
    model = ViT(attention=attention, **FIELDS)
    run = functools.partial(model.apply, capture=('tokens',))
    return jax.device_get(jax.jit(run)({'params': params}, images))

  logits, seen = outcome('splash')
  assert set(splashed) == {(2, 31, 2, 8)}
  del splashed[:]
  expected, other = outcome('xla')
  assert not splashed
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  np.testing.assert_allclose(seen['tokens'], other['tokens'], atol=2e-5)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
@pytest.mark.parametrize('capture', [(), ('tokens',), ('attention', 'tokens')])
def test_weights_are_shown_by_the_path_that_has_them(splashed, remat, capture):
  """Of the gradient, too, and under remat: which is traced, not run."""
  images, params = small_model()
  model = ViT(attention='splash', remat=remat, **FIELDS)

  def loss(params):
    out = model.apply({'params': params}, images, capture=capture)
    return (out[0] if capture else out).sum(), out

  grads, out = jax.eval_shape(jax.grad(loss, has_aux=True), params)
  assert bool(splashed) == ('attention' not in capture)
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
  if 'attention' in capture:
    assert out[1]['attention'].shape == (2, 2, 2, 31, 31)


# --- The choice ---


@pytest.fixture
def gpus(monkeypatch):
  """As if GPUs with cuDNN were here."""
  monkeypatch.setattr(kernels, '_missing', lambda dtype, width: '')


@pytest.mark.parametrize(
  'platform, dtype, width, tokens, kernel, why',
  [
    ('cpu', 'float32', 64, 197, 'xla', ''),
    ('cpu', 'bfloat16', 64, 4097, 'xla', ''),
    ('gpu', 'bfloat16', 64, 17, 'cudnn', ''),
    ('gpu', 'bfloat16', 64, 4097, 'cudnn', ''),
    ('gpu', 'float16', 128, 197, 'cudnn', ''),
    ('gpu', 'float32', 64, 197, 'xla', "'bfloat16', not 'float32'"),
    ('gpu', 'bfloat16', 60, 197, 'xla', 'multiple of 8, at most 128, not 60'),
    ('gpu', 'bfloat16', 136, 197, 'xla', 'at most 128, not 136'),
    ('tpu', 'bfloat16', 64, 197, 'short', ''),
    ('tpu', 'bfloat16', 64, 640, 'short', ''),
    ('tpu', 'bfloat16', 64, 641, 'splash', ''),
    ('tpu', 'bfloat16', 128, 197, 'short', ''),
    ('tpu', 'bfloat16', 80, 255, 'xla', ''),  # 80 does not divide 128
    ('tpu', 'bfloat16', 80, 256, 'splash', ''),
    ('tpu', 'bfloat16', 80, 257, 'xla', ''),  # would be 384
    ('tpu', 'bfloat16', 80, 511, 'splash', ''),
    ('tpu', 'bfloat16', 80, 513, 'splash', ''),  # 640, the most of padding
    ('tpu', 'bfloat16', 32, 197, 'xla', ''),  # 6 x 32 are not whole 128
    ('tpu', 'float32', 64, 197, 'xla', ''),
    ('tpu', 'float32', 64, 577, 'splash', ''),
    ('tpu', 'float32', 72, 577, 'splash', ''),
    ('tpu', 'bfloat16', 264, 577, 'xla', 'at most 256, not 264'),
  ],
)
def test_auto(platform, dtype, width, tokens, kernel, why, gpus):
  chosen, reason = kernels.choose('auto', platform, dtype, width, tokens, 6)
  assert chosen == kernel
  assert why in reason and bool(why) == bool(reason)


@pytest.mark.parametrize(
  'asked, platform, kernel, why',
  [
    ('xla', 'tpu', 'xla', ''),
    ('xla', 'gpu', 'xla', ''),
    ('cudnn', 'gpu', 'cudnn', ''),
    ('splash', 'tpu', 'splash', ''),  # however short
    ('short', 'tpu', 'short', ''),
    ('short', 'gpu', 'xla', 'short is for TPUs, this is a gpu'),
    ('cudnn', 'cpu', 'xla', 'cudnn is for GPUs, this is a cpu'),
    ('cudnn', 'tpu', 'xla', 'cudnn is for GPUs, this is a tpu'),
    ('splash', 'cpu', 'xla', 'splash is for TPUs, this is a cpu'),
    ('splash', 'gpu', 'xla', 'splash is for TPUs, this is a gpu'),
  ],
)
def test_what_is_asked_for(asked, platform, kernel, why, gpus):
  chosen = kernels.choose(asked, platform, 'bfloat16', 64, 197, 6)
  assert chosen == (kernel, why)


def test_without_cudnn():
  """Here there is none, and jax says so."""
  chosen = kernels.choose('auto', 'gpu', 'bfloat16', 64, 197, 6)
  assert chosen == ('xla', 'cuDNN is not detected')


@pytest.mark.parametrize(
  'capability, why', [('8.0', ''), ('10.0', ''), ('7.5', 'this GPU has 7.5')]
)
def test_gpus_that_are_too_old(capability, why, cudnn_is_here, monkeypatch):
  class Device:
    compute_capability = capability

  monkeypatch.setattr(jax, 'local_devices', lambda backend: [Device()])
  reason = kernels._missing('bfloat16', 64)
  assert why in reason and bool(why) == bool(reason)


def test_a_substitute_is_told_once(caplog):
  kernels.say.cache_clear()
  with caplog.at_level(logging.WARNING, logger='absl'):
    query = arrays(1, 17, 2, 8)[0]
    for _ in range(2):
      assert kernels.pick('splash', query) == 'xla'
    assert kernels.pick('auto', query) == kernels.pick('xla', query) == 'xla'
  assert [record.getMessage() for record in caplog.records] == [
    'attention: splash is for TPUs, this is a cpu: xla'
  ]


def mesh_of(platform):
  """As is set when the program is for devices that are not here."""
  device = jax.sharding.AbstractDevice('', None, platform)
  axes = (AxisType.Auto,) * 3
  return jax.sharding.AbstractMesh(
    (1, 1, 1), sharding.AXES, axes, abstract_device=device
  )


def test_the_mesh_tells_the_platform(gpus):
  query = jnp.zeros((1, 600, 2, 8), jnp.bfloat16)
  assert kernels.pick('auto', query) == 'xla'
  for platform, kernel in [
    ('cpu', 'xla'),
    ('tpu', 'splash'),
    ('cuda', 'cudnn'),
    ('gpu', 'cudnn'),
  ]:
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
      assert kernels.pick('auto', query) == kernel


@pytest.fixture
def cudnn_is_here(monkeypatch):
  """What jax asks before it makes a program that calls cuDNN."""
  module = fused_attention_stablehlo
  monkeypatch.setattr(module, 'check_cudnn_version', lambda: 91000)


@pytest.mark.parametrize('n, padded', [(196, 196), (197, 198)])
def test_cudnn_is_called_with_what_each_device_has(n, padded, cudnn_is_here):
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  with jax.set_mesh(mesh):
    where = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    shape = (8, n, 6, 64)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)] * 4
    traced = both(kernels.cudnn).trace(*inputs)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  for name in ('fmhaSoftmax', 'fmhaSoftmaxBackward'):
    (call,) = [x for x in text.splitlines() if f'@__cudnn${name}(' in x]
    assert f'tensor<2x{padded}x3x64xbf16>' in call and f'8x{n}' not in call
    # Of the padded one, how many tokens there are of each image.
    assert ('tensor<2xi32>' in call) == (n != padded)
  plain = both(xla).trace(*inputs).lower(lowering_platforms=('cuda',))
  assert '__cudnn' not in plain.as_text()


@pytest.mark.parametrize('n', [16, 17])
def test_what_cudnn_is_asked_for_is_attention(n, monkeypatch):
  """There is no cuDNN here; of the same arguments jax makes XLA's program."""
  attend, asked = jax.nn.dot_product_attention, []

  def substitute(*qkv, implementation, **lengths):
    asked.append(implementation)
    lengths = {} if forget else lengths
    return attend(*qkv, implementation='xla', **lengths)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', substitute)
  inputs, forget = arrays(2, n, 3, 8), False
  expected = both(xla)(*inputs)
  assert furthest(both(kernels.cudnn)(*inputs), expected) < 5e-6
  assert asked == ['cudnn']
  forget = True  # the padding would take part
  difference = furthest(both(kernels.cudnn)(*inputs), expected)
  assert (difference > 1e-2) == (n == 17)


# --- The field ---


@pytest.mark.parametrize(
  'fields, says',
  [
    (
      {'attention': 'cudnn'},
      "config.model.attention = 'cudnn': cudnn takes dtype = 'bfloat16', not "
      "'float32' (config.model.dtype, heads, width)",
    ),
    (
      {'attention': 'cudnn', 'dtype': 'bfloat16', 'width': 24},
      'a width that is a multiple of 8, at most 128, not 12',
    ),
    ({'attention': 'splash', 'width': 1024}, 'at most 256, not 512'),
  ],
)
def test_what_cannot_be_is_told_before_it_starts(small_config, fields, says):
  overrides = {f'model.{name}': str(value) for name, value in fields.items()}
  with pytest.raises(UserError) as error:
    Setup(small_config(**overrides))
  assert says in str(error.value)
  overrides['model.attention'] = 'auto'
  assert Setup(small_config(**overrides)).model.attention == 'auto'


def test_a_run_from_before_the_field_goes_on(small_config, tmp_path):
  config = small_config()
  saved = json.loads(config_lib.to_json(config))
  assert saved['model'].pop('attention') == 'auto'
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  workdir.check_resumable(tmp_path, config)
  with pytest.raises(UserError, match='config.model.attention was'):
    workdir.check_resumable(tmp_path, small_config(model__attention='xla'))


def test_an_exported_program_calls_no_kernel(tmp_path, splashed):
  model = ViT(attention='splash', **FIELDS)
  images = jnp.zeros((1, *SIZE, 3))
  params = small_model()[1]
  seen = Preprocessing(
    size=SIZE,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    interpolation='bilinear',
    crop=1.0,
    mode='squash',
  )
  export.export_stablehlo(model, params, tmp_path, seen)
  assert not splashed
  assert export.run_stablehlo(tmp_path, images).shape == (1, 3)
