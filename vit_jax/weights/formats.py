"""What a format of weights has to say; each is a module with these functions.

  matches(names)        whether a file with these tensor names is of the format
  describe(tensors, config, options) -> Description
  entries(model, description) -> list[Entry]
  config_json(model, description) -> dict, to write beside the file

`names` are those in the file. A format says what it reads from the names and
shapes alone, takes the rest from config.json or the standard table of sizes,
and otherwise raises UserError that names the option: it never guesses.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Options:
  """What the user states where a file cannot tell."""

  heads: int = 0
  grid: tuple[int, int] | None = None  # of the patches, where not square
  architecture: str = ''  # a name known to the format, such as timm's


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """From a picture to the model's input; travels with the weights.

  Pixels are uint8 / 255, then (x - mean) / std per channel. The shorter side is
  resized to `side` and the middle cut out ('center'), or both sides are
  squashed to the size ('squash').
  """

  size: tuple[int, int]
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  interpolation: str = 'bicubic'  # or 'bilinear'; antialiased, as by Pillow
  crop: float = 1.0
  mode: str = 'center'

  @property
  def side(self) -> int:
    """Pixels of the shorter side of which `size` is cut: rounded as by timm."""
    return math.floor(max(self.size) / self.crop)


def crop_of(size: int, side: int) -> float:
  """The `crop` by which a picture of `side` pixels is cut to `size`."""
  crop = size / side
  exact = math.floor(size / crop) == side
  return crop if exact else math.nextafter(crop, 0)


@dataclasses.dataclass(frozen=True)
class Description:
  """What a file is, found from its names, shapes and config.

  Attributes:
    family: in words, such as 'timm DINOv2 with registers'.
    fields: of ViT, `classes` included; `variant` is a size where one fits and
      else any, with width, depth, hidden and heads all set.
    preprocessing: what the model was trained to see.
    ignored: whether a tensor is none of the model's (a decoder, a mask token).
    labels: names of the classes, where the config has them.
    notes: what a user has to know (a bias that the file lacks, ...).
    pictures: (h, w) that the model was evaluated on, where `preprocessing.size`
      is what its positions are for and that is another.
  """

  family: str
  fields: dict[str, Any]
  preprocessing: Preprocessing
  ignored: Callable[[str], bool] = lambda _: False
  labels: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  pictures: tuple[int, int] | None = None


def size_fields(
  width: int, depth: int, hidden: int, heads: int, patch: int, stem: str = ''
) -> dict[str, Any]:
  """variant, and width, depth, hidden, heads where no variant has them."""
  sizes = (width, depth, hidden, heads)
  stem = stem and f'{stem}+'
  for name, v in VARIANTS.items():
    if (v.width, v.depth, v.hidden, v.heads) == sizes:
      return {'variant': f'{stem}{name}/{patch}'}
  return {
    'variant': f'{stem}S/{patch}',
    'width': width,
    'depth': depth,
    'hidden': hidden,
    'heads': heads,
  }


def standard_heads(width: int, depth: int, hidden: int, given: int) -> int:
  """Heads of a fused projection, which no shape tells: given, or of the table.

  Raises:
    UserError: neither.
  """
  if given:
    return given
  known = {
    v.heads
    for v in VARIANTS.values()
    if (v.width, v.depth, v.hidden) == (width, depth, hidden)
  }
  if len(known) != 1:
    raise UserError(
      f'the number of heads cannot be told from the file (width {width}, depth '
      f'{depth}, MLP {hidden} is no standard size): state it with --heads=N.'
    )
  return known.pop()
