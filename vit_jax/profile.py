"""`train --profile=FIRST:LAST`: a trace of some steps, and a table to read.

The trace is jax.profiler's, for Perfetto or XProf; the table needs no viewer:
the operations of the compiled program that took the most time, from the same
file. On accelerators a device's operations follow each other; on CPUs several
threads work on one at a time, and their seconds are added up.
"""

import collections
import dataclasses
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import jax

from vit_jax.errors import UserError

FOLDER = 'profile'
_SHOWN = 30


@dataclasses.dataclass(frozen=True)
class Window:
  """Steps to profile, the first and the last; 0, 0: none."""

  first: int = 0
  last: int = 0


NONE = Window()


def parse(text: str) -> Window:
  """'10:20' -> Window(10, 20).

  Raises:
    UserError: it is not two numbers, in order, from 1.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match:
    raise UserError(
      f'--profile = {text!r}: write the first and the last step, as in '
      '--profile=10:20.'
    )
  window = Window(*map(int, match.groups()))
  if not 1 <= window.first <= window.last:
    raise UserError(
      f'--profile = {text!r}: steps count from 1, and the first is not after '
      'the last.'
    )
  return window


def check(window: Window, total: int):
  """Raises UserError if a run of `total` steps ends before the window does."""
  if window.last > total:
    raise UserError(
      f'--profile={window.first}:{window.last}: the run has {total} steps.'
    )


def events(folder: Path) -> list[dict[str, Any]]:
  """The operations in the newest trace below a folder: name, dur (μs), args."""
  files = sorted(
    folder.rglob('*.trace.json.gz'), key=lambda file: file.stat().st_mtime
  )
  if not files:
    return []
  with gzip.open(files[-1]) as file:
    found = json.load(file)['traceEvents']
  return [e for e in found if 'hlo_op' in e.get('args', {}) and 'dur' in e]


def _rows(
  found: list[dict[str, Any]], steps: int, shown: int, what: str, end: str
) -> list[str]:
  """A table of `what`: names of operations without what `end` matches."""
  spent: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  for event in found:
    name = re.sub(end, '', event['args']['hlo_op'])
    spent[name] += event['dur']
    calls[name] += 1
  whole = sum(spent.values())
  lines = [f' share     ms/step  calls/step  {what}']
  lines += [
    f'{micro / whole:6.1%} {micro / steps / 1e3:11.3f} '
    f'{calls[name] / steps:11.1f}  {name}'
    for name, micro in spent.most_common(shown)
  ]
  if len(spent) > shown:
    rest = sum(micro for _, micro in spent.most_common()[shown:])
    lines.append(
      f'{rest / whole:6.1%} {rest / steps / 1e3:11.3f} '
      f'             {len(spent) - shown} others'
    )
  return lines


def table(found: list[dict[str, Any]], steps: int, shown: int = _SHOWN) -> str:
  """Kinds of operations by time, and operations: share of all, ms a step.

  A kind has those that are named alike but for a number, as `fusion.12`.

  Args:
    found: see `events`.
    steps: that they are of.
    shown: at most so many operations, and half as many kinds.
  """
  whole = sum(event['dur'] for event in found)
  if not whole:
    return 'no operations in the trace\n'
  lines = [
    f'{steps} steps, {whole / steps / 1e3:.2f} ms of operations a step',
    *_rows(found, steps, shown // 2, 'kind', r'[.\d]+$'),
    '',
    *_rows(found, steps, shown, 'operation', '$'),
  ]
  return '\n'.join(lines) + '\n'


class Profile:
  """Starts and stops the trace at the steps of a window."""

  def __init__(self, window: Window, path: Path, start: int):
    """Args: window: of steps; path: the workdir; start: steps that are done."""
    self._window, self._folder = window, path / FOLDER
    self._first = max(window.first, start + 1)
    self._begun = 0.0  # when, while it runs

  def before(self, step: int, state: Any):
    """Called before the step is dispatched, with what the last one gives."""
    if step == self._first <= self._window.last:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._begun = time.perf_counter()

  def ends(self, step: int) -> bool:
    """Whether the step is the last one of the window."""
    return bool(self._begun) and step == self._window.last

  def write(self, state: Any) -> str:
    """Writes what there is after the last step's `state`; what to say of it."""
    jax.block_until_ready(state)
    seconds = time.perf_counter() - self._begun
    self.close()
    steps = self._window.last - self._first + 1
    file = self._folder / 'operations.txt'
    file.write_text(table(events(self._folder), steps))
    return (
      f'profiled steps {self._first} to {self._window.last}, '
      f'{seconds / steps:.4f} s each: {file}, and the trace beside it'
    )

  def close(self):
    """Ends a trace that is not ended, as of a run that stopped within it."""
    if self._begun:
      self._begun = 0.0
      jax.profiler.stop_trace()
