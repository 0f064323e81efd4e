"""Several sources as one: 'folder:/a*0.7+tar:/b/*.tar*0.3'."""

import hashlib
import math
import re

import numpy as np

from vit_jax.data.sources import Record, Source, key_of
from vit_jax.errors import UserError

_WEIGHTED = re.compile(
  r'(.+?)\*\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)(%?)\s*(?:\+\s*|$)'
)
# Signs of a mixture that is none: a second source, or a weight below 0.
_MEANT = re.compile(
  r'[+,]\s*(digit(s|_scenes)\b|folder:|masks:|tar:|tfds:)'
  r'|\*\s*-[\d.]+%?\s*(\+|$)'
)
_LEAST = 2**-16  # of a block of examples; order.py


def parse_mixture(name: str) -> list[tuple[str, float]]:
  """'a*0.7+b*0.3' -> [('a', 0.7), ('b', 0.3)]; another name: [(name, 1)].

  Raises:
    UserError: a weight of 0, or a part without one.
  """
  found = list(_WEIGHTED.finditer(name))
  if not found and not _MEANT.search(name):
    return [(name, 1.0)]
  parts = [(m[1].strip(), float(m[2]) / (100 if m[3] else 1)) for m in found]
  whole = ''.join(m[0] for m in found) == name and name[-1] != '+'
  total = sum(weight for _, weight in parts)
  few = [w for _, w in parts if not w >= _LEAST * total]
  if not whole or not 0 < total < math.inf or few:
    raise UserError(
      f'config.data.name = {name!r}: a mixture gives each source a weight '
      "above 0, as in 'folder:/a*0.7+folder:/b*0.3', and none less than one "
      'example of 65,536.'
    )
  return parts


class Mixture:
  """Sources with the same classes; records are counted through.

  Training draws from each by its weight (order.mixture_at); an evaluation sees
  every record of all of them once.
  """

  def __init__(self, sources: dict[str, Source], weights: list[float]):
    self._sources = list(sources.values())
    (first, one), *others = sources.items()
    for name, source in others:
      if source.classes != one.classes:
        differ = sorted(set(source.classes) ^ set(one.classes))
        raise UserError(
          f'config.data.name: {first} and {name} have different classes'
          + (f' ({", ".join(differ[:5])}).' if differ else ': another order.')
        )
      if getattr(source, 'masks', False) != getattr(one, 'masks', False):
        raise UserError(
          f'config.data.name: of {first} and {name} only one has masks.'
        )
    self.classes = one.classes
    self.masks = getattr(one, 'masks', False)
    self.channels = max(source.channels for source in self._sources)
    self.size = one.size
    lengths = [len(source) for source in self._sources]
    self.parts = tuple(zip(lengths, weights, strict=True))
    self._ends = np.cumsum(lengths)
    self.broken = tuple(
      text for source in self._sources for text in getattr(source, 'broken', ())
    )
    sha = hashlib.sha256(repr(self.parts).encode())
    for source in self._sources:
      sha.update(source.fingerprint.encode())
    self.fingerprint = sha.hexdigest()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _place(self, index: int) -> tuple[Source, int]:
    number = int(np.searchsorted(self._ends, index, side='right'))
    start = self._ends[number - 1] if number else 0
    return self._sources[number], index - int(start)

  def key(self, index: int) -> str:
    return key_of(*self._place(index))

  def __getitem__(self, index: int) -> Record:
    source, at = self._place(index)
    return source[at]
