"""The benchmarks run, agree with each other, and answer mistakes."""

import ast
import importlib.util
import itertools
import json
import re
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import (
  attention,
  checkpoint,
  loop,
  measure,
  mnist,
  peers,
  results,
  results_page,
  sides,
  step,
)
from benchmarks import input as input_benchmark
from tests import torch_reference
from tests.conftest import ROOT
from vit_jax import config as config_lib
from vit_jax.data.loader import Loader
from vit_jax.errors import UserError
from vit_jax.workdir import write_json


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
  'name, rate',
  [('ours', 8.0), ('ours, 224x224 in memory, to the device', 64.0)],
)
def test_our_peers_measure(pictures, monkeypatch, name, rate):
  """Two batches of 8 (in memory: eight times so many) in two seconds."""
  monkeypatch.setattr(peers, 'BATCH', 8)
  ticks = itertools.count(0.0, 2.0)
  clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
  monkeypatch.setattr(peers, 'time', clock)
  measure = peers.PEERS[name](pictures)
  assert [measure(1, 2) for _ in range(2)] == [rate] * 2


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


def test_digits_of_mnist_as_a_folder(tmp_path, monkeypatch):
  """Each digit once, in the split and the class that it has."""
  pixels = np.arange(30)[:, None, None] * np.ones((1, 28, 28), int)
  labels = np.arange(30) % 10
  given = pixels.astype(np.uint8), labels
  monkeypatch.setattr(mnist, 'read', lambda: given)
  mnist.write(tmp_path / 'mnist', train=20)
  files = sorted((tmp_path / 'mnist').glob('*/*/*.png'))
  assert sorted(int(file.stem) for file in files) == list(range(30))
  order = np.random.RandomState(0).permutation(30).tolist()
  for file in files:
    number = int(file.stem)
    assert (np.asarray(Image.open(file)) == number).all()
    assert int(file.parent.name) == number % 10
    train = order.index(number) < 20
    assert file.parent.parent.name == ('train' if train else 'test')
  monkeypatch.setattr(mnist, 'read', lambda: 1 / 0)
  mnist.write(tmp_path / 'mnist')  # it is there


@pytest.mark.parametrize('apart, words', [(0.005, 'within'), (0.02, 'NOT')])
def test_the_page_of_results(monkeypatch, apart, words):
  monkeypatch.setattr(mnist, 'svm', lambda: 0.912)
  one = {'seconds': 60.0, 'commit': 'abc1234', 'load': 2.0}
  seeds = [one | {'accuracy': a} for a in (0.97, 0.98, 0.99)]
  names = (*results.TRAINED, 'timm')
  found = {name: seeds for name in names}
  found['timm'] = [
    r | {'seconds': 90.0, 'accuracy': r['accuracy'] - apart} for r in seeds
  ]
  probed = {'knn_20': 0.5, 'fewshot_10': 0.4, 'linear_probe': 0.6}
  found['probe'] = [one | probed | {'commit': 'def5678+'}] * 3
  text = results_page.text(found, 0.5, [['vit_jax', 'train', "--x='a b'"]])
  row = 'MNIST (`configs/mnist.py`) | 98.00 ± 1.00 | 97.00, 98.00, 99.00 | 60 |'
  assert row in text and row in results_page.table(found)
  text = ' '.join(text.split())
  assert 'at abc1234, def5678+' in text and 'the SVM gets 91.2' in text
  assert 'an RBF SVM gets 99.17, 3 nearest neighbours 98.06' in text
  assert f'ours is +{100 * apart:.2f} points from it, {words}' in text
  assert 'and took 0.67 times as long as it' in text
  assert 'Other work' not in text
  found |= {name: [r | {'load': 9.0} for r in seeds] for name in names}
  assert 'Other work ran beside `digits`' in results_page.text(found, 0.5, [])
  found['digits'] = [{'accuracy': 0.9, 'seconds': 1, 'commit': ''}] * 3
  assert 'beside `digits` (perhaps)' in results_page.text(found, 0.5, [])
  assert '`knn_20` | 50.00 ± 0.00' in text and '"--x=\'a b\'"' in text


RAN = {
  'digits': 'digits',
  'hybrid_digits': 'hybrid',
  'mnist': 'mnist40',
  'folder': 'mnist40',
  'finetune': 'tuned',
}


