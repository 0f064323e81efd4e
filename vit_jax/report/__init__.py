"""Reports: what runs reached, and whether their differences are noise.

`runs.py` reads them, `bootstrap.py` compares, `figures.py` draws, `page.py`
writes HTML and Markdown, and `diff.py` tells two runs apart.
"""

from collections.abc import Sequence
from pathlib import Path

from vit_jax.report import page
from vit_jax.report.runs import find


def run(paths: Sequence[Path], output: Path | None) -> tuple[str, Path]:
  """Writes the report; (its Markdown, where the HTML is).

  Raises:
    UserError: there are no runs.
  """
  runs = find(paths)
  output = output or paths[0] / 'report.html'
  title = ', '.join(path.absolute().name for path in paths)
  return page.write(title, runs, output), output
