"""What a sweep shows: a live table on a terminal, elsewhere lines."""

import math
import statistics
import time
from collections.abc import Sequence

from rich import table as rich_table
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from vit_jax.sweeps import queue
from vit_jax.sweeps.experiment import Experiment, run_name
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
    self._before: dict[str, float] = {}  # what of each was done when it began
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

  def _best(self, runs: Sequence[Run], states: dict[str, str]) -> str:
    """'best 0.9861 by lr=0.001'; of several seeds, their mean and spread."""
    finals: dict[str, list[float]] = {}
    names = {}
    for run in runs:
      values = run.progress()[1]
      if states[run.planned.name] == queue.FINISHED and values:
        point = dict(run.planned.point)
        if len(point) > 1 and not self._trials:
          point.pop('seed', None)
        finals.setdefault(repr(point), []).append(values[-1])
        names[repr(point)] = run.planned.name, run_name(point)
    means = {key: statistics.fmean(values) for key, values in finals.items()}
    best = self._best_of(list(means.values()))
    key = next((k for k, v in means.items() if v == best), None)
    if key is None:
      return ''
    alone, together = names[key]
    if len(finals[key]) == 1:
      return f'; best {best:.4f} by {alone}'
    spread = f'{statistics.stdev(finals[key]):.4f}, {len(finals[key])} seeds'
    return f'; best {best:.4f} \N{PLUS-MINUS SIGN} {spread} by {together}'

  def _summary(self, runs, states: dict[str, str], impossible: int, total: int):
    """'7 of 12 finished, 2 running, 1 failed; best ...; ETA 3:20'."""
    count = list(states.values()).count
    parts = [f'{count(queue.FINISHED)} of {total} finished']
    for state in (queue.PRUNED, queue.FAILED, queue.RUNNING):
      parts += [f'{count(state)} {state}'] if count(state) else []
    parts += [f'{impossible} impossible'] if impossible else []
    text = ', '.join(parts) + self._best(runs, states)
    left = self._seconds_left(runs, states, total)
    if left:
      minutes, seconds = divmod(round(left), 60)
      text += f'; ETA {minutes}:{seconds:02}'
    return text

  def _seconds_left(self, runs, states, total: int) -> float:
    """By what the runs did since this sweep began."""
    done = {r.planned.name: self._fraction(r, states) for r in runs}
    rate = self._rate(runs, states)
    left = total - sum(done.values())
    return left / rate if rate else 0.0

  def _fraction(self, run: Run, states) -> float:
    if states.get(run.planned.name) in queue.SETTLED:
      return 1.0
    return min(1.0, run.progress()[0] / run.planned.total)

  def _rate(self, runs, states) -> float:
    """Runs a second, by the mean of finished ones, or by those that run."""
    seconds = [
      r.seconds for r in runs if states[r.planned.name] == queue.FINISHED
    ]
    if seconds:
      return self._jobs * len(seconds) / max(sum(seconds), 1e-3)
    passed = time.monotonic() - self._began
    done = sum(
      self._fraction(r, states) - self._before.get(r.planned.name, 0.0)
      for r in runs
      if states[r.planned.name] == queue.RUNNING
    )
    return done / max(passed, 1e-3)

  def show(self, runs: Sequence[Run], impossible: int, last: bool = False):
    """Where the runs are.

    Args:
      runs: those that are known.
      impossible: how many points of a search can be no run.
      last: the whole table, to stay.
    """
    for run in runs:
      if run.planned.name not in self._before:
        self._before[run.planned.name] = self._fraction(run, {})
    if not (last or self._live) and time.monotonic() - self._last < _EVERY:
      return
    self._last = time.monotonic()
    states = {r.planned.name: r.state for r in runs}
    asked = 0 if last else self._trials - impossible  # a search may end early
    total = max(len(runs), asked)
    summary = self._summary(runs, states, impossible, total)
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
