"""Resampling of positions and patch kernels: oracles, properties, PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torch_reference import import_timm, import_torch
from vit_jax.errors import UserError
from vit_jax.weights.resample import (
  grid_of,
  matrix,
  resize_patches,
  resize_positions,
)

GRIDS = [((4, 4), (7, 5)), ((5, 3), (8, 8)), ((6, 7), (3, 4)), ((1, 2), (3, 1))]
KERNELS = ('bilinear', 'bicubic', 'bicubic-torch')
ALL = [(k, a) for k in KERNELS for a in (False, True)]


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def loop_resize(signal, new, a, border):
  """One dimension, sample by sample; border: 'repeat' or 'leave out'."""
  old, result = len(signal), []
  for i in range(new):
    centre = (i + 0.5) * old / new - 0.5
    total = weights = 0.0
    for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
      x = abs(centre - j)
      if x < 1:
        w = (a + 2) * x**3 - (a + 3) * x**2 + 1
      else:
        w = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
      if border == 'repeat' or 0 <= j < old:
        total += w * signal[min(max(j, 0), old - 1)]
        weights += w
    result.append(total / weights)
  return np.array(result)


@pytest.mark.parametrize('old, new', [(4, 9), (7, 3), (5, 5), (2, 7), (1, 3)])
def test_cubic_kernels_against_a_loop(old, new):
  signal = normal(old).astype(np.float64)
  oracles = {
    'bicubic': loop_resize(signal, new, -0.5, 'leave out'),
    'bicubic-torch': loop_resize(signal, new, -0.75, 'repeat'),
  }
  for kernel, expected in oracles.items():
    got = matrix(old, new, kernel, False) @ signal
    np.testing.assert_allclose(got, expected, atol=1e-12)
  if new != old > 1:
    assert np.ptp([*oracles.values()], 0).max() > 1e-3


@pytest.mark.parametrize('old, new', GRIDS, ids=str)
@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize(
  'kernel, method', [('bilinear', 'linear'), ('bicubic', 'cubic')]
)
def test_positions_against_jax(old, new, kernel, method, antialias):
  table = normal(2 + old[0] * old[1], 6)
  got = resize_positions(table, old, new, 2, kernel, antialias)
  expected = jax.image.resize(
    table[2:].reshape(*old, 6), (*new, 6), method, antialias=antialias
  )
  np.testing.assert_array_equal(got[:2], table[:2])
  np.testing.assert_allclose(got[2:], expected.reshape(-1, 6), atol=2e-5)


@pytest.mark.parametrize('kernel, antialias', ALL)
def test_what_any_resize_does(kernel, antialias):
  rows = matrix(6, 4, kernel, antialias)
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-12)  # constants stay
  np.testing.assert_allclose(rows[::-1, ::-1], rows, atol=1e-12)  # mirrored
  np.testing.assert_allclose(matrix(5, 5, kernel, antialias), np.eye(5))
  line = matrix(8, 16, kernel, antialias) @ np.arange(8.0)
  inner = (np.arange(16) + 0.5) / 2 - 0.5
  if kernel != 'bicubic-torch' or antialias:  # a = -0.75 bends lines
    np.testing.assert_allclose(line[4:-4], inner[4:-4], atol=1e-12)
  wide = (matrix(16, 4, kernel, antialias) != 0).sum(1).max()
  assert wide > 4 if antialias else wide <= 4


@pytest.mark.parametrize('kernel', KERNELS)
def test_the_same_grid_is_the_same_table(kernel):
  table = normal(13, 4)
  assert resize_positions(table, (3, 4), (3, 4), 1, kernel) is table
  turned = resize_positions(table, (3, 4), (4, 3), 1, kernel)
  assert np.abs(turned - table).max() > 0.1  # the same number of patches


def test_type_and_kind_are_kept():
  table = jnp.asarray(normal(5, 4), jnp.bfloat16)
  assert resize_positions(table, (2, 2), (3, 5), 1).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'length, prefix, side', [(197, 1, 14), (196, 0, 14), (201, 5, 14), (2, 1, 1)]
)
def test_grid_of_a_square(length, prefix, side):
  assert grid_of(length, prefix) == (side, side)


@pytest.mark.parametrize(
  'length, prefix', [(198, 1), (197, 0), (196, 1), (1, 1), (0, 1)]
)
def test_grid_of_is_never_guessed(length, prefix):
  with pytest.raises(UserError, match=f'{length - prefix} patches.*the grid'):
    grid_of(length, prefix)


def test_what_does_not_fit_is_refused():
  with pytest.raises(UserError, match='17 positions.*2 and a grid of 4x4'):
    resize_positions(normal(17, 3), (4, 4), (5, 5), 2)
  with pytest.raises(UserError, match='48 rows is not of 5x5'):
    resize_patches(normal(48, 2), 5, 6)


def resized(patches, new, kernel, antialias):
  """Patches (B, P, P, c), each as an image."""
  m = matrix(patches.shape[1], new, kernel, antialias)
  return np.einsum('ia,jb,nabc->nijc', m, m, patches)


@pytest.mark.parametrize('kernel, antialias', ALL)
@pytest.mark.parametrize('old, new', [(4, 8), (4, 7), (5, 6)])
def test_the_token_of_a_larger_patch_is_the_same(old, new, kernel, antialias):
  patches, weights = normal(6, old, old, 3), normal(old * old * 3, 7)
  tokens = patches.reshape(6, -1) @ weights
  larger = resized(patches, new, kernel, antialias).reshape(6, -1)
  got = resize_patches(weights, old, new, kernel, antialias)
  assert got.shape == (new * new * 3, 7)
  np.testing.assert_allclose(larger @ got, tokens, atol=1e-4)
  # Resizing the kernel as an image would do no such thing.
  m = matrix(old, new, kernel, antialias)
  plain = np.einsum('ia,jb,abcd->ijcd', m, m, weights.reshape(old, old, 3, 7))
  plain = plain.reshape(got.shape) * (old / new) ** 2
  assert np.abs(larger @ plain - tokens).max() > 0.1
  swapped = got.reshape(new, new, 3, 7).swapaxes(0, 1).reshape(got.shape)
  assert np.abs(larger @ swapped - tokens).max() > 0.1


def test_a_smaller_patch_is_the_nearest_in_mean_square():
  """Smaller patches lose; no other kernel does better (arXiv 2212.08013)."""
  old, new = 6, 4
  weights = normal(old * old, 3)
  got = resize_patches(weights, old, new)
  m = matrix(old, new, 'bicubic', True)
  both = np.kron(m, m)
  best = np.linalg.lstsq(both.T, weights, rcond=None)[0]
  np.testing.assert_allclose(got, best, atol=1e-5)
  assert resize_patches(weights, 6, 6) is weights


@pytest.mark.slow
@pytest.mark.parametrize('old, new', GRIDS + [((16, 16), (37, 24))], ids=str)
@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
def test_positions_against_torch(old, new, mode, antialias):
  torch = import_torch()
  table = normal(1 + old[0] * old[1], 6)
  images = torch.tensor(table[1:].reshape(1, *old, 6)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    images, new, mode=mode, align_corners=False, antialias=antialias
  )
  expected = expected.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
  kernel = {'bilinear': 'bilinear', 'bicubic': 'bicubic-torch'}[mode]
  got = resize_positions(table, old, new, 1, kernel, antialias)
  np.testing.assert_allclose(got[1:], expected, atol=1e-5)
  if mode == 'bicubic' and not antialias and old != (1, 2):
    other = resize_positions(table, old, new, 1, 'bicubic', antialias)
    assert np.abs(other[1:] - expected).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('old, new', GRIDS, ids=str)
def test_positions_against_timm(old, new):
  import_timm()
  from timm.layers import resample_abs_pos_embed

  torch = import_torch()
  table = normal(5 + old[0] * old[1], 6)
  expected = resample_abs_pos_embed(
    torch.tensor(table)[None], new, old, num_prefix_tokens=5
  )
  for kernel in ('bicubic', 'bicubic-torch'):
    got = resize_positions(table, old, new, 5, kernel, antialias=True)
    np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('old, new', [(8, 16), (16, 14), (16, 32), (14, 16)])
def test_patches_against_timm(old, new):
  import_timm()
  from timm.layers import resample_patch_embed

  torch = import_torch()
  weights = normal(old * old * 3, 5)
  conv = weights.reshape(old, old, 3, 5).transpose(3, 2, 0, 1)
  expected = resample_patch_embed(torch.tensor(conv), [new, new]).numpy()
  expected = expected.transpose(2, 3, 1, 0).reshape(-1, 5)
  got = resize_patches(weights, old, new)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
