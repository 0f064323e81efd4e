"""Google's .npz against a forward pass on the tensors as they are named there.

The oracle is NumPy in float64, written after the papers and the behaviour of
vision_transformer and big_vision; it shares no code with the package.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import ViT
from vit_jax.models.variants import VARIANTS
from vit_jax.weights import files, google
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import abstract_params, read_params, write_tensors

UNITS = {'R': (), 'R26': (2, 2, 2, 2), 'R50': (3, 4, 6, 3), 'R50-3': (3, 4, 9)}
NONE = Options()
SMALL = {'width': 16, 'depth': 3, 'hidden': 24, 'heads': 2, 'classes': 5}


def names_and_shapes(
  *,
  style,  # 'vt', 'bv', or 'bv-scan'
  pool,  # 'token', 'gap', 'tok', 'map'
  width,
  depth,
  hidden,
  heads,
  patch=4,
  grid=(3, 3),
  classes=0,
  rep=0,
  stem='',
  posemb='learn',
  group_norm=(1, 1, 1),
  prefix='',
):
  """{name: shape} as such a model is saved."""
  shapes = {}
  numbers = (0, 1, 2, 3) if style == 'vt' else (0, 0, 1, 0)

  def dense(name, *shape, bias=None):
    shapes[f'{name}/kernel'] = shape
    shapes[f'{name}/bias'] = bias or shape[-1:]

  def norm(name, *lead):
    shapes[f'{name}/scale'] = shapes[f'{name}/bias'] = (*lead, width)

  def attention(name, *lead):
    for x in ('query', 'key', 'value'):
      k = (heads, width // heads)
      dense(f'{name}/{x}', *lead, width, *k, bias=(*lead, *k))
    out = (*lead, heads, width // heads, width)
    dense(f'{name}/out', *out, bias=(*lead, width))

  def mlp(name, *lead):
    dense(f'{name}/Dense_0', *lead, width, hidden, bias=(*lead, hidden))
    dense(f'{name}/Dense_1', *lead, hidden, width, bias=(*lead, width))

  channels, side = 3, patch
  if stem:

    def conv(name, gn, *shape):
      shapes[f'{name}/kernel'] = shape
      for x in ('scale', 'bias'):
        shapes[f'{gn}/{x}'] = (*group_norm, shape[-1])

    conv('conv_root', 'gn_root', 7, 7, 3, 64)
    channels = 64
    for i, units in enumerate(UNITS[stem]):
      f = 64 * 2**i
      for j in range(units):
        u = f'block{i + 1}/unit{j + 1}'
        if j == 0:
          conv(f'{u}/conv_proj', f'{u}/gn_proj', 1, 1, channels, 4 * f)
        conv(f'{u}/conv1', f'{u}/gn1', 1, 1, channels, f)
        conv(f'{u}/conv2', f'{u}/gn2', 3, 3, f, f)
        conv(f'{u}/conv3', f'{u}/gn3', 1, 1, f, 4 * f)
        channels = 4 * f
    side = patch // {'R': 4, 'R50-3': 16}.get(stem, 32)
  dense('embedding', side, side, channels, width)
  if pool in ('token', 'tok'):
    shapes['cls'] = (1, 1, width)
  rows = math.prod(grid) + (pool == 'token')
  if posemb == 'learn':
    table = 'Transformer/posembed_input/' if style == 'vt' else ''
    shapes[f'{table}pos_embedding'] = (1, rows, width)
  for layer in range(1 if style == 'bv-scan' else depth):
    b = f'Transformer/encoderblock_{layer}'
    lead = ()
    if style == 'bv-scan':
      b, lead = 'Transformer/encoderblock', (depth,)
    norm(f'{b}/LayerNorm_{numbers[0]}', *lead)
    attention(f'{b}/MultiHeadDotProductAttention_{numbers[1]}', *lead)
    norm(f'{b}/LayerNorm_{numbers[2]}', *lead)
    mlp(f'{b}/MlpBlock_{numbers[3]}', *lead)
  norm('Transformer/encoder_norm')
  if pool == 'map':
    shapes['MAPHead_0/probe'] = (1, 1, width)
    attention('MAPHead_0/MultiHeadDotProductAttention_0')
    norm('MAPHead_0/LayerNorm_0')
    mlp('MAPHead_0/MlpBlock_0')
  if rep:
    dense('pre_logits', width, rep)
  if classes:
    dense('head', rep or width, classes)
  return {prefix + name: shape for name, shape in shapes.items()}


def drawn(seed=0, **kwargs):
  """Random tensors, all of them: no zeros, no ones."""
  rng = np.random.default_rng(seed)
  found = {}
  for name, shape in names_and_shapes(**kwargs).items():
    fan = math.prod(shape[:-1]) if name.endswith('kernel') else 4
    mean = 1.0 if name.endswith('scale') else 0.0
    scale = 1.5 / math.sqrt(fan)
    found[name] = rng.normal(mean, scale, shape).astype(np.float32)
  return found


# The oracle.


def gelu_tanh(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
  return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


class Oracle:
  """A forward pass on tensors by their published names."""

  def __init__(self, tensors, gelu=gelu_tanh):
    self.t = {name: x.astype(np.float64) for name, x in tensors.items()}
    self.gelu = gelu

  def norm(self, name, x):
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return x * self.t[f'{name}/scale'] + self.t[f'{name}/bias']

  def dense(self, name, x):
    return x @ self.t[f'{name}/kernel'] + self.t[f'{name}/bias']

  def attend(self, name, to, x):
    q, k, v = (
      np.einsum('bnd,dhk->bhnk', y, self.t[f'{name}/{part}/kernel'])
      + self.t[f'{name}/{part}/bias'][:, None]
      for part, y in (('query', to), ('key', x), ('value', x))
    )
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    y = scores / scores.sum(-1, keepdims=True) @ v
    out = np.einsum('bhnk,hkd->bnd', y, self.t[f'{name}/out/kernel'])
    return out + self.t[f'{name}/out/bias']

  def mlp(self, name, x):
    return self.dense(
      f'{name}/Dense_1', self.gelu(self.dense(f'{name}/Dense_0', x))
    )

  def windows(self, x, k, stride, fill):
    """Of a SAME convolution: (B, g, f, C, k, k)."""
    pads = []
    for n in x.shape[1:3]:
      total = max((-(-n // stride) - 1) * stride + k - n, 0)
      pads.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    x = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))
    return x[:, ::stride, ::stride]

  def conv(self, name, gn, x, stride=1):
    kernel = self.t[f'{name}/kernel']
    mean, std = kernel.mean((0, 1, 2)), kernel.std((0, 1, 2))
    kernel = (kernel - mean) / (std + 1e-5)
    x = self.windows(x, len(kernel), stride, 0.0)
    x = np.einsum('bgfcij,ijcd->bgfd', x, kernel, optimize=True)
    groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
    centred = groups - groups.mean((1, 3), keepdims=True)
    groups = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)
    x = groups.reshape(x.shape)
    return x * self.t[f'{gn}/scale'].ravel() + self.t[f'{gn}/bias'].ravel()

  def stem(self, x):
    x = np.maximum(self.conv('conv_root', 'gn_root', x, 2), 0)
    x = self.windows(x, 3, 2, -np.inf).max((-1, -2))
    for i in range(1, 5):
      for j in range(1, 10):
        u = f'block{i}/unit{j}'
        if f'{u}/conv1/kernel' not in self.t:
          continue
        stride, y = (2 if i > 1 and j == 1 else 1), x
        if j == 1:
          x = self.conv(f'{u}/conv_proj', f'{u}/gn_proj', x, stride)
        y = np.maximum(self.conv(f'{u}/conv1', f'{u}/gn1', y), 0)
        y = np.maximum(self.conv(f'{u}/conv2', f'{u}/gn2', y, stride), 0)
        x = np.maximum(x + self.conv(f'{u}/conv3', f'{u}/gn3', y), 0)
    return x

  def positions(self, grid, width):
    for name in ('Transformer/posembed_input/pos_embedding', 'pos_embedding'):
      if name in self.t:
        return self.t[name]
    rows = []
    for y in range(grid[0]):
      for x in range(grid[1]):
        rates = 10_000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
        row = [f(p * rates) for p in (x, y) for f in (np.sin, np.cos)]
        rows.append(np.concatenate(row))
    return np.array(rows)[None]

  def __call__(self, images, style, pool, depth):
    """Logits, and the tokens after each block."""
    x = images.astype(np.float64)
    if 'conv_root/kernel' in self.t:
      x = self.stem(x)
    kernel = self.t['embedding/kernel']
    k, width = len(kernel), kernel.shape[-1]
    b, gh, gw = len(x), x.shape[1] // k, x.shape[2] // k
    x = x.reshape(b, gh, k, gw, k, -1)
    x = np.einsum('bgifjc,ijcd->bgfd', x, kernel) + self.t['embedding/bias']
    x = x.reshape(b, gh * gw, width)
    cls = np.tile(self.t['cls'], (b, 1, 1)) if 'cls' in self.t else x[:, :0]
    if style == 'vt':  # CLS first, then positions for all
      x = np.concatenate([cls, x], 1) + self.positions((gh, gw), width)
    else:
      x = np.concatenate([cls, x + self.positions((gh, gw), width)], 1)
    after = []
    n1, a, n2, m = (0, 1, 2, 3) if style == 'vt' else (0, 0, 1, 0)
    stacked = self.t
    for layer in range(depth):
      name = f'Transformer/encoderblock_{layer}'
      if style == 'bv-scan':
        name = 'Transformer/encoderblock'
        self.t = stacked | {
          key: value[layer]
          for key, value in stacked.items()
          if key.startswith(f'{name}/')
        }
      y = self.norm(f'{name}/LayerNorm_{n1}', x)
      x = x + self.attend(f'{name}/MultiHeadDotProductAttention_{a}', y, y)
      y = self.norm(f'{name}/LayerNorm_{n2}', x)
      x = x + self.mlp(f'{name}/MlpBlock_{m}', y)
      after.append(x)
    self.t = stacked
    x = self.norm('Transformer/encoder_norm', x)
    if pool == 'map':
      probe = np.tile(self.t['MAPHead_0/probe'], (b, 1, 1))
      x = self.attend('MAPHead_0/MultiHeadDotProductAttention_0', probe, x)
      y = self.norm('MAPHead_0/LayerNorm_0', x)
      x = (x + self.mlp('MAPHead_0/MlpBlock_0', y))[:, 0]
    else:
      x = x.mean(1) if pool == 'gap' else x[:, 0]
    if 'pre_logits/kernel' in self.t:
      x = np.tanh(self.dense('pre_logits', x))
    if 'head/kernel' in self.t:
      x = self.dense('head', x)
    return x, after


def load(path, options=NONE):
  """(model, params, description) of a file, by the format's functions."""
  tensors, config = files.read(path)
  assert google.matches(set(tensors))
  description = google.describe(tensors, config, options)
  model = ViT(**description.fields)
  size = description.preprocessing.size
  model.check(size)
  params = read_params(
    google.entries(model, description),
    tensors,
    abstract_params(model, size),
    description.ignored,
  )
  return model, params, description


