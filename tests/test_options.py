"""Each option of the ViT against NumPy, beside a control that must differ.

The oracle is the whole model, in float64, token by token; it shares no code
with the package. Images are not square.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_models import (
  SIZE,
  SMALL,
  close,
  np_attend,
  np_dense,
  np_gelu,
  np_norm,
  np_sincos1d,
  np_sincos2d,
)
from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import ViT
from vit_jax.models.patches import keep_patches
from vit_jax.models.positions import rope2d, rotate

FAST = {'xla_backend_optimization_level': 0}  # half the time to compile
GRID = (2, 3)
IMAGES = np.random.default_rng(5).normal(size=(2, *SIZE, 3)).astype('f')
CAPTURES = ('tokens', 'attention', 'pooled', 'logits')


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def np_turn(x, grid, prefix, theta):
  """Rotary positions by the formula: one head's tokens (N, K)."""
  x, out = x.astype(np.float64), x.astype(np.float64)
  width = x.shape[1]
  for n in range(prefix, len(x)):
    place = divmod(n - prefix, grid[1])
    for t in range(width // 2):
      axis, i = divmod(t, width // 4)
      coordinate = (place[axis] + 0.5) / grid[axis] * 2 - 1
      angle = 2 * math.pi * coordinate / theta ** (4 * i / width)
      a, b = x[n, t], x[n, t + width // 2]
      out[n, t] = a * math.cos(angle) - b * math.sin(angle)
      out[n, t + width // 2] = b * math.cos(angle) + a * math.sin(angle)
  return out


def np_mixing(x, p, model):
  """Self-attention with its options."""
  total = np.array(p['out']['bias'], np.float64)
  for h in range(p['query']['kernel'].shape[1]):

    def project(name, h=h):
      y = x @ p[name]['kernel'][:, h].astype(np.float64)
      return y + p[name]['bias'][h] if model.qkv_bias else y

    q, k, v = map(project, ('query', 'key', 'value'))
    if model.qk_norm:
      q, k = (
        np_norm(y, p[f'{name}_norm'], model.epsilon)
        for name, y in (('query', q), ('key', k))
      )
    if model.positions == 'rope2d':
      q, k = (np_turn(y, GRID, model.prefix, model.rope_theta) for y in (q, k))
    total = total + np_attend(q, k, v)[0] @ p['out']['kernel'][h]
  return total


def np_hidden(x, p, model):
  y = np_dense(x, p['up'])
  if model.mlp == 'swiglu':
    gate = np_dense(x, p['gate'])
    y = gate * sigmoid(gate) * y
  elif model.gelu == 'quick':
    y = y * sigmoid(1.702 * y)
  else:
    y = np_gelu(y, model.gelu)
  return np_dense(y, p['down'])


def np_map(x, p, model):
  """One learned query attends to all tokens; then an MLP."""
  total = np.array(p['out']['bias'], np.float64)
  for h in range(p['query']['kernel'].shape[1]):
    q, k, v = (
      y @ p[name]['kernel'][:, h].astype(np.float64) + p[name]['bias'][h]
      for name, y in (('query', p['probe']), ('key', x), ('value', x))
    )
    total = total + np_attend(q, k, v)[0] @ p['out']['kernel'][h]
  hidden = np_norm(total, p['norm'], model.epsilon)
  plain = model.clone(mlp='gelu')
  return (total + np_hidden(hidden, p['mlp'], plain))[0]


def np_embed(image, p, model):
  """Tokens of one image: CLS, distillation, registers, patches."""
  patches = [
    image[i : i + 2, j : j + 2].reshape(-1)
    for i in range(0, SIZE[0], 2)
    for j in range(0, SIZE[1], 2)
  ]
  x = np_dense(np.stack(patches).astype(np.float64), p['embed']['linear'])
  special = [p[name] for name in ('cls', 'distill') if name in model.special]
  count = len(special) if model.prefix_positions else 0
  x = np.concatenate([*special[:count], x])
  table = np.zeros(x.shape)
  if model.positions == 'learned':
    table = p['positions']['table']
  elif model.positions == 'sincos1d':
    table = np_sincos1d(*x.shape)
  elif model.positions == 'sincos2d':
    table[-len(patches) :] = np_sincos2d(GRID, x.shape[1])
  x = x + table
  first = x[:count] if count else np.reshape(special, (-1, x.shape[1]))
  registers = [p['registers']] if model.registers else []
  return np.concatenate([first, *registers, x[count:]])


def np_forward(image, p, model):
  """Logits, or features, of one image."""
  x = np_embed(image, p, model)
  if model.embed_norm:
    x = np_norm(x, p['embed_norm'], model.epsilon)
  blocks = p['encoder']['blocks']
  for layer in range(model.depth):
    block = jax.tree.map(lambda a, i=layer: a[i], blocks)
    scales = [
      block[name] if model.layer_scale else 1 for name in ('scale1', 'scale2')
    ]
    y = np_norm(x, block['norm1'], model.epsilon)
    x = x + scales[0] * np_mixing(y, block['attention'], model)
    y = np_norm(x, block['norm2'], model.epsilon)
    x = x + scales[1] * np_hidden(y, block['mlp'], model)
  before = model.pool_norm == 'before'
  x = np_norm(x, p['norm'], model.epsilon) if before else x
  pooled = {
    'cls': lambda: x[0],
    'mean': lambda: x[model.prefix :].mean(0),
    'map': lambda: np_map(x, p['pool'], model),
    'none': lambda: x,
  }[model.pool]()
  if not before:
    pooled = np_norm(pooled, p['norm'], model.epsilon)
  logits = np_dense(pooled, p['head']['linear'])
  if model.distill_token:
    logits = (logits + np_dense(x[1], p['distill_head']['linear'])) / 2
  return logits


# Fields, and others for the oracle that fit the same parameters but are
# another function.
CASES = [
  ({'pool': 'map'}, {'pool': 'mean'}),
  ({'pool': 'map', 'gelu': 'tanh', 'registers': 2}, {'gelu': 'quick'}),
  ({'pool': 'none'}, {'epsilon': 0.1}),
  ({'pool': 'mean', 'cls_token': 'yes'}, {'pool': 'cls'}),
  ({'pool': 'mean', 'cls_token': 'no'}, {'positions': 'sincos1d'}),
  ({'registers': 3}, {'positions': 'sincos1d'}),
  ({'registers': 3, 'pool': 'mean'}, {'registers': 0}),
  ({'distill_token': True}, {'pool': 'mean', 'cls_token': 'yes'}),
  ({'distill_token': True, 'registers': 1}, {'epsilon': 0.1}),
  ({'prefix_positions': False}, {'positions': 'sincos1d'}),
  (
    {'positions': 'sincos1d', 'prefix_positions': False},
    {'prefix_positions': True},
  ),
  ({'positions': 'sincos2d', 'distill_token': True}, {'positions': 'none'}),
  ({'positions': 'rope2d', 'rope_theta': 10.0}, {'rope_theta': 100.0}),
  (
    {'positions': 'rope2d', 'registers': 2, 'pool': 'mean'},
    {'positions': 'none'},
  ),
  ({'positions': 'none'}, {'positions': 'sincos2d'}),
  ({'qk_norm': True}, {'qk_norm': False}),
  ({'qk_norm': True, 'positions': 'rope2d'}, {'qk_norm': False}),
  ({'qkv_bias': False}, {'epsilon': 0.1}),
  ({'layer_scale': 0.1}, {'layer_scale': 0.0}),
  ({'mlp': 'swiglu'}, {'mlp': 'gelu'}),
  ({'gelu': 'quick'}, {'gelu': 'exact'}),
  ({'embed_norm': True}, {'embed_norm': False}),
  ({'pool_norm': 'after', 'pool': 'mean'}, {'pool_norm': 'before'}),
  ({'epsilon': 0.1}, {'epsilon': 1e-6}),
]
# Adds the same to all scores of a query, which softmax does not see.
UNSEEN = ('attention/key/bias', 'pool/key/bias', 'key_norm/bias')


def parameters(model, images=IMAGES):
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, 'float32')
  )['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.4, s.shape).astype(np.float32), shapes
  )


@functools.cache
def outcome(**fields):
  """(model, parameters, logits, captured, gradients), compiled once."""
  model = ViT(**SMALL | fields)
  params = parameters(model)

  def scalar(params, images):
    logits, captured = model.apply({'params': params}, images, capture=CAPTURES)
    loss = (logits * jnp.array([1.0, -2.0, 0.5])).sum()
    return loss, (logits, captured)

  run = jax.jit(jax.grad(scalar, has_aux=True), compiler_options=FAST)
  grads, (logits, captured) = jax.device_get(run(params, IMAGES))
  return model, params, logits, captured, grads


@pytest.mark.parametrize('fields, control', CASES, ids=str)
def test_forward(fields, control):
  model, params, logits, _, _ = outcome(**fields)
  model.check(SIZE)
  close(logits, np.stack([np_forward(i, params, model) for i in IMAGES]), 3e-4)
  other = model.clone(**control)
  changed = np.stack([np_forward(i, params, other) for i in IMAGES])
  assert np.abs(changed - logits).max() > 1e-3


@pytest.mark.parametrize('fields', [c[0] for c in CASES], ids=str)
def test_captures_of_any_model(fields):
  model, _, logits, captured, _ = outcome(**fields)
  n = model.prefix + 6
  assert captured['tokens'].shape == (2, 2, n, 16)
  assert captured['attention'].shape == (2, 2, 2, n, n)
  close(captured['attention'].sum(-1), np.ones((2, 2, 2, n)))
  wide = (2, n, 16) if model.pool == 'none' else (2, 16)
  assert captured['pooled'].shape == wide
  np.testing.assert_array_equal(captured['logits'], logits)


@pytest.mark.parametrize('fields', [c[0] for c in CASES], ids=str)
def test_gradients_reach_every_parameter(fields):
  model, _, _, _, grads = outcome(**fields)
  for name, grad in trees.paths(grads):
    unseen = name.endswith(UNSEEN)
    if name.endswith('attention/key/bias') and model.qk_norm:
      unseen = False  # the norm sees it
    if model.positions == 'rope2d' and not name.startswith('pool/'):
      unseen = False  # turned by another angle for each key
    for layer in grad if name.startswith('encoder/') else grad[None]:
      size = np.abs(layer).max()
      assert size < 1e-3 if unseen else size > 1e-5, (name, size)


# Tokens.


@pytest.mark.parametrize(
  'fields, special, prefix, rows',
  [
    ({}, ('cls',), 1, 7),
    ({'pool': 'mean'}, (), 0, 6),
    ({'pool': 'map'}, (), 0, 6),
    ({'pool': 'mean', 'cls_token': 'yes'}, ('cls',), 1, 7),
    ({'registers': 4}, ('cls',), 5, 7),  # registers have no positions
    ({'distill_token': True}, ('cls', 'distill'), 2, 8),
    ({'distill_token': True, 'registers': 1}, ('cls', 'distill'), 3, 8),
    ({'prefix_positions': False}, ('cls',), 1, 6),
    (
      {'prefix_positions': False, 'distill_token': True},
      ('cls', 'distill'),
      2,
      6,
    ),
  ],
)
def test_tokens_and_rows_of_positions(fields, special, prefix, rows):
  model = ViT(**SMALL | fields)
  assert (model.special, model.prefix) == (special, prefix)
  params = parameters(model)
  assert params['positions']['table'].shape == (rows, 16)
  assert ('registers' in params) == bool(model.registers)


def test_registers_and_pooling_see_the_order():
  """What stands where: registers come after CLS and before the patches."""
  model, params, _, captured, _ = outcome(registers=3)
  x = np_embed(IMAGES[0], params, model)
  np.testing.assert_allclose(x[1:4], params['registers'], atol=1e-6)
  block = jax.tree.map(lambda a: a[0], params['encoder']['blocks'])
  y = np_norm(x, block['norm1'])
  first = x + np_mixing(y, block['attention'], model)
  first = first + np_hidden(np_norm(first, block['norm2']), block['mlp'], model)
  close(captured['tokens'][0, 0], first, 2e-4)
  swapped = first[[0, 4, 5, 6, 1, 2, 3, 7, 8, 9]]
  assert np.abs(captured['tokens'][0, 0] - swapped).max() > 0.1


def test_logits_of_distillation_are_the_mean_of_two_heads():
  _, params, logits, captured, _ = outcome(distill_token=True)
  last = np_norm(captured['tokens'][-1].astype(np.float64), params['norm'])
  first = np_dense(last[:, 0], params['head']['linear'])
  second = np_dense(last[:, 1], params['distill_head']['linear'])
  close(logits, (first + second) / 2, 2e-4)
  assert min(np.abs(logits - x).max() for x in (first, second)) > 1e-2


def test_map_pooling_does_not_ask_for_an_order():
  """The pool of tokens is that of a permutation of them; a mean's too."""
  model, params, *_ = outcome(pool='map')
  x = np.random.default_rng(0).normal(size=(6, 16))
  pool = functools.partial(np_map, p=params['pool'], model=model)
  close(pool(x), pool(x[[3, 1, 5, 0, 2, 4]]))
  assert np.abs(pool(x) - pool(x[:5])).max() > 1e-3


# Rotary positions.


def turned(grid, x, prefix=0, theta=100.0):
  rotation = rope2d(grid, x.shape[-1], theta, prefix)
  return np.asarray(rotate(jnp.asarray(x, jnp.float32), rotation))


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize('prefix', [0, 3])
def test_rotation_is_the_formula(grid, prefix):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, prefix + math.prod(grid), 2, 8))
  got = turned(grid, x, prefix, 50.0)
  for b, h in np.ndindex(2, 2):
    close(got[b, :, h], np_turn(x[b, :, h], grid, prefix, 50.0), 1e-5)
  np.testing.assert_allclose(got[:, :prefix], x[:, :prefix], rtol=1e-6)
  if grid != (1, 1):  # the centre of one patch is the centre: no turn
    assert np.abs(got[:, prefix:] - x[:, prefix:]).max() > 0.1
    other = turned(grid[::-1], x, prefix, 50.0)
    assert np.abs(got - other).max() > 0.1


