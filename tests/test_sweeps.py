"""Sweeps: points, names, claims, the loop with quick runs, and real ones."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_jax import cli, config
from vit_jax.errors import UserError
from vit_jax.models import flops
from vit_jax.setup import Setup
from vit_jax.sweeps import (
  Choice,
  Range,
  grid,
  local,
  product,
  queue,
  sample,
  zipped,
)
from vit_jax.sweeps import run as run_lib
from vit_jax.sweeps.experiment import Experiment, run_name

SHIPPED = sorted((Path(__file__).parent.parent / 'experiments').glob('*.py'))


def test_points():
  one = grid({'a': (1, 2), 'b': 'xy'[:1].split()})
  assert one == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
  assert [p['b'] for p in grid({'a': (1, 2), 'b': (3, 4)})] == [3, 4, 3, 4]
  two = zipped({'c': (1, 2), 'd': (3, 4)})
  assert two == [{'c': 1, 'd': 3}, {'c': 2, 'd': 4}]
  assert product(one, two)[1] == {'a': 1, 'b': 'x', 'c': 2, 'd': 4}
  with pytest.raises(UserError, match='1 of a, 2 of b'):
    zipped({'a': (1,), 'b': (1, 2)})
  with pytest.raises(UserError, match="a list of values, not 'S/16'"):
    grid({'a': 'S/16'})


def test_samples():
  space = {
    'lr': Range(1e-4, 1e-2, log=True),
    'depth': Range(1, 3),
    'pool': Choice('cls', 'mean'),
  }
  points = sample(space, 400)
  assert points[:40] == sample(space, 40) != sample(space, 40, seed=1)
  rates = np.array([p['lr'] for p in points])
  assert rates.min() >= 1e-4 and rates.max() <= 1e-2
  assert 0.4 < (rates < 1e-3).mean() < 0.6  # evenly by the logarithm
  assert {p['depth'] for p in points} == {1, 2, 3}
  assert all(isinstance(p['depth'], int) for p in points)
  assert {p['pool'] for p in points} == {'cls', 'mean'}
  with pytest.raises(UserError, match='above 0 for log'):
    Range(0, 1, log=True)


values = st.one_of(
  st.integers(),
  st.booleans(),
  st.floats(allow_nan=False),
  st.text(max_size=150),
  st.tuples(st.text(max_size=5), st.integers()),
)


@given(st.lists(values, min_size=2, max_size=2))
def test_names_of_runs(pair):
  """Two points have two names, which are names of folders."""
  names = [run_name({'model.a': value}) for value in pair]
  assert all(set(n).isdisjoint('/\0\n ') and len(n) < 130 for n in names)
  if repr(pair[0]) == repr(pair[1]):
    assert names[0] == names[1]
  elif pair[0] != pair[1]:  # 0 and 0.0 are one point
    assert names[0] != names[1]


def test_numbers_of_numpy(write):
  """linspace and logspace give their own numbers."""
  file = write("grid({'optim.lr': __import__('numpy').logspace(-4, -2, 3)})")
  plans = list(Experiment(file).plans())
  assert [p.name for p in plans] == ['lr=0.0001', 'lr=0.001', 'lr=0.01']
  assert [p.config.optim.lr for p in plans] == pytest.approx([1e-4, 1e-3, 1e-2])


def test_a_new_head_wants_weights(write):
  file = write("grid({'init_head': ('keep', 'new')})")
  with pytest.raises(UserError, match="=new: config.init_head = 'new'"):
    list(Experiment(file).plans())


def test_names_that_people_read():
  point = {'optim.lr': 1e-3, 'seed': 0, 'model.variant': 'S/16'}
  assert run_name(point) == 'lr=0.001,seed=0,variant=S_16'
  assert run_name({'data.name': 'a', 'model.name': 'b'}) == (
    'data.name=a,model.name=b'
  )


@pytest.fixture
def write(tmp_path, root):
  """Writes an experiment; a function of its body and CONFIG."""

  def write(body, target='configs/digits.py', head=''):
    file = tmp_path / 'experiment.py'
    file.write_text(
      '"""A question?"""\nfrom vit_jax.sweeps import *\n'
      f'CONFIG = {str(root / target)!r}\n{head}\n'
      f'def sweep():\n  return {body}\n'
    )
    return file

  return write


@pytest.mark.parametrize(
  'body, words',
  [
    ("grid({'optim.lrr': (1, 2)})", 'optim.lrr is not a config field. Did you'),
    ("grid({'model.depth': (2, 'x')})", 'model.depth'),
    ("grid({'model.pool': ('cls', 'men')})", "'mean'"),
    ("grid({'seed': (1, 1)})", 'has the point seed=1 twice'),
    ('{}', 'it has to return points'),
    ('[{1: 2}]', 'it has to return points'),
    ('1 / 0', 'line 6, raised ZeroDivisionError: division by zero'),
    ("Search({'seed': Range(0, 9)}, 0)", 'trials = 0: at least 1'),
    ("Search({'sed': Range(0, 9)}, 3)", 'sed is not a config field. Did you'),
    (
      "Search({'seed': Range(0, 9)}, 3, 'eval/tst/accuracy')",
      "Did you mean 'eval/test/accuracy'",
    ),
    (
      "Search({'seed': Range(0, 9)}, 3, 'eval/test/acuracy')",
      "objective = 'eval/test/acuracy' is unknown. Did you mean",
    ),
    (
      "Search({'seed': Range(0, 9)}, 3, direction='minimise')",
      "direction = 'minimise' is unknown. Did you mean 'minimize'",
    ),
    ("Search({'seed': Range(0, 9)}, 3, sampler='TPE')", "'tpe'"),
    ("Search({'seed': Range(0, 9)}, 3, pruner='hyperband')", 'Choices: asha'),
    ("Search({'seed': (0, 9)}, 3)", 'seed = (0, 9): a Range(...) or'),
    ('Search({}, 3)', 'space = {}: {field: Range}'),
    ("sample({'seed': Range(0, 2)}, 4)", '4 points of a space with about 3'),
  ],
)
def test_mistakes_end_before_the_first_run(
  write, body, words, tmp_path, capsys
):
  flags = [f'--experiment={write(body)}', f'--workdir={tmp_path / "sweep"}']
  assert cli.main(['sweep', *flags]) == 2
  assert words in capsys.readouterr().err
  assert not list(tmp_path.glob('sweep/*/config.json'))


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--experiment=nowhere.py'], 'no such file. Choices: experiments/'),
    (['--jobs=0'], '--jobs=0: at least 1'),
    (['--retries=-1'], '--retries=-1: at least 0'),
    (['--config.optim.lr=1'], 'sweeps over it; change it there'),
    (['--config.optim.lrr=1'], 'Did you mean'),
    (['--gpus_per_node=2'], '--gpus_per_node is for --launch=slurm'),
    (['--storag=x'], "Did you mean '--storage'"),
  ],
)
def test_mistakes_of_flags(write, flags, words, tmp_path, capsys):
  file = write("grid({'optim.lr': (1e-3, 1e-2)})")
  given = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}', *flags]
  assert cli.main(['sweep', *given]) == 2
  assert words in capsys.readouterr().err


def test_a_dry_run_takes_the_flags_of_the_real_one(write, tmp_path, capsys):
  file = write("grid({'optim.lr': (1e-3, 1e-2)})")
  given = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  given += ['--dry_run', '--gpus_per_node=2']
  assert cli.main(['sweep', *given, '--launch=slurm']) == 0
  assert 'lr=0.001' in capsys.readouterr().out
  assert cli.main(['sweep', *given]) == 2  # the control
  assert not list(tmp_path.glob('sweep/*'))


def test_fixed_fields_that_are_none(write, tmp_path, capsys):
  file = write("grid({'seed': (1, 2)})", head="FIXED = ['total']")
  given = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  assert cli.main(['sweep', *given]) == 2
  assert "FIXED = ['total'] is not {field: value}" in capsys.readouterr().err


def test_a_storage_that_is_none(write, tmp_path, capsys):
  file = write("Search({'seed': Range(0, 9)}, 2)")
  given = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  assert cli.main(['sweep', *given, '--storage=sqlit']) == 2
  assert '--storage=sqlit: sqlite, journal' in capsys.readouterr().err
  assert cli.main(['sweep', *given, '--storage=nosql://a:secret@b/c']) == 2
  said = capsys.readouterr().err
  assert '--storage=nosql://...@b/c' in said and 'secret' not in said


@pytest.mark.parametrize('file', SHIPPED, ids=lambda f: f.stem)
def test_what_is_shipped(file, capsys):
  """Each has a question and runs that can be; seeds among them."""
  experiment = Experiment(file)
  assert experiment.question.endswith('?')
  if file.stem == 'few_labels':  # of runs that are to be trained first
    with pytest.raises(UserError, match='runs/masked/seed=0: no such file'):
      list(experiment.plans())
    return
  plans = list(experiment.plans())
  assert len({p.name for p in plans}) > 2
  best = 'r2' if file.stem == 'masked_pretraining' else 'accuracy'
  assert all(p.metric == f'eval/test/{best}' for p in plans)
  run_lib.dry_run(experiment, Path('nowhere'))
  assert re.search(r'config\.(total|seed)', capsys.readouterr().out)
  if file.stem == 'depth_or_width':
    costs = []
    for planned in plans:
      setup = Setup(planned.config)
      costs.append(sum(flops.forward(setup.model, (8, 8), 1).values()))
    assert max(costs) < 1.03 * min(costs)


def test_shares_of_a_machine():
  assert [local.share([0, 1, 2, 3], i, 2) for i in range(2)] == [[0, 1], [2, 3]]
  assert [local.share([0, 1, 2], i, 2) for i in range(2)] == [[0], [1, 2]]
  assert [local.share([0, 1], i, 3) for i in range(3)] == [[0], [1], [0]]
  assert local.share([], 0, 2) == []


# A trainer for which time is short: it does what `seed` says.
FAKE = """
import json, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[-1].partition('=')[2])
config = json.loads((path / 'config.json').read_text())
seed, rate = config['seed'], config['optim']['lr']
starts = path / 'starts'
with open(starts, 'a') as file:
  file.write('x')
