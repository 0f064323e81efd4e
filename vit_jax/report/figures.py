"""The figures of a report, by Plotly: curves, parallel coordinates, slices."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative, sample_colorscale
from plotly.subplots import make_subplots

from vit_jax.report.runs import Found, Group, short, show

_POINTS = 400  # of a curve; more cannot be seen
_COLORS = qualitative.Plotly
_SCALE = 'Viridis'


def _style(figure: go.Figure, height: int) -> go.Figure:
  """Greys that can be read on white and on black; no background."""
  figure.update_layout(
    height=height,
    margin={'l': 60, 'r': 20, 't': 40, 'b': 50},
    paper_bgcolor='rgba(0,0,0,0)',
    plot_bgcolor='rgba(0,0,0,0)',
    font={'color': '#8a8a8a', 'size': 12},
    hoverlabel={'namelength': -1},
    colorway=_COLORS,
  )
  line = 'rgba(128,128,128,0.25)'
  figure.update_xaxes(gridcolor=line, zerolinecolor=line)
  figure.update_yaxes(gridcolor=line, zerolinecolor=line)
  return figure


def _thin(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
  step = math.ceil(len(pairs) / _POINTS)
  return [*pairs[::step], *pairs[-1:]] if step > 1 else list(pairs)


def curves(groups: Sequence[Group]) -> go.Figure:
  """Training loss and the metric over steps; a colour a configuration."""
  figure = make_subplots(1, 2, subplot_titles=('train/loss', _metric(groups)))
  for i, group in enumerate(groups):
    for j, run in enumerate(group.runs):
      name = group.name or run.path.name
      for column, metric in ((1, 'train/loss'), (2, run.metric)):
        pairs = _thin(run.values(metric))
        figure.add_scatter(
          x=[step for step, _ in pairs],
          y=[value for _, value in pairs],
          mode='lines' if column == 1 else 'lines+markers',
          line={'width': 1.2, 'color': _COLORS[i % len(_COLORS)]},
          marker={'size': 4},
          opacity=0.8,
          name=name,
          legendgroup=str(i),
          showlegend=column == 1 and j == 0,
          hovertemplate=(
            f'{run.path.name}<br>step %{{x}}: %{{y:.4f}}<extra></extra>'
          ),
          row=1,
          col=column,
        )
  figure.update_yaxes(type='log', row=1, col=1)
  figure.update_xaxes(title='step')
  figure = _style(figure, 420)
  below = {'orientation': 'h', 'y': -0.2, 'yanchor': 'top'}
  return figure.update_layout(legend=below, margin={'b': 60})


def _metric(groups: Sequence[Group]) -> str:
  return next((r.metric for g in groups for r in g.runs if r.metric), '')


def _axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
  """Places from 0 to 1, and the ticks: numbers by size, others by name."""
  numbers = all(
    isinstance(v, int | float) and not isinstance(v, bool) for v in values
  )
  distinct = sorted(set(values)) if numbers else sorted(set(map(show, values)))
  keys = list(values) if numbers else [show(v) for v in values]
  if len(distinct) <= 8 or not numbers:  # a step apart each, whatever they are
    last = max(1, len(distinct) - 1)
    place = {
      v: i / last if len(distinct) > 1 else 0.5 for i, v in enumerate(distinct)
    }
    return [place[k] for k in keys], [(p, show(v)) for v, p in place.items()]
  low, high = distinct[0], distinct[-1]
  log = low > 0 and high / low > 20
  of = math.log if log else float
  span = of(high) - of(low)
  ticks = [(0.0, show(low)), (1.0, show(high))]
  return [(of(v) - of(low)) / span for v in keys], ticks


def parallel(groups: Sequence[Group], fields: Sequence[str]) -> go.Figure:
  """A line a configuration, through its fields to what it reached."""
  done = [g for g in groups if not math.isnan(g.mean)]
  columns = [[g.values[f] for g in done] for f in fields]
  axes = [_axis(c) for c in columns]
  means = [g.mean for g in done]
  low, high = min(means), max(means)
  span = (high - low) or 1.0
  places = [(m - low) / span for m in means]
  axes.append((places, [(0.0, show(low)), (1.0, show(high))]))
  names = [*short(fields), _metric(done)]
  figure = go.Figure()
  for i, group in reversed(list(enumerate(done))):  # the best on top
    figure.add_scatter(
      x=list(range(len(axes))),
      y=[places[i] for places, _ in axes],
      mode='lines+markers',
      line={
        'color': sample_colorscale(_SCALE, [0.25 + 0.6 * axes[-1][0][i]])[0],
        'width': 2,
        'shape': 'spline',
        'smoothing': 0.4,
      },
      showlegend=False,
      hovertemplate=f'{group.name}<br>{group.mean:.4f}<extra></extra>',
    )
  for x, (_, ticks) in enumerate(axes):
    figure.add_vline(x, line={'color': 'rgba(128,128,128,0.5)', 'width': 1})
    for y, text in ticks:
      figure.add_annotation(
        x=x, y=y, text=text, showarrow=False, xshift=6, yshift=9, xanchor='left'
      )
  figure.update_xaxes(
    tickvals=list(range(len(names))),
    ticktext=names,
    showgrid=False,
    range=[-0.1, len(names) - 0.7],
  )
  figure = _style(figure, 380)
  return figure.update_yaxes(visible=False, range=[-0.08, 1.08])


def slices(groups: Sequence[Group], fields: Sequence[str]) -> go.Figure:
  """What was reached over each field: all seeds, and the mean of a value."""
  runs: list[tuple[Group, Found]] = [
    (g, r) for g in groups for r in g.runs if r.state == 'finished'
  ]
  columns = min(3, len(fields))
  rows = math.ceil(len(fields) / columns)
  titles = short(fields)
  figure = make_subplots(
    rows, columns, subplot_titles=titles, shared_yaxes=True
  )
  for i, field in enumerate(fields):
    where = {'row': i // columns + 1, 'col': i % columns + 1}
    places, ticks = _axis([g.values[field] for g, _ in runs])
    scores = [r.last(r.metric) for _, r in runs]
    figure.add_scatter(
      x=places,
      y=scores,
      mode='markers',
      marker={'size': 6, 'opacity': 0.6, 'color': _COLORS[0]},
      text=[r.path.name for _, r in runs],
      hovertemplate='%{text}<br>%{y:.4f}<extra></extra>',
      showlegend=False,
      **where,
    )
    if len(ticks) < len(runs):
      means = {
        p: [s for q, s in zip(places, scores, strict=True) if q == p]
        for p in sorted(set(places))
      }
      figure.add_scatter(
        x=list(means),
        y=[sum(v) / len(v) for v in means.values()],
        mode='lines',
        line={'color': _COLORS[1], 'width': 2},
        hovertemplate='mean %{y:.4f}<extra></extra>',
        showlegend=False,
        **where,
      )
    figure.update_xaxes(
      tickvals=[p for p, _ in ticks], ticktext=[t for _, t in ticks], **where
    )
  return _style(figure, 60 + 300 * rows)
