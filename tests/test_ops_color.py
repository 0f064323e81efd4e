"""Levels, colours, policies: Pillow, closed forms, and how often what."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.test_ops import apply, context, picture
from vit_jax.data import color, policies
from vit_jax.errors import UserError

SEEDS = range(400)


def distance(a, b):
  return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean()


# --- Primitives ---


@pytest.mark.parametrize('turn', [-0.5, -0.1, 0.0, 0.2, 0.5])
def test_hues_are_pillows(turn):
  image = picture()
  hsv = np.asarray(Image.fromarray(image).convert('HSV')).copy()
  hsv[..., 0] += np.uint8(round(turn * 255) % 256)
  wanted = Image.fromarray(hsv, 'HSV').convert('RGB')
  found = color.hue(image, turn)
  assert distance(found, wanted) < 3
  assert distance(color.hue(image, turn + 0.3), wanted) > 20  # control
  levels = [x.max(-1) for x in (found.astype(int), image.astype(int))]
  assert np.abs(levels[0] - levels[1]).max() <= 1  # HSV's value stays


@pytest.mark.parametrize('sigma', [0.5, 1.0, 2.0])
def test_blur_is_pillows(sigma):
  image = picture()
  wanted = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
  assert distance(color.blur(image, sigma), wanted) < 1
  assert distance(color.blur(image, 2.5 * sigma), wanted) > 1.5  # control


def test_levels_below_the_threshold_are_raised():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  wanted = np.where(
    image < 100, np.minimum(image.astype(int) + 170, 255), image
  )
  assert (color.add_below(image, 170, 100) == wanted).all()


@pytest.mark.parametrize('name', policies.CLASSIC)
@pytest.mark.parametrize('table', [policies.CLASSIC, policies.INCREASING])
def test_a_grey_picture_is_treated_as_a_channel(table, name):
  if name not in table:
    assert name == 'cutout'
    return
  image = picture(channels=1)
  for draw in (
    policies._Draw(0.9, -1, np.array([0.3, 0.9])),
    policies._Draw(0.2, 1, np.array([0.0, 1.0])),
  ):
    of_grey = table[name](image, draw)
    of_three = table[name](np.repeat(image, 3, -1), draw)
    assert of_grey.shape == image.shape
    assert np.abs(of_grey.astype(int) - of_three).max() <= 1


def test_a_picture_of_one_level_stays():
  for channels in (1, 3):
    image = np.full((5, 4, channels), 77, np.uint8)
    for function in (color.autocontrast, color.equalize):
      assert (function(image) == image).all()


def test_a_cutout():
  image = np.zeros((40, 60, 3), np.uint8)
  result = policies.cutout(image, 0.5, np.array([0.5, 0.25]))
  box = np.zeros((40, 60), bool)
  box[10:30, :30] = True
  assert (result == np.where(box[..., None], 128, 0)).all()
  assert not image.any()


# --- To float32 ---


@pytest.mark.parametrize(
  'text, mean, std',
  [
    ('normalize', 0.5, 0.5),
    ('normalize((0.4,), (0.2,))', 0.4, 0.2),
    (
      'normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))',
      (0.485, 0.456, 0.406),
      (0.229, 0.224, 0.225),
    ),
  ],
)
def test_normalize_is_the_formula_to_the_bit(text, mean, std):
  image = picture()
  x = image.astype(np.float32) / 255
  wanted = (x - np.float32(mean)) / np.float32(std)
  found = apply(text, image)
  assert found.dtype == wanted.dtype == np.float32
  assert (found == wanted).all()
  assert (apply('normalize((0.41,), (0.2,))', image) != wanted).any()


def test_normalize_of_other_pictures():
  three = 'normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))'
  with pytest.raises(UserError, match='of uint8 with 1 channels'):
    apply(three, picture(channels=1), channels=1)


# --- Policies ---


class Recorded(dict):
  """A table of RandAugment that says what it was asked for."""

  def __init__(self, names):
    self.calls = []
    super().__init__({name: self._op(name) for name in names})

  def _op(self, name):
    def op(image, draw):
      self.calls.append((name, draw.u, draw.sign, *draw.place))
      return image

    return op


@pytest.fixture
def recorded(monkeypatch):
  tables = {}
  for name in ('CLASSIC', 'INCREASING'):
    tables[name] = Recorded(getattr(policies, name))
    monkeypatch.setattr(policies, name, tables[name])
  return tables


def even(values, choices):
  """Chi-squared of counts, in standard deviations from what is expected."""
  counts = np.array([values.count(c) for c in choices])
  assert counts.sum() == len(values)
  expected = len(values) / len(choices)
  freedom = len(choices) - 1
  chi = ((counts - expected) ** 2 / expected).sum()
  return (chi - freedom) / np.sqrt(2 * freedom)


def test_randaugment_draws_evenly(recorded):
  image = picture(4, 4)
  for seed in SEEDS:
    apply('randaugment(3, 12)', image, seed=seed)
  calls = recorded['CLASSIC'].calls
  assert len(calls) == 3 * len(SEEDS) and not recorded['INCREASING'].calls
  names, levels, signs, y, x = zip(*calls, strict=True)
  assert even(names, list(policies.CLASSIC)) < 4
  assert set(levels) == {1.2}
  assert even(signs, [-1, 1]) < 4
  assert abs(np.mean(y) - 0.5) < 0.05 and abs(np.mean(x) - 0.5) < 0.05
  assert len(set(y)) == len(y)  # each layer has its own


def test_randaugment_of_deit(recorded):
  image = picture(4, 4)
  for seed in SEEDS:
    apply('randaugment(2, 9, 0.5, True, 0.5)', image, seed=seed)
  calls = recorded['INCREASING'].calls
  assert not recorded['CLASSIC'].calls
  assert 0.45 < len(calls) / (2 * len(SEEDS)) < 0.55
  levels = np.array([call[1] for call in calls]) * 10
  assert levels.max() <= 10 and abs(levels.mean() - 9) < 0.1
  assert 0.4 < levels.std() < 0.6


@pytest.mark.parametrize('name', ['posterize', 'solarize', 'contrast'])
def test_increasing_changes_grow_with_the_level(name):
  image = picture()

  def change(table, u):
    draws = [policies._Draw(u, sign, np.zeros(2)) for sign in (-1, 1)]
    return np.mean([distance(table[name](image, d), image) for d in draws])

  up = [change(policies.INCREASING, u) for u in (0.3, 0.6, 1.0)]
  assert up == sorted(up) and up[0] < up[-1]
  if name != 'contrast':  # control: AutoAugment's grow weaker
    assert change(policies.CLASSIC, 0.3) > change(policies.CLASSIC, 1.0)


def test_three_augment_is_one_of_three():
  image = picture()
  grey, solar = color.to_grey(image), color.invert_above(image, 128)
  kinds, blurs = [], []
  for seed in SEEDS:
    result = apply('three_augment', image, seed=seed)
    if (result == grey).all():
      kinds.append('grey')
    elif (result == solar).all():
      kinds.append('solarized')
    else:
      kinds.append('blurred')
      blurs.append(distance(result, image))
  assert even(kinds, ['grey', 'solarized', 'blurred']) < 4
  assert min(blurs) < 0.5 and max(blurs) <= distance(
    color.blur(image, 2.0), image
  )


def jitter(**amounts):
  zeros = dict.fromkeys(('brightness', 'contrast', 'saturation', 'hue'), 0)
  arguments = ', '.join(f'{k}={v}' for k, v in (zeros | amounts).items())
  return f'color_jitter({arguments})'


@pytest.mark.parametrize('amount, low, high', [(0.4, 0.6, 1.4), (2, 0, 3)])
def test_factors_of_jitter_are_uniform(amount, low, high):
  image = np.full((4, 4, 3), 60, np.uint8)
  factors = [
    apply(jitter(brightness=amount), image, seed=seed).mean() / 60
    for seed in SEEDS
  ]
  assert low - 0.02 <= min(factors) < low + 0.1 * (high - low)
  assert high + 0.02 >= max(factors) > high - 0.1 * (high - low)
  quarters = np.floor((np.array(factors) - low) / (high - low) * 4)
  assert even(np.clip(quarters, 0, 3).tolist(), [0, 1, 2, 3]) < 4


def test_jitter_comes_in_any_order():
  """Brighter then more contrast is not more contrast then brighter."""
  image = picture()
  seen = set()
  for seed in range(40):
    rng = context(seed=seed).rng
    order, u = rng.permutation(4).tolist(), rng.random(4)
    steps = [(0, color.brightness), (1, color.contrast)]
    steps.sort(key=lambda step: order.index(step[0]))
    wanted = image
    for i, change in steps:
      wanted = change(wanted, 0.5 + u[i])
    found = apply(jitter(brightness=0.5, contrast=0.5), image, seed=seed)
    assert (found == wanted).all()
    seen.add(steps[0][0])
  assert seen == {0, 1}


def test_jitter_of_nothing_or_never():
  image = picture()
  for text in (jitter(), 'color_jitter(1, 1, 1, 0.5, probability=0)'):
    assert (apply(text, image) == image).all()
  hues = [apply(jitter(hue=0.1), image, seed=seed) for seed in range(30)]
  most = max(distance(hue, image) for hue in hues)
  ends = [distance(color.hue(image, turn), image) for turn in (-0.1, 0.1)]
  assert 0.5 * max(ends) < most <= max(ends) + 0.5


@pytest.mark.parametrize(
  'text',
  ['grayscale(0.3)', 'solarize(128, 0.3)', 'gaussian_blur(1, 2, 0.3)']
  + ['random_erasing(0.3)', 'color_jitter(probability=0.3)']
  + ['affine(probability=0.3)'],
)
def test_probabilities(text):
  image = picture(20, 20)
  changed = [(apply(text, image, seed=s) != image).any() for s in SEEDS]
  assert 0.22 < np.mean(changed) < 0.38


def test_erased_pictures_of_bytes():
  """On uint8 the noise is uniform; too small a picture stays."""
  image = np.full((60, 80, 1), 7, np.uint8)
  noise = []
  for seed in range(20):
    result = apply('random_erasing(1)', image, channels=1, seed=seed)
    assert result.dtype == np.uint8
    noise.append(result[result != 7])
  noise = np.concatenate(noise)
  assert noise.min() < 5 and noise.max() > 250
  assert 120 < noise.mean() < 135
  tiny = np.full((1, 1, 3), 7, np.uint8)
  assert (apply('random_erasing(1)', tiny) == 7).all()
