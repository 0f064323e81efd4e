"""The ops of augmentation: one battery for all, and Pillow as the oracle."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data import color, images, ops, policies, resample
from vit_jax.data.geometry import inception_box
from vit_jax.errors import BadRecord, UserError


def context(size=(16, 12), channels=3, seed=0, key='a.jpg'):
  return ops.Context(size, channels, (seed, 7), key)


def picture(h=40, w=60, channels=3, seed=0):
  """Smooth colours and some noise, with all levels in it."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:h, :w] / max(h, w)
  waves = [
    np.sin(5 * x + 3 * c + 2 * y) + np.cos(7 * y + c) for c in range(channels)
  ]
  smooth = 128 + 60 * np.stack(waves, -1)
  noisy = smooth + rng.normal(0, 12, smooth.shape)
  return np.clip(noisy, 0, 255).astype(np.uint8)


def jpeg(image, **kwargs):
  buffer = io.BytesIO()
  grey = image.shape[-1] == 1
  pillow = Image.fromarray(image[..., 0] if grey else image)
  pillow.save(buffer, 'jpeg', quality=92, **kwargs)
  return buffer.getvalue()


def apply(texts, image, **kwargs):
  texts = (texts,) if isinstance(texts, str) else texts
  return ops.build('ops', texts)(image, context(**kwargs))


# --- All of them: arguments that make the op do something ---

FIXED = {
  'decode': (),
  'resize': (),
  'fit': (),
  'resize_small': (20,),
  'central_crop': (),
  'range': (),
  'normalize': (),
}
RANDOM = {
  'scale_jitter': (),
  'random_crop': (),
  'crop_or_pad': (),
  'inception_crop': (),
  'flip': (),
  'affine': (),
  'elastic': (),
  'randaugment': (2, 15),
  'three_augment': (),
  'color_jitter': (0.5, 0.5, 0.5, 0.1),
  'grayscale': (0.5,),
  'solarize': (60, 0.5),
  'gaussian_blur': (),
  'random_erasing': (0.7,),
}
GREY_KEEPS = {'grayscale'}  # has no effect on grey


def call(name):
  arguments = (FIXED | RANDOM)[name]
  return f'{name}({", ".join(map(repr, arguments))})'


def test_every_op_is_in_the_battery():
  assert set(ops.OPS) == FIXED.keys() | RANDOM.keys()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', sorted(ops.OPS))
def test_a_pure_function_of_picture_and_key(name, channels):
  image = picture(channels=channels)
  kept = image.copy()
  results = [
    apply(call(name), image, channels=channels, seed=seed)
    for seed in (0, 0, *range(1, 9))
  ]
  first, again, *others = results
  assert (image == kept).all()
  assert (first == again).all() and first.dtype == again.dtype
  assert first.ndim == 3 and first.shape[-1] == channels
  pixels = name in ('range', 'normalize')
  assert first.dtype == (np.float32 if pixels else np.uint8)
  differ = [x.shape != first.shape or (x != first).any() for x in others]
  random = name in RANDOM and not (channels == 1 and name in GREY_KEEPS)
  assert any(differ) == random
  sized = name.endswith('crop') or name in ('fit', 'resize', 'crop_or_pad')
  if sized:
    assert first.shape == (16, 12, channels)
  elif name not in ('resize_small', 'scale_jitter'):
    assert first.shape == image.shape


@pytest.mark.parametrize('name', sorted(RANDOM))
@pytest.mark.parametrize('shape', [(16, 12), (16, 40), (50, 12), (33, 31)])
def test_sizes(name, shape):
  result = apply((call(name), 'fit'), picture(*shape))
  assert result.shape == (16, 12, 3)


