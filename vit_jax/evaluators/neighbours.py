"""k nearest neighbours: labels of the training examples with like features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.data.context import Pixels, Positive
from vit_jax.errors import UserError
from vit_jax.evaluators.view import View, local_mesh

_BLOCK, _ROWS = 65536, 8192  # training examples, and queries, at a time


@functools.partial(jax.jit, static_argnums=4)
def _nearer(best, queries, block, labels, k):
  """The k nearest of those known, (likeness, label), and of one more block."""
  likeness = jnp.matmul(queries, block.T, precision='highest')
  likeness = jnp.concatenate([best[0], likeness], 1)
  labels = jnp.concatenate(
    [best[1], jnp.broadcast_to(labels, (len(queries), len(labels)))], 1
  )
  likeness, where = jax.lax.top_k(likeness, k)
  return likeness, jnp.take_along_axis(labels, where, 1)


def neighbours(
  queries: np.ndarray, train: np.ndarray, labels: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """(cosine, label) of the k nearest, each (n, k), the nearest first.

  The queries are divided over this host's devices.

  Args:
    queries: (n, D).
    train: (m, D), m at least k.
    labels: (m,).
    k: how many.
  """
  queries, train = (
    x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    for x in (queries, train)
  )
  mesh = local_mesh()
  divided = NamedSharding(mesh, PartitionSpec('rows'))
  found, count = [], len(queries)
  queries = np.pad(queries, ((0, -count % mesh.size), (0, 0)))
  step = -(-_ROWS // mesh.size) * mesh.size
  for start in range(0, len(queries), step):
    rows = jax.device_put(queries[start : start + step], divided)
    likeness = np.full((len(rows), k), -np.inf, np.float32)
    best = likeness, np.zeros((len(rows), k), np.int32)
    for first in range(0, len(train), _BLOCK):
      part = slice(first, first + _BLOCK)
      best = _nearer(best, rows, train[part], labels[part], k)
    found.append(jax.device_get(best))
  likeness, labels = (np.concatenate(x) for x in zip(*found, strict=True))
  return likeness[:count], labels[:count]


def vote(
  likeness: np.ndarray, labels: np.ndarray, classes: int, temperature: float
) -> np.ndarray:
  """Each neighbour has exp(cosine / temperature) votes; of ties the first."""
  weights = np.exp((likeness - likeness[:, :1]) / temperature)
  votes = np.zeros((len(labels), classes))
  np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
  return votes.argmax(1)


def knn(
  view: View, k: Pixels = 20, temperature: Positive = 0.07
) -> dict[str, float]:
  """Accuracy of the k nearest neighbours by cosine, weighted, as DINO's.

  arXiv 2104.14294: 20 neighbours, exp(cosine / 0.07). Features as the head is
  given them, of the training split without augmentation.

  Args:
    view: of the model.
    k: neighbours.
    temperature: of their votes.
  """
  train, labels = view.train_features
  if k > len(train):
    raise UserError(f'knn({k}): the training split has {len(train)} examples.')
  features, truth = view.features
  found = neighbours(features, train, labels, k)
  predicted = vote(*found, len(view.setup.info.classes), temperature)
  view.keep(f'knn_{k}', label=truth, prediction=predicted)
  return {f'knn_{k}': float((predicted == truth).mean())}