def test_rotation_keeps_norms_and_scores_of_equal_shifts():
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, 8))
  x = np.broadcast_to(q, (1, 20, 1, 8))
  queries = turned((4, 5), x)[0, :, 0]
  keys = turned((4, 5), np.broadcast_to(k, x.shape))[0, :, 0]
  close((queries**2).sum(-1), np.full(20, (q**2).sum()), 1e-5)
  scores = (queries @ keys.T).reshape(4, 5, 4, 5)
  close(scores[0, 1, 2, 2], scores[1, 3, 3, 4], 1e-5)  # both by (2, 1)
  assert abs(scores[0, 1, 2, 2] - scores[0, 1, 1, 2]) > 1e-2


def test_angles_are_of_the_place_not_the_resolution():
  """Patch (i, j) of 3x2 lies where (3i + 1, 3j + 1) of 9x6 does."""
  fine = np.stack(rope2d((9, 6), 8, 100.0, 0)).reshape(2, 9, 6, 8)
  coarse = np.stack(rope2d((3, 2), 8, 100.0, 0)).reshape(2, 3, 2, 8)
  np.testing.assert_allclose(fine[:, 1::3, 1::3], coarse, atol=1e-6)
  assert np.abs(fine[:, ::3, ::3] - coarse).max() > 0.1


