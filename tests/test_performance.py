"""What makes a run fast, as far as compiled programs and files tell it.

Nothing is timed here: that is for `python -m benchmarks`.
"""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile as compilation
from benchmarks import step as step_benchmark
from benchmarks import textbook
from tests.layouts import made
from vit_jax import profile, speed, train, trees
from vit_jax.errors import UserError
from vit_jax.models import ViT, encoder, flops
from vit_jax.models.patches import grid
from vit_jax.plan.collectives import OPS
from vit_jax.plan.hardware import HARDWARE
from vit_jax.plan.hlo import Program, arrays, size
from vit_jax.plan.hlo import sides as sides_of
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


def of_batches(found, setup):
  """Those with a dimension of the batch, whole or of a device, or tokens."""
  gh, gw = grid(setup.info.size, setup.model.patch)
  tokens = setup.model.prefix + gh * gw
  apart = {BATCH, ROWS, tokens, BATCH * tokens, ROWS * tokens}
  return [
    (op, type)
    for op, type, inputs, _ in found
    if any(apart & set(sides_of(a)) for a in arrays(f'{type} {inputs}'))
  ]


@pytest.fixture(scope='module')
def fsdp():
  """(setup, collectives of its loop, bytes of blocks' divided parameters)."""
  setup = made({'fsdp': str(WAYS)}, **FSDP)
  divided = sum(
    leaf.size * leaf.dtype.itemsize
    for name, leaf in trees.paths(setup.abstract_state.params)
    if 'blocks' in name and not leaf.sharding.is_fully_replicated
  )
  return setup, in_the_loop(setup), divided


def test_fsdp_exchanges_parameters_not_batches(fsdp):
  setup, found, divided = fsdp
  assert found and of_batches(found, setup) == []
  gathered = sum(
    size(type) * times for op, type, _, times in found if op == 'all-gather'
  )
  passes = 2  # forward, and backward again
  assert 0.95 * divided < gathered / passes <= 1.05 * divided


def test_without_the_constraint_it_exchanges_batches(monkeypatch):
  """The control."""
  monkeypatch.setattr(encoder, 'constrain', lambda x: x)
  setup = made({'fsdp': str(WAYS)}, **FSDP)
  assert of_batches(in_the_loop(setup), setup)


# --- Memory ---


@pytest.mark.slow
def test_remat_saves_temporaries_and_a_smaller_dtype_more():
  """S/16 at batch 8, as tests compile; docs/performance.md has the rest."""
  sizes = {r: compilation.temporaries(r) for r in compilation.REMATS}
  assert sizes['full'] < sizes['dots'] < sizes['none']
  assert sizes['full'] < 0.45 * sizes['none']


def kept(dtype):
  """{dtype: bytes} that a model keeps for its gradient, stacked by its loop."""
  fields = {'variant': 'mu/4', 'width': 64, 'heads': 2, 'classes': 3}
  model = ViT(**fields, depth=5, dtype=dtype)
  images = jnp.zeros((2, 16, 16, 3))
  params = model.init(jax.random.key(0), images)['params']

  def loss(params):
    return model.apply({'params': params}, images, train=True).sum()

  _, pull = jax.vjp(loss, params)
  stacked = [
    leaf
    for leaf in jax.tree.leaves(pull)
    if hasattr(leaf, 'dtype') and leaf.ndim > 2 and leaf.shape[:2] == (5, 2)
  ]
  return {
    kind: sum(leaf.nbytes for leaf in stacked if leaf.dtype == kind)
    for kind in ('float32', 'bfloat16')
  }


def test_what_is_kept_is_in_the_type_of_the_model():
  """But for statistics nothing of a layer is kept in float32."""
  found = kept('bfloat16')
  assert found['bfloat16'] > 0
  assert found['float32'] < 0.05 * found['bfloat16']
  assert kept('float32')['bfloat16'] == 0  # the control


# --- Utilization ---


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v3', 'v3'),
    ('TPU v4', 'v4'),
    ('TPU v5e', 'v5e'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('TPU7x', 'tpu7x'),
    ('NVIDIA A100-SXM4-80GB', 'a100'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA B200', 'b200'),
  ],
)
def test_published_peaks(kind, name):
  assert speed.published(kind, 'bfloat16') == HARDWARE[name].flops
  assert speed.published(kind, 'float32') == HARDWARE[name].flops32


def test_a_device_that_nobody_knows():
  assert speed.published('NVIDIA GTX 1080', 'bfloat16') is None


