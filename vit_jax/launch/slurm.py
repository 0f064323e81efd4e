"""`train --launch=slurm`: the same command as a Slurm job, by submitit.

submitit writes the batch script, keeps the logs, and starts a process for each
task; the tasks find each other through Slurm (`--distributed`). A preempted job
or one near its time limit saves, exits with 75 and is queued again.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError

_REQUEUE = 75


@dataclasses.dataclass(frozen=True)
class Task:
  """What each task of the job does; submitit pickles it.

  Attributes:
    argv: of `python -m vit_jax`.
    cwd: where that was typed: paths in it are relative to here.
  """

  argv: tuple[str, ...]
  cwd: str

  def __call__(self):
    """Trains; the exit code is that of `train`, and 75 queues the job again."""
    os.chdir(self.cwd)
    # Slurm's word, as submitit has it, that the time is nearly over.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(15))
    from vit_jax.cli import main

    code = main(self.argv)
    if code == _REQUEUE and os.environ.get('SLURM_PROCID', '0') == '0':
      job = os.environ['SLURM_JOB_ID']
      # It may be in the queue by now: whoever preempts may see to that.
      subprocess.run(['scontrol', 'requeue', job], check=False)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # submitit's would be 0 or 1


def _parameters(args: Any) -> dict[str, Any]:
  """Of sbatch, by submitit's names.

  Raises:
    UserError: a value that cannot be.
  """
  tasks = args.tasks_per_node or args.gpus_per_node or 1
  for name in ('nodes', 'tasks_per_node', 'gpus_per_node'):
    if getattr(args, name) < 0 or (name == 'nodes' and args.nodes < 1):
      raise UserError(f'--{name}={getattr(args, name)}: at least 1.')
  if args.gpus_per_node and tasks != args.gpus_per_node:
    raise UserError(
      f'--tasks_per_node={tasks} with --gpus_per_node={args.gpus_per_node}: '
      'on Slurm JAX gives each process one GPU, so let them be equal.'
    )
  more = {}
  for text in args.slurm:
    name, equals, value = text.partition('=')
    if not name or name.startswith('-'):
      raise UserError(
        f'--slurm={text}: write OPTION=VALUE as of sbatch, without dashes: '
        '--slurm=partition=gpu.'
      )
    more[name] = value if equals else True
  return {
    'job_name': args.workdir.name,
    'nodes': args.nodes,
    'ntasks_per_node': tasks,
    **({'gpus_per_node': args.gpus_per_node} if args.gpus_per_node else {}),
    'signal_delay_s': 120,
    'stderr_to_stdout': True,
    'additional_parameters': {'requeue': True, 'time': '1-00:00:00'} | more,
  }


def submit(args: Any, argv: tuple[str, ...]) -> str:
  """Submits the job; what to tell the user.

  Args:
    args: of `train`, parsed.
    argv: of `train --distributed`, as the tasks are to run it.

  Raises:
    UserError: no submitit, no Slurm, or Slurm refuses.
  """
  parameters = _parameters(args)
  # Its configuration of logging closes the handlers of all others.
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  try:
    import submitit
  except ImportError as error:
    raise UserError(
      "--launch=slurm needs submitit: pip install 'vit_jax[slurm]'."
    ) from error
  if shutil.which('sbatch') is None:
    raise UserError(
      '--launch=slurm: there is no sbatch here. Run this on a login node of '
      'the cluster.'
    )
  folder = args.workdir.absolute() / 'slurm'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=folder, python=sys.executable)
    executor.update_parameters(**parameters)
    job = executor.submit(Task(argv, str(Path.cwd())))
  except (submitit.core.utils.FailedJobError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'--launch=slurm: Slurm refuses ({reason}).') from error
  return (
    f'job {job.job_id}: {args.nodes} x {parameters["ntasks_per_node"]} '
    f'processes; squeue -j {job.job_id}, scancel {job.job_id}\n'
    f'logs: {folder}/{job.job_id}_0_log.out'
  )
