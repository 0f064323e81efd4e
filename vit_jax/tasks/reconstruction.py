"""Reconstruction: hidden patches from visible ones (MAE, arXiv 2111.06377)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.patches import patchify, unpatchify

_EVALUATION = 0  # seed of the masks that splits are evaluated with
_EPSILON = 1e-6  # added to the variance of a patch


def _fixed(count: int) -> jax.Array:
  """Keys of images that are evaluated; the first ones are always the same."""
  return jax.random.split(jax.random.key(_EVALUATION), count)


def _moments(patches: Float[Array, 'B N PPc']):
  """Mean and variance of each patch, the latter by n - 1, as the authors do."""
  mean = patches.mean(-1, keepdims=True)
  n = patches.shape[-1]
  return mean, jnp.square(patches - mean).sum(-1, keepdims=True) / (n - 1)


class Reconstruction:
  """The task of drawing the patches that a model is not shown.

  The loss is the squared error of their pixels, a mean over the pixels of a
  patch and over the hidden patches of an image.
  """

  models = ('mae',)
  masks = None  # labels are not used, of whatever kind
  metrics = ('r2', 'loss')
  best = 'r2'

  def __init__(self, *, classes: int, normalize: bool = True):
    """Keyword parameters with defaults are the fields of `config.task`.

    Args:
      classes: of the data, whose labels are not used.
      normalize: whether pixels are compared after each patch's mean and
        deviation are taken out (section 4, "reconstruction target").
    """
    del classes
    self.normalize = normalize

  def augment(self, batch, key):
    """The batch, and a key for each image, which hides its patches."""
    return batch | {'masking': jax.random.split(key, len(batch['mask']))}

  def _compare(self, drawn, images) -> tuple[jax.Array, jax.Array]:
    """Of each patch, squared error and variance, in the units of the loss."""
    side = math.isqrt(drawn.shape[-1] // images.shape[-1])
    target = patchify(images, side)
    mean, variance = _moments(target)
    if self.normalize:
      target = (target - mean) * jax.lax.rsqrt(variance + _EPSILON)
    spread = jnp.square(target - target.mean(-1, keepdims=True)).mean(-1)
    return jnp.square(drawn - target).mean(-1), spread

  def loss(self, apply, params, batch, key):
    """((sum of losses, examples), metrics as such pairs)."""
    masking = batch['masking']
    drawn, hidden = apply(params, batch['image'], key=key, masking=masking)
    errors, _ = self._compare(drawn, batch['image'])
    losses = jnp.mean(errors, 1, where=hidden)
    return ((losses * batch['mask']).sum(), batch['mask'].sum()), {}

  def evaluate(self, apply, params, batch):
    """Loss and variance of the hidden patches, under masks of a fixed seed.

    Row i of every batch has the same ones.
    """
    masking = _fixed(len(batch['image']))
    drawn, hidden = apply(params, batch['image'], masking=masking)
    errors, spread = self._compare(drawn, batch['image'])
    values = {
      'loss': jnp.mean(errors, 1, where=hidden),
      'variance': jnp.mean(spread, 1, where=hidden),
    }
    return values, {}

  def summary(self, means):
    """The loss; and `r2`, the share of the variance within patches explained.

    0: no better than the mean of each patch. 1: every pixel as it is.
    """
    loss, variance = float(means['loss']), float(means['variance'])
    return {'r2': 1 - loss / variance if variance else 0.0, 'loss': loss}

  def predict(self, apply, params, images):
    """What `show` does."""
    return self.show(apply, params, {'image': images})

  def show(self, apply, params, batch):
    """Pictures by name, (B, h, w, c) each, in the units of the images.

    Hidden patches are grey in 'masked'. In 'output' they are as drawn; drawn
    without mean and deviation (`normalize`), they are given their own ones.
    """
    images = batch['image']
    drawn, hidden = apply(params, images, masking=_fixed(len(images)))
    side = math.isqrt(drawn.shape[-1] // images.shape[-1])
    target = patchify(images, side)
    mean, variance = _moments(target)
    if self.normalize:
      drawn = drawn * jnp.sqrt(variance + _EPSILON) + mean
    middle = (images.max() + images.min()) / 2
    at, size = hidden[..., None], images.shape[1:3]
    return {
      'input': images,
      'masked': unpatchify(jnp.where(at, middle, target), size, side),
      'output': unpatchify(jnp.where(at, drawn, target), size, side),
    }
