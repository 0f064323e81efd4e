"""The flags of every command, in one place."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vit_jax.errors import UserError, did_you_mean


def _pair(text: str) -> tuple[int, int]:
  """'224' or '224x192' -> (h, w)."""
  parts = text.split('x')
  if len(parts) not in (1, 2) or not all(p.isdigit() for p in parts):
    raise argparse.ArgumentTypeError(f'{text!r}: write 224 or 224x192 (h x w)')
  return int(parts[0]), int(parts[-1])


class _Parser(argparse.ArgumentParser):
  """Answers a mistake with one line, not with the usage of all flags."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message} (see {self.prog} --help)')


def _weights_flags(command: argparse.ArgumentParser):
  """What a file of weights may not tell by itself."""
  command.add_argument('--heads', type=int, help='attention heads')
  command.add_argument(
    '--patches', type=_pair, help="grid of the file's positions, as in 14x14"
  )
  command.add_argument('--architecture', help="the format's name of the model")
  command.add_argument(
    '--size', type=_pair, help='of the images to come: resamples positions'
  )
  command.add_argument('--patch', type=int, help='resizes the patch kernel')


def _source_flags(command: argparse.ArgumentParser, json: bool = True):
  """A run or a file of weights."""
  command.add_argument('--workdir', type=Path, metavar='DIR', help='of a run')
  command.add_argument('--weights', type=Path, metavar='FILE')
  command.add_argument(
    '--step', type=int, help='of a checkpoint; default: the newest'
  )
  command.add_argument(
    '--raw',
    action='store_true',
    help='the last parameters, not their running average',
  )
  if json:
    command.add_argument('--json', action='store_true', help='for machines')
  _weights_flags(command)


def parser() -> argparse.ArgumentParser:
  """All commands with their flags; --config.FIELD is not among them."""
  top = _Parser(
    prog='vit_jax',
    description='Train, study and ship Vision Transformers in JAX.',
    allow_abbrev=False,
  )
  debug = {'action': 'store_true', 'help': 'show the traceback of a mistake'}
  top.add_argument('--debug', **debug)
  commands = top.add_subparsers(dest='command', metavar='COMMAND')

  def add(name, help):
    command = commands.add_parser(name, help=help, allow_abbrev=False)
    command.set_defaults(parser=command)
    command.add_argument('--debug', **debug)
    return command

  config = {
    'metavar': 'FILE[:ARG]',
    'help': 'a Python config, or the config.json of a run; change a field with '
    '--config.any.field=value',
  }
  train = add('train', 'train from a config file')
  train.add_argument('--config', **config)
  train.add_argument(
    '--workdir',
    type=Path,
    required=True,
    metavar='DIR',
    help='where the run lives',
  )
  train.add_argument(
    '--profile',
    default='',
    metavar='FIRST:LAST',
    help='a trace of these steps, and a table of their operations, in '
    'DIR/profile',
  )
  _distributed_flags(train)
  _launch_flags(train)
  _sweep_flags(add('sweep', 'many runs of one question'))
  evaluate = add('evaluate', 'metrics on a split')
  _source_flags(evaluate)
  evaluate.add_argument(
    '--split',
    default='',
    help="a split of the config ('test') or an expression ('train[1150:]')",
  )
  evaluate.add_argument(
    '--data', help='for --weights: where the pictures are, folder:PATH'
  )
  evaluate.add_argument(
    '--keep',
    type=Path,
    metavar='FILE.npz',
    help='what each example has: its label, prediction, loss',
  )
  evaluate.add_argument(
    '--evaluators',
    default='',
    metavar="'NAME(...), ...'",
    help='classification, knn, fewshot, linear_probe, real, on, imagenet_c, '
    'segmentation',
  )
  evaluate.add_argument(
    '--pictures',
    type=Path,
    metavar='DIR',
    help='for what evaluators draw, and what they have of each example',
  )
  report = add('report', 'what runs reached, as a page')
  report.add_argument(
    'runs',
    nargs='+',
    type=Path,
    metavar='DIR',
    help='workdirs of runs, or folders of such, as a sweep makes; of --diff '
    'files of predictions too',
  )
  report.add_argument(
    '--output',
    type=Path,
    metavar='FILE.html',
    help='default: report.html in the first DIR; a table in Markdown beside it',
  )
  report.add_argument(
    '--diff',
    action='store_true',
    help='of two runs: what differs in config, code, versions, data, devices; '
    'of two files of predictions (.npz): what one alone is right about',
  )
  report.add_argument('--json', action='store_true', help='of --diff')
  predict = add('predict', 'class and probability of image files; or masks')
  _source_flags(predict)
  predict.add_argument(
    '--output',
    type=Path,
    metavar='DIR',
    help='of segmentation: for the pictures; default: beside the images',
  )
  predict.add_argument(
    '--whole',
    action='store_true',
    help='of segmentation: the image at once, not by sliding windows',
  )
  predict.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
  viz = add('viz', 'attention, features, filters of a model as pictures')
  _source_flags(viz, json=False)
  viz.add_argument(
    'images',
    nargs='*',
    type=Path,
    metavar='IMAGE',
    help="none: the first of the run's test split",
  )
  viz.add_argument(
    '--output', type=Path, default=Path('viz'), metavar='DIR', help="or 'viz'"
  )
  convert = add('convert', 'weights from one format to another')
  convert.add_argument(
    '--from', dest='source', type=Path, required=True, metavar='FILE|DIR'
  )
  convert.add_argument('--to', type=Path, required=True, metavar='FILE')
  convert.add_argument(
    '--format',
    default='',
    help='vit_jax, google, timm, huggingface or stablehlo',
  )
  _weights_flags(convert)
  plan = add('plan', 'memory and speed on hardware that is not here')
  plan.add_argument('--config', **config)
  plan.add_argument(
    '--topology',
    action='append',
    default=[],
    metavar='KIND:SHAPE',
    help="'v5e:4x4', 'h100:8', '2xv5e:4x4' (two slices), 'cpu:8' (simulated); "
    'may be repeated',
  )
  plan.add_argument(
    '--search',
    action='store_true',
    help='tries remat, meshes and accumulation for the fastest that fits',
  )
  plan.add_argument('--json', action='store_true', help='for machines')
  inspect = add('inspect', 'parameters, FLOPs and memory of a model')
  inspect.add_argument('--config', **config)
  inspect.add_argument('--weights', type=Path, metavar='FILE')
  inspect.add_argument('--json', action='store_true', help='for machines')
  _weights_flags(inspect)
  _data_flags(add('data', 'check, preview or prepare data'), config)
  return top


