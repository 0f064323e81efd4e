"""Each piece of the ViT, and the whole, against NumPy; parameter counts.

The oracles are loops and closed forms in float64 that share no code with the
package; parameters are drawn at random, also those that start at zero.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import MODELS, ViT
from vit_jax.models.attention import Attention, LayerNorm, dot_product_attention
from vit_jax.models.encoder import Block, Layer
from vit_jax.models.mlp import Mlp
from vit_jax.models.positions import Positions, sincos1d, sincos2d
from vit_jax.models.variants import STEMS, VARIANTS, parse

F32 = jnp.dtype('float32')
SMALL = {
  'classes': 3,
  'variant': 'Ti/2',
  'width': 16,
  'depth': 2,
  'hidden': 24,
  'heads': 2,
}
SIZE = (4, 6)  # a grid of 2x3, not square


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def randomised(model, *args, seed=0, **kwargs):
  """Parameters of the model's shapes, all random: no zeros, no ones."""
  shapes = jax.eval_shape(
    lambda key: model.init(key, *args, **kwargs), jax.random.key(0)
  )['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.4, s.shape).astype(np.float32), shapes
  )


def close(actual, expected, tolerance=2e-5):
  np.testing.assert_allclose(actual, expected, tolerance, tolerance)


# The oracles.


def np_softmax(row):
  exps = [math.exp(x - max(row)) for x in row]
  return np.array(exps) / sum(exps)


def np_attend(q, k, v):
  """One head of one example: (N, K), (M, K), (M, K) -> (N, K), (N, M)."""
  weights = np.zeros((len(q), len(k)))
  for n in range(len(q)):
    weights[n] = np_softmax(
      [float(q[n] @ k[m]) / math.sqrt(q.shape[1]) for m in range(len(k))]
    )
  return weights @ v, weights


def np_attention(x, p):
  """Tokens (N, D) -> (N, D) and weights (H, N, N)."""
  heads = p['query']['kernel'].shape[1]
  total, weights = np.array(p['out']['bias'], np.float64), []
  for h in range(heads):
    q, k, v = (
      x @ p[name]['kernel'][:, h].astype(np.float64) + p[name]['bias'][h]
      for name in ('query', 'key', 'value')
    )
    y, w = np_attend(q, k, v)
    total = total + y @ p['out']['kernel'][h]
    weights.append(w)
  return total, np.stack(weights)


def np_norm(x, p, epsilon=1e-6):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * p['scale'] + p['bias']


def np_gelu(x, kind):
  def exact(x):
    return x / 2 * (1 + math.erf(x / math.sqrt(2)))

  def tanh(x):
    return (
      x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    )

  return np.vectorize(exact if kind == 'exact' else tanh)(x)


def np_dense(x, p):
  return x @ p['kernel'].astype(np.float64) + p['bias']


def np_mlp(x, p, gelu):
  return np_dense(np_gelu(np_dense(x, p['up']), gelu), p['down'])


def np_block(x, p, gelu):
  x = x + np_attention(np_norm(x, p['norm1']), p['attention'])[0]
  return x + np_mlp(np_norm(x, p['norm2']), p['mlp'], gelu)


def np_sincos1d(length, width):
  table = np.zeros((length, width))
  for n in range(length):
    for d in range(width):
      angle = n / 10_000 ** ((d - d % 2) / width)
      table[n, d] = math.cos(angle) if d % 2 else math.sin(angle)
  return table


def np_sincos2d(grid, width):
  quarter = width // 4
  rows = []
  for y in range(grid[0]):
    for x in range(grid[1]):
      row = []
      for value, function in (
        (x, math.sin),
        (x, math.cos),
        (y, math.sin),
        (y, math.cos),
      ):
        for i in range(quarter):
          row.append(function(value / 10_000 ** (i / (quarter - 1))))
      rows.append(row)
  return np.array(rows)


