"""A report as Markdown and as one HTML file that needs no network."""

import html
import math
from collections.abc import Sequence
from pathlib import Path

from vit_jax.report import figures
from vit_jax.report.bootstrap import sentence
from vit_jax.report.runs import Found, Group, grouped, short, show, varying

Rows = list[list[str]]

_STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --back: #fff; --line: #ddd;
  --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e6; --back: #16171a; --line: #3a3b40; --soft: #a0a0a6; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.soft { color: var(--soft) }
div.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: 13.5px }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
td.error { white-space: normal; text-align: left; color: #c4453c }
"""


def _number(value: int | float, digits: int = 4) -> str:
  return '' if math.isnan(value) else f'{value:.{digits}f}'


def _si(value: int | float) -> str:
  power = 0
  while value >= 999.5 and power < 4:
    value, power = value / 1000, power + 1
  return '' if math.isnan(value) else f'{value:.3g} {" kMGT"[power]}'.strip()


def _time(seconds: int | float) -> str:
  if math.isnan(seconds):
    return ''
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )


def _mean(values: Sequence[int | float]) -> float:
  known = [v for v in values if not math.isnan(v)]
  return sum(known) / len(known) if known else math.nan


def table(groups: Sequence[Group]) -> Rows:
  """A row a configuration, the head first."""
  fields = list(groups[0].values)
  metrics = {r.metric: 0 for g in groups for r in g.runs if r.metric}
  metric = ' or '.join(metrics)
  rows = [
    short(fields)
    + ['seeds', f'{metric}, last', '± sd', 'best', 'time', 'images/s']
    + ['parameters', 'FLOPs/image', 'open']
  ]
  for group in groups:
    done = group.done
    best = min if group.runs[0].least else max
    left = sum(r.state != 'finished' for r in group.runs)
    rows.append(
      [show(group.values[f]) for f in fields]
      + [
        str(len(done)),
        _number(group.mean),
        _number(group.spread),
        _number(best((r.best for r in done), default=math.nan)),
        _time(_mean([r.seconds for r in done])),
        _si(_mean([r.images_per_second for r in done])),
        _si(_mean([r.result.get('parameters', math.nan) for r in done])),
        _si(_mean([r.flops for r in group.runs])),
        str(left or ''),
      ]
    )
  if not any(row[-1] for row in rows[1:]):
    rows = [row[:-1] for row in rows]
  if not fields:
    rows = [['', *row] for row in rows]
    for row, group in zip(rows[1:], groups, strict=True):
      row[0] = group.runs[0].path.name
  return rows


def each(runs: Sequence[Found]) -> Rows:
  """A row a run."""
  rows = [['run', 'state', 'seed', 'last', 'best', 'loss', 'time', 'error']]
  for run in runs:
    split = run.metric.rpartition('/')[0]
    rows.append(
      [
        run.path.name,
        run.state,
        str(run.config['seed']),
        _number(run.last(run.metric)),
        _number(run.best),
        _number(run.last(f'{split}/loss')),
        _time(run.seconds),
        run.error,
      ]
    )
  return rows if any(r[-1] for r in rows[1:]) else [r[:-1] for r in rows]


def shared(runs: Sequence[Found]) -> str:
  """What all have in common, in a line."""
  first = runs[0].config
  names = ('data.name', 'task.name', 'model.variant', 'optim.name', 'total')
  same = [
    f'{n.rpartition(".")[2] if n == "total" else n} {show(first[n])}'
    for n in names
    if n in first and all(r.config.get(n) == first[n] for r in runs)
  ]
  return ', '.join(same)


def verdict(groups: Sequence[Group]) -> str:
  """The best against the second, in words."""
  done = [g for g in groups if not math.isnan(g.mean)]
  return sentence(done[0], done[1], len(done)) if len(done) > 1 else ''


def markdown(title: str, runs: Sequence[Found]) -> str:
  """The table of configurations, and the verdict."""
  groups = grouped(runs)
  rows = table(groups)
  lines = [
    '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
    for row in rows
  ]
  lines.insert(1, '|' + '---|' * len(rows[0]))
  parts = [f'# {title}', shared(runs), '\n'.join(lines), verdict(groups)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _html_table(rows: Rows) -> str:
  def row(cells, tag):
    shown = ''.join(
      f'<{tag}{" class=error" if tag == "td" and head == "error" else ""}>'
      f'{html.escape(cell)}</{tag}>'
      for head, cell in zip(rows[0], cells, strict=True)
    )
    return f'<tr>{shown}</tr>'

  body = ''.join(row(cells, 'td') for cells in rows[1:])
  head = row(rows[0], 'th')
  return (
    f'<div class=wide><table><thead>{head}</thead><tbody>{body}</tbody></table>'
    '</div>'
  )


def page(title: str, runs: Sequence[Found]) -> str:
  """The whole HTML."""
  groups, fields = grouped(runs), varying(runs)
  done = [g for g in groups if not math.isnan(g.mean)]
  parts = [
    f'<h1>{html.escape(title)}</h1>',
    f'<p class=soft>{html.escape(shared(runs))}</p>',
    f'<p>{html.escape(verdict(groups))}</p>',
    '<h2>Configurations</h2>',
    _html_table(table(groups)),
  ]
  drawn = [('Learning curves', figures.curves(groups))]
  if len(done) > 1 and fields:
    drawn.append(
      ('From configuration to result', figures.parallel(groups, fields))
    )
    drawn.append(('By field', figures.slices(groups, fields)))
  for i, (name, figure) in enumerate(drawn):
    text = figure.to_html(
      full_html=False,
      include_plotlyjs=i == 0,
      config={'displaylogo': False, 'responsive': True},
      div_id=f'figure{i}',
    )
    parts += [f'<h2>{name}</h2>', text]
  parts += ['<h2>Runs</h2>', _html_table(each(runs))]
  return (
    '<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n'
    '<meta name=viewport content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>'
    + '\n'.join(parts)
    + '</body></html>\n'
  )


def write(title: str, runs: Sequence[Found], output: Path) -> str:
  """Writes the page, and the Markdown beside it, which is returned."""
  text = markdown(title, runs)
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_text(page(title, runs))
  output.with_suffix('.md').write_text(text)
  return text
