"""`train --launch=slurm`: what is submitted, and a real Slurm on loopback."""

import getpass
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time

import pytest

from tests.test_distributed import _port, losses
from tests.test_train import digest_of
from vit_jax import cli, config, writers
from vit_jax import flags as flags_lib

FAKES = {
  'sbatch': 'cp "$1" script; echo Submitted batch job 77',
  'srun': 'echo "$SRUN_CPUS_PER_TASK $@" >srun; exit $CODE',
  'scontrol': 'echo "$@" >scontrol',
}


@pytest.fixture
def fake(tmp_path, monkeypatch, root):
  """An sbatch that keeps what it is given; gives a function to launch by."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, text in FAKES.items():
    (folder / name).write_text(f'#!/bin/sh\ncd {tmp_path}\n{text}\n')
    (folder / name).chmod(stat.S_IRWXU)
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')

  def launch(*flags):
    file = f'--config={root / "configs" / "digits.py"}'
    workdir = f'--workdir={tmp_path / "run"}'
    return cli.main(['train', file, workdir, *flags])

  return launch


def test_what_is_submitted(fake, tmp_path, capsys):
  flags = ['--launch=slurm', '--nodes=2', '--gpus_per_node=4']
  flags += ['--slurm=partition=big', '--slurm=exclusive']
  assert fake(*flags, '--config.seed=5') == 0
  said = capsys.readouterr().out
  assert said.startswith('job 77: 2 x 4 processes') and 'scancel 77' in said
  script = (tmp_path / 'script').read_text()
  for line in (
    '--nodes=2',
    '--ntasks-per-node=4',
    '--gpus-per-node=4',
    '--partition=big',
    '--exclusive',
    '--requeue',
    '--open-mode=append',
    '--signal=TERM@120',
    '--job-name=run',
  ):
    assert f'#SBATCH {line}\n' in script, script
  assert '--time' not in script  # the partition's own
  (pickled,) = (tmp_path / 'run' / 'slurm').glob('77_submitted.pkl')
  import submitit  # configured by the launch

  task = submitit.core.utils.DelayedSubmission.load(pickled)
  (argv,) = task.args
  assert argv[-2:] == ('--peer_timeout=30.0', '--config.seed=5')
  assert '--distributed' in argv and not any('--launch' in x for x in argv)
  args = flags_lib.parser().parse_args(argv[:-1])
  assert args.distributed and args.workdir == tmp_path / 'run'


def test_a_sweep_is_an_array_of_workers(fake, root, tmp_path, capsys):
  flags = [f'--experiment={root / "experiments" / "seeds.py"}']
  flags += [f'--workdir={tmp_path / "sweep"}', '--launch=slurm', '--jobs=3']
  flags += ['--gpus_per_node=1', '--slurm=partition=big', '--retries=1']
  assert cli.main(['sweep', *flags, '--config.model.depth=2']) == 0
  said = capsys.readouterr().out
  assert said.startswith('job array 77: 3 workers') and 'vit_jax report' in said
  script = (tmp_path / 'script').read_text()
  for line in ('--array=0-2%', '--gpus-per-node=1', '--partition=big'):
    assert f'#SBATCH {line}' in script, script
  assert 'scontrol requeue $SLURM_JOB_ID' in script
  import submitit  # configured by the launch

  for number in range(3):
    folder = tmp_path / 'sweep' / 'slurm'
    (pickled,) = folder.glob(f'77_{number}_submitted.pkl')
    (argv,) = submitit.core.utils.DelayedSubmission.load(pickled).args
    assert argv[-1] == '--config.model.depth=2'
    args = flags_lib.parser().parse_args(argv[:-1])
    assert (args.command, args.jobs, args.retries) == ('sweep', 1, 1)
    assert args.launch == 'local' and args.experiment.is_absolute()


@pytest.mark.parametrize('code', [0, 1, 2, 75, 137])
def test_only_what_was_interrupted_is_queued_again(code, fake, tmp_path):
  """The script itself, by a shell, with an srun that ends with `code`."""
  flags = ['--launch=slurm', '--slurm=cpus-per-task=3', '--slurm=time=2:00:00']
  assert fake(*flags, '--slurm=signal=TERM@300') == 0
  script = (tmp_path / 'script').read_text()
  assert '--time=2:00:00\n' in script and '--signal=TERM@300\n' in script
  slurm = {'SLURM_JOB_ID': '77', 'SLURM_CPUS_PER_TASK': '3'}
  environment = os.environ | slurm | {'CODE': str(code)}
  done = subprocess.run(['bash', tmp_path / 'script'], env=environment)
  assert done.returncode == code
  assert (tmp_path / 'srun').read_text().startswith('3 --unbuffered')
  again = tmp_path / 'scontrol'
  assert (again.read_text() if again.exists() else '') == (
    'requeue 77\n' if code == 75 else ''
  )


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--nodes=2'], '--nodes is for --launch=slurm'),
    (['--slurm=a=b'], '--slurm is for --launch=slurm'),
    (['--launch=slurm', '--nodes=0'], '--nodes=0: at least 1'),
    (['--launch=slurm', '--slurm=--time=3'], 'write OPTION=VALUE as of sbatch'),
    (
      ['--launch=slurm', '--gpus_per_node=4', '--tasks_per_node=2'],
      'JAX gives each process one GPU',
    ),
    (['--launch=slurm', '--process=1'], 'are not for --launch=slurm'),
    (['--launch=slurm', '--config.sed=1'], "Did you mean 'seed'"),
    (['--launch=slrm'], "invalid choice: 'slrm'"),
  ],
)
def test_mistakes_end_before_the_queue(fake, flags, words, tmp_path, capsys):
  assert fake(*flags) == 2
  assert words in capsys.readouterr().err
  assert not (tmp_path / 'script').exists()


def test_a_run_of_another_config_ends_before_the_queue(
  fake, tmp_path, capsys, small_config
):
  (tmp_path / 'run').mkdir()
  text = config.to_json(small_config(seed='1'))
  (tmp_path / 'run' / 'config.json').write_text(text)
  assert fake('--launch=slurm') == 2
  assert 'config.seed was 1, is now 0' in capsys.readouterr().err
  assert not (tmp_path / 'script').exists()


def test_no_submitit(fake, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  assert fake('--launch=slurm') == 2
  assert "pip install 'vit_jax[slurm]'" in capsys.readouterr().err


def test_slurm_that_refuses(fake, tmp_path, capsys):
  (tmp_path / 'bin' / 'sbatch').write_text(
    "#!/bin/sh\necho 'sbatch: error: invalid partition: big' >&2\nexit 1\n"
  )
  assert fake('--launch=slurm') == 2
  assert 'invalid partition: big' in capsys.readouterr().err


def test_no_slurm_here(fake, monkeypatch, capsys):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  assert fake('--launch=slurm') == 2
  assert 'there is no sbatch here' in capsys.readouterr().err


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=30
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} PriorityTier=9
"""


