"""The training step and the evaluation step: pure functions between pytrees."""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.tasks import Apply, Batch, Metrics, Task, Values


class TrainState(flax.struct.PyTreeNode):
  """All that a step takes and gives, and a checkpoint holds."""

  step: Any  # steps done, int32
  params: Any
  ema: Any  # running average of the parameters, or None
  optimizer: Any  # optax's state

  @property
  def averaged(self) -> Any:
    """The parameters to evaluate and ship."""
    return self.params if self.ema is None else self.ema


def key_for(seed: int, step: Any, purpose: str) -> jax.Array:
  """The random key of a purpose at a step: a function of its arguments."""
  key = jax.random.fold_in(
    jax.random.key(np.uint32(seed)), zlib.crc32(purpose.encode())
  )
  return jax.random.fold_in(key, step)


def make_apply(model: nn.Module) -> Apply:
  """(params, images, key=None, capture=()) -> outputs; a key means training.

  What else it is given goes to the model: what is special to a task.
  """

  def apply(params, images, key=None, capture=(), **special):
    return model.apply(
      {'params': params},
      images,
      train=key is not None,
      capture=capture,
      rngs={} if key is None else {'dropout': key},
      **special,
    )

  return apply


def make_init(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  image: tuple[int, int, int],
  *,
  seed: int,
  ema: bool,
) -> Callable[[], TrainState]:
  """The state before the first step, for images (h, w, c)."""

  def init() -> TrainState:
    images = jnp.zeros((1, *image), jnp.float32)
    params = model.init(key_for(seed, 0, 'init'), images)['params']
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      # A copy: both are donated to the step, and a buffer only once.
      ema=jax.tree.map(jnp.copy, params) if ema else None,
      optimizer=optimizer.init(params),
    )

  return init


def average(ema: Any, params: Any, decay: float, step: Any) -> Any:
  """ema + (1 - d)(params - ema), d = min(decay, (1 + step) / (10 + step)).

  The lower decay of the first steps forgets the initialisation (as in
  tf.train.ExponentialMovingAverage).
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(params, ema, 1 - d)


def _sums_and_grads(task, apply, params, batch, key, accumulate):
  """Sums of loss and metrics over the batch, and the sum's gradient."""

  def loss(params, batch, key):
    (total, weight), metrics = task.loss(apply, params, batch, key)
    return total, {'loss': (total, weight), **metrics}

  grad = jax.grad(loss, has_aux=True)
  if accumulate == 1:
    return grad(params, batch, key)

  def part(carry, inputs):
    batch, number = inputs
    result = grad(params, batch, jax.random.fold_in(key, number))
    return jax.tree.map(jnp.add, carry, result), None

  # Strided, so that each device splits the rows it has: no exchange.
  parts = jax.tree.map(
    lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
  )
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype),
    jax.eval_shape(grad, params, first, key),
  )
  return jax.lax.scan(part, zeros, (parts, jnp.arange(accumulate)))[0]


def make_train_step(
  task: Task,
  apply: Apply,
  optimizer: optax.GradientTransformation,
  rate: Callable[[Any], jax.Array],
  *,
  seed: int,
  ema: float,
  accumulate: int,
  teach: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The function from (state, batch, given) to (new state, scalars to log).

  `given` are the parameters of a teacher, and `teach` what it says of images:
  `teacher` of the batch. It is asked before gradients are taken, so none can
  reach it.

  A step whose loss or gradient is not finite leaves everything but the step
  number as it was, and reports `finite` 0: what is then saved is sound.
  """

  def train_step(state, batch, given=None):
    key = key_for(seed, state.step, 'dropout')
    batch = task.augment(batch, key_for(seed, state.step, 'mix'))
    if teach:
      says = jax.lax.stop_gradient(teach(given, batch['image']))
      batch = batch | {'teacher': says}
    grads, sums = _sums_and_grads(
      task, apply, state.params, batch, key, accumulate
    )
    # A batch of which nothing is counted has a gradient of 0, not of 0 / 0.
    sums = {n: (t, jnp.where(w > 0, w, 1)) for n, (t, w) in sums.items()}
    weight = sums['loss'][1]
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(params=params, optimizer=opt)
    if state.ema is not None:
      new = new.replace(ema=average(state.ema, params, ema, state.step))
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums['loss'][0])
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
    metrics = {name: total / w for name, (total, w) in sums.items()}
    metrics |= {
      'lr': rate(state.step),
      'grad_norm': grad_norm,
      'update_norm': optax.tree.norm(updates),
      'finite': finite,
    }
    if 'skipped' in batch:  # the same number in all processes
      metrics['skipped'] = batch['skipped'].sum()
    return new.replace(step=state.step + 1), metrics

  return train_step


def make_eval_step(
  task: Task, apply: Apply
) -> Callable[[Any, Batch], tuple[Metrics, Values]]:
  """(params, batch) -> (sums over its examples of mask 1, what each has)."""

  def eval_step(params, batch):
    values, outputs = task.evaluate(apply, params, batch)
    mask = batch['mask']

    def total(value):
      # Of what is masked a value may be anything, also not a number.
      where = mask.reshape(-1, *[1] * (value.ndim - 1)) > 0
      return jnp.where(where, value, 0).sum(0), mask.sum()

    sums = jax.tree.map(total, values)
    each = {'mask': mask, **outputs, **values}
    if batch['label'].ndim == 1:  # masks are not kept
      each['label'] = batch['label']
    return sums, each

  return eval_step
