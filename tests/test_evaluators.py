"""Evaluators: against scikit-learn and NumPy on the same features."""

import dataclasses
import json
import re
import shutil
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import log_loss, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import cli, config, evaluate, evaluators, opening, train
from vit_jax.data import Digits, open_split
from vit_jax.errors import UserError
from vit_jax.evaluators import calibration, neighbours, probes, sets
from vit_jax.evaluators.view import View
from vit_jax.viz import mistakes

CALLS = "classification, knn(5), fewshot(3), linear_probe(10), on('digits')"


def blobs(rng, n, classes=5, width=12, spread=1.6):
  """Features of classes that overlap."""
  centres = np.random.default_rng(7).normal(size=(classes, width))
  labels = rng.integers(0, classes, n)
  features = centres[labels] + spread * rng.normal(size=(n, width))
  return features.astype(np.float32), labels.astype(np.int32)


@pytest.fixture
def features():
  rng = np.random.default_rng(0)
  return *blobs(rng, 600), *blobs(rng, 400)


@pytest.mark.parametrize('k', [1, 5, 20])
def test_neighbours_are_scikits(features, k, monkeypatch):
  x, y, queries, _ = features
  monkeypatch.setattr(neighbours, '_BLOCK', 128)  # several, the last one short
  monkeypatch.setattr(neighbours, '_ROWS', 150)
  found = neighbours.neighbours(queries, x, y, k)
  predicted = neighbours.vote(*found, 5, 0.07)

  def theirs(metric):
    model = KNeighborsClassifier(
      k,
      metric=metric,
      algorithm='brute',
      weights=lambda d: np.exp((1 - d) / 0.07),
    )
    return model.fit(x, y).predict(queries)

  assert (predicted == theirs('cosine')).all()
  assert (np.diff(found[0]) <= 0).all()
  if k > 1:
    assert (predicted != theirs('cityblock')).any()  # the controls
  if k == 20:
    assert (predicted != neighbours.vote(*found, 5, 100.0)).any()


def test_a_ridge_is_scikits(features):
  x, y, queries, _ = features
  x, y, queries = x[:60].astype(float), y[:60], queries.astype(float)
  targets = 2.0 * np.eye(5)[y] - 1
  weights, bias, penalty = probes.ridge(x, targets, probes.PENALTIES)
  theirs = RidgeCV(probes.PENALTIES).fit(x, targets)
  assert penalty == theirs.alpha_
  assert np.allclose(queries @ weights + bias, theirs.predict(queries))
  other = Ridge(penalty * 2).fit(x, targets).predict(queries)
  assert not np.allclose(queries @ weights + bias, other)


@pytest.fixture
def placed(monkeypatch):
  """(devices, replicated) of what is put on devices, in a list."""
  found, put = [], jax.device_put

  def device_put(x, *args, **kwargs):
    result = put(x, *args, **kwargs)
    for array in jax.tree.leaves(result):
      where = array.sharding
      found.append((len(where.device_set), where.is_fully_replicated))
    return result

  monkeypatch.setattr(jax, 'device_put', device_put)
  return found


@pytest.mark.parametrize(
  'batch, replicated', [(16, False), (8, False), (7, True)]
)
def test_batches_of_a_probe_are_divided(features, placed, batch, replicated):
  """Those that the devices divide; any trains the same heads."""
  x, y, *_ = features
  options = {'epochs': 1, 'batch': batch, 'decay': 0.0}
  heads = probes.train_heads(x[:batch], y[:batch], 5, (1.0,), **options)
  assert placed == [(8, replicated)] * 2  # images and labels
  centred = y[:batch, None] == np.arange(5)
  step = x[:batch].T @ (centred - 0.2) / batch  # from zero: 1/5 of each class
  assert np.allclose(heads[0, :-1], step, atol=1e-5)


def test_queries_of_neighbours_are_divided(features, placed, monkeypatch):
  x, y, queries, _ = features
  found = neighbours.neighbours(queries[:21], x, y, 3)  # padded to 24
  assert placed == [(8, False)]
  one = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ('rows',))
  monkeypatch.setattr(neighbours, 'local_mesh', lambda: one)
  alone = neighbours.neighbours(queries[:21], x, y, 3)
  assert placed[1:] == [(1, True)]  # the control
  assert np.array_equal(found[1], alone[1])


