"""A run saved on eight devices and resumed on others; what is refused.

Measured over steps 7 to 12 at a rate of 1e-4: losses of another layout within
1.3e-7 relative; the data of the next step instead change them by 0.17.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layouts import apart, load, made, start, trained
from tests.test_train import StopAt, digest_of, digests
from vit_jax import checkpoint, finetune, train, trees, writers
from vit_jax.data import loader as loader_lib
from vit_jax.errors import UserError
from vit_jax.plan.compiled import bytes_here

slow = pytest.mark.slow
EIGHT = {'fsdp': '8'}
FIELDS = {
  'total': '12 steps',
  'eval_every': '12 steps',
  'save_every': '6 steps',
  'log_every': '1 steps',
}


def losses(path):
  lines = writers.read_metrics(path / 'metrics.jsonl')
  return [x['train/loss'] for x in lines if 'train/loss' in x]


@pytest.fixture(scope='module')
def from_a_head():
  """Runs of this module start from a head that sees the data."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(finetune, 'initial', start)
    yield


@pytest.fixture(scope='module')
def whole(from_a_head, tmp_path_factory):
  """The workdir of a run on eight that nothing stopped."""
  path = tmp_path_factory.mktemp('whole')
  assert train.run(load(EIGHT, **FIELDS), path) == train.FINISHED
  return path


@pytest.fixture
def stopped(from_a_head, tmp_path):
  """The workdir of one that was, after six steps."""
  config = load(EIGHT, **FIELDS)
  assert train.run(config, tmp_path, StopAt(tmp_path, 5)) == train.INTERRUPTED
  assert checkpoint.Checkpoints(tmp_path / 'checkpoints').steps() == [6]
  return tmp_path


def resumed(path, mesh, monkeypatch):
  """The config of the run in `path`, gone on with on as many devices."""
  count, devices = int(np.prod([int(n) for n in mesh.values()])), jax.devices()
  monkeypatch.setattr(jax, 'devices', lambda: devices[:count])
  config = load(mesh, **FIELDS)
  assert train.run(config, path) == train.FINISHED
  starts = json.loads((path / 'provenance.json').read_text())['starts']
  assert [s['devices']['count'] for s in starts] == [8, count]
  return config


def test_on_the_same_layout(whole, stopped, monkeypatch):
  config = resumed(stopped, EIGHT, monkeypatch)
  assert losses(stopped) == losses(whole)
  assert digest_of(stopped) == digest_of(whole)
  assert digests(config, stopped, 12) == digests(config, whole, 12)


@pytest.mark.parametrize(
  'mesh',
  [
    {'data': '2'},
    {'data': '1'},
    {'fsdp': '4'},
    {'fsdp': '2', 'tensor': '2'},
  ],
  ids=str,
)
@pytest.mark.slow
def test_on_fewer(mesh, whole, stopped, monkeypatch):
  resumed(stopped, mesh, monkeypatch)
  assert apart(losses(stopped), losses(whole)) < 1e-5


@slow
def test_control_other_data(whole, stopped, monkeypatch):
  """After the resume the stream is one step ahead."""
  original = loader_lib.Loader._train
  monkeypatch.setattr(
    loader_lib.Loader, '_train', lambda self, t, run: original(self, t + 1, run)
  )
  resumed(stopped, EIGHT, monkeypatch)
  assert losses(stopped)[:6] == losses(whole)[:6]
  assert apart(losses(stopped), losses(whole)) > 1e-3


# The optimizer's state in bfloat16, and what a checkpoint refuses.


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """(checkpoints, state) of one device with a bfloat16 first moment."""
  setup = made({'data': '1'}, optim__moments='bfloat16')
  state, _ = trained(setup, 2)
  checkpoints = checkpoint.Checkpoints(tmp_path_factory.mktemp('saved'))
  checkpoints.save(state)
  checkpoints.wait()
  yield checkpoints, state
  checkpoints.close()


@slow
def test_bfloat16_moments_are_saved_as_they_are(saved):
  checkpoints, state = saved
  for mesh in ({'data': '1'}, EIGHT):
    setup = made(mesh, optim__moments='bfloat16')
    back = checkpoint.restore(checkpoints, setup.abstract_state)
    assert trees.digest(back) == trees.digest(state)
  moments = [v for n, v in trees.paths(back.optimizer) if '/mu/' in n]
  assert {m.dtype for m in moments} == {jnp.bfloat16.dtype}
  assert max(np.abs(np.asarray(m, 'float32')).max() for m in moments) > 0


@pytest.mark.parametrize(
  'name, halved', [('adamw', '/mu/'), ('sgd', '/trace/')]
)
def test_bytes_of_bfloat16_moments(name, halved):
  """Two less a parameter, in what `plan` tells of each device too."""
  fields = {'optim__name': name}
  full, half = (
    made(EIGHT, optim__moments=moments, **fields).abstract_state
    for moments in ('float32', 'bfloat16')
  )
  types = {n: s.dtype.name for n, s in trees.paths(half.optimizer) if s.shape}
  assert {v for n, v in types.items() if halved in n} == {'bfloat16'}
  assert {v for n, v in types.items() if halved not in n} <= {'float32'}
  saving = bytes_here(full.optimizer) - bytes_here(half.optimizer)
  assert saving == bytes_here(full.params) // 2


@slow
@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_bfloat16_moments_train_alike(name):
  """Ten steps at the recipe's rate: near, but by more than rounding."""
  fields = {'optim__name': name, 'optim__lr': '2e-3'}
  full, half = (
    trained(made({'data': '1'}, optim__moments=moments, **fields))[1]
    for moments in ('float32', 'bfloat16')
  )
  assert 1e-6 < apart(half, full) < 1e-2


@pytest.mark.parametrize(
  'fields, says',
  [
    (
      {'optim__moments': 'float32'},
      r'optimizer/1/mu/.*: saved as bfloat16 \(.*, wanted as float32 \(',
    ),
    (
      {'model__width': '64'},
      r'params/.*: saved as float32 \(.*32.*\), wanted as float32 \(.*64',
    ),
    (
      {'model__qkv_bias': 'False'},
      r'params/.*bias: saved as float32 .*, wanted as nothing',
    ),
    (
      {'model__pool': 'map'},
      r'params/pool/.*: saved as nothing, wanted as float32',
    ),
  ],
  ids=str,
)
def test_another_dtype_or_shape_is_refused(fields, says, saved):
  checkpoints, _ = saved
  setup = made({'data': '1'}, **{'optim__moments': 'bfloat16'} | fields)
  with pytest.raises(UserError, match='no checkpoint fits among 2 .*' + says):
    checkpoint.restore(checkpoints, setup.abstract_state)
  assert checkpoints.steps() == [2]  # and left where it is


def test_parameters_of_another_dtype_are_refused(saved):
  """float32 is not read as bfloat16; Orbax alone would cast."""
  checkpoints, state = saved
  low = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
    state.params,
  )
  says = r'params/.*: saved as float32 \(.*, wanted as bfloat16 \('
  with pytest.raises(UserError, match=says):
    checkpoints.load({'params': low})
  cast = checkpoints._checkpointer.load_checkpointables(2, {'params': low})
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.bfloat16.dtype}
