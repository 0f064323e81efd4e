"""Groups of parameters, by path: their rates, decays, and who waits.

A field is a tuple of (regular expression, multiplier); an expression has to
match a whole path, 'encoder/blocks/mlp/up/kernel', and the first one counts.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import trees
from vit_jax.errors import UserError, did_you_mean
from vit_jax.models.heads import is_head

Pairs = tuple[tuple[str, float], ...]

KERNELS: Pairs = (('.*kernel', 1.0),)
_BLOCKS = 'encoder/blocks/'
# What comes before the blocks.
_EARLY = (
  'embed',
  'stem',
  'positions',
  'cls',
  'distill',
  'registers',
  'embed_norm',
)


def stacked(name: str) -> bool:
  """Whether axis 0 of a parameter is the layer: many parameters in one."""
  return 'blocks' in name.split('/')


def names(tree: Any) -> Any:
  """The tree of its leaves' paths."""
  return trees.map_paths(lambda name, _: name, tree)


def check(field: str, pairs: Pairs):
  """Raises UserError for what is no expression, or no multiplier."""
  for pattern, value in pairs:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f'config.optim.{field}: {pattern!r} is no regular expression '
        f"({error}); 'head/.*' is one."
      ) from error
    if not 0 <= value < math.inf:
      raise UserError(
        f'config.optim.{field}: {pattern!r} has the multiplier {value}; '
        'a finite number from 0.'
      )


def checked(
  optimizer: optax.GradientTransformation, **fields: Pairs
) -> optax.GradientTransformation:
  """The optimizer; its `init` refuses a pattern that matches no parameter.

  Raises:
    UserError: as soon as shapes are known, so under `eval_shape` too.
  """

  def init(params):
    paths = [name for name, _ in trees.paths(params)]
    for field, pairs in fields.items():
      for pattern, _ in pairs:
        if not any(re.fullmatch(pattern, path) for path in paths):
          parts = [path.split('/') for path in paths]
          parents = {(*p[:i], '.*') for p in parts for i in range(1, len(p))}
          near = [*map('/'.join, sorted(parents)), *paths]
          raise UserError(
            f'config.optim.{field}: {pattern!r} matches no parameter '
            f'(whole paths count).{did_you_mean(pattern, near)}'
          )
    return optimizer.init(params)

  return optax.GradientTransformation(init, optimizer.update)


def multiplier(pairs: Pairs, name: str, otherwise: float) -> float:
  """Of the first pattern that matches."""
  values = (value for pattern, value in pairs if re.fullmatch(pattern, name))
  return next(values, otherwise)


def decayed(
  weight_decay: float, pairs: Pairs
) -> list[optax.GradientTransformation]:
  """Add multiples of the parameters to the updates."""

  def link(value):
    return optax.add_decayed_weights(
      weight_decay * value,
      mask=lambda tree: trees.map_paths(
        lambda name, _: multiplier(pairs, name, 0.0) == value, tree
      ),
    )

  return [link(value) for value in sorted({v for _, v in pairs if v})]


def frozen(
  pairs: Pairs, links: list[optax.GradientTransformation]
) -> list[optax.GradientTransformation]:
  """The links for what is trained; what has the rate 0 has no state in them.

  Its update is -0.0: x + 0.0 would change the bits of x = -0.0.
  """
  if all(value for _, value in pairs):
    return links
  still = optax.stateless(
    lambda updates, _: jax.tree.map(lambda x: jnp.full_like(x, -0.0), updates)
  )

  def labels(tree):
    return trees.map_paths(
      lambda name, _: 'trained' if multiplier(pairs, name, 1.0) else 'frozen',
      tree,
    )

  return [
    optax.partition({'trained': optax.chain(*links), 'frozen': still}, labels)
  ]


def without_gradient(pairs: Pairs, params: Any) -> Any:
  """The parameters, those of rate 0 as constants.

  So the backward pass ends above them, and a norm of the gradient is of what is
  trained.
  """
  return trees.map_paths(
    lambda name, x: (
      x if multiplier(pairs, name, 1.0) else jax.lax.stop_gradient(x)
    ),
    params,
  )


def scaled(pairs: Pairs, decay: float) -> list[optax.GradientTransformation]:
  """Multiplies the updates, the weight decay included, by `pairs` and depth.

  Block l = 1 to L by decay^(L + 1 - l), what precedes the blocks by
  decay^(L + 1), what follows them by 1 (BEiT, arXiv 2106.08254).
  """
  if not pairs and decay == 1:
    return []

  def scale(updates, _):
    inside = [x for name, x in trees.paths(updates) if name.startswith(_BLOCKS)]
    depth = inside[0].shape[0] if inside else 0

    def one(name, update):
      factor = multiplier(pairs, name, 1.0)
      if name.startswith(_BLOCKS):  # stacked: a vector along axis 0
        powers = factor * decay ** np.arange(depth, 0, -1.0)
        shape = (depth, *[1] * (update.ndim - 1))
        return update * powers.astype(update.dtype).reshape(shape)
      if name.split('/')[0] in _EARLY:
        factor *= decay ** (depth + 1)
      return update * factor

    return trees.map_paths(one, updates)

  return [optax.stateless(scale)]


def heads_first(steps: int) -> list[optax.GradientTransformation]:
  """For so many steps nothing but the heads is updated: the rest by -0.0.

  The moments of the rest are gathered meanwhile, so that it starts smoothly.
  """
  if not steps:
    return []

  def update(updates, count, params=None):
    del params
    waits = count < steps
    updates = trees.map_paths(
      lambda name, x: x if is_head(name) else jnp.where(waits, -0.0, x),
      updates,
    )
    return updates, count + 1

  return [
    optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)
  ]