def error(actual, expected):
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def errors(model, params, size, oracle, style, pool):
  """[block 0, ..., logits]: relative to the largest number there."""
  images = np.random.default_rng(9).normal(size=(2, *size, 3))
  apply = jax.jit(model.apply, static_argnames='capture')
  logits, outputs = apply(
    {'params': params}, jnp.float32(images), capture=('tokens',)
  )
  expected, after = oracle(images, style, pool, model.shape.depth)
  tokens = np.asarray(outputs['tokens'])
  return [*map(error, tokens, after), error(np.asarray(logits), expected)]


CASES = {
  'vt token': {'style': 'vt', 'pool': 'token'},
  'vt token, pre_logits': {'style': 'vt', 'pool': 'token', 'rep': 7},
  'vt token, headless': {'style': 'vt', 'pool': 'token', 'classes': 0},
  'vt gap, 2x4': {'style': 'vt', 'pool': 'gap', 'grid': (2, 4)},
  'vt R': {'style': 'vt', 'pool': 'token', 'stem': 'R', 'patch': 8},
  'vt R26, 2x1': {
    'style': 'vt',
    'pool': 'token',
    'stem': 'R26',
    'patch': 32,
    'grid': (2, 1),
    'group_norm': (),
  },
  'vt R50, 1x2': {
    'style': 'vt',
    'pool': 'token',
    'stem': 'R50',
    'patch': 32,
    'grid': (1, 2),
  },
  'vt R50 of three stages, 2x1': {
    'style': 'vt',
    'pool': 'token',
    'stem': 'R50-3',
    'patch': 16,
    'grid': (2, 1),
  },
  'bv gap': {'style': 'bv', 'pool': 'gap', 'prefix': 'params/'},
  'bv gap, sincos2d, rep': {
    'style': 'bv',
    'pool': 'gap',
    'posemb': 'sincos2d',
    'rep': 16,
    'grid': (3, 2),
  },
  'bv tok, 2x5': {'style': 'bv', 'pool': 'tok', 'grid': (2, 5)},
  'bv tok, old prefix': {
    'style': 'bv',
    'pool': 'tok',
    'prefix': 'opt/target/',
  },
  'bv map': {'style': 'bv', 'pool': 'map'},
  'bv map, tower': {
    'style': 'bv',
    'pool': 'map',
    'prefix': 'params/img/',
    'classes': 0,
  },
  'bv scan, map, tower': {
    'style': 'bv-scan',
    'pool': 'map',
    'prefix': 'params/img/',
    'classes': 0,
    'grid': (2, 3),
  },
  'bv scan, tok': {'style': 'bv-scan', 'pool': 'tok'},
}