@pytest.mark.parametrize('positions', ['learned', 'sincos1d', 'sincos2d'])
@pytest.mark.parametrize('size', [(4, 6), (6, 4), (2, 10)])
def test_shapes_that_are_not_square(positions, size):
  model = ViT(**SMALL, positions=positions, registers=1)
  images = np.ones((1, *size, 3), np.float32)
  out = jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0]
  assert out.shape == (1, 3)


def test_columns_and_rows_are_not_confused():
  """A picture and its transpose, on a grid and its transpose, differ."""
  for positions in ('sincos2d', 'rope2d'):
    model, params, logits, *_ = outcome(positions=positions, pool='mean')
    flipped = IMAGES.swapaxes(1, 2)
    other = jax.jit(model.apply)({'params': params}, flipped)
    assert np.abs(np.asarray(other) - logits).max() > 1e-2


# Patch dropout.


@pytest.mark.parametrize(
  'prefix, n, fraction, kept',
  [(2, 8, 0.5, 4)] + [(0, 9, 0.7, 6), (1, 5, 0.01, 1), (3, 4, 1.0, 4)],
)
def test_kept_patches(prefix, n, fraction, kept):
  x = np.tile(np.arange(prefix + n, dtype='f')[None, :, None], (40, 1, 2))
  table = np.arange(prefix + n, dtype='f')[:, None] * 10
  keys = jax.random.split(jax.random.key(0), 40)
  x, tables, which = keep_patches(
    keys, jnp.asarray(x), (jnp.asarray(table),), prefix, fraction
  )
  index = np.asarray(x[..., 0])
  assert index.shape == (40, prefix + kept)
  assert (index[:, :prefix] == np.arange(prefix)).all()
  patches = index[:, prefix:]
  assert (np.diff(index) > 0).all()  # the order stays, none comes twice
  np.testing.assert_array_equal(np.asarray(tables[0])[..., 0], 10 * index)
  np.testing.assert_array_equal(which, patches - prefix)
  if kept < n:
    assert len({tuple(row) for row in patches}) > 1  # images differ
    assert set(patches.ravel()) == set(range(prefix, prefix + n))  # all occur


