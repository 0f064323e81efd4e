"""mixup and cutmix: label mass, pixels, the same on any layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.setup import Setup
from vit_jax.step import key_for
from vit_jax.tasks.classification import Classification, targets_of
from vit_jax.tasks.mixing import box, mix

KINDS = {'mixup': (0.4, 0.0), 'cutmix': (0.0, 1.0), 'both': (0.2, 1.0)}


def batch_of(n=8, size=(6, 5), classes=7, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.normal(size=(n, *size, 3)).astype(np.float32),
    'label': rng.integers(0, classes, n).astype(np.int32),
    'mask': np.ones(n, np.float32),
  }


@functools.partial(jax.jit, static_argnames=('kind', 'probability'))
def mixed(batch, seed, kind, probability=1.0):
  mixup, cutmix = KINDS[kind]
  key = jax.random.key(seed)
  return mix(batch, key, mixup=mixup, cutmix=cutmix, probability=probability)


@settings(max_examples=15, deadline=None)
@given(
  st.integers(0, 2**31 - 1),
  st.sampled_from(sorted(KINDS)),
  st.sampled_from([0.0, 0.1, 0.5]),
)
def test_label_mass_is_preserved(seed, kind, smoothing):
  batch = batch_of(seed=seed % 7)
  result = mixed(batch, seed, kind)
  targets = np.asarray(targets_of(dict(result), 7, smoothing))
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  assert (targets >= 0).all()
  share = float(result['share'][0])
  assert 0 <= share <= 1
  for row, label, other in zip(
    targets, batch['label'], np.roll(batch['label'], 1), strict=True
  ):
    wanted = np.full(7, smoothing / 7)
    wanted[label] += (1 - smoothing) * share
    wanted[other] += (1 - smoothing) * (1 - share)
    np.testing.assert_allclose(row, wanted, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(6))
def test_pixels(kind, seed):
  """A share of one's own, or a box of the other's: by the label's share."""
  batch = batch_of()
  result = mixed(batch, seed, kind)
  own, other = batch['image'], np.roll(batch['image'], 1, 0)
  share, image = float(result['share'][0]), np.asarray(result['image'])
  blend = np.allclose(image, share * own + (1 - share) * other, atol=1e-5)
  from_other = (image == other).all((0, 3))
  cut = (from_other | (image == own).all((0, 3))).all()
  if cut:  # the label's share is that of the pixels, cut off box and all
    assert 1 - from_other.mean() == pytest.approx(share, abs=1e-6)
    rows, columns = np.nonzero(from_other)
    assert from_other.sum() == len(set(rows)) * len(set(columns))
  assert {'mixup': blend and not cut, 'cutmix': cut, 'both': blend or cut}[kind]


def test_both_take_turns_and_a_batch_may_stay_as_it_is():
  batch = batch_of(size=(16, 16))
  cut = blended = same = 0
  for seed in range(30):
    result = mixed(batch, seed, 'both', probability=0.5)
    image = np.asarray(result['image'])
    untouched = (image == batch['image']).all()
    pure = (image == np.roll(batch['image'], 1, 0)) | (image == batch['image'])
    same += untouched and result['share'][0] == 1
    cut += pure.all() and not untouched
    blended += not pure.all()
  assert min(same, cut, blended) >= 3 and same < 24
  for probability in (0.0, 1.0):
    images = [
      np.asarray(mixed(batch, s, 'mixup', probability)['image'])
      for s in range(5)
    ]
    kept = [(image == batch['image']).all() for image in images]
    assert sum(kept) == (5 if probability == 0 else 0)


def test_box():
  shares = [
    float(box(jax.random.key(seed), (20, 30), jnp.float32(0.4)).mean())
    for seed in range(200)
  ]
  assert min(shares) == pytest.approx(0.4, abs=0.04)  # not cut off
  assert 0.55 < np.mean(shares) < 0.8  # many are
  assert box(jax.random.key(0), (20, 30), jnp.float32(1.0)).min() == 1
  mean = np.mean(
    [
      np.asarray(box(jax.random.key(s), (9, 9), jnp.float32(0.8)))
      for s in range(600)
    ],
    0,
  )
  np.testing.assert_allclose(mean, mean[::-1], atol=0.12)  # anywhere alike


def test_share_is_beta():
  shares = np.array(
    [
      float(mixed(batch_of(2, (2, 2)), seed, 'mixup')['share'][0])
      for seed in range(300)
    ]
  )
  assert shares.mean() == pytest.approx(0.5, abs=0.08)
  variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
  assert shares.var() == pytest.approx(variance, rel=0.25)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_pairs_are_the_same_on_any_layout(shape):
  batch = batch_of(16)
  expected = mixed(batch, 3, 'both')
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  placed = jax.device_put(batch, sharding.batch_sharding(mesh))
  result = mixed(placed, 3, 'both')
  for name in expected:
    assert (np.asarray(expected[name]) == np.asarray(result[name])).all(), name
  other = mixed(batch, 4, 'both')
  assert (np.asarray(other['image']) != np.asarray(expected['image'])).any()


def losses(small_config, steps=5, **fields):
  setup = Setup(small_config(log_every='1 steps', **fields))
  stream = setup.loader('train', setup.train_source).train(0, steps)
  state, found = setup.init(), []
  with jax.set_mesh(setup.mesh):
    for batch in stream:
      state, metrics = setup.train_step(state, batch)
      found.append(float(metrics['loss']))
  return np.array(found)


@pytest.mark.slow
def test_in_the_step(small_config):
  """By (seed, step); accumulation sees the pairs of the whole batch."""
  fields = {
    'task__mixup': '0.8',
    'task__cutmix': '1.0',
    'model__drop_path': '0',
  }
  first = losses(small_config, **fields)
  parts = losses(small_config, accumulate='2', **fields)
  np.testing.assert_allclose(parts, first, rtol=2e-5)
  plain = losses(small_config, model__drop_path='0')
  assert abs(plain - first).max() > 3e-4


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'mixup': -0.1}, 'config.task.mixup = -0.1: at least 0'),
    ({'cutmix': -1.0}, 'config.task.cutmix = -1.0: at least 0'),
    ({'mix_probability': 1.5}, 'config.task.mix_probability = 1.5: 0 to 1'),
  ],
)
def test_mistakes(fields, says):
  with pytest.raises(UserError, match=says):
    Classification(classes=3, **fields)


def test_keys_of_the_largest_seed():
  """32 bits without a sign; JAX takes a Python integer for one with."""
  keys = {
    tuple(jax.random.key_data(key_for(seed, step, purpose)).tolist())
    for seed in (0, 2**31 - 1, 2**31, 2**32 - 1)
    for step in (0, 1)
    for purpose in ('init', 'mix')
  }
  assert len(keys) == 16
