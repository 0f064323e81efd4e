"""The benchmarks run, agree with each other, and answer mistakes."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import input as input_benchmark
from benchmarks import peers


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  kilobytes = input_benchmark.make_pictures(folder, 8)
  assert 50 < kilobytes < 100  # as photographs of this size
  return folder


def test_photos_are_a_function_of_their_number():
  one, again, other = (
    np.asarray(input_benchmark.photo(i, 40, 50)) for i in (1, 1, 2)
  )
  assert (one == again).all() and (one != other).any()
  assert one.std() > 20


@pytest.mark.parametrize(
  'name', ['ours', 'ours, 224x224 in memory, to the device']
)
def test_our_peers_measure(pictures, monkeypatch, name):
  monkeypatch.setattr(peers, 'BATCH', 8)
  measure = peers.PEERS[name](pictures)
  assert all(measure(1, 2) > 1 for _ in range(2))


def test_ours_agrees_with_pillow(pictures):
  assert peers.agreement(pictures)['ours'] < 1
  file = peers._files(pictures)[0]
  with open(file, 'rb') as f:
    data = f.read()
  one, again, other = (
    peers.pillow(data, np.random.default_rng(s)) for s in (1, 1, 2)
  )
  assert one.shape == (224, 224, 3) and one.dtype == np.float32
  assert -1 <= one.min() < one.max() <= 1
  assert (one == again).all() and (one != other).any()


def test_compare(tmp_path, capsys):
  for name, rate in (('old', 100.0), ('new', 150.0)):
    result = {'benchmark': 'input', 'rates': {'ours': rate}, 'commit': name}
    (tmp_path / f'{name}.json').write_text(json.dumps(result))
  files = [str(tmp_path / f'{name}.json') for name in ('old', 'new')]
  assert benchmarks.main(['compare', *files]) == 0
  out = capsys.readouterr().out
  assert '1.50' in out and '100' in out and '150' in out


@pytest.mark.parametrize(
  'flags, says',
  [
    (['inptu'], "benchmark = 'inptu' is unknown. Did you mean 'input'?"),
    (['compare', 'a.json'], 'compare takes two files'),
    (['compare', 'a.json', 'b.json'], 'a.json is no result of a benchmark'),
    (['input', '--rounds=0'], '--rounds=0'),
  ],
)
def test_mistakes(flags, says, capsys):
  assert benchmarks.main(flags) == 2
  assert says in capsys.readouterr().err
