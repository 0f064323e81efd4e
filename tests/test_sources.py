"""Tar shards, mixtures, URLs, repeats, and records that cannot be read."""

import io
import json
import tarfile
import time

import fsspec
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli, data
from vit_jax.data import ops
from vit_jax.data.mixture import parse_mixture
from vit_jax.data.order import _BLOCK, mixture_at, records_at, shares
from vit_jax.data.sources import key_of
from vit_jax.data.tar_index import expand
from vit_jax.errors import BadRecord, UserError
from vit_jax.setup import Setup
from vit_jax.train import Log
from vit_jax.writers import Terminal, Writers, read_metrics

from .conftest import red_and_blue
from .test_data import equal, fetch, make


def png(value, h=9, w=8):
  """A picture of one colour, which tells the record apart."""
  buffer = io.BytesIO()
  pixels = np.full((h, w, 3), value, np.uint8)
  Image.fromarray(pixels).save(buffer, 'png')
  return buffer.getvalue()


def shard(path, records, extension='cls'):
  """A tar of [(key, bytes of a picture, label)]."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as tar:
    for key, image, label in records:
      text = json.dumps({'label': label}) if extension == 'json' else str(label)
      for name, content in (
        (f'{key}.{extension}', text.encode()),
        (f'{key}.seg.png', b'of another kind'),
        (f'{key}.png', image),
      ):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
  with fsspec.open(str(path), 'wb') as file:
    file.write(buffer.getvalue())
  return buffer.getvalue()


def numbered(start, stop, labels=3):
  return [(f'd/{i:04}', png(i), i % labels) for i in range(start, stop)]


@pytest.fixture
def shards(tmp_path, monkeypatch):
  """Two shards to train on and one to test on, and a cache of their own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for i in range(2):
    shard(tmp_path / f'pets-train-{i:03}.tar', numbered(20 * i, 20 * i + 20))
  shard(tmp_path / 'pets-val-000.tar', numbered(40, 50))
  return tmp_path


def values(source):
  """The colours of the records, in order; checks the labels."""
  found = []
  for i in range(len(source)):
    record = source[i]
    value = np.asarray(Image.open(io.BytesIO(record['image'])))[0, 0, 0]
    assert record['label'] == value % 3 and f'{value:04}' in record['key']
    assert source.key(i) == record['key']
    found.append(int(value))
  return found


def test_expand():
  assert expand('a-{08..10}.tar') == ['a-08.tar', 'a-09.tar', 'a-10.tar']
  assert expand('{0..1}-{5..6}') == ['0-5', '0-6', '1-5', '1-6']
  assert expand('a-*.tar') == ['a-*.tar']


@pytest.mark.parametrize(
  'pattern', ['pets-{split}-*.tar', 'pets-{split}-{000..001}.tar']
)
def test_tar_shards(shards, pattern):
  name = f'tar:{shards}/{pattern}'
  train, test = (data.open_split(name, s) for s in ('train', 'test'))
  assert sorted(values(train)) == list(range(40)) != values(train)
  assert sorted(values(test)) == list(range(40, 50))
  assert train.classes == test.classes == ('0', '1', '2')
  assert (train.size, train.channels) == ((8, 8), 3)
  part = data.open_split(name, 'train[:25%]')
  assert values(part) == values(train)[:10]
  assert len({s.fingerprint for s in (train, test, part)}) == 3


@pytest.mark.parametrize(
  'name, split',
  [
    ('tar:{}/pets-{{split}}-*.tar', 'train'),
    ('folder:{}/pictures', 'train'),
    ('folder:{}/pictures/train', 'all'),
    ('digits', 'test'),
    ('digit_scenes', 'test[:5]'),
    ('tar:{0}/pets-train-000.tar*1+tar:{0}/pets-val-*.tar*3', 'train'),
  ],
)
def test_keys_are_known_without_reading(shards, name, split):
  red_and_blue(shards / 'pictures', 3, 8, 8)
  source = data.open_split(name.format(shards), split)
  keys = [key_of(source, i) for i in range(len(source))]
  assert keys == [source[i]['key'] for i in range(len(source))]
  assert len(set(keys)) == len(keys) > 4

  class Plain:  # a source of somebody else
    classes, size, channels, fingerprint = ('a', 'b'), (8, 8), 3, ''

    def __len__(self):
      return len(source)

    def __getitem__(self, index):
      return source[index]

  assert [key_of(Plain(), i) for i in range(len(source))] == keys