def saved(tmp_path, case, extra=True):
  """(path, tensors without prefix, options) of a case."""
  prefix = case.get('prefix', '')
  tensors = drawn(**(SMALL | case))
  grid = case.get('grid', (3, 3))
  others = {}
  if prefix.endswith('img/'):
    others = {'params/txt/head/kernel': np.ones((2, 3)), 'params/t': np.ones(1)}
  if prefix and extra:
    others |= {'opt/0/mu/params/cls': np.ones(3), 'chrono/steps': np.arange(2)}
  path = tmp_path / 'model.npz'
  np.savez(path, **tensors, **others)
  fixed = case.get('posemb') == 'sincos2d'
  options = Options(grid=grid if fixed or grid[0] != grid[1] else None)
  plain = {name.removeprefix(prefix): x for name, x in tensors.items()}
  return path, plain, options


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_tokens_of_each_block_and_logits(tmp_path, name):
  case = CASES[name]
  path, tensors, options = saved(tmp_path, case)
  model, params, description = load(path, options)
  style, pool = case['style'], case['pool']
  size = description.preprocessing.size
  grid, patch = case.get('grid', (3, 3)), case.get('patch', 4)
  assert size == (grid[0] * patch, grid[1] * patch)
  got = errors(model, params, size, Oracle(tensors), style, pool)
  assert max(got) < 1e-4, got
  assert model.classes == case.get('classes', 5)


