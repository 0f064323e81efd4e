"""Linear models of frozen features: in closed form of a few, and trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.data.context import Amount, Pixels
from vit_jax.data.order import hash64, shuffle
from vit_jax.errors import UserError
from vit_jax.evaluators.view import View, local_mesh

PENALTIES = 2.0 ** np.arange(-10, 21)  # that fewshot chooses from
RATES = tuple(float(f'{r:.3g}') for r in np.logspace(-3, 1, 9))
_HELD_OUT = 10  # one of so many training examples chooses the rate


def ridge(
  x: np.ndarray, y: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
  """(weights (D, Y), bias (Y,), penalty) of a ridge regression.

  The penalty is the one with the least squared error of leaving out each
  example, known in closed form (Golub, Heath and Wahba, 1979); the bias has
  none. In float64.
  """
  x, y = x.astype(np.float64), y.astype(np.float64)
  mean, middle = x.mean(0), y.mean(0)
  u, s, v = np.linalg.svd(x - mean, full_matrices=False)
  uy, errors = u.T @ (y - middle), []
  for penalty in penalties:
    shrink = (s**2 / (s**2 + penalty))[:, None]
    residual = y - middle - u @ (shrink * uy)
    leverage = (u**2) @ shrink[:, 0] + 1 / len(x)
    left_out = residual / np.maximum(1 - leverage, 1e-12)[:, None]
    errors.append((left_out**2).mean())
  best = float(penalties[int(np.argmin(errors))])
  weights = v.T @ ((s / (s**2 + best))[:, None] * uy)
  return weights, middle - mean @ weights, best


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
  """All by the mean and the deviation of the first."""
  mean, deviation = train.mean(0), train.std(0)
  scale = np.where(deviation > 0, deviation, 1)
  return [(x - mean) / scale for x in (train, *others)]


def few_of_each(
  labels: np.ndarray, classes: int, shots: int, seed: int
) -> np.ndarray:
  """Rows of `shots` examples of each class, the first in an order of `seed`.

  Raises:
    UserError: a class has not so many.
  """
  order = shuffle(np.arange(len(labels)), len(labels), hash64(seed))
  rows = []
  for label in range(classes):
    own = order[labels[order] == label][:shots]
    if len(own) < shots:
      raise UserError(
        f'fewshot({shots}): class number {label} has {len(own)} training '
        'examples.'
      )
    rows.append(own)
  return np.sort(np.concatenate(rows))


def fewshot(view: View, shots: Pixels = 10, seed: int = 0) -> dict[str, float]:
  """Accuracy of a ridge regression on the features of a few of each class.

  As arXiv 2010.11929, section 4.1, onto -1 and 1; the penalty by leaving one
  out, so that no example of the test is looked at.

  Args:
    view: of the model.
    shots: examples of each class.
    seed: which ones.
  """
  features, labels = view.train_features
  classes = len(view.setup.info.classes)
  rows = few_of_each(labels, classes, shots, seed)
  train, test = standardised(features[rows], view.features[0])
  targets = 2.0 * np.eye(classes)[labels[rows]] - 1
  weights, bias, _ = ridge(train, targets, PENALTIES)
  predicted = (test @ weights + bias).argmax(1)
  truth = view.features[1]
  view.keep(f'fewshot_{shots}', label=truth, prediction=predicted)
  return {f'fewshot_{shots}': float((predicted == truth).mean())}


def train_heads(
  x: np.ndarray,
  y: np.ndarray,
  classes: int,
  rates: tuple[float, ...],
  *,
  epochs: int,
  batch: int,
  decay: float,
) -> np.ndarray:
  """Heads (R, D + 1, Y), one a rate, all trained in one pass over the batches.

  SGD with momentum 0.9 and a cosine from the rate to 0, on the mean
  cross-entropy plus decay / 2 |W|^2 (the bias is the last row). A batch is
  divided over this host's devices, if they divide it.
  """
  x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], 1)
  batch = min(batch, len(x))
  per_epoch = len(x) // batch
  total = epochs * per_epoch
  cosine = optax.cosine_decay_schedule(1.0, total)
  rate = jnp.asarray(rates)[:, None, None]

  def loss(heads, images, labels):
    logits = jnp.einsum('nd,rdy->rny', images, heads)
    each = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.broadcast_to(labels, logits.shape[:2])
    )
    penalty = decay / 2 * jnp.square(heads[:, :-1]).sum((1, 2))
    return (each.mean(1) + penalty).sum()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(heads, momentum, images, labels, number):
    momentum = 0.9 * momentum + jax.grad(loss)(heads, images, labels)
    return heads - cosine(number) * rate * momentum, momentum

  mesh = local_mesh()
  even = PartitionSpec() if batch % mesh.size else PartitionSpec('rows')
  divided = NamedSharding(mesh, even)
  heads = jnp.zeros((len(rates), x.shape[1], classes))
  momentum = jnp.zeros_like(heads)
  for epoch in range(epochs):
    order = shuffle(np.arange(len(x)), len(x), hash64(epoch))
    for i in range(per_epoch):
      rows = order[i * batch : (i + 1) * batch]
      number = epoch * per_epoch + i
      images, labels = jax.device_put((x[rows], y[rows]), divided)
      heads, momentum = step(heads, momentum, images, labels, number)
  return np.asarray(heads)


def answers(head: np.ndarray, x: np.ndarray) -> np.ndarray:
  """What a head says of features, (n,)."""
  return (x @ head[:-1] + head[-1]).argmax(-1)


def scores(heads: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Accuracy (R,) of heads on features."""
  return np.array([(answers(head, x) == y).mean() for head in heads])


def linear_probe(
  view: View,
  epochs: Pixels = 50,
  batch: Pixels = 256,
  decay: Amount = 0.0,
  rates: tuple[float, ...] = RATES,
) -> dict[str, float]:
  """Accuracy of a linear head trained on frozen features, the rate swept.

  Heads of all rates are trained at once; the one that is best on a tenth of the
  training split, which none was trained on, is the one that is tested.

  Args:
    view: of the model.
    epochs, batch, decay: see `train_heads`.
    rates: learning rates.

  Returns:
    `linear_probe`, and `linear_probe_rate`, the rate that was chosen.
  """
  if not rates or min(rates) <= 0:
    raise UserError(f'linear_probe(rates={rates}): at least one, all above 0.')
  features, labels = view.train_features
  if len(labels) < 2:
    raise UserError(
      'linear_probe: the training split has one example; one more chooses the '
      'rate.'
    )
  train, test = standardised(features, view.features[0])
  order = shuffle(np.arange(len(train)), len(train), hash64(0))
  held, rest = np.split(order, [max(1, len(order) // _HELD_OUT)])
  classes = len(view.setup.info.classes)
  heads = train_heads(
    train[rest],
    labels[rest],
    classes,
    rates,
    epochs=epochs,
    batch=batch,
    decay=decay,
  )
  best = int(scores(heads, train[held], labels[held]).argmax())
  predicted, truth = answers(heads[best], test), view.features[1]
  view.keep('linear_probe', label=truth, prediction=predicted)
  return {
    'linear_probe': float((predicted == truth).mean()),
    'linear_probe_rate': float(rates[best]),
  }
