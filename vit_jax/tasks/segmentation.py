"""Segmentation: a class for each pixel; cross-entropy, and dice if wanted."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vit_jax.data.sources import IGNORE
from vit_jax.errors import UserError

Pixels = Float[Array, 'B h w Y']
Labels = Int[Array, 'B h w']


def one_hot(label: Labels, classes: int) -> Bool[Array, 'B h w Y']:
  """Of IGNORE all are False. Comparisons, which XLA fuses with what follows."""
  return label[..., None] == jnp.arange(classes)


def cross_entropy(
  logits: Pixels, label: Labels, smoothing: float = 0.0
) -> Float[Array, 'B h w']:
  """Of each pixel in nats; 0 where it is not counted.

  Args:
    logits: in float32.
    label: classes and IGNORE.
    smoothing: this much of the mass is spread evenly over all classes.
  """
  own = one_hot(label, logits.shape[-1])
  score = jnp.where(own, logits, 0).sum(-1)
  if smoothing:
    score = (1 - smoothing) * score + smoothing * logits.mean(-1)
  losses = jax.nn.logsumexp(logits, -1) - score
  return jnp.where(label != IGNORE, losses, 0)


def dice(logits: Pixels, label: Labels) -> Float[Array, 'B']:
  """1 - the soft dice score of each example, 0 to 1, over the classes it has.

  2 Σ p t / (Σ p + Σ t) of a class, sums over the counted pixels (arXiv
  1606.04797, with the plain sums of arXiv 1707.03237); the mean over the
  classes that are in the label. 0 where no pixel is counted.
  """
  own = one_hot(label, logits.shape[-1])
  p = jnp.where((label != IGNORE)[..., None], jax.nn.softmax(logits), 0)
  true = own.sum((1, 2))
  common = 2 * jnp.where(own, p, 0).sum((1, 2))
  score = common / jnp.maximum(p.sum((1, 2)) + true, 1e-6)
  present = true > 0
  missed = jnp.where(present, 1 - score, 0).sum(-1)
  return missed / jnp.maximum(present.sum(-1), 1)


def counts(
  prediction: Labels, label: Labels, classes: int
) -> dict[str, Int[Array, 'B Y']]:
  """Counted pixels of each class: in the label, the prediction, and both."""
  true = one_hot(label, classes)
  said = one_hot(jnp.where(label == IGNORE, IGNORE, prediction), classes)
  sums = {'true': true, 'predicted': said, 'both': true & said}
  return {name: x.sum((1, 2), dtype=jnp.int32) for name, x in sums.items()}


def scores(found: dict, names: tuple[str, ...] = ()) -> dict[str, float]:
  """`miou`, `pixel_accuracy`, and `iou_NAME`, from sums of `counts`, (Y,) each.

  The IoU of a class is both / (true + predicted - both); a class that is in no
  label and no prediction has none, and no part in the mean.
  """
  true, said, both = (
    np.asarray(found[name], np.float64)
    for name in ('true', 'predicted', 'both')
  )
  union = true + said - both
  there = np.flatnonzero(union > 0)
  iou = both[there] / union[there]
  result = {
    'miou': float(iou.mean()) if there.size else float('nan'),
    'pixel_accuracy': float(both.sum() / true.sum())
    if true.sum()
    else float('nan'),
  }
  if names:
    keys = [re.sub(r'[^A-Za-z0-9_]+', '_', name).strip('_') for name in names]
    keys = [k if keys.count(k) == 1 else f'{k}_{i}' for i, k in enumerate(keys)]
    result |= {
      f'iou_{keys[i]}': float(x) for i, x in zip(there, iou, strict=True)
    }
  return result


class Segmentation:
  """The task of telling each pixel's class.

  A pixel counts as much as any other of the batch: an example weighs as much of
  1 as the share of its pixels that is counted, and its dice weighs the same.
  """

  models = ('segmenter',)
  metrics = ('miou', 'pixel_accuracy', 'loss')
  best = 'miou'
  masks = True

  def __init__(
    self,
    *,
    classes: int,
    names: tuple[str, ...],
    label_smoothing: float = 0.0,
    dice: float = 0.0,
  ):
    """Keyword parameters with defaults are the fields of `config.task`.

    Args:
      classes: Y, from the data.
      names: of them, for the metrics.
      label_smoothing: for training only, in [0, 1).
      dice: weight of the dice loss beside the cross-entropy's 1.

    Raises:
      UserError: a value out of its range.
    """
    if not 0 <= label_smoothing < 1:
      raise UserError(
        f'config.task.label_smoothing = {label_smoothing}: 0 <= s < 1.'
      )
    if not 0 <= dice < float('inf'):
      raise UserError(f'config.task.dice = {dice}: at least 0 (0: none).')
    self.classes, self.names = classes, names
    self.label_smoothing, self.dice = label_smoothing, dice

  def augment(self, batch, key):
    """The batch as it is."""
    del key
    return batch

  def loss(self, apply, params, batch, key):
    """((sum of losses, counted pixels as shares of examples), metrics)."""
    logits, label = apply(params, batch['image'], key=key), batch['label']
    mask = batch['mask']
    share = (label != IGNORE).mean((1, 2)) * mask
    losses = cross_entropy(logits, label, self.label_smoothing).mean((1, 2))
    total, weight = (losses * mask).sum(), share.sum()
    if self.dice:
      total += self.dice * (dice(logits, label) * share).sum()
    hits = (jnp.argmax(logits, -1) == label).mean((1, 2)) * mask
    return (total, weight), {'pixel_accuracy': (hits.sum(), weight)}

  def evaluate(self, apply, params, batch):
    """Counts of pixels, of which `summary` makes the metrics of the split.

    Of each example also its own mIoU, pixel accuracy, and loss (unsmoothed,
    without dice): nan if none of its pixels is counted.
    """
    logits, label = apply(params, batch['image']), batch['label']
    found = counts(jnp.argmax(logits, -1), label, self.classes)
    union = found['true'] + found['predicted'] - found['both']
    there = (union > 0).sum(-1)
    iou = (found['both'] / jnp.maximum(union, 1)).sum(-1)
    share = (label != IGNORE).mean((1, 2))
    nll = cross_entropy(logits, label).mean((1, 2))
    outputs = {
      'miou': iou / there,
      'pixel_accuracy': found['both'].sum(-1) / found['true'].sum(-1),
      'loss': nll / share,
    }
    return found | {'nll': nll, 'counted': share}, outputs

  def summary(self, means):
    """mIoU over the classes that occur, pixel accuracy, loss, each IoU."""
    found = scores(means, self.names)
    counted = float(means['counted'])
    loss = float(means['nll']) / counted if counted else float('nan')
    rest = {k: v for k, v in found.items() if k.startswith('iou_')}
    first = {k: found[k] for k in ('miou', 'pixel_accuracy')}
    return first | {'loss': loss} | rest

  def predict(self, apply, params, images):
    """Probabilities (B, h, w, Y) of images (B, h, w, c)."""
    return jax.nn.softmax(apply(params, images))

  def show(self, apply, params, batch):
    """The images; as classes (B, h, w) labels, if any, and predictions."""
    said = jnp.argmax(apply(params, batch['image']), -1)
    labels = {'label': batch['label']} if 'label' in batch else {}
    return {'input': batch['image'], **labels, 'prediction': said}
