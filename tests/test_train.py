"""Runs: files, resume bit by bit, signals, kills, damage, locks, evaluation."""

import functools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from vit_jax import (
  checkpoint,
  evaluate,
  log,
  opening,
  rollback,
  train,
  trees,
  workdir,
  writers,
)
from vit_jax import setup as setup_lib
from vit_jax.data import loader as loader_lib
from vit_jax.errors import UserError
from vit_jax.signals import Stop


class StopAt(Stop):
  """Asks to stop once metrics.jsonl is `lines` long."""

  def __init__(self, path, lines):
    self._path, self._lines, self.armed = path / 'metrics.jsonl', lines, False

  @property
  def requested(self):
    lines = len(writers.read_metrics(self._path))
    return 'TEST' if lines >= self._lines else ''


def digest_of(path):
  return json.loads((path / 'result.json').read_text())['parameters_sha256']


def digests(config, path, step):
  """Of every item of a checkpoint, optimizer and EMA included."""
  setup = setup_lib.Setup(config)
  found = checkpoint.Checkpoints(path / 'checkpoints').load(
    checkpoint.abstract_items(setup.abstract_state), step
  )
  return {name: trees.digest(item) for name, item in found[1].items()}


def order(config, path, monkeypatch, at_once=False):
  """What happens in a run: ('step', 1), ('fetch', 1), ... in order."""
  happened, number, real_get = [], {}, jax.device_get
  make = setup_lib.Setup.train_step.func

  def made(setup):
    step = make(setup)

    def counted(*args):
      state, metrics = step(*args)
      kept = metrics['finite']  # alive, so that nothing else has its id
      number[id(kept)] = len(number) + 1, kept
      happened.append(('step', len(number)))
      return state, metrics

    return counted

  def fetch(x):
    if isinstance(x, dict) and id(x.get('finite')) in number:
      happened.append(('fetch', number[id(x['finite'])][0]))
    return real_get(x)

  take = log.Log.step

  def step_then_wait(self, *args):
    take(self, *args)
    self.flush()

  with monkeypatch.context() as patch:
    patch.setattr(
      setup_lib.Setup, 'train_step', property(functools.cache(made))
    )
    patch.setattr(jax, 'device_get', fetch)
    if at_once:
      patch.setattr(log.Log, 'step', step_then_wait)
    assert train.run(config, path) == 0
  return happened


def test_metrics_are_fetched_while_the_next_step_runs(
  small_config, tmp_path, monkeypatch
):
  config = small_config(total='5 steps', eval_every='0 steps')
  steps = [('step', i) for i in range(1, 6)]
  fetches = [('fetch', i) for i in range(1, 6)]
  late = order(config, tmp_path / 'a', monkeypatch)
  assert late == [
    steps[0],
    *(x for pair in zip(steps[1:], fetches, strict=False) for x in pair),
    fetches[-1],
  ]
  waits = order(config, tmp_path / 'b', monkeypatch, at_once=True)  # a control
  assert waits == [x for p in zip(steps, fetches, strict=True) for x in p]


def test_between_lines_only_what_is_acted_upon_is_fetched(
  small_config, tmp_path, monkeypatch
):
  config = small_config(
    total='4 steps', eval_every='0 steps', log_every='2 steps'
  )
  fetched, real_get = [], jax.device_get

  def fetch(x):
    if isinstance(x, dict) and 'finite' in x:
      fetched.append(set(x))
    return real_get(x)

  monkeypatch.setattr(jax, 'device_get', fetch)
  assert train.run(config, tmp_path / 'run') == 0
  assert fetched[0] == fetched[2] == {'finite'}
  assert fetched[1] == fetched[3] > {'finite', 'loss', 'grad_norm'}


@pytest.mark.parametrize('native', [True, False])
def test_processes_on_unlike_cpus_would_be_told(
  small_config, tmp_path, monkeypatch, native
):
  """What all have to have alike tells the kind of CPU, too."""
  seen = []

  def compared(values):
    seen.append(values)
    raise KeyError('compared')

  monkeypatch.setattr(train.cpu, 'native', lambda: native)
  monkeypatch.setattr(train.distributed, 'check_same', compared)
  with pytest.raises(KeyError, match='compared'):
    train.run(small_config(), tmp_path)
  (values,) = seen
  assert [v for k, v in values.items() if 'CPU' in k] == [native]


