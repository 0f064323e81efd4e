"""Reports: groups of seeds, the bootstrap, the pages, and what differs."""

import json
import re
import shutil

import numpy as np
import pytest

from tests import browser
from vit_jax import cli, config, evaluate, opening, train, writers
from vit_jax.data import Digits
from vit_jax.report import bootstrap, page
from vit_jax.report import runs as runs_lib


def copied(run, path, rate, seed, flip):
  """A run as if of another rate and seed: `flip` of its hits are misses."""
  shutil.copytree(run, path, ignore=shutil.ignore_patterns('checkpoints'))
  saved = json.loads((path / 'config.json').read_text())
  saved['seed'], saved['optim']['lr'] = seed, rate
  (path / 'config.json').write_text(json.dumps(saved))
  with np.load(path / 'predictions' / 'test.npz') as file:
    kept = dict(file)
  hits = np.flatnonzero(kept['accuracy'])
  wrong = np.random.default_rng(seed).permutation(hits)[:flip]
  kept['accuracy'][wrong] = False
  kept['prediction'][wrong] = (kept['label'][wrong] + 1) % 10
  np.savez(path / 'predictions' / 'test.npz', **kept)
  lines = writers.read_metrics(path / 'metrics.jsonl')
  for line in lines[-1:]:
    line['eval/test/accuracy'] = float(kept['accuracy'].mean())
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, root):
  """A small run; three more made of it; and one that has not begun."""
  from tests.conftest import SMALL

  folder = tmp_path_factory.mktemp('runs')
  file = str(root / 'configs' / 'digits.py')
  values = SMALL | {'optim.lr': '1e-2', 'log_every': '1 steps'}
  loaded = config.load(file, list(values.items()))
  first = folder / 'lr=1e-2,seed=0'
  train.run(loaded, first)
  copied(first, folder / 'lr=1e-2,seed=1', 1e-2, 1, 3)
  copied(first, folder / 'lr=1e-3,seed=0', 1e-3, 0, 30)
  copied(first, folder / 'lr=1e-3,seed=1', 1e-3, 1, 40)
  waiting = folder / 'lr=5,seed=0'
  waiting.mkdir()
  loaded = config.load(file, [*SMALL.items(), ('optim.lr', '5')])
  (waiting / 'config.json').write_text(config.to_json(loaded))
  return folder


@pytest.mark.slow
def test_groups_of_seeds(runs):
  found = runs_lib.find([runs])
  assert runs_lib.varying(found) == ['optim.lr']
  groups = runs_lib.grouped(found)
  assert [len(g.runs) for g in groups] == [2, 2, 1]
  assert groups[0].mean > groups[1].mean and np.isnan(groups[2].mean)
  for group in groups[:2]:
    scores = []
    for run in group.runs:
      lines = writers.read_metrics(run.path / 'metrics.jsonl')
      scores.append(lines[-1]['eval/test/accuracy'])
      known = [x.get('eval/test/accuracy', 0.0) for x in lines]
      assert run.best == max(known)
    assert group.mean == pytest.approx(np.mean(scores))
    assert group.spread == pytest.approx(np.std(scores, ddof=1))
  assert groups[2].runs[0].state == 'not begun'


def test_what_examples_have(runs):
  """The files of predictions have what the metrics are the means of."""
  run = runs_lib.find([runs])[0]
  with np.load(run.predictions) as kept:
    assert kept['record'].tolist() == list(range(360))
    for name in ('accuracy', 'loss', 'top5'):
      mean = kept[name].astype(np.float64).mean()
      assert mean == pytest.approx(run.last(f'eval/test/{name}'), rel=1e-6)
    hits = kept['label'] == kept['prediction']
    assert (hits == kept['accuracy']).all()


def test_evaluate_keeps_them_too(runs, tmp_path, capsys):
  (one, *_) = runs_lib.find([runs])
  file = tmp_path / 'deep' / 'kept.npz'
  flags = [f'--workdir={one.path}', f'--keep={file}', '--split=test']
  assert cli.main(['evaluate', *flags]) == 0
  with np.load(file) as again, np.load(one.predictions) as kept:
    assert again.keys() == kept.keys()
    assert (again['prediction'] == kept['prediction']).all()
    assert np.allclose(again['loss'], kept['loss'], rtol=1e-5)
    for rows in (again, kept):
      assert rows['fingerprint'] == Digits('', 'test').fingerprint
      assert rows['split'] == 'test'