@pytest.mark.parametrize(
  'text, says',
  [
    ('inception_crop(0)', 'min_area = 0.0: expected a number over 0, at most'),
    ('inception_crop(0.5, 1.5)', 'max_area = 1.5: expected a number over 0'),
    ('inception_crop(0.9, 0.5)', 'min_area = 0.9 is over max_area = 0.5'),
    ("inception_crop(kernel='cubic')", "kernel = 'cubic': expected one of"),
    ('randaugment(2, 31)', 'magnitude = 31.0: expected a number between 0'),
    ('randaugment(-1)', 'layers = -1: expected a number at least 0'),
    ('random_erasing(1.5)', 'probability = 1.5: expected a number between 0'),
    ('color_jitter(-1)', 'brightness = -1.0: expected a number at least 0'),
    ('color_jitter(hue=0.7)', 'hue = 0.7: expected a number between 0 and 0'),
    ('gaussian_blur(2, 1)', 'min_sigma = 2.0 is over max_sigma = 1.0'),
    ('resize_small(0)', 'side = 0: expected a number at least 1'),
    ('random_crop(-2)', 'padding = -2: expected a number at least 0'),
    ('normalize((0.5, 0.5), (0.5, 0.5))', 'give one number, or one a channel'),
  ],
)
def test_limits_are_checked_before_the_run(text, says):
  with pytest.raises(UserError) as error:
    ops.build('config.data.train.ops', ('decode', text))
  assert says in str(error.value)
  assert str(error.value).startswith('config.data.train.ops')


# --- Crops ---


@settings(max_examples=300, deadline=None)
@given(
  st.integers(1, 900),
  st.integers(1, 900),
  st.integers(0, 2**32),
  st.floats(0.01, 1),
  st.floats(0, 1),
)
def test_inception_box(h, w, seed, low, more):
  high = min(1.0, low + more * (1 - low))
  rng = np.random.default_rng(seed)
  top, left, ch, cw = inception_box(h, w, rng, low, high)
  assert 0 <= top <= top + ch <= h and 0 <= left <= left + cw <= w
  assert ch >= 1 and cw >= 1
  # Sides are rounded: what they may have been before.
  areas = [(ch - 0.5) * (cw - 0.5), (ch + 0.5) * (cw + 0.5)]
  ratios = [(cw - 0.5) / (ch + 0.5), (cw + 0.5) / (ch - 0.5)]
  drawn = areas[0] <= high * h * w and areas[1] >= low * h * w
  fallback = (top, left) == ((h - ch) // 2, (w - cw) // 2) and (
    ch == h or cw == w
  )
  assert drawn or fallback
  assert (ratios[0] <= 4 / 3 and ratios[1] >= 3 / 4) or min(h, w) < 3
  assert inception_box(h, w, np.random.default_rng(seed), low, high) == (
    top,
    left,
    ch,
    cw,
  )


def test_inception_boxes_are_spread():
  boxes = np.array(
    [
      inception_box(300, 400, np.random.default_rng(s), 0.08, 1.0)
      for s in range(600)
    ]
  )
  areas = boxes[:, 2] * boxes[:, 3] / 120_000
  ratios = boxes[:, 3] / boxes[:, 2]
  # Large ones fit less often, so the mean is below (0.08 + 1) / 2.
  assert 0.40 < areas.mean() < 0.55 and areas.min() < 0.15 < 0.8 < areas.max()
  assert abs(np.log(ratios).mean()) < 0.06
  middle = (boxes[:, :2] + boxes[:, 2:] / 2).mean(0)
  np.testing.assert_allclose(middle, [150, 200], rtol=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_crops_of_any_picture(h, w, seed):
  image = picture(h, w)
  crop = apply('inception_crop', image, seed=seed)
  assert crop.shape == (16, 12, 3)
  assert (apply('inception_crop', image, seed=seed) == crop).all()
  padded = apply(('resize_small(16)', 'random_crop(3)'), image, seed=seed)
  assert padded.shape == (16, 12, 3)


def test_a_crop_of_a_file_is_the_crop_of_its_pixels():
  """The box does not depend on the path; pixels nearly so."""
  image = picture(150, 200)
  data = jpeg(image)
  pixels = images.decode(data, 3, 'x')
  for seed in range(8):
    kwargs = {'size': (32, 32), 'seed': seed}
    of_file = apply(('decode', 'inception_crop'), data, **kwargs)
    of_pixels = apply('inception_crop', pixels, **kwargs)
    assert np.abs(of_file.astype(int) - of_pixels).mean() < 4
    others = apply('inception_crop', pixels, size=(32, 32), seed=seed + 50)
    assert np.abs(others.astype(int) - of_pixels).mean() > 4


# --- Resizing and decoding: Pillow's ---

KERNELS = {'bilinear': 2, 'bicubic': 3, 'area': 4, 'lanczos': 1}


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(20, 31), (9, 7), (90, 130)])
def test_resizing_is_within_one_level_of_pillow(kernel, channels, size):
  image = picture(80, 110, channels)
  pillow = Image.fromarray(image.squeeze())
  wanted = np.asarray(pillow.resize(size[::-1], KERNELS[kernel])).astype(int)
  exact = resample.resize(image, size, kernel)
  assert (exact.squeeze() == wanted).all()
  box = (3, 5, 60, 90)
  part = pillow.crop((5, 3, 95, 63))
  wanted = np.asarray(part.resize(size[::-1], KERNELS[kernel])).astype(int)
  fast = resample.crop(image, box, size, kernel).squeeze()
  assert np.abs(fast - wanted).mean() < 1 and np.abs(fast - wanted).max() <= 6
  if size == (9, 7):  # control: without antialiasing it is another picture
    rough = part.resize(size[::-1], 0)
    assert np.abs(np.asarray(rough).astype(int) - wanted).mean() > 2


