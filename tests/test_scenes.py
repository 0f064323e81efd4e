"""digit_scenes: functions of (split, index), whose labels are what is seen."""

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data.sources import Digits
from vit_jax.errors import UserError


def same(a, b):
  return all(np.array_equal(a[name], b[name]) for name in ('image', 'label'))


def test_scenes_are_functions_of_split_and_index():
  train = data.open_split('digit_scenes', 'train')
  test = data.open_split('digit_scenes', 'test')
  assert (len(train), len(test)) == (20_000, 500)
  assert train.classes == ('background', *'0123456789')
  assert (train.size, train.channels, train.masks) == ((64, 64), 1, True)
  part = data.open_split('digit_scenes', 'train[3000:3010]')
  last = part[9]
  assert same(last, train[3009]) and last['key'] == train[3009]['key']
  assert same(last, part[9])
  drawn = data.open_split('digit_scenes', 'train[3000:3010]', cache_mb=0)
  assert drawn[9] is not drawn[9] and part[9] is part[9]
  assert same(drawn[9], last)
  others = (train[3008], test[9], train[9])
  assert not any(same(last, other) for other in others)
  assert len({train.fingerprint, test.fingerprint, part.fingerprint}) == 3
  again = data.open_split('digit_scenes', 'train')
  assert again.fingerprint == train.fingerprint


def test_digits_of_the_test_are_in_no_scene_of_the_training():
  drawn = {}
  for split in ('train', 'test'):
    scenes, digits = data.open_split('digit_scenes', split), Digits('', split)
    assert len(scenes._digits) == len(digits)
    drawn[split] = {glyph.tobytes() for glyph, _ in scenes._digits}
    labels = [digits[i]['label'] for i in range(len(digits))]
    assert [label for _, label in scenes._digits] == labels
  assert not drawn['train'] & drawn['test']


@pytest.mark.parametrize('side, digits', [(32, 1), (64, 2), (160, 13)])
def test_what_is_labelled_is_what_is_seen(side, digits):
  scenes = data.open_split(f'digit_scenes:{side}', 'test')
  on, off, counts = [], [], np.zeros(11, int)
  for i in range(40):
    record = scenes[i]
    image, mask = record['image'], record['label']
    assert image.shape == (side, side, 1) and image.dtype == np.uint8
    assert mask.shape == (side, side) and mask.dtype == np.uint8
    on.append(np.median(image[mask > 0]))
    off.append(np.median(image[mask == 0]))
    present = np.bincount(mask.ravel(), minlength=11) > 0
    assert present[1:].sum() >= min(digits, 5) - 2 * (side > 64)
    counts += present
  assert min(on) > 150 and max(off) < 120
  assert (counts > 0).all() or side == 32


@pytest.mark.parametrize('side', range(32, 200, 7))
def test_there_is_room_for_all_digits(side):
  scenes = data.open_split(f'digit_scenes:{side}', 'train[:3]')
  assert all(scenes[i]['label'].any() for i in range(3))


@pytest.mark.parametrize(
  'name, split, says',
  [
    ('digit_scenes:big', 'train', "write 'digit_scenes' or"),
    ('digit_scenes:31', 'train', '32 to 1024'),
    ('digit_scenes', 'val', "digit_scenes has no split 'val'"),
    ('digit_scenes', 'train[50000:]', 'selects none of the 20000'),
    ('digit_scene', 'train', "Did you mean 'digit_scenes'?"),
    ('digit_scenes*0.5+digits*0.5', 'train', 'have different classes'),
  ],
)
def test_mistakes(name, split, says):
  with pytest.raises(UserError) as error:
    data.open_split(name, split)
  assert says in str(error.value)