@pytest.mark.parametrize('every', ['1 steps', '2 steps', '0 steps'])
def test_the_clock_counts_all_steps_but_the_first(
  small_config, tmp_path, every
):
  """Which compiles: it is neither in the seconds nor among the images."""
  config = small_config(total='5 steps', eval_every='0 steps', log_every=every)
  assert train.run(config, tmp_path) == 0
  lines = writers.read_metrics(tmp_path / 'metrics.jsonl')
  timed = [line for line in lines if 'time/training' in line]
  images = [x['time/images_per_second'] * x['time/training'] for x in timed]
  assert sum(images) == pytest.approx(4 * config.batch_size)
  assert ('time/training' in lines[0]) == (every != '1 steps')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, root):
  """One uninterrupted small run: (config, workdir)."""
  from tests.conftest import SMALL
  from vit_jax import config as config_lib

  config = config_lib.load(
    str(root / 'configs' / 'digits.py'), list(SMALL.items())
  )
  path = tmp_path_factory.mktemp('whole')
  assert train.run(config, path) == train.FINISHED
  return config, path


def test_a_run_leaves_its_files(whole):
  config, path = whole
  for name in ('config.json', 'provenance.json', 'result.json', 'curves.png'):
    assert (path / name).stat().st_size > 0
  assert list(path.glob('events.out.tfevents.*'))
  result = json.loads((path / 'result.json').read_text())
  assert result['steps'] == 24 and result['seconds'] > 0
  assert result['parameters'] == 25962
  assert set(result['best']) == {'eval/test/accuracy'}
  lines = writers.read_metrics(path / 'metrics.jsonl')
  logged = [x['step'] for x in lines if 'train/loss' in x]
  assert logged == [4, 8, 12, 16, 20, 24]
  assert [x['step'] for x in lines if 'eval/test/loss' in x] == [12, 24]
  for name in ('lr', 'grad_norm', 'update_norm', 'accuracy'):
    assert f'train/{name}' in lines[0]
  assert all(x.get('eval/test/count', 360) == 360 for x in lines)
  assert config.total == '24 steps'


def test_latest_two_and_best_are_kept(whole):
  _, path = whole
  steps = checkpoint.Checkpoints(path / 'checkpoints').steps()
  assert steps[-2:] == [18, 24]
  result = json.loads((path / 'result.json').read_text())
  assert result['best']['eval/test/accuracy']['step'] in steps


def test_a_finished_run_is_left_alone(whole, capsys):
  config, path = whole
  before = (path / 'metrics.jsonl').read_bytes()
  assert train.run(config, path) == train.FINISHED
  assert (path / 'metrics.jsonl').read_bytes() == before
  assert 'finished 24 steps' in capsys.readouterr().out


def slow(*values):
  """Parameters of a test for `make test-slow`."""
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize('lines', [3, *slow(1, 4)])
def test_two_halves_are_one_run(whole, tmp_path, lines):
  config, path = whole
  assert train.run(config, tmp_path, StopAt(tmp_path, lines)) == 75
  assert not (tmp_path / 'result.json').exists()
  assert train.run(config, tmp_path) == train.FINISHED
  assert digest_of(tmp_path) == digest_of(path)
  assert digests(config, tmp_path, 24) == digests(config, path, 24)
  lines, expected = (
    [
      {k: v for k, v in x.items() if not k.startswith('time/')}
      for x in writers.read_metrics(p / 'metrics.jsonl')
    ]
    for p in (tmp_path, path)
  )
  # Each step stands once, with the same numbers; saved were they elsewhere.
  lines, expected = ([x for x in y if len(x) > 1] for y in (lines, expected))
  assert lines == expected


@pytest.mark.parametrize(
  'change', [{'seed': '1'}, *slow({'optim.lr': '0.0021'}, {'ema': '0.5'})]
)
def test_control_another_config_is_another_run(
  whole, tmp_path, small_config, change
):
  config, path = whole
  other = small_config(**change)
  assert train.run(other, tmp_path) == train.FINISHED
  assert digests(other, tmp_path, 24) != digests(config, path, 24)


@pytest.mark.slow
def test_a_larger_total_continues(tmp_path, small_config):
  short, long = small_config(total='12 steps'), small_config(total='18 steps')
  assert train.run(short, tmp_path) == train.FINISHED
  assert train.run(long, tmp_path) == train.FINISHED
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['steps'] == 18
  lines = writers.read_metrics(tmp_path / 'metrics.jsonl')
  steps = [x['step'] for x in lines if 'train/loss' in x]
  assert steps == sorted(set(steps)) and steps[-1] == 18


def test_another_config_is_refused(whole, small_config):
  _, path = whole
  with pytest.raises(UserError, match='config.model.depth was 2, is now 3'):
    train.run(small_config(model__depth='3'), path)


