"""Patches: against the notes' own loop, and a convolution as a plain loop."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax.errors import UserError
from vit_jax.models.patches import PatchEmbed, grid, patchify, unpatchify


def notes_loop(image, P):
  """Section 1.2 of the notes, as it stands there."""
  H, W, _ = image.shape
  patches = []
  for i in range(0, H, P):
    for j in range(0, W, P):
      patch = image[i : i + P, j : j + P, :]
      patch_flat = patch.reshape(-1)
      patches.append(patch_flat)
  return np.array(patches)


def test_the_example_of_the_notes():
  image = np.random.default_rng(0).random((512, 512, 3), np.float32)
  patches = np.asarray(patchify(jax.numpy.asarray(image[None]), 16))[0]
  assert patches.shape == (1024, 768)
  assert patches[0].shape == (768,)
  np.testing.assert_array_equal(patches[0], image[:16, :16].reshape(-1))
  np.testing.assert_array_equal(patches, notes_loop(image, 16))


@settings(max_examples=10, deadline=None)
@given(
  gh=st.integers(1, 4),
  gw=st.integers(1, 4),
  patch=st.integers(1, 5),
  channels=st.integers(1, 4),
  batch=st.integers(1, 2),
)
def test_patchify_is_the_loop_and_unpatchify_its_inverse(
  gh, gw, patch, channels, batch
):
  shape = (batch, gh * patch, gw * patch, channels)
  images = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
  patches = patchify(jax.numpy.asarray(images), patch)
  expected = np.stack([notes_loop(image, patch) for image in images])
  np.testing.assert_array_equal(patches, expected)
  back = unpatchify(patches, shape[1:3], patch)
  np.testing.assert_array_equal(back, images)


def test_unpatchify_takes_only_patches_of_that_size():
  patches = jax.numpy.zeros((1, 6, 12))
  assert unpatchify(patches, (4, 6), 2).shape == (1, 4, 6, 3)
  # The same number of patches, but the grid lies the other way round.
  assert unpatchify(patches, (6, 4), 2).shape == (1, 6, 4, 3)
  for size, patch in (((4, 4), 2), ((12, 18), 6)):
    with pytest.raises(ValueError, match='are not the patches of'):
      unpatchify(patches, size, patch)


@pytest.mark.parametrize(
  'size, patch, names',
  [
    ((500, 512), 16, ('500x512', '16')),
    ((512, 500), 16, ('512x500', '16', '[1, 2, 4]')),
    ((224, 224), 15, ('224x224', '15', '225')),
    ((8, 8), 16, ('8x8', '16', '[1, 2, 4, 8]')),
    ((8, 8), 0, ('8x8', '0')),
  ],
)
def test_a_patch_that_does_not_divide_the_image(size, patch, names):
  with pytest.raises(UserError) as error:
    grid(size, patch)
  assert all(name in str(error.value) for name in names), error.value
  with pytest.raises(UserError):
    patchify(jax.numpy.zeros((1, *size, 3)), patch)


def test_grid_is_down_and_across():
  assert grid((6, 8), 2) == (3, 4)


def test_patch_embed_is_a_strided_convolution():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 6, 9, 2)).astype(np.float32)
  model = PatchEmbed(5, 3, np.dtype('float32'))
  kernel = rng.normal(size=(18, 5)).astype(np.float32)
  bias = rng.normal(size=5).astype(np.float32)
  params = {'linear': {'kernel': kernel, 'bias': bias}}
  actual = model.apply({'params': params}, jax.numpy.asarray(images))

  filters = kernel.reshape(3, 3, 2, 5)  # (P, P, c, D), as of a convolution
  expected = np.zeros((2, 2, 3, 5))
  for b, i, j, d in np.ndindex(expected.shape):
    total = float(bias[d])
    for r, s, c in np.ndindex(3, 3, 2):
      total += images[b, 3 * i + r, 3 * j + s, c] * filters[r, s, c, d]
    expected[b, i, j, d] = total
  np.testing.assert_allclose(
    actual, expected.reshape(2, 6, 5), rtol=1e-5, atol=1e-5
  )
