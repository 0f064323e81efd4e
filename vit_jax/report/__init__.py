"""Reports: what runs reached, and whether their differences are noise.

`runs.py` reads them, `bootstrap.py` compares, `figures.py` draws, `page.py`
writes HTML and Markdown, `diff.py` tells two runs apart, and `examples.py` two
files of predictions, of which `kept.py` knows whose examples they are.
"""

from collections.abc import Sequence
from pathlib import Path

from vit_jax.errors import check_output
from vit_jax.report import page
from vit_jax.report.runs import find


def run(paths: Sequence[Path], output: Path | None) -> tuple[str, Path]:
  """Writes the report; (its Markdown, where the HTML is).

  Raises:
    UserError: there are no runs, or the first folder cannot be written to.
  """
  runs = find(paths)
  if output is None:
    output = paths[0] / 'report.html'
    check_output('--output', output)
  title = ', '.join(path.absolute().name for path in paths)
  return page.write(title, runs, output), output
