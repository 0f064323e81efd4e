"""Weights for other images, another patch, other classes."""

from collections.abc import Callable

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.heads import is_head
from vit_jax.models.patches import grid
from vit_jax.models.variants import parse
from vit_jax.models.vit import ViT
from vit_jax.weights.mapping import abstract_params
from vit_jax.weights.resample import Kernel, resize_patches, resize_positions

Change = Callable[[str, np.ndarray], np.ndarray]


def refit(
  model: ViT,
  native: tuple[int, int],
  size: tuple[int, int],
  *,
  patch: int = 0,
  kernel: Kernel = 'bicubic-torch',
  antialias: bool = False,
) -> tuple[ViT, Change]:
  """The model for other images, and what its parameters become.

  Learned positions are resampled; the patch kernel by the pseudo-inverse of the
  resize (FlexiViT, arXiv 2212.08013).

  Args:
    model: that the parameters are of.
    native: (h, w) that the positions are for.
    size: (h, w) of the images to come.
    patch: side of a patch; 0: the same.
    kernel, antialias: of the positions, see resample.py.

  Returns:
    The model, and a function of (path, array) to the array.

  Raises:
    UserError: a patch that does not divide the images, or of a hybrid.
  """
  if patch and parse(model.variant)[2]:
    raise UserError(
      f'--patch={patch}: {model.variant} is a hybrid, whose patches are of '
      'features, not of pixels.'
    )
  old, side = grid(native, model.patch), model.patch
  if patch and patch != side:
    variant = model.variant.rpartition('/')[0]
    model = model.clone(variant=f'{variant}/{patch}')
  new = grid(size, model.patch)
  prefix = len(model.special) if model.prefix_positions else 0

  def change(path: str, array: np.ndarray) -> np.ndarray:
    if path == 'embed/linear/kernel':
      return np.asarray(resize_patches(array, side, patch or side))
    if path == 'positions/table':
      new_table = resize_positions(array, old, new, prefix, kernel, antialias)
      return np.asarray(new_table)
    return array

  return model, change


def new_heads(
  model: ViT, size: tuple[int, int], channels: int
) -> dict[str, np.ndarray]:
  """{path: array} of the heads of a model, zero but for its `head_bias`."""
  return {
    path: np.full(
      leaf.shape, model.head_bias if path.endswith('bias') else 0, np.float32
    )
    for path, leaf in abstract_params(model, size, channels).items()
    if is_head(path)
  }
