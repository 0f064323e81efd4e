"""`python -m benchmarks NAME`: measures, prints tables, writes JSON.

python -m benchmarks step                  beside timm, Hugging Face, flax
python -m benchmarks all --output=F.json   every one of them
python -m benchmarks compare OLD.json NEW.json
python -m benchmarks render F.json docs/performance.md
python -m benchmarks results --workdir=W   trains what docs/results.md tells of
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vit_jax.errors import UserError, check_choice

# In the order of `all`; 'tpu' compiles for longer than the others run.
MEASURED = (
  'step',
  'input',
  'loop',
  'attention',
  'startup',
  'compile',
  'checkpoint',
  'tpu',
)
NAMES = (*MEASURED, 'all', 'results', 'compare', 'render')


def _read(path: Path) -> dict[str, Any]:
  """{benchmark: record}, of a file with one record or several."""
  try:
    found = json.loads(path.read_text())
    one = 'benchmark' in found
    return {found['benchmark']: found} if one else found
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f'{path} is no result of a benchmark: {error}') from error


def compare(old: Path, new: Path) -> Table:
  """Two files of the same benchmarks, as a table."""
  before, after = _read(old), _read(new)
  both = [name for name in before if name in after]
  if not both:
    raise UserError(
      f'{old} is of {", ".join(before)}, {new} of {", ".join(after)}.'
    )
  table = Table('', str(old), str(new), 'new / old')
  for name in both:
    table.add_row(f'{name}:', '', '', '')
    for key, value in before[name]['rates'].items():
      now = after[name]['rates'].get(key)
      ratio = f'{now / value:.2f}' if now and value else ''
      shown = [f'{x:,.4g}' if x else '' for x in (value, now)]
      table.add_row(key, *shown, ratio)
    for key in ('commit', 'cpu', 'load'):
      values = (str(record[name].get(key)) for record in (before, after))
      table.add_row(key, *values, '')
  return table


def render(records: dict[str, Any], page: Path):
  """Puts tables between the marks of a page, `<!-- benchmarks NAME -->`.

  Raises:
    UserError: the page has no mark for one of the records.
  """
  from benchmarks import measure

  for name, made in records.items():
    measure.fill(page, name, measure.markdown(made))


def _one(args: argparse.Namespace) -> dict[str, Any]:
  """Runs a benchmark in this process."""
  run = importlib.import_module(f'benchmarks.{args.name}').run
  if args.name == 'input':
    return run(args.images, args.rounds, args.batches)
  if args.name == 'tpu':
    return run()
  return run(args.rounds)


def _all(args: argparse.Namespace) -> list[str]:
  """Each in a process of its own, so that none inherits what another left.

  Returns:
    Those that failed.
  """
  records: dict[str, Any] = {}
  failed = []
  with tempfile.TemporaryDirectory() as folder:
    for name in MEASURED:
      file = Path(folder) / f'{name}.json'
      command = [sys.executable, '-m', 'benchmarks', name, f'--output={file}']
      command += [f'--{k}={getattr(args, k)}' for k in ('images', 'batches')]
      done = subprocess.run([*command, f'--rounds={args.rounds}'])
      if done.returncode:
        failed.append(name)
        continue
      records |= _read(file)
      if args.output:  # what is measured is kept, whatever comes
        args.output.write_text(json.dumps(records, indent=1) + '\n')
  return failed


def _run(args: argparse.Namespace):
  check_choice('benchmark', args.name, NAMES)
  for flag in ('images', 'rounds', 'batches'):
    if getattr(args, flag) < 1:
      raise UserError(f'--{flag}={getattr(args, flag)}: at least 1.')
  if args.name in ('compare', 'render'):
    if len(args.files) != 2:
      wants = {'compare': 'OLD.json NEW.json', 'render': 'FILE.json PAGE.md'}
      raise UserError(f'{args.name} takes two files: {wants[args.name]}')
    if args.name == 'render':
      render(_read(args.files[0]), args.files[1])
    else:
      Console().print(compare(*args.files))
  elif args.name == 'results':
    from benchmarks import results

    if args.workdir is None:
      raise UserError('results needs --workdir=DIR for its runs.')
    print(results.run(args.workdir))
  elif args.name == 'all':
    if failed := _all(args):
      raise UserError(f'failed, see above: {", ".join(failed)}')
  else:
    from benchmarks import measure

    made = _one(args)
    measure.show(made)
    if args.output:
      args.output.write_text(json.dumps(made, indent=1) + '\n')


def main(argv: list[str] | None = None) -> int:
  """Runs one benchmark; 0, or 2 for a mistake."""
  parser = argparse.ArgumentParser(
    prog='benchmarks',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', help=', '.join(NAMES))
  parser.add_argument('files', nargs='*', type=Path, help='of compare, render')
  parser.add_argument('--images', type=int, default=256, help='JPEGs to make')
  parser.add_argument('--rounds', type=int, default=7, help='of each side')
  parser.add_argument(
    '--batches', type=int, default=12, help='of an input round'
  )
  parser.add_argument('--workdir', type=Path, help='of results')
  parser.add_argument('--output', type=Path, help='JSON file to write')
  args = parser.parse_args(argv)
  try:
    _run(args)
  except UserError as error:
    print(f'benchmarks: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