@pytest.mark.parametrize('name', ['vt token', 'bv gap', 'bv map'])
def test_the_comparison_can_fail(tmp_path, name):
  """With another GELU, other numbers of modules, or swapped names."""
  case = CASES[name]
  path, tensors, options = saved(tmp_path, case)
  model, params, description = load(path, options)
  style, pool = case['style'], case['pool']
  size = description.preprocessing.size

  def worst(model, oracle):
    return max(errors(model, params, size, oracle, style, pool))

  exact = Oracle(tensors, gelu_erf)
  assert worst(model, exact) > 1e-4 > worst(model.clone(gelu='exact'), exact)
  layer = 'Transformer/encoderblock_1/'
  query = next(n for n in tensors if layer in n and n.endswith('query/kernel'))
  key = query.replace('query', 'key')
  swapped = tensors | {query: tensors[key], key: tensors[query]}
  found = errors(model, params, size, Oracle(swapped), style, pool)
  assert found[0] < 1e-4 < found[1]  # the layer where it begins


@pytest.mark.parametrize('name', CASES)
def test_written_and_read_again_bit_for_bit(tmp_path, name):
  case = CASES[name]
  path, published, options = saved(tmp_path, case)
  model, params, description = load(path, options)
  fresh = Description('', description.fields, description.preprocessing)
  tensors = write_tensors(google.entries(model, fresh), params)
  if case['style'] != 'bv-scan' and case != CASES['bv gap']:
    assert set(tensors) == set(published)
    for key, array in tensors.items():
      old = published[key]  # GroupNorms of (1, 1, 1, C) become (C,)
      assert array.shape == old.shape or ('gn' in key and old.ndim == 4)
      assert np.array_equal(array, old.reshape(array.shape))
  assert google.config_json(model, fresh) == {}
  files.write(tmp_path / 'again.npz', tensors, {})
  again, read, _ = load(tmp_path / 'again.npz', options)
  same = jax.tree.map(np.array_equal, params, read)
  assert all(jax.tree.leaves(same))
  fields = (
    'pool',
    'positions',
    'representation',
    'classes',
    'shape',
    'variant',
  )
  for field in fields:
    assert getattr(again, field) == getattr(model, field), field
  if model.pool != 'mean':  # where no table of CLS is, it makes no difference
    assert again.prefix_positions == model.prefix_positions


