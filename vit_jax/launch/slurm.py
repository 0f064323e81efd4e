"""`--launch=slurm` of train and sweep: the same command as a Slurm job.

submitit writes the batch script, submits it and names the logs. For `train`,
srun starts a process for each task, and they find each other through Slurm
(`--distributed`). A sweep is an array of tasks which are sweeps of one job each
in the same folder: they share its runs as any two sweeps do (sweeps/queue.py).
When Slurm preempts the job, and two minutes before its time is over, the tasks
get SIGTERM: they save, exit with 75, and the script queues the job again. The
script, not a task: scancel ends the script at once, so what the user cancels
stays cancelled, though its tasks save and exit with 75 too.
"""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from vit_jax.distributed import INTERRUPTED
from vit_jax.errors import UserError

_TEARDOWN = [
  'code=$?',  # srun's: the highest of the tasks
  f'[ $code != {INTERRUPTED} ] || scontrol requeue $SLURM_JOB_ID',
  'exit $code',
]
# srun of Slurm 22.05 to 24.05 does not look at what sbatch was told.
_SETUP = [
  '[ -z "$SLURM_CPUS_PER_TASK" ] || '
  'export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'
]


def run(argv: tuple[str, ...]):
  """What each task does; submitit pickles its name and arguments."""
  from vit_jax import cli

  sys.exit(cli.main(argv))  # submitit's own would be 0 or 1


def _tasks(args: Any) -> int:
  """Processes a node of `train`.

  Raises:
    UserError: numbers that cannot be.
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
  if (args.coordinator, args.processes, args.process) != ('', 0, -1):
    raise UserError(
      '--coordinator, --processes and --process are not for --launch=slurm: '
      'Slurm tells the tasks.'
    )
  return tasks


def _parameters(args: Any, nodes: int, tasks: int) -> dict[str, Any]:
  """Of sbatch, by submitit's names.

  Raises:
    UserError: an option that is none.
  """
  more: dict[str, Any] = {'requeue': True, 'signal': 'TERM@120'}
  for text in args.slurm:
    name, equals, value = text.partition('=')
    if not name or name.startswith('-'):
      raise UserError(
        f'--slurm={text}: write OPTION=VALUE as of sbatch, without dashes: '
        '--slurm=partition=gpu.'
      )
    more[name] = value if equals else True
  return {
    'job_name': args.workdir.absolute().name,
    'nodes': nodes,
    'ntasks_per_node': tasks,
    'gpus_per_node': args.gpus_per_node or None,
    'time': None,  # the partition's, where --slurm=time does not say
    'stderr_to_stdout': True,
    'setup': _SETUP,
    # A task that hangs while the others ended does not hold the nodes.
    'srun_args': ['--wait=60'],
    'teardown': _TEARDOWN,
    'additional_parameters': more,
  }


def submit(args: Any, argv: tuple[str, ...]) -> str:
  """Submits a job that trains; what to tell the user.

  Args:
    args: of `train`, parsed.
    argv: of `train --distributed`, as the tasks are to run it.

  Raises:
    UserError: no submitit, no Slurm, or Slurm refuses.
  """
  tasks = _tasks(args)
  parameters = _parameters(args, args.nodes, tasks)
  job, folder = _submit(args, parameters, lambda e: e.submit(run, argv))
  return (
    f'job {job.job_id}: {args.nodes} x {tasks} '
    f'processes; squeue -j {job.job_id}, scancel {job.job_id}\n'
    f'logs: {folder}/{job.job_id}_0_log.out'
  )


def submit_array(args: Any, argv: tuple[str, ...]) -> str:
  """Submits `args.jobs` workers of a sweep, a job array; what to tell the user.

  Raises:
    UserError: as `submit`.
  """
  parameters = _parameters(args, 1, 1)
  jobs, folder = _submit(
    args, parameters, lambda e: e.map_array(run, [argv] * args.jobs)
  )
  number = jobs[0].job_id.partition('_')[0]
  return (
    f'job array {number}: {args.jobs} workers; squeue -j {number}, scancel '
    f'{number}\nlogs: {folder}/{number}_*_log.out\n'
    f'where it is: python -m vit_jax report {args.workdir}'
  )


def _submit(args: Any, parameters: dict, how: Callable[[Any], Any]):
  """(what `how` returns of the executor, the folder of logs)."""
  # Its configuration of logging closes the handlers of all others.
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  try:
    import submitit
  except ImportError as error:
    raise UserError(
      "--launch=slurm needs submitit: pip install 'vit_jax[slurm]'."
    ) from error
  if not (shutil.which('sbatch') and shutil.which('srun')):
    raise UserError(
      '--launch=slurm: there is no sbatch here. Run this on a login node of '
      'the cluster.'
    )
  folder = args.workdir.absolute() / 'slurm'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**parameters)
    return how(executor), folder
  except (submitit.core.utils.FailedJobError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'--launch=slurm: Slurm refuses ({reason}).') from error
