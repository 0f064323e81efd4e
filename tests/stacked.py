"""A tree of parameters as a ViT's, and what an optimizer makes of it.

Depth 40, so that the layer is one of the larger axes of what is stacked.
"""

import jax
import numpy as np
import optax

from vit_jax import optim, trees

SHAPES = {
  'cls': (1, 36),
  'embed/linear/kernel': (40, 36),
  'encoder/blocks/attention/out/kernel': (40, 2, 34, 36),
  'encoder/blocks/attention/query/kernel': (40, 36, 2, 34),
  'encoder/blocks/mlp/up/bias': (40, 50),
  'encoder/blocks/mlp/up/kernel': (40, 36, 50),
  'encoder/blocks/norm1/scale': (40, 36),
  'head/linear/bias': (33,),
  'head/linear/kernel': (36, 33),
  'norm/scale': (36,),
}
TOTAL = 100


def nested(flat):
  tree = {}
  for path, leaf in flat.items():
    *groups, last = path.split('/')
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = leaf
  return tree


def random_tree(seed, scale=1.0):
  """Layers of different sizes; a -0.0 first, which x + 0.0 would change."""
  rng = np.random.default_rng(seed)
  flat = {}
  for path, shape in SHAPES.items():
    leaf = rng.normal(size=shape) * scale
    if 'blocks' in path:
      leaf *= np.linspace(0.5, 2, 40).reshape(40, *[1] * (leaf.ndim - 1))
    leaf.flat[0] = -0.0
    flat[path] = leaf.astype(np.float32)
  return nested(flat)


PARAMS = random_tree(0)
GRADS = [random_tree(seed, 0.1) for seed in range(1, 5)]
ZEROS = jax.tree.map(np.zeros_like, PARAMS)


def make(name, **fields):
  fields = {'schedule': 'constant', 'warmup': '0 steps', 'clip': 0.0, **fields}
  return optim.make(name, TOTAL, lambda text, _: int(text.split()[0]), **fields)


def run(name, grads=GRADS, **fields):
  """({path: parameters} after the steps, the last updates, the state)."""
  optimizer, _ = make(name, **fields)
  params, state = PARAMS, jax.jit(optimizer.init)(PARAMS)
  update, updates = jax.jit(optimizer.update), None
  for grad in grads:
    updates, state = update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return dict(trees.paths(params)), dict(trees.paths(updates)), state