@pytest.mark.parametrize('name', RAN)
def test_headers_have_the_numbers_of_the_page(name):
  """That is made by a command, as they are not; the readme has its table."""
  what = results.TRAINED[RAN[name]][1]
  page = (ROOT / 'docs' / 'results.md').read_text()
  (row,) = (x for x in page.splitlines() if x.startswith(f'| {what} |'))
  assert row in (ROOT / 'README.md').read_text()
  header = ast.get_docstring(
    ast.parse((ROOT / 'configs' / f'{name}.py').read_text())
  )
  header = ' '.join(header.split())
  mean, each = (cell.strip() for cell in row.split('|')[2:4])
  assert mean in header and (each in header or 'three seeds' in header)
  recipes = (ROOT / 'docs' / 'recipes.md').read_text()
  (line,) = (x for x in recipes.splitlines() if x.startswith(f'| [`{name}.py`'))
  share = f'{float(mean.split()[0]):.1f} %'
  assert share in line.split('|')[5]


def test_the_other_methods_of_headers_are_those_of_the_page():
  page = (ROOT / 'docs' / 'results.md').read_text()
  for name, count in (('digits', 2), ('mnist', 1)):
    header = (ROOT / 'configs' / f'{name}.py').read_text()
    found = re.findall(r'(?:SVM|neighbours)[^%]*? ([\d.]+) %', header)
    assert len(found) == count and all(number in page for number in found)


@pytest.mark.parametrize('missing', [(), ('timm',), ('mlxtend', 'torch')])
def test_results_want_packages_before_anything(
  tmp_path, monkeypatch, capsys, missing
):
  def write(folder):
    raise UserError('begun')

  find = importlib.util.find_spec
  told = lambda name: None if name in missing else find('json')  # noqa: E731
  monkeypatch.setattr(results.importlib.util, 'find_spec', told)
  monkeypatch.setattr(mnist, 'write', write)
  folder = tmp_path / 'w'
  assert benchmarks.main(['results', f'--workdir={folder}']) == 2
  said = capsys.readouterr().err
  needs = f'results needs {", ".join(missing)}, not installed here: make .venv'
  assert (needs in said) == bool(missing) != ('begun' in said)
  assert folder.exists() != bool(missing) and said.count('\n') == 1


def test_results_are_kept_of_the_same_command(tmp_path, monkeypatch):
  """And not of weights that were trained otherwise."""
  ran = []

  def run(command, log):
    ran.append(command[-1])
    folder = tmp_path / command[-1].rpartition('/')[2]
    folder.mkdir()
    metrics = {'eval/test/accuracy': 0.5}
    write_json(folder / 'result.json', {'metrics': metrics})
    return '', 1.0

  monkeypatch.setattr(results, '_run', run)

  def again():
    before = len(ran)
    for name in ('mnist', 'pre', 'tuned'):
      assert results.train(name, 0, tmp_path)['accuracy'] == 0.5
    return [word.rpartition('/')[2] for word in ran[before:]]

  assert again() == ['mnist-0', 'pre-0', 'tuned-0'] and again() == []
  flags, what = results.TRAINED['pre']
  changed = {'pre': ((*flags, '--config.total=1ep'), what)}
  monkeypatch.setattr(results, 'TRAINED', results.TRAINED | changed)
  assert again() == ['pre-0', 'tuned-0'] and again() == []
  monkeypatch.setattr(results.config_lib, 'flat', lambda config: {'lr': 1})
  assert len(again()) == 3  # the files say otherwise now


def test_the_recipe_of_mnist_is_that_of_a_folder():
  """So that its results are a folder's, at this size, of grey pictures."""
  from vit_jax import config

  files = (ROOT / 'configs' / f'{name}.py' for name in ('folder', 'mnist'))
  folder, ours = (config.flat(config.load(str(file))) for file in files)
  differ = {name for name in folder if folder[name] != ours[name]}
  assert differ == {'size', 'channels'} and ours['size'] == 28