class Slurm:
  """munged, slurmctld and slurmd of our own, on loopback."""

  def __init__(self, folder):
    host = socket.gethostname().partition('.')[0]
    for name in ('state', 'spool'):
      (folder / name).mkdir()
    self.conf, key = folder / 'slurm.conf', folder / 'munge.key'
    self.conf.write_text(
      CONF.format(
        host=host,
        ports=[_port(), _port()],
        user=getpass.getuser(),
        folder=folder,
      )
    )
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    self.environment = os.environ | {'SLURM_CONF': str(self.conf)}
    socket_, pid = folder / 'munge.socket', folder / 'munged.pid'
    munge = ['munged', '-F', '--force', f'--socket={socket_}']
    munge += [f'--key-file={key}', f'--pid-file={pid}']
    munge += [f'--log-file={folder}/munged.log', f'--seed-file={folder}/seed']
    self.daemons, self._log = [], folder / 'daemons.log'
    for command in (
      munge,
      ['slurmctld', '-D', '-f', str(self.conf)],
      ['slurmd', '-D', '-f', str(self.conf), '-N', host],
    ):
      with open(self._log, 'a') as log:
        self.daemons.append(
          subprocess.Popen(
            command, stdout=log, stderr=log, env=self.environment
          )
        )
      time.sleep(1)

  def __call__(self, *command):
    done = subprocess.run(
      command, env=self.environment, capture_output=True, text=True
    )
    return done.stdout.strip()

  def wait(self, what, seconds, path):
    """Until it is true; what the job and the daemons said if it is not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
      if what():
        return
      time.sleep(0.5)
    logs = [*path.glob('slurm/*_log.*'), self._log]
    raise AssertionError(
      '\n'.join(f'{x}:\n{x.read_text()[-3000:]}' for x in logs)
      + self('squeue', '-l')
    )

  def state(self, job):
    return self('squeue', '-h', '-j', job, '-o', '%T')

  def end(self):
    """Of the jobs first: they would outlive the daemons."""
    self('scancel', '--user', getpass.getuser())
    until = time.monotonic() + 45  # beyond KillWait
    while self('squeue', '-h') and time.monotonic() < until:
      time.sleep(0.5)
    for daemon in self.daemons[::-1]:
      daemon.terminate()
    for daemon in self.daemons:
      try:
        daemon.wait(10)
      except subprocess.TimeoutExpired:
        daemon.kill()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  if shutil.which('slurmctld', path=os.environ['PATH'] + ':/usr/sbin') is None:
    pytest.skip('no Slurm here, and `make test-slow` may not install it')
  monkeypatch.setenv('PATH', os.environ['PATH'] + ':/usr/sbin')
  slurm = Slurm(tmp_path)
  try:
    yield slurm
  finally:
    slurm.end()


@pytest.fixture
def submit(slurm, tmp_path, small_flags, vit_jax):
  """Launches a run of two tasks; gives its workdir and the job's number."""
  slurm.wait(lambda: slurm('sinfo', '-h', '-o', '%T') == 'idle', 60, tmp_path)

  def run(name, *more):
    flags = [*small_flags, '--config=configs/digits.py', '--peer_timeout=20']
    flags += ['--launch=slurm', '--tasks_per_node=2', *more]
    code, out, err = vit_jax(
      'train', f'--workdir={tmp_path / name}', *flags, env=slurm.environment
    )
    assert code == 0 and '1 x 2 processes' in out, err
    return tmp_path / name, out.split()[1].strip(':')

  return run


