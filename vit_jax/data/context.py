"""What an op is told besides the picture, and the types of its arguments."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np


class _Key(np.random.bit_generator.ISeedSequence):
  """A key of Philox given as its seed: Philox(key=...) also asks the system
  for random numbers, which it then does not use, at four times the time."""

  def __init__(self, key: tuple[int, int]):
    self._key = key

  def generate_state(self, n_words, dtype=np.uint32):
    """Philox asks for these two words."""
    del n_words, dtype
    return np.array(self._key, np.uint64)


def generator(seed: tuple[int, int]) -> np.random.Generator:
  """Random numbers by two words of 64 bits."""
  return np.random.Generator(np.random.Philox(_Key(seed)))


@dataclasses.dataclass
class Context:
  """What an op may know besides the image, and the mask, which it moves along.

  An op that moves pixels has the mask move by the same numbers (`move`), each
  of its pixels from the nearest one, and IGNORE where there was no picture.
  """

  size: tuple[int, int]  # (h, w) the model takes
  channels: int
  seed: tuple[int, int] = (0, 0)  # of the random numbers, 64 bits each
  key: str = ''  # of the record, for messages
  mask: np.ndarray | None = None  # uint8 (h, w), as large as the image is now

  @property
  def rng(self) -> np.random.Generator:
    """Made when an op first draws: many pipelines never do.

    Not a cached_property: its lock, until Python 3.12, is one for all examples.
    """
    if 'rng' not in self.__dict__:
      self.__dict__['rng'] = generator(self.seed)
    return self.__dict__['rng']

  def move(self, how: Callable[..., np.ndarray], *args):
    """The mask, if there is one, becomes `how(mask, *args)`."""
    if self.mask is not None:
      self.mask = how(self.mask, *args)


Kernel = Literal['bilinear', 'bicubic', 'area', 'lanczos']
Border = Literal['edge', 'zero', 'reflect']

# A type with limits: in words for the message, and as a test. `ops.build`
# applies them, so that a mistake ends before the run.
Probability = Annotated[float, 'between 0 and 1', lambda x: 0 <= x <= 1]
Area = Annotated[float, 'over 0, at most 1', lambda x: 0 < x <= 1]
Fraction = Annotated[float, 'at least 0, below 1', lambda x: 0 <= x < 1]
Amount = Annotated[float, 'at least 0', lambda x: x >= 0]
Positive = Annotated[float, 'over 0', lambda x: x > 0]
Hue = Annotated[float, 'between 0 and 0.5', lambda x: 0 <= x <= 0.5]
Level = Annotated[float, 'between 0 and 30', lambda x: 0 <= x <= 30]
Level8 = Annotated[int, 'between 0 and 255', lambda x: 0 <= x <= 255]
Count = Annotated[int, 'at least 0', lambda x: x >= 0]
Pixels = Annotated[int, 'at least 1', lambda x: x >= 1]
Grey = Annotated[int, 'between 0 and 256', lambda x: 0 <= x <= 256]
