"""Masks through the ops: each pixel keeps its label."""

import cv2
import numpy as np
import pytest

from vit_jax.data import geometry, ops, policies, resample
from vit_jax.data.sources import IGNORE
from vit_jax.errors import UserError

STEP = 20  # grey levels between two labels


def labelled(h=90, w=120):
  """A picture of which each pixel is STEP times its label, and its mask."""
  rng = np.random.default_rng(0)
  points = rng.uniform((0, 0), (h, w), (12, 2))
  grid = np.stack(np.mgrid[:h, :w], -1)[:, :, None]
  nearest = np.square(grid - points).sum(-1).argmin(-1)
  mask = nearest.astype(np.uint8)
  return (STEP * mask)[..., None], mask


def context(mask, seed=0, size=(48, 64)):
  return ops.Context(size, 1, (seed, 7), 'a.png', mask)


def mistaken(image, mask, reach=3):
  """Of the pixels away from edges, the part with another label than theirs."""
  window = np.ones((2 * reach + 1,) * 2, np.uint8)
  around = np.pad(mask, 1, constant_values=IGNORE)
  least, most = (f(around, window)[1:-1, 1:-1] for f in (cv2.erode, cv2.dilate))
  inside = (least == most) & (mask != IGNORE)
  assert inside.mean() > 0.05
  return (np.rint(image[..., 0] / STEP) != mask)[inside].mean()


# --- Every op of the table is in one of the two ---

MOVES = {
  'decode': 'decode',
  'resize': 'resize',
  'fit': 'fit',
  'resize_small': 'resize_small(80)',
  'scale_jitter': 'scale_jitter',
  'central_crop': 'central_crop',
  'random_crop': 'random_crop(20)',
  'crop_or_pad': 'crop_or_pad',
  'inception_crop': 'inception_crop(0.3)',
  'flip': 'flip',
  'affine': 'affine(30, 0.3, 0.2, 0.2)',
  'elastic': 'elastic(0.03)',
}
FIXED = {'decode', 'resize', 'fit', 'resize_small', 'central_crop'}
KEEPS = {
  'three_augment': 'three_augment',
  'color_jitter': 'color_jitter(0.5, 0.5, 0.5, 0.1)',
  'grayscale': 'grayscale',
  'solarize': 'solarize',
  'gaussian_blur': 'gaussian_blur',
  'range': 'range',
  'normalize': 'normalize',
  'random_erasing': 'random_erasing(1.0)',
}
BOTH = {'randaugment'}


def test_every_op_either_moves_a_mask_or_keeps_it():
  assert set(ops.OPS) == MOVES.keys() | KEEPS.keys() | BOTH


@pytest.mark.parametrize('name', MOVES)
def test_a_mask_moves_with_its_picture(name):
  image, mask = labelled()
  pipeline = ops.build('ops', (MOVES[name],))
  found, apart = [], []
  for seed in range(6):
    here, other, without = (
      context(m, s) for m, s in ((mask, seed), (mask, seed + 99), (None, seed))
    )
    result = pipeline(image, here)
    assert here.mask.dtype == np.uint8 and here.mask.shape == result.shape[:2]
    found.append(mistaken(result, here.mask))
    moved = pipeline(image, other)
    if moved.shape == result.shape:  # control: the numbers of another picture
      apart.append(mistaken(result, other.mask))
    # A mask changes neither pixels nor what is drawn.
    assert (pipeline(image, without) == result).all()
    assert without.mask is None
    assert without.rng.random() == here.rng.random()
  assert max(found) == 0
  assert name in FIXED or name == 'scale_jitter' or max(apart) > 0.05
  assert (mask == labelled()[1]).all()


@pytest.mark.parametrize('name', KEEPS)
def test_colours_leave_a_mask(name):
  image, mask = labelled()
  here = context(mask)
  result = ops.build('ops', (KEEPS[name],))(image, here)
  assert here.mask is mask
  assert (result != image).any() or name == 'grayscale'  # it is grey


