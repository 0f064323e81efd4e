"""What makes a run fast, as far as compiled programs and files tell it.

Nothing is timed here: that is for `python -m benchmarks`.
"""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile as compilation
from benchmarks import sides, textbook
from tests.layouts import made
from vit_jax import profile, speed, train, trees
from vit_jax.errors import UserError
from vit_jax.models import encoder, flops
from vit_jax.plan.collectives import OPS
from vit_jax.plan.hardware import HARDWARE
from vit_jax.plan.hlo import Program, arrays, sides as sides_of, size
from vit_jax.writers import read_metrics

BATCH, ROWS, WAYS = 40, 5, 8
FSDP = {
  'batch_size': str(BATCH),
  'model__unroll': '1',
  'model__depth': '3',
  'model__dropout': '0',
  'model__drop_path': '0',
}


def in_the_loop(setup):
  """(op, its types, times) of the collectives of the loops of a train step."""
  with jax.set_mesh(setup.mesh):
    lowered = setup.train_step.lower(setup.abstract_state, setup.abstract_batch)
    text = lowered.compile().as_text()
  program, found = Program(text), []
  for types, x, times in program.executed():
    op = x.op.removesuffix('-start')
    if op in OPS and times > 1:
      inputs = ' '.join(types[name].type for name in x.inputs)
      found.append((op, x.type, inputs, times))
  return found


def of_batches(found):
  """Those with a dimension of the batch, whole or of a device, or tokens."""
  tokens = 17
  apart = {BATCH, ROWS, tokens, BATCH * tokens, ROWS * tokens}
  return [
    (op, type)
    for op, type, inputs, _ in found
    if any(apart & set(sides_of(a)) for a in arrays(f'{type} {inputs}'))
  ]


@pytest.fixture(scope='module')
def fsdp():
  """(collectives of the loop, bytes of the blocks' divided parameters)."""
  setup = made({'fsdp': str(WAYS)}, **FSDP)
  divided = sum(
    leaf.size * leaf.dtype.itemsize
    for name, leaf in trees.paths(setup.abstract_state.params)
    if 'blocks' in name and not leaf.sharding.is_fully_replicated
  )
  return in_the_loop(setup), divided


def test_fsdp_exchanges_parameters_not_batches(fsdp):
  found, divided = fsdp
  assert found and of_batches(found) == []
  gathered = sum(
    size(type) * times for op, type, _, times in found if op == 'all-gather'
  )
  passes = 2  # forward, and backward again
  assert 0.95 * divided < gathered / passes <= 1.05 * divided


def test_without_the_constraint_it_exchanges_batches(monkeypatch):
  """The control."""
  monkeypatch.setattr(encoder, 'constrain', lambda x: x)
  assert of_batches(in_the_loop(made({'fsdp': str(WAYS)}, **FSDP)))