def test_a_hold_out_of_shards(shards):
  name = f'tar:{shards}/pets-*-*.tar'
  train, test = (data.open_split(name, s) for s in ('train', 'test'))
  assert sorted(values(train) + values(test)) == list(range(50))
  assert 3 <= len(test) <= 20
  more = data.open_split(name, 'test', holdout=0.5)
  assert set(values(test)) < set(values(more))
  with pytest.raises(UserError, match="write '{split}' where"):
    data.open_split(name, 'val')


def test_a_shard_is_scanned_once(shards, monkeypatch):
  name = f'tar:{shards}/pets-{{split}}-*.tar'
  first = data.open_split(name, 'train')

  def refuse(*args, **kwargs):
    raise AssertionError('scanned again')

  monkeypatch.setattr('vit_jax.data.tar_index.scan', refuse)
  again = data.open_split(name, 'train')
  assert again.fingerprint == first.fingerprint
  assert values(again) == values(first)
  with pytest.raises(AssertionError, match='again'):  # a shard that changed
    shard(shards / 'pets-train-000.tar', numbered(0, 19))
    data.open_split(name, 'train')
  monkeypatch.undo()
  kept = data.open_split(name, 'train', index_dir=str(shards / 'elsewhere'))
  assert len(list((shards / 'elsewhere').iterdir())) == 2
  assert kept.fingerprint != first.fingerprint


@pytest.mark.parametrize('extension', ['cls', 'json'])
def test_labels_by_name(shards, extension):
  records = [(f'{i}', png(i), ('dog', 'cat')[i % 2]) for i in range(6)]
  shard(shards / 'named-0.tar', records, extension)
  source = data.open_split(f'tar:{shards}/named-*.tar', 'train', holdout=0.01)
  assert source.classes == ('cat', 'dog')
  for i in range(len(source)):
    record = source[i]
    number = int(record['key'].rpartition(' ')[2])
    assert source.classes[record['label']] == ('dog', 'cat')[number % 2]


def test_names_of_numbered_classes(shards):
  (shards / 'classes.txt').write_text('ant\nbee\ncow\nunused\n')
  name = f'tar:{shards}/pets-{{split}}-*.tar'
  source = data.open_split(name, 'train')
  assert source.classes == ('ant', 'bee', 'cow', 'unused')
  assert sorted(values(source)) == list(range(40))
  (shards / 'classes.txt').write_text('ant\nbee\n')
  with pytest.raises(UserError, match="label '2' is none of the 2 classes"):
    data.open_split(name, 'train')