def newest(path):
  """The last step in metrics.jsonl, or 0."""
  lines = writers.read_metrics(path / 'metrics.jsonl')
  return lines[-1]['step'] if lines else 0


@pytest.mark.slow
def test_preempted_queued_again_and_finished(slurm, submit):
  """Two tasks, stopped by a job that goes before: the same run in the end."""
  flags = ['--config.total=400 steps', '--config.optim.lr=1e-4']
  flags += ['--slurm=time=30']
  path, job = submit('run', *flags)
  slurm.wait(lambda: newest(path) >= 8, 240, path)
  first = slurm(
    'sbatch', '-p', 'high', '-n', '2', '--wrap', 'true', '-o', '/dev/null'
  )
  assert 'Submitted' in first
  slurm.wait(lambda: slurm.state(job) == 'PENDING', 120, path)
  assert newest(path) < 400
  # Slurm lets a requeued job wait for two minutes. Not quite at once: slurmd
  # would take it for the one that it has just killed.
  time.sleep(5)
  slurm.wait(
    lambda: (
      slurm('scontrol', 'update', f'jobid={job}', 'StartTime=now')
      or slurm.state(job) == 'RUNNING'
    ),
    150,
    path,
  )
  slurm.wait((path / 'result.json').exists, 300, path)
  starts = json.loads((path / 'provenance.json').read_text())['starts']
  assert [s['devices']['processes'] for s in starts] == [2, 2]
  log = (path / 'slurm' / f'{job}_0_log.out').read_text()
  assert 'saved after step' in log and 'resuming after step' in log
  assert losses(path).keys() == set(range(4, 401, 4))
  # Bit for bit the run that nothing interrupts.
  whole, _ = submit('whole', *flags)
  slurm.wait((whole / 'result.json').exists, 300, whole)
  assert digest_of(path) == digest_of(whole)


@pytest.mark.slow
def test_cancelled_is_not_queued_again(slurm, submit):
  """Though its tasks save, and exit with 75."""
  path, job = submit('run', '--config.total=100000 steps')
  slurm.wait(lambda: newest(path) >= 8, 240, path)
  slurm('scancel', job)
  slurm.wait(lambda: slurm.state(job) == '', 60, path)
  shown = slurm('scontrol', 'show', 'job', job)
  assert 'JobState=CANCELLED' in shown and 'Restarts=0' in shown
  log = (path / 'slurm' / f'{job}_0_log.out').read_text()
  assert 'saved after step' in log and 'exit code 75' in log


@pytest.mark.slow
def test_a_sweep_as_an_array(slurm, tmp_path, root, small_flags, vit_jax):
  """Two workers share three runs; one is preempted, and queued again."""
  slurm.wait(lambda: slurm('sinfo', '-h', '-o', '%T') == 'idle', 60, tmp_path)
  file = tmp_path / 'experiment.py'
  file.write_text(
    'from vit_jax.sweeps import grid\n'
    f'CONFIG = {str(root / "configs" / "digits.py")!r}\n'
    "def sweep():\n  return grid({'seed': range(3)})\n"
  )
  path = tmp_path / 'sweep'
  code, out, err = vit_jax(
    'sweep',
    f'--experiment={file}',
    f'--workdir={path}',
    '--launch=slurm',
    '--jobs=2',
    '--slurm=time=30',
    *small_flags,
    env=slurm.environment,
  )
  assert code == 0 and '2 workers' in out, err
  runs = [path / f'seed={i}' for i in range(3)]
  slurm.wait(lambda: newest(runs[0]) or newest(runs[1]), 240, path)
  first = slurm(
    'sbatch', '-p', 'high', '-n', '2', '--wrap', 'true', '-o', '/dev/null'
  )
  assert 'Submitted' in first
  slurm.wait(lambda: 'PENDING' in slurm('squeue', '-h', '-o', '%T'), 120, path)
  time.sleep(5)

  def done():
    pending = slurm('squeue', '-h', '-r', '-t', 'PENDING', '-o', '%A')
    for job in pending.split():
      slurm('scontrol', 'update', f'jobid={job}', 'StartTime=now')
    return all((run / 'result.json').exists() for run in runs)

  slurm.wait(done, 400, path)
  slurm.wait(lambda: slurm('squeue', '-h') == '', 120, path)
  text = ''.join(p.read_text() for p in (path / 'slurm').glob('*_log.out'))
  assert 'SIGTERM: the runs were saved' in text and '3 of 3 finished' in text
  for run in runs:
    steps = [x['step'] for x in writers.read_metrics(run / 'metrics.jsonl')]
    assert steps == sorted(steps) and steps[-1] == 24