@pytest.mark.parametrize('table', [policies.CLASSIC, policies.INCREASING])
def test_changes_of_randaugment(table):
  image, mask = labelled()
  moving = {'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'}
  for name, change in table.items():
    here = context(mask)
    draw = policies._Draw(0.7, -1, np.array([0.4, 0.6]), here)
    result = change(image, draw)
    assert (here.mask is not mask) == (name in moving), name
    if name in moving:
      assert mistaken(result, here.mask) == 0
      assert (here.mask == IGNORE).any()  # let in
      assert mistaken(result, mask) > 0.05  # control
  drawn = [context(mask, seed) for seed in range(20)]
  for here in drawn:
    ops.build('ops', ('randaugment(2, 9)',))(image, here)
  assert 3 < sum(here.mask is not mask for here in drawn) < 18


def test_many_in_a_row():
  image, mask = labelled()
  texts = (
    'scale_jitter(0.8, 2.0)',
    'crop_or_pad',
    'flip',
    'affine(20, 0.1, 0.1, 0.1)',
    'random_crop(3)',
  )
  pipeline = ops.build('ops', texts)
  for seed in range(10):
    here, other = context(mask, seed), context(mask, seed + 1)
    result = pipeline(image, here)
    assert result.shape == (48, 64, 1) and here.mask.shape == (48, 64)
    assert mistaken(result, here.mask) == 0
    pipeline(image, other)
    assert mistaken(result, other.mask) > 0.05


# --- Resizing, crops ---


@pytest.mark.parametrize('size', [(7, 9), (1, 1), (20, 31), (55, 64), (40, 62)])
@pytest.mark.parametrize('box', [None, (0, 0, 20, 31), (3, 5, 9, 11)])
def test_nearest_takes_the_pixel_under_the_middle(size, box):
  mask = np.arange(20 * 31, dtype=np.uint16).reshape(20, 31)
  top, left, h, w = box or (0, 0, 20, 31)

  def distance(found):
    """From the middles of the pixels to those of what they were taken from."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    row, column = np.divmod(found, 31)
    return max(
      np.abs(top + y * h / size[0] - row - 0.5).max(),
      np.abs(left + x * w / size[1] - column - 0.5).max(),
    )

  assert distance(resample.nearest(mask, size, box)) <= 0.5 + 1e-9
  rolled = resample.nearest(np.roll(mask, 2, 0), size, box)
  assert distance(rolled) > 0.5  # control


@pytest.mark.parametrize('shape', [(30, 100), (70, 40), (20, 20), (48, 64)])
def test_crop_or_pad(shape):
  image, mask = labelled()
  image, mask = image[: shape[0], : shape[1]], mask[: shape[0], : shape[1]]
  here = context(mask)
  result = ops.build('ops', ('crop_or_pad(77)',))(image, here)
  assert result.shape == (48, 64, 1) and here.mask.shape == (48, 64)
  padded = np.ones((48, 64), bool)
  padded[: shape[0], : shape[1]] = False
  assert ((here.mask == IGNORE) == padded).all()
  assert (result[padded] == 77).all()
  assert (result[..., 0] == STEP * here.mask)[~padded].all()
  exact = geometry.crop_or_pad(image, context(None))
  assert (exact[~padded] == result[~padded]).all()


def test_no_class_fills_a_crop():
  """As far as one of ten places will do."""
  mask = np.zeros((100, 100), np.uint8)
  mask[40:60, 40:60] = 1

  def largest(text, seed):
    here = context(mask, seed, (30, 30))
    ops.build('ops', (text,))(mask[..., None], here)
    return np.bincount(here.mask.ravel()).max() / here.mask.size

  shares = [largest('crop_or_pad(max_share=0.75)', seed) for seed in range(20)]
  assert sum(share <= 0.75 for share in shares) > 15
  shares = [largest('crop_or_pad', seed) for seed in range(20)]  # control
  assert sum(share <= 0.75 for share in shares) < 15


def test_scale_jitter():
  image, _ = labelled()
  pipeline = ops.build('ops', ('scale_jitter(0.5, 2.0, 100)',))
  sides = [pipeline(image, context(None, seed)).shape for seed in range(200)]
  assert all(abs(w / h - 120 / 90) < 0.03 for h, w, _ in sides)
  assert 50 <= min(sides)[0] < 55 and 195 < max(sides)[0] <= 200
  assert abs(np.mean([h for h, *_ in sides]) - 125) < 10  # uniform
  with pytest.raises(UserError, match=r'min_scale = 3.0 is over max_scale = 2'):
    ops.build('ops', ('scale_jitter(3, 2)',))