def test_shards_at_a_url(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  shard('memory://bucket/a-train-0.tar', numbered(0, 12))
  name = 'tar:memory://bucket/a-{split}-*.tar'
  assert sorted(values(data.open_split(name, 'train'))) == list(range(12))
  with pytest.raises(UserError, match="no shards of the split 'test'"):
    data.open_split(name, 'test')


def test_a_folder_at_a_url():
  fs = fsspec.filesystem('memory')
  for split in ('train', 'test'):
    for i in range(6):
      fs.pipe(f'/pics/{split}/{"ab"[i % 2]}/{i}.png', png(i))
  source = data.open_split('folder:memory://pics', 'train')
  assert source.classes == ('a', 'b') and len(source) == 6
  assert sorted(int(source[i]['image'][0, 0, 0]) for i in range(6)) == [
    *range(6)
  ]
  same = data.open_split('folder:memory://pics', 'train', cache_mb=0)
  assert same[2]['image'] == png(int(source[2]['image'][0, 0, 0]))


@pytest.mark.parametrize(
  'name, says',
  [
    ('tar:{}/none-*.tar', "none-*.tar': no shards."),
    ('tar:gopher://x/y.tar', "'tar:gopher://x/y.tar' cannot be opened: "),
    ('folder:gopher://x/y', 'gopher://x/y cannot be opened'),
    ('tar:{}/empty.tar', 'empty.tar: no pictures (.png, .jpg'),
    ('tar:{}/lonely.tar', 'lonely.tar: d/1 has no .cls or .json file'),
    ('tar:{}/json.tar', "json.tar: 1.json gives no label (KeyError('label'))"),
    ('tar:{}/text.tar', 'text.tar is damaged after 0 records ('),
  ],
)
def test_shards_that_will_not_do(shards, name, says):
  shard(shards / 'empty.tar', [])
  (shards / 'text.tar').write_bytes(b'not a tar at all' * 100)
  for file, member in (
    ('lonely', 'd/1.png'),
    ('json', '1.json'),
  ):
    with tarfile.open(shards / f'{file}.tar', 'w') as tar:
      info = tarfile.TarInfo(member)
      info.size = 2
      tar.addfile(info, io.BytesIO(b'{}'))
  with pytest.raises(UserError) as error:
    source = data.open_split(name.replace('{}', str(shards)), 'train')
    raise AssertionError(len(source))
  assert says in str(error.value)


def test_a_shard_that_is_cut_short(shards):
  path = shards / 'pets-train-001.tar'
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  name = f'tar:{shards}/pets-{{split}}-*.tar'
  with pytest.raises(UserError, match='001.tar is damaged after .* records'):
    data.open_split(name, 'train')
  source = data.open_split(name, 'train', on_error='skip')
  assert 25 < len(source) < 35
  index = min(range(len(source)), key=lambda i: source[i]['label'])
  assert source[index]['label'] == 0


def test_a_label_that_no_class_has(shards):
  """One wrong number is not a hundred thousand million classes."""
  records = [*numbered(0, 9), ('d/odd', png(1), 99999999999)]
  shard(shards / 'odd.tar', records)
  with pytest.raises(UserError, match='label 99999999999 among 4 different'):
    data.open_split(f'tar:{shards}/odd.tar', 'train')
  shard(shards / 'one.tar', numbered(0, 9, labels=1))
  with pytest.raises(UserError, match='at least two classes'):
    data.open_split(f'tar:{shards}/one.tar', 'train')


@pytest.mark.parametrize(
  'pattern, words',
  [
    ('pets-train-{000..003}.tar', '2 of 4 shards are missing: .*002.tar'),
    ('pets-train-{1..0}.tar', 'is an empty range'),
    ('', "a folder; write '.*/[*].tar'"),
  ],
)
def test_patterns_that_are_not_there(shards, pattern, words):
  with pytest.raises(UserError, match=words):
    data.open_split(f'tar:{shards}/{pattern}', 'train')


def test_pictures_with_another_dot_are_told_of(shards, caplog):
  shard(shards / 'dots.tar', numbered(0, 9))
  with caplog.at_level('WARNING'):
    data.open_split(f'tar:{shards}/dots.tar', 'train')
  assert '9 pictures such as 0000.seg.png are left out' in caplog.text


def test_an_empty_label(shards):
  shard(shards / 'empty.tar', [('a', png(1), ''), ('b', png(2), 1)])
  with pytest.raises(UserError, match='it is empty'):
    data.open_split(f'tar:{shards}/empty.tar', 'train')


def test_fingerprints_change_with_the_bytes(shards):
  name = f'tar:{shards}/pets-{{split}}-*.tar'
  before = data.open_split(name, 'train').fingerprint
  records = numbered(0, 20)
  records[3] = ('d/0003', png(77), 0)
  shard(shards / 'pets-train-000.tar', records)
  assert data.open_split(name, 'train').fingerprint != before


def test_a_replacement_is_of_the_same_source():
  """What cannot be read does not shift the shares of a mixture."""
  from vit_jax.data import loader as loader_lib

  class Half:
    parts = ((100, 0.5), (100, 0.5))
    classes, size, channels = ('a', 'b'), (2, 2), 1
    fingerprint = ''

    def __len__(self):
      return 200

    def __getitem__(self, index):
      if index < 100 and index % 2:
        raise BadRecord('broken')
      pixels = np.full((2, 2, 1), index, np.uint8)
      return {'image': pixels, 'label': 0, 'key': str(index)}

  mesh = jax.make_mesh((8,), ('data',))
  loader = loader_lib.Loader(
    source=Half(),
    pipeline=ops.build('ops', ('range(0, 255)',)),
    size=(2, 2),
    channels=1,
    seed=0,
    batch_size=64,
    sharding=jax.sharding.NamedSharding(mesh, jax.P('data')),
    on_error='skip',
  )
  for step in range(20):
    batch = loader.train_batch(step)
    values = np.asarray(batch['image'])[:, 0, 0, 0]
    skipped = np.asarray(batch['skipped']) > 0
    assert skipped.any() and (values[skipped] < 100).all()


# --- Mixtures ---


@pytest.mark.parametrize(
  'name, parts',
  [
    ('folder:/a', [('folder:/a', 1)]),
    ('folder:/a+b', [('folder:/a+b', 1)]),
    ('tar:/a-*0.tar', [('tar:/a-*0.tar', 1)]),
    ('a*0.7+b*0.3', [('a', 0.7), ('b', 0.3)]),
    ('a * 2 + tar:/x-*.tar*1', [('a', 2), ('tar:/x-*.tar', 1)]),
    ('folder:/a+b*.5+c*.5', [('folder:/a+b', 0.5), ('c', 0.5)]),
    ('a*1e-1+b*70%', [('a', 0.1), ('b', 0.7)]),
    ('tar:/pets-*-0.tar', [('tar:/pets-*-0.tar', 1)]),
  ],
)
def test_parse_mixture(name, parts):
  assert parse_mixture(name) == parts


@pytest.mark.parametrize(
  'name',
  [
    'a*0+b*1',
    'a*1+b',
    'a*0.5+b*0.5+',
    'folder:a*-1+folder:b*1',
    'folder:a+folder:b',
    'folder:a, folder:b',
    'a*1e-6+b*1',
    'a*1e999+b*1',
  ],
)
def test_mixtures_without_weights(name):
  with pytest.raises(UserError, match='a mixture gives each source a weight'):
    data.open_split(name, 'train')


def test_a_mixture_of_one_is_that_source():
  positions = np.arange(500)
  for a, b in zip(
    mixture_at(positions, ((50, 0.3),), 7),
    records_at(positions, 50, 7),
    strict=True,
  ):
    assert (a == b).all()


def test_shares_are_exact():
  weights = (0.7, 0.2, 0.1)
  counts = shares(weights)
  assert counts.sum() == _BLOCK
  assert (abs(counts - np.array(weights) * _BLOCK) < 1).all()
  parts = tuple((n, w) for n, w in zip((9000, 900, 700), weights, strict=True))
  _, records = mixture_at(np.arange(3 * _BLOCK), parts, 0)
  source = np.searchsorted([9000, 9900], records, side='right')
  for block in range(3):
    here = source[block * _BLOCK : (block + 1) * _BLOCK]
    assert (np.bincount(here) == counts).all()
  near = np.bincount(source[:1000]) / 1000  # in a short run, about
  assert (abs(near - weights) < 0.06).all()


def test_each_source_of_a_mixture_has_its_own_epochs():
  """Read in any pieces, across a block's end; each record once an epoch."""
  parts, stop = ((3000, 0.4), (7000, 0.6)), _BLOCK + 500
  start = _BLOCK - 500
  whole = mixture_at(np.arange(stop), parts, 3)
  pieces = [
    mixture_at(np.arange(t, t + 7), parts, 3) for t in (start, 3, stop - 7)
  ]
  for t, piece in zip((start, 3, stop - 7), pieces, strict=True):
    for a, b in zip(whole, piece, strict=True):
      assert (a[t : t + 7] == b).all()
  epochs, records = whole
  for low, high in ((0, 3000), (3000, 10_000)):
    mine = (records >= low) & (records < high)
    assert (np.diff(epochs[mine]) >= 0).all()
    for epoch in (0, 1, 4):
      seen = records[mine & (epochs == epoch)]
      assert sorted(seen) == list(range(low, high))
  other = mixture_at(np.arange(stop), parts, 4)[1]
  assert (other != records).mean() > 0.9


def test_mixed_batches(tmp_path):
  for name, value in (('a', 10), ('b', 200)):
    for kind in ('cat', 'dog'):
      for i in range(20):
        path = tmp_path / name / 'train' / kind / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value, 8, 8))
  name = f'folder:{tmp_path}/a*0.75+folder:{tmp_path}/b*0.25'
  source = data.open_split(name, 'train')
  assert source.parts == (
    (len(source._sources[0]), 0.75),
    (len(source._sources[1]), 0.25),
  )
  loader = make(source, ('range(0, 255)',), channels=3)
  reference = fetch(loader.train(0, 40))
  colours = np.concatenate([batch['image'][:, 0, 0, 0] for batch in reference])
  assert set(colours) == {10, 200}
  assert abs((colours == 10).mean() - 0.75) < 0.05
  for workers, devices in ((3, 4), (0, 8)):
    again = make(
      source, ('range(0, 255)',), devices, channels=3, workers=workers
    )
    assert equal(fetch(again.train(5, 9)), reference[5:9])
  seen = fetch(loader.evaluate())
  assert (
    sum(b['mask'].sum() for b in seen)
    == len(source)
    == sum(n for n, _ in source.parts)
  )
  other = data.open_split(
    f'folder:{tmp_path}/a*1+folder:{tmp_path}/b*3', 'train'
  )
  assert other.fingerprint != source.fingerprint


