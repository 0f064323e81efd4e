"""A folder of pictures, from train to evaluate and predict, by the command."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Red and blue pictures of unequal sizes; a run that learned to tell them."""
  path, workdir = tmp_path_factory.mktemp('pictures'), None
  rng = np.random.default_rng(0)
  for split, count in (('train', 24), ('test', 8)):
    for channel, name in ((0, 'red'), (2, 'blue')):
      folder = path / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 60, (*rng.integers(14, 30, 2), 3))
        pixels[..., channel] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
  workdir = tmp_path_factory.mktemp('run')
  code = cli.main(
    [
      'train',
      '--config=configs/folder.py',
      f'--config.data.name=folder:{path}',
      '--config.size=16',
      '--config.total=8ep',
      '--config.batch_size=16',
      '--config.ema=0',
      '--config.eval_every=8ep',
      '--config.save_every=8ep',
      '--config.model.width=16',
      '--config.model.depth=1',
      '--config.model.heads=1',
      f'--workdir={workdir}',
    ]
  )
  assert code == 0
  return path, workdir


def test_evaluate(run, capsys):
  _, workdir = run
  assert cli.main(['evaluate', f'--workdir={workdir}', '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['accuracy'] == 1 and result['count'] == 16
  assert cli.main(['evaluate', f'--workdir={workdir}', '--split=train']) == 0
  out = capsys.readouterr().out
  assert 'accuracy 1.0000' in ' '.join(out.split())
  assert 'count 48' in ' '.join(out.split())


def test_predict(run, capsys):
  path, workdir = run
  files = [str(path / 'test' / name / '0.png') for name in ('red', 'blue')]
  assert cli.main(['predict', f'--workdir={workdir}', *files]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split('\t')[:2] for line in lines] == [
    [files[0], 'red'],
    [files[1], 'blue'],
  ]
  assert all(float(line.split('\t')[2]) > 0.5 for line in lines)


def test_predict_json(run, capsys):
  path, workdir = run
  file = str(path / 'test' / 'red' / '1.png')
  assert cli.main(['predict', f'--workdir={workdir}', file, '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['file'] == file
  predictions = result['predictions']
  assert [p['class'] for p in predictions] == ['red', 'blue']
  assert sum(p['probability'] for p in predictions) == pytest.approx(1)


def test_an_animal_of_another_size_and_mode(run, capsys, tmp_path):
  """Any size and mode: what is predicted is fitted to the model."""
  _, workdir = run
  file = tmp_path / 'wide.png'
  Image.new('RGBA', (90, 31), (20, 20, 200, 255)).save(file)
  assert cli.main(['predict', f'--workdir={workdir}', str(file)]) == 0
  assert capsys.readouterr().out.split('\t')[1] == 'blue'
