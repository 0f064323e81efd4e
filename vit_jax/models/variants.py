"""Sizes by name: 'S/16' is width, depth, MLP width and heads, and the patch.

'R26+S/32' is the same encoder behind a convolutional stem (stem.py), and 32 the
side in pixels of what one token sees. Sources: Ti to H, R+Ti to R50+L: arXiv
2010.11929 Table 1, 2106.10270 Table 2; g, G: 2106.04560 Table 2; e: 2209.06794;
22B: 2302.05442 Table 1 (whose blocks are parallel, ours are not); So400m:
2305.13035; mu, M, g-opt, G-opt: big_vision.
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
  'mu': Variant(32, 1, 128, 2),
  'Ti': Variant(192, 12, 768, 3),
  'S': Variant(384, 12, 1536, 6),
  'M': Variant(512, 12, 2048, 8),
  'B': Variant(768, 12, 3072, 12),
  'L': Variant(1024, 24, 4096, 16),
  'So400m': Variant(1152, 27, 4304, 16),
  'H': Variant(1280, 32, 5120, 16),
  'g': Variant(1408, 40, 6144, 16),
  'g-opt': Variant(1536, 40, 6144, 16),
  'G': Variant(1664, 48, 8192, 16),
  'G-opt': Variant(1536, 48, 8192, 16),
  'e': Variant(1792, 56, 15360, 16),
  '22B': Variant(6144, 48, 24576, 48),
}

# Residual units of each stage of the stem, and its stride in pixels; the patch
# is cut from the feature map.
STEMS = {
  '': ((), 1),
  'R': ((), 4),
  'R26': ((2, 2, 2, 2), 32),
  'R50': ((3, 4, 6, 3), 32),
  'R50-3': ((3, 4, 9), 16),
}


def parse(name: str) -> tuple[Variant, int, str]:
  """'R26+S/32' -> (Variant(384, 12, 1536, 6), 32, 'R26').

  As published, the stem of 'R50+B/16' lacks the last stage ('R50-3'), and a
  token of 'R+Ti/16' sees 32 pixels, not 16.

  Raises:
    UserError: not [STEM+]SIZE/PATCH, or no such size or stem.
  """
  match = re.fullmatch(r'(?:(\w+)\+)?([\w-]+)/(\d+)', name)
  if not match or not int(match[3]):
    raise UserError(
      f'config.model.variant = {name!r}: write a size and a patch, as in '
      "'S/16'."
    )
  stem, size, patch = match[1] or '', match[2], int(match[3])
  if size not in VARIANTS:
    raise UserError(
      f'config.model.variant = {name!r}: there is no size {size!r}.'
      + did_you_mean(size, VARIANTS)
    )
  stem = 'R50-3' if stem == 'R50' and patch == 16 else stem
  patch = 32 if name == 'R+Ti/16' else patch
  if stem not in STEMS:
    known = [key for key in STEMS if key]
    raise UserError(
      f'config.model.variant = {name!r}: there is no stem {stem!r}.'
      + did_you_mean(stem, known)
    )
  if patch % STEMS[stem][1]:
    raise UserError(
      f'config.model.variant = {name!r}: the stem {stem!r} has a stride of '
      f'{STEMS[stem][1]}, which has to divide the patch.'
    )
  return VARIANTS[size], patch, stem
