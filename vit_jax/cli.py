"""The command line: `python -m vit_jax COMMAND`, or `vit-jax COMMAND`.

One function a command, importing what it needs when it runs, so that --help is
instant. `--config.field=value` flags are taken out before argparse sees the
rest.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vit_jax.errors import UserError, did_you_mean
from vit_jax.signals import Stop

Overrides = list[tuple[str, str]]


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
  """Takes '--config.a.b=c' (or '--config.a.b c') out of the arguments."""
  rest: list[str] = []
  overrides: Overrides = []
  words = iter(argv)
  for word in words:
    if not word.startswith('--config.'):
      rest.append(word)
      continue
    path, equals, value = word.removeprefix('--config.').partition('=')
    if not equals:
      value = next(words, None)
      if value is None or value.startswith('--'):
        raise UserError(f'{word} needs a value: {word}=VALUE')
    overrides.append((path, value))
  return rest, overrides


def _load_config(args: argparse.Namespace):
  from vit_jax import config

  if args.config is None:
    raise UserError(
      '--config=FILE is missing, for example --config=configs/digits.py'
    )
  return config.load(args.config, args.overrides)


def _cache_compilations():
  """A second start of the same program does not compile it again."""
  import jax

  root = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', root / 'vit_jax' / 'xla')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def _train(args: argparse.Namespace) -> int:
  stop = args.stop.catch()
  from vit_jax import train

  return train.run(_load_config(args), args.workdir, stop)


def _open(args: argparse.Namespace):
  """(setup, parameters, what they are of) by --workdir or --weights."""
  from vit_jax import finetune
  from vit_jax.evaluate import load_run

  if (args.workdir is None) == (args.weights is None):
    raise UserError('give either --workdir=DIR or --weights=FILE')
  if args.workdir:
    setup, step, params = load_run(args.workdir, args.step, args.raw)
    return setup, params, {'step': step}
  data = getattr(args, 'data', None)
  setup, params = finetune.open_weights(args.weights, data, _options(args))
  return setup, params, {'weights': str(args.weights)}


def _options(args: argparse.Namespace) -> dict:
  """Options of weights.load that were given."""
  names = ('heads', 'patches', 'size', 'patch', 'architecture')
  values = {name: getattr(args, name) for name in names}
  return {name: value for name, value in values.items() if value}


def _pair(text: str) -> tuple[int, int]:
  """'224' or '224x192' -> (h, w)."""
  parts = text.split('x')
  if len(parts) not in (1, 2) or not all(p.isdigit() for p in parts):
    raise argparse.ArgumentTypeError(f'{text!r}: write 224 or 224x192 (h x w)')
  return int(parts[0]), int(parts[-1])


def _convert(args: argparse.Namespace) -> int:
  from vit_jax import finetune

  print(finetune.convert(args.source, args.to, args.format, _options(args)))
  return 0


def _plan(args: argparse.Namespace) -> int:
  import json

  from vit_jax import plan
  from vit_jax.plan import table

  result = plan.run(_load_config(args), args.topology, args.search)
  if args.json:
    print(json.dumps(result))
  else:
    table.show(result)
  return 0


def _inspect(args: argparse.Namespace) -> int:
  import json

  from vit_jax import inspect_model

  if args.weights and args.config is None:
    if args.overrides:
      raise UserError('--config.FIELD is for --config=FILE, not --weights')
    result = inspect_model.of_weights(args.weights, _options(args))
  else:
    options = _options(args)
    size = options.pop('size', None)
    if args.weights or options:
      flag = '--weights' if args.weights else f'--{min(options)}'
      raise UserError(f'{flag} is not for a config: leave one of them out')
    args.overrides += [('size', str(size))] if size else []
    result = inspect_model.of_config(_load_config(args))
  print(json.dumps(result) if args.json else inspect_model.text(result))
  return 0


def _evaluate(args: argparse.Namespace) -> int:
  import json

  from vit_jax import evaluate

  setup, params, source = _open(args)
  result = source | evaluate.run(setup, params, split=args.split)
  if args.json:
    print(json.dumps(result))
  else:
    for name, value in result.items():
      text = f'{value:.4f}' if isinstance(value, float) else value
      print(f'{name:10} {text}')
  return 0


def _predict(args: argparse.Namespace) -> int:
  import json

  from vit_jax import predict

  setup, params, _ = _open(args)
  for result in predict.run(setup, params, args.images):
    if args.json:
      print(json.dumps(result))
    else:
      best = result['predictions'][0]
      print(f'{result["file"]}\t{best["class"]}\t{best["probability"]:.4f}')
  return 0


def _data(args: argparse.Namespace) -> int:
  import json

  from vit_jax import config, inspect_data
  from vit_jax.setup import Setup

  if args.action == 'prepare':
    from vit_jax.data.prepare import prepare

    print(prepare(args.name, args.data_dir))
    return 0
  if args.action == 'preview':
    setup = Setup(_load_config(args))
    inspect_data.preview(setup, args.split, args.batch, args.count, args.output)
    print(args.output)
    return 0
  if args.data:
    overrides = [('data.name', args.data), *args.overrides]
    loaded = config.load(args.config, overrides)
  else:
    loaded = _load_config(args)
  report = inspect_data.check(loaded, args.split.split(','))
  print(json.dumps(report) if args.json else inspect_data.text(report))
  bad = sum(len(report[s]['unreadable']) for s in args.split.split(','))
  if bad:
    raise UserError(f'{bad:,} records of {loaded.data.name} cannot be read.')
  return 0


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


def _source_flags(command: argparse.ArgumentParser):
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
  command.add_argument('--json', action='store_true', help='for machines')
  _weights_flags(command)


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='vit_jax',
    description='Train, study and ship Vision Transformers in JAX.',
    allow_abbrev=False,
  )
  debug = {'action': 'store_true', 'help': 'show the traceback of a mistake'}
  parser.add_argument('--debug', **debug)
  commands = parser.add_subparsers(dest='command', metavar='COMMAND')

  def add(name, function, help):
    command = commands.add_parser(name, help=help, allow_abbrev=False)
    command.set_defaults(function=function, parser=command)
    command.add_argument('--debug', **debug)
    return command

  config = {
    'metavar': 'FILE[:ARG]',
    'help': 'a Python config, or the config.json of a run; change a field with '
    '--config.any.field=value',
  }
  train = add('train', _train, 'train from a config file')
  train.add_argument('--config', **config)
  train.add_argument(
    '--workdir',
    type=Path,
    required=True,
    metavar='DIR',
    help='where the run lives',
  )
  evaluate = add('evaluate', _evaluate, 'metrics on a split')
  _source_flags(evaluate)
  evaluate.add_argument(
    '--split',
    default='',
    help="a split of the config ('test') or an expression ('train[1150:]')",
  )
  evaluate.add_argument(
    '--data', help='for --weights: where the pictures are, folder:PATH'
  )
  predict = add('predict', _predict, 'class and probability of image files')
  _source_flags(predict)
  predict.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
  convert = add('convert', _convert, 'weights from one format to another')
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
  plan = add('plan', _plan, 'memory and speed on hardware that is not here')
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
  inspect = add('inspect', _inspect, 'parameters, FLOPs and memory of a model')
  inspect.add_argument('--config', **config)
  inspect.add_argument('--weights', type=Path, metavar='FILE')
  inspect.add_argument('--json', action='store_true', help='for machines')
  _weights_flags(inspect)
  _data_flags(add('data', _data, 'check, preview or prepare data'), config)
  return parser


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


def _unknown(words: Sequence[str], args: argparse.Namespace) -> NoReturn:
  word = words[0].partition('=')[0]
  if args.command == 'train' and word.endswith(('.py', '.json')):
    raise UserError(f'write --config={word}')
  known = vars(args).get('parser') or _parser()
  valid = [flag for a in known._actions for flag in a.option_strings]
  valid += ['--config.FIELD'] if '--config' in valid else []
  raise UserError(
    f'{word} is not a flag of {args.command or "vit_jax"}.'
    + did_you_mean(word, valid)
  )


def _run(argv: Sequence[str], stop: Stop) -> int:
  rest, overrides = _split_overrides(argv)
  parser = _parser()
  args, unknown = parser.parse_known_args(rest)
  if unknown:
    _unknown(unknown, args)
  if args.command is None:
    parser.print_help()
    return 0
  if overrides and args.command not in ('train', 'inspect', 'plan', 'data'):
    raise UserError(f'{args.command} takes no --config.{overrides[0][0]}')
  args.overrides, args.stop = overrides, stop
  _cache_compilations()
  return args.function(args)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns 0, 2 (a mistake), 75 (interrupted) or raises."""
  argv = sys.argv[1:] if argv is None else argv
  stop = Stop()
  try:
    return _run(argv, stop)
  except UserError as error:
    if '--debug' in argv:
      raise
    print(f'vit_jax: {error}', file=sys.stderr)
    return 2
  except BrokenPipeError:  # `| head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    return 130
  except BaseException:
    # Whatever an import makes of the signal that struck in it.
    if not stop.requested or stop.armed:
      raise
    print(f'vit_jax: {stop.requested} before the first step', file=sys.stderr)
    return 75