def test_records_that_cannot_be_read_are_left_out(runs, tmp_path, monkeypatch):
  from vit_jax.data.sources import Digits
  from vit_jax.errors import BadRecord

  original = Digits.__getitem__

  def broken(self, index):
    if index == 7:
      raise BadRecord('broken')
    return original(self, index)

  (one, *_) = runs_lib.find([runs])
  copied = tmp_path / 'run'
  shutil.copytree(one.path, copied)
  saved = json.loads((copied / 'config.json').read_text())
  saved['data']['on_error'] = 'skip'
  (copied / 'config.json').write_text(json.dumps(saved))
  setup, _, params = opening.load_run(copied, None, False)
  monkeypatch.setattr(Digits, '__getitem__', broken)
  result = evaluate.run(setup, params, keep=tmp_path / 'kept.npz')
  assert result['count'] == 359
  with np.load(tmp_path / 'kept.npz') as kept:
    assert kept['record'].tolist() == [i for i in range(360) if i != 7]


def coverage(rng, truth, seeds, trials=120):
  """How often the interval holds the true difference."""
  held = 0
  for _ in range(trials):
    # Examples of their own difficulty, shared; seeds that shift a model.
    hard = rng.normal(0, 1, 300)
    rows = []
    for mean in (0.8 + truth, 0.8):
      shift = rng.normal(0, 0.15, (seeds, 1)) if seeds > 1 else 0.0
      rows.append(mean + shift + 0.3 * hard + rng.normal(0, 0.2, (seeds, 300)))
    found = bootstrap.paired_bootstrap(*rows, seed=int(rng.integers(2**31)))
    held += found.low <= truth <= found.high
  return held / trials


def test_the_interval_of_the_bootstrap(monkeypatch):
  """It holds the truth about as often as it says; it sees a difference."""
  monkeypatch.setattr(bootstrap, 'RESAMPLES', 400)
  rng = np.random.default_rng(0)
  assert 0.89 <= coverage(rng, 0.0, seeds=1) <= 0.99
  for seeds in (2, 3, 8):  # few seeds are not taken for all there are
    assert 0.88 <= coverage(rng, 0.05, seeds=seeds) <= 1.0
  # What seeds do belongs in the interval: without them it is far too narrow.
  one = 0.8 + rng.normal(0, 0.1, (4, 1)) + rng.normal(0, 0.1, (4, 500))
  found = bootstrap.paired_bootstrap(one, one[::-1] - 0.0)
  assert not found.beyond_noise and found.high > 0.03
  merged = bootstrap.paired_bootstrap(one.mean(0)[None], one.mean(0)[None])
  assert merged.high < 0.001


def test_pairing_counts():
  """The same mistakes in both cancel; others do not (the control)."""
  rng = np.random.default_rng(1)
  one = (rng.random(1000) < 0.9).astype(float)[None]
  other = one.copy()
  other[0, np.flatnonzero(one[0])[:12]] = 0  # the same, and twelve more
  paired = bootstrap.paired_bootstrap(one, other)
  assert paired.beyond_noise and paired.difference == pytest.approx(0.012)
  shuffled = rng.permutation(other[0])[None]
  assert not bootstrap.paired_bootstrap(one, shuffled).beyond_noise


def test_sentences(runs, tmp_path):
  groups = runs_lib.grouped(runs_lib.find([runs]))
  text = bootstrap.sentence(groups[0], groups[1], 2)
  assert re.search(
    r'lr 0.01 against lr 0.001 is beyond noise \(\+\d\.\d\d points, 95 % '
    r'interval \+\d\.\d\d to \+\d+\.\d\d, paired bootstrap over 360 '
    r'examples and 2 against 2 seeds\)',
    text,
  ), text
  twins = runs_lib.Group({}, groups[0].runs[1:])
  text_of_twins = bootstrap.sentence(groups[0], twins, 2)
  assert 'is within noise' in text_of_twins and 'one seed' in text_of_twins
  assert 'With 2 seeds' in text and 'part of its lead' not in text
  assert 'part of its lead is luck' in bootstrap.sentence(*groups[:2], 9)
  (one, other) = (tmp_path / name for name in ('one', 'other'))
  for path, group in ((one, groups[0]), (other, groups[1])):
    shutil.copytree(group.runs[0].path, path)

  def changed(**values):
    file = other / 'predictions' / 'test.npz'
    with np.load(file) as kept:
      rows = {k: v for k, v in kept.items() if k not in values}
    np.savez(file, **rows | {k: v for k, v in values.items() if v})
    found = runs_lib.grouped(runs_lib.find([one, other]))
    return bootstrap.sentence(*found, 2)

  assert 'Warning' not in changed(split='other')
  files = [path / 'predictions' / 'test.npz' for path in (one, other)]
  text = changed(fingerprint='xyz')
  assert text.endswith(f"{files[1]} of 'other' (xyz): not the same examples.")
  assert str(files[0]) in text and 'noise' not in text
  text = changed(fingerprint='')
  assert 'is beyond noise' in text
  assert text.endswith(
    f'Warning: {files[1]} does not tell its examples: taken for the same ones.'
  )
  files[1].unlink()
  text = bootstrap.sentence(*runs_lib.grouped(runs_lib.find([one, other])), 2)
  assert 'not compared example by example' in text


