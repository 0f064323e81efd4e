"""Several real processes on one machine, joined by gloo; and what ends them."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.test_train import digest_of
from vit_jax import cli, workdir, writers

TIMEOUT = 5  # seconds until a silent process is taken for dead


def _port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


class Cluster:
  """`count` processes of one run, with `devices` each."""

  def __init__(self, root, path, flags, count, devices=1, own=None):
    self.path, port = path, _port()
    path.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
    self.logs = [path.parent / f'{path.name}.{i}.log' for i in range(count)]
    self.processes = []
    for i, log in enumerate(self.logs):
      command = [sys.executable, '-m', 'vit_jax', 'train']
      command += ['--config=configs/digits.py', f'--workdir={path}']
      command += [f'--coordinator=127.0.0.1:{port}', f'--processes={count}']
      command += [f'--process={i}', f'--peer_timeout={TIMEOUT}', *flags]
      command += (own or {}).get(i, [])
      with open(log, 'w') as file:
        self.processes.append(
          subprocess.Popen(
            command, cwd=root, stdout=file, stderr=file, env=environment
          )
        )

  def alive(self):
    return all(p.poll() is None for p in self.processes)

  def wait_for_step(self, step):
    while self.alive():
      lines = writers.read_metrics(self.path / 'metrics.jsonl')
      if lines and lines[-1]['step'] >= step:
        return
      time.sleep(0.01)
    raise AssertionError(self.text())

  def text(self):
    return '\n'.join(log.read_text() for log in self.logs)

  def end(self, timeout=240):
    """The exit codes."""
    until = time.monotonic() + timeout
    try:
      return [
        p.wait(max(0.1, until - time.monotonic())) for p in self.processes
      ]
    finally:
      for process in self.processes:
        process.kill()
        process.wait()


def losses(path):
  lines = writers.read_metrics(path / 'metrics.jsonl')
  return {x['step']: x['train/loss'] for x in lines if 'train/loss' in x}


def close(one, other, most=1e-5):
  assert one.keys() == other.keys()
  return all(abs(one[k] / other[k] - 1) < most for k in one)


@pytest.fixture(scope='module')
def flags():
  """A run of 24 steps at a rate at which rounding does not grow."""
  from tests.conftest import SMALL

  values = SMALL | {'optim.lr': '1e-4', 'log_every': '1 steps'}
  values['evaluators'] = "('classification', 'knn(5)', 'linear_probe(1)')"
  return [f'--config.{name}={value}' for name, value in values.items()]


@pytest.fixture(scope='module')
def two(tmp_path_factory, root, flags):
  """An uninterrupted run of two processes with a device each."""
  path = tmp_path_factory.mktemp('two') / 'run'
  cluster = Cluster(root, path, flags, 2)
  assert cluster.end() == [0, 0], cluster.text()
  return cluster


@pytest.fixture(scope='module')
def alone(tmp_path_factory, root, flags):
  """The same by this process, on eight simulated devices."""
  from vit_jax import config, train

  values = [f.removeprefix('--config.').split('=', 1) for f in flags]
  path = tmp_path_factory.mktemp('alone')
  file = str(root / 'configs' / 'digits.py')
  train.run(config.load(file, [(k, v) for k, v in values]), path)
  return path


@pytest.mark.slow
def test_two_processes_are_one_run(alone, tmp_path, root, flags):
  """A signal to one stops both, with 75; resumed, the curve is the same."""
  path = tmp_path / 'run'
  cluster = Cluster(root, path, flags, 2)
  cluster.wait_for_step(3)
  cluster.processes[1].send_signal(signal.SIGTERM)
  assert cluster.end() == [75, 75], cluster.text()
  assert 'a signal to another process: saved after step' in cluster.text()
  cluster = Cluster(root, path, flags, 2)
  assert cluster.end() == [0, 0], cluster.text()
  first, second = (log.read_text() for log in cluster.logs)
  assert 'resuming after step' in first and 'finished 24 steps' in first
  assert 'resuming' not in second  # one speaks, and writes:
  lines = writers.read_metrics(path / 'metrics.jsonl')
  steps = [x['step'] for x in lines]
  assert steps == sorted(steps) and len(steps) == 24 + 2 + 1  # evaluators
  assert len(list(path.glob('events*'))) == 2  # one a start
  starts = json.loads((path / 'provenance.json').read_text())['starts']
  count = {'kind': 'cpu', 'count': 2, 'processes': 2}
  assert [start['devices'] for start in starts] == [count, count]
  assert close(losses(path), losses(alone))
  ours, theirs = (
    json.loads((p / 'result.json').read_text())['metrics']
    for p in (path, alone)
  )
  assert ours['eval/test/count'] == 360
  for name in ('loss', 'nll', 'brier', 'ece', 'knn_5', 'linear_probe'):
    name = f'eval/test/{name}'
    assert ours[name] == pytest.approx(theirs[name], 1e-4), name
  assert (path / 'mistakes.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_interrupted_or_not_bits_are_the_same(
  victim, two, tmp_path, root, flags
):
  path = tmp_path / 'run'
  cluster = Cluster(root, path, flags, 2)
  cluster.wait_for_step(9)
  cluster.processes[victim].send_signal(signal.SIGTERM)
  assert cluster.end() == [75, 75], cluster.text()
  assert Cluster(root, path, flags, 2).end() == [0, 0]
  assert digest_of(path) == digest_of(two.path)


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [['data=-1'], ['data=1', 'fsdp=-1'], ['data=1', 'fsdp=2', 'tensor=2']]
)
def test_four_processes_are_one_run(mesh, tmp_path, root, flags, alone):
  """Also where two share the rows of a batch (a tensor axis across them)."""
  axes = [f'--config.mesh.{axis}' for axis in mesh]
  cluster = Cluster(root, tmp_path / 'run', [*flags, *axes], 4)
  assert cluster.end(400) == [0] * 4, cluster.text()
  assert close(losses(tmp_path / 'run'), losses(alone))


@pytest.mark.slow
def test_control_other_data_are_another_curve(tmp_path, root, flags, alone):
  other = [*flags, '--config.seed=1']
  assert Cluster(root, tmp_path / 'run', other, 2).end() == [0, 0]
  assert not close(losses(tmp_path / 'run'), losses(alone), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('count, devices', [(1, 1), (1, 4), (4, 1)])
def test_a_run_of_two_goes_on_as_another_number(
  count, devices, two, tmp_path, root, flags
):
  """Interrupted on two processes with FSDP, resumed on one, or on four."""
  path = tmp_path / 'run'
  sharded = ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  cluster = Cluster(root, path, [*flags, *sharded], 2)
  cluster.wait_for_step(8)
  cluster.processes[0].send_signal(signal.SIGTERM)
  assert cluster.end() == [75, 75], cluster.text()
  cluster = Cluster(root, path, flags, count, devices)
  assert cluster.end(400) == [0] * count, cluster.text()
  assert close(losses(path), losses(two.path))


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('how', ['KILL', 'STOP'])
def test_who_dies_or_hangs_ends_the_others(victim, how, tmp_path, root, flags):
  """Within the time set, with its name and 75; nothing is lost but a while."""
  cluster = Cluster(
    root, tmp_path / 'run', [*flags, '--config.total=100000 steps'], 2
  )
  cluster.wait_for_step(3)
  cluster.processes[victim].send_signal(getattr(signal, f'SIG{how}'))
  survivor = cluster.processes[1 - victim]
  try:
    assert survivor.wait(60) == 75, cluster.text()
  finally:
    for process in cluster.processes:
      process.kill()
      process.wait()
  said = cluster.logs[1 - victim].read_text()
  assert f'vit_jax: process {victim}' in said
  assert 'goes on from the last checkpoint' in said


def _starts(path):
  saved = workdir.read_json(path / 'provenance.json')
  return len(saved['starts']) if saved else 0


@pytest.mark.slow
def test_kills_of_processes_at_random_moments(two, tmp_path, root, flags):
  """Of one, the other or both, some in a save: the end is bit for bit equal."""
  path, often = tmp_path / 'run', [*flags, '--config.save_every=2 steps']
  seed = int(time.time())
  print('seed', seed)
  rng, done = random.Random(seed), 0
  order = rng.sample([[0], [1], [0, 1], [0], [1]], 4)
  for number, victims in enumerate(order, 1):
    cluster = Cluster(root, path, often, 2)
    # Not before they met: who waits for one that never comes does so longer.
    while _starts(path) < number and cluster.alive():
      time.sleep(0.01)
    with contextlib.suppress(AssertionError):  # it was done before that
      done += rng.randint(1, 6)
      cluster.wait_for_step(done)
    time.sleep(rng.uniform(0, 0.3))
    for victim in victims:
      cluster.processes[victim].kill()
    codes = cluster.end(60)
    print(victims, codes)
    if codes == [0, 0]:
      break
    killed = {i: -signal.SIGKILL for i in victims}
    # 75, or finished in the moment of the kill.
    assert all(c in (killed.get(i, 75), 0) for i, c in enumerate(codes)), (
      cluster.text()
    )
  cluster = Cluster(root, path, often, 2)
  assert cluster.end() == [0, 0], cluster.text()
  assert digest_of(path) == digest_of(two.path)


def test_an_error_of_one_ends_both(tmp_path, root, flags):
  """Another command line for one of them: both say so, with 2."""
  own = {1: ['--config.seed=3']}
  cluster = Cluster(root, tmp_path / 'run', flags, 2, own=own)
  assert cluster.end() == [2, 2], cluster.text()
  assert 'process 1 has another config than process 0' in cluster.text()
  assert 'Traceback' not in cluster.text()


@pytest.mark.slow
def test_all_pass_over_a_damaged_checkpoint(two, tmp_path, root, flags):
  """And go on from the one before, as from a shared disk's."""
  path = tmp_path / 'run'
  cluster = Cluster(root, path, flags, 2)
  cluster.wait_for_step(14)
  cluster.processes[1].send_signal(signal.SIGTERM)
  assert cluster.end() == [75, 75], cluster.text()
  newest = max(int(p.name) for p in (path / 'checkpoints').iterdir())
  files = list((path / 'checkpoints' / str(newest) / 'params').rglob('d/*'))
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[:-40])
  cluster = Cluster(root, path, flags, 2)
  assert cluster.end() == [0, 0], cluster.text()
  assert 'the checkpoint is damaged' in cluster.text()
  assert digest_of(path) == digest_of(two.path)