def test_a_crop_sees_nothing_outside_of_its_box():
  image = np.zeros((40, 40, 3), np.uint8)
  image[10:20, 10:20] = 200
  for kernel in KERNELS:
    result = resample.crop(image, (10, 10, 10, 10), (17, 23), kernel)
    assert (result == 200).all()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('stored', [1, 3])
def test_jpegs_are_decoded_as_by_pillow(stored, channels):
  image = picture(61, 83, stored)
  data = jpeg(image)
  wanted = np.asarray(
    Image.open(io.BytesIO(data)).convert('L' if channels == 1 else 'RGB')
  )
  found = images.decode(data, channels, 'x')
  assert found.shape == (61, 83, channels) and found.dtype == np.uint8
  difference = np.abs(found.squeeze().astype(int) - wanted)
  assert difference.mean() < 1 and difference.max() <= 3


def test_damaged_and_turned_jpegs():
  image = picture(64, 96)
  data = jpeg(image)
  for cut in (len(data) // 2, len(data) - 40, 30):
    for texts in (('decode', 'fit'), ('decode', 'inception_crop')):
      with pytest.raises(BadRecord, match=r'^a\.jpg: '):
        apply(texts, data[:cut])
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = jpeg(image, exif=exif)
  assert images.decode(turned, 3, 'x').shape == (96, 64, 3)
  assert apply(('decode', 'inception_crop'), turned).shape == (16, 12, 3)
  for reduce in (2, 4, 8):
    assert images.decode(turned, 3, 'x', reduce).shape == (
      96 // reduce,
      64 // reduce,
      3,
    )


# --- Colours: Pillow's ---


def close(found, wanted, most=2):
  difference = np.abs(found.astype(int) - np.asarray(wanted).astype(int))
  assert difference.max() <= most, difference.max()


@pytest.mark.parametrize('seed', range(3))
def test_primitives_are_pillows(seed):
  image = picture(seed=seed) // 2 + 30
  pillow = Image.fromarray(image)
  for factor in (0.0, 0.1, 0.7, 1.0, 1.9):
    for function, enhance in (
      (color.brightness, ImageEnhance.Brightness),
      (color.contrast, ImageEnhance.Contrast),
      (color.saturation, ImageEnhance.Color),
      (color.sharpness, ImageEnhance.Sharpness),
    ):
      close(function(image, factor), enhance(pillow).enhance(factor))
  close(color.autocontrast(image), ImageOps.autocontrast(pillow))
  close(color.equalize(image), ImageOps.equalize(pillow), 0)
  close(color.invert(image), ImageOps.invert(pillow), 0)
  for bits in (1, 4, 7):
    close(color.posterize(image, bits), ImageOps.posterize(pillow, bits), 0)
  for threshold in (0, 90, 256):
    wanted = ImageOps.solarize(pillow, threshold)
    close(color.invert_above(image, threshold), wanted, 0)
  close(color.to_grey(image), pillow.convert('L').convert('RGB'))
  assert np.abs(color.brightness(image, 0.5).astype(int) - image).mean() > 10


@pytest.mark.parametrize(
  'function, amounts, matrix',
  [
    (policies.shear_x, (0.3,), (1, 0.3, 0, 0, 1, 0)),
    (policies.shear_y, (-0.2,), (1, 0, 0, -0.2, 1, 0)),
    (policies.translate, (0.25, 0.0), (1, 0, 15, 0, 1, 0)),
    (policies.translate, (0.0, -0.25), (1, 0, 0, 0, 1, -10)),
  ],
)
def test_moves_are_pillows(function, amounts, matrix):
  image = picture()
  wanted = Image.fromarray(image).transform(
    (60, 40),
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.BILINEAR,
    fillcolor=(128,) * 3,
  )
  wanted = np.asarray(wanted).astype(int)
  found = function(image, *amounts).astype(int)
  difference = np.abs(found - wanted)
  assert np.median(difference) <= 1 and difference.mean() < 3
  other = function(image, *(-2 * a for a in amounts)).astype(int)
  assert np.abs(other - wanted).mean() > 8


def test_rotation_is_pillows():
  image = picture()
  wanted = Image.fromarray(image).rotate(
    20, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
  )
  difference = np.abs(policies.rotate(image, 20.0).astype(int) - wanted)
  assert np.median(difference) <= 1 and difference.mean() < 3


@pytest.mark.parametrize('table', [policies.CLASSIC, policies.INCREASING])
def test_every_change_of_randaugment(table):
  image = picture()
  for name, function in table.items():
    draw = policies._Draw(0.7, 1, np.array([0.4, 0.6]))
    result = function(image, draw)
    assert result.shape == image.shape and result.dtype == np.uint8, name
    assert (result != image).any(), name
  assert len(policies.CLASSIC) == 16 and len(policies.INCREASING) == 15


def test_randaugment_of_no_layers_or_no_chance():
  image = picture()
  for text in ('randaugment(0)', 'randaugment(3, probability=0)'):
    assert (apply(text, image) == image).all()


def test_erasing():
  image = np.zeros((60, 80, 3), np.float32)
  shares = []
  for seed in range(60):
    result = apply('random_erasing(1)', image, size=(60, 80), seed=seed)
    erased = (result != 0).any(-1)
    rows, columns = np.nonzero(erased)
    assert erased.sum() == len(set(rows)) * len(set(columns))  # a rectangle
    assert abs(result[erased].mean()) < 0.2
    assert 0.8 < result[erased].std() < 1.2
    shares.append(erased.mean())
  assert min(shares) > 0.015 and max(shares) < 0.35
  kept = [
    (apply('random_erasing(0.25)', image, seed=s) == 0).all() for s in range(80)
  ]
  assert 45 < sum(kept) < 75
  black = apply("random_erasing(1, mode='zero')", picture(seed=1), seed=3)
  assert (black == 0).all(-1).mean() > 0.015


def test_without_resizing_and_cropping():
  """A picture of the model's size stays as it is."""
  texts = ('decode', "resize_small(24, 'bicubic')", 'central_crop')
  texts += ('range(0, 255)',)
  left = ops.whole(texts)
  assert left == ('decode', 'fit', 'range(0, 255)')
  padded = ('decode', 'crop_or_pad', 'range(0, 255)')
  assert ops.whole(padded) == left
  assert ops.whole(('range(-1, 1)',)) == ('range(-1, 1)',)
  image = picture(16, 12)
  data = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
  np.testing.assert_allclose(apply(left, data), image, atol=1e-3)
  assert np.abs(apply(texts, data) - image).max() > 10