def np_vit(image, p, model):
  """The whole model on one image (h, w, c), from the parameter tree."""
  h, w, _ = image.shape
  size = int(model.variant.split('/')[1])
  rows = range(0, h, size)
  columns = range(0, w, size)
  x = np.stack(
    [
      np_dense(
        image[i : i + size, j : j + size].reshape(-1), p['embed']['linear']
      )
      for i in rows
      for j in columns
    ]
  )
  if model.pool == 'cls':
    x = np.concatenate([p['cls'], x])
  if model.positions == 'learned':
    x = x + p['positions']['table']
  elif model.positions == 'sincos1d':
    x = x + np_sincos1d(*x.shape)
  elif model.positions == 'sincos2d':
    table = np_sincos2d((len(rows), len(columns)), x.shape[1])
    x[-len(table) :] += table  # the CLS token stays as it is
  for layer in range(p['encoder']['blocks']['norm1']['scale'].shape[0]):
    block = jax.tree.map(lambda a, i=layer: a[i], p['encoder']['blocks'])
    x = np_block(x, block, model.gelu)
  x = np_norm(x, p['norm'])
  x = x[0] if model.pool == 'cls' else x.mean(0)
  if model.representation:
    x = np.tanh(np_dense(x, p['representation']))
  return np_dense(x, p['head']['linear']) if model.classes else x


# The pieces.


def test_dot_product_attention():
  q, k, v = (normal(2, n, 3, 4, seed=n) for n in (5, 7, 7))
  v = normal(2, 7, 3, 4, seed=9)
  out, weights = dot_product_attention(*map(jnp.asarray, (3 * q, k, v)))
  assert out.shape == (2, 5, 3, 4) and weights.shape == (2, 3, 5, 7)
  for b, h in np.ndindex(2, 3):
    expected = np_attend(3 * q[b, :, h], k[b, :, h], v[b, :, h])
    close(out[b, :, h], expected[0])
    close(weights[b, h], expected[1])


def test_attention():
  model, x = Attention(2, True, False, 1e-6, F32, 'xla'), normal(2, 5, 8)
  params = randomised(model, jnp.asarray(x), None, True)
  assert params['query']['kernel'].shape == (8, 2, 4)  # D -> H heads of D / H
  out, weights = model.apply({'params': params}, jnp.asarray(x), None, True)
  for b in range(2):
    expected = np_attention(x[b], params)
    close(out[b], expected[0])
    close(weights[b], expected[1])


@pytest.mark.parametrize('gelu', ['exact', 'tanh'])
def test_mlp(gelu):
  model, x = Mlp(12, 'gelu', gelu, 0.0, False, F32), normal(2, 5, 8)
  params = randomised(model, jnp.asarray(x))
  out = model.apply({'params': params}, jnp.asarray(x))
  close(out, np_mlp(x, params, gelu), 1e-5)
  # The two functions differ by more than the tolerance.
  other = {'exact': 'tanh', 'tanh': 'exact'}[gelu]
  assert np.abs(out - np_mlp(x, params, other)).max() > 1e-4


@pytest.mark.parametrize('epsilon', [1e-6, 1e-2])
def test_layer_norm(epsilon):
  model = LayerNorm(epsilon, F32, 'norm')
  x = 0.1 * normal(2, 5, 8) + 0.3
  params = randomised(model, jnp.asarray(x))
  out = model.apply({'params': params}, jnp.asarray(x))
  close(out, np_norm(x.astype(np.float64), params, epsilon), 1e-4)


def test_block_is_pre_norm():
  layer = Layer(
    heads=2,
    hidden=12,
    mlp='gelu',
    gelu='exact',
    epsilon=1e-6,
    qkv_bias=True,
    qk_norm=False,
    layer_scale=0.0,
    dropout=0.0,
    drop_path=0.0,
    dtype=F32,
    attention='xla',
    mlp_kernel='xla',
  )
  model = Block(layer)
  x, rate = normal(2, 5, 8), jnp.zeros(())
  params = randomised(model, jnp.asarray(x), rate, None)
  out, captured = model.apply({'params': params}, jnp.asarray(x), rate, None)
  assert captured == {}
  close(out, np.stack([np_block(y, params, 'exact') for y in x]), 1e-4)