@pytest.mark.parametrize(
  'given, words',
  [
    (['--coordinator=h:1'], 'give all three'),
    (['--processes=2', '--process=0'], 'give all three'),
    (['--coordinator=h:1', '--processes=2', '--process=2'], 'give all three'),
    (['--coordinator=h', '--processes=2', '--process=0'], 'write HOST:PORT'),
    (
      ['--coordinator=127.0.0.1:99999', '--processes=2', '--process=1'],
      'a port from 1 to 65535',
    ),
    (
      ['--coordinator=nohost.invalid:123', '--processes=2', '--process=1'],
      "the host 'nohost.invalid' is not known",
    ),
    (
      ['--coordinator=h:1', '--processes=2', '--process=0', '--peer_timeout=0'],
      '--peer_timeout=0: at least 1 second',
    ),
  ],
)
def test_mistakes(given, words, tmp_path, root, capsys):
  from vit_jax import cli

  config = f'--config={root / "configs" / "digits.py"}'
  flags = ['train', config, f'--workdir={tmp_path}', *given]
  assert cli.main(flags) == 2
  assert words in capsys.readouterr().err


def test_nobody_tells_where_the_others_are(vit_jax, tmp_path):
  flags = ['--config=configs/digits.py', f'--workdir={tmp_path}']
  code, _, err = vit_jax('train', *flags, '--distributed')
  assert code == 2 and 'Traceback' not in err
  assert '--distributed: no Slurm, TPU VM, GKE or MPI tells' in err


