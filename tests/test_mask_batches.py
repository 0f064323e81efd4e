"""Batches of masks: on any layout the same, flawed ones skipped; Setup."""

import dataclasses

import numpy as np
import pytest

from tests.test_data import Local, as_process, equal, fetch, make
from tests.test_mask_folder import matches, numbers, png, write
from vit_jax import data, tasks
from vit_jax.data import masks
from vit_jax.data.sources import IGNORE
from vit_jax.errors import BadRecord, UserError
from vit_jax.setup import Setup

SCENES = ('scale_jitter(0.7, 1.4)', 'crop_or_pad', 'affine', 'range(-1, 1)')


def scenes(split='train[:20]', **kwargs):
  return make(
    data.open_split('digit_scenes:40', split), SCENES, size=(32, 40), **kwargs
  )


def test_batches_of_masks():
  reference = fetch(scenes().train(0, 4))
  for batch in reference:
    assert batch['image'].shape == (16, 32, 40, 1)
    assert batch['label'].shape == (16, 32, 40)
    assert batch['label'].dtype == np.int32 and batch['mask'].shape == (16,)
    labels = set(np.unique(batch['label']).tolist())
    assert {0, IGNORE} < labels <= {*range(11), IGNORE}
  assert equal(fetch(scenes(devices=8, workers=3).train(2, 4)), reference[2:])
  assert equal(fetch([scenes().train_batch(3)]), reference[3:])
  assert not equal(fetch(scenes(seed=1).train(0, 4)), reference)


def test_processes_load_their_masks(monkeypatch):
  wanted = fetch(scenes().train(1, 3))
  made = scenes(devices=8)
  fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
  streams = []
  for number in range(2):
    as_process(monkeypatch, number, 2)
    streams.append(list(Local(**fields).train(1, 3)))
  for whole, *parts in zip(wanted, *streams, strict=True):
    label = np.concatenate([part['label'] for part in parts])
    assert (label == whole['label']).all()
    assert (label[::-1] != whole['label']).any()


def test_beyond_the_last_example_nothing_is_counted():
  batches = fetch(scenes('test[:20]').evaluate())
  assert [int(b['mask'].sum()) for b in batches] == [16, 4]
  assert (batches[1]['label'][4:] == IGNORE).all()
  assert (batches[1]['image'][4:] == 0).all()
  assert (batches[1]['label'][:4] != IGNORE).any((1, 2)).all()


class Flawed:
  """Every fifth mask has something else wrong with it."""

  classes, size, channels, masks = ('a', 'b'), (8, 8), 1, True
  fingerprint = ''
  flaws = (
    np.zeros((4, 8), np.uint8),
    np.full((8, 8), 2, np.uint8),
    np.full((8, 8), IGNORE, np.uint8),
    b'no png',
  )

  def __len__(self):
    return 20

  def __getitem__(self, index):
    image = np.full((8, 8, 1), index, np.uint8)
    label = np.full((8, 8), index % 2, np.uint8)
    if index % 5 == 0:
      label = self.flaws[index // 5]
    return {'image': image, 'label': label, 'key': f'number {index}'}


@pytest.mark.parametrize(
  'index, says',
  [
    (0, 'number 0: the mask has 4x8 pixels, its image 8x8'),
    (5, 'number 5: the mask has 2 at row 0, column 0, which is none of the 2'),
    (10, 'number 10: no pixel of the mask is counted'),
    (15, 'number 15: not an image'),
  ],
)
def test_flaws_are_named(index, says):
  with pytest.raises(BadRecord) as error:
    masks.read(Flawed()[index], 2)
  assert str(error.value).startswith(says)
  assert masks.read(Flawed()[index + 1], 2).shape == (8, 8)


def test_flawed_masks_are_skipped():
  texts = ('range(-1, 1)',)
  with pytest.raises(BadRecord, match='number (0|5|10|15): '):
    fetch(make(Flawed(), texts).train(0, 2))
  batches = fetch(make(Flawed(), texts, on_error='skip', workers=2).train(0, 5))
  again = fetch(make(Flawed(), texts, on_error='skip', devices=4).train(0, 5))
  assert equal(batches, again)
  assert sum(b['skipped'].sum() for b in batches) == 16  # 4 of 20, 4 epochs
  for batch in batches:
    number = np.rint((batch['image'] + 1) * 127.5)[:, 0, 0, 0]
    assert (number % 5 != 0).all()
    assert (batch['label'] == (number % 2)[:, None, None]).all()
  batch, _ = fetch(make(Flawed(), texts, on_error='skip').evaluate())
  assert (batch['label'][::5] == IGNORE).all()
  assert (batch['mask'] == (np.arange(16) % 5 != 0)).all()


# --- Setup ---


def test_the_task_has_to_fit_the_labels(small_config, monkeypatch):
  with pytest.raises(UserError) as error:
    Setup(small_config(data__name='digit_scenes'))
  assert str(error.value).startswith(
    "config.task.name = 'classification' learns a class for each image; the "
    "labels of config.data.name = 'digit_scenes' are masks"
  )

  class Pixels(tasks.Classification):
    masks = True

    def __init__(self, *, names, **fields):
      super().__init__(**fields)

  monkeypatch.setitem(tasks.TASKS, 'classification', Pixels)
  with pytest.raises(UserError, match='learns masks, .* are a class for each'):
    Setup(small_config())
  setup = Setup(small_config(data__name='digit_scenes:32', size='16'))
  label = setup.abstract_batch['label']
  assert label.shape == (32, 16, 16) and label.dtype == np.int32
  with pytest.raises(UserError, match=r"labels of split 'test' are a class"):
    setup.loader('test', data.open_split('digits', 'test'))


def test_mixtures_of_masks(tmp_path):
  write(tmp_path / 'a')
  write(tmp_path / 'b')
  one, two = (f'masks:{tmp_path / name}*0.5' for name in 'ab')
  source = data.open_split(f'{one}+{two}', 'train')
  assert source.masks and len(source) == 12 and matches(source)
  texts = ('decode', 'resize', 'range(-1, 1)')
  (batch,) = fetch(make(source, texts, channels=3).train(0, 1))
  assert batch['label'].shape == (16, 8, 8)
  for name in '012':
    folder = tmp_path / 'c' / 'train' / name
    folder.mkdir(parents=True)
    (folder / '1.png').write_bytes(png(numbers(0)))
  with pytest.raises(UserError, match='only one has masks'):
    data.open_split(f'{one}+folder:{tmp_path / "c"}*0.5', 'train')