@pytest.mark.slow
def test_the_loop_of_timm_has_the_same_model(tmp_path):
  """The same logits from the same parameters; not from the first ones."""
  torch_reference.import_timm()
  import torch
  from safetensors.torch import load_file

  from benchmarks import timm_loop
  from vit_jax import config, models, weights
  from vit_jax.weights.formats import Preprocessing

  flags = [('data.name', 'digits'), ('size', '28')]
  loaded = config.load(str(ROOT / 'configs' / 'folder.py'), flags)
  fields = {k: v for k, v in loaded.model.items() if k != 'name'}
  model = models.ViT(classes=10, **fields)
  images = np.random.default_rng(0).normal(size=(3, 28, 28, 1))
  images = jnp.asarray(images, jnp.float32)
  params = model.init(jax.random.key(0), images)['params']
  params['head']['linear']['kernel'] = jax.random.normal(
    jax.random.key(1), (96, 10)
  )
  about = Preprocessing(size=(28, 28))
  file = tmp_path / 'model.safetensors'
  weights.save(file, model, params, format='timm', preprocessing=about)
  net = timm_loop.model().eval()
  pictures = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
  expected = np.asarray(model.apply({'params': params}, images))
  with torch.no_grad():
    assert np.abs(net(pictures).numpy() - expected).max() > 1e-2
    own = {
      k: v.reshape(net.state_dict()[k].shape)
      for k, v in load_file(file).items()
    }
    net.load_state_dict(own)
    assert np.allclose(net(pictures).numpy(), expected, atol=1e-4)


def a_record(value):
  made = {'Speed': measure.table(('', 'images/s'), [('ours', value)])}
  goals = {'ours / theirs': measure.goal(value / 100, least=1.0)}
  return measure.record(
    'step', load=0.5, about='a test', rates={'ours': value}, tables=made
  ) | {'goals': goals}


def test_tables_of_a_page(tmp_path):
  """Between its marks and nowhere else, again and again the same."""
  page, file = tmp_path / 'page.md', tmp_path / 'all.json'
  marks = '<!-- benchmarks step -->\n{}<!-- end -->'
  page.write_text(f'before\n{marks.format("old ")}\nafter')
  for value, met in ((90.0, '**not met**'), (150.0, 'met')):
    file.write_text(json.dumps({'step': a_record(value)}))
    for _ in range(2):
      assert benchmarks.main(['render', str(file), str(page)]) == 0
    text = page.read_text()
    assert text.startswith('before\n<!-- benchmarks step -->\n\na test. ')
    assert text.endswith('<!-- end -->\nafter') and 'old' not in text
    assert f'| ours | {value:.3g} |' in text and f'| {met} |' in text
    assert text.count('| ours |') == 1
  file.write_text(json.dumps({'other': a_record(1.0)}))
  assert benchmarks.main(['render', str(file), str(page)]) == 2


def numbered(name):
  """A side of `in_turn` that says when it was its turn."""
  return time.perf_counter, None


def test_sides_take_turns_to_be_first():
  found, _ = measure.in_turn(numbered, ['one', 'two'], 4)
  first = [a < b for a, b in zip(found['one'], found['two'], strict=True)]
  assert first == [False, True, False, True]


def side(name):
  """A side of `in_turn`: counts its rounds; 'dies' in the second."""
  rounds = []

  def once():
    rounds.append(0)
    if name == 'dies' and len(rounds) > 1:
      raise RuntimeError('on purpose')
    return {'rate': float(len(rounds))}

  return once, f'facts of {name}'


def test_sides_take_turns(capfd):
  seen = {}
  found, died = measure.in_turn(side, ['one', 'dies'], 3, seen.update)
  assert seen == {name: f'facts of {name}' for name in ('one', 'dies')}
  assert found == {'one': [{'rate': r} for r in (2.0, 3.0, 4.0)]}
  assert died == {'dies': 'its process died'}
  assert measure.median(found['one']) == {'rate': 3.0}
  assert 'on purpose' in capfd.readouterr().err


def test_goals():
  assert measure.met(measure.goal(1.2, least=1.0)) == 'met'
  assert measure.met(measure.goal(1.2, most=1.0)) == 'not met'
  assert measure.met(measure.goal(0.98, least=1.0)) == 'within noise'
  assert measure.met(measure.goal(0.96, least=0.97)) == 'not met'
  assert measure.met(measure.goal(1.01, most=1.0)) == 'not met'
  assert measure.met(measure.goal(0.96, least=1.0)) == 'not met'


def test_ratios_are_of_the_same_rounds():
  """The machine is half as fast in the second: its ratio is no other."""
  ones = [{'x': 10.0}, {'x': 5.0}, {'x': 11.0}]
  others = [{'x': 20.0}, {'x': 10.0}, {'x': 20.0}]
  assert measure.ratio(ones, others, 'x') == 0.5
  assert measure.ratio([3.0], [2.0]) == 1.5


