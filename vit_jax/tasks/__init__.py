"""Tasks: what a model is trained to do. The only plug of the trainer.

`TASKS` is the table of `config.task.name`.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from vit_jax.tasks.classification import Classification
from vit_jax.tasks.reconstruction import Reconstruction
from vit_jax.tasks.segmentation import Segmentation

Batch = dict[str, jax.Array]
Sums = tuple[jax.Array, jax.Array]  # (sum over examples, their total weight)
Metrics = dict[str, Sums]
Values = dict[str, jax.Array]  # of each example, (B,) or (B, ...)
Apply = Callable[..., Any]  # see step.make_apply


@runtime_checkable
class Task(Protocol):
  """An objective. All sums: the step divides once, over the global batch."""

  models: tuple[str, ...]  # of models.MODELS, that it trains
  metrics: tuple[str, ...]  # that `summary` gives
  best: str  # the metric, higher is better, that picks the best checkpoint

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """A training batch before the step divides it into micro-batches."""
    ...

  def loss(
    self, apply: Apply, params: Any, batch: Batch, key: jax.Array
  ) -> tuple[Sums, Metrics]:
    """The loss to minimise and what else to log of a training batch."""
    ...

  def evaluate(
    self, apply: Apply, params: Any, batch: Batch
  ) -> tuple[Values, Values]:
    """Of each example: values, of which a split has the mean, and outputs."""
    ...

  def summary(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """The metrics of a split, from the means of its values."""
    ...

  def predict(self, apply: Apply, params: Any, images: jax.Array) -> Any:
    """What `predict` shows for images (B, h, w, c)."""
    ...

  # Optional. masks: whether labels are masks, a class for each pixel (the task
  # is then told the classes' `names`); None: they are not used. show(apply,
  # params, batch) -> pictures (B, h, w, c), or classes (B, h, w), by name, for
  # the panels that a run draws of its first split (viz/panels.py).


TASKS = {
  'classification': Classification,
  'reconstruction': Reconstruction,
  'segmentation': Segmentation,
}
