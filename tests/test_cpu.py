"""Products of bfloat16 on CPUs: asked for in float32, rounded once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import cpu

SHORT, LONG = jnp.dtype('bfloat16'), jnp.dtype('float32')


@pytest.fixture
def usual(monkeypatch):
  """JAX's own lowering, for controls."""
  monkeypatch.setattr(cpu, '_lower', cpu._usual)
  cpu.install()
  jax.clear_caches()
  yield
  monkeypatch.undo()
  cpu.install()
  jax.clear_caches()


def lowered(function, *arrays):
  return jax.jit(function).lower(*arrays).as_text()


def test_the_result_is_asked_for_in_float32():
  x, w = jnp.ones((3, 5, 8), SHORT), jnp.ones((8, 4), SHORT)
  wanted = '-> tensor<3x5x4xf32>'
  assert wanted in lowered(jnp.matmul, x, w)
  assert jnp.matmul(x, w).dtype == SHORT
  kernel = jax.jit(jax.grad(lambda w: jnp.matmul(x, w).sum()))
  assert 'xf32>' in kernel.lower(w).as_text()
  # Others as ever: float32, and batches of products.
  text = lowered(jnp.matmul, x, w.astype(LONG))
  assert 'stablehlo.convert' not in text.partition('dot_general')[2]
  assert 'f32' not in lowered(jnp.matmul, x, x.swapaxes(1, 2))


def test_control_it_is_not_by_jax_itself(usual):
  x, w = jnp.ones((3, 5, 8), SHORT), jnp.ones((8, 4), SHORT)
  assert 'f32' not in lowered(jnp.matmul, x, w)


@pytest.mark.parametrize('left', ['ikm', 'imk', 'kim', 'kmi', 'mik', 'mki'])
@pytest.mark.parametrize('right', ['kn', 'nk', 'k'])
def test_any_form(left, right):
  """However operands lie, and the result is to lie; and it is rounded once."""
  rng = np.random.default_rng(0)
  sizes = {'i': 3, 'k': 40, 'm': 7, 'n': 24}
  x, w = (
    jnp.asarray(rng.normal(size=[sizes[c] for c in form]), SHORT)
    for form in (left, right)
  )
  exact = np.einsum(f'{left},{right}->im{right.strip("k")}', x, w, dtype=float)
  for result in itertools.permutations('im' + right.strip('k')):
    how = f'{left},{right}->{"".join(result)}'
    y = jax.jit(lambda x, w, how=how: jnp.einsum(how, x, w))(x, w)
    assert y.dtype == SHORT
    y = np.einsum(f'{"".join(result)}->im{right.strip("k")}', np.asarray(y))
    # 8 bits: half of 2^-7 of the value, and what float32 loses in summing.
    error = np.abs(y.astype(float) - exact)
    assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()


def test_gradients_are_those_of_float32():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(4, 9, 32)), SHORT)
  w = jnp.asarray(rng.normal(size=(32, 16)), SHORT)

  def loss(x, w):
    return jnp.square((x @ w).astype(LONG)).mean()

  got = jax.jit(jax.grad(loss, (0, 1)))(x, w)
  wanted = jax.grad(loss, (0, 1))(x.astype(LONG), w.astype(LONG))
  for ours, theirs in zip(got, wanted, strict=True):
    scale = np.abs(theirs).max()
    assert np.abs(ours.astype(LONG) - theirs).max() < 0.02 * scale
