"""Products of bfloat16 on CPUs: asked for in float32, rounded once."""

import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from vit_jax.models import cpu

NATIVE = cpu.native.__wrapped__  # not what the tests say of this CPU
SHORT, LONG = jnp.dtype('bfloat16'), jnp.dtype('float32')


@pytest.fixture(autouse=True)
def multiplies(monkeypatch):
  """Whatever CPU this is, it multiplies bfloat16; or not, if so told."""

  def multiplies(answer):
    monkeypatch.setattr(cpu, 'native', lambda: answer)
    jax.clear_caches()

  multiplies(True)
  yield multiplies
  jax.clear_caches()


def products(function, *arrays, platform='cpu'):
  """Types of the results of the products in what JAX lowers."""
  traced = jax.jit(function).trace(*arrays)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return re.findall(r'dot_general.* -> tensor<\d.*x(\w+)>', text)


def of_a_layer(x, w):
  """A product, and the two of its gradient."""
  y, backward = jax.vjp(jnp.matmul, x, w)
  return y, backward(y)


X, W = jnp.ones((3, 5, 8), SHORT), jnp.ones((8, 4), SHORT)


def test_float32_is_asked_for_forward_and_backward():
  assert products(of_a_layer, X, W) == ['f32'] * 3
  assert jnp.matmul(X, W).dtype == SHORT
  # Others as ever: batches of products, and what is for an accelerator.
  assert products(jnp.matmul, X, X.swapaxes(1, 2)) == ['bf16']
  for platform in ('tpu', 'cuda'):
    assert products(of_a_layer, X, W, platform=platform) == ['bf16'] * 3


def test_control_on_a_cpu_that_does_not_it_is_not(multiplies):
  multiplies(False)
  assert products(of_a_layer, X, W) == ['bf16'] * 3


def test_remat_sees_the_products():
  """Those without batches are kept by 'dots', here as in float32."""
  policies = jax.checkpoint_policies

  def kept(dtype, policy=policies.dots_with_no_batch_dims_saveable):
    layer = jax.checkpoint(lambda x, w: jnp.sin(x @ w).sum(), policy=policy)
    step = jax.value_and_grad(layer, (0, 1))
    return len(products(step, X.astype(dtype), W.astype(dtype)))

  assert kept(SHORT) == kept(LONG) == 3  # the forward product is not repeated
  assert kept(SHORT, policies.nothing_saveable) == 4  # control


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
  asked = []
  for result in itertools.permutations('im' + right.strip('k')):
    how = f'{left},{right}->{"".join(result)}'
    product = jax.jit(lambda x, w, how=how: jnp.einsum(how, x, w))
    asked += products(product, x, w)
    y = product(x, w)
    assert y.dtype == SHORT
    y = np.einsum(f'{"".join(result)}->im{right.strip("k")}', np.asarray(y))
    # 8 bits: half of 2^-7 of the value, and what float32 loses in summing.
    error = np.abs(y.astype(float) - exact)
    assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()
  assert 'f32' in asked  # where einsum has the matrix on the right


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


@pytest.mark.parametrize(
  'words', ['avx2 avx512_bf16', 'amx_bf16', 'avx2', None]
)
def test_where_the_cpu_multiplies_bfloat16(words, monkeypatch):
  def read(self):
    if words is None:
      raise FileNotFoundError
    return f'flags : fpu {words} sse'

  monkeypatch.setattr(cpu.Path, 'read_text', read)
  assert NATIVE() == bool(words and 'bf16' in words)


def in_a_process(first):
  """Whether one that imports models asks for float32, where CPUs multiply."""
  code = f"""
import jax, jax.numpy as jnp
{first}
from vit_jax.models import cpu
cpu.native = lambda: True
x = jnp.ones((8, 8), 'bfloat16')
product = jax.jit(jnp.matmul)
assert product(x, x).dtype == x.dtype
print('f32' in product.lower(x, x).as_text())
"""
  words = [sys.executable, '-c', code]
  done = subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.PIPE)
  return done.stdout.split()[-1] == b'True'


def test_models_install_it():
  assert in_a_process('')


def test_without_what_is_not_public_products_are_as_ever():
  """A JAX that has moved its lowering costs speed only."""
  assert not in_a_process('del jax._src.lax.lax._dot_general_lower')
