"""Data: digits, splits, the order, batches, augmentation, ops."""

import dataclasses
import os
import sys
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from vit_jax import data, sharding
from vit_jax.data import ops
from vit_jax.data.context import Context
from vit_jax.data.loader import Loader
from vit_jax.data.order import hash64, mix, records_at, shuffle
from vit_jax.data.sources import split_range
from vit_jax.errors import BadRecord, UserError


def digits(split='train', **kwargs):
  return data.open_split('digits', split, **kwargs)


# --- Digits and splits ---


def test_digits_are_sklearns():
  images, labels = load_digits(return_X_y=True)
  order = np.random.RandomState(0).permutation(1797)
  for split, part in (('train', order[:1437]), ('test', order[1437:])):
    source = digits(split)
    assert len(source) == len(part) == {'train': 1437, 'test': 360}[split]
    assert (source.size, source.channels) == ((8, 8), 1)
    assert source.classes == tuple('0123456789')
    for record, index in zip(source, part, strict=True):
      assert record['image'].shape == (8, 8, 1)
      assert record['image'].dtype == np.uint8
      assert record['label'] == labels[index]
      # 0..16 on 0..255: no two grey levels become one.
      levels = np.rint(record['image'] * (16 / 255)).ravel()
      assert (levels == images[index]).all()


def test_fingerprints():
  splits = ('train', 'test', 'train[:10]', 'train[1:11]')
  assert len({digits(s).fingerprint for s in splits}) == 4
  assert digits().fingerprint == digits('train[:100%]').fingerprint


@pytest.mark.parametrize(
  'text, expected',
  [
    ('train', range(200)),
    ('train[:]', range(200)),
    ('train[150:]', range(150, 200)),
    ('train[:90%]', range(180)),
    ('train[90%:]', range(180, 200)),
    ('train[-10:]', range(190, 200)),
    ('train[-10%:]', range(180, 200)),
    ('train[10:20]', range(10, 20)),
    ('train[:1000]', range(200)),
    ('my/split-1.0[5:6]', range(5, 6)),
  ],
)
def test_split_range(text, expected):
  assert split_range(text, 200) == expected


@given(st.integers(1, 10**6), st.integers(1, 99))
def test_complementary_splits(n, percent):
  def length(text):
    try:
      return len(split_range(text, n))
    except UserError:
      return 0

  assert length(f'a[:{percent}%]') + length(f'a[{percent}%:]') == n


@pytest.mark.parametrize(
  'split, says',
  [
    ('tset', "digits has no split 'tset', only 'train' and 'test'"),
    ('train[', "split 'train[': write 'train', 'train[1150:]'"),
    ('train[5]', "split 'train[5]': write"),
    ('train[::2]', "split 'train[::2]': write"),
    ('train[a:]', "split 'train[a:]': write"),
    ('train[5:5]', "split 'train[5:5]' selects none of the 1437 examples"),
    ('train[2000:]', 'selects none'),
  ],
)
def test_split_mistakes(split, says):
  with pytest.raises(UserError) as error:
    digits(split)
  assert says in str(error.value)


@pytest.mark.parametrize(
  'kwargs, says',
  [
    ({'examples': 1000}, "config.data.examples = 1000, but split 'train' has"),
    ({'classes': 7}, 'config.data.classes = 7, but the source has 10'),
  ],
)
def test_what_was_stated_is_checked(kwargs, says):
  digits(examples=1437, classes=10)
  with pytest.raises(UserError, match=says):
    digits(**kwargs)


def test_digits_takes_no_path():
  with pytest.raises(UserError, match="'digits:/x': write 'digits'"):
    data.open_split('digits:/x', 'train')


# --- The order ---


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_shuffle_is_a_permutation(n, key):
  assert (np.sort(shuffle(np.arange(n), n, key)) == np.arange(n)).all()


def test_shuffle_of_every_small_size():
  for n in [*range(1, 70), 255, 256, 257, 1000, 1024, 4097]:
    result = shuffle(np.arange(n), n, 7)
    assert (np.sort(result) == np.arange(n)).all(), n
    one_by_one = [
      int(shuffle(np.array([i]), n, 7)[0]) for i in range(min(n, 3))
    ]
    assert one_by_one == result[:3].tolist()


def test_shuffle_is_even():
  """Each place gets each record equally often (chi-squared over 800 keys)."""
  for n in (3, 20):
    counts = np.zeros((n, n))
    for key in range(800):
      counts[np.arange(n), shuffle(np.arange(n), n, hash64(3, key))] += 1
    expected = 800 / n
    chi = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom), n