def _distributed_flags(command: argparse.ArgumentParser):
  """One of several processes; alone where none of them is given."""
  command.add_argument(
    '--distributed',
    action='store_true',
    help='one of several processes, told by Slurm, a TPU VM, GKE or MPI; '
    'elsewhere by the next three',
  )
  command.add_argument(
    '--coordinator', default='', metavar='HOST:PORT', help='of process 0'
  )
  command.add_argument('--processes', type=int, default=0, metavar='N')
  command.add_argument(
    '--process', type=int, default=-1, metavar='I', help='from 0'
  )
  command.add_argument(
    '--peer_timeout',
    type=float,
    default=30.0,
    metavar='SECONDS',
    help='after which a silent process is taken for dead, and all end',
  )


def _launch_flags(command: argparse.ArgumentParser):
  """Not here and now, but as the job of a scheduler."""
  command.add_argument(
    '--launch', choices=['slurm'], help='submit it as a job, by submitit'
  )
  command.add_argument('--nodes', type=int, default=1, metavar='N')
  command.add_argument(
    '--tasks_per_node',
    type=int,
    default=0,
    metavar='N',
    help='processes; default: one a GPU, or one',
  )
  _resource_flags(command)


def _resource_flags(command: argparse.ArgumentParser):
  """Of the jobs of a scheduler."""
  command.add_argument(
    '--gpus_per_node', type=int, default=0, metavar='N', help='a process each'
  )
  command.add_argument(
    '--slurm',
    action='append',
    default=[],
    metavar='OPTION=VALUE',
    help='of sbatch, as in --slurm=partition=gpu --slurm=time=12:00:00; may be '
    'repeated',
  )


def _sweep_flags(command: argparse.ArgumentParser):
  command.add_argument(
    '--experiment',
    type=Path,
    required=True,
    metavar='FILE',
    help='CONFIG and sweep(), as those of experiments/; change a field of all '
    'runs with --config.any.field=value',
  )
  command.add_argument(
    '--workdir', type=Path, required=True, metavar='DIR', help='of the runs'
  )
  command.add_argument(
    '--jobs', type=int, default=1, metavar='N', help='runs at a time'
  )
  command.add_argument(
    '--retries', type=int, default=2, metavar='N', help='of a run that breaks'
  )
  command.add_argument(
    '--storage',
    default='',
    metavar='sqlite|journal|URL',
    help="of a search's trials: journal on shared disks (and with Slurm), or a "
    'database',
  )
  command.add_argument(
    '--dry_run',
    action='store_true',
    help='says what would run, and how it differs from CONFIG',
  )
  command.add_argument('--launch', choices=['local', 'slurm'], default='local')
  _resource_flags(command)


def _data_flags(command: argparse.ArgumentParser, config: dict):
  actions = command.add_subparsers(
    dest='action', metavar='check|preview|prepare', required=True
  )
  check = actions.add_parser(
    'check',
    help='read every record: counts, sizes, classes, what is unreadable',
    allow_abbrev=False,
  )
  preview = actions.add_parser(
    'preview',
    help='a PNG of what the model is fed, augmentation included',
    allow_abbrev=False,
  )
  for action, split in ((check, 'train,test'), (preview, 'train')):
    action.add_argument('--config', **config)
    action.add_argument('--split', default=split, help=f'default: {split}')
  check.add_argument(
    '--data', metavar='NAME', help='of config.data.name, as in folder:PATH'
  )
  check.add_argument('--json', action='store_true', help='for machines')
  preview.add_argument('--batch', type=int, default=0, help='number, from 0')
  preview.add_argument('--count', type=int, default=32, help='of pictures')
  preview.add_argument('--output', type=Path, default=Path('preview.png'))
  prepare = actions.add_parser(
    'prepare', help='a tfds data set as array_record', allow_abbrev=False
  )
  prepare.add_argument('name', metavar='tfds:NAME')
  prepare.add_argument('--data_dir', default='', help="default: tfds' own")


def refuse(words: Sequence[str], args: argparse.Namespace) -> NoReturn:
  """Raises UserError for flags that are not, with the nearest that is."""
  word = words[0].partition('=')[0]
  if args.command == 'train' and word.endswith(('.py', '.json')):
    raise UserError(f'write --config={word}')
  known = vars(args).get('parser') or parser()
  valid = [flag for a in known._actions for flag in a.option_strings]
  valid += ['--config.FIELD'] if '--config' in valid else []
  raise UserError(
    f'{word} is not a flag of {args.command or "vit_jax"}.'
    + did_you_mean(word, valid)
  )
