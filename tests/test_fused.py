"""The fused MLP: the same function, on one device and on several; the choice.

The kernel runs step by step on the CPU (`interpret`); TPUs' compiler is in
test_plan_compilers.py.
"""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import cli, sharding
from vit_jax.models import fused, kernels, mlp
from vit_jax.models.vit import ViT

FLAVOURS = ('exact', 'tanh', 'quick')
interpreted = functools.partial(fused.mlp, interpret=True)


def arrays(b, n, width, hidden, dtype):
  """Tokens, both layers' parameters, and a cotangent of the output."""
  rng = np.random.default_rng(n)

  def draw(*shape, scale=1.0):
    return jnp.asarray(rng.normal(size=shape) * scale, dtype)

  up = draw(width, hidden, scale=width**-0.5), draw(hidden)
  down = draw(hidden, width, scale=hidden**-0.5), draw(width)
  return draw(b, n, width), up, down, draw(b, n, width)


def both(function):
  """Jitted: (x, up, down, cotangent) -> the output and all gradients."""

  def run(x, up, down, cotangent):
    out, gradient = jax.vjp(function, x, up, down)
    return jax.tree.leaves((out, gradient(cotangent)))

  return jax.jit(run)


def plain(x, up, down, flavour):
  return mlp.gelu(x @ up[0] + up[1], flavour) @ down[0] + down[1]


def furthest(ours, theirs):
  """The largest difference of an array, by its largest value."""
  pairs = zip(jax.device_get(ours), jax.device_get(theirs), strict=True)
  pairs = [(np.float32(a), np.float32(b)) for a, b in pairs]
  return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


@pytest.mark.parametrize('flavour', FLAVOURS)
@pytest.mark.parametrize(
  'b, n, width, hidden, dtype, within',
  [
    (4, 37, 48, 96, 'float32', 2e-6),
    (3, 197, 128, 256, 'bfloat16', 4e-2),  # 2^-8, at several places
  ],
)
def test_it_is_the_mlp(b, n, width, hidden, dtype, within, flavour):
  inputs = arrays(b, n, width, hidden, dtype)
  expected = both(functools.partial(plain, flavour=flavour))(*inputs)
  got = both(functools.partial(interpreted, flavour=flavour))(*inputs)
  for ours, theirs in zip(got, expected, strict=True):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
  assert furthest(got, expected) < within
  # Controls: another GELU; images that are each other's.
  other = FLAVOURS[FLAVOURS.index(flavour) - 1]
  wrong = both(functools.partial(interpreted, flavour=other))(*inputs)
  if dtype == 'float32':
    assert furthest(wrong, expected) > 10 * within
  moved = [jnp.roll(inputs[0], 1, 0), *inputs[1:]]
  wrong = both(functools.partial(interpreted, flavour=flavour))(*moved)
  assert furthest(wrong, expected) > 10 * within


def test_only_a_gradient_has_anything_written():
  """(N, F) is a result of the kernel where it is needed, and once."""
  x, up, down, cotangent = arrays(2, 21, 16, 40, 'bfloat16')
  forward = functools.partial(interpreted, flavour='tanh')

  def written(function, *inputs):
    """Of each call of a kernel, how many results are (B, N, F)."""
    text = str(jax.make_jaxpr(function)(*inputs))
    results = re.findall(r'\n *(.*) = pallas_call', text)
    return [found.count('[2,21,40]') for found in results]

  assert written(forward, x, up, down) == [0]
  assert written(both(forward), x, up, down, cotangent) == [1, 0]


# --- In a model ---

FIELDS = {'variant': 'mu/4', 'width': 384, 'hidden': 64, 'heads': 2, 'depth': 2}
FIELDS |= {'classes': 3, 'dtype': 'bfloat16', 'attention': 'xla'}