def test_the_page(runs, tmp_path, capsys):
  assert cli.main(['report', str(runs), f'--output={tmp_path / "r.html"}']) == 0
  out = capsys.readouterr().out
  table = (tmp_path / 'r.md').read_text()
  assert table.strip() in out
  head, _, first, *_ = (x for x in table.splitlines() if x.startswith('|'))
  assert head.startswith('| lr | seeds | eval/test/accuracy, last | ± sd |')
  assert re.match(r'\| 0.01 \| 2 \| .* \| \d:\d\d \|', first)
  html = (tmp_path / 'r.html').read_text()
  assert 'prefers-color-scheme: dark' in html
  own = re.sub(r'<script.*?</script>', '', html, flags=re.DOTALL)
  assert 'not begun' in own and 'http' not in own
  assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)=', html)
  for name in ('Learning curves', 'From configuration to result', 'By field'):
    assert f'<h2>{name}</h2>' in own


def test_runs_one_by_one(runs, tmp_path):
  """Also of one run, and of names that are not HTML."""
  strange = tmp_path / '<b>&'
  shutil.copytree(runs_lib.find([runs])[0].path, strange)
  text = page.page('<title>', runs_lib.find([strange]))
  assert '<b>&' not in text and '&lt;b&gt;&amp;' in text


def test_mistakes(runs, tmp_path, capsys):
  assert cli.main(['report', str(tmp_path)]) == 2
  assert 'holds no run' in capsys.readouterr().err
  assert cli.main(['report', str(tmp_path / 'nowhere')]) == 2
  assert 'no such folder' in capsys.readouterr().err
  assert cli.main(['report', '--diff', str(runs)]) == 2
  assert '--diff takes two runs, not 1' in capsys.readouterr().err


def test_files_that_cannot_be_written(runs, tmp_path, capsys):
  (tmp_path / 'file').write_text('mine')
  for name, message in (
    ('x.md', 'a name that ends in .html'),
    ('', 'is a folder; give a file'),
    ('file/x.html', 'file is a file'),
  ):
    output = f'--output={tmp_path / name}'
    assert cli.main(['report', str(runs), output]) == 2
    assert message in capsys.readouterr().err
  one = runs_lib.find([runs])[0].path
  given = [
    'evaluate',
    f'--workdir={one}',
    f'--keep={tmp_path / "file" / "a.npz"}',
  ]
  assert cli.main(given) == 2
  assert 'cannot be written' in capsys.readouterr().err
  assert (tmp_path / 'file').read_text() == 'mine'
  assert cli.main(['evaluate', f'--workdir={one}', '--keep=kept.np']) == 2
  said = '--keep=kept.np: a name that ends in .npz'
  assert said in capsys.readouterr().err


def test_the_same_run_twice_is_not_two_seeds(runs, tmp_path):
  one = runs / 'lr=1e-3,seed=0'
  found = runs_lib.find([runs, one, runs / '..' / runs.name / one.name])
  assert len(found) == 5
  shutil.copytree(one, tmp_path / 'again')
  (group,) = runs_lib.grouped(runs_lib.find([one, tmp_path / 'again']))
  assert len(group.runs) == 2 and len(group.scores) == 1
  assert np.isnan(group.spread)
  both = runs_lib.grouped(runs_lib.find([runs, tmp_path / 'again']))
  assert bootstrap.compare(*both[:2]).seeds == (2, 2)