def test_patch_dropout_is_for_training_and_a_function_of_its_key():
  model = ViT(**SMALL, patch_dropout=0.5, positions='rope2d', registers=1)
  plain = model.clone(patch_dropout=0.0)
  params = parameters(plain)
  assert trees.count(parameters(model)) == trees.count(params)

  @functools.partial(jax.jit, static_argnums=(0, 2))
  def run(model, key, train):
    rngs = {'dropout': jax.random.key(key)} if train else {}
    return model.apply(
      {'params': params},
      jnp.asarray(IMAGES),
      train=train,
      capture=('tokens',),
      rngs=rngs,
    )

  logits, captured = run(model, 0, True)
  assert captured['tokens'].shape == (2, 2, 2 + 3, 16)
  np.testing.assert_array_equal(logits, run(model, 0, True)[0])
  assert np.abs(np.asarray(logits - run(model, 1, True)[0])).max() > 1e-3
  evaluated = run(model, 0, False)[0]
  np.testing.assert_array_equal(evaluated, run(plain, 0, False)[0])
  assert np.abs(np.asarray(logits - evaluated)).max() > 1e-3


# What cannot be.


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'cls_token': 'no'}, "cls_token = 'no', but pool = 'cls'"),
    ({'distill_token': True, 'pool': 'mean'}, 'distill_token needs a CLS'),
    ({'registers': -1}, 'registers = -1'),
    ({'patch_dropout': 1.0}, 'patch_dropout = 1.0'),
    ({'patch_dropout': -0.1}, 'patch_dropout = -0.1'),
    ({'positions': 'rope2d', 'width': 12}, "positions = 'rope2d'.*not 6"),
    ({'positions': 'sincos2d', 'width': 10}, "positions = 'sincos2d'.*not 10"),
    ({'heads': 3}, 'heads = 3'),
    ({'variant': 'R26+S/32'}, '32 does not divide'),
  ],
)
def test_what_cannot_be_is_refused(fields, says):
  ViT(**SMALL).check(SIZE)
  with pytest.raises(UserError, match=says):
    ViT(**SMALL | fields).check(SIZE)


@pytest.mark.parametrize(
  'fields',
  [
    # Two logits of different shapes are added: an error, or silently wrong
    # when there are as many images as tokens.
    {'distill_token': True, 'pool': 'none', 'cls_token': 'yes'},
    # The distillation head reads a token that no norm has seen.
    {'distill_token': True, 'pool_norm': 'after'},
    {'representation': -1},
    {'layer_scale': -1.0},
    {'epsilon': -1.0},
    {'positions': 'rope2d', 'rope_theta': 0.0},
  ],
  ids=str,
)
def test_what_should_be_refused(fields):
  with pytest.raises(UserError):
    ViT(**SMALL | fields).check(SIZE)