def test_a_few_of_each_class(features):
  _, y, *_ = features
  rows = probes.few_of_each(y, 5, 7, 0)
  assert np.bincount(y[rows]).tolist() == [7] * 5
  assert len(set(rows)) == 35
  assert not np.array_equal(rows, probes.few_of_each(y, 5, 7, 1))
  assert set(probes.few_of_each(y, 5, 3, 0)) < set(rows)  # a nested draw


def test_a_trained_head_is_scikits(features):
  """At the optimum of the penalised loss; and each rate is its own training."""
  x, y, queries, truth = features
  x, queries = probes.standardised(x, queries)
  options = {'epochs': 400, 'batch': 600, 'decay': 1e-2}
  heads = probes.train_heads(x, y, 5, (0.03, 1.0), **options)
  theirs = LogisticRegression(C=1 / (600 * 1e-2), max_iter=2000, tol=1e-8)
  theirs.fit(x, y)
  logits = queries @ heads[1, :-1] + heads[1, -1]
  probabilities = np.asarray(jax.nn.softmax(logits))
  expected = theirs.predict_proba(queries)
  assert np.abs(probabilities - expected).max() < 2e-3
  few = probes.train_heads(x, y, 5, (1.0,), **options | {'epochs': 2})
  early = np.asarray(jax.nn.softmax(queries @ few[0, :-1] + few[0, -1]))
  assert np.abs(early - expected).max() > 0.05  # the control
  alone = probes.train_heads(x, y, 5, (0.03,), **options)
  assert np.allclose(heads[0], alone[0], atol=1e-5)
  accuracy = probes.scores(heads, queries, truth)[1]
  assert accuracy == pytest.approx(theirs.score(queries, truth), abs=0.006)