def test_a_row_for_cls_before_2022(tmp_path):
  """big_vision's names with vision_transformer's positions."""
  tensors = drawn(**SMALL, style='bv', pool='tok')
  extra = np.random.default_rng(1).normal(size=(1, 1, 16)).astype(np.float32)
  table = np.concatenate([extra, tensors['pos_embedding']], 1)
  np.savez(tmp_path / 'old.npz', **tensors | {'pos_embedding': table})
  model, params, _ = load(tmp_path / 'old.npz')
  assert model.prefix_positions
  summed = tensors | {'cls': tensors['cls'] + extra}  # as its loader does
  got = errors(model, params, (12, 12), Oracle(summed), 'bv', 'tok')
  assert max(got) < 1e-4


def shape_only(**kwargs):
  """Real sizes without their memory."""
  return {
    name: np.broadcast_to(np.float32(0), shape)
    for name, shape in names_and_shapes(**kwargs).items()
  }


def counted(tensors, options=NONE):
  """(in the file, in our model, model); names are checked both ways."""
  description = google.describe(tensors, {}, options)
  model = ViT(**description.fields)
  entries = google.entries(model, description)
  assert {n for e in entries for n in e.theirs} == set(tensors)
  abstract = abstract_params(model, description.preprocessing.size)
  assert {n for e in entries for n in e.ours} == set(abstract)
  ours = sum(math.prod(x.shape) for x in abstract.values())
  return sum(x.size for x in tensors.values()), ours, model


def size_of(name):
  v = VARIANTS[name]
  return {
    'width': v.width, 'depth': v.depth, 'hidden': v.hidden, 'heads': v.heads
  }  # fmt: skip


# From ../shared/reference/numbers.md, 12a: (size, stem, patch, pool, side,
# classes, parameters).
VISION_TRANSFORMER = [
  ('Ti', '', 16, 'token', 224, 1000, 5_717_416),
  ('S', '', 32, 'token', 384, 1000, 22_915_432),
  ('S', '', 16, 'token', 224, 21843, 30_075_219),
  ('B', '', 32, 'token', 224, 0, 87_455_232),
  ('B', '', 16, 'token', 224, 1000, 86_567_656),
  ('B', '', 8, 'token', 224, 1000, 86_576_872),
  ('L', '', 32, 'token', 224, 1000, 306_535_400),
  ('L', '', 16, 'token', 384, 1000, 304_715_752),
  ('H', '', 14, 'token', 378, 1000, 632_651_240),
  ('S', '', 16, 'gap', 224, 1000, 22_049_896),
  ('B', '', 32, 'gap', 384, 1000, 88_295_656),
  ('Ti', 'R', 32, 'token', 224, 1000, 6_337_704),
  ('S', 'R26', 32, 'token', 224, 1000, 36_431_912),
  ('B', 'R26', 32, 'token', 384, 1000, 101_456_936),
  ('B', 'R50-3', 16, 'token', 224, 1000, 98_659_112),
  ('L', 'R50', 32, 'token', 224, 21843, 350_358_931),
]


