"""Runs of one small config on other layouts, for the tests that compare them.

The head starts at zero, so the first loss is ln 10 whatever the data, and at a
rate of 1e-4 it stays near: a curve from there would hardly see an error. So
runs start from a random head (`start`), on every layout the same.
"""

import jax
import numpy as np

from tests.conftest import ROOT
from tests.conftest import SMALL as BASE
from vit_jax import config, trees
from vit_jax.setup import Setup

# Chance of four kinds, to fall alike everywhere; heads for tensor=4.
SMALL = BASE | {
  'model.heads': '4',
  'model.drop_path': '0.2',
  'model.dropout': '0.1',
  'task.mixup': '0.2',
  'task.cutmix': '1.0',
  'ema': '0.9',
  'total': '50 steps',
  'optim.lr': '1e-4',
}
# Adds the same to all scores of a query, which softmax does not see: its
# gradient is rounding alone, and Adam makes whole steps of that.
UNSEEN = 'attention/key/bias'


def load(mesh=None, **overrides):
  """The config for a mesh (one device if None), fields as model__heads."""
  mesh = {'data': '1'} | (mesh or {})
  values = SMALL | {f'mesh.{axis}': size for axis, size in mesh.items()}
  values |= {k.replace('__', '.'): v for k, v in overrides.items()}
  return config.load(str(ROOT / 'configs' / 'digits.py'), list(values.items()))


def made(mesh=None, **overrides):
  """A Setup on as many of the eight devices as the mesh has."""
  count = int(np.prod([int(n) for n in (mesh or {}).values()]))
  return Setup(load(mesh, **overrides), devices=jax.devices()[:count])


def start(setup):
  """The first state, but for a random head; call it where the mesh is set."""
  state = setup.init()

  def randomised(name, leaf):
    if name != 'head/linear/kernel':
      return leaf
    values = np.random.default_rng(5).normal(0, 0.5, leaf.shape)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

  return state.replace(
    params=trees.map_paths(randomised, state.params),
    ema=trees.map_paths(randomised, state.ema),
  )


def trained(setup, steps=10, change=None, source=None):
  """(state, losses) after some steps.

  Args:
    setup: of the layout.
    steps: how many.
    change: of each batch before its step.
    source: a setup whose first state and batches to take; None: its own.
  """
  source, losses = source or setup, []
  with jax.set_mesh(setup.mesh):
    batches, state = source.loader('train', source.train_source), start(source)
    for t in range(steps):
      batch = batches.train_batch(t)
      batch = change(batch) if change else batch
      state, metrics = setup.train_step(state, batch)
      losses.append(metrics['loss'])
  return state, np.array(jax.device_get(losses))


def relabelled(batch):
  """The control of most tests: one wrong label of 32."""
  label = batch['label']
  return batch | {'label': label.at[0].set(9 - label[0])}


def furthest(one, other):
  """The largest difference of two trees of parameters, UNSEEN left out."""
  pairs = zip(trees.paths(one), trees.paths(other), strict=True)
  return max(
    np.abs(np.asarray(x) - np.asarray(y)).max()
    for (name, x), (_, y) in pairs
    if not name.endswith(UNSEEN)
  )


def apart(losses, expected):
  """The largest relative difference of two curves."""
  return np.abs(np.asarray(losses) / np.asarray(expected) - 1).max()
