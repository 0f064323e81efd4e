"""tfds data sets, made here, read without TensorFlow; `data prepare`."""

import io
import json
import shutil
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli, data, weights
from vit_jax.data import tfds_files
from vit_jax.errors import BadRecord, UserError
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Preprocessing

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import tensorflow_datasets as tfds

NAMES = ['circle', 'square', 'star']


def png(number, kind='png'):
  pixels = np.full((12, 10, 3), number, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind)
  buffer.seek(0)
  return buffer


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Colours that number the records."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name='plain', version='1.0.0'),
    tfds.core.BuilderConfig(name='odd', version='1.0.0'),
  ]

  def _info(self):
    features = {
      'picture': tfds.features.Image(),
      'kind': tfds.features.ClassLabel(names=NAMES),
      'coarse': tfds.features.ClassLabel(names=['round', 'pointed']),
      'pixels': tfds.features.Tensor(shape=(4, 6, 1), dtype=np.uint8),
      'name': tfds.features.Text(),
    }
    if self.builder_config.name == 'odd':
      del features['kind'], features['coarse']
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('picture', 'kind') if 'kind' in features else None,
    )

  def _split_generators(self, _):
    return {'train': self._make(0, 40), 'test': self._make(40, 50)}

  def _make(self, start, stop):
    for i in range(start, stop):
      example = {
        'picture': png(i),
        'pixels': np.full((4, 6, 1), i, np.uint8),
        'name': str(i),
      }
      if self.builder_config.name == 'plain':
        example |= {'kind': i % 3, 'coarse': i % 2}
      yield i, example

  def _generate_examples(self):
    raise NotImplementedError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A data_dir with shapes/plain and shapes/odd."""
  root = tmp_path_factory.mktemp('tfds')
  for config in ('plain', 'odd'):
    builder = Shapes(
      data_dir=str(root), config=config, file_format='array_record'
    )
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      builder.download_and_prepare()
  return root


def open_split(root, split='train', name='tfds:shapes/plain', **fields):
  return data.open_split(name, split, data_dir=str(root), **fields)


def numbers(source):
  """The numbers of the records, in order; checks labels and keys."""
  found = []
  for i in range(len(source)):
    record = source[i]
    number = int(np.asarray(Image.open(io.BytesIO(record['image'])))[0, 0, 0])
    assert record['label'] == number % 3
    found.append(number)
  return found


class Halves(Shapes):
  """Without a split 'test'."""

  def _split_generators(self, _):
    return {'train': self._make(0, 40), 'validation': self._make(40, 50)}


def test_weights_on_a_split_of_another_name(tmp_path, capsys, caplog):
  """--split is what is evaluated; and other names of the classes are told."""
  builder = Halves(
    data_dir=str(tmp_path), config='plain', file_format='array_record'
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    builder.download_and_prepare()
  model = ViT(classes=3, variant='S/4', width=16, depth=1, heads=2)
  images = jnp.zeros((1, 8, 8, 3))
  params = model.init(jax.random.key(0), images)['params']
  path = tmp_path / 'w' / 'model.safetensors'
  path.parent.mkdir()
  about = {'format': 'vit_jax', 'preprocessing': Preprocessing((8, 8))}
  weights.save(path, model, params, labels=('a', 'b', 'c'), **about)
  flags = ['evaluate', f'--weights={path}', f'--data=tfds:{builder.data_dir}']
  assert cli.main(flags) == 2
  assert "'test'" in capsys.readouterr().err
  assert 'matched by number' not in caplog.text
  own = ['--split=validation', '--evaluators=knn(1)', '--json']
  assert cli.main([*flags, *own]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found['split'], found['count']) == ('validation', 10)
  assert 'a, b, c, ...' in caplog.text and 'matched by number' in caplog.text
  assert round(10 * found['knn_1'], 9) in range(11)  # of the ten


def test_tensorflow_is_not_there():
  assert 'tensorflow' not in sys.modules


def test_a_data_set(root):
  train, test = open_split(root), open_split(root, 'test')
  assert sorted(numbers(train)) == list(range(40))
  assert sorted(numbers(test)) == list(range(40, 50))
  assert train.classes == test.classes == tuple(NAMES)
  assert (train.size, train.channels) == ((10, 10), 3)
  assert train[3]['key'] == 'tfds:shapes/plain/1.0.0 train[3]'
  assert isinstance(train[0]['image'], bytes)  # decoding is the ops' business
  with pytest.raises(IndexError):
    train[40]


@pytest.mark.parametrize(
  'split, key, expected',
  [
    ('train[:25%]', 'train[2]', lambda train, _: train[:10]),
    ('train[10:20]', 'train[12]', lambda train, _: train[10:20]),
    ('train[-5:]', 'train[37]', lambda train, _: train[-5:]),
    ('train+test', 'train[2]', lambda train, test: train + test),
    (
      'test[5:]+train[:5]',
      'test[7]',
      lambda train, test: test[5:] + train[:5],
    ),
  ],
)
def test_split_expressions(root, split, key, expected):
  train, test = (numbers(open_split(root, s)) for s in ('train', 'test'))
  source = open_split(root, split)
  assert numbers(source) == expected(train, test)
  assert source[2]['key'].endswith(f' {key}')
  assert source[2]['key'] == source.key(2)  # nothing is read for it
  assert source.fingerprint != open_split(root).fingerprint
  assert source.fingerprint == open_split(root, split).fingerprint


def test_other_features(root):
  source = open_split(
    root, image_feature='pixels', label_feature='coarse', split='test'
  )
  assert source.classes == ('round', 'pointed')
  assert (source.size, source.channels) == ((4, 6), 1)
  record = source[4]
  assert record['image'].shape == (4, 6, 1)
  assert record['label'] == record['image'][0, 0, 0] % 2


def test_eight_threads(root):
  source = open_split(root)
  alone = [source[i] for i in range(40)]
  with ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda i: source[i % 40], range(2000)))
  assert all(together[i] == alone[i % 40] for i in range(2000))


def test_names_and_directories(root, monkeypatch):
  expected = numbers(open_split(root))
  path = root / 'shapes' / 'plain' / '1.0.0'
  for name in ('shapes', 'shapes/plain:1.0.0', str(path)):
    assert numbers(open_split(root, name=f'tfds:{name}')) == expected
  monkeypatch.setenv('TFDS_DATA_DIR', str(root))
  assert numbers(data.open_split('tfds:shapes/plain', 'train')) == expected


@pytest.mark.parametrize(
  'name, fields, says',
  [
    ('shapes/plane', {}, "Did you mean 'shapes"),
    ('shapes/plane', {}, 'python -m vit_jax data prepare tfds:shapes/plane'),
    ('shpaes', {}, "Did you mean 'shapes/"),
    ('shapes/plain:2.0.0', {}, 'is not on disk'),
    ('a b', {}, 'write tfds:NAME'),
    ('/nowhere', {}, 'no dataset_info.json in it'),
    ('shapes/plain', {'split': 'tset'}, "Did you mean 'test'?"),
    ('shapes/plain', {'split': 'train[:'}, "split 'train[:'"),
    ('shapes/plain', {'split': 'train[5:5]'}, 'selects none of the 40'),
    (
      'shapes/plain',
      {'image_feature': 'pictur'},
      "Did you mean 'picture'?",
    ),
    ('shapes/plain', {'image_feature': 'name'}, 'not an image'),
    ('shapes/plain', {'label_feature': 'name'}, 'not a ClassLabel'),
    (
      'shapes/odd',
      {'image_feature': 'picture'},
      'has no feature that is a ClassLabel',
    ),
    ('shapes/plain', {'classes': 4}, 'config.data.classes = 4'),
    ('shapes/plain', {'examples': 4}, 'config.data.examples = 4'),
  ],
)
def test_mistakes(root, name, fields, says):
  with pytest.raises(UserError) as error:
    open_split(root, name=f'tfds:{name}', **fields)
  assert says in str(error.value)


def test_a_damaged_record(root, tmp_path):
  copy = tmp_path / 'shapes' / 'plain'
  shutil.copytree(root / 'shapes' / 'plain', copy)
  (path,) = copy.glob('1.0.0/*train.array_record*')
  content = bytearray(path.read_bytes())
  for place in range(2000, 12_000, 7):
    content[place] ^= 255
  path.write_bytes(content)
  try:
    source = open_split(tmp_path)
  except UserError:
    return  # so damaged that it cannot be opened
  damaged = 0
  for i in range(40):
    try:
      source[i]
    except BadRecord as error:
      damaged += 1
      assert str(error).startswith(f'tfds:shapes/plain/1.0.0 train[{i}]: ')
  assert damaged


def test_training(root, tmp_path, capsys):
  """Two steps from the command line; 'check' counts."""
  flags = [
    '--config=configs/folder.py',
    '--config.data.name=tfds:shapes/plain',
    f'--config.data.data_dir={root}',
    "--config.data.train.ops=('decode', 'inception_crop', 'range')",
    '--config.size=8',
    '--config.model.width=16',
    '--config.model.heads=2',
    '--config.model.depth=1',
    '--config.total=2 steps',
    '--config.batch_size=8',
  ]
  assert cli.main(['train', *flags, f'--workdir={tmp_path / "run"}']) == 0
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['metrics']['eval/test/count'] == 10
  assert 'tensorflow' not in sys.modules
  capsys.readouterr()
  flags = ['--data=tfds:shapes/plain', f'--config.data.data_dir={root}']
  assert cli.main(['data', 'check', *flags, '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['train']['classes'] == {'circle': 14, 'square': 13, 'star': 13}


def test_mock_data(monkeypatch, tmp_path):
  """tfds' own random stand-in for a data set that is not here."""
  with warnings.catch_warnings(), tfds.testing.mock_data(num_examples=5):
    warnings.simplefilter('ignore')
    builder = tfds.builder('mnist', data_dir=str(tmp_path))
    source = builder.as_data_source('train')
    assert len(source) == 5 and source[0]['image'].shape == (28, 28, 1)