@pytest.mark.parametrize('row', VISION_TRANSFORMER, ids=str)
def test_counts_of_vision_transformer(row):
  name, stem, patch, pool, side, classes, expected = row
  tensors = shape_only(
    **size_of(name),
    style='vt',
    pool=pool,
    stem=stem,
    patch=patch,
    grid=(side // patch,) * 2,
    classes=classes,
  )
  file, ours, model = counted(tensors)
  assert file == ours == expected
  base = f'{name}/{patch}'
  assert model.variant == f'{stem.removesuffix("-3")}+{base}'.lstrip('+')


# 12b: with 1000 classes: gap, tok, map.
BIG_VISION = {
  'mu/16': (76_648, 76_680, 89_320),
  'Ti/16': (5_717_032, 5_717_224, 6_161_704),
  'S/16': (22_049_896, 22_050_280, 23_823_976),
  'M/16': (38_836_712, 38_837_224, 41_988_584),
  'B/32': (88_222_696, 88_223_464, 95_309_800),
  'L/14': (304_201_704, 304_202_728, 316_796_904),
  'H/14': (632_043_240, 632_044_520, 651_719_400),
  'So400m/14': (413_595_352, 413_596_504, 428_833_704),
  'g/14': (1_012_608_616, 1_012_610_024, 1_037_857_384),
  'g-opt/16': (1_136_375_272, 1_136_376_808, 1_164_705_256),
  'G/14': (1_844_437_352, 1_844_439_016, 1_882_797_416),
  'G-opt/14': (1_664_839_144, 1_664_840_680, 1_699_462_632),
  'e/14': (3_807_210_728, 3_807_212_520, 3_875_135_720),
}


@pytest.mark.parametrize('variant', BIG_VISION)
def test_counts_of_big_vision(variant):
  name, patch = variant.split('/')
  side = 256 if name == 'g-opt' else 224
  counts = dict(zip(('gap', 'tok', 'map'), BIG_VISION[variant], strict=True))
  for pool, expected in counts.items():
    if pool == 'tok' and name not in ('mu', 'S', 'e'):
      continue  # gap and D more
    style = 'bv-scan' if pool == 'map' else 'bv'
    tensors = shape_only(
      **size_of(name),
      style=style,
      pool=pool,
      patch=int(patch),
      grid=(side // int(patch),) * 2,
      classes=1000,
    )
    file, ours, model = counted(tensors)
    assert file == ours == expected
    assert (model.variant, model.width) == (variant, 0)


def test_count_with_fixed_positions():
  tensors = shape_only(
    **size_of('S'),
    style='bv',
    pool='gap',
    patch=16,
    posemb='sincos2d',
    rep=384,
    classes=1000,
  )
  file, ours, model = counted(tensors)
  assert file == ours == 22_122_472
  assert model.positions == 'sincos2d'


cached_params = functools.lru_cache(abstract_params)


def refused(tensors, options=NONE):
  with pytest.raises(UserError) as error:
    description = google.describe(tensors, {}, options)
    model = ViT(**description.fields)
    size = description.preprocessing.size
    entries = google.entries(model, description)
    abstract = cached_params(model, size)
    read_params(entries, tensors, abstract, description.ignored)
  return str(error.value)


def test_what_is_refused():
  good = drawn(**SMALL, style='vt', pool='token')
  for name in good:  # each tensor is needed
    some = {n: x for n, x in good.items() if n != name}
    if google.matches(some):
      message = refused(some)
      assert name in message or 'square' in message, name
  for name, x in good.items():  # and of its shape
    message = refused(good | {name: x[..., :-1]})
    assert message, name
  message = refused(good | {'head2/kernel': good['head/kernel']})
  assert 'unexpected: head2/kernel' in message
  table = 'Transformer/posembed_input/pos_embedding'
  assert 'square' in refused(good | {table: good[table][:, :-1]})
  assert '2x4' in refused(good, Options(grid=(2, 4)))
  wide = good['embedding/kernel'].reshape(2, 8, 3, 16)
  assert '2x8' in refused(good | {'embedding/kernel': wide})
  both = {f'params/{n}': x for n, x in good.items()}
  assert 'more than one' in refused(good | both)
  hybrid = drawn(**SMALL, style='vt', pool='token', stem='R26', patch=32)
  cut = {n: x for n, x in hybrid.items() if not n.startswith('block2/unit2')}
  assert '[2, 1, 2, 2]' in refused(cut)


@pytest.mark.parametrize(
  'field',
  [
    {'gelu': 'exact'},
    {'epsilon': 1e-5},
    {'layer_scale': 0.1},
    {'registers': 2},
    {'positions': 'rope2d'},
    {'pool': 'none'},
    {'pool': 'mean', 'cls_token': 'yes'},
    {'variant': 'R+Ti/8', 'stem': 'timm'},
    {'variant': 'R+Ti/8', 'pool': 'map'},
    {'variant': 'R+Ti/8', 'prefix_positions': False},
  ],
  ids=str,
)
def test_models_that_google_has_not(field):
  sizes = {k: v for k, v in SMALL.items() if k != 'classes'}
  fields = {'variant': 'Ti/4', 'gelu': 'tanh', **sizes, **field}
  model = ViT(classes=3, **fields)
  with pytest.raises(UserError, match=list(field)[-1]):
    google.entries(model, Description('', {}, Preprocessing((8, 8))))


def test_what_is_not_google():
  assert not google.matches({'Mixer/MixerBlock_0/LayerNorm_0/bias'})
  assert not google.matches({'vit.embeddings.cls_token', 'embedding/kernel'})
  block = 'Transformer/encoderblock_0/LayerNorm_0/bias'
  assert not google.matches({f'txt/{block}', 'txt/embedding/kernel'})
  assert google.matches({f'img/{block}', 'img/embedding/kernel'})