def test_shuffle_of_three_gives_all_six_orders():
  keys = [hash64(0, epoch) for epoch in range(1200)]
  orders = [tuple(shuffle(np.arange(3), 3, key)) for key in keys]
  counts = np.array([orders.count(o) for o in set(orders)])
  assert len(counts) == 6
  assert ((counts - 200) ** 2 / 200).sum() < 25  # p = 1e-4, 5 degrees


def test_shuffled_neighbours_are_unrelated():
  places = shuffle(np.arange(10_000), 10_000, 5)
  assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
  assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05
  assert (np.diff(places) == 1).sum() < 10


def test_a_hundred_million_records_need_no_table():
  n = 100_000_000
  where = [0, 1, n - 1, n, 5 * n + 3]
  tracemalloc.start()
  epochs, records = records_at(np.array(where), n, 0)
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert most < 100_000  # bytes; a table would be 400 MB
  assert epochs.tolist() == [0, 0, 0, 1, 5]
  assert ((records >= 0) & (records < n)).all()
  sample = shuffle(np.arange(1000), n, 1)
  assert len(set(sample.tolist())) == 1000
  assert 0.4 < sample.mean() / n < 0.6


def test_an_order_kept_at_hand_is_the_one_computed(monkeypatch):
  positions = np.array([0, 5, 499, 500, 1234])
  kept = records_at(positions, 500, 3)
  monkeypatch.setattr('vit_jax.data.order._SMALL', 0)
  for a, b in zip(kept, records_at(positions, 500, 3), strict=True):
    assert (a == b).all()
  assert (records_at(positions, 500, 4)[1] != kept[1]).any()