@pytest.mark.slow
def test_utilization(small_config, tmp_path, monkeypatch):
  """FLOPs of the steps, by their time, by the peak; and the sums of a run."""
  monkeypatch.setattr(speed, 'measured', lambda dtype: 1e12)
  config = small_config(total='12 steps', log_every='2 steps')
  assert train.run(config, tmp_path) == train.FINISHED
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  logged = [line for line in lines if 'time/mfu' in line]
  model = ViT(
    classes=10, **{k: v for k, v in config.model.items() if k != 'name'}
  )
  one = 3 * sum(flops.forward(model, (8, 8), 1, train=True).values())
  for line in logged:
    rate = line['time/images_per_second']
    assert line['time/mfu'] == pytest.approx(one * rate / 1e12)
  result = json.loads((tmp_path / 'result.json').read_text())['time']
  spent = sum(line.get('time/eval_test', 0) for line in lines)
  assert result['evaluation'] == pytest.approx(spent, abs=1e-3) and spent
  told = sum(line.get('time/checkpoint', 0) for line in lines)
  assert 0 < told < result['checkpoints']  # the last one is told there alone
  assert result['training'] == pytest.approx(
    sum(line['time/training'] for line in logged), abs=1e-3
  )
  assert 0 < result['input_wait'] < result['training']
  assert 0 < result['mfu'] < 1


# --- Profile ---


@pytest.mark.slow
def test_profile(small_config, tmp_path):
  config, window = small_config(total='6 steps'), profile.parse('3:5')
  assert train.run(config, tmp_path, None, window) == train.FINISHED
  text = (tmp_path / 'profile' / 'operations.txt').read_text()
  assert text.startswith('3 steps, ') and len(text.splitlines()) > 10
  found = profile.events(tmp_path / 'profile')
  by_name = {e['args']['hlo_op'] for e in found}
  assert any(name in text for name in by_name)


def test_the_table_of_operations(tmp_path):
  """Sums by kind and by operation; what is no operation left out."""
  made = [('a.1', 20.0), ('b', 50.0), ('a.2', 40.0), ('c', 10.0), ('a.1', 10.0)]
  trace = [{'name': n, 'dur': d, 'args': {'hlo_op': n}} for n, d in made] + [
    {'name': 'host', 'dur': 1e6}
  ]
  file = tmp_path / 'plugins' / 'x.trace.json.gz'
  file.parent.mkdir()
  with gzip.open(file, 'wt') as f:
    json.dump({'traceEvents': trace}, f)
  lines = profile.table(profile.events(tmp_path), 2, 4).splitlines()
  assert lines[0] == '2 steps, 0.07 ms of operations a step'
  kinds, operations = lines[2:5], lines[7:]
  assert kinds[0].split() == ['53.8%', '0.035', '1.5', 'a']
  assert kinds[1].split() == ['38.5%', '0.025', '0.5', 'b']
  assert kinds[2].split() == ['7.7%', '0.005', '1', 'others']
  assert operations[0].split() == ['38.5%', '0.025', '0.5', 'b']
  assert [line.split()[-1] for line in operations] == ['b', 'a.2', 'a.1', 'c']
  assert 'no operations' in profile.table([], 2)


@pytest.mark.parametrize('text', ['10', '10:', 'a:b', '0:5', '5:4', '-1:4'])
def test_windows_that_are_none(text):
  with pytest.raises(UserError, match='--profile'):
    profile.parse(text)


def test_a_bad_window_ends_before_it_starts(vit_jax, tmp_path):
  flags = ['--config=configs/digits.py', f'--workdir={tmp_path / "w"}']
  code, _, err = vit_jax('train', *flags, '--profile=20:10')
  assert code == 2 and '--profile' in err and 'Traceback' not in err


# --- The baseline ---


@pytest.mark.slow
def test_the_textbook_is_our_model():
  """The same logits and gradients by the same parameters; not by others."""
  fields = {'variant': 'mu/4', 'classes': 5, 'unroll': 1}
  model = ViT(**fields)
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  labels = jnp.array([1, 3])
  params = model.init(jax.random.key(0), images)['params']
  head = params['head']['linear']
  head['kernel'] = jax.random.normal(jax.random.key(2), head['kernel'].shape)
  net = textbook.Textbook('mu/4', 5, approximate=False)
  theirs = textbook.params_of(params, model.shape.depth, model.patch)
  loss = jax.jit(jax.value_and_grad(textbook.make_loss(net)))

  def facts(params, images):
    value, grads = loss(params, images, labels)
    logits = net.apply({'params': params}, images)
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
    return {'logits': np.asarray(logits), 'norm': norm}

  def own(params):
    logits = model.apply({'params': params}, images)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, labels[:, None], 1).mean(), logits

  (_, logits), grads = jax.jit(jax.value_and_grad(own, has_aux=True))(params)
  norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
  ours = {'logits': np.asarray(logits), 'norm': norm}
  step_benchmark.check({'ours': ours, 'textbook': facts(theirs, images)})
  theirs['Block_0']['Dense_0']['bias'] += 0.1  # the control
  with pytest.raises(AssertionError, match='textbook is another function'):
    step_benchmark.check({'ours': ours, 'textbook': facts(theirs, images)})