@pytest.mark.parametrize('process', [0, 1])
@pytest.mark.slow
def test_others_that_do_not_come(process, tmp_path, root):
  """A scheduler had no place for them yet: 75, to be started again."""
  code = (
    'import sys; from vit_jax import cli, distributed;'
    'distributed._JOIN_SECONDS = 2; sys.exit(cli.main(sys.argv[1:]))'
  )
  flags = ['--config=configs/digits.py', f'--workdir={tmp_path / "run"}']
  flags += [f'--coordinator=127.0.0.1:{_port()}', '--processes=2']
  done = subprocess.run(
    [sys.executable, '-c', code, 'train', *flags, f'--process={process}'],
    cwd=root,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 75, done.stderr
  assert 'vit_jax: not all processes came to the coordinator' in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_port_in_use(capsys, tmp_path):
  with socket.socket() as other:
    other.bind(('0.0.0.0', 0))
    other.listen()
    port = other.getsockname()[1]
    flags = [f'--coordinator=127.0.0.1:{port}', '--processes=2', '--process=0']
    flags += ['--config=configs/digits.py', f'--workdir={tmp_path / "w"}']
    assert cli.main(['train', *flags]) == 2
  assert f'port {port} of this host is in use' in capsys.readouterr().err


def test_a_signal_while_it_waits_for_the_others(root, tmp_path):
  """It leaves at once: JAX waits in C++, where Python's handlers do not run."""
  flags = [f'--coordinator=127.0.0.1:{_port()}', '--processes=2']
  flags += ['--process=0', '--config=configs/digits.py']
  process = subprocess.Popen(
    [sys.executable, '-m', 'vit_jax', 'train', *flags, f'--workdir={tmp_path}'],
    cwd=root,
    stderr=subprocess.PIPE,
  )
  while not _waits(process.pid):
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  error = process.communicate(timeout=30)[1].decode()
  assert process.returncode == 75
  assert 'vit_jax: SIGTERM while waiting for the other processes' in error


def _waits(pid):
  """Whether it has the pipe by which a thread learns of signals."""
  pipes = []
  for file in os.listdir(f'/proc/{pid}/fd'):
    with contextlib.suppress(OSError):
      pipes.append(os.readlink(f'/proc/{pid}/fd/{file}'))
  return any(
    pipe.startswith('pipe:') and pipes.count(pipe) > 1 for pipe in pipes
  )


@pytest.mark.slow
def test_a_teacher_that_is_divided(two, tmp_path, root, flags):
  """Its parameters are on both processes; its digest is of all of them."""
  more = ['--config.mesh.data=1', '--config.mesh.fsdp=2']
  more += [f'--config.task.teacher={two.path}', '--config.total=6 steps']
  cluster = Cluster(root, tmp_path / 'run', [*flags, *more], 2)
  assert cluster.end() == [0, 0], cluster.text()
  kept = workdir.read_json(tmp_path / 'run' / 'provenance.json')['teacher']
  lines = writers.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert len(kept) == 64 and 'train/agreement' in lines[0]