def test_epochs_and_seeds_have_orders_of_their_own():
  n = 500
  orders = {
    tuple(records_at(epoch * n + np.arange(n), n, seed)[1].tolist())
    for seed in range(4)
    for epoch in range(4)
  }
  # In particular epoch 1 of seed 0 is not epoch 0 of seed 1.
  assert len(orders) == 16
  assert len({hash64(a, b) for a in range(50) for b in range(50)}) == 2500


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(9, 64), st.integers(0, 2**32 - 1))
def test_each_record_once_an_epoch(n, batch, seed):
  """However the stream is cut into batches, across the ends of epochs too."""
  steps = -(-3 * n // batch)
  cut = [
    records_at(t * batch + np.arange(batch), n, seed) for t in range(steps)
  ]
  epochs, records = (np.concatenate(x)[: 3 * n] for x in zip(*cut, strict=True))
  for epoch in range(3):
    here = records[epochs == epoch]
    assert (np.sort(here) == np.arange(n)).all()
  assert (np.diff(epochs) >= 0).all()


# --- Batches ---

OPS = ('flip', 'affine(15, 0.1, 0.1, 0.2)', 'range(-1, 1)')


def make(source=None, texts=OPS, devices=1, **kwargs):
  mesh = sharding.make_mesh(
    {'data': -1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:devices]
  )
  fields = {
    'source': source or digits('train[:50]'),
    'pipeline': ops.build('ops', texts),
    'size': (8, 8),
    'channels': 1,
    'seed': 0,
    'batch_size': 16,
    'sharding': sharding.batch_sharding(mesh),
    'workers': 0,
  }
  return Loader(**(fields | kwargs))


def fetch(batches):
  return [{k: np.asarray(v) for k, v in batch.items()} for batch in batches]


def equal(a, b):
  return len(a) == len(b) and all(
    (x[k] == y[k]).all() and x[k].dtype == y[k].dtype
    for x, y in zip(a, b, strict=True)
    for k in x.keys() | y.keys()
  )


@pytest.fixture(scope='module')
def reference():
  """Ten batches of 16 from 50 records: three epochs, cut inside of batches."""
  return fetch(make().train(0, 10))


def test_batches_are_what_they_say(reference):
  source = digits('train[:50]')
  for t, batch in enumerate(reference):
    assert batch['image'].shape == (16, 8, 8, 1)
    assert batch['image'].dtype == np.float32
    assert -1 <= batch['image'].min() < batch['image'].max() <= 1 + 1e-6
    assert (batch['mask'] == 1).all()
    _, records = records_at(t * 16 + np.arange(16), 50, 0)
    assert batch['label'].tolist() == [source[int(i)]['label'] for i in records]


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('devices', [1, 2, 8])
def test_a_batch_is_a_function_of_seed_and_step(reference, workers, devices):
  loader = make(workers=workers, devices=devices)
  for start, stop in ((0, 10), (3, 5), (9, 10), (4, 4)):
    batches = list(loader.train(start, stop))
    assert equal(fetch(batches), reference[start:stop])
  batch = loader.train_batch(7)
  assert equal(fetch([batch]), reference[7:8])
  assert len(batch['image'].addressable_shards) == devices
  assert batch['image'].addressable_shards[0].data.shape[0] == 16 // devices


class Local(Loader):
  """Batches of the rows of one process, as they are."""

  def _place(self, local, rows):
    return local | {'rows': rows}


def as_process(monkeypatch, number, count):
  """Of the eight devices, only this process's are addressable."""

  def mine(sharding, shape):
    ids = range(number * 8 // count, (number + 1) * 8 // count)
    where = sharding.devices_indices_map(shape)
    return {d: index for d, index in where.items() if d.id in ids}

  name = 'addressable_devices_indices_map'
  monkeypatch.setattr(jax.sharding.NamedSharding, name, mine)


@pytest.mark.parametrize('workers', [0, 3])
@pytest.mark.parametrize('count', [1, 2, 4])
def test_processes_load_their_rows_of_the_same_batches(
  reference, monkeypatch, count, workers
):
  """Each its own rows, from the middle too; together they are the batch."""
  made = make(devices=8, workers=workers)
  fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(Loader)}
  streams = []
  for number in range(count):
    as_process(monkeypatch, number, count)
    streams.append(list(Local(**fields).train(4, 9)))
  for wanted, parts in zip(
    reference[4:9], zip(*streams, strict=True), strict=True
  ):
    rows = np.concatenate([part['rows'] for part in parts])
    assert rows.tolist() == list(range(16))
    assert all(len(part['image']) == 16 // count for part in parts)
    for name in ('image', 'label', 'mask'):
      whole = np.concatenate([part[name] for part in parts])
      assert (whole == wanted[name]).all()
  first = reference[4]['image'][: 16 // count]
  assert count == 1 or (streams[1][0]['image'] != first).any()


def test_step_ten_million_is_as_near_as_step_ten():
  loader, asked = make(), []

  class Counting(Broken):
    def __getitem__(self, index):
      asked.append(index)
      return super().__getitem__(0)

  far = make(Counting(None)).train_batch(10_000_000)
  assert len(asked) == 16 and far['image'].shape == (16, 8, 8, 1)
  position = 10_000_000 * 16
  epochs, records = records_at(position + np.arange(16), 50, 0)
  assert epochs[0] == position // 50
  labels = [loader.source[int(i)]['label'] for i in records]
  assert np.asarray(loader.train_batch(10_000_000)['label']).tolist() == labels


def test_rows_of_a_mesh_with_all_axes(reference):
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  loader = make(sharding=sharding.batch_sharding(mesh), workers=2)
  assert equal(fetch(loader.train(0, 10)), reference)


def test_other_seeds_steps_and_data_give_other_batches(reference):
  assert not equal(fetch(make(seed=1).train(0, 10)), reference)
  assert not equal(fetch(make().train(1, 11)), reference)
  assert not equal(fetch(make(digits('train[1:51]')).train(0, 10)), reference)
  assert not equal(fetch(make(texts=OPS[1:]).train(0, 10)), reference)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('n', [1, 15, 16, 17, 50])
def test_evaluation_sees_every_record_once(n, workers):
  source = digits(f'train[:{n}]')
  loader = make(source, ('range(-1, 1)',), devices=8, workers=workers)
  batches = fetch(loader.evaluate())
  assert len(batches) == -(-n // 16)
  whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  assert len(whole['mask']) % 16 == 0
  assert (whole['mask'] == (np.arange(len(whole['mask'])) < n)).all()
  assert whole['label'][:n].tolist() == [record['label'] for record in source]
  images = np.stack([record['image'] for record in source]) / 127.5 - 1
  np.testing.assert_allclose(whole['image'][:n], images, atol=1e-6)
  assert not whole['image'][n:].any()


def test_augmentation_is_keyed_by_seed_epoch_and_record():
  def draw(epoch, record, seed=0):
    return make(seed=seed).context(epoch, record).rng.random(4).tolist()

  assert draw(2, 5) == draw(2, 5)
  draws = {
    tuple(draw(epoch, record, seed))
    for epoch in range(4)
    for record in range(4)
    for seed in range(4)
  }
  assert len(draws) == 64


def test_augmentation_does_not_depend_on_the_place_in_the_batch():
  found = {}
  for size in (16, 7):
    loader = make(batch_size=size)
    for t, batch in enumerate(fetch(loader.train(0, 150 // size))):
      where = records_at(t * size + np.arange(size), 50, 0)
      for i, key in enumerate(zip(*map(np.ndarray.tolist, where), strict=True)):
        image = batch['image'][i]
        assert (found.setdefault(key, image) == image).all()
  same = [(found[0, r] == found[1, r]).all() for r in range(50)]
  assert sum(same) == 0  # another epoch, another picture


class Broken:
  """Three classes; record 20 raises."""

  classes = ('a', 'b', 'c')
  size = (8, 8)
  channels = 1
  fingerprint = ''

  def __init__(self, error):
    self.error = error

  def __len__(self):
    return 40

  def __getitem__(self, index):
    if index == 20:
      raise self.error
    image = np.zeros((8, 8, 1), np.uint8)
    return {'image': image, 'label': index % 3, 'key': str(index)}


def threads():
  return [t.name for t in threading.enumerate() if t.name.startswith('loader')]


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('error', [UserError('20.png'), ValueError('x')])
def test_an_exception_reaches_the_consumer(workers, error):
  loader = make(Broken(error), workers=workers)
  for batches in (loader.train(0, 1000), loader.evaluate()):
    with pytest.raises(type(error)) as caught:
      for _ in batches:
        pass
    assert caught.value is error
    assert not threads()


def test_a_loop_that_stops_early_leaves_no_thread():
  batches = make(workers=3).train(0, 10**6)
  next(batches)
  assert threads()
  batches.close()
  assert not threads()


@pytest.mark.parametrize('workers', [1, 3])
def test_a_loop_that_stops_early_waits_for_no_whole_batch(workers):
  read, begun, gate = [], threading.Event(), threading.Event()

  class Gated(Broken):
    def __getitem__(self, index):
      read.append(index)
      if len(read) > 320:  # of the third batch, which the first next asks for
        begun.set()
        assert gate.wait(60)
      return super().__getitem__(0)

  batches = make(Gated(None), workers=workers, batch_size=160).train(0, 1000)
  next(batches)
  assert begun.wait(60)
  closing = threading.Thread(target=batches.close)
  closing.start()
  time.sleep(0.2)
  gate.set()
  closing.join()
  # What was begun, 16 examples a worker; with all of that batch it were 480.
  assert 320 < len(read) <= 320 + 16 * workers


@pytest.mark.skipif(sys.platform != 'linux', reason='niceness of threads')
def test_on_a_cpu_the_step_has_the_cores_first():
  batches = make(workers=2).train(0, 10**6)
  next(batches)
  niceness = {
    t.name.partition('_')[0]: os.getpriority(os.PRIO_PROCESS, t.native_id)
    for t in threading.enumerate()
  }
  batches.close()
  assert niceness['loader'] == niceness['loader-batch'] == 19
  assert niceness['MainThread'] == os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_loading_ahead_is_bounded():
  asked = []

  class Counting(Broken):
    def __getitem__(self, index):
      asked.append(index)
      return super().__getitem__(0)

  batches = make(Counting(None), workers=2, batch_size=8).train(0, 1000)
  next(batches)
  time.sleep(0.2)
  assert len(asked) <= 8 * (1 + 2 + 1)
  batches.close()


# --- Ops ---


def context(size=(8, 8), channels=1, seed=0):
  return ops.Context(size, channels, (seed, 0), 'a.png')


def picture(h=8, w=8, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (h, w, channels), np.uint8)


def apply(texts, image, **kwargs):
  texts = (texts,) if isinstance(texts, str) else texts
  return ops.build('ops', texts)(image, context(**kwargs))


@pytest.mark.parametrize(
  'text, says',
  [
    ('flop', "ops: op = 'flop' is unknown. Did you mean 'flip'? Choices: dec"),
    ('', "'' is not an op. Write"),
    ('affine(', "'affine(' is not an op. Write 'name' or 'name(10, 0.1)'"),
    ('affine(x)', "'affine(x)' is not an op"),
    ('a.b(1)', "'a.b(1)' is not an op"),
    ('flip flip', "'flip flip' is not an op"),
    ('__import__("os")', "op = '__import__' is unknown"),
    ('flip(1)', "'flip(1)': too many positional arguments. Arguments: none"),
    ('affine(angle=3)', "unexpected keyword argument 'angle'. Arguments: rot"),
    ('affine(1, rotate=2)', "multiple values for argument 'rotate'"),
    ('affine("10")', "rotate = '10': expected a number"),
    ('affine(True)', 'rotate = True: expected a number'),
    ('affine(border="zeros")', "Did you mean 'zero'?"),
    ('resize("cubic")', "kernel = 'cubic': expected one of 'bilinear'"),
    ('elastic(0.1, 2.5)', 'grid = 2.5: expected an int'),
    ('range(0, 0)', 'two numbers are needed, the first one smaller'),
    ('range(1, -1)', "'range(1, -1)' makes [1.0] of black and [-1.0] of white"),
    ('range(0, 1e400)', 'high = inf is not finite'),
    ('normalize((0.5,), (0,))', 'two numbers are needed'),
  ],
)
def test_op_mistakes(text, says):
  with pytest.raises(UserError) as error:
    ops.build('config.data.train.ops', ('flip', text))
  assert str(error.value).startswith('config.data.train.ops')
  assert says in str(error.value)


def test_flip():
  image = picture()
  seen = [apply('flip', image, seed=seed) for seed in range(200)]
  flipped = [(x == image[:, ::-1]).all() for x in seen]
  assert all(
    (x == image).all() for x, f in zip(seen, flipped, strict=True) if not f
  )
  assert 70 < sum(flipped) < 130


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'text',
  ['affine(0, 0, 0, 0)', 'elastic(0)', 'resize', 'fit', 'decode']
  + ['affine(0, 0, 0, 0, "zero")', 'affine(rotate=0,scale=0,shift=0,shear=0)'],
)
def test_identities(text, channels):
  image = picture(8, 9, channels)
  result = apply(text, image, size=(8, 9), channels=channels)
  assert result.dtype == np.uint8 and (result == image).all()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'text', ['affine', 'elastic', 'affine(5.0)', 'elastic(1)']
)
def test_distortions(text, channels):
  """They change the picture, by the generator alone, and not its kind."""
  image = picture(9, 12, channels)
  kept = image.copy()
  first, again, other = (
    apply(('flip', text), image, channels=channels, seed=s) for s in (1, 1, 2)
  )
  assert first.shape == image.shape and first.dtype == np.uint8
  assert (first == again).all() and (first != other).any()
  assert (first != image).any() and (image == kept).all()


def test_affine_of_a_shift():
  """A shift only moves the centre of mass, by at most the fraction asked."""
  image = np.zeros((21, 21, 1), np.uint8)
  image[9:12, 9:12] = 255
  centres = []
  for seed in range(50):
    moved = apply('affine(0, 0, 0.2, 0)', image, seed=seed)[..., 0] / 255.0
    assert moved.sum() == pytest.approx(9, abs=0.5)
    y, x = np.mgrid[:21, :21]
    centres.append([(moved * y).sum(), (moved * x).sum()] / moved.sum() - 10)
  assert 3 < np.abs(centres).max() <= 0.2 * 21 + 0.1


def test_affine_of_a_rotation():
  image = np.zeros((21, 21, 1), np.uint8)
  image[10, 2:19] = 255
  turned = apply('affine(90, 0, 0, 0, "zero")', image, seed=3)[..., 0]
  assert turned[10, 10] > 200  # about the centre
  assert 0.6 < turned.sum() / image.sum() < 1.4


@pytest.mark.parametrize('border, corner', [('edge', 255), ('zero', 0)])
def test_affine_border(border, corner):
  image = np.full((8, 8, 1), 255, np.uint8)
  results = [
    apply(f'affine(0, 0, 0.9, 0, {border!r})', image, seed=s) for s in range(9)
  ]
  assert min(x.min() for x in results) == corner


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(8, 8), (12, 30), (40, 7)])
@pytest.mark.parametrize(
  'kernel, resample',
  [
    ('bilinear', Image.Resampling.BILINEAR),
    ('bicubic', Image.Resampling.BICUBIC),
    ('area', Image.Resampling.BOX),
  ],
)
def test_resize_and_fit_are_pillows(channels, size, kernel, resample):
  image = picture(20, 31, channels)
  pillow = Image.fromarray(image.squeeze())
  wanted = np.asarray(pillow.resize(size[::-1], resample))
  result = apply(f'resize({kernel!r})', image, size=size, channels=channels)
  assert (result.squeeze() == wanted).all()
  h, w = (
    (20, round(20 * size[1] / size[0]))
    if 20 / size[0] < 31 / size[1]
    else (round(31 * size[0] / size[1]), 31)
  )
  top, left = (20 - h) // 2, (31 - w) // 2
  crop = pillow.crop((left, top, left + w, top + h))
  wanted = np.asarray(crop.resize(size[::-1], resample))
  result = apply(f'fit({kernel!r})', image, size=size, channels=channels)
  assert result.shape == (*size, channels)
  assert (result.squeeze() == wanted).all()


def test_fit_of_extreme_shapes():
  for h, w in ((1, 1), (1, 100), (100, 1)):
    assert apply('fit', picture(h, w), size=(8, 8)).shape == (8, 8, 1)


def test_range():
  image = np.array([[[0], [51], [255]]], np.uint8)
  for text, expected in (
    ('range', [-1, -0.6, 1]),
    ('range(0, 1)', [0, 0.2, 1]),
    ('range(low=-2, high=0)', [-2, -1.6, 0]),
  ):
    result = apply(text, image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(
  'texts, image, says',
  [
    ((), picture(), 'the ops give uint8'),
    (('flip',), picture(), "End with 'range(-1, 1)'"),
    (('range',), picture(9, 8), '(9, 8, 1) for a.png'),
    (('range',), picture(9, 8), "takes (8, 8, 1). Add 'fit' or 'resize'"),
    (('range',), picture(8, 8, 3), '(8, 8, 3) for a.png'),
    (('fit', 'range'), b'not decoded', "begins with 'decode'"),
    (('decode', 'range'), b'not an image', 'a.png: not an image'),
  ],
)
def test_what_the_ops_give_is_checked(texts, image, says):
  pipeline = ops.build('config.data.test.ops', texts)
  with pytest.raises(UserError) as error:
    ops.check('config.data.test.ops', pipeline, image, context())
  assert says in str(error.value)


def test_ops_that_fit_are_accepted():
  pipeline = ops.build('ops', ('fit', 'flip', 'range'))
  ops.check('ops', pipeline, picture(20, 31), context())
  result = pipeline(picture(20, 31), context())
  assert result.flags.c_contiguous


def test_setup_checks_the_ops_before_the_run(small_config):
  from vit_jax.setup import Setup

  setup = Setup(small_config(data__test__ops="('flip',)"))
  with pytest.raises(UserError, match=r'config\.data\.test\.ops: the ops give'):
    setup.loader('test', setup.source('test'))


def test_the_generator_of_an_example_has_its_key():
  seed = (2**64 - 3, 12345)
  key = np.array(seed, np.uint64)
  wanted = np.random.Generator(np.random.Philox(key=key)).random(50)
  assert (Context((1, 1), 1, seed).rng.random(50) == wanted).all()
  other = np.random.Generator(np.random.Philox(key=key[::-1])).random(50)
  assert (other != wanted).any()  # control


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_hashes_are_those_of_mix(numbers):
  state = np.zeros(1, np.uint64)
  for number in numbers:
    state = mix(state ^ np.array([number % 2**64], np.uint64))
  assert hash64(*numbers) == state[0]


@pytest.mark.parametrize(
  'texts, says',
  [
    (
      ('range(-1, 1)', 'randaugment(1, 10)'),
      "'randaugment(1, 10)' after 'range(-1, 1)', which leaves floats",
    ),
    (('range(-1, 1)', 'range(-1, 1)'), "'range(-1, 1)' after 'range(-1, 1)'"),
    (('normalize', 'affine(1)'), "'affine(1)' after 'normalize'"),
  ],
)
def test_bytes_come_before_floats(texts, says):
  with pytest.raises(UserError) as caught:
    ops.build('ops', texts)
  assert says in str(caught.value)
  ops.build('ops', (texts[1], texts[0]) if texts[0] != texts[1] else texts[:1])
  ops.build('ops', ('range(-1, 1)', 'flip', 'random_erasing'))


def test_a_line_is_not_resized_to_a_plane():
  line = np.zeros((1, 60000, 1), np.uint8)
  with pytest.raises(BadRecord, match='1x60000 resized to 224x13440000'):
    ops.build('ops', ('resize_small(224)',))(line, Context((224, 224), 1))