@pytest.mark.parametrize('length, width', [(1, 2), (7, 8), (5, 9)])
def test_sincos1d(length, width):
  close(sincos1d(length, width), np_sincos1d(length, width), 1e-6)


@pytest.mark.parametrize('grid, width', [((1, 1), 8), ((3, 5), 12)])
def test_sincos2d(grid, width):
  close(sincos2d(grid, width), np_sincos2d(grid, width), 1e-6)


@pytest.mark.parametrize('width', [4, 10])
def test_sincos2d_needs_a_width_it_can_divide(width):
  with pytest.raises(UserError, match=f'not {width}'):
    sincos2d((2, 2), width)
  with pytest.raises(UserError, match=f'not {width}'):
    ViT(**SMALL | {'width': width}, positions='sincos2d').check(SIZE)


@pytest.mark.parametrize('pool, rows', [('cls', 7), ('mean', 6)])
def test_learned_table_has_a_row_for_each_token(pool, rows):
  params = randomised(ViT(**SMALL, pool=pool), jnp.zeros((1, *SIZE, 3)))
  assert params['positions']['table'].shape == (rows, 16)
  assert ('cls' in params) == (pool == 'cls')
  if pool == 'cls':
    assert params['cls'].shape == (1, 16)


def test_positions_are_added():
  x = normal(2, 7, 8)
  for kind, table in (
    ('none', np.zeros((7, 8))),
    ('sincos1d', np_sincos1d(7, 8)),
    ('sincos2d', np.pad(np_sincos2d((2, 3), 8), ((1, 0), (0, 0)))),
  ):
    out = Positions(kind, (2, 3), 1).apply({}, jnp.asarray(x))
    close(out, x + table, 1e-6)


# The whole.


@pytest.mark.parametrize(
  'fields',
  [
    {'pool': pool, 'positions': positions}
    for pool in ('cls', 'mean')
    for positions in ('learned', 'sincos1d', 'sincos2d', 'none')
  ]
  + [
    {'gelu': 'tanh'},
    {'representation': 5},
    {'classes': 0},
    {'classes': 0, 'representation': 5, 'pool': 'mean'},
    {'heads': 4, 'depth': 1},
  ],
  ids=str,
)
def test_forward(fields):
  model = ViT(**SMALL | fields)
  images = normal(2, *SIZE, 3)
  params = randomised(model, jnp.asarray(images))
  out = jax.jit(model.apply)({'params': params}, images)
  close(out, np.stack([np_vit(i, params, model) for i in images]), 2e-4)


@pytest.mark.parametrize('pool, tokens', [('cls', 7), ('mean', 6)])
def test_captures(pool, tokens):
  model = ViT(**SMALL, pool=pool, representation=5)
  images = normal(2, *SIZE, 3)
  params = randomised(model, jnp.asarray(images))
  names = ('tokens', 'attention', 'pooled', 'logits')
  apply = jax.jit(model.apply, static_argnames='capture')
  logits, got = apply({'params': params}, images, capture=names)
  assert {name: x.shape for name, x in got.items()} == {
    'tokens': (2, 2, tokens, 16),  # (L, B, N, D)
    'attention': (2, 2, 2, tokens, tokens),  # (L, B, H, N, N)
    'pooled': (2, 16),
    'logits': (2, 3),
  }
  last = np_norm(np.asarray(got['tokens'][-1], np.float64), params['norm'])
  close(got['pooled'], last[:, 0] if pool == 'cls' else last.mean(1))
  first = np_norm(np.asarray(got['tokens'][0], np.float64), params['norm'])
  block = jax.tree.map(lambda a: a[1], params['encoder']['blocks'])
  x = np.asarray(got['tokens'][0][0], np.float64)
  weights = np_attention(np_norm(x, block['norm1']), block['attention'])[1]
  close(got['attention'][1, 0], weights)
  assert np.abs(got['pooled'] - first[:, 0]).max() > 0.1  # not any layer does
  np.testing.assert_array_equal(got['logits'], logits)
  close(apply({'params': params}, images), logits, 1e-6)
  _, one = apply({'params': params}, images, capture=('pooled',))
  assert list(one) == ['pooled']