# --- data prepare ---


def tfrecord(records):
  """Bytes of a TFRECORD file; nothing here looks at the checksums."""
  return b''.join(
    struct.pack('<Q', len(r)) + bytes(4) + r + bytes(4) for r in records
  )


@pytest.fixture
def old(root, tmp_path):
  """The data set as it would be in TFRECORD files only."""
  path = tmp_path / 'shapes' / 'plain' / '1.0.0'
  shutil.copytree(root / 'shapes' / 'plain' / '1.0.0', path)
  builder = tfds.builder_from_directory(path)
  for split in ('train', 'test'):
    source = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    records = [bytes(source[i]) for i in range(len(source))]
    (file,) = path.glob(f'*{split}.array_record*')
    name = file.name.replace('array_record', 'tfrecord')
    (path / name).write_bytes(tfrecord(records))
    file.unlink()
  info = json.loads((path / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (path / 'dataset_info.json').write_text(json.dumps(info))
  return tmp_path


def test_prepare_converts_tfrecords(root, old, capsys):
  with pytest.raises(UserError) as error:
    open_split(old)
  command = f'data prepare tfds:shapes/plain --data_dir={old}'
  assert f'`python -m vit_jax {command}`' in str(error.value)
  assert cli.main(command.split()) == 0
  assert 'wrote 2 array_record files' in capsys.readouterr().out
  assert numbers(open_split(old)) == numbers(open_split(root))
  assert cli.main(command.split()) == 0
  assert 'has array_record files already' in capsys.readouterr().out


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda x: x[: len(x) // 2], 'is cut short'),
    (lambda x: x + x[:30], 'is cut short'),
    (lambda x: tfrecord([b'\xff\xff not an example']), 'record 0 is damaged'),
    (lambda x: tfrecord([]), 'has 0 records, not 40'),
  ],
)
def test_damaged_tfrecords(old, change, says, capsys):
  (path,) = old.glob('shapes/plain/1.0.0/*train.tfrecord*')
  path.write_bytes(change(path.read_bytes()))
  flags = ['prepare', 'tfds:shapes/plain', f'--data_dir={old}']
  assert cli.main(['data', *flags]) == 2
  assert says in capsys.readouterr().err
  with pytest.raises(UserError, match='data prepare'):
    open_split(old)
  assert not list(old.rglob('*.incomplete'))


@pytest.mark.parametrize(
  'name, says',
  [
    ('mnist', "'mnist': write tfds:NAME"),
    ('tfds:mnits', "tfds knows no data set 'mnits'. Did you mean 'mnist'?"),
    ('tfds:mnist/plain', 'mnist'),
    ('tfds:/nowhere', 'no dataset_info.json in it'),
  ],
)
def test_what_cannot_be_prepared(name, says, tmp_path, capsys):
  flags = ['prepare', name, f'--data_dir={tmp_path}']
  assert cli.main(['data', *flags]) == 2
  assert says in capsys.readouterr().err


def test_where_data_sets_are(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/a')
  assert tfds_files.root_of('') == Path('/a')
  assert tfds_files.root_of('/b') == Path('/b')
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert tfds_files.root_of('') == Path.home() / 'tensorflow_datasets'
