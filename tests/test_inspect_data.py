"""`data check` and `data preview`: what is there, and what the model is fed."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli, data, preview
from vit_jax.setup import Setup

from .test_sources import png


@pytest.fixture
def pictures(tmp_path):
  """Five of one class, three of another, one of which cannot be read."""
  for split, kinds in (
    ('train', {'cat': 5, 'dog': 3}),
    ('test', {'cat': 1, 'dog': 1}),
  ):
    for kind, count in kinds.items():
      folder = tmp_path / split / kind
      folder.mkdir(parents=True)
      for i in range(count):
        content = png(10 * i + len(split) + ord(kind[0]) % 7, 8 + i, 8)
        (folder / f'{i}.png').write_bytes(content)
  train = tmp_path / 'train'
  (train / 'dog' / '2.png').write_bytes((train / 'cat' / '1.png').read_bytes())
  (tmp_path / 'test' / 'dog' / '0.png').write_bytes(
    (train / 'cat' / '0.png').read_bytes()
  )
  (train / 'cat' / '4.png').write_bytes(b'not a picture')
  return tmp_path


def test_check(pictures, capsys):
  name = f'folder:{pictures}'
  assert cli.main(['data', 'check', f'--data={name}', '--json']) == 2
  out, err = capsys.readouterr()
  assert err == f'vit_jax: 1 records of {name} cannot be read.\n'
  report = json.loads(out)
  train, test = report['train'], report['test']
  assert (train['examples'], test['examples']) == (8, 2)
  assert train['classes'] == {'cat': 4, 'dog': 3}
  assert train['height'] == [8, 9, 11] and train['width'] == [8, 8, 8]
  assert train['duplicates'] == 1 and test['duplicates'] == 0
  key = train['duplicate_keys'][0]
  assert key.endswith(('cat/1.png', 'dog/2.png'))
  assert train['grey'] == 0
  assert len(train['unreadable']) == 1
  assert 'cat/4.png: not an image' in train['unreadable'][0]
  assert report['shared'] == {'train and test': 1}
  source = data.open_split(name, 'train', on_error='skip')
  assert train['fingerprint'] == source.fingerprint
  # The same as text; without the damaged file all is well.
  (pictures / 'train' / 'cat' / '4.png').unlink()
  assert cli.main(['data', 'check', f'--data={name}']) == 0
  out = capsys.readouterr().out
  assert '1 pictures are in both train and test.' in out
  assert f'duplicate: {key}' in out and '3 of dog' in out
  assert cli.main(['data', 'check', f'--data={name}', '--split=train[:3]']) == 0
  assert 'test' not in capsys.readouterr().out


def test_check_of_arrays_and_large_sources(monkeypatch, capsys):
  assert (
    cli.main(['data', 'check', '--config=configs/digits.py', '--json']) == 0
  )
  report = json.loads(capsys.readouterr().out)
  assert sum(report['train']['classes'].values()) == 1437
  assert report['train']['grey'] == 1437


@pytest.mark.parametrize(
  'flags, says',
  [
    (['check'], '--config=FILE is missing'),
    (['chekc'], "invalid choice: 'chekc'"),
    ([], 'check|preview|prepare'),
    (['check', '--data=digitz'], "Did you mean 'digits'?"),
    (['check', '--data=digits', '--split=val'], "digits has no split 'val'"),
    (['check', '--data=digits', '--jsn'], '--jsn is not a flag'),
    (['preview', '--data=digits'], '--data is not a flag of data'),
    (
      ['preview', '--config=configs/digits.py', '--batch=-1'],
      '--batch=-1: from 0',
    ),
    (
      ['preview', '--config=configs/digits.py', '--split=test', '--batch=99'],
      "--batch=99: split 'test' has no such batch",
    ),
  ],
)
def test_mistakes(flags, says, capsys):
  assert cli.main(['data', *flags]) == 2
  assert says in capsys.readouterr().err


@pytest.fixture
def drawn(monkeypatch):
  """What would be drawn: (pixels, captions, title)."""
  calls = []
  monkeypatch.setattr(
    preview, 'draw_contact_sheet', lambda *args: calls.append(args[:3])
  )
  return calls


def test_preview_shows_what_training_gets(small_config, drawn, tmp_path):
  setup = Setup(small_config(batch_size='8', mesh__data='8'))
  preview.draw(setup, 'train', 3, 5, tmp_path / 'x.png')
  pixels, captions, title = drawn[0]
  batch = setup.loader('train', setup.train_source).train_batch(3)
  wanted = np.rint((np.asarray(batch['image'])[:5] + 1) * 127.5)
  assert (pixels == wanted).all() and pixels.dtype == np.uint8
  assert captions == [str(x) for x in np.asarray(batch['label'])[:5]]
  assert 'affine(15' in title and 'batch 3' in title
  preview.draw(setup, 'test', 44, 32, tmp_path / 'x.png')
  assert len(drawn[1][0]) == 8  # 360 examples are 45 batches of 8
  noise = Setup(
    small_config(
      batch_size='8',
      data__train__ops="('normalize((0.3,), (0.2,))', 'random_erasing(0.01)')",
    )
  )
  preview.draw(noise, 'train', 0, 8, tmp_path / 'x.png')
  records = [noise.train_source[i]['image'] for i in range(1437)]
  kept = [any((p == r).all() for r in records) for p in drawn.pop()[0]]
  assert sum(kept) >= 6  # to the level, though noise went beyond
  mixed = Setup(small_config(batch_size='8', task__mixup='1.0'))
  preview.draw(mixed, 'train', 3, 5, tmp_path / 'x.png')
  pixels, captions, _ = drawn[2]
  assert (pixels != wanted).any() and all('%, ' in c for c in captions)


def test_the_picture(tmp_path, capsys):
  output = tmp_path / 'new' / 'sheet.png'
  flags = ['--config=configs/digits.py', '--count=6', f'--output={output}']
  assert cli.main(['data', 'preview', *flags]) == 0
  assert capsys.readouterr().out.strip() == str(output)
  sheet = np.asarray(Image.open(output))
  assert sheet.shape == (2 * 118 + 30, 3 * 104 + 8, 3)
  assert len(np.unique(sheet[30:126, 8:104])) > 5  # a digit is there