def test_an_unknown_capture_is_named():
  model = ViT(**SMALL)
  with pytest.raises(UserError, match="'token'.*'tokens'"):
    model.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3)), capture=('token',))


# Sizes: ../shared/reference/numbers.md, 12a (Google's code) and 12b
# (big_vision's), both computed by eval_shape from the original sources.

SIZES = (224, 384, 224, 224)
CLASSES = (1000, 1000, 21_843, 0)
TOKEN = {
  'Ti/16': (5_717_416, 5_790_376, 9_740_115, 5_524_416),
  'S/32': (22_878_952, 22_915_432, 30_903_507, 22_493_952),
  'S/16': (22_050_664, 22_196_584, 30_075_219, 21_665_664),
  'B/32': (88_224_232, 88_297_192, 104_252_499, 87_455_232),
  'B/16': (86_567_656, 86_859_496, 102_595_923, 85_798_656),
  'B/8': (86_576_872, 87_744_232, 102_605_139, 85_807_872),
  'L/32': (306_535_400, 306_632_680, 327_899_475, 305_510_400),
  'L/16': (304_326_632, 304_715_752, 325_690_707, 303_301_632),
  'H/14': (632_045_800, 632_651_240, 658_745_683, 630_764_800),
  'R+Ti/16': (6_337_704, 6_355_944, 10_360_403, 6_144_704),
  'R26+S/32': (36_431_912, 36_468_392, 44_456_467, 36_046_912),
  'R26+B/32': (101_383_976, 101_456_936, 117_412_243, 100_614_976),
  'R50+B/16': (98_659_112, 98_950_952, 114_687_379, 97_890_112),
  'R50+L/32': (328_994_856, 329_092_136, 350_358_931, 327_969_856),
}
MEAN = {  # 'gap-norep'
  'S/16': (22_049_896, 22_195_816, 30_074_451, 21_664_896),
  'B/16': (86_566_120, 86_857_960, 102_594_387, 85_797_120),
  'S/32': (22_878_184, 22_914_664, 30_902_739, 22_493_184),
  'B/32': (88_222_696, 88_295_656, 104_250_963, 87_453_696),
}
# big_vision at 224 (256 where the last column says so), 1000 classes: gap, tok
# (no position for CLS), map, map without a head, the recipe (gap, 2-d sin/cos
# and a tanh layer of the same width).
BIG_VISION = """
mu/16 76,648 76,680 89,320 56,320 71,432
Ti/16 5,717,032 5,717,224 6,161,704 5,968,704 5,716,456
S/16 22,049,896 22,050,280 23,823,976 23,438,976 22,122,472
S/32 22,878,184 22,878,568 24,652,264 24,267,264 23,007,208
M/16 38,836,712 38,837,224 41,988,584 41,475,584 38,999,016
B/8 86,575,336 86,576,104 93,662,440 92,893,440 86,563,816
B/16 86,566,120 86,566,888 93,653,224 92,884,224 87,006,184
B/32 88,222,696 88,223,464 95,309,800 94,540,800 88,775,656
L/16 304,324,584 304,325,608 316,919,784 315,894,784 305,173,480
L/14 304,201,704 304,202,728 316,796,904 315,771,904 304,989,160
H/14 632,043,240 632,044,520 651,719,400 650,438,400 633,355,240
H/16 632,196,840 632,198,120 651,873,000 650,592,000 633,585,640
So400m/14 413,595,352 413,596,504 428,833,704 427,680,704 414,628,696
So400m/16 413,802,712 413,803,864 429,041,064 427,888,064 414,836,056 256
g/14 1,012,608,616 1,012,610,024 1,037,857,384 1,036,448,384 1,014,232,040
g-opt/16 1136375272 1,136,376,808 1,164,705,256 1,163,168,256 1,138,342,888 256
G/14 1,844,437,352 1,844,439,016 1,882,797,416 1,881,132,416 1,846,781,928
G-opt/14 1,664,839,144 1,664,840,680 1,699,462,632 1,697,925,632 1,666,806,760
e/14 3,807,210,728 3,807,212,520 3,875,135,720 3,873,342,720 3,809,965,032
"""
FIELDS = {
  'cls': {},
  'mean': {'pool': 'mean'},
  'tok': {'prefix_positions': False},
  'map': {'pool': 'map'},
  'headless': {'pool': 'map'},
  'recipe': {'pool': 'mean', 'positions': 'sincos2d'},
}
COUNTS = [
  (variant, size - size % parse(variant)[1], classes, kind, count)
  for kind, table in (('cls', TOKEN), ('mean', MEAN))
  for variant, counts in table.items()
  for size, classes, count in zip(SIZES, CLASSES, counts, strict=True)
]
for line in BIG_VISION.strip().splitlines():
  variant, *numbers = line.replace(',', '').split()
  size = int(numbers[5]) if len(numbers) > 5 else 224
  for kind, count in zip(list(FIELDS)[1:], numbers, strict=False):
    classes = 0 if kind == 'headless' else 1000
    COUNTS.append((variant, size, classes, kind, int(count)))
