"""`python -m benchmarks input`: prints a table, writes JSON.

`python -m benchmarks results --workdir=W` trains what docs/results.md tells of.

`python -m benchmarks compare OLD.json NEW.json` puts two runs side by side.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vit_jax.errors import UserError, check_choice

NAMES = ('input', 'results', 'compare')


def _read(path: Path) -> dict:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} is no result of a benchmark: {error}') from error


def compare(old: Path, new: Path) -> Table:
  """Two results of the same benchmark, as a table."""
  before, after = _read(old), _read(new)
  if before.get('benchmark') != after.get('benchmark'):
    raise UserError(
      f'{old} is of {before.get("benchmark")!r}, {new} of '
      f'{after.get("benchmark")!r}.'
    )
  table = Table('', str(old), str(new), 'new / old')
  for name, value in before['rates'].items():
    now = after['rates'].get(name)
    ratio = f'{now / value:.2f}' if now and value else ''
    table.add_row(name, f'{value:,.0f}', f'{now:,.0f}' if now else '', ratio)
  for key in ('commit', 'cpu', 'load'):
    table.add_row(key, str(before.get(key)), str(after.get(key)), '')
  return table


def main(argv: list[str] | None = None) -> int:
  """Runs one benchmark; 0, or 2 for a mistake."""
  parser = argparse.ArgumentParser(prog='benchmarks', description=__doc__)
  parser.add_argument('name', help=', '.join(NAMES))
  parser.add_argument('files', nargs='*', type=Path, help='of compare')
  parser.add_argument('--images', type=int, default=256, help='JPEGs to make')
  parser.add_argument('--rounds', type=int, default=7, help='of each peer')
  parser.add_argument('--batches', type=int, default=12, help='of a round')
  parser.add_argument('--workdir', type=Path, help='of results')
  parser.add_argument('--output', type=Path, help='JSON file to write')
  args = parser.parse_args(argv)
  try:
    check_choice('benchmark', args.name, NAMES)
    if args.name == 'compare':
      if len(args.files) != 2:
        raise UserError('compare takes two files: OLD.json NEW.json')
      Console().print(compare(*args.files))
      return 0
    if args.name == 'results':
      from benchmarks import results

      if args.workdir is None:
        raise UserError('results needs --workdir=DIR for its runs.')
      print(results.run(args.workdir))
      return 0
    for flag in ('images', 'rounds', 'batches'):
      if getattr(args, flag) < 1:
        raise UserError(f'--{flag}={getattr(args, flag)}: at least 1.')
    from benchmarks import input as input_benchmark

    result = input_benchmark.run(args.images, args.rounds, args.batches)
  except UserError as error:
    print(f'benchmarks: {error}', file=sys.stderr)
    return 2
  if args.output:
    args.output.write_text(json.dumps(result, indent=2) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
