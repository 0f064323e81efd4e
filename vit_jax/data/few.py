"""Few labels: the first so many examples of each class of a source."""

import hashlib

from absl import logging

from vit_jax.data.sources import Record, Source, key_of
from vit_jax.errors import BadRecord, UserError


class Few:
  """`count` examples of each class, the first ones in the source's order.

  Attributes are the source's; the fingerprint knows which were chosen.
  """

  def __init__(
    self, source: Source, count: int, field: str, on_error: str = 'raise'
  ):
    """Reads the source until every class has its examples.

    Args:
      source: of the examples.
      count: of each class.
      field: names the count in messages.
      on_error: 'skip' passes over examples that cannot be read.

    Raises:
      BadRecord: an example cannot be read.
      UserError: a class has fewer, or the labels are masks.
    """
    if getattr(source, 'masks', False):
      raise UserError(
        f'{field} = {count}: these labels are masks, not classes.'
      )
    self._source = source
    self.classes, self.size = source.classes, source.size
    self.channels = source.channels
    lacking = dict.fromkeys(range(len(source.classes)), count)
    self._rows: list[int] = []
    for row in range(len(source)):
      try:
        label = int(source[row]['label'])
      except BadRecord as error:
        if on_error == 'raise':
          raise
        logging.log_first_n(logging.WARNING, 'skipped: %s', 10, error)
        continue  # there may be others of its class
      if lacking[label]:
        lacking[label] -= 1
        self._rows.append(row)
      if len(self._rows) == count * len(lacking):
        break
    short = [label for label, left in lacking.items() if left]
    if short:
      name, has = source.classes[short[0]], count - lacking[short[0]]
      raise UserError(f'{field} = {count}: class {name!r} has only {has}.')
    sha = hashlib.sha256(f'{source.fingerprint} {self._rows}'.encode())
    self.fingerprint = sha.hexdigest()

  def __len__(self) -> int:
    return len(self._rows)

  def key(self, index: int) -> str:
    return key_of(self._source, self._rows[index])

  def __getitem__(self, index: int) -> Record:
    return self._source[self._rows[index]]
