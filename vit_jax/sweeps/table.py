"""What a sweep shows: a live table on a terminal, elsewhere lines."""

import math
import time
from collections.abc import Sequence

from rich import table as rich_table
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from vit_jax.sweeps import queue
from vit_jax.sweeps.experiment import Experiment
from vit_jax.sweeps.queue import Run

_EVERY = 30.0  # seconds between lines of progress
_ROWS = 30  # of the live table


class Table:
  """Of the runs of an experiment; use it as a context."""

  def __init__(self, experiment: Experiment, jobs: int):
    search = experiment.search
    self._trials, self._jobs = search.trials if search else 0, jobs
    self._least = bool(search and search.direction == 'minimize')
    self._console = Console(highlight=False, soft_wrap=True)
    self._live: Live | None = None
    self._began, self._last = time.monotonic(), time.monotonic()
    self._title = experiment.question or experiment.path.stem

  def __enter__(self):
    if self._console.is_terminal:
      self._live = Live(console=self._console, refresh_per_second=2)
      self._live.start()
    else:
      self.say(self._title)
    return self

  def __exit__(self, *_):
    if self._live:
      self._live.stop()

  def say(self, text: str):
    """A line that stays."""
    self._console.print(text, markup=False)

  def started(self, run: Run):
    """A run was started here."""
    if not self._live:
      self.say(f'{run.planned.name}: started')

  def broke(self, run: Run, code: int):
    """A run ended with an error; it may be tried again."""
    self.say(f'{run.planned.name}: exit code {code}: {run.error}')

  def settled(self, run: Run):
    """There is nothing left to do for a run."""
    state, values = run.settled, run.progress()[1]
    if not self._live:
      metric = run.planned.metric.removeprefix('eval/')
      shown = f', {metric} {values[-1]:.4f}' if values else ''
      self.say(f'{run.planned.name}: {state}{shown}')

  def _best_of(self, values: list[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
      return math.nan
    return min(finite) if self._least else max(finite)

  def _summary(self, runs: Sequence[Run], states: dict[str, str]) -> str:
    """'7 of 12 finished, 2 running, 1 failed; best ...; ETA 3:20'."""
    count = list(states.values()).count
    total = max(len(runs), self._trials)
    parts = [f'{count(queue.FINISHED)} of {total} finished']
    for state in (queue.PRUNED, queue.FAILED, queue.RUNNING):
      parts += [f'{count(state)} {state}'] if count(state) else []
    text = ', '.join(parts)
    finals = {
      r.planned.name: r.progress()[1][-1]
      for r in runs
      if states[r.planned.name] == queue.FINISHED and r.progress()[1]
    }
    best = self._best_of(list(finals.values()))
    name = next((n for n, v in finals.items() if v == best), '')
    text += f'; best {best:.4f} by {name}' if name else ''
    left = self._seconds_left(runs, states, total)
    if left:
      minutes, seconds = divmod(round(left), 60)
      text += f'; ETA {minutes}:{seconds:02}'
    return text

  def _seconds_left(self, runs, states, total: int) -> float:
    """By the steps that were done a second in finished and running runs."""
    done = {r.planned.name: self._fraction(r, states) for r in runs}
    rate = self._rate(runs, states)
    left = total - sum(done.values())
    return left / rate if rate else 0.0

  def _fraction(self, run: Run, states) -> float:
    if states[run.planned.name] in queue.SETTLED:
      return 1.0
    return min(1.0, run.progress()[0] / run.planned.total)

  def _rate(self, runs, states) -> float:
    """Runs a second, by the mean of finished ones, or by those that run."""
    seconds = [
      r.seconds for r in runs if states[r.planned.name] == queue.FINISHED
    ]
    if seconds:
      return self._jobs * len(seconds) / max(sum(seconds), 1e-3)
    running = [r for r in runs if states[r.planned.name] == queue.RUNNING]
    passed = time.monotonic() - self._began
    return sum(self._fraction(r, states) for r in running) / max(passed, 1e-3)

  def show(self, runs: Sequence[Run], last: bool = False):
    """Where the runs are; `last`: the whole table, to stay."""
    if not (last or self._live) and time.monotonic() - self._last < _EVERY:
      return
    self._last = time.monotonic()
    states = {r.planned.name: r.state for r in runs}
    summary = self._summary(runs, states)
    if last:
      self._console.print(self._table(runs, states, len(runs)))
      self.say(summary)
    elif self._live:
      table = self._table(runs, states, _ROWS)
      table.caption = escape(summary)
      self._live.update(table)
    else:
      self.say(summary)

  def _table(self, runs, states, rows: int) -> rich_table.Table:
    metric = runs[0].planned.metric if runs else ''
    table = rich_table.Table(
      'run',
      'state',
      'step',
      'last',
      'best',
      title=escape(self._title),
    )
    table.columns[0].overflow = 'fold'
    table.columns[3].header = f'{metric}, last'
    order = (queue.RUNNING, queue.FAILED, queue.FINISHED, queue.PRUNED)
    order += (queue.WAITING,)
    ranked = sorted(runs, key=lambda r: order.index(states[r.planned.name]))
    for run in ranked[:rows]:
      step, values = run.progress()
      last, best = (values[-1] if values else math.nan), self._best_of(values)
      table.add_row(
        escape(run.planned.name),
        states[run.planned.name],
        f'{step}/{run.planned.total}',
        '' if math.isnan(last) else f'{last:.4f}',
        '' if math.isnan(best) else f'{best:.4f}',
      )
    if len(runs) > rows:
      table.add_row(f'... and {len(runs) - rows} more')
    return table
