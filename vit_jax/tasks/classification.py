"""Classification: one label an image; softmax or sigmoid cross-entropy."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.tasks import distilling, mixing


def targets_of(
  batch: dict[str, jax.Array], classes: int, smoothing: float = 0.0
) -> Float[Array, 'B Y']:
  """Each example's distribution over the classes; sums to 1.

  Args:
    batch: label (B,); where images are mixed, `other` and `share` too.
    classes: Y.
    smoothing: this much of the mass is spread evenly over all classes.
  """
  targets = jax.nn.one_hot(batch['label'], classes)
  if 'other' in batch:
    share = batch['share'][:, None]
    other = jax.nn.one_hot(batch['other'], classes)
    targets = targets * share + other * (1 - share)
  return targets * (1 - smoothing) + smoothing / classes


def cross_entropy(
  logits: Float[Array, 'B Y'], targets: Float[Array, 'B Y'], objective: str
) -> Float[Array, 'B']:
  """Loss of each example in nats.

  Args:
    logits: one score a class, in float32.
    targets: see `targets_of`.
    objective: 'softmax', or 'sigmoid': a yes or no for each class, summed over
      the classes (arXiv 2006.07159).
  """
  if objective == 'sigmoid':
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
  return optax.softmax_cross_entropy(logits, targets)


class Classification:
  """The task of telling which of `classes` an image shows."""

  models = ('vit',)
  metrics = ('accuracy', 'top5', 'loss')
  best = 'accuracy'

  def __init__(
    self,
    *,
    classes: int,
    objective: Literal['softmax', 'sigmoid'] = 'softmax',
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    teacher: str = '',
    distillation: distilling.Kind = 'hard',
    distill_weight: float = 0.5,
    temperature: float = 3.0,
  ):
    """Keyword parameters with defaults are the fields of `config.task`.

    Args:
      classes: Y, from the data.
      objective: the loss; see `cross_entropy`.
      label_smoothing: for training only, in [0, 1).
      mixup, cutmix, mix_probability: see mixing.mix.
      teacher: weights, or the workdir of a run, whose logits are learned from
        beside the labels, by the distillation token if the model has one; '':
        none. See teacher.py.
      distillation, temperature: see distilling.loss.
      distill_weight: of the teacher's loss; the labels' has the rest.

    Raises:
      UserError: a value out of its range.
    """
    if not 0 <= label_smoothing < 1:
      raise UserError(
        f'config.task.label_smoothing = {label_smoothing}: 0 <= s < 1.'
      )
    self.classes = classes
    self.objective = objective
    self.label_smoothing = label_smoothing
    self.teacher = teacher  # Setup opens it
    mixing.check(mixup, cutmix, mix_probability)
    distilling.check(distill_weight, temperature)
    self._distill = functools.partial(
      distilling.loss, kind=distillation, temperature=temperature
    )
    self._distill_weight = distill_weight
    self._mixed = mixup > 0 or cutmix > 0
    self._mix = functools.partial(
      mixing.mix, mixup=mixup, cutmix=cutmix, probability=mix_probability
    )

  def augment(self, batch, key):
    """The batch, images and labels mixed if the config says so."""
    return self._mix(batch, key) if self._mixed else batch

  def loss(self, apply, params, batch, key):
    """((sum of losses, examples), metrics as such pairs)."""
    teacher, mask = batch.get('teacher'), batch['mask']
    both = () if teacher is None else ('class_logits', 'distill_logits')
    seen = apply(params, batch['image'], key=key, capture=both)
    logits, heads = (seen, {}) if teacher is None else seen
    targets = targets_of(batch, self.classes, self.label_smoothing)
    of_labels = heads.get('class_logits', logits)
    losses = cross_entropy(of_labels, targets, self.objective)
    hits = {'accuracy': jnp.argmax(logits, -1) == jnp.argmax(targets, -1)}
    if teacher is not None:
      share = self._distill_weight
      follow = self._distill(heads['distill_logits'], teacher)
      losses = (1 - share) * losses + share * follow
      hits['agreement'] = jnp.argmax(logits, -1) == jnp.argmax(teacher, -1)
    weight = mask.sum()
    return ((losses * mask).sum(), weight), {
      name: ((hit * mask).sum(), weight) for name, hit in hits.items()
    }

  def evaluate(self, apply, params, batch):
    """Accuracy, top-5 accuracy and loss (unsmoothed); and the prediction.

    With fewer than five classes, top-5 is top-(classes). `confidence` is the
    probability of the prediction, `brier` the sum over the classes of squared
    errors of the probabilities, `nll` in nats by the softmax of the logits,
    whatever the objective.
    """
    logits = apply(params, batch['image'])
    label = batch['label']
    score = jnp.take_along_axis(logits, label[:, None], -1)
    # Of ties the first class wins, as with argmax; NaN is ahead of any label.
    index = jnp.arange(logits.shape[-1])
    tied = (logits == score) & (index >= label[:, None])
    rank = (~((logits < score) | tied)).sum(-1)
    targets = targets_of(batch, self.classes)
    losses = cross_entropy(logits, targets, self.objective)
    values = {'accuracy': rank < 1, 'top5': rank < 5, 'loss': losses}
    probabilities = self._probabilities(logits)
    return values, {
      'prediction': jnp.argmax(logits, -1),
      'confidence': probabilities.max(-1),
      'brier': jnp.square(probabilities - targets).sum(-1),
      'nll': cross_entropy(logits, targets, 'softmax'),
    }

  def summary(self, means):
    """The means themselves."""
    return {name: float(mean) for name, mean in means.items()}

  def _probabilities(self, logits):
    sigmoid = self.objective == 'sigmoid'
    return jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)

  def predict(self, apply, params, images):
    """Probabilities (B, Y) of images (B, h, w, c)."""
    return self._probabilities(apply(params, images))
