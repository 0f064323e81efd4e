"""The command line: `python -m vit_jax COMMAND`, or `vit-jax COMMAND`.

Flags (`flags.py`) are parsed and checked, a command (`commands.py`) is run, and
what it raises becomes an exit code. `--config.field=value` flags are taken out
before argparse sees the rest.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_jax import conflicts, flags
from vit_jax.commands import COMMANDS
from vit_jax.errors import UserError, check_output
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


def _cache_compilations():
  """A second start of the same program does not compile it again."""
  import jax

  root = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', root / 'vit_jax' / 'xla')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


_CONFIGURED = ('train', 'sweep', 'inspect', 'plan', 'data')


def _run(argv: Sequence[str], stop: Stop) -> int:
  rest, overrides = _split_overrides(argv)
  parser = flags.parser()
  args, unknown = parser.parse_known_args(rest)
  if unknown:
    flags.refuse(unknown, args)
  if args.command is None:
    parser.print_help()
    return 0
  if overrides and args.command not in _CONFIGURED:
    raise UserError(f'{args.command} takes no --config.{overrides[0][0]}')
  args.overrides, args.stop = overrides, stop
  conflicts.check(args)
  for name in ('output', 'keep', 'pictures'):
    if path := getattr(args, name, None):
      suffixes = {'report': '.html', 'data': '.png', 'evaluate': '.npz'}
      folder = args.command in ('viz', 'predict') or name == 'pictures'
      suffix = '' if folder else suffixes.get(args.command, '')
      check_output(f'--{name}', path, folder, suffix)
  if args.command in ('train', 'sweep'):
    stop.catch()  # before slow imports
  _cache_compilations()
  return COMMANDS[args.command](args)


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