def test_states_of_runs(runs, tmp_path):
  """Broken after it logged; on its way to a new end; started again."""
  run = tmp_path / 'run'
  shutil.copytree(runs / 'lr=1e-2,seed=0', run)

  def state():
    return runs_lib.find([run])[0].state

  assert state() == 'finished'
  saved = json.loads((run / 'config.json').read_text())
  (run / 'config.json').write_text(json.dumps(saved | {'total': '99 steps'}))
  assert state() == 'step 24 of 99'
  tried = {'code': 1, 'error': 'no more memory', 'time': '2999-01-01T00:00:00Z'}
  (run / 'sweep.json').write_text(json.dumps({'tries': [tried]}))
  assert state() == 'failed, step 24 of 99'
  assert runs_lib.find([run])[0].error == 'no more memory'
  tried['time'] = '2001-01-01T00:00:00Z'
  (run / 'sweep.json').write_text(json.dumps({'tries': [tried]}))
  assert state() == 'step 24 of 99'


def test_a_run_of_a_search_is_judged_by_its_objective(runs, tmp_path):
  for path in runs.glob('lr=1e*'):
    shutil.copytree(path, tmp_path / path.name)
    with np.load(path / 'predictions' / 'test.npz') as file:
      kept = dict(file)
    kept['loss'] = kept['loss'] + (5 if 'lr=1e-2' in path.name else 0)
    np.savez(tmp_path / path.name / 'predictions' / 'test.npz', **kept)
    lines = writers.read_metrics(path / 'metrics.jsonl')
    lines[-1]['eval/test/loss'] = float(kept['loss'].mean())
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (tmp_path / path.name / 'metrics.jsonl').write_text(text)
    record = {'metric': 'eval/test/loss', 'least': True}
    (tmp_path / path.name / 'sweep.json').write_text(json.dumps(record))
  groups = runs_lib.grouped(runs_lib.find([tmp_path]))
  assert groups[0].name == 'lr 0.001' and groups[0].mean < groups[1].mean
  assert groups[0].runs[0].best <= groups[0].runs[0].last('eval/test/loss')
  text = bootstrap.sentence(*groups, 2)
  assert re.search(r'is beyond noise \(-\d\.\d{4}, 95 % interval -', text), text
  assert 'eval/test/loss, last' in page.markdown('x', runs_lib.find([tmp_path]))


def test_a_seed_that_has_not_begun_hinders_no_comparison(runs, tmp_path):
  for path in runs.glob('lr=1e*'):
    shutil.copytree(path, tmp_path / path.name)
  waiting = tmp_path / 'lr=1e-3,seed=2'
  waiting.mkdir()
  saved = json.loads((runs / 'lr=1e-3,seed=1' / 'config.json').read_text())
  (waiting / 'config.json').write_text(json.dumps(saved | {'seed': 2}))
  groups = runs_lib.grouped(runs_lib.find([tmp_path]))
  assert len(groups[1].runs) == 3
  assert bootstrap.compare(*groups).seeds == (2, 2)
  # The same labels of other records are not the same examples.
  file = tmp_path / 'lr=1e-3,seed=0' / 'predictions' / 'test.npz'
  with np.load(file) as kept:
    changed = dict(kept)
  changed['record'] = changed['record'] + 1
  np.savez(file, **changed)
  assert bootstrap.compare(*groups) is None


