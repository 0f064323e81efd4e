"""Classification: one label an image; softmax or sigmoid cross-entropy."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vit_jax.errors import UserError


def cross_entropy(
  logits: Float[Array, 'B Y'],
  labels: Int[Array, 'B'],
  objective: str,
  smoothing: float,
) -> Float[Array, 'B']:
  """Loss of each example in nats.

  Args:
    logits: one score a class, in float32.
    labels: class numbers.
    objective: 'softmax', or 'sigmoid': a yes or no for each class, summed over
      the classes (arXiv 2006.07159).
    smoothing: this much of the label's mass is spread evenly over all classes.
  """
  classes = logits.shape[-1]
  targets = jax.nn.one_hot(labels, classes) * (1 - smoothing)
  targets += smoothing / classes
  if objective == 'sigmoid':
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
  return optax.softmax_cross_entropy(logits, targets)


class Classification:
  """The task of telling which of `classes` an image shows."""

  best = 'accuracy'

  def __init__(
    self,
    *,
    classes: int,
    objective: Literal['softmax', 'sigmoid'] = 'softmax',
    label_smoothing: float = 0.0,
  ):
    """Keyword parameters with defaults are the fields of `config.task`.

    Args:
      classes: Y, from the data.
      objective: the loss; see `cross_entropy`.
      label_smoothing: for training only, in [0, 1).

    Raises:
      UserError: the smoothing is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
      raise UserError(
        f'config.task.label_smoothing = {label_smoothing}: 0 <= s < 1.'
      )
    self.classes = classes
    self.objective = objective
    self.label_smoothing = label_smoothing

  def loss(self, apply, params, batch, key):
    """((sum of losses, examples), metrics as such pairs)."""
    logits = apply(params, batch['image'], key=key)
    mask = batch['mask']
    losses = cross_entropy(
      logits, batch['label'], self.objective, self.label_smoothing
    )
    hits = jnp.argmax(logits, -1) == batch['label']
    weight = mask.sum()
    return ((losses * mask).sum(), weight), {
      'accuracy': ((hits * mask).sum(), weight)
    }

  def evaluate(self, apply, params, batch):
    """Sums of accuracy, top-5 accuracy and loss (unsmoothed) over the mask.

    With fewer than five classes, top-5 is top-(classes).
    """
    logits = apply(params, batch['image'])
    label, mask = batch['label'], batch['mask']
    score = jnp.take_along_axis(logits, label[:, None], -1)
    # Of ties the first class wins, as with argmax; NaN is ahead of any label.
    index = jnp.arange(logits.shape[-1])
    tied = (logits == score) & (index >= label[:, None])
    rank = (~((logits < score) | tied)).sum(-1)
    losses = cross_entropy(logits, label, self.objective, 0.0)
    weight = mask.sum()
    return {
      name: ((values * mask).sum(), weight)
      for name, values in (
        ('accuracy', rank < 1),
        ('top5', rank < 5),
        ('loss', losses),
      )
    }

  def predict(self, apply, params, images):
    """Probabilities (B, Y) of images (B, h, w, c)."""
    logits = apply(params, images)
    if self.objective == 'sigmoid':
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits)
