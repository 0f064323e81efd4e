"""Two models example by example, by what each was right about."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.report.bootstrap import paired_bootstrap
from vit_jax.report.kept import check_same, origin_of

_SHOWN = 10


def _read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
  """'record', 'label' and 'right' of a file of predictions; its origin."""
  try:
    with np.load(path) as file:
      rows = {name: file[name] for name in file.files}
      origin = origin_of(rows)
  except (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  rows = {k: x for k, x in rows.items() if k not in ('fingerprint', 'split')}
  counts = {name: np.shape(x)[:1] for name, x in rows.items()}
  if len(set(counts.values())) > 1 or (0,) in counts.values():
    raise UserError(f'{path} has no rows, or not as many of each: {counts}.')
  if 'accuracy' in rows:
    rows['right'] = rows['accuracy'] > 0
  elif {'label', 'prediction'} <= rows.keys():
    rows['right'] = rows['label'] == rows['prediction']
  if not {'record', 'right'} <= rows.keys():
    raise UserError(
      f'{path} has {", ".join(rows) or "nothing"}; record, and accuracy or '
      'label and prediction, are needed, as `evaluate --keep=FILE.npz` and '
      '--pictures=DIR write them.'
    )
  return rows, origin


def compare(one: Path, other: Path) -> dict[str, Any]:
  """Of two files of predictions of the same examples.

  Returns:
    `examples`, their number; `accuracy` of both; `difference` of the second
    from the first, and its 95 % `interval` (paired bootstrap); and the records
    that `only_first` or `only_second` is right about. A `warning`, if it is
    not known whether the examples are the same.

  Raises:
    UserError: no such files, or of other examples.
  """
  (a, first_of), (b, second_of) = _read(one), _read(other)
  warning = check_same({one: first_of, other: second_of})
  for name in ('record', 'label'):
    if name in a and name in b and not np.array_equal(a[name], b[name]):
      raise UserError(f'{one} and {other} are not of the same {name}s.')
  first, second = (x['right'].astype(np.float64)[None] for x in (a, b))
  found = paired_bootstrap(second, first)
  return {
    'examples': found.examples,
    'accuracy': [float(first.mean()), float(second.mean())],
    'difference': found.difference,
    'interval': [found.low, found.high],
    'only_first': a['record'][a['right'] & ~b['right']].tolist(),
    'only_second': b['record'][b['right'] & ~a['right']].tolist(),
  } | ({'warning': warning} if warning else {})


def text(one: Path, other: Path, found: dict[str, Any]) -> str:
  """For people."""
  accuracy, (low, high) = found['accuracy'], found['interval']
  lines = [
    f'- {one}: {accuracy[0]:.2%} of {found["examples"]:,}',
    f'+ {other}: {accuracy[1]:.2%}',
    '',
    f'difference {100 * found["difference"]:+.2f} points, 95 % interval '
    f'{100 * low:+.2f} to {100 * high:+.2f} (paired bootstrap over examples)',
  ]
  for name, path in (('only_first', one), ('only_second', other)):
    records = found[name]
    shown = ', '.join(map(str, records[:_SHOWN]))
    more = ', ...' if len(records) > _SHOWN else ''
    lines.append(f'only {path} is right: {len(records):,} ({shown}{more})')
  lines += [f'warning: {found["warning"]}'] if 'warning' in found else []
  return '\n'.join(lines)
