"""Schedules, AdamW and SGD, the training step, losses and metrics, digests.

Each against a plain loop or closed form in NumPy, in float64.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import optim, step, trees
from vit_jax.errors import UserError
from vit_jax.optim.schedules import schedule
from vit_jax.tasks.classification import (
  Classification,
  cross_entropy,
  targets_of,
)


def to_steps(duration, _):
  return int(duration.split()[0])


def make(name, total=10, **fields):
  fields = {'schedule': 'constant', 'warmup': '0 steps', **fields}
  return optim.make(name, total, to_steps, **fields)


def close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(actual, expected, rtol, atol)


# Schedules.


def np_rate(name, n, peak, total, warmup, cooldown, final):
  if n < warmup:
    base = (n + 1) / warmup
  elif name == 'constant':
    base = 1
  elif name == 'rsqrt':
    base = math.sqrt(max(1, warmup) / max(1, warmup, n))
  else:
    done = (n - warmup) / (total - warmup)
    base = 1 - done if name == 'linear' else (1 + math.cos(math.pi * done)) / 2
    base = final + (1 - final) * base
  if cooldown and n > total - cooldown:
    base *= (total - n) / cooldown
  return peak * base


@pytest.mark.parametrize('name', ['cosine', 'linear', 'constant', 'rsqrt'])
@pytest.mark.parametrize(
  'warmup, cooldown, final',
  [(0, 0, 0.0), (4, 0, 0.0), (5, 6, 0.1), (1, 20, 0.0), (20, 0, 0.0)],
)
def test_schedule(name, warmup, cooldown, final):
  total, peak = 20, 0.3
  rate = schedule(
    name,
    peak=peak,
    total=total,
    warmup=warmup,
    cooldown=cooldown,
    final=final,
  )
  actual = rate(jnp.arange(total))
  expected = [
    np_rate(name, n, peak, total, warmup, cooldown, final) for n in range(total)
  ]
  close(actual, expected)
  close(rate(7), expected[7])  # a Python int does too
  assert actual.max() <= peak * (1 + 1e-6) and actual.min() >= 0
  end = rate(total)  # one past the last step
  if cooldown or (name in ('cosine', 'linear') and warmup < total):
    close(end, 0 if cooldown else peak * final)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'lr': -1.0}, 'lr = -1.0'),
    ({'weight_decay': -0.1}, 'weight_decay = -0.1'),
    ({'clip': -1.0}, 'clip = -1.0'),
    ({'final_lr': -1.0}, 'final_lr = -1.0'),
    ({'warmup': '11 steps'}, 'warmup = 11 steps.* 10'),
    ({'cooldown': '11 steps'}, 'cooldown = 11 steps.* 10'),
  ],
)
def test_mistakes_are_named(fields, message):
  with pytest.raises(UserError, match=f'config.optim.{message}'):
    make('adamw', **fields)
  with pytest.raises(UserError, match="'adam'.*'adamw'"):
    make('adam')


# Optimizers.

SHAPES = {
  'block': {'kernel': (3, 2), 'bias': (2,)},
  'norm': {'scale': (3,)},
  'positions': {'table': (2, 3)},
  'cls': (1, 3),
}


def random_tree(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


PARAMS = random_tree(0)
GRADS = [random_tree(seed) for seed in range(1, 6)]


def run(name, **fields):
  """The parameters after the steps of `GRADS`, by path."""
  optimizer, _ = make(name, schedule='linear', **fields)
  params, state = PARAMS, optimizer.init(PARAMS)
  for grads in GRADS:
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return dict(trees.paths(params))


def np_run(direction, lr, decay, clip=0.0, all_decay=False):
  """The loop: `direction` gives (path, step from 1, gradient) -> update."""
  params = {n: p.astype(np.float64) for n, p in trees.paths(PARAMS)}
  for t, grads in enumerate(GRADS, 1):
    grads = {n: g.astype(np.float64) for n, g in trees.paths(grads)}
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = min(1, clip / norm) if clip else 1
    rate = lr * (1 - (t - 1) / 10)
    for name, p in params.items():
      update = direction(name, t, grads[name] * scale)
      if all_decay or name == 'block/kernel':
        update = update + decay * p
      params[name] = p - rate * update
  return params


def np_adam(b1=0.9, b2=0.999, eps=1e-8):
  m, v = {}, {}

  def direction(name, t, g):
    m[name] = b1 * m.get(name, 0) + (1 - b1) * g
    v[name] = b2 * v.get(name, 0) + (1 - b2) * g**2
    m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
    return m_hat / (np.sqrt(v_hat) + eps)

  return direction


def np_momentum(momentum=0.9, nesterov=False):
  m = {}

  def direction(name, _, g):
    m[name] = momentum * m.get(name, 0) + g
    return momentum * m[name] + g if nesterov else m[name]

  return direction


@pytest.mark.parametrize(
  'name, options, direction',
  [
    ('adamw', {}, np_adam),
    ('adamw', {'b1': 0.8, 'b2': 0.95, 'eps': 1e-3}, np_adam),
    ('sgd', {}, np_momentum),
    ('sgd', {'momentum': 0.5, 'nesterov': True}, np_momentum),
  ],
)
@pytest.mark.parametrize('clip', [0.0, 1.0, 100.0])
def test_optimizer(name, options, direction, clip):
  actual = run(name, lr=0.1, weight_decay=0.3, clip=clip, **options)
  loop = functools.partial(np_run, lr=0.1, decay=0.3)
  expected = loop(direction(**options), clip=clip)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    close(actual[path], value, 1e-4, 1e-5)
  # The decay is of kernels alone, and matters; so do clipping and the options.
  everywhere = loop(direction(**options), clip=clip, all_decay=True)
  for path, value in expected.items():
    differs = np.abs(everywhere[path] - value).max() > 1e-3
    assert differs == (path != 'block/kernel'), path
  if clip == 1 and name == 'sgd':
    assert np.abs(loop(direction(**options))['cls'] - actual['cls']).max() > 0.1
  if options:
    assert np.abs(loop(direction())['cls'] - expected['cls']).max() > 1e-4


def test_average():
  """d = min(decay, (1 + n) / (10 + n)): 0.1 at first, then the decay."""
  values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
  ema, expected = {'w': jnp.zeros(3)}, np.zeros(3)
  average = jax.jit(functools.partial(step.average, decay=0.9))
  for n, value in enumerate(values):
    ema = average(ema, {'w': value}, step=n)
    d = min(0.9, (1 + n) / (10 + n))
    expected = d * expected + (1 - d) * value
    if n == 0:
      close(ema['w'], 0.9 * value)
  close(ema['w'], expected)
  # Late, it is the sum of 0.1 * 0.9^k times the value k steps ago.
  weights = 0.1 * 0.9 ** np.arange(100)
  close(ema['w'], weights @ values[::-1][:100], atol=1e-4)


# The training step: a linear model, softmax, momentum.

CLASSES, BATCH = 3, 8


def apply(params, images, key=None, capture=()):
  del key, capture
  x = images.reshape(len(images), -1)
  return x @ params['kernel'] + params['bias']


def make_step(accumulate=1, apply=apply, task=None, ema=0.5, **fields):
  fields = {'lr': 0.1, 'weight_decay': 0.2, 'clip': 0.0, **fields}
  optimizer, rate = make('sgd', schedule='linear', **fields)
  train = step.make_train_step(
    task or Classification(classes=CLASSES),
    apply,
    optimizer,
    rate,
    seed=0,
    ema=ema,
    accumulate=accumulate,
  )
  params = random_tree(7, {'kernel': (12, CLASSES), 'bias': (CLASSES,)})
  state = step.TrainState(
    step=jnp.int32(0),
    params=params,
    ema=jax.tree.map(jnp.copy, params),
    optimizer=optimizer.init(params),
  )
  return jax.jit(train), state


def make_batch(seed=0, **changes):
  rng = np.random.default_rng(seed)
  batch = {
    'image': rng.normal(size=(BATCH, 2, 2, 3)).astype(np.float32),
    'label': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'mask': np.array([1, 1, 0, 1, 1, 0, 0, 1], np.float32),
  }
  return {k: jnp.asarray(v) for k, v in (batch | changes).items()}


def test_a_step_by_hand():
  train, state = make_step()
  batch = make_batch()
  new, metrics = train(state, batch)

  x = np.asarray(batch['image'], np.float64).reshape(BATCH, -1)
  label, mask = np.asarray(batch['label']), np.asarray(batch['mask'])
  logits = x @ state.params['kernel'] + state.params['bias']
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  error = (p - np.eye(CLASSES)[label]) * mask[:, None] / mask.sum()
  grads = {'kernel': x.T @ error, 'bias': error.sum(0)}
  decay = {'kernel': 0.2 * state.params['kernel'], 'bias': 0}
  updates = {n: -0.1 * (grads[n] + decay[n]) for n in grads}
  norms = [
    math.sqrt(sum((a**2).sum() for a in tree.values()))
    for tree in (grads, updates)
  ]
  losses = -np.log(p[np.arange(BATCH), label])
  expected = {
    'loss': (losses * mask).sum() / mask.sum(),
    'accuracy': ((logits.argmax(-1) == label) * mask).sum() / mask.sum(),
    'lr': 0.1,
    'grad_norm': norms[0],
    'update_norm': norms[1],
    'finite': 1,
  }
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    close(metrics[name], value, 1e-5)
  assert new.step == 1
  for name, update in updates.items():
    close(new.params[name], state.params[name] + update)
    # At step 0 the average's decay is 0.1, not 0.5.
    close(new.ema[name], state.ema[name] + 0.9 * update)
  _, metrics = train(new, batch)
  close(metrics['lr'], 0.09)


@pytest.mark.parametrize('accumulate', [2, 4, 8])
def test_accumulation_does_not_change_the_step(accumulate):
  """To 1e-5: only the order of a sum of eight differs. Masks are uneven."""
  batch = make_batch()
  one, state = make_step()
  many, _ = make_step(accumulate)
  (expected, scalars), (actual, others) = one(state, batch), many(state, batch)
  jax.tree.map(functools.partial(close, rtol=1e-5), actual, expected)
  jax.tree.map(functools.partial(close, rtol=1e-5), others, scalars)
  # The mean of the parts' means would differ, for their masks do.
  whole = make_batch(mask=np.ones(BATCH, np.float32))
  other, _ = one(state, whole)
  assert jnp.abs(other.params['bias'] - actual.params['bias']).max() > 1e-3


def test_parts_of_a_batch_have_keys_of_their_own():
  sizes = set()

  def coin(params, images, key=None, capture=()):
    """Of one throw a call it depends whether label 0 is the likeliest."""
    sizes.add(len(images))
    side = jax.random.bernoulli(key).astype(jnp.float32)
    first = jnp.array([1.0, 0.0, 0.0])
    return 0 * apply(params, images, None, capture) + side * first - first / 2

  batch = make_batch(label=np.zeros(BATCH), mask=np.ones(BATCH))
  batch['label'] = batch['label'].astype(jnp.int32)

  def accuracies(accumulate):
    train, state = make_step(accumulate, coin)
    return [
      float(train(state.replace(step=jnp.int32(n)), batch)[1]['accuracy'])
      for n in (*range(12), 0)
    ]

  whole, parts = accuracies(1), accuracies(8)
  assert sizes == {BATCH, 1}  # each part is computed by itself
  assert set(whole) == {0, 1}  # each step throws anew
  assert sum(0 < a < 1 for a in parts) > 6 and len(set(parts)) > 3
  assert whole[0] == whole[-1] and parts[0] == parts[-1]


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e38])
@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(value, accumulate):
  train, state = make_step(accumulate)
  state, _ = train(state, make_batch(1))  # the momentum is not zero any more
  images = np.array(make_batch()['image'])
  images[0, 0, 0, 0] = value
  # The least likely label: of 1e38 the loss is finite, the norm is not.
  labels = np.full(BATCH, np.argmin(state.params['kernel'][0]), np.int32)
  new, metrics = train(state, make_batch(image=images, label=labels))
  assert metrics['finite'] == 0
  assert new.step == state.step + 1
  assert trees.digest(new.replace(step=state.step)) == trees.digest(state)
  # One good batch later all have changed.
  new, metrics = train(new, make_batch(2))
  assert metrics['finite'] == 1
  for name in ('params', 'ema', 'optimizer'):
    here, there = getattr(new, name), getattr(state, name)
    assert trees.digest(here) != trees.digest(there)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(here))


def test_a_step_without_an_average():
  train, state = make_step()
  new, _ = train(state.replace(ema=None), make_batch())
  assert new.ema is None and new.averaged is new.params
  with_ema, _ = train(state, make_batch())
  assert with_ema.averaged is with_ema.ema
  jax.tree.map(np.testing.assert_array_equal, new.params, with_ema.params)


# Losses and metrics.


def np_loss(logits, label, objective, smoothing):
  classes = len(logits)
  target = [
    smoothing / classes + (1 - smoothing) * (c == label) for c in range(classes)
  ]
  if objective == 'softmax':
    total = math.log(sum(math.exp(x) for x in logits))
    return sum(t * (total - x) for t, x in zip(target, logits, strict=True))
  return sum(
    t * math.log(1 + math.exp(-x)) + (1 - t) * math.log(1 + math.exp(x))
    for t, x in zip(target, logits, strict=True)
  )


@pytest.mark.parametrize('objective', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_losses(objective, smoothing):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (6, 7)).astype(np.float32)
  labels = rng.integers(0, 7, 6).astype(np.int32)
  args = jnp.asarray(logits), jnp.asarray(labels)
  expected = [
    np_loss(row.tolist(), label, objective, smoothing)
    for row, label in zip(logits, labels, strict=True)
  ]
  targets = targets_of({'label': args[1]}, 7, smoothing)
  close(cross_entropy(args[0], targets, objective), expected)
  task = Classification(
    classes=7, objective=objective, label_smoothing=smoothing
  )
  batch = {'image': args[0], 'label': args[1], 'mask': jnp.ones(6)}

  def identity(params, images, key=None, capture=()):
    del params, key, capture
    return images

  (total, weight), _ = task.loss(identity, None, batch, None)
  close(total, sum(expected))
  assert weight == 6
  values, _ = task.evaluate(identity, None, batch)
  total = values['loss'].sum()  # unsmoothed
  plain = [
    np_loss(row.tolist(), label, objective, 0.0)
    for row, label in zip(logits, labels, strict=True)
  ]
  close(total, sum(plain))
  if smoothing:
    assert abs(sum(plain) - sum(expected)) > 0.1
  odds = np.exp(logits.astype(np.float64))
  probabilities = {
    'softmax': odds / odds.sum(-1, keepdims=True),
    'sigmoid': odds / (1 + odds),
  }
  close(task.predict(identity, None, args[0]), probabilities[objective])


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_label_smoothing_is_checked(smoothing):
  with pytest.raises(UserError, match=f'label_smoothing = {smoothing}'):
    Classification(classes=2, label_smoothing=smoothing)


@pytest.mark.parametrize('classes', [2, 4, 5, 9])
def test_accuracy_and_top5_with_ties_and_masks(classes):
  rng = np.random.default_rng(classes)
  count = 300
  logits = rng.integers(0, 4, (count, classes)).astype(np.float32)  # many ties
  logits[:5] = 1.0
  labels = rng.integers(0, classes, count).astype(np.int32)
  mask = rng.integers(0, 2, count).astype(np.float32)
  batch = {
    'image': jnp.asarray(logits),
    'label': jnp.asarray(labels),
    'mask': jnp.asarray(mask),
  }
  task = Classification(classes=classes)
  sums = jax.jit(step.make_eval_step(task, lambda _, images: images))
  got, each = sums(None, batch)
  assert (each['prediction'] == logits.argmax(-1)).all()
  ranks = [
    sorted(range(classes), key=lambda c, row=row: (-row[c], c)).index(label)
    for row, label in zip(logits.tolist(), labels, strict=True)
  ]
  for name, k in (('accuracy', 1), ('top5', 5)):
    hits = sum(m for r, m in zip(ranks, mask, strict=True) if r < k)
    assert got[name] == (hits, mask.sum())
  assert got['accuracy'][0] == ((logits.argmax(-1) == labels) * mask).sum()
  _, metrics = task.loss(lambda _, images, **__: images, None, batch, None)
  assert metrics['accuracy'] == got['accuracy']


@pytest.mark.parametrize('where', ['everywhere', 'label', 'other'])
def test_nan_is_never_a_hit(where):
  """A model that diverged must not look like the best one."""
  logits = np.zeros((1, 7), np.float32)
  logits[0, 0] = 1.0
  logits[0, {'everywhere': slice(None), 'label': 0, 'other': 1}[where]] = np.nan
  batch = {
    'image': jnp.asarray(logits),
    'label': jnp.zeros(1, jnp.int32),
    'mask': jnp.ones(1),
  }
  got, _ = Classification(classes=7).evaluate(lambda _, x: x, None, batch)
  assert got['accuracy'].sum() == 0
  assert got['top5'].sum() == (where == 'other')


# Digests: what a checkpoint's soundness is judged by.


def leaves():
  values = [[0.0, 2.0, -2.0, 1.0], [-1.0, 0.5, -0.5, 4.0]]
  return {
    'float32': np.array(values, np.float32),
    'bfloat16': np.array(values[0], jnp.bfloat16),
    'int8': np.arange(-2, 2, dtype=np.int8).reshape(2, 2),
    'int32': np.array([1, 2**30, -(2**31), 0, 3], np.int32),
    'bool': np.array([True, False, True]),
    'scalar': np.array(3, np.uint32),
    'key': jax.random.key_data(jax.random.key(5)),
  }


def changed(leaf, index):
  """A copy with the lowest bit of one element flipped."""
  leaf = np.array(leaf)
  flat = leaf.reshape(-1)
  if leaf.dtype == bool:
    flat[index] = not flat[index]
  else:
    flat.view(f'u{leaf.itemsize}')[index] ^= 1
  return leaf


def test_digest_changes_with_any_element_and_any_swap():
  tree = leaves()
  seen = {trees.digest(tree): 'the tree'}
  assert trees.digest(leaves()) in seen

  def check(what, **changes):
    digest = trees.digest(tree | changes)
    assert digest not in seen, (what, seen[digest])
    seen[digest] = what

  for name, leaf in tree.items():
    size = leaf.size
    for i in range(size):
      check((name, i), **{name: changed(leaf, i)})
    for i in range(size):
      for j in range(i):
        order = np.arange(size)
        order[[i, j]] = j, i
        swapped = np.asarray(leaf).reshape(-1)[order].reshape(leaf.shape)
        if (swapped != leaf).any():
          check((name, i, j), **{name: swapped})
  # Two changed signs, a negative zero; the same bits under another name, in
  # another shape, of another type.
  leaf = tree['float32']
  check('signs', float32=leaf * np.where(np.arange(8) < 6, 1, -1).reshape(2, 4))
  check('zero', float32=np.where(leaf == 0, -leaf, leaf))
  check('shape', float32=leaf.reshape(4, 2))
  check('type', int32=tree['int32'].view(np.float32))
  check('more', more=np.zeros(1, np.float32))
  tree['other'] = tree.pop('scalar')
  check('name')


def test_digest_of_a_random_key_is_that_of_its_data():
  keys = [{'key': jax.random.key(seed)} for seed in (5, 5, 6)]
  one, same, other = map(trees.digest, keys)
  assert one == same != other


def test_digest_does_not_depend_on_the_sharding():
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  tree = {'kernel': jnp.asarray(values), 'bias': jnp.arange(8)}
  expected = trees.digest(tree)
  assert len(jax.devices()) == 8
  for specs in (('a', 'b'), ('b', None), (None, 'a'), (('a', 'b'), None)):
    kernel = NamedSharding(mesh, PartitionSpec(*specs))
    bias = NamedSharding(mesh, PartitionSpec('a'))
    sharded = jax.device_put(tree, {'kernel': kernel, 'bias': bias})
    assert not sharded['kernel'].is_fully_replicated
    assert trees.digest(sharded) == expected
    rolled = jax.device_put(np.roll(values, 2, axis=0), kernel)
    assert trees.digest(sharded | {'kernel': rolled}) != expected


def test_paths_and_counts():
  assert [name for name, _ in trees.paths(PARAMS)] == [
    'block/bias',
    'block/kernel',
    'cls',
    'norm/scale',
    'positions/table',
  ]
  assert trees.count(PARAMS) == 2 + 6 + 3 + 3 + 6
  names = trees.map_paths(lambda name, leaf: (name, leaf.shape), PARAMS)
  assert names['block']['kernel'] == ('block/kernel', (3, 2))