# The closed form of numbers.md, 12d, for the 21.7 B of arXiv 2302.05442; our
# blocks are not parallel, which changes no size.
COUNTS.append(('22B/14', 224, 1000, 'cls', 21_758_467_048))


def shapes_of(model, size):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.mark.parametrize('variant, size, classes, kind, count', COUNTS)
def test_parameter_count(variant, size, classes, kind, count):
  fields = dict(FIELDS[kind])
  if kind == 'recipe':
    fields['representation'] = parse(variant)[0].width
  model = ViT(classes=classes, variant=variant, **fields)
  assert trees.count(shapes_of(model, size)) == count


def test_every_variant_and_model_has_a_count():
  counted = {c[0].split('/')[0] for c in COUNTS}
  assert {name.split('+')[-1] for name in counted} == set(VARIANTS)
  stems = {parse(c[0])[2] for c in COUNTS}
  assert stems == set(STEMS)
  # A new model needs counts of its own: those of the others are in
  # test_recipes and test_segmentation.
  assert set(MODELS) == {'vit', 'mae', 'segmenter'}


@pytest.mark.parametrize(
  'name, width, depth, hidden',
  [
    ('Ti', 192, 12, 768),
    ('S', 384, 12, 1536),
    ('B', 768, 12, 3072),
    ('L', 1024, 24, 4096),
    ('H', 1280, 32, 5120),
  ],
)
def test_hidden_sizes(name, width, depth, hidden):
  """Section 1.6 of the notes, and the same for the smaller two."""
  params = shapes_of(ViT(classes=2, variant=f'{name}/32'), 32)
  mlp = params['encoder']['blocks']['mlp']
  assert mlp['up']['kernel'].shape == (depth, width, hidden)
  assert mlp['down']['kernel'].shape == (depth, hidden, width)


@pytest.mark.parametrize('name', ['S16', 'S/0', 'X/16', 's/16', 'S/16/2'])
def test_a_variant_that_does_not_exist(name):
  with pytest.raises(UserError, match='config.model.variant'):
    parse(name)


def test_overrides_of_a_variant():
  model = ViT(classes=1, variant='B/4', width=32, heads=2)
  shape = model.shape
  assert (shape.width, shape.depth, shape.hidden, shape.heads) == (
    32,
    12,
    128,
    2,
  )
  assert model.patch == 4
  assert ViT(classes=1, variant='B/4', depth=3).shape.hidden == 3072


@pytest.mark.parametrize(
  'fields, names',
  [
    ({'heads': 5}, ('heads = 5', '16', '4 does')),
    ({'depth': -1}, ('depth = -1',)),
    ({'unroll': -1}, ('unroll = -1',)),
    ({'dropout': 1.0}, ('dropout = 1.0',)),
    ({'drop_path': -0.1}, ('drop_path = -0.1',)),
    ({'variant': 'Ti/3'}, ('4x6', '3')),
  ],
)
def test_check(fields, names):
  ViT(**SMALL).check(SIZE)
  with pytest.raises(UserError) as error:
    ViT(**SMALL | fields).check(SIZE)
  assert all(name in str(error.value) for name in names), error.value
