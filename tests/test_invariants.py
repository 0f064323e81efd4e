"""What must hold of any ViT: symmetries, gradients, remat, dropout, dtypes.

Each equality comes with a control: a change that must break it, and does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.models import ViT
from vit_jax.models.encoder import DropPath
from vit_jax.models.heads import Head
from vit_jax.models.patches import patchify, unpatchify

SMALL = {
  'classes': 3,
  'variant': 'Ti/2',
  'width': 16,
  'depth': 4,
  'hidden': 24,
  'heads': 2,
}
KEY_BIAS = 'encoder/blocks/attention/key/bias'
# The same function in half the time to compile.
FAST = {'xla_backend_optimization_level': 0}
IMAGES = jax.random.normal(jax.random.key(9), (4, 8, 12, 3))


@functools.cache
def shapes(**fields):
  model = ViT(**SMALL | fields)
  return jax.eval_shape(model.init, jax.random.key(0), IMAGES)['params']


def randomised(**fields):
  """All parameters random, those too that start at zero (head, CLS, biases)."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.4, s.shape).astype('float32'), shapes(**fields)
  )


@functools.cache
def trace(**fields):
  """(params, images) -> the value and gradient of a scalar."""
  model = ViT(**SMALL | fields)

  def scalar(params, images):
    logits = model.apply({'params': params}, images)
    return (logits * jnp.array([1.0, -2.0, 0.5])).sum()

  return jax.jit(jax.value_and_grad(scalar)).trace(shapes(**fields), IMAGES)


@functools.cache
def grad_of(**fields):
  return trace(**fields).lower().compile(FAST)


def apply(images=IMAGES, params=None, *, train=False, capture=(), **fields):
  params = randomised(**fields) if params is None else params
  return _apply(**fields)(params, images, train, capture)


@functools.cache
def _apply(**fields):
  model = ViT(**SMALL | fields)
  return jax.jit(
    lambda params, images, train, capture: model.apply(
      {'params': params}, images, train=train, capture=capture
    ),
    static_argnums=(2, 3),
    compiler_options=FAST,
  )


def distance(one, other):
  """The largest difference in any leaf, relative to the leaf's size + 0.1."""
  one, other = jax.tree.leaves(one), jax.tree.leaves(other)
  pairs = [
    (np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True)
  ]
  return max(np.abs(a - b).max() / (0.1 + np.abs(a).max()) for a, b in pairs)


def map_blocks(function, params):
  blocks = jax.tree.map(function, params['encoder']['blocks'])
  return params | {'encoder': {'blocks': blocks}}


# Symmetry and attention.


def test_without_positions_patches_may_be_permuted():
  order = np.random.default_rng(0).permutation(24)
  patches = patchify(IMAGES, 2)[:, order]
  permuted = unpatchify(patches, IMAGES.shape[1:3], 2)
  capture = ('tokens', 'attention')

  def differences(**fields):
    run = functools.partial(apply, capture=capture, pool='mean', **fields)
    (logits, here), (moved_logits, moved) = run(), run(permuted)
    weights = here['attention'][..., order, :][..., order]
    return (
      distance(here['tokens'][:, :, order], moved['tokens']),
      distance(weights, moved['attention']),
      distance(logits, moved_logits),
    )

  assert max(differences(positions='none')) < 1e-4
  assert min(differences(positions='learned')) > 1e-2


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_attention_rows_sum_to_one(pool):
  weights = apply(pool=pool, capture=('attention',))[1]['attention']
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert weights.min() >= 0
  assert np.abs(weights.sum(-2) - 1).max() > 1e-2  # columns do not


# Gradients.


@pytest.mark.parametrize(
  'fields',
  [{'positions': 'learned'}, {'pool': 'mean', 'representation': 5}],
  ids=str,
)
def test_gradients_reach_every_parameter_of_every_layer(fields):
  _, grads = grad_of(**fields)(randomised(**fields), IMAGES)
  for name, grad in trees.paths(jax.device_get(grads)):
    by_layer = grad if name.startswith('encoder/') else grad[None]
    for layer in by_layer:
      size = np.abs(layer).max()
      if name == KEY_BIAS:
        # Adds the same to all scores of a query: softmax does not see it.
        assert size < 1e-4, (name, size)
      else:
        assert size > 1e-3, (name, size)


def test_at_first_the_logits_are_zero_and_only_the_head_learns():
  init = jax.jit(ViT(**SMALL).init, compiler_options=FAST)
  params = init(jax.random.key(0), IMAGES)['params']
  logits, got = apply(params=params, capture=('pooled',))
  np.testing.assert_array_equal(logits, np.zeros((4, 3)))
  assert np.abs(got['pooled']).max() > 0.1  # the trunk is not zero
  assert np.abs(apply()).max() > 0.1  # nor is a trained head
  _, grads = grad_of()(params, IMAGES)
  reached = {n for n, g in trees.paths(grads) if np.abs(g).max() > 0}
  assert reached == {'head/linear/kernel', 'head/linear/bias'}


def test_the_bias_of_the_head():
  logits, _ = Head(3, -6.9).init_with_output(
    jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 4))
  )
  np.testing.assert_array_equal(logits, np.full((2, 3), -6.9, 'float32'))


# The loop over layers, and what the backward pass recomputes.


