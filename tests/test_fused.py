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
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import cli, sharding, trees
from vit_jax.models import fused, kernels, mlp
from vit_jax.models.vit import ViT

V5E = ('tpu', 'TPU v5 lite')
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
    # In several blocks, and rounded to 2^-8 at several places.
    (6, 197, 128, 256, 'bfloat16', 4e-2),
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
  if dtype == 'float32':
    other = FLAVOURS[FLAVOURS.index(flavour) - 1]
    wrong = both(functools.partial(interpreted, flavour=other))(*inputs)
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


@pytest.mark.parametrize('batch', [16, 3])
def test_eight_devices_are_one(batch):
  """By batch; one that is not divided evenly is computed by each of them."""
  inputs = arrays(batch, 13, 32, 64, 'float32')
  run = functools.partial(interpreted, flavour='tanh')
  expected = both(run)(*inputs)
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 4, 'tensor': 1})
  x, up, down, cotangent = inputs
  where = sharding.BATCH if batch == 16 else PartitionSpec()
  with jax.set_mesh(mesh):
    placed = jax.device_put(x, NamedSharding(mesh, where))
    compiled = both(run).lower(placed, up, down, cotangent).compile()
    got = compiled(placed, up, down, cotangent)
    assert furthest(got, expected) < 1e-6
    assert got[0].sharding.is_equivalent_to(placed.sharding, 3)
    wrong = compiled(
      jax.device_put(jnp.roll(x, 2, 0), placed.sharding), up, down, cotangent
    )
  assert furthest(wrong, expected) > 0.1  # as if devices had each other's


def test_it_says_what_it_moves():
  """XLA counts what a kernel says: operands and results, each once."""
  x, up, down, cotangent = arrays(2, 21, 16, 40, 'bfloat16')
  forward = functools.partial(interpreted, flavour='tanh')
  text = str(jax.make_jaxpr(both(forward))(x, up, down, cotangent))
  rows, z, params = 2 * 21 * 16, 2 * 21 * 40, 2 * 16 * 40 + 16 + 40
  said = [int(n) for n in re.findall(r'bytes_accessed=(\d+)', text)]
  ahead = 2 * rows + z + params  # x, y; what GELU takes
  back = 3 * rows + z + 2 * params - 16 - 40  # x, dy, dx; no bias is read
  assert said == [2 * ahead, 2 * back]


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
  monkeypatch.setattr(kernels, 'device', lambda: V5E)
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

  params, loss, gradient = outcome('fused')
  assert set(calls) == {(2, 10, 384)}
  del calls[:]
  others, expected, theirs = outcome('xla')
  assert not calls
  jax.tree.map(np.testing.assert_array_equal, params, others)  # names, values
  assert loss == pytest.approx(expected, rel=2e-2)
  pairs = zip(trees.paths(gradient), trees.paths(theirs), strict=True)
  for (name, ours), (_, other) in pairs:
    if not name.endswith('key/bias'):  # 0 but for rounding: softmax ignores it
      off = np.linalg.norm(ours - other)
      assert off <= 0.05 * np.linalg.norm(other), name  # its function
  assert not all(map(np.array_equal, *map(jax.tree.leaves, (gradient, theirs))))


@pytest.mark.parametrize(
  'remat, asked, forward, backward',
  [
    ('none', 'auto', 1, 1),
    ('full', 'auto', 2, 1),
    ('dots', 'auto', 0, 0),  # which keeps the products that it would repeat
    ('dots', 'fused', 2, 1),
  ],
)
def test_what_is_computed_twice(calls, remat, asked, forward, backward):
  """Calls in the loop over the blocks and in that of the gradient."""
  images = jnp.zeros((2, 12, 12, 3))
  model = ViT(mlp_kernel=asked, remat=remat, **FIELDS)
  params = model.init(jax.random.key(0), images)
  loss = jax.grad(lambda params: model.apply(params, images).sum())
  text = str(jax.make_jaxpr(loss)(params))
  assert text.count('name=fused_mlp_forward') == forward
  assert text.count('name=fused_mlp_backward') == backward


B = {'width': 768, 'hidden': 3072}


@pytest.mark.parametrize(
  'fields, device, tensor, auto, why',
  [
    ({}, V5E, 1, True, ''),
    ({'hidden': 1536}, ('tpu', 'TPU v6 lite'), 1, True, ''),
    ({'width': 192}, V5E, 1, False, ''),  # it can be asked for
    (B, V5E, 1, False, ''),
    ({'fsdp': 2}, V5E, 1, False, ''),
    ({}, ('tpu', 'TPU v5'), 1, False, 'and TPU v6 lite, this is a TPU v5'),
    ({'width': 1152, 'hidden': 6144}, V5E, 1, False, 'of the chip, and 75% is'),
    ({}, ('gpu', 'NVIDIA H100'), 1, False, 'is for TPUs, this is a gpu'),
    ({}, ('cpu', 'cpu'), 1, False, 'fused is for TPUs, this is a cpu'),
    ({}, V5E, 2, False, 'fused takes whole matrices: mesh.tensor = 1'),
    ({'dtype': 'float32'}, V5E, 1, False, "'bfloat16', not 'float32'"),
    ({'mlp': 'swiglu'}, V5E, 1, False, "mlp = 'gelu', not 'swiglu'"),
    ({'dropout': 0.1}, V5E, 1, False, 'fused takes no dropout'),
  ],
)
def test_what_it_takes(
  calls, fields, device, tensor, auto, why, monkeypatch, caplog
):
  """Of what is asked for and cannot be had, a line tells why, once."""
  monkeypatch.setattr(kernels, 'device', lambda: device)
  fields = dict(fields)
  ways = {'data': -1, 'fsdp': fields.pop('fsdp', 1), 'tensor': tensor}
  mesh = sharding.make_mesh(ways)
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