def test_calibration_is_scikits():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(0.1, 1, 3000)
  confidence[:5] = 1.0
  hits = rng.random(3000) < confidence**2
  count, mean, accuracy = calibration.bins_of(confidence, hits, 10)
  full = count > 0
  expected = calibration_curve(hits, confidence, n_bins=10)
  assert np.allclose(accuracy[full], expected[0])
  assert np.allclose(mean[full], expected[1])
  error = calibration.calibration_error(confidence, hits, 10)
  by_hand = sum(
    abs(hits[s].mean() - confidence[s].mean()) * s.mean()
    for i in range(10)
    if (s := np.minimum(confidence * 10 // 1, 9) == i).any()
  )
  assert error == pytest.approx(by_hand) and error > 0.1
  sure = rng.random(30000) < (p := rng.uniform(0.1, 1, 30000))
  assert calibration.calibration_error(p, sure, 10) < 0.02


@pytest.fixture(scope='module')
def run(tmp_path_factory, root):
  """A small run with evaluators after its last step."""
  from tests.conftest import SMALL

  path = tmp_path_factory.mktemp('run')
  values = SMALL | {
    'total': '30 steps',
    'optim.lr': '1e-2',
    'evaluators': "('classification', 'knn(5)')",
  }
  file = str(root / 'configs' / 'digits.py')
  train.run(config.load(file, list(values.items())), path)
  return path


@pytest.fixture(scope='module')
def view(run):
  setup, _, params = opening.load_run(run, None, False)
  with jax.set_mesh(setup.mesh):
    yield View(setup, params, setup.loader('test', setup.source('test')))


def test_after_the_last_step(run):
  text = (run / 'metrics.jsonl').read_text()
  lines = [json.loads(x) for x in text.splitlines()]
  last = lines[-1]
  for name in ('accuracy', 'nll', 'brier', 'ece', 'knn_5'):
    assert 0 <= last[f'eval/test/{name}'] < 3
  assert not any('eval/test/ece' in line for line in lines[:-1])
  result = json.loads((run / 'result.json').read_text())
  assert result['metrics']['eval/test/knn_5'] == last['eval/test/knn_5']
  for name in ('reliability', 'mistakes', 'curves'):
    pixels = np.asarray(Image.open(run / f'{name}.png').convert('RGB'), float)
    assert pixels.std() > 10


def test_each_example_once_and_sharded(view):
  """Rows in the order of the split, whatever the batch; all shards take part.

  On eight devices, as one image after the other gives them.
  """
  features, labels = view.features
  source = view.loader.source
  assert len(view.setup.mesh.devices.flat) == 8 and len(source) % 32
  assert labels.tolist() == [source[i]['label'] for i in range(len(source))]
  example = source[123]
  context = view.loader.context(0, 123, example['key'])
  image = jnp.asarray(view.loader.pipeline(example['image'], context))
  alone = view.setup.apply(view.params, image[None], capture=('pooled',))[1]
  assert np.allclose(features[123], alone['pooled'][0], atol=1e-5)
  assert not np.allclose(features[124], alone['pooled'][0], atol=1e-2)
  images = next(view.loader.evaluate())['image']
  looked = view._look(view.params, images, 'pooled')
  assert len(looked.sharding.device_set) == 8
  assert not looked.sharding.is_fully_replicated


def test_scores_of_a_split_are_scikits(view):
  rows = view.outputs
  logits = view.logits(view.loader)
  probabilities = scipy.special.softmax(logits['logits'].astype(float), 1)
  metrics = evaluators.run_all('x', ('classification',), view)
  label = logits['label']
  assert metrics['accuracy'] == pytest.approx(
    (probabilities.argmax(1) == label).mean()
  )
  assert metrics['top5'] == top_k_accuracy_score(label, probabilities, k=5)
  assert metrics['nll'] == pytest.approx(
    log_loss(label, probabilities), rel=1e-5
  )
  brier = np.square(probabilities - np.eye(10)[label]).sum(1)
  assert metrics['brier'] == pytest.approx(brier.mean(), rel=1e-5)
  assert np.allclose(rows['confidence'], probabilities.max(1), atol=1e-5)


def test_features_are_of_the_split_they_are_named(view):
  features, labels = view.train_features
  assert len(features) == 1437 and len(view.features[0]) == 360
  expected = KNeighborsClassifier(
    5, metric='cosine', weights=lambda d: np.exp((1 - d) / 0.07)
  ).fit(features, labels)
  score = expected.score(*view.features)
  metrics = evaluators.run_all('x', ('knn(5)',), view)
  assert metrics == {'knn_5': pytest.approx(score, abs=1e-6)}


@pytest.fixture
def kept(view, monkeypatch):
  """What an evaluator keeps of each example, by its name."""
  found = {}
  keep = lambda name, **rows: found.update({name: rows})  # noqa: E731
  monkeypatch.setattr(view, 'keep', keep)
  return found


def test_few_shots_are_a_ridge_of_scikits(view, kept):
  """By mean and deviation of the few, onto -1 and 1."""
  features, labels = view.train_features
  rows = probes.few_of_each(labels, 10, 3, 0)
  test, truth = view.features

  def theirs(scale_by):
    mean, deviation = features[scale_by].mean(0), features[scale_by].std(0)
    x, queries = (
      ((of - mean) / deviation).astype(float) for of in (features[rows], test)
    )
    model = RidgeCV(probes.PENALTIES).fit(x, 2 * np.eye(10)[labels[rows]] - 1)
    return model.predict(queries).argmax(1)

  metrics = probes.fewshot(view, 3)
  expected = theirs(rows)
  assert metrics == {'fewshot_3': (expected == truth).mean()}
  assert (kept['fewshot_3']['prediction'] == expected).all()
  control = theirs(slice(None))  # by those of the whole split
  assert (control != expected).any()


def test_a_rate_is_chosen_by_examples_held_out(view, kept, monkeypatch):
  """A tenth of the training split, of which no head was trained."""
  seen, train_heads, scores = {}, probes.train_heads, probes.scores

  def training(x, y, *args, **kwargs):
    seen['trained'] = x, y
    return train_heads(x, y, *args, **kwargs)

  def scoring(order):
    def score(heads, x, y):
      seen['held'], seen['heads'] = (x, y), heads
      seen['scores'] = scores(heads, x, y)[order]
      return seen['scores']

    return score

  monkeypatch.setattr(probes, 'train_heads', training)
  rates = (1e-4, 1.0, 1e-3)

  def probed(order):
    monkeypatch.setattr(probes, 'scores', scoring(order))
    return probes.linear_probe(view, epochs=3, batch=64, rates=rates)

  metrics = probed([0, 1, 2])
  train, test = probes.standardised(view.train_features[0], view.features[0])
  labels = view.train_features[1]

  def rows(x, y):
    return sorted((a.tobytes(), int(b)) for a, b in zip(x, y, strict=True))

  held, trained, all_of_them = (
    rows(*pair) for pair in (seen['held'], seen['trained'], (train, labels))
  )
  assert len(held) == len(train) // 10 and not set(held) & set(trained)
  assert sorted(held + trained) == all_of_them
  tested = rows(test, view.features[1])
  assert not set(tested) & set(all_of_them)  # so that it could be told
  best = int(np.argmax(scores(seen['heads'], *seen['held'])))
  answers = probes.answers(seen['heads'][best], test)
  assert metrics['linear_probe_rate'] == rates[best] == 1.0
  assert metrics['linear_probe'] == (answers == view.features[1]).mean()
  assert (kept['linear_probe']['prediction'] == answers).all()
  control = probed([1, 0, 2])
  assert control['linear_probe_rate'] == rates[0]
  assert control['linear_probe'] < metrics['linear_probe']


def test_the_command(run, capsys, tmp_path):
  flags = [f'--workdir={run}', f'--evaluators={CALLS}', '--json']
  assert cli.main(['evaluate', *flags, f'--pictures={tmp_path / "p"}']) == 0
  result = json.loads(capsys.readouterr().out)
  names = {'nll', 'knn_5', 'fewshot_3', 'linear_probe', 'on_digits'}
  assert names <= result.keys()
  assert result['on_digits'] == pytest.approx(result['accuracy'])
  assert result['linear_probe'] > result['fewshot_3'] > 0.2
  assert (tmp_path / 'p' / 'reliability.png').exists()
  kept = {p.stem: dict(np.load(p)) for p in tmp_path.rglob('*.npz')}
  names = {'knn_5', 'fewshot_3', 'linear_probe', 'on_digits', 'classification'}
  assert kept.keys() == names
  result['classification'] = result['accuracy']
  for name, rows in kept.items():  # each example, once
    assert rows['record'].tolist() == list(range(360))
    share = (rows['prediction'] == rows['label']).mean()
    assert share == pytest.approx(result[name])
    assert rows['fingerprint'] == Digits('', 'test').fingerprint
    assert rows['split'] == ('digits' if name == 'on_digits' else 'test')
  nll = kept['classification']['nll'].astype(float).mean()
  assert nll == pytest.approx(result['nll'])


def test_a_call_twice_is_kept_twice(run, capsys, tmp_path):
  flags = [f'--workdir={run}', '--json', f'--pictures={tmp_path}']
  calls = '--evaluators=fewshot(3), fewshot(3, seed=1)'
  assert cli.main(['evaluate', *flags, calls]) == 0
  result = json.loads(capsys.readouterr().out)
  for name in ('fewshot_3', 'fewshot_3_again1'):
    rows = np.load(tmp_path / 'predictions' / f'{name}.npz')
    share = (rows['prediction'] == rows['label']).mean()
    assert share == pytest.approx(result[name])
  assert result['fewshot_3'] != result['fewshot_3_again1']


def test_features_of_weights_for_other_classes(run, capsys, tmp_path):
  """Or without a head: what the head would say is then left out."""
  from tests.conftest import red_and_blue

  file = tmp_path / 'w.safetensors'
  assert cli.main(['convert', f'--from={run}', f'--to={file}']) == 0
  data = red_and_blue(tmp_path / 'two', 20, 8, 8)
  flags = [f'--weights={file}', f'--data=folder:{data}', '--json']
  capsys.readouterr()
  assert cli.main(['evaluate', *flags, '--evaluators=knn(1)']) == 0
  result = json.loads(capsys.readouterr().out)
  assert 0 <= result['knn_1'] <= 1 and 'accuracy' not in result
  assert cli.main(['evaluate', *flags]) == 2
  assert cli.main(['evaluate', *flags, '--evaluators=classification']) == 2
  assert 'has 10 classes' in capsys.readouterr().err


@pytest.mark.parametrize(
  'calls, words',
  [
    ('knnn(5)', "evaluator = 'knnn' is unknown. Did you mean 'knn'"),
    ('knn(0)', 'knn(0)'),
    ('knn(a)', 'is not an evaluator'),
    ('knn(neighbours=3)', 'Arguments: k, temperature'),
    ('linear_probe(rates=())', 'at least one, all above 0'),
    ('linear_probe(rates=(0.1, -1.0))', 'at least one, all above 0'),
    ('linear_probe(rates=(0.1, 1e400))', 'rates = (0.1, inf) is not finite'),
    ('linear_probe(decay=1e400)', 'decay = inf is not finite'),
    ('knn(k=20, k=3)', 'k is given more than once: 20, 3'),
    ('classification(bins=100000000000)', '1 to 1000'),
    ('knn(2000)', 'the training split has 1437 examples'),
    ('fewshot(500)', 'class number 0 has'),
    ("on('imagenet_sketsh')", "Did you mean 'imagenet_sketch'"),
    ("on('folder:nowhere')", "on('folder:nowhere'): 'folder:nowhere': no suc"),
    ("on('imagenet_a')", "on('imagenet_a'): 'tfds:imagenet_a' is not on disk"),
    ("on('floder:x')", "on('floder:x'): data = 'floder' is unknown. Did you m"),
    (
      "imagenet_c('folder:none/{corruption}/{severity}')",
      "imagenet_c('folder:none/gaussian_noise/1'): 'folder:none/gaussian_noise",
    ),
    ("real('none.json')", "real('none.json')"),
    ("imagenet_c('folder:x/{corruption}')", 'it has no {severity}'),
  ],
)
def test_mistakes(run, calls, words, capsys):
  flags = [f'--workdir={run}', f'--evaluators={calls}']
  assert cli.main(['evaluate', *flags]) == 2
  said = capsys.readouterr().err
  assert words in said and 'config.data' not in said


def test_nothing_is_tested_on_what_it_learns_from(run, view, capsys):
  for split in ('train', 'train[:9]'):
    source = view.setup.source(split)
    part = View(view.setup, view.params, view.setup.loader('test', source))
    n = f'{len(source):,}'
    for call in ('knn(5)', 'fewshot(5)', 'linear_probe(5)'):
      with pytest.raises(UserError, match=f'{n} of the {n} examples to eval'):
        evaluators.run_all('x', (call,), part)
  flags = [f'--workdir={run}', '--split=train[:9]', '--evaluators=knn(5)']
  assert cli.main(['evaluate', *flags]) == 2
  assert 'such as digits ' in capsys.readouterr().err


def test_mistakes_of_a_config(tmp_path, capsys):
  flags = ['--config=configs/digits.py', f'--workdir={tmp_path / "w"}']
  flags += ["--config.evaluators=('ece',)"]
  assert cli.main(['train', *flags]) == 2
  assert "config.evaluators: evaluator = 'ece'" in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


def test_calls_are_told_apart():
  text = 'knn(20), real(a), linear_probe(10, rates=(0.1, 0.2)),'
  assert evaluators.split_calls(text) == (
    'knn(20)',
    'real(a)',
    'linear_probe(10, rates=(0.1, 0.2))',
  )
  text = """on('tar:a(b, c'), real("x]"), linear_probe(rates=[1, 2]), knn"""
  expected = (
    "on('tar:a(b, c')",
    'real("x]")',
    'linear_probe(rates=[1, 2])',
    'knn',
  )
  assert evaluators.split_calls(text) == expected
  # A quote that is none, and what is not closed, are left to the messages.
  assert evaluators.split_calls("don't(1), knn(3") == ("don't(1)", 'knn(3')


def write_pictures(folder, view, classes, count=8):
  """Test digits of some classes as a folder of another set."""
  source, written = view.loader.source, 0
  for i in range(len(source)):
    example = source[i]
    if example['label'] in classes and written < count:
      path = folder / str(example['label'])
      path.mkdir(parents=True, exist_ok=True)
      Image.fromarray(example['image'][..., 0]).save(path / f'{i}.png')
      written += 1


def test_another_set_with_some_of_the_classes(view, tmp_path):
  """By name, and among them only: as ImageNet-A has 200 of the 1,000."""
  write_pictures(tmp_path, view, (3, 8), count=20)
  (name, accuracy), (_, among) = sets.on(view, f'folder:{tmp_path}').items()
  assert name.startswith('on_folder_') and among == 2
  source = view.loader.source
  rows = [i for i in range(len(source)) if source[i]['label'] in (3, 8)][:20]
  logits = view.logits(view.loader)['logits'][rows]
  labels = np.array([source[i]['label'] for i in rows])
  among = np.where(logits[:, 3] >= logits[:, 8], 3, 8)
  assert accuracy == pytest.approx((among == labels).mean())
  assert accuracy != pytest.approx((logits.argmax(1) == labels).mean())
  keeping = View(view.setup, view.params, view.loader, tmp_path / 'kept', 'x')
  data = f'folder:{tmp_path}'
  shutil.rmtree(tmp_path / 'kept', ignore_errors=True)
  other = open_split(data, 'all')
  sets.on(keeping, data)
  keeping.keep('own', label=labels[:0])
  kept = {p.stem: np.load(p) for p in (tmp_path / 'kept').rglob('*.npz')}
  own, other_rows = kept.pop('own'), kept.popitem()[1]
  assert other_rows['fingerprint'] == other.fingerprint
  assert own['fingerprint'] == source.fingerprint != other.fingerprint
  shutil.rmtree(tmp_path / 'kept')
  (tmp_path / '8').rename(tmp_path / 'eight')
  said = f"on('folder:{tmp_path}'): its class 'eight' is none of the model's 10"
  with pytest.raises(UserError, match=re.escape(said)):
    sets.on(view, f'folder:{tmp_path}')


def test_a_class_without_examples_is_an_answer(view, tmp_path, monkeypatch):
  """A subset is no easier than its set; but for sets of 200 of 1,000."""
  write_pictures(tmp_path / 'train', view, range(10), count=60)
  write_pictures(tmp_path / 'test', view, (3, 8), count=20)
  data = f'folder:{tmp_path}'
  found, accuracy = list(sets.on(view, data).values()), {}
  rows = view.logits(sets._open(view.setup, 'on(...)', data, 'test'))
  label, logits = rows['label'], rows['logits']
  assert set(label) == {3, 8}
  for name, answers in (('declared', range(10)), ('occurring', (3, 8))):
    own = np.array(answers)
    hits = own[logits[:, own].argmax(1)] == label
    accuracy[name] = [pytest.approx(hits.mean()), len(own)]
  assert found == accuracy['declared'] != accuracy['occurring']
  monkeypatch.setattr(sets, '_OF_SOME', re.compile('folder:.*'))
  assert list(sets.on(view, data).values()) == accuracy['occurring']


@pytest.mark.parametrize(
  'name, some',
  [
    ('tfds:imagenet_a', True),
    ('tfds:imagenet_r:0.2.0', True),
    ('tfds:imagenet_r/x', True),
    ('tfds:imagenet_resized/8x8', False),
    ('tfds:imagenet_sketch', False),
  ],
)
def test_sets_that_declare_more_than_they_have(name, some):
  assert bool(sets._OF_SOME.fullmatch(name)) == some


@pytest.mark.parametrize(
  'call, name, split',
  [
    ("on('imagenet_v2')", 'tfds:imagenet_v2/matched-frequency', 'test'),
    ("on('imagenet_a')", 'tfds:imagenet_a', 'test'),
    ("on('imagenet_r')", 'tfds:imagenet_r', 'test'),
    ("on('imagenet_sketch')", 'tfds:imagenet_sketch', 'test'),
    (
      'imagenet_c',
      'tfds:imagenet2012_corrupted/gaussian_noise_1',
      'validation',
    ),
  ],
)
def test_sets_by_name(call, name, split, monkeypatch):
  """As tfds calls them, which are not here to be opened."""

  class Opened(Exception):
    pass

  def opened(*args, **fields):
    raise Opened(*args)

  monkeypatch.setattr(sets, 'open_split', opened)
  view = object.__new__(View)
  view.setup = types.SimpleNamespace(config=config.load('configs/vit_i1k.py'))
  with pytest.raises(Opened) as caught:
    evaluators.run_all('x', (call,), view)
  assert caught.value.args == (name, split)
  kind, builder = name.split(':')
  data, _, part = builder.partition('/')
  (file,) = (Path(tfds.__file__).parent / 'datasets' / data).glob('*builder.py')
  code = file.read_text()
  assert part.removesuffix('_1') in code
  if split == 'test':  # the corrupted ones have ImageNet's own
    assert 'Split.TEST' in code


def test_classes_are_matched_by_name_or_all_by_number(view):
  source = view.loader.source

  class Named:
    size, channels, fingerprint = (8, 8), 1, ''

    def __init__(self, classes):
      self.classes = classes

    def __len__(self):
      return 3

    def __getitem__(self, index):
      return source[index]

  given = tuple('abc')
  shuffled = sets._relabelled('x', Named(tuple('cab')), given)
  assert shuffled.answers == [2, 0, 1]
  assert sets._relabelled('x', Named(tuple('xyz')), given).answers == [0, 1, 2]
  with pytest.raises(UserError, match="'C' is none of the model's 3"):
    sets._relabelled('x', Named(tuple('Cab')), given)
  many = tuple(f'{number}' * 9 for number in range(10**3, 2 * 10**3))
  near = many[-1][:-1] + 'x'
  with pytest.raises(UserError, match=f"Did you mean '{many[-1]}'") as error:
    sets._relabelled('x', Named((near,)), many)
  assert many[49] in str(error.value) and many[50] not in str(error.value)


def test_a_mistake_in_an_evaluator_costs_no_step(run, tmp_path, capsys):
  """The last checkpoint is there, and the mended command ends at once."""
  path = tmp_path / 'run'
  flags = [f'--config={run / "config.json"}', f'--workdir={path}']
  flags += ['--config.total=3 steps']
  wrong = "--config.evaluators=('fewshot(500)',)"
  assert cli.main(['train', *flags, wrong]) == 2
  assert 'fewshot(500): class number 0 has' in capsys.readouterr().err
  assert list((path / 'checkpoints').iterdir())
  right = "--config.evaluators=('fewshot(1)', 'fewshot(1, seed=1)')"
  assert cli.main(['train', *flags, right]) == 0
  assert 'resuming after step 3' in capsys.readouterr().out
  metrics = json.loads((path / 'result.json').read_text())['metrics']
  assert {'eval/test/fewshot_1', 'eval/test/fewshot_1_again1'} < set(metrics)


@pytest.mark.parametrize(
  'call, says',
  [
    ("on('folder:{}/no')", "on('folder:{}/no'): "),
    ("on('imagenet_w2')", "Did you mean 'imagenet_v2'?"),
    ("on('folder:{}/torn')", "on('folder:{}/torn'): "),
    ("imagenet_c('folder:{}/{{corruption}}')", 'it has no {{severity}}'),
    (
      "imagenet_c('folder:{}/{{corruption}}/{{severity}}')",
      "imagenet_c('folder:{}/gaussian_noise/1'): ",
    ),
    ("real('{}/real.json')", "real('{}/real.json'): [Errno 2] No such file"),
  ],
)
def test_data_that_an_evaluator_has_not(run, tmp_path, capsys, call, says):
  """Told before the first step, and before the split is evaluated."""
  call, says = (text.format(tmp_path) for text in (call, says))
  for number in range(10):  # the classes of the run, and no picture
    folder = tmp_path / 'torn' / str(number)
    folder.mkdir(parents=True)
    (folder / '0.png').write_bytes(b'\x89PNG')
  path = tmp_path / 'run'
  flags = [f'--config={run / "config.json"}', f'--workdir={path}']
  given = f'--config.evaluators=("""{call}""",)'
  assert cli.main(['train', *flags, given]) == 2
  assert says in capsys.readouterr().err
  assert not (path / 'config.json').exists()  # another config may follow
  given = [f'--workdir={run}', f'--evaluators={call}']
  with mock.patch.object(evaluate, 'evaluate') as evaluated:
    assert cli.main(['evaluate', *given]) == 2
  assert says in capsys.readouterr().err and not evaluated.called


def test_corruptions_over_alexnets(view, tmp_path, monkeypatch):
  monkeypatch.setattr(sets, 'ALEXNET', {'snow': 0.5, 'fog': 0.25})
  for i, name in enumerate(('snow', 'fog')):
    for severity in range(1, 6):
      folder = tmp_path / name / str(severity)
      write_pictures(folder, view, range(10), count=severity + 20 * i + 10)
  pattern = f'folder:{tmp_path}/{{corruption}}/{{severity}}'
  opened, make = [], view.setup.loader

  def loader(name, source, whole=False):
    opened.append(whole)
    return make(name, source, whole)

  with monkeypatch.context() as patch:
    patch.setattr(view.setup, 'loader', loader)
    metrics = sets.imagenet_c(view, pattern, 'all')
    assert opened == [True] * 10  # as stored
    sets.on(view, f'folder:{tmp_path}/snow/1')
    assert opened == [True] * 10 + [False]
  errors = {
    name: np.mean(
      [
        1 - next(iter(sets.on(view, f'folder:{tmp_path}/{name}/{s}').values()))
        for s in range(1, 6)
      ]
    )
    for name in ('snow', 'fog')
  }
  assert metrics['imagenet_c_snow'] == pytest.approx(errors['snow'])
  expected = (errors['snow'] / 0.5 + errors['fog'] / 0.25) / 2
  assert metrics['mce'] == pytest.approx(expected)
  shutil.rmtree(tmp_path / 'fog' / '5')
  monkeypatch.setattr(sets, 'error_on', None)  # nothing is evaluated
  with pytest.raises(UserError, match='fog/5'):
    sets.imagenet_c(view, pattern, 'all')


def test_alexnets_errors():
  """15 corruptions, of which the paper states the mean too."""
  assert len(sets.ALEXNET) == 15
  assert np.mean(list(sets.ALEXNET.values())) == pytest.approx(0.788, abs=0.002)


def test_labels_of_real(view, tmp_path, monkeypatch):
  """Any of several is right; a picture without labels is left out."""
  source = view.loader.source
  keys = [f'x/ILSVRC2012_val_{i + 1:08}.JPEG' for i in range(len(source))]

  class Named(Digits):  # as tfds: the file's name is in the record alone
    def key(self, index):
      return f'imagenet2012 validation[{index}]'

    def __getitem__(self, index):
      return source[index] | {'key': keys[index]}

  named = View(view.setup, view.params, view.loader)
  object.__setattr__(named, 'outputs', view.outputs)
  loader = dataclasses.replace(view.loader, source=Named('', 'test'))
  monkeypatch.setattr(named, 'loader', loader)
  predicted = view.outputs['prediction'].tolist()
  labels = [[int(p), (int(p) + 1) % 10] for p in predicted]
  labels[0], labels[1] = [], labels[1][1:]
  file = tmp_path / 'real.json'
  file.write_text(json.dumps(labels))
  n = len(labels)
  expected = {'real': (n - 2) / (n - 1)}
  assert evaluators.real(named, str(file)) == expected
  with monkeypatch.context() as patch:  # whose keys need no reading
    patch.setattr(Named, 'key', lambda _, i: keys[i], raising=False)
    patch.delattr(Named, '__getitem__')
    assert evaluators.real(named, str(file)) == expected
  keys[5] = 'a.png'
  with pytest.raises(UserError, match='a.png is no picture of the validation'):
    evaluators.real(named, str(file))
  for wrong, words in (
    ([[3], [999]], 'labels up to 999, the model 10 classes'),
    ({'a': 1}, 'a list of lists'),
    ([3], 'a list of lists'),
  ):
    file.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=words):
      evaluators.real(named, str(file))


def test_confusion():
  table = mistakes.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
  assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
