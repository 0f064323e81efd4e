"""Data: sources -> decoded images -> augmentation -> batches, by (seed, step).

`SOURCES` is the table of what `config.data.name` may begin with.
"""

import dataclasses
from typing import Literal

from absl import logging

from vit_jax.data.folder import Folder
from vit_jax.data.mask_folder import Masks
from vit_jax.data.mixture import Mixture, parse_mixture
from vit_jax.data.scenes import DigitScenes
from vit_jax.data.sources import Digits, Source, check_stated, parse_name
from vit_jax.data.tar import Tar
from vit_jax.data.tfds import Tfds
from vit_jax.errors import UserError, check_choice
from vit_jax.schema import Field, keyword_fields

SOURCES = {
  'digits': Digits,
  'digit_scenes': DigitScenes,
  'folder': Folder,
  'masks': Masks,
  'tar': Tar,
  'tfds': Tfds,
}


@dataclasses.dataclass(frozen=True)
class Split:
  """What to read and how: a group `config.data.train`, `config.data.test`."""

  split: str = (
    ''  # 'train', 'train[1150:]', 'train[:90%]'; '': the group's name
  )
  ops: tuple[str, ...] = ()  # in order, see data/ops.py: ('decode', 'flip')
  per_class: int = 0  # few labels: the first so many of each class; 0: all


def source_fields(name: str) -> dict[str, Field]:
  """The config fields of the sources that a name is made of.

  Raises:
    UserError: there is no such source.
  """
  fields: dict[str, Field] = {}
  for part, _ in parse_mixture(name):
    kind = parse_name(part)[0]
    check_choice('config.data.name', kind, SOURCES)
    fields |= keyword_fields(SOURCES[kind])
  return fields


def _report(broken: tuple[str, ...], on_error: str):
  """All broken files in one message, so that they are mended in one go."""
  if on_error == 'skip':
    for text in broken[:5]:
      logging.warning('left out: %s', text)
  if broken and on_error == 'raise':
    more = f'\n... and {len(broken) - 5} more' if len(broken) > 5 else ''
    raise UserError('\n'.join(broken[:5]) + more)


def open_split(
  name: str,
  split: str,
  *,
  examples: int = 0,
  classes: int = 0,
  workers: int = 2,
  repeats: int = 1,
  on_error: Literal['raise', 'skip'] = 'raise',
  max_skipped: float = 0.01,
  **options,
) -> Source:
  """Opens one split of 'digits', 'folder:PATH', ... or a mixture of them.

  Args:
    name: the kind of source, and after a colon what it is to read; or several
      with weights, 'folder:/a*0.7+folder:/b*0.3'.
    split: a split expression such as 'train[:90%]'.
    examples: the size of the training split, stated by configs of large sets
      so that a run can be planned without data; checked. 0: not stated.
    classes: the number of classes, likewise.
    workers: threads that load batches ahead; read by the loader.
    repeats: times in a row that training draws an example, each time augmented
      anew (repeated augmentation, arXiv 1901.09335); read by the loader.
    on_error: what an example that cannot be read does: 'raise', or 'skip',
      which trains on another one in its place; read by the loader too.
    max_skipped: the largest fraction of examples to skip; read by the loop.
    **options: the sources' own keyword parameters.

  Raises:
    UserError: no such source, path or split, or not what was stated.
  """
  del workers, repeats, max_skipped
  sources, weights = {}, []
  for part, weight in parse_mixture(name):
    if part in sources:
      raise UserError(f'config.data.name = {name!r} has {part} twice.')
    own = source_fields(part)
    kind, argument = parse_name(part)
    fields = {key: options[key] for key in options.keys() & own.keys()}
    sources[part] = SOURCES[kind](argument, split, **fields)
    weights.append(weight)
  source = (
    Mixture(sources, weights) if len(sources) > 1 else sources.popitem()[1]
  )
  _report(getattr(source, 'broken', ()), on_error)
  check_stated(source, split, examples, classes)
  return source