@pytest.mark.parametrize(
  'fields',
  [
    {'unroll': 2},
    {'unroll': 0},
    {'remat': 'dots'},
    {'remat': 'full'},
  ],
  ids=str,
)
def test_scan_and_remat_do_not_change_the_function(fields):
  params = randomised()
  assert trees.count(shapes(**fields)) == trees.count(params)
  expected = grad_of()(params, IMAGES)
  assert distance(grad_of(**fields)(params, IMAGES), expected) < 1e-5


def test_what_does_change_the_function():
  params = randomised()
  expected = grad_of()(params, IMAGES)
  swapped = map_blocks(lambda a: a[np.array([1, 0, 2, 3])], params)
  assert distance(grad_of()(swapped, IMAGES), expected) > 1e-2
  other = grad_of(gelu='tanh')(params, IMAGES)
  assert distance(other, expected) > 1e-4


def test_remat_saves_memory():
  def times(**fields):
    return str(trace(**fields).jaxpr).count('remat')  # LayerNorm's, GELU's too

  def memory(remat):
    fields = {'remat': remat} if remat != 'none' else {}
    assert (times(**fields) > times()) == (remat != 'none')
    return grad_of(**fields).memory_analysis().temp_size_in_bytes

  none, dots, full = map(memory, ('none', 'dots', 'full'))
  assert full < dots < none
  assert dots < 0.7 * none


@pytest.mark.parametrize(
  'unroll, barrier', [(1, False), (2, False), (4, True), (9, True), (0, True)]
)
def test_xla_may_not_undo_remat_where_there_is_no_loop(unroll, barrier):
  """A barrier keeps the recomputed apart from the saved (not on CPU)."""
  text = trace(remat='full', unroll=unroll).lower().as_text()
  assert ('optimization_barrier' in text) == barrier
  assert ('stablehlo.while' in text) == (not barrier)


# Dropout and stochastic depth.


def train_apply(key, images=IMAGES, capture=(), **fields):
  return _train_apply(**fields)(key, randomised(**fields), images, capture)


@functools.cache
def _train_apply(**fields):
  model = ViT(**SMALL | fields)
  return jax.jit(
    lambda key, params, images, capture: model.apply(
      {'params': params},
      images,
      train=True,
      capture=capture,
      rngs={'dropout': key},
    ),
    static_argnums=3,
    compiler_options=FAST,
  )


@pytest.mark.parametrize('name', ['dropout', 'drop_path'])
def test_dropout_is_for_training_and_a_function_of_its_key(name):
  fields, images = {name: 0.5}, jnp.concatenate([IMAGES] * 4)
  here = apply(images, **fields)
  np.testing.assert_array_equal(here, apply(images, **fields))
  np.testing.assert_array_equal(here, apply(images))  # as with a rate of 0
  keys = jax.random.key(1), jax.random.key(1), jax.random.key(2)
  one, same, other = (train_apply(key, images, **fields) for key in keys)
  np.testing.assert_array_equal(one, same)
  assert distance(one, other) > 1e-2
  assert distance(one, here) > 1e-2
  assert distance(train_apply(keys[0], images), apply(images)) < 1e-5


def test_drop_path_keeps_the_expected_value():
  rate, count = 0.3, 4000
  x = np.random.default_rng(0).normal(2, 1, (count, 2, 3)).astype('float32')

  def run(train, rate=rate):
    return DropPath(train).apply(
      {},
      jnp.asarray(x),
      jnp.float32(rate),
      rngs={'dropout': jax.random.key(0)},
    )

  np.testing.assert_array_equal(run(False), x)
  np.testing.assert_array_equal(run(True, 0.0), x)
  factors = np.asarray(run(True)) / x
  # One factor an example: 0, or 1 / keep.
  np.testing.assert_allclose(
    factors, np.broadcast_to(factors[:, :1, :1], x.shape), atol=1e-5
  )
  kept = factors[:, 0, 0] > 0
  np.testing.assert_allclose(factors[kept], 1 / (1 - rate), rtol=1e-5)
  deviation = (rate / (1 - rate) / count) ** 0.5  # of the mean factor
  assert abs(factors[:, 0, 0].mean() - 1) < 5 * deviation


def test_drop_path_drops_whole_examples_more_of_them_deeper():
  images = jnp.broadcast_to(IMAGES[:1], (64, *IMAGES.shape[1:]))

  def kinds(**fields):
    """Different token arrays among 64 copies of an image, layer by layer."""
    _, got = train_apply(
      jax.random.key(0), images, capture=('tokens',), depth=2, **fields
    )
    layers = np.asarray(got['tokens']).round(3)
    return [len(np.unique(layer, axis=0)) for layer in layers]

  # Rate 0 in the first block; then attention and MLP, each there or not.
  assert kinds(drop_path=0.5) == [1, 4]
  assert kinds(dropout=0.5) == [64, 64]


# Precision.


def test_bfloat16_is_close_to_float32():
  params = randomised()
  assert {s.dtype for s in jax.tree.leaves(shapes(dtype='bfloat16'))} == {
    np.dtype('float32')
  }
  exact = apply(params=params)
  low, got = apply(params=params, dtype='bfloat16', capture=('tokens',))
  assert got['tokens'].dtype == jnp.bfloat16 and low.dtype == jnp.float32
  assert 0 < distance(exact, low) < 0.05
  swapped = map_blocks(lambda a: a[np.array([1, 0, 2, 3])], params)
  assert distance(exact, apply(params=swapped)) > 0.05
