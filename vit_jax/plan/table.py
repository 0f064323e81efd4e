"""What `plan` shows: its progress, and its reports as tables."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

Report = dict[str, Any]


class Progress:
  """On stderr: a live bar on a terminal, elsewhere a line for what is done."""

  def __init__(self, topologies: int):
    self._console = Console(stderr=True, highlight=False, soft_wrap=True)
    self._bar: Bar | None = None
    self._topologies, self._name = topologies, ''
    self._done, self._begun = 0, time.perf_counter()

  def __enter__(self) -> 'Progress':
    if self._console.is_terminal:
      self._bar = Bar(
        TextColumn('{task.description}'),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn('{task.fields[left]}'),
        console=self._console,
        transient=True,
      )
      self._bar.start()
      self._task = self._bar.add_task('', total=None, left='')
    return self

  def __exit__(self, *unused: object):
    if self._bar:
      self._bar.stop()

  def begin(self, name: str):
    """The next topology."""
    self._name = name
    if self._bar:
      self._bar.update(self._task, description=f'compiling for {name}')

  def tried(self, number: int, of: int, report: Report):
    """One was compiled, for this topology of at most `of`."""
    self._done += 1
    done = self._done
    passed = time.perf_counter() - self._begun
    left = round((of - number) * passed / done)
    eta = f'ETA {left // 60}:{left % 60:02}' if left else ''
    if self._bar:
      self._bar.update(self._task, completed=number, total=of, left=eta)
    if of > 1:
      self._console.print(
        f'{self._name} {number}/{of}  {_way(report)}: {_verdict(report)} {eta}',
        markup=False,
      )


def si(value: int | float | None, unit: str = '') -> str:
  """1234567 -> '1.23 M'; None -> '-'."""
  if value is None:
    return '-'
  for prefix in ('', 'k', 'M', 'G', 'T', 'P', 'E'):
    if abs(value) < 999.5 or prefix == 'E':
      break
    value /= 1000
  return f'{value:.3g} {prefix}{unit}'.rstrip()


def _duration(seconds: float) -> str:
  return f'{seconds * 1e3:.3g} ms' if seconds < 1 else f'{seconds:.3g} s'


def _mesh(report: Report) -> str:
  axes = [f'{n} {s}' for n, s in report['mesh'].items() if s > 1]
  return ' x '.join(axes) or '1 device'


def _way(report: Report) -> str:
  return (
    f'{_mesh(report)}, {report["images_per_device"]} images a device'
    + (f' x {report["accumulate"]}' if report['accumulate'] > 1 else '')
    + f', remat {report["remat"]}'
  )


def _verdict(report: Report) -> str:
  memory = report['memory']
  total = si(memory.get('total'), 'B') if memory.get('total') else 'more'
  text = f'{total} of {si(memory["limit"], "B")}'
  if not report['fits']:
    return f'does not fit, {text}'
  return f'at least {_duration(report["seconds"]["step"])} a step, {text}'


def _rows(report: Report) -> dict[str, str]:
  memory, flops = report['memory'], report['flops']
  rows = {
    'devices': f'{report["devices"]} {report["device"]}',
    'mesh': _mesh(report),
    'batch': f'{report["batch_size"]}'
    + (f' in {report["accumulate"]} parts' if report['accumulate'] > 1 else ''),
    'images a device': str(report['images_per_device']),
    'remat': report['remat'],
    'memory of a device': '',
  }
  for name in (
    'parameters',
    'average',
    'optimizer',
    'arguments',
    'outputs',
    'reused',
    'temporaries',
    'program',
    'total',
    'limit',
  ):
    if memory.get(name):
      rows[f'  {name}'] = si(memory[name], 'B')
  rows['FLOPs a step, analytic'] = si(flops['model'])
  if 'seconds' in report:
    seconds, moved = report['seconds'], report['bytes_moved']
    rows['FLOPs a device, analytic'] = si(
      flops['model'] and flops['model'] / report['devices']
    )
    rows['  compiled, remat included'] = si(flops['compiled'])
    rows['  compiled, loops once'] = si(flops['loops_once'])
    rows['attention'] = report['attention']
    if report['cudnn']:
      rows['attention'] += ' for cudnn'
    rows['mlp'] = report['mlp']
    rows['bytes accessed'] = si(report['bytes_accessed'], 'B')
    rows['bytes sent, links'] = si(moved['links'], 'B')
    for name, row in report['collectives'].items():
      rows[f'  {name}'] = f'{si(row["links"], "B")} in {row["times"]}'
    if report['slices'] > 1:
      rows['bytes sent, network'] = si(moved['network'], 'B')
    rows['step, at least'] = f'{_duration(seconds["step"])} ({report["bound"]})'
    for name in ('compute', 'memory', 'links', 'network'):
      if seconds[name]:
        rows[f'  {name}'] = _duration(seconds[name])
    rows['at most'] = ''
    rows['  images/s'] = si(report['images_per_second'])
    if report['utilization']:
      rows['  utilization'] = f'{report["utilization"]:.0%}'
    rows['the run, at least'] = f'{report["steps"]:,} steps'
    rows['  device-hours'] = si(report['device_hours'])
    rows['  days'] = si(report['days'])
  rows['compiled in'] = f'{report["compile_seconds"]:.0f} s'
  return rows


def show(result: Report):
  """Prints a table with a column for each topology, and whether each fits."""
  console, reports = Console(highlight=False), result['plans']
  h, w = result['size']
  title = (
    f'{result["model"]}, {result["parameters"]:,} parameters; '
    f'{result["examples"]:,} examples of {result["classes"]:,} classes at '
    f'{h}x{w}; learning rate {result["learning_rate"]:.4g}'
  )
  columns = [_rows(report) for report in reports]
  table = Table(title=title, title_justify='left', box=None, padding=(0, 2))
  table.add_column('', no_wrap=True)
  for report in reports:
    table.add_column(report['topology'], justify='right')
  for name in dict.fromkeys(name for rows in columns for name in rows):
    table.add_row(name, *(rows.get(name, '') for rows in columns))
  console.print(table)
  for report in reports:
    fits = 'yes' if report['fits'] else 'no'
    print(f'fits: {fits}  {report["topology"]}: {_verdict(report)}')
    if report['cudnn']:
      print(
        f'note: {report["topology"]} runs attention by cudnn, which only a GPU '
        "can compile; counted is XLA's, which takes more memory."
      )
    if 'tried' in report and report['fits']:
      flags = ' '.join(f'--{k}={v}' for k, v in report['overrides'].items())
      print(f'fastest of {len(report["tried"])} compiled: {flags}')