def test_the_record_of_steps(monkeypatch):
  """What `step` makes of what its sides measured, one of which died."""

  def in_turn(make, names, rounds, check):
    images = {'training': 2.0, 'inference': 8.0}
    found = {n: [images] * rounds for n in names if n in sides.SIDES}
    found |= {n: [{'GFLOP/s': 200.0}] for n in names if n in sides.PRODUCTS}
    found['timm'] = [{'training': 4.0, 'inference': 4.0}] * rounds
    logits = {'logits': np.ones((8, 5)), 'norm': 1.0}
    check({n: logits if n in sides.SIDES else None for n in found})
    del found['textbook flax']
    return found, {'textbook flax': 'its process died'}

  monkeypatch.setattr(measure, 'in_turn', in_turn)
  monkeypatch.setattr(sides, 'write_weights', lambda case: None)
  monkeypatch.setattr(sides, 'missing', lambda name: '')
  made = step.run(3)
  rows = {r[0]: r[1:] for r in made['tables']['Training and inference']['rows']}
  # 9.2 GFLOP an image forward, three times that in training.
  assert rows['ours'][:6] == ['2', '55.2', '1', '8', '73.6', '1']
  assert rows['timm'][2] == '0.5' and rows['timm'][5] == '2'
  assert rows['one product, float32'][1] == '200'
  assert rows['textbook flax'][0] == 'its process died'
  assert made['goals']['training: ours / timm']['value'] == 0.5
  assert 'training: ours / textbook flax' not in made['goals']
  assert all(len(r) == 8 for r in rows.values())
  assert '| ours | 2 |' in measure.markdown(made)


def test_the_record_of_attention(monkeypatch):
  monkeypatch.setattr(attention, '_ROUND', 1e-3)
  made = attention.run(2, (17,))
  rows = made['tables']['Attention']['rows']
  assert {row[1] for row in rows} == set(attention.DTYPES)
  assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)


@pytest.mark.slow
def test_the_records_of_saves_and_loops():
  made = checkpoint.run(2, 'mu/16')
  named = [r[0] for r in made['tables']['Checkpoints and evaluation']['rows']]
  assert 'digest, a part of a save' in named and 'evaluation' in named


@pytest.mark.slow
@pytest.mark.parametrize('idle', [False, True])
def test_a_loop_and_its_step_take_turns(monkeypatch, idle):
  """Ours load a batch a step; an idle loader none once it is ahead."""
  events, fill, bare = [], Loader._train, loop.bare

  def counted(self, step, run):
    events.append(step)
    return fill(self, step, run)

  def seen(*args):
    turn = bare(*args)
    events.clear()
    return lambda: events.append('bare') or turn()

  monkeypatch.setattr(Loader, '_train', counted)
  monkeypatch.setattr(loop, 'bare', seen)
  given = Loader.train
  digits = config_lib.load(str(ROOT / 'configs' / 'digits.py'))
  pairs = loop.in_turn(digits, 4, 2, idle)
  assert np.shape(pairs) == (2, 2) and np.min(pairs) > 0
  assert events.count('bare') == 3  # the first one is not told
  loaded = [event for event in events if event != 'bare']
  assert sorted(loaded) == list(range(3 if idle else 3 * 4 + 1))
  assert Loader.train is given


def test_the_record_of_loops(monkeypatch):
  """Its ratios are of the same turns, with their quartiles."""

  def in_turn(config, steps, turns, idle):
    assert turns == (24 if steps == 50 else 12)
    images = steps * config.batch_size
    pairs = [(9.8, 10.0), (19.8, 20.0), (5.0, 10.0)]
    return [(images / ran, images / step) for ran, step in pairs]

  monkeypatch.setattr(loop, 'in_turn', in_turn)
  monkeypatch.setattr(loop.inputs, 'make_pictures', lambda *_: 0.0)
  made = loop.run(3)
  (table,) = made['tables'].values()
  rows = table['rows']
  assert rows[0] == ['digits', 'loop', '10', '9.8', '0.98', '0.74', '0.985']
  assert [row[:2] for row in rows[1:]] == [
    ['digits', 'idle'],
    ['JPEGs', 'loop'],
    ['JPEGs', 'idle'],
  ]
  assert made['goals']['loop / step on digits']['met']
