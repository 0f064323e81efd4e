"""The convolutional stem against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import ViT
from vit_jax.models.stem import StdConv, Stem, Unit

F32 = jnp.dtype('float32')
EPSILON = {'google': 1e-6, 'timm': 1e-5}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, x):
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.4, s.shape).astype(np.float32), shapes
  )


def apply(model, params, x):
  return np.asarray(jax.jit(model.apply)({'params': params}, jnp.asarray(x)))


def padding(length, size, stride):
  """'SAME': as many outputs as strides fit, the odd zero at the end."""
  total = max((-(-length // stride) - 1) * stride + size - length, 0)
  return total // 2, total - total // 2


def padded(x, size, stride, value):
  pads = [padding(n, size, stride) for n in x.shape[1:3]]
  return np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value)


def windows(x, size, stride, value=0.0):
  """(rows, columns, batch, size, size, channels) of a padded image."""
  x = padded(x.astype(np.float64), size, stride, value)
  rows = range(0, x.shape[1] - size + 1, stride)
  columns = range(0, x.shape[2] - size + 1, stride)
  return np.stack(
    [
      np.stack([x[:, i : i + size, j : j + size] for j in columns])
      for i in rows
    ]
  )


def np_conv(x, kernel, stride, flavour):
  kernel = kernel.astype(np.float64).copy()
  for c in range(kernel.shape[-1]):
    one = kernel[..., c] - kernel[..., c].mean()
    variance = (one**2).mean()
    if flavour == 'timm':
      kernel[..., c] = one / np.sqrt(variance + 1e-8)
    else:
      kernel[..., c] = one / (np.sqrt(variance) + 1e-5)
  views = windows(x, kernel.shape[0], stride)
  return np.einsum('ijbuvc,uvcd->bijd', views, kernel)


def np_group_norm(x, p, flavour):
  b, h, w, c = x.shape
  groups = x.reshape(b, h, w, 32, c // 32)
  mean = groups.mean((1, 2, 4), keepdims=True)
  variance = ((groups - mean) ** 2).mean((1, 2, 4), keepdims=True)
  y = (groups - mean) / np.sqrt(variance + EPSILON[flavour])
  return y.reshape(x.shape) * p['scale'] + p['bias']


def np_unit(x, p, stride, flavour):
  def step(y, i, stride):
    y = np_conv(y, p[f'conv{i}']['kernel'], stride, flavour)
    return np_group_norm(y, p[f'norm{i}'], flavour)

  y = np.maximum(step(x, 1, 1), 0)
  y = np.maximum(step(y, 2, stride), 0)
  y = step(y, 3, 1)
  if 'proj' in p:
    x = np_conv(x, p['proj']['kernel'], stride, flavour)
    x = np_group_norm(x, p['proj_norm'], flavour)
  return np.maximum(x + y, 0)


def close(actual, expected, tolerance=2e-4):
  np.testing.assert_allclose(actual, expected, tolerance, tolerance)


@pytest.mark.parametrize('flavour', ['google', 'timm'])
@pytest.mark.parametrize(
  'size, stride, image', [(3, 1, (5, 4)), (3, 2, (6, 5)), (7, 2, (8, 6))]
)
def test_conv(flavour, size, stride, image):
  model, x = StdConv(4, size, stride, flavour, F32), normal(2, *image, 3)
  params = randomised(model, x)
  out = apply(model, params, x)
  assert out.shape == (2, *(-(-n // stride) for n in image), 4)
  close(out, np_conv(x, params['kernel'], stride, flavour))
  mirrored = np_conv(x[:, ::-1, ::-1], params['kernel'], stride, flavour)
  assert np.abs(out - mirrored[:, ::-1, ::-1]).max() > 0.1


def test_the_kernel_has_mean_0_and_variance_1():
  """So its own mean and size do not matter, but its direction does."""
  model, x = StdConv(4, 3, 1, 'google', F32), normal(1, 6, 6, 3)
  params = randomised(model, x)
  out = apply(model, params, x)
  other = {'kernel': params['kernel'] * 7 - 3}
  close(apply(model, other, x), out, 1e-3)
  assert np.abs(apply(model, {'kernel': -params['kernel']}, x) - out).max() > 1
  basis = np.eye(27, dtype=np.float32).reshape(27, 3, 3, 3)
  centre = apply(model, params, basis)[:, 1, 1]  # one weight of each channel
  close(centre.mean(0), np.zeros(4), 1e-4)
  close(centre.var(0), np.ones(4), 1e-3)


@pytest.mark.parametrize('epsilon', ['google', 'timm'])
def test_a_small_kernel_shows_the_flavour(epsilon):
  model, x = StdConv(4, 3, 1, epsilon, F32), normal(1, 4, 4, 3)
  kernel = 1e-4 * normal(3, 3, 3, 4)
  out = apply(model, {'kernel': kernel}, x)
  close(out, np_conv(x, kernel, 1, epsilon), 1e-3)
  other = {'google': 'timm', 'timm': 'google'}[epsilon]
  assert np.abs(out - np_conv(x, kernel, 1, other)).max() > 0.05


@pytest.mark.parametrize('flavour', ['google', 'timm'])
@pytest.mark.parametrize('channels, stride', [(64, 1), (128, 1), (128, 2)])
def test_unit(flavour, channels, stride):
  model, x = Unit(32, stride, flavour, F32), normal(2, 5, 4, channels)
  params = randomised(model, x)
  assert ('proj' in params) == (channels != 128 or stride > 1)
  out = apply(model, params, x)
  close(out, np_unit(x.astype(np.float64), params, stride, flavour), 1e-3)
  renamed = params | {'norm1': params['norm2'], 'norm2': params['norm1']}
  swapped = np_unit(x.astype(np.float64), renamed, stride, flavour)
  assert np.abs(out - swapped).max() > 0.1


def test_a_new_unit_is_its_shortcut():
  model, x = Unit(32, 1, 'google', F32), normal(2, 4, 4, 128)
  params = jax.jit(model.init)(jax.random.key(0), x)['params']
  np.testing.assert_allclose(apply(model, params, x), np.maximum(x, 0))


def test_stem():
  model, x = Stem((1,), 'google', F32), normal(1, 12, 10, 3)
  params = randomised(model, x)
  y = np_conv(x, params['root']['kernel'], 2, 'google')
  y = np.maximum(np_group_norm(y, params['root_norm'], 'google'), 0)
  y = windows(y, 3, 2, -np.inf).max((3, 4)).transpose(2, 0, 1, 3)
  y = np_unit(y, params['stage1_unit1'], 1, 'google')
  out = apply(model, params, x)
  assert out.shape == (1, 3, 3, 256)
  close(out, y, 1e-3)


@pytest.mark.parametrize(
  'variant, stride, channels, units',
  [
    ('R+Ti/16', 4, 64, 0),
    ('R26+S/32', 32, 2048, 8),
    ('R50+L/32', 32, 2048, 16),
    ('R50+B/16', 16, 1024, 16),
  ],
)
def test_strides_and_channels(variant, stride, channels, units):
  model = ViT(classes=2, variant=variant, depth=1)
  images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  patch = model.patch // stride
  assert params['embed']['linear']['kernel'].shape[0] == patch**2 * channels
  assert sum('_unit' in name for name in params['stem']) == units
  grid = (64 // model.patch) * (96 // model.patch)
  assert params['positions']['table'].shape[0] == grid + 1
