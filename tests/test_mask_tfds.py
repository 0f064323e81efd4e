"""tfds data sets with masks, made here, read without TensorFlow."""

import io
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.test_data import fetch, make
from tests.test_mask_folder import matches, numbers, png
from vit_jax import data
from vit_jax.errors import BadRecord, UserError

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import tensorflow_datasets as tfds

NAMES = ('pet', 'background', 'border')


class Pets(tfds.core.GeneratorBasedBuilder):
  """As oxford_iiit_pet: a label, and masks of which the numbers begin at 1."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
      'segmentation_mask': tfds.features.Image(
        shape=(None, None, 1), use_colormap=True
      ),
      'named': tfds.features.LabeledImage(
        labels=['a', 'b', 'c'], shape=(None, None, 1)
      ),
      'plain': tfds.features.Tensor(shape=(12, 10), dtype=np.int32),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, _):
    return {'train': self._make(0, 20), 'test': self._make(20, 26)}

  def _make(self, start, stop):
    for i in range(start, stop):
      mask = numbers(i)
      picture = np.stack([50 * mask, mask, mask], -1)
      yield (
        i,
        {
          'image': io.BytesIO(png(picture)),
          'label': i % 2,
          'segmentation_mask': io.BytesIO(png(mask + np.uint8(1))),
          'named': io.BytesIO(png(mask)),
          'plain': mask.astype(np.int32) - (1 if i == 25 else 0),
          'file_name': f'{i}.jpg',
        },
      )

  def _generate_examples(self):
    raise NotImplementedError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('tfds')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    builder = Pets(data_dir=str(root), file_format='array_record')
    builder.download_and_prepare()
  return root


def opened(root, feature, split='train', **fields):
  return data.open_split(
    'tfds:pets', split, data_dir=str(root), label_feature=feature, **fields
  )


SHIFTED = {'mask_start': 1, 'mask_names': NAMES}


def test_without_a_mask_all_is_as_before(root):
  source = opened(root, '')
  assert not source.masks and source.classes == ('cat', 'dog')
  assert isinstance(source[3]['label'], int)


@pytest.mark.parametrize(
  'feature, fields, classes',
  [
    ('segmentation_mask', SHIFTED, NAMES),
    ('named', {}, ('a', 'b', 'c')),
    ('named', {'mask_names': NAMES}, NAMES),
    ('plain', {'mask_names': NAMES}, NAMES),
  ],
)
def test_masks(root, feature, fields, classes):
  source = opened(root, feature, **fields)
  assert source.masks and source.classes == classes
  assert len(source) == 20 and source.size == (10, 10)
  assert matches(source)
  assert source[2]['label'].dtype == np.uint8
  assert 'tensorflow' not in sys.modules
  other = opened(root, feature, **(fields | {'mask_ignore': (1,)}))
  assert not matches(other)  # control
  assert other.fingerprint != source.fingerprint != opened(root, '').fingerprint


def test_two_of_three_classes(root):
  """The border of a pet is often not counted."""
  source = opened(
    root,
    'segmentation_mask',
    mask_start=1,
    mask_names=NAMES[:2],
    mask_ignore=(3, 255),
  )
  for i in range(len(source)):
    pixels = np.asarray(Image.open(io.BytesIO(source[i]['image'])))[..., 0]
    wanted = np.where(pixels == 100, 255, pixels // 50)
    assert (source[i]['label'] == wanted).all()
  texts = ('decode', 'scale_jitter', 'crop_or_pad', 'flip', 'range(-1, 1)')
  (batch,) = fetch(make(source, texts, channels=3).train(0, 1))
  label, image = batch['label'], np.rint((batch['image'] + 1) * 127.5)
  assert label.shape == (16, 8, 8) and set(np.unique(label)) == {0, 1, 255}
  assert image.shape == (16, 8, 8, 3)


class Turned(Pets):
  """With a picture that EXIF turns."""

  orientation = 1

  def _make(self, start, stop):
    for i, example in super()._make(start, stop):
      with Image.open(example['image']) as image:
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = self.orientation if i == 2 else 1
        image.save(buffer, 'png', exif=exif)
      buffer.seek(0)
      yield i, example | {'image': buffer}


@pytest.mark.parametrize('orientation', [1, 3])
def test_a_picture_that_exif_turns_has_no_certain_mask(
  orientation, tmp_path, monkeypatch
):
  monkeypatch.setattr(Turned, 'orientation', orientation)
  builder = Turned(data_dir=str(tmp_path), file_format='array_record')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    builder.download_and_prepare()
  fields, bad = {'label_feature': 'named'}, []
  source = data.open_split(f'tfds:{builder.data_dir}', 'train', **fields)
  for i in range(len(source)):
    try:
      _ = source[i]
    except BadRecord as error:
      bad.append(str(error))
  assert len(bad) == (orientation == 3)
  assert all('EXIF turns the picture (orientation 3)' in text for text in bad)


@pytest.mark.parametrize(
  'feature, fields, says',
  [
    ('segmentation_mask', {}, "the classes in 'segmentation_mask' have no"),
    ('label', SHIFTED, "the label 'label' is a class for each image"),
    ('image', {}, 'not a ClassLabel or masks'),
    ('mask', {}, "label_feature = 'mask'"),
    ('segmentation_mask', SHIFTED | {'mask_start': -1}, 'mask_start = -1: 0'),
    ('segmentation_mask', SHIFTED | {'classes': 2}, 'but the source has 3'),
  ],
)
def test_mistakes(root, feature, fields, says):
  with pytest.raises(UserError) as error:
    opened(root, feature, **fields)
  assert says in str(error.value)


def test_flawed_masks(root):
  with pytest.raises(BadRecord) as error:  # not one that is sound
    opened(root, 'plain', 'test[:5]', mask_names=NAMES[:2])
  assert ' test[4] 2' in str(error.value)
  assert 'the mask has 2 at row' in str(error.value)
  source = opened(root, 'plain', 'test', mask_names=NAMES)
  found = []
  for i in range(6):
    try:
      source[i]
    except BadRecord as error:
      found.append(str(error))
  assert len(found) == 1 and 'the mask has -1; 0 to 255 can be' in found[0]


def test_the_real_pets(tmp_path, monkeypatch):
  """tfds's own builder and its features; the pictures are ours."""
  name = 'oxford_iiit_pet'
  builder = tfds.builder(
    name, data_dir=str(tmp_path), file_format='array_record'
  )

  def pairs():
    for i in range(4):
      mask = numbers(i)
      yield (
        i,
        {
          'image': io.BytesIO(png(np.stack([50 * mask, mask, mask], -1))),
          'label': 'Abyssinian',
          'species': 'Cat',
          'file_name': f'{i}.jpg',
          'segmentation_mask': io.BytesIO(png(mask + np.uint8(1))),
          'head_bbox': tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        },
      )

  monkeypatch.setattr(
    builder, '_split_generators', lambda _: {'train': pairs()}
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    builder.download_and_prepare()
  source = data.open_split(
    f'tfds:{name}',
    'train',
    data_dir=str(tmp_path),
    label_feature='segmentation_mask',
    **SHIFTED,
  )
  assert len(source) == 4 and matches(source)
  assert source.classes == NAMES and source.channels == 3
  assert source[0]['key'].endswith('.jpg')
