"""Sizes by name: 'S/16' is width, depth, MLP width and heads, and the patch.

Ti, S, B, L, H: arXiv 2010.11929 Table 1, 2106.10270 Table 2.
"""

import dataclasses
import re

from vit_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Variant:
  """The shape of an encoder."""

  width: int  # D
  depth: int  # L
  hidden: int  # F, of the MLP
  heads: int  # H


VARIANTS = {
  'Ti': Variant(192, 12, 768, 3),
  'S': Variant(384, 12, 1536, 6),
  'B': Variant(768, 12, 3072, 12),
  'L': Variant(1024, 24, 4096, 16),
  'H': Variant(1280, 32, 5120, 16),
}


def parse(name: str) -> tuple[Variant, int]:
  """'S/16' -> (Variant(384, 12, 1536, 6), 16).

  Raises:
    UserError: not SIZE/PATCH, or no such size.
  """
  match = re.fullmatch(r'([\w-]+)/(\d+)', name)
  if not match or not int(match[2]):
    raise UserError(
      f'config.model.variant = {name!r}: write a size and a patch, as in '
      "'S/16'."
    )
  if match[1] not in VARIANTS:
    raise UserError(
      f'config.model.variant = {name!r}: there is no size {match[1]!r}.'
      + did_you_mean(match[1], VARIANTS)
    )
  return VARIANTS[match[1]], int(match[2])