def test_a_mixture_needs_the_same_classes(tmp_path):
  for name, kinds in (('a', 'xy'), ('b', 'yz')):
    for kind in kinds:
      path = tmp_path / name / 'train' / kind / '1.png'
      path.parent.mkdir(parents=True)
      path.write_bytes(png(1))
  with pytest.raises(UserError, match=r'have different classes \(x, z\)'):
    data.open_split(
      f'folder:{tmp_path}/a*1+folder:{tmp_path}/b*1', 'train', holdout=0.001
    )
  with pytest.raises(UserError, match='has digits twice'):
    data.open_split('digits*1+digits*2', 'train')


# --- Repeats ---


def test_repeated_augmentation():
  texts = ('affine(15, 0.1, 0.1, 0.2)', 'range(-1, 1)')
  batch = fetch([make(texts=texts, repeats=3).train_batch(2)])[0]
  _, records = records_at(np.arange(32, 48) // 3, 50, 0)
  source = data.open_split('digits', 'train[:50]')
  assert batch['label'].tolist() == [source[int(r)]['label'] for r in records]
  triples = {r: np.flatnonzero(records == r) for r in records[1:-1]}
  assert max(map(len, triples.values())) == 3
  for rows in triples.values():
    images = batch['image'][rows]
    assert len({image.tobytes() for image in images}) == len(rows)
  plain = fetch([make(texts=('range(-1, 1)',), repeats=3).train_batch(2)])[0]
  for rows in triples.values():  # control: without it they are the same
    assert len({image.tobytes() for image in plain['image'][rows]}) == 1


# --- Records that cannot be read ---


class Flawed:
  """Forty records, of which some cannot be read."""

  classes, size, channels, fingerprint = ('a', 'b', 'c'), (8, 8), 1, ''

  def __init__(self, bad):
    self.bad = bad

  def __len__(self):
    return 40

  def __getitem__(self, index):
    if index in self.bad:
      raise BadRecord(f'{index}.png: a damaged image')
    image = np.full((8, 8, 1), index, np.uint8)
    return {'image': image, 'label': index % 3, 'key': str(index)}


PLAIN = ('range(0, 255)',)


def test_a_skipped_record_is_replaced_alike_everywhere():
  source = Flawed({3, 17})
  whole = fetch(make(Flawed(()), PLAIN).train(0, 10))
  reference = fetch(make(source, PLAIN, on_error='skip').train(0, 10))
  lost = 0
  for sound, batch in zip(whole, reference, strict=True):
    before, after = sound['image'][:, 0, 0, 0], batch['image'][:, 0, 0, 0]
    hit = np.isin(before, [3, 17])
    assert (batch['skipped'] == hit).all() and (batch['mask'] == 1).all()
    assert (before[~hit] == after[~hit]).all()
    assert not np.isin(after, [3, 17]).any()
    assert (batch['label'] == after % 3).all()
    lost += hit.sum()
  assert lost == 8  # 160 examples are four epochs
  for workers, devices in ((3, 8), (1, 2)):
    loader = make(source, PLAIN, devices, on_error='skip', workers=workers)
    assert equal(fetch(loader.train(3, 10)), reference[3:])
  with pytest.raises(BadRecord, match='damaged image'):
    fetch(make(source, PLAIN).train(0, 10))


def test_an_evaluation_leaves_out_what_cannot_be_read():
  loader = make(Flawed({0, 39}), PLAIN, on_error='skip', workers=2)
  loader.check()
  batches = fetch(loader.evaluate())
  mask = np.concatenate([batch['mask'] for batch in batches])
  assert mask.sum() == 38 and not mask[0] and not mask[39]
  with pytest.raises(BadRecord):
    fetch(make(Flawed({0}), PLAIN).evaluate())


def test_nothing_can_be_read():
  loader = make(Flawed(range(40)), PLAIN, on_error='skip')
  for call in (lambda: loader.check(), lambda: loader.train_batch(0)):
    with pytest.raises(BadRecord):
      call()


def test_a_crash_names_the_record():
  class Crashing(Flawed):
    def __getitem__(self, index):
      return super().__getitem__(index) | {'image': None, 'key': f'no {index}'}

  with pytest.raises(Exception) as error:
    fetch(make(Crashing(()), ('fit', *PLAIN), workers=2).train(0, 1))
  assert error.value.__notes__[0].startswith('while loading no ')
  names = [entry.name for entry in error.traceback]
  assert '_put' in names and 'fit' in names  # the worker's own frames


@pytest.fixture
def pictures(tmp_path):
  """A folder of 60 pictures and 12 to test; three of them are damaged."""
  for split, count in (('train', 30), ('test', 6)):
    for kind in ('cat', 'dog'):
      folder = tmp_path / 'pics' / split / kind
      folder.mkdir(parents=True)
      for i in range(count):
        (folder / f'{i}.png').write_bytes(png(8 * i, 8, 8))
  for name in ('train/cat/3.png', 'train/dog/4.png', 'test/dog/1.png'):
    path = tmp_path / 'pics' / name
    path.write_bytes(path.read_bytes()[:40])
  return tmp_path / 'pics'


def flags(pictures, workdir, **values):
  values = {
    'data.name': f'folder:{pictures}',
    'data.train.ops': "('decode', 'range')",
    'data.test.ops': "('decode', 'range')",
    'model.width': 16,
    'model.heads': 2,
    'model.depth': 1,
    'size': 8,
    'total': '3ep',
    'batch_size': 8,
    'eval_every': '100%',
    'save_every': '8 steps',
    'log_every': '1 steps',
  } | {k.replace('__', '.'): v for k, v in values.items()}
  return [
    'train',
    '--config=configs/folder.py',
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]


@pytest.mark.parametrize('cache_mb', [0, 512])
@pytest.mark.slow
def test_skipping_in_a_run(pictures, tmp_path, capsys, cache_mb):
  """Counted in the metrics; the rate is a limit; the default is to stop."""
  run = tmp_path / 'run'
  said = cli.main(flags(pictures, run, data__cache_mb=cache_mb))
  message = capsys.readouterr().err
  assert said == 2 and 'cat/3.png: ' in message and 'dog/4.png: ' in message
  skip = {'data__on_error': 'skip', 'data__cache_mb': cache_mb}
  assert cli.main(flags(pictures, tmp_path / 'default', **skip)) == 2
  assert '1 of 12 examples to evaluate' in capsys.readouterr().err
  skip['data__max_skipped'] = 0.1
  assert cli.main(flags(pictures, run, **skip)) == 0
  lines = read_metrics(run / 'metrics.jsonl')
  skipped = [x['data/skipped'] for x in lines if 'data/skipped' in x]
  assert skipped == sorted(skipped) and 4 <= skipped[-1] <= 6
  final = json.loads((run / 'result.json').read_text())['metrics']
  assert final['data/skipped'] == skipped[-1]
  assert final['eval/test/count'] == 11 and final['eval/test/skipped'] == 1
  strict = {**skip, 'data__max_skipped': 0.001}
  assert cli.main(flags(pictures, tmp_path / 'strict', **strict)) == 2
  assert 'more than config.data.max_skipped = 0.001' in capsys.readouterr().err


def test_batches_are_finished_on_the_devices():
  """As on an accelerator: bytes travel, and the result is the host's."""
  texts = ('affine(15, 0.1, 0.1, 0.2)', 'range(-1, 1)')
  host = fetch(make(texts=texts).train(0, 4))
  pipeline = ops.build('ops', texts, on_device=True)
  assert pipeline.dtype == np.uint8
  for devices in (1, 8):
    loader = make(pipeline=pipeline, devices=devices, workers=2)
    batches = list(loader.train(0, 4))
    assert batches[0]['image'].sharding == loader.sharding
    for a, b in zip(host, fetch(batches), strict=True):
      np.testing.assert_allclose(a['image'], b['image'], atol=1e-6)
      assert (a['label'] == b['label']).all()


def test_ops_are_split_between_host_and_devices():
  image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
  context = ops.Context((8, 8), 3)
  for text in ('range(-2, 3)', 'normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))'):
    pipeline = ops.build('ops', ('flip', text), on_device=True)
    assert pipeline.dtype == np.uint8
    scale, offset = pipeline.affine
    host = pipeline.host(image, context)
    assert host.dtype == np.uint8
    np.testing.assert_allclose(
      host * scale + offset, pipeline(image, ops.Context((8, 8), 3)), atol=1e-5
    )
  assert ops.build('ops', (text, 'flip'), on_device=True).affine is None


@pytest.mark.parametrize('share, words', [(0.6, 1), (0.05, 0)])
def test_a_run_that_waits_for_data_says_so_once(
  small_config, tmp_path, capsys, share, words
):
  setup = Setup(small_config(log_every='5 steps', total='100 steps'))
  writers = Writers(tmp_path, 0)
  log = Log(setup, writers, Terminal(100, 0), begun=0.0)
  metrics = {'loss': np.float32(1), 'finite': np.True_}
  for step in range(1, 41):
    log._since = time.perf_counter() - 0.1 * (log._steps + 1)
    log.step(step, metrics, waited=0.1 * share)
  writers.close()
  said = capsys.readouterr().out
  assert said.count('the run is input-bound') == words
  assert said.count('config.data.workers (now 1') == words
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  waits = [line['time/input_wait'] for line in lines]
  assert waits and waits == pytest.approx([0.1 * share] * len(waits), rel=0.3)
