"""What benchmarks share: sides that take turns, medians, a record of it all.

A record, ready for JSON, holds where it was made (commit, versions, devices,
load), `rates` (numbers by name, for `compare`), `tables` (rows of text, for
people and docs/performance.md) and `goals`.
"""

import multiprocessing
import os
import re
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from vit_jax.errors import UserError

Numbers = dict[str, float]
NOISE = 0.03  # of a ratio of two sides


def cpu() -> str:
  """The processor's name."""
  path = Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.split(': ')[1] for line in lines if 'model name' in line]
  return f'{len(names)} x {names[0]}' if names else 'unknown'


def _serve(make: Callable[[str], Any], name: str, pipe: Any):
  """A side's process: a round for each message, until the pipe is closed."""
  try:
    measure, facts = make(name)
    pipe.send(facts)
    while pipe.recv():
      pipe.send(measure())
  except EOFError:
    pass
  except Exception:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(0)  # some frameworks' threads outlive what they did


def in_turn(
  make: Callable[[str], tuple[Callable[[], Any], Any]],
  names: Iterable[str],
  rounds: int,
  check: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[dict[str, list[Any]], dict[str, str]]:
  """What each side measured in each round; and which ones died.

  Each side lives in a process of its own and has its round after the other's,
  so that whatever else the machine does hits all alike, and every other time in
  the other order, so that what one leaves to the next does. The first round of
  each warms up, and is not counted.

  Args:
    make: in the side's process, from its name to (a round, facts about it).
    names: of the sides.
    rounds: that count.
    check: sees the facts of all sides before anything is measured.
  """
  context = multiprocessing.get_context('spawn')
  pipes, found, missing, facts, processes = {}, {}, {}, {}, []
  try:
    for name in names:
      pipes[name], there = context.Pipe()
      # Not daemonic: a side may have worker processes. It ends with its pipe.
      processes.append(context.Process(target=_serve, args=(make, name, there)))
      processes[-1].start()
      there.close()
      try:
        facts[name], found[name] = pipes[name].recv(), []
      except EOFError:
        missing[name] = 'its process died'
        del pipes[name]
    check(facts)
    for number in track(range(rounds + 1), 'measuring', transient=True):
      for name in list(pipes)[:: -1 if number % 2 else 1]:
        try:
          pipes[name].send(True)
          value = pipes[name].recv()
        except (EOFError, OSError):
          missing[name] = 'its process died'
          del pipes[name], found[name]
          continue
        found[name] += [value] if number else []
  finally:
    for pipe in pipes.values():
      pipe.close()
    for process in processes:  # what comes next has the machine for itself
      process.join(30)
  return found, missing


def median(rounds: Sequence[Any]) -> Any:
  """Of numbers; of dicts of numbers, number by number."""
  if isinstance(rounds[0], dict):
    return {key: median([r[key] for r in rounds]) for key in rounds[0]}
  return statistics.median(rounds)


def ratio(ones: Sequence[Any], others: Sequence[Any], key: str = '') -> float:
  """The median of what a round of one side is of the other's.

  Of the same round: what slows down the machine for a while is in both.
  """
  pairs = zip(ones, others, strict=True)
  return statistics.median(a[key] / b[key] if key else a / b for a, b in pairs)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict:
  """Ready for JSON; numbers as they are to be read."""

  def text(x: Any) -> str:
    if not isinstance(x, float):
      return str(x)
    return f'{x:,.0f}' if abs(x) >= 100 else f'{x:.3g}'

  return {
    'columns': list(columns),
    'rows': [[text(x) for x in r] for r in rows],
  }


def goal(value: float, *, least: float = 0.0, most: float = 0.0) -> dict:
  """What a ratio is and should be: at least, or at most."""
  met = value >= least if least else value <= most
  bound = {'least': least} if least else {'most': most}
  return {'value': round(value, 4), **bound, 'met': bool(met)}


def met(one: dict) -> str:
  """'met', 'within noise' (3 %) or 'not met', of a `goal`."""
  if one['met']:
    return 'met'
  # Goals of at most are of bytes and seconds, not of two sides in turn; one
  # below 1 has its tolerance in it.
  near = one.get('least', 0) >= 1 and one['value'] >= (1 - NOISE) * one['least']
  return 'within noise' if near else 'not met'


def record(
  name: str,
  *,
  load: float,
  about: str,
  rates: Numbers,
  tables: dict[str, dict],
  goals: dict[str, dict] | None = None,
  **more: Any,
) -> dict[str, Any]:
  """The record of a benchmark.

  Args:
    name: of the benchmark.
    load: of the machine before it began.
    about: one line: sizes, rounds, what is not obvious.
    rates: to compare with another record, by name.
    tables, goals: by name.
    **more: whatever else is to be kept.
  """
  from vit_jax.workdir import provenance_of_code

  return {
    'benchmark': name,
    **provenance_of_code(),
    'cpu': cpu(),
    'load': load,
    'about': about,
    'rates': rates,
    'tables': tables,
    'goals': goals or {},
    **more,
  }


def show(made: dict[str, Any]):
  """Prints a record's tables and goals."""
  console = Console(highlight=False)
  console.print(
    f'{made["benchmark"]}: {made["about"]}; load before {made["load"]:.2f}, '
    f'{made["cpu"]}'
  )
  for title, one in made['tables'].items():
    shown = Table(*one['columns'], title=title, title_justify='left')
    for row in one['rows']:
      shown.add_row(*row)
    console.print(shown)
  for name, one in made['goals'].items():
    way = 'least' if 'least' in one else 'most'
    console.print(
      f'{name}: {one["value"]:.3g}, at {way} {one[way]}: {met(one)}'
    )


def fill(page: Path, name: str, text: str):
  """Puts a text between marks of a page, `<!-- benchmarks NAME -->`.

  Raises:
    UserError: the page has no such mark.
  """
  mark = rf'(<!-- benchmarks {name} -->\n)(.*?)(<!-- end -->)'
  old = page.read_text()
  if not re.search(mark, old, re.DOTALL):
    raise UserError(f'{page} has no place for {name}: <!-- benchmarks {name}')
  page.write_text(
    re.sub(mark, lambda m: f'{m[1]}\n{text}\n\n{m[3]}', old, flags=re.DOTALL)
  )


def markdown(made: dict[str, Any]) -> str:
  """A record as docs/performance.md has it."""
  commit, load = str(made.get('commit')), made['load']
  commit = commit[:7] + '+' * commit.endswith('+')  # changes not committed
  lines = [f'{made["about"]}. {made["cpu"]}, load {load:.2f}, at `{commit}`.']
  for title, one in made['tables'].items():
    head = [one['columns'], ['---'] * len(one['columns'])]
    rows = ['| ' + ' | '.join(row) + ' |' for row in head + one['rows']]
    lines += ['', f'{title}:', '', *rows]
  if made['goals']:
    lines += ['', '| goal | | is | |', '|---|---|---|---|']
  for name, one in made['goals'].items():
    way = 'least' if 'least' in one else 'most'
    said = met(one).replace('not met', '**not met**')
    lines.append(
      f'| {name} | at {way} {one[way]} | {one["value"]:.3g} | {said} |'
    )
  return '\n'.join(lines)