@pytest.fixture
def calls(monkeypatch):
  """As if a v5e were here, the kernel interpreted; the list of its calls."""
  found = []

  def kernel(x, *args):
    found.append(x.shape)
    return interpreted(x, *args)

  monkeypatch.setattr(fused, 'mlp', kernel)
  monkeypatch.setattr(kernels, '_device', lambda: ('tpu', 'TPU v5 lite'))
  return found


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_model_is_the_same_by_either_path(calls, remat):
  images = jax.random.normal(jax.random.key(1), (2, 12, 12, 3))
  pull = jax.random.normal(jax.random.key(2), (2, 384))

  def outcome(kernel):
    model = ViT(mlp_kernel=kernel, remat=remat, **FIELDS)
    params = model.init(jax.random.key(0), images)['params']

    def loss(params):
      _, seen = model.apply({'params': params}, images, capture=('pooled',))
      return (seen['pooled'].astype('float32') * pull).sum()

    return params, *jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

  params, loss, gradient = outcome('auto')
  assert set(calls) == {(2, 10, 384)}
  del calls[:]
  others, expected, theirs = outcome('xla')
  assert not calls
  jax.tree.map(np.testing.assert_array_equal, params, others)  # names, values
  assert loss == pytest.approx(expected, rel=2e-2)
  norms = jax.tree.map(jnp.linalg.norm, (gradient, theirs))
  off = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), gradient, theirs)
  off, norm = (
    float(jnp.linalg.norm(jnp.stack(jax.tree.leaves(tree))))
    for tree in (off, norms[1])
  )
  assert 0 < off < 0.05 * norm  # not the same program, but its function


V5E, V4 = ('tpu', 'TPU v5 lite'), ('tpu', 'TPU v4')
B = {'width': 768, 'hidden': 3072}


@pytest.mark.parametrize(
  'fields, device, tensor, auto, why',
  [
    ({}, V5E, 1, True, ''),
    ({'hidden': 1536}, ('tpu', 'TPU v6 lite'), 1, True, ''),
    ({'width': 192}, V5E, 1, False, ''),  # it can be asked for
    (B, V5E, 1, False, ''),
    (B, V4, 1, False, 'of what kernels have on the chip'),
    ({'hidden': 1536}, V4, 1, False, 'of what kernels have on the chip'),
    ({'width': 1152, 'hidden': 6144}, V5E, 1, False, 'of what kernels have on'),
    ({}, ('gpu', 'NVIDIA H100'), 1, False, 'is for TPUs, this is a gpu'),
    ({}, ('cpu', 'cpu'), 1, False, 'fused is for TPUs, this is a cpu'),
    ({}, V5E, 2, False, 'fused takes whole matrices: tensor = 1'),
    ({'dtype': 'float32'}, V5E, 1, False, "'bfloat16', not 'float32'"),
    ({'mlp': 'swiglu'}, V5E, 1, False, "mlp = 'gelu', not 'swiglu'"),
    ({'dropout': 0.1}, V5E, 1, False, 'fused takes no dropout'),
  ],
)
def test_what_it_takes(
  calls, fields, device, tensor, auto, why, monkeypatch, caplog
):
  """Of what is asked for and cannot be had, a line tells why, once."""
  monkeypatch.setattr(kernels, '_device', lambda: device)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': tensor})
  images = jax.ShapeDtypeStruct((8, 12, 12, 3), jnp.float32)
  rngs = {name: jax.random.key(0) for name in ('params', 'dropout')}
  kernels.say.cache_clear()
  expected = {'auto': auto, 'fused': not why, 'xla': False}
  for asked, has in expected.items():
    model = ViT(mlp_kernel=asked, **FIELDS | fields)
    del calls[:]
    caplog.clear()
    with jax.set_mesh(mesh), caplog.at_level(logging.WARNING, logger='absl'):
      jax.eval_shape(functools.partial(model.init, train=True), rngs, images)
    assert bool(calls) == has
    told = [x.getMessage() for x in caplog.records]
    told = [x for x in told if x.startswith('mlp: ')]
    assert len(told) == (asked == 'fused' and bool(why))
    assert all(why in x and x.endswith(': xla') for x in told)


@pytest.mark.parametrize(
  'field, says',
  [
    ('dtype=float32', "fused takes dtype = 'bfloat16', not 'float32'"),
    ('mlp=swiglu', "fused takes mlp = 'gelu', not 'swiglu'"),
  ],
)
def test_what_cannot_be_is_told_before_it_starts(field, says, tmp_path, capsys):
  flags = ['--config=configs/digits.py', f'--workdir={tmp_path / "w"}']
  flags += ['--config.model.mlp_kernel=fused', '--config.model.dtype=bfloat16']
  assert cli.main(['train', *flags, f'--config.model.{field}']) == 2
  error = capsys.readouterr().err
  assert f"config.model.mlp_kernel = 'fused': {says}" in error
  assert not (tmp_path / 'w').exists()
