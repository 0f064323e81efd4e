"""What every optimizer has to do, and each new one against its paper.

A new one joins by being in `OPTIMIZERS`; only its own oracle is to be written.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layouts import furthest, made, relabelled, start, trained
from tests.stacked import GRADS, PARAMS, ZEROS, run
from vit_jax import checkpoint, trees
from vit_jax.optim import OPTIMIZERS

NAMES = list(OPTIMIZERS)
whole_runs = pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('adamw', 'muon')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
  ],
)
KERNELS = [n for n, _ in trees.paths(PARAMS) if n.endswith('kernel')]


# Oracles: one parameter of one layer at a time, in float64.


class Adam:
  def __init__(self, b1=0.9, b2=0.999, eps=1e-8):
    self.b1, self.b2, self.eps, self.m, self.v = b1, b2, eps, 0.0, 0.0

  def __call__(self, t, g):
    self.m = self.b1 * self.m + (1 - self.b1) * g
    self.v = self.b2 * self.v + (1 - self.b2) * g**2
    m, v = self.m / (1 - self.b1**t), self.v / (1 - self.b2**t)
    return m / (np.sqrt(v) + self.eps)


def decay_of(name, decay, p):
  return decay * p if name.endswith('kernel') else 0.0


def np_lion(name, decay, b1=0.9, b2=0.99):
  m = 0.0

  def step(t, g, p):
    nonlocal m
    update = np.sign(b1 * m + (1 - b1) * g) + decay_of(name, decay, p)
    m = b2 * m + (1 - b2) * g
    return update

  return step


def np_lamb(name, decay, inside=True, heads=False):
  adam = Adam(eps=1e-6)

  def step(t, g, p):
    r, d = adam(t, g), decay_of(name, decay, p)
    if not name.endswith('kernel') or (name.startswith('head') and not heads):
      return r + d
    if not inside:
      return np.linalg.norm(p) / np.linalg.norm(r) * r + d
    return np.linalg.norm(p) / np.linalg.norm(r + d) * (r + d)

  return step


def matrices(name, x):
  """Views whose two axes may be factored: of each head, where there are."""
  if x.ndim == 3:
    heads = 0 if 'out' in name else 1
    return [x.take(i, heads) for i in range(x.shape[heads])], heads
  return [x], None


def np_adafactor(name, decay, factored=True, power=0.8):
  v, m = {}, 0.0

  def step(t, g, p):
    nonlocal m
    b = min(0.999, 1 - t**-power)
    parts, axis = matrices(name, g)
    scaled = []
    for i, part in enumerate(parts):
      square = part**2 + 1e-30
      v[i] = b * v.get(i, 0.0) + (1 - b) * square
      estimate = v[i]
      if part.ndim == 2 and min(part.shape) >= 32 and factored:
        rows, columns = v[i].sum(1), v[i].sum(0)  # algorithm 1 of the paper
        estimate = np.outer(rows, columns) / rows.sum()
      scaled.append(part / np.sqrt(estimate))
    u = scaled[0] if axis is None else np.stack(scaled, axis)
    m = 0.9 * m + 0.1 * u
    return m + decay_of(name, decay, p)

  return step


def np_muon(name, decay, nesterov=True, swapped=False, rms=0.2):
  if 'blocks' not in name or not name.endswith('kernel'):
    adam = Adam(b2=0.95)
    return lambda t, g, p: adam(t, g) + decay_of(name, decay, p)
  momentum = 0.0

  def step(t, g, p):
    nonlocal momentum
    momentum = 0.95 * momentum + g
    x = g + 0.95 * momentum if nesterov else momentum
    first = 2 if ('out' in name) != swapped and x.ndim == 3 else 1
    m = x.reshape(np.prod(x.shape[:first]), -1)
    u, s, v = np.linalg.svd(m, full_matrices=False)
    s /= np.sqrt((s**2).sum())
    for _ in range(5):  # what the iteration does to singular values
      s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    fan_in, fan_out = m.shape
    size = rms * np.sqrt(max(m.shape)) or np.sqrt(max(1, fan_out / fan_in))
    update = size * (u * s) @ v
    return update.reshape(x.shape) + decay_of(name, decay, p)

  return step


def np_run(oracle, lr, decay, mixed=False, **options):
  """{path: parameters}: layers are apart, unless by mistake (`mixed`)."""
  result = {}
  for name, param in trees.paths(PARAMS):
    stacked = 'blocks' in name and not mixed
    layers = []
    for layer in range(len(param) if stacked else 1):
      p = (param[layer] if stacked else param).astype(np.float64)
      step = oracle(name, decay, **options)
      for t, grads in enumerate(GRADS, 1):
        g = dict(trees.paths(grads))[name].astype(np.float64)
        p = p - lr * step(t, g[layer] if stacked else g, p)
      layers.append(p)
    result[name] = np.stack(layers) if stacked else layers[0]
  return result


def distance(one, other):
  return max(np.abs(one[name] - other[name]).max() for name in other)


@pytest.mark.parametrize(
  'name, fields, oracle, broken',
  [
    ('lion', {}, np_lion, {'b2': 0.9}),
    ('lamb', {}, np_lamb, {'inside': False}),
    ('lamb', {}, np_lamb, {'heads': True}),
    ('lamb', {}, np_lamb, {'mixed': True}),
    ('adafactor', {'moments': 'float32'}, np_adafactor, {'factored': False}),
    ('adafactor', {'moments': 'float32'}, np_adafactor, {'power': 0.5}),
    ('muon', {}, np_muon, {'nesterov': False}),
    ('muon', {}, np_muon, {'swapped': True}),
    ('muon', {'rms': 0.0}, np_muon, {'rms': 0.2}),
  ],
)
def test_against_the_paper(name, fields, oracle, broken):
  lr, decay = 0.01, 0.3
  actual, _, _ = run(name, lr=lr, weight_decay=decay, **fields)
  options = {k: v for k, v in fields.items() if k == 'rms'}
  expected = np_run(oracle, lr, decay, **options)
  assert actual.keys() == expected.keys()
  assert distance(actual, expected) < 1e-5
  # Controls: an error of the kind that is easily made, and one of the decay.
  assert distance(np_run(oracle, lr, decay, **options | broken), actual) > 1e-3
  assert distance(np_run(oracle, lr, 0.2, **options), actual) > 1e-3


def test_every_optimizer_has_an_oracle():
  """The first two have theirs in test_optim.py."""
  assert set(NAMES) == {'adamw', 'sgd', 'lion', 'lamb', 'adafactor', 'muon'}


# What the decay does, alone.


@pytest.mark.parametrize('name', NAMES)
def test_only_kernels_are_decayed(name):
  lr, decay = 0.1, 0.3
  (params, _, _) = run(name, [ZEROS], lr=lr, weight_decay=decay)
  for path, before in trees.paths(PARAMS):
    if path not in KERNELS:
      assert (params[path] == before).all()
      continue
    # Within the trust ratio it has the norm of the kernel, whatever it was.
    whole = name == 'lamb' and not path.startswith('head')
    rest = 1 - lr * (1 if whole else decay)
    np.testing.assert_allclose(params[path], rest * before, 1e-5)
  still, _, _ = run(name, [ZEROS], lr=lr, weight_decay=decay, decays=())
  for path, before in trees.paths(PARAMS):
    assert (still[path] == before).all()


# On a small ViT, and real digits.

# At 1e-4 layouts stay together (test_sharding.py), and the loss falls.
RATES = {'sgd': '1e-2', 'lamb': '1e-3', 'muon': '3e-4'}
PLAIN = {
  'model__unroll': '1',
  'model__dropout': '0',
  'model__drop_path': '0',
  'task__mixup': '0',
  'task__cutmix': '0',
  'optim__warmup': '0 steps',
}


@functools.cache
def small(name, **mesh):
  """A Setup; the steps of one device compile once for all tests."""
  rate = RATES.get(name, '1e-4')
  return made(mesh, optim__name=name, optim__lr=rate, **PLAIN)


def steps(setup, state, first, last):
  """(state, losses) after steps on the same four batches."""
  with jax.set_mesh(setup.mesh):
    batches = setup.loader('train', setup.train_source)
    losses = []
    for t in range(first, last):
      state, metrics = setup.train_step(state, batches.train_batch(t % 4))
      losses.append(float(metrics['loss']))
  return state, losses


def kinds(tree):
  return [(n, x.dtype, x.shape) for n, x in trees.paths(tree)]


@whole_runs
def test_it_trains_and_resumes(name, tmp_path):
  setup = small(name)
  with jax.set_mesh(setup.mesh):
    first = start(setup)
  before = kinds(first)
  state, losses = steps(setup, first, 0, 8)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.wait()
  state, more = steps(setup, state, 8, 24)
  losses += more
  assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4]), losses
  assert kinds(state) == before == kinds(setup.abstract_state)
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {'float32'}
  assert setup.train_step._cache_size() == 1  # it compiled once
  # Resumed from the middle: the same bits; without its state others.
  back = checkpoint.restore(checkpoints, setup.abstract_state)
  checkpoints.close()
  forgot = jax.tree.map(jnp.zeros_like, back.optimizer)
  forgot = back.replace(
    optimizer=forgot,
    params=jax.tree.map(jnp.copy, back.params),
    ema=jax.tree.map(jnp.copy, back.ema),
    step=jnp.copy(back.step),
  )
  resumed, _ = steps(setup, back, 8, 24)
  assert trees.digest(resumed) == trees.digest(state)
  other, _ = steps(setup, forgot, 8, 24)
  assert trees.digest(other.params) != trees.digest(state.params)


@whole_runs
def test_many_devices_are_one(name):
  many, one = small(name, data='2', fsdp='2', tensor='2'), small(name)
  (state, _), (expected, _) = trained(many, 3), trained(one, 3)
  assert furthest(state.params, expected.params) < 1e-6
  other, _ = trained(one, 3, change=relabelled)
  assert furthest(other.params, expected.params) > 1e-5
  # What has a parameter's shape is divided as it is, the rest is small.
  params = dict(trees.paths(state.params))
  moments, rest = set(), 0
  for path, leaf in trees.paths(state.optimizer):
    of = [n for n in params if f'/{n}' in path]
    if of and params[of[0]].shape == leaf.shape:
      assert leaf.sharding == params[of[0]].sharding, path
      moments.add(of[0])
    else:
      rest += leaf.size
  assert moments == set(params)
  assert rest < trees.count(params) / 20
  divided = [n for n in moments if not params[n].sharding.is_fully_replicated]
  assert {n for n in params if 'blocks' in n and 'kernel' in n} < set(divided)
