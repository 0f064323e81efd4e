"""`train --launch=slurm`: the same command as a Slurm job, by submitit.

submitit writes the batch script, submits it and names the logs; srun starts a
process for each task, and they find each other through Slurm (`--distributed`).
When Slurm preempts the job, and two minutes before its time is over, the tasks
get SIGTERM: they save, exit with 75, and the script queues the job again. The
script, not a task: scancel ends the script at once, so what the user cancels
stays cancelled, though its tasks save and exit with 75 too.
"""

import os
import shutil
import sys
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
  if (args.coordinator, args.processes, args.process) != ('', 0, -1):
    raise UserError(
      '--coordinator, --processes and --process are not for --launch=slurm: '
      'Slurm tells the tasks.'
    )
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
    'nodes': args.nodes,
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
    job = executor.submit(run, argv)
  except (submitit.core.utils.FailedJobError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'--launch=slurm: Slurm refuses ({reason}).') from error
  return (
    f'job {job.job_id}: {args.nodes} x {parameters["ntasks_per_node"]} '
    f'processes; squeue -j {job.job_id}, scancel {job.job_id}\n'
    f'logs: {folder}/{job.job_id}_0_log.out'
  )
