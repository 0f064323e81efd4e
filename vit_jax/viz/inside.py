"""`viz`: pictures of what is inside a model, and a page with all of them."""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.progress import track

from vit_jax import predict
from vit_jax.data import ops
from vit_jax.models.patches import grid as grid_of
from vit_jax.setup import Setup
from vit_jax.viz import attention, features, filters, panels

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; background: #fff; border-radius: 4px }
h2 { font-size: 1.15rem; margin: 2rem 0 .2rem } p { margin: .2rem 0 .6rem }
"""

_FIRST = 4  # examples of a split, where no pictures are given

# The words under each picture: what it is, and what to look for.
CAPTIONS = {
  'panels': 'What the model makes of the pictures. Of a masked autoencoder: '
  'hidden patches as it draws them, those that it saw as they are.',
  'attention': 'A row a layer, a column a head: from the CLS token (without '
  'one, from the mean of the patches) to the patches. At the left the rollout, '
  'all layers multiplied (arXiv 2005.00928).',
  'distances': 'Mean attention distance of each head (arXiv 2010.11929, figure '
  '7). Heads near the dotted line look at their neighbours, as a convolution '
  'does; what is far up looks everywhere.',
  'features': "Three principal components of the patches' features as red, "
  'green and blue (arXiv 2304.07193): parts of equal colour are alike to the '
  'model. One set of components for all pictures of a layer.',
  'norms': 'Norms of the patch tokens. A few far above the others, often in '
  'empty places, are what registers cure (arXiv 2309.16588).',
  'filters': 'Principal components of the filters that pixels meet first.',
  'positions': 'Cosine similarity of the position of each patch, a tile, with '
  'all others. Rows and columns that show: the model knows the grid.',
}


class Inside:
  """What a model does with pictures, layer by layer.

  Attributes:
    pictures: (h, w, c) each, from 0 to 1, as the model was fed them.
    tokens: (L, N, D) each, after every block.
    attention: (L, H, N, N) each.
    prefix: tokens before the patches.
    cls: whether the first of them is CLS.
    grid: patches down and across.
    patch: side of a patch in pixels.
  """

  def __init__(
    self,
    setup: Setup,
    params: Any,
    images: Sequence[Float[np.ndarray, 'h w c']],
  ):
    """Runs the model on images after the ops of an evaluation."""
    model: Any = setup.model
    self.model, self.params, self.channels = model, params, setup.info.channels
    self.patch, self.prefix = model.patch, model.prefix
    self.cls = 'cls' in model.special
    self.grid = grid_of(setup.info.size, model.patch)
    texts = setup.config.data.test.ops
    self.pictures = [ops.undo(texts, image) / 255.0 for image in images]
    self.tokens: list[np.ndarray] = []
    self.attention: list[np.ndarray] = []

    @jax.jit
    def look(params, images):
      return setup.apply(params, images, capture=('tokens', 'attention'))[1]

    for image in track(images, 'looking', transient=True):
      with jax.set_mesh(setup.mesh):
        seen = jax.device_get(look(params, image[None]))
      self.tokens.append(np.asarray(seen['tokens'][:, 0], np.float32))
      self.attention.append(np.asarray(seen['attention'][:, 0], np.float32))

  def heads(self, number: int) -> Figure:
    """Attention of a picture by layer and head, and its rollout."""
    maps = self.attention[number]
    rolled = attention.rollout(maps)
    given = (self.prefix, self.cls, self.grid)
    return attention.draw_heads(
      self.pictures[number],
      attention.to_patches(maps, *given),
      attention.to_patches(rolled[None, None], *given)[0, 0],
    )

  def distances(self) -> Figure:
    """Mean attention distance by layer and head."""
    measured = [
      attention.distances(maps, self.prefix, self.grid, self.patch)
      for maps in self.attention
    ]
    return attention.draw_distances(measured, self.patch)

  def features(self) -> Figure:
    """Principal components of the patches as colours."""
    given = (self.pictures, self.tokens, self.prefix, self.grid)
    return features.draw_features(*given)

  def norms(self) -> Figure:
    """Norms of the patch tokens."""
    given = (self.pictures, self.tokens, self.prefix, self.grid)
    return features.draw_norms(*given)

  def filters(self) -> Figure:
    """Principal components of the first filters."""
    found = filters.filters(self.model, self.params, self.channels)
    return filters.draw_filters(found)

  def positions(self) -> Figure | None:
    """Likeness of positions; None where nothing is added to the tokens."""
    table = filters.position_table(self.model, self.params, self.grid)
    if table is None:
      return None
    return filters.draw_similarity(filters.similarity(table, self.grid))

  def figures(self, names: Sequence[str]) -> Iterator[tuple[str, str, Figure]]:
    """(name of the file, kind, figure) of all; `names` of the pictures."""
    for number, name in enumerate(names):
      yield f'attention_{name}', 'attention', self.heads(number)
    for kind in ('features', 'norms', 'distances', 'filters', 'positions'):
      figure = getattr(self, kind)()
      if figure is not None:
        yield kind, kind, figure


def _names(files: Sequence[Path]) -> list[str]:
  stems = [file.stem for file in files]
  return [
    stem if stems.count(stem) == 1 else f'{stem}_{i}'
    for i, stem in enumerate(stems)
  ]


def _first(setup: Setup) -> tuple[dict[str, Any], list[str]]:
  """A few examples of the first split that is evaluated, and their names."""
  name = (setup.evaluations or ['test'])[0]
  loader = setup.loader(name, setup.source(name))
  batch = jax.device_get(loader.eval_batch(0))
  rows = np.flatnonzero(batch['mask'])[:_FIRST]
  names = [f'{name}_{row}' for row in rows]
  return {key: leaf[rows] for key, leaf in batch.items()}, names


def run(
  setup: Setup, params: Any, files: Sequence[Path], output: Path, title: str
) -> Path:
  """Writes the PNGs and a page of them into a folder; where the page is.

  Args:
    setup, params: of a run or of weights.
    files: pictures, of any size; none: the first of the run's first split.
    output: the folder.
    title: of the page.

  Raises:
    UserError: a file that is no picture.
  """
  if files:
    images, names = predict.read(setup, files), _names(files)
    shown = {'image': np.stack(images), 'mask': np.ones(len(images), 'f')}
  else:
    shown, names = _first(setup)
    images = list(np.asarray(shown['image']))
  output.mkdir(parents=True, exist_ok=True)
  parts, told = [], set()

  def add(name: str, kind: str):
    data = base64.b64encode((output / f'{name}.png').read_bytes()).decode()
    if kind not in told:
      parts.append(f'<h2>{kind}</h2><p>{html.escape(CAPTIONS[kind])}</p>')
      told.add(kind)
    alt = html.escape(name)
    parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')

  if hasattr(setup.task, 'show'):
    panels.draw(setup, params, shown, title, output / 'panels.png')
    add('panels', 'panels')
  inside = Inside(setup, params, images)
  for name, kind, figure in inside.figures(names):
    figure.savefig(output / f'{name}.png')
    add(name, kind)
  if 'positions' not in told:
    kind = setup.model.positions  # type: ignore[attr-defined]
    parts.append(f'<p>No table of positions: this model has {kind!r}.</p>')
  page = output / 'index.html'
  page.write_text(
    '<!doctype html>\n<html lang=en><head><meta charset=utf-8>'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
    f'<body><h1>{html.escape(title)}</h1>\n'
    + '\n'.join(parts)
    + '</body></html>\n'
  )
  return page