def test_diff(runs, tmp_path, capsys):
  one, other = (runs / f'lr={rate},seed=0' for rate in ('1e-3', '1e-2'))
  changed = tmp_path / 'changed'
  shutil.copytree(other, changed)
  saved = json.loads((changed / 'provenance.json').read_text())
  saved['starts'][-1]['commit'] = 'abc'
  saved['starts'][-1]['versions']['jax'] = '0.0.1'
  saved['starts'][-1]['devices']['count'] = 4096
  saved['data']['fingerprint'] = 'another'
  (changed / 'provenance.json').write_text(json.dumps(saved))
  flags = ['report', '--diff', str(one), str(changed)]
  assert cli.main([*flags, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['config'] == {'optim.lr': [0.001, 0.01]}
  assert found['code']['commit'][1] == 'abc'
  assert found['versions']['jax'][1] == '0.0.1'
  assert found['devices']['count'] == [8, 4096]
  assert found['data']['fingerprint'][1] == 'another'
  assert cli.main(flags) == 0
  assert 'optim.lr: 0.001 -> 0.01' in capsys.readouterr().out
  assert cli.main(['report', '--diff', str(one), str(one)]) == 0
  assert 'no difference' in capsys.readouterr().out


def test_two_files_of_predictions(tmp_path, capsys):
  """Which examples one alone is right about, and whether it is noise."""
  record, label = np.arange(100, 400), np.arange(300) % 5
  worse = np.where(np.arange(300) < 60, (label + 1) % 5, label)
  other = np.where(np.arange(300) == 299, (label + 1) % 5, label)
  a, b, c = (tmp_path / f'{name}.npz' for name in 'abc')
  np.savez(a, record=record, label=label, prediction=worse)
  np.savez(b, record=record, label=label, prediction=other)
  np.savez(c, record=record, accuracy=other == label)  # as of ReaL
  flags = ['report', '--diff', str(a)]
  for file in (b, c):
    assert cli.main([*flags, str(file), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['accuracy'] == pytest.approx([0.8, 299 / 300])
    assert found['only_first'] == [399]
    assert found['only_second'] == list(range(100, 160))
    low, high = found['interval']
    assert 0 < low < found['difference'] < high < 0.3
  assert cli.main([*flags, str(b)]) == 0
  said = capsys.readouterr().out
  assert '+19.67 points' in said and 'is right: 60 (100, 101, ' in said
  assert cli.main([*flags, str(a), '--json']) == 0  # control: no difference
  found = json.loads(capsys.readouterr().out)
  assert found['difference'] == 0 and not found['only_first']

  def refused(file):
    assert cli.main([*flags, str(file)]) == 2
    return capsys.readouterr().err

  np.savez(b, record=record + 1, label=label, prediction=other)
  assert 'not of the same records' in refused(b)
  np.savez(b, record=record, label=(label + 1) % 5, prediction=other)
  assert 'not of the same labels' in refused(b)
  np.savez(b, record=record)
  assert 'label and prediction, are needed' in refused(b)
  np.savez(b, record=record, label=label[:9], prediction=other[:8])
  assert 'not as many of each' in refused(b)
  np.savez(b, record=record[:0], accuracy=record[:0])
  assert 'has no rows' in refused(b)
  with open(b, 'wb') as array:
    np.save(array, record)
  assert 'b.npz cannot be read' in refused(b)
  b.write_bytes(b'PK')
  assert 'b.npz cannot be read' in refused(b)
  assert 'none.npz cannot be read' in refused(tmp_path / 'none.npz')
  assert 'two runs, or two files' in refused(tmp_path)


def test_files_of_other_examples(tmp_path, capsys):
  """As many with the same labels may still be others."""
  files = [tmp_path / 'a.npz', tmp_path / 'b.npz']
  rows = {'record': np.arange(9), 'accuracy': np.arange(9) > 3}

  def diff(one, other):
    for file, fingerprint in zip(files, (one, other), strict=True):
      told = (
        {'fingerprint': fingerprint, 'split': 'test'} if fingerprint else {}
      )
      np.savez(file, **rows, **told)
    code = cli.main(['report', '--diff', *map(str, files)])
    return code, ''.join(capsys.readouterr())

  code, said = diff('one', 'two')
  assert code == 2 and 'not the same examples' in said
  assert all(str(file) in said for file in files)
  code, said = diff('one', 'one')
  assert code == 0 and 'warning' not in said
  for one, other, file in (('one', '', files[1]), ('', 'one', files[0])):
    code, said = diff(one, other)
    assert code == 0 and f'warning: {file} does not tell its examples' in said


@pytest.mark.slow
def test_in_a_real_browser(runs, tmp_path, root):
  """No errors, nothing fetched, all drawn, as wide as a laptop; light and dark.

  The screenshots stay in the folder of the test, to be looked at.
  """
  assert cli.main(['report', str(runs), f'--output={tmp_path / "r.html"}']) == 0
  light, dark = browser.look(tmp_path / 'r.html', root)
  assert light['back'] == 'rgb(255, 255, 255)' != dark['back']
  for seen in (light, dark):
    assert seen['plots'] >= 3 and seen['lines'] >= 10


def test_checkpoints_are_not_needed(runs):
  """A report reads small files only: runs may have been copied without."""
  (found,) = runs_lib.find([runs / 'lr=1e-3,seed=1'])
  assert not (found.path / 'checkpoints').exists()
  assert found.state == 'finished' and found.flops > 1e5
