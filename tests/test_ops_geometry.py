"""Crops and files: boxes, reduced JPEGs, damage, with and without SIMD."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_ops import apply, context, jpeg, picture
from vit_jax.data import images, ops, resample
from vit_jax.errors import BadRecord, UserError


def distance(a, b):
  return np.abs(a.astype(int) - b.astype(int)).mean()


# --- Draws ---

BY_PICTURE = {'random_erasing'}  # its noise fills a part of the picture


@pytest.mark.parametrize('name', sorted(ops.OPS.keys() - BY_PICTURE))
def test_how_much_is_drawn_does_not_depend_on_the_picture(name):
  """So that the ops that follow do the same to it."""
  text = 'resize_small(20)' if name == 'resize_small' else name
  states = []
  for shape in ((40, 60, 3), (16, 12, 3), (90, 17, 3)):
    here = context()
    ops.build('ops', (text,))(picture(*shape), here)
    states.append(here.rng.random(4).tolist())
  assert states[0] == states[1] == states[2]


# --- Random crops ---


@pytest.mark.parametrize('border', ['edge', 'zero', 'reflect'])
@pytest.mark.parametrize('channels', [1, 3])
def test_random_crops_are_parts_of_the_padded_picture(border, channels):
  image = picture(16, 13, channels)
  mode = {'edge': 'edge', 'zero': 'constant', 'reflect': 'reflect'}[border]
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
  places = {
    padded[y : y + 16, x : x + 12].tobytes(): (y, x)
    for y in range(5)
    for x in range(6)
  }
  text = f'random_crop(2, {border!r})'
  found = [
    places[apply(text, image, channels=channels, seed=seed).tobytes()]
    for seed in range(300)
  ]
  assert set(found) == set(places.values())  # each place, and no other


def test_a_random_crop_needs_a_picture_of_the_size():
  with pytest.raises(
    UserError, match=r"a\.jpg: 'random_crop' of 16x12 from 15"
  ):
    apply('random_crop(0)', picture(15, 40))
  assert apply('random_crop(1)', picture(14, 10)).shape == (16, 12, 3)


# --- Files ---


def rotated(image):
  exif = Image.Exif()
  exif[0x0112] = 6
  return jpeg(image, exif=exif)


def cmyk(image):
  buffer = io.BytesIO()
  Image.fromarray(image).convert('CMYK').save(buffer, 'jpeg', quality=92)
  return buffer.getvalue()


def progressive(image):
  return jpeg(image, progressive=True)


def grey(image):
  return jpeg(image[..., :1])


def smooth(h, w):
  """As large photographs are: little changes from a pixel to the next."""
  small = Image.fromarray(picture(40, 60))
  large = small.resize((w, h), Image.Resampling.BICUBIC)
  noise = np.random.default_rng(1).normal(0, 2, (h, w, 3))
  return np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('encode', [jpeg, progressive, grey, rotated, cmyk])
def test_a_large_file_is_read_at_a_part_of_its_size(encode, monkeypatch):
  """The box stays the same, and pixels within a grey level."""
  data = encode(smooth(600, 804))
  pixels = images.decode(data, 3, 'x')
  reduced, boxes = [], []
  decode, crop = images.decode, resample.crop

  def decoding(data, channels, key, reduce, rows):
    reduced.append(reduce)
    return decode(data, channels, key, reduce, rows)

  def cropping(image, box, size, kernel):
    boxes.append(box)
    return crop(image, box, size, kernel)

  monkeypatch.setattr(images, 'decode', decoding)
  monkeypatch.setattr(resample, 'crop', cropping)
  kwargs = {'size': (48, 40)}
  for seed in range(12):
    of_file = apply(('decode', 'inception_crop'), data, seed=seed, **kwargs)
    of_pixels = apply('inception_crop', pixels, seed=seed, **kwargs)
    small, box = boxes[-2:]
    assert tuple(x * reduced[-1] for x in small) == box
    assert distance(of_file, of_pixels) < 1
    moved = apply('inception_crop', pixels, seed=seed + 99, **kwargs)
    assert distance(moved, of_pixels) > 2  # control
  assert {2, 4} <= set(reduced)


def test_small_files_are_read_whole():
  """No side is ever below twice what it is resized to, unless it was."""
  data = jpeg(picture(60, 80))
  pixels = images.decode(data, 3, 'x')
  for seed in range(10):
    kwargs = {'size': (40, 40), 'seed': seed}
    of_file = apply(('decode', 'inception_crop'), data, **kwargs)
    assert (of_file == apply('inception_crop', pixels, **kwargs)).all()


@pytest.mark.parametrize('text', ['inception_crop', 'inception_crop(0.1, 0.3)'])
def test_other_files_are_cropped_too(text):
  image = picture(50, 70)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png')
  of_file = apply(('decode', text), buffer.getvalue())
  assert (of_file == apply(text, image)).all()
  grey = apply(('decode', text), buffer.getvalue(), channels=1)
  assert grey.shape == (16, 12, 1)
  with pytest.raises(BadRecord, match=r'^a\.jpg: not an image'):
    apply(('decode', text), b'\xff\xd8 no picture')


def encoded(image, **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'jpeg', quality=90, **kwargs)
  return buffer.getvalue()


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0', 'grey'])
@pytest.mark.parametrize('reduce', [1, 2, 4, 8])
def test_first_rows(subsampling, reduce, monkeypatch, capfd):
  """The rest is not decoded, and the rows are the same to the bit."""
  image = smooth(151, 90)
  if subsampling == 'grey':
    data = encoded(image[..., 0])
  else:
    data = encoded(image, subsampling=subsampling)
  whole = images.decode(data, 3, 'x', reduce)

  def same(rows):
    """Whether they are; and how many came."""
    part = images.decode(data, 3, 'x', reduce, rows)
    kept = -(-rows // reduce)
    assert kept <= len(part)
    return bool((part[:kept] == whole[:kept]).all()), len(part)

  results = [same(rows) for rows in range(1, 152)]
  assert all(equal for equal, _ in results)
  few = results[0][1]
  assert few == -(-(1 + images._SPARE_ROWS) // reduce) < len(whole)
  counts = [count for _, count in results]
  assert counts == sorted(counts)
  assert counts[-1] == len(whole)
  assert capfd.readouterr().err == ''  # libjpeg does not complain
  # Control: at full size colours are interpolated from the row below.
  monkeypatch.setattr(images, '_SPARE_ROWS', 0)
  equal = all(same(rows)[0] for rows in range(reduce, 120, reduce))
  assert equal == (subsampling != '4:2:0' or reduce > 1)


@pytest.mark.parametrize(
  'kwargs', [{'progressive': True}, {'restart_marker_blocks': 2}]
)
def test_rows_of_odd_files_come_with_the_rest(kwargs, capfd):
  data = encoded(smooth(96, 90), **kwargs)
  assert images.decode(data, 3, 'x', 1, 8).shape[0] == 96
  plain = encoded(smooth(96, 90))
  assert images.decode(plain, 3, 'x', 1, 8).shape[0] == 24  # control
  assert images.decode(plain + b'\0', 3, 'x', 1, 8).shape[0] == 96
  assert capfd.readouterr().err == ''


FILES = [
  encode(picture(40, 56, seed=i))
  for i, encode in enumerate((jpeg, progressive, grey, rotated))
]


def by_pillow(data):
  """As if OpenCV read nothing."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(images, '_decode_plain', lambda *_: None)
    return images.decode(data, 3, 'x')


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_a_damaged_file_is_read_as_by_pillow_or_refused(whole, draw):
  """OpenCV may read a file that Pillow refuses, never another picture."""
  content = bytearray(whole)
  for _ in range(draw.draw(st.integers(1, 3))):
    place = draw.draw(st.integers(2, len(content) - 1))
    content[place] = draw.draw(st.integers(0, 255))
  data = bytes(content)
  try:
    wanted = by_pillow(data)
  except (BadRecord, UserWarning):
    return
  found = images.decode(data, 3, 'x')
  assert found.shape == wanted.shape
  assert np.abs(found.astype(int) - wanted).max() <= 3


