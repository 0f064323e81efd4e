"""Data: sources -> decoded images -> augmentation -> batches, by (seed, step).

`SOURCES` is the table of what `config.data.name` may begin with.
"""

import dataclasses

from vit_jax.data.folder import Folder
from vit_jax.data.sources import Digits, Source, check_stated, parse_name
from vit_jax.errors import check_choice

SOURCES = {'digits': Digits, 'folder': Folder}


@dataclasses.dataclass(frozen=True)
class Split:
  """What to read and how: a group `config.data.train`, `config.data.test`."""

  split: str = (
    ''  # 'train', 'train[1150:]', 'train[:90%]'; '': the group's name
  )
  ops: tuple[str, ...] = ()  # in order, see data/ops.py: ('decode', 'flip')


def open_split(
  name: str,
  split: str,
  *,
  examples: int = 0,
  classes: int = 0,
  workers: int = 2,
  **options,
) -> Source:
  """Opens one split of 'digits' or 'folder:PATH'.

  Args:
    name: the kind of source, and after a colon what it is to read.
    split: a split expression such as 'train[:90%]'.
    examples: the size of the training split, stated by configs of large sets
      so that a run can be planned without data; checked. 0: not stated.
    classes: the number of classes, likewise.
    workers: threads that load batches ahead; read by the loader.
    **options: the source's own keyword parameters.

  Raises:
    UserError: no such source, path or split, or not what was stated.
  """
  del workers
  kind, argument = parse_name(name)
  check_choice('config.data.name', kind, SOURCES)
  source = SOURCES[kind](argument, split, **options)
  check_stated(source, split, examples, classes)
  return source