if seed == 7:
  print('vit_jax: the loss is not finite')
  sys.exit(2)
if seed == 8 and starts.stat().st_size < 3:
  print('Segmentation fault')
  sys.exit(139)
if seed == 9:
  sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with open(path / 'metrics.jsonl', 'a') as file:
  for step in (1, 2, 3, 4):
    line = {'step': step, 'eval/test/accuracy': seed / 100 + step / 10}
    file.write(json.dumps(line) + '\\n')
    file.flush()
    time.sleep(rate)
result = {'steps': 10**6, 'seconds': 1.0, 'metrics': {}}
(path / 'result.json').write_text(json.dumps(result))
"""


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(local, '_CHILD', FAKE)
  monkeypatch.setattr(run_lib, '_LOOK', 0.05)


def starts(folder):
  return {
    p.parent.name: p.stat().st_size for p in Path(folder).glob('*/starts')
  }


def test_what_breaks_is_tried_again_and_what_fails_is_told(
  quick, write, tmp_path, capsys
):
  file = write(
    "grid({'seed': (1, 2, 7, 8, 9)})", head="FIXED = {'optim.lr': 0}"
  )
  flags = ['sweep', f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  assert cli.main([*flags, '--jobs=2']) == 2
  out, err = capsys.readouterr()
  assert starts(tmp_path / 'sweep') == {
    'seed=1': 1,
    'seed=2': 1,
    'seed=7': 1,  # a mistake is one the next time, too
    'seed=8': 3,
    'seed=9': 3,
  }
  assert '2 of 5 runs failed' in err and 'the loss is not finite' in err
  assert 'seed=8: exit code 139: Segmentation fault' in out
  assert '3 of 5 finished' in out and 'best 0.4800 by seed=8' in out
  record = json.loads(
    (tmp_path / 'sweep' / 'seed=9' / 'sweep.json').read_text()
  )
  assert [t['code'] for t in record['tries']] == [1, 1, 1]
  # Again: nothing is done twice; what was mended is.
  assert cli.main(flags) == 2
  assert sum(starts(tmp_path / 'sweep').values()) == 9
  (tmp_path / 'sweep' / 'seed=9' / 'sweep.json').unlink()
  file.write_text(file.read_text().replace('(1, 2, 7, 8, 9)', '(1, 9, 10)'))
  assert cli.main([*flags, '--retries=0']) == 2
  again = starts(tmp_path / 'sweep')
  assert again['seed=9'] == 4 and again['seed=10'] == again['seed=1'] == 1


def test_another_config_is_refused(quick, write, tmp_path, capsys):
  file = write("grid({'seed': (1, 2)})", head="FIXED = {'optim.lr': 0}")
  flags = ['sweep', f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  assert cli.main(flags) == 0
  capsys.readouterr()
  assert cli.main([*flags, '--config.model.depth=2']) == 2
  assert 'config.model.depth was 4, is now 2' in capsys.readouterr().err
  run = tmp_path / 'sweep' / 'seed=1'
  assert cli.main([*flags[:2], f'--workdir={run}']) == 2
  assert 'is the workdir of a run' in capsys.readouterr().err


def test_a_claim_outlives_the_sweep_but_not_the_run(write, tmp_path):
  (planned, _) = Experiment(write("grid({'seed': (1, 2)})")).plans()
  run = queue.Run(planned, tmp_path, 0)
  claim = run.claim()
  assert claim and run.state == queue.RUNNING and run.claim() is None
  child = subprocess.Popen(['sleep', '60'], pass_fds=[claim.fileno()])
  claim.close()  # as when the sweep dies
  assert run.state == queue.RUNNING and run.claim() is None
  child.kill()
  child.wait()
  assert run.state == queue.WAITING
  claim = run.claim()
  assert claim
  claim.close()


def test_a_search(quick, write, tmp_path, capsys):
  """Pruned by rungs, the best is known, and it goes on where it was."""
  file = write(
    "Search({'seed': Range(10, 60)}, 9, reduction=3)",
    head="FIXED = {'optim.lr': 0.15}",
  )
  flags = ['sweep', f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  flags += ['--storage=journal', '--jobs=3']
  assert cli.main(flags) == 0
  out = capsys.readouterr().out
  runs = sorted((tmp_path / 'sweep').glob('*/config.json'))
  assert len(runs) == 9
  assert runs[0].parent.name.startswith('0000-')
  pruned = out.count(': pruned\n')
  assert pruned and f'{9 - pruned} of 9 finished, {pruned} pruned' in out
  best = max(json.loads(r.read_text())['seed'] for r in runs)
  best_name = next(r.parent for r in runs if f'seed={best}' in r.parent.name)
  assert (best_name / 'result.json').exists()  # the best is never pruned
  before = starts(tmp_path / 'sweep')
  file.write_text(file.read_text().replace(', 9,', ', 11,'))
  assert cli.main(flags) == 0
  after = starts(tmp_path / 'sweep')
  assert len(after) == 11 and before.items() <= after.items()


def _sweep(file, tmp_path, *flags):
  given = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}', *flags]
  return cli.main(['sweep', *given])


def _trials(tmp_path):
  import optuna

  storage = f'sqlite:///{tmp_path / "sweep" / "study.db"}'
  (name,) = optuna.get_all_study_names(storage)
  return optuna.load_study(study_name=name, storage=storage).trials


QUICK = "FIXED = {'optim.lr': 0}"


def test_impossible_points_of_a_search(quick, write, tmp_path, capsys):
  """3 heads want a width of a multiple of 3: what is none is no run, no end."""
  file = write(
    "Search({'model.width': Range(24, 48)}, 8, sampler='random')",
    head="FIXED = {'optim.lr': 0, 'model.heads': 3}",
  )
  assert _sweep(file, tmp_path) == 0
  out = capsys.readouterr().out
  said = out.count('impossible: ')
  assert (
    0 < said < 8 and f'{8 - said} of {8 - said} finished, {said} imp' in out
  )
  assert len(list(tmp_path.glob('sweep/*/result.json'))) == 8 - said
  assert _sweep(file, tmp_path) == 0  # and again
  assert f'{8 - said} of {8 - said} finished' in capsys.readouterr().out
  assert max(starts(tmp_path / 'sweep').values()) == 1
  states = [t.state.name for t in _trials(tmp_path)]
  assert states.count('PRUNED') == said and states.count('COMPLETE') == 8 - said


def test_a_search_of_tuples_over_sqlite_goes_on(quick, write, tmp_path, capsys):
  ops = "(('range(-1, 1)',), ('range(0, 1)',), ('range(-2, 2)',))"
  body = "Search({'data.test.ops': Choice(*%s), 'seed': Choice(1, 2)}, %d)"
  assert _sweep(write(body % (ops, 2), head=QUICK), tmp_path) == 0
  assert _sweep(write(body % (ops, 5), head=QUICK), tmp_path) == 0
  assert set(starts(tmp_path / 'sweep').values()) == {1}
  configs = [
    json.loads(p.read_text()) for p in tmp_path.glob('sweep/*/config.json')
  ]
  points = {(*c['data']['test']['ops'], c['seed']) for c in configs}
  assert len(points) == len(configs) == 5  # no point twice
  capsys.readouterr()
  assert _sweep(write(body % (ops, 99), head=QUICK), tmp_path) == 0
  assert '6 of 6 finished' in capsys.readouterr().out  # there are no more


def test_a_study_is_of_one_search(quick, write, tmp_path, capsys):
  body = "Search({'seed': Range(0, 6)}, 3%s)"
  assert _sweep(write(body % '', head=QUICK), tmp_path) == 0
  for words, message in (
    (", direction='minimize'", 'direction was maximize, is now minimize'),
    (", objective='eval/test/loss'", 'objective was , is now eval/test/loss'),
  ):
    assert _sweep(write(body % words, head=QUICK), tmp_path) == 2
    assert message in capsys.readouterr().err
  assert _sweep(write(body.replace('6', '7') % '', head=QUICK), tmp_path) == 2
  assert 'space was' in capsys.readouterr().err
  file = write(body % '', head=QUICK)
  assert _sweep(file, tmp_path, '--storage=journal') == 2
  assert 'storage was sqlite, is now journal' in capsys.readouterr().err
  assert _sweep(file, tmp_path, '--config.model.depth=2') == 2
  assert 'config.model.depth was 4, is now 2' in capsys.readouterr().err
  assert _sweep(file, tmp_path) == 0


def test_a_search_may_minimize(quick, write, tmp_path, capsys):
  """Of the metric of the quick trainer, which grows by the seed, the least."""
  body = "Search({'seed': Range(10, 60)}, 9, direction='minimize')"
  file = write(body, head="FIXED = {'optim.lr': 0.15}")
  assert _sweep(file, tmp_path, '--jobs=3') == 0
  configs = list(tmp_path.glob('sweep/*/config.json'))
  seeds = {json.loads(p.read_text())['seed']: p.parent for p in configs}
  out = capsys.readouterr().out
  assert ': pruned\n' in out
  best = seeds[min(seeds)]
  assert f'best {min(seeds) / 100 + 0.4:.4f} by {best.name}' in out
  record = json.loads((best / 'sweep.json').read_text())
  assert record['least'] and record['metric'] == 'eval/test/accuracy'


def test_two_sweeps_on_one_search(write, tmp_path, root):
  """Share its trials: as many as asked for, no point twice, each told once."""
  file = write(
    "Search({'seed': Range(10, 500)}, 12, sampler='random', pruner='none')",
    head="FIXED = {'optim.lr': .05}",
  )
  flags = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  flags += ['--jobs=2']
  code = f'from vit_jax.sweeps import local; local._CHILD = {FAKE!r}; '
  sweeps = [_start(root, flags, code) for _ in range(2)]
  outputs = [s.communicate(timeout=120)[0].decode() for s in sweeps]
  assert [s.returncode for s in sweeps] == [0, 0], outputs
  assert list(starts(tmp_path / 'sweep').values()) == [1] * 12
  trials = _trials(tmp_path)
  assert len({t.params['seed'] for t in trials}) == len(trials) == 12
  assert {t.state.name for t in trials} == {'COMPLETE'}
  assert all(t.value == t.params['seed'] / 100 + 0.4 for t in trials)


def test_the_best_of_several_seeds(quick, write, tmp_path, capsys):
  file = write("grid({'model.depth': (1, 2), 'seed': (1, 3)})", head=QUICK)
  assert _sweep(file, tmp_path) == 0
  out = capsys.readouterr().out
  assert 'best 0.4200 \N{PLUS-MINUS SIGN} 0.0141, 2 seeds by depth=1' in out


def _start(root, flags, code=''):
  command = [
    sys.executable,
    '-c',
    'import sys; from vit_jax import cli; ' + code,
  ]
  command[-1] += 'sys.exit(cli.main(sys.argv[1:]))'
  return subprocess.Popen(
    [*command, 'sweep', *flags],
    cwd=root,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def test_two_sweeps_on_one_folder(write, tmp_path, root):
  """Share the runs, one of them killed: each is done, and done once."""
  file = write("grid({'seed': range(10, 18)})", head="FIXED = {'optim.lr': .1}")
  flags = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  code = 'from vit_jax.sweeps import local; '
  code += f'local._CHILD = {FAKE!r}; '
  sweeps = [_start(root, flags, code) for _ in range(3)]
  while len(starts(tmp_path / 'sweep')) < 4:
    time.sleep(0.02)
  sweeps[0].kill()
  outputs = [s.communicate(timeout=120)[0].decode() for s in sweeps]
  assert [s.returncode for s in sweeps] == [-signal.SIGKILL, 0, 0], outputs
  assert all('8 of 8 finished' in out for out in outputs[1:])
  # FAKE does not die with its parent, so not even the killed one's is double.
  assert set(starts(tmp_path / 'sweep').values()) == {1}


def test_a_signal_saves_the_runs(write, tmp_path, root):
  file = write("grid({'seed': range(10, 14)})", head="FIXED = {'optim.lr': 5}")
  flags = [f'--experiment={file}', f'--workdir={tmp_path / "sweep"}']
  code = 'from vit_jax.sweeps import local; '
  code += f'local._CHILD = {FAKE!r}; '
  sweep = _start(root, flags, code)
  while not list(tmp_path.glob('sweep/*/metrics.jsonl')):
    time.sleep(0.02)
  sweep.send_signal(signal.SIGTERM)
  out = sweep.communicate(timeout=60)[0].decode()
  assert sweep.returncode == 75 and 'SIGTERM: the runs were saved' in out
  assert 'Traceback' not in out


def children(pid):
  text = Path(f'/proc/{pid}/task/{pid}/children').read_text()
  return [int(word) for word in text.split()]


@pytest.mark.slow
def test_kills_at_random_moments(write, tmp_path, root, small_flags):
  """The runs die with the sweep; in the end each point is done once."""
  seed = int(time.time())
  print('seed', seed)
  rng = random.Random(seed)
  body = "grid({'seed': range(6)})"
  if rng.random() < 0.5:
    body = "Search({'optim.lr': Range(1e-4, 1e-2, log=True)}, 6, pruner='none')"
  flags = [f'--experiment={write(body)}', f'--workdir={tmp_path / "sweep"}']
  flags += [*small_flags, '--jobs=2']
  for _ in range(3):
    sweep = _start(root, flags)
    time.sleep(rng.uniform(6, 25))
    alive = children(sweep.pid)
    sweep.kill()
    sweep.communicate()
    until = time.monotonic() + 5
    while alive and time.monotonic() < until:
      alive = [pid for pid in alive if Path(f'/proc/{pid}').exists()]
    assert not alive
  sweep = _start(root, flags)
  out = sweep.communicate(timeout=600)[0].decode()
  assert sweep.returncode == 0, out
  assert '6 of 6 finished' in out
  results = list(tmp_path.glob('sweep/*/result.json'))
  assert len(results) == len(list(tmp_path.glob('sweep/*/config.json'))) == 6
  for path in results:
    lines = (path.parent / 'metrics.jsonl').read_text().splitlines()
    steps = [json.loads(line)['step'] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 24
  # A point is the same run alone.
  one = results[0].parent
  alone = tmp_path / 'alone'
  # On one core, too: how sums are split among threads changes their last bits.
  core = str(min(os.sched_getaffinity(0)))
  command = [sys.executable, '-c', local._CHILD, str(os.getpid()), core]
  command += ['train', f'--workdir={alone}']
  command += [f'--config={one / "config.json"}']
  subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
  digests = [
    json.loads((p / 'result.json').read_text())['parameters_sha256']
    for p in (one, alone)
  ]
  assert digests[0] == digests[1]


@pytest.mark.skipif(sys.platform != 'linux', reason='affinity')
def test_the_parts_of_a_real_child(write, tmp_path, small_config, root):
  """Its cores, and that it dies with its parent."""
  (planned, _) = Experiment(write("grid({'seed': (1, 2)})")).plans()
  code = local._CHILD.replace('from vit_jax import cli', 'import time').replace(
    'sys.exit(cli.main(sys.argv[3:]))',
    'print(os.sched_getaffinity(0), flush=True); time.sleep(60)',
  )
  core = min(os.sched_getaffinity(0))
  parent = (
    'import os, subprocess, sys, time\n'
    f'p = subprocess.Popen([sys.executable, "-c", {code!r}, str(os.getpid()), '
    f'"{core}"])\nprint(p.pid, flush=True)\ntime.sleep(60)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', parent], stdout=subprocess.PIPE
  )
  child = int(process.stdout.readline())
  assert process.stdout.readline().decode().strip() == str({core})
  process.kill()
  process.communicate()
  until = time.monotonic() + 10
  while Path(f'/proc/{child}').exists() and time.monotonic() < until:
    time.sleep(0.01)
  assert not Path(f'/proc/{child}').exists()
  assert config.to_json(planned.config)
