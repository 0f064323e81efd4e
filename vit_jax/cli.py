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
from vit_jax.signals import Interrupted, Stop

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
  stop = Stop().catch()
  from vit_jax import train

  return train.run(_load_config(args), args.workdir, stop)


def _evaluate(args: argparse.Namespace) -> int:
  import json

  from vit_jax import evaluate

  result = evaluate.run(
    args.workdir, step=args.step, split=args.split, raw=args.raw
  )
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

  for result in predict.run(
    args.workdir, args.images, step=args.step, raw=args.raw
  ):
    if args.json:
      print(json.dumps(result))
    else:
      best = result['predictions'][0]
      print(f'{result["file"]}\t{best["class"]}\t{best["probability"]:.4f}')
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='vit_jax',
    description='Train, study and ship Vision Transformers in JAX.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of a mistake'
  )
  commands = parser.add_subparsers(dest='command', metavar='COMMAND')

  def add(name, function, help, workdir_help):
    command = commands.add_parser(name, help=help, allow_abbrev=False)
    command.set_defaults(function=function)
    command.add_argument(
      '--workdir', type=Path, required=True, metavar='DIR', help=workdir_help
    )
    command.add_argument('--debug', action='store_true', help=argparse.SUPPRESS)
    return command

  train = add(
    'train', _train, 'train from a config file', 'where the run lives'
  )
  train.add_argument(
    '--config',
    metavar='FILE[:ARG]',
    help='a Python config, or the config.json of a run; change a field with '
    '--config.any.field=value',
  )
  evaluate = add('evaluate', _evaluate, 'metrics on a split', 'of a run')
  evaluate.add_argument(
    '--split',
    default='',
    help="a split of the config ('test') or an expression ('train[1150:]')",
  )
  predict = add('predict', _predict, 'class and probability', 'of a run')
  predict.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
  for command in (evaluate, predict):
    command.add_argument(
      '--step', type=int, help='of a checkpoint; default: the newest'
    )
    command.add_argument(
      '--raw',
      action='store_true',
      help='the last parameters, not their running average',
    )
    command.add_argument('--json', action='store_true', help='for machines')
  return parser


def _unknown(words: Sequence[str], command: str | None) -> NoReturn:
  word = words[0].partition('=')[0]
  if command == 'train' and word.endswith(('.py', '.json')):
    raise UserError(f'write --config={word}')
  valid = {
    None: ['--help', '--debug'],
    'train': ['--config.FIELD', '--config', '--workdir', '--debug'],
  }.get(command, ['--workdir', '--step', '--raw', '--json', '--debug'])
  valid += ['--split'] if command == 'evaluate' else []
  raise UserError(
    f'{word} is not a flag of {command or "vit_jax"}.'
    + did_you_mean(word, valid)
  )


def _run(argv: Sequence[str]) -> int:
  rest, overrides = _split_overrides(argv)
  parser = _parser()
  args, unknown = parser.parse_known_args(rest)
  if unknown:
    _unknown(unknown, args.command)
  if args.command is None:
    parser.print_help()
    return 0
  if overrides and args.command != 'train':
    raise UserError(f'{args.command} takes no --config.{overrides[0][0]}')
  args.overrides = overrides
  _cache_compilations()
  return args.function(args)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code; see docs/cli.md."""
  argv = sys.argv[1:] if argv is None else argv
  try:
    return _run(argv)
  except UserError as error:
    if '--debug' in argv:
      raise
    print(f'vit_jax: {error}', file=sys.stderr)
    return 2
  except Interrupted as signal:
    print(f'vit_jax: {signal} before the first step', file=sys.stderr)
    return 75
  except KeyboardInterrupt:
    return 130