@settings(max_examples=100, deadline=None)
@given(
  st.sampled_from(FILES),
  st.floats(0, 0.999),
  st.sampled_from([1, 2, 8]),
  st.sampled_from([None, 8]),
)
def test_a_truncated_file_is_refused(whole, part, reduce, rows):
  """Also where the rows that are wanted are there."""
  assert images.decode(whole, 3, 'x', reduce, rows).size  # the whole one is not
  # The last two bytes only say that it ends.
  data = whole[: int(part * (len(whole) - 2))]
  with pytest.raises(BadRecord, match=r'^x: '):
    images.decode(data, 3, 'x', reduce, rows)


# --- Resizing ---


@pytest.mark.parametrize('kernel', resample.KERNELS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('box', [(3, 5, 60, 90), (2.5, 4.25, 50.25, 80.5)])
def test_without_simd_pillow_does_the_same(kernel, channels, box, monkeypatch):
  image = np.random.default_rng(0).integers(0, 256, (80, 110, channels), 'u1')
  with_simd = resample.crop(image, box, (21, 33), kernel)
  monkeypatch.setattr(resample, 'simd', None)
  without = resample.crop(image, box, (21, 33), kernel)
  assert with_simd.shape == without.shape == (21, 33, channels)
  assert distance(with_simd, without) < 1
  others = [k for k in resample.KERNELS if k != kernel]
  for other in others:  # control: the kernels differ by more
    assert distance(resample.crop(image, box, (21, 33), other), without) > 1
  shifted = (box[0] + 1, *box[1:])
  assert distance(resample.crop(image, shifted, (21, 33), kernel), without) > 1


@settings(max_examples=150, deadline=None)
@given(
  st.tuples(st.integers(1, 120), st.integers(1, 120)),
  st.tuples(st.integers(3, 60), st.integers(3, 60)),
  st.sampled_from(['bilinear', 'bicubic', 'lanczos']),
  st.sampled_from([1, 3]),
)
def test_any_size_of_noise_is_within_a_level_of_pillow(
  shape, size, kernel, channels
):
  noise = np.random.default_rng(0).integers(0, 256, (*shape, channels), 'u1')
  fast = resample.crop(noise, (0, 0, *shape), size, kernel)
  assert fast.shape == (*size, channels) and fast.dtype == np.uint8
  # Pillow rounds between its two passes, and lanczos overshoots there.
  limit = 1 if kernel != 'lanczos' else 2
  assert distance(fast, resample.resize(noise, size, kernel)) <= limit