def test_changed_data_are_refused(whole, tmp_path):
  config, _ = whole
  assert train.run(config, tmp_path, StopAt(tmp_path, 1)) == 75
  saved = json.loads((tmp_path / 'provenance.json').read_text())
  saved['data']['fingerprint'] = 'other'
  (tmp_path / 'provenance.json').write_text(json.dumps(saved))
  with pytest.raises(UserError, match='the data changed'):
    train.run(config, tmp_path)


def _largest(folder):
  files = [f for f in folder.rglob('*') if f.is_file()]
  return max(files, key=lambda f: f.stat().st_size)


@pytest.mark.parametrize('damage', ['flip', *slow('truncate', 'remove')])
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, damage):
  config, path = whole
  assert train.run(config, tmp_path, StopAt(tmp_path, 4)) == 75
  newest = checkpoint.Checkpoints(tmp_path / 'checkpoints').steps()[-1]
  file = _largest(tmp_path / 'checkpoints' / str(newest) / 'params')
  data = bytearray(file.read_bytes())
  if damage == 'flip':
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  elif damage == 'truncate':
    file.write_bytes(data[: len(data) // 2])
  else:
    file.unlink()
  assert train.run(config, tmp_path) == train.FINISHED
  assert (tmp_path / f'damaged-checkpoint-{newest}').is_dir()
  assert digest_of(tmp_path) == digest_of(path)


def test_nothing_sound_is_an_error(whole, tmp_path):
  config, _ = whole
  assert train.run(config, tmp_path, StopAt(tmp_path, 1)) == 75
  for folder in (tmp_path / 'checkpoints').iterdir():
    _largest(folder / 'params').unlink()
  with pytest.raises(UserError, match='no checkpoint is sound'):
    train.run(config, tmp_path)


def opened(path, step=None, raw=False):
  setup, _, params = opening.load_run(path, step, raw)
  return setup, params


def test_evaluation_of_a_checkpoint_is_that_of_the_run(whole):
  _, path = whole
  result = evaluate.run(*opened(path))
  lines = writers.read_metrics(path / 'metrics.jsonl')
  assert result['count'] == 360
  told = [x for x in lines if 'eval/test/accuracy' in x]
  assert result['accuracy'] == told[-1]['eval/test/accuracy']
  raw = evaluate.run(*opened(path, raw=True))
  assert raw['loss'] != result['loss']
  part = evaluate.run(*opened(path), split='train[1150:]')
  assert part['count'] == 287
  with pytest.raises(UserError, match='--step=5'):
    opened(path, step=5)


@pytest.mark.parametrize('mode', ['halt', 'skip'])
def test_a_loss_that_is_not_finite(tmp_path, small_config, mode, monkeypatch):
  """NaN pixels at step 7: halt names the step, skip goes on without it."""
  original = setup_lib.Setup.loader

  def poisoned(self, name, source):
    loader = original(self, name, source)
    load = loader._train

    def poisoned_train(step, run):
      batch = load(step, run)
      return batch | {'image': batch['image'] / (step != 6)}

    if name == 'train':
      object.__setattr__(loader, '_train', poisoned_train)
    return loader

  monkeypatch.setattr(setup_lib.Setup, 'loader', poisoned)
  config = small_config(on_nonfinite=mode)
  if mode == 'halt':
    with pytest.raises(UserError, match='step 7: the loss'):
      train.run(config, tmp_path)
    assert checkpoint.Checkpoints(tmp_path / 'checkpoints').steps() == [6]
  else:
    assert train.run(config, tmp_path) == train.FINISHED
    lines = writers.read_metrics(tmp_path / 'metrics.jsonl')
    assert [x.get('train/skipped') for x in lines if 'train/loss' in x] == [
      None,
      *[1.0] * 5,
    ]


def test_the_step_compiles_once(small_config):
  setup = setup_lib.Setup(small_config())
  batches = setup.loader('train', setup.train_source)
  with jax.set_mesh(setup.mesh):
    state = setup.init()
    first = jax.tree.leaves(state.params)[0]
    for batch in batches.train(0, 3):
      state, _ = setup.train_step(state, batch)
  assert setup.train_step._cache_size() == 1
  assert first.is_deleted()  # donated


def _start(root, path, flags):
  command = [sys.executable, '-m', 'vit_jax', 'train']
  command += ['--config=configs/digits.py', f'--workdir={path}', *flags]
  return subprocess.Popen(
    command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def _wait_for_step(process, path, step):
  while process.poll() is None:
    lines = writers.read_metrics(path / 'metrics.jsonl')
    if lines and lines[-1]['step'] >= step:
      return
    time.sleep(0.01)


def _end(process):
  output = process.communicate(timeout=300)[0].decode()
  return process.returncode, output


@pytest.mark.slow
def test_signals_and_kills_of_a_real_process(tmp_path, root, small_flags):
  """SIGTERM gives 75, SIGKILL anything: the end is the same, bit for bit."""
  flags = [*small_flags, '--config.total=60 steps']
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  code, output = _end(_start(root, whole, flags))
  assert code == 0, output
  process = _start(root, broken, flags)
  _wait_for_step(process, broken, 8)
  process.send_signal(signal.SIGTERM)
  code, output = _end(process)
  assert code == 75 and 'SIGTERM: saved after step' in output
  process = _start(root, broken, flags)
  _wait_for_step(process, broken, 32)
  process.kill()
  assert _end(process)[0] == -signal.SIGKILL
  code, output = _end(_start(root, broken, flags))
  assert code == 0 and 'resuming after step' in output
  assert digest_of(whole) == digest_of(broken)


@pytest.mark.slow
def test_a_signal_before_the_first_step(tmp_path, root, small_flags):
  process = _start(root, tmp_path / 'run', small_flags)
  time.sleep(0.7)  # importing
  process.send_signal(signal.SIGINT)
  code, output = _end(process)
  assert code == 75 and 'Traceback' not in output, output


def test_a_signal_that_strikes_in_a_callback():
  """Where an exception cannot be raised: it is noted, without a traceback."""
  code = (
    'import gc, os, signal\n'
    'from vit_jax.signals import Stop\n'
    'stop = Stop().catch()\n'
    'def callback(phase, info):\n'
    '  if phase == "start" and not stop.requested:\n'
    '    os.kill(os.getpid(), signal.SIGTERM)\n'
    'gc.callbacks.append(callback)\n'
    'gc.collect()\n'
    'print(stop.requested)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ('SIGTERM\n', '')


def test_a_smaller_total_than_done_is_refused(whole, tmp_path, small_config):
  config, _ = whole
  assert train.run(config, tmp_path, StopAt(tmp_path, 4)) == 75
  with pytest.raises(UserError, match='but the run in .* has done'):
    train.run(small_config(total='2 steps'), tmp_path)
  assert not (tmp_path / 'result.json').exists()


@pytest.mark.slow
def test_the_best_is_kept_whatever_the_cadences(tmp_path, small_config):
  config = small_config(eval_every='5 steps', save_every='7 steps')
  assert train.run(config, tmp_path) == train.FINISHED
  result = json.loads((tmp_path / 'result.json').read_text())
  steps = checkpoint.Checkpoints(tmp_path / 'checkpoints').steps()
  assert result['best']['eval/test/accuracy']['step'] in steps


@pytest.mark.slow
def test_a_run_on_many_devices_is_evaluated_on_these(tmp_path, small_config):
  config = small_config(mesh__data='2', mesh__fsdp='4', total='2 steps')
  assert train.run(config, tmp_path) == train.FINISHED
  saved = json.loads((tmp_path / 'config.json').read_text())
  saved['mesh'] = {'data': 64, 'fsdp': 2, 'tensor': 1}  # that are not here
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  assert evaluate.run(*opened(tmp_path))['count'] == 360


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, root, small_flags):
  """Up to eight kills, some in a save: the end is the same, bit for bit."""
  flags = [
    *small_flags,
    '--config.total=120 steps',
    '--config.save_every=2 steps',
  ]
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  code, output = _end(_start(root, whole, flags))
  assert code == 0, output
  seed = int(time.time())
  print('seed', seed)
  rng = random.Random(seed)
  for _ in range(8):
    process = _start(root, broken, flags)
    time.sleep(rng.uniform(3, 9))
    process.kill()
    if _end(process)[0] == 0:
      break
  code, output = _end(_start(root, broken, flags))
  assert code == 0, output
  assert digest_of(whole) == digest_of(broken)


@pytest.mark.slow
def test_going_back_from_a_loss_that_is_not_finite(
  tmp_path, small_config, monkeypatch
):
  """And around the data: as if the stream had never held them."""
  original = loader_lib.Loader._train

  def poisoned(bad):
    def load(self, number, run):
      batch = original(self, number, run)
      return batch | {'image': batch['image'] / (number not in bad)}

    return load

  config = small_config(on_nonfinite='rollback')
  monkeypatch.setattr(loader_lib.Loader, '_train', poisoned({8, 13}))
  assert train.run(config, tmp_path / 'back') == train.FINISHED
  # Steps 7 to 9 undone, to the checkpoint of 6; then 11 (of batch 13).
  windows = [rollback.Window(6, 9), rollback.Window(6, 11)]
  assert rollback.read(tmp_path / 'back') == windows
  lines = writers.read_metrics(tmp_path / 'back' / 'metrics.jsonl')
  steps = [x['step'] for x in lines if 'train/loss' in x]
  assert steps == [4, 8, 12, 16, 20, 24]
  counts = [x.get('train/rollbacks') for x in lines if 'train/loss' in x]
  assert counts == [None, 2, 2, 2, 2, 2]

  def without(self, number, run):
    return original(self, number if number < 6 else number + 8, run)

  monkeypatch.setattr(loader_lib.Loader, '_train', without)
  assert train.run(config, tmp_path / 'never') == train.FINISHED
  assert digest_of(tmp_path / 'back') == digest_of(tmp_path / 'never')
  # Resumed, the windows are left out again.
  monkeypatch.setattr(loader_lib.Loader, '_train', poisoned({8, 13}))
  (tmp_path / 'back' / 'result.json').unlink()
  shutil.rmtree(tmp_path / 'back' / 'checkpoints' / '24')
  shutil.rmtree(tmp_path / 'back' / 'checkpoints' / '18', ignore_errors=True)
  assert train.run(config, tmp_path / 'back') == train.FINISHED
  assert digest_of(tmp_path / 'back') == digest_of(tmp_path / 'never')
  assert rollback.read(tmp_path / 'back') == windows


def test_going_back_ends(tmp_path, small_config, monkeypatch):
  original = loader_lib.Loader._train

  def poisoned(self, number, run):
    batch = original(self, number, run)
    return batch | {'image': batch['image'] / (number < 6)}

  monkeypatch.setattr(loader_lib.Loader, '_train', poisoned)
  config = small_config(on_nonfinite='rollback', max_rollbacks='2')
  with pytest.raises(UserError, match='after 2 rollbacks'):
    train.run(config, tmp_path)
  assert checkpoint.Checkpoints(tmp_path / 'checkpoints').steps() == [6]


@pytest.mark.slow
def test_a_full_disk(whole, tmp_path):
  """Says so, and the last checkpoint stands (here: files of at most 60 kB)."""
  config, uninterrupted = whole
  path = tmp_path / 'run'
  assert train.run(config, path, StopAt(path, 2)) == train.INTERRUPTED
  folder = path / 'checkpoints'
  before = {p.name for p in folder.iterdir()}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
  try:
    with pytest.raises(UserError, match='cannot be written to: File too large'):
      train.run(config, path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert before and before <= {p.name for p in folder.iterdir()}
  assert train.run(config, path) == train.FINISHED  # mended
  assert digest_of(path) == digest_of(uninterrupted)


@pytest.mark.slow
def test_a_disk_that_fills_up_under_tensorboard(
  whole, tmp_path, monkeypatch, capsys
):
  """It says so: no thread dies of it, for which others would wait forever."""
  config, _ = whole
  path = tmp_path / 'run'
  count = 0
  original = writers.EventsWriter.write_event

  def full(self, event):
    nonlocal count
    count += 1
    if count > 20:
      raise OSError(28, 'No space left on device')
    return original(self, event)

  monkeypatch.setattr(writers.EventsWriter, 'write_event', full)
  with pytest.raises(UserError, match='No space left on device'):
    train.run(config, path)
  monkeypatch.undo()
  assert train.run(config, path) == train.FINISHED


@pytest.mark.parametrize(
  'error, words',
  [
    (OSError(28, 'No space left on device'), 'No space left on device'),
    (PermissionError(13, 'Permission denied', '{path}/x'), 'Permission denied'),
    (ValueError('UNAVAILABLE: "{path}/d": Disk quota exceeded'), 'Disk quota'),
    # Not the workdir's: of the data, of a socket, of a program.
    (PermissionError(13, 'Permission denied', '/data/a.jpg'), ''),
    (OSError(5, 'Input/output error', '/data/a.jpg'), ''),
    (OSError(13, 'Permission denied'), ''),
    (OSError(28, 'No space left on device', '/tmp/index'), ''),
    (ValueError('no space left on device'), ''),
  ],
)
def test_which_errors_are_of_the_disk_of_the_workdir(error, words, tmp_path):
  named = tuple(
    x.format(path=tmp_path) if isinstance(x, str) else x
    for x in (*error.args, *filter(None, [getattr(error, 'filename', None)]))
  )
  outer = RuntimeError('while saving')
  outer.__cause__ = type(error)(*named)
  found = workdir.disk_error(outer, tmp_path)
  assert found.startswith(words) if words else not found
