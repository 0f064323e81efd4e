"""Rates, decays and waiting of groups of parameters, for every optimizer."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT, SMALL
from tests.stacked import GRADS, PARAMS, make, run
from tests.test_sharding import ZOO
from vit_jax import config, trees
from vit_jax.errors import UserError
from vit_jax.models import ViT
from vit_jax.optim import OPTIMIZERS, groups
from vit_jax.setup import Setup

BEFORE = dict(trees.paths(PARAMS))
every = pytest.mark.parametrize('name', list(OPTIMIZERS))
FIELDS = {'lr': 0.01, 'weight_decay': 0.3}


def same_bits(one, other):
  return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def first(name, **fields):
  """The updates of the first step."""
  return run(name, GRADS[:1], **FIELDS | fields)[1]


@every
def test_rates_multiply_the_update(name):
  """The first match counts; the decay is multiplied too."""
  rates = (('head/.*', 8.0), ('.*kernel', 0.5), ('head/linear/bias', 3.0))
  plain, actual = first(name), first(name, rates=rates)
  for path, update in plain.items():
    factor = 0.5 if path.endswith('kernel') else 1
    factor = 8 if path.startswith('head') else factor
    np.testing.assert_allclose(actual[path], factor * update, 1e-6)
  # A pattern has to match the whole path; another order is another rate.
  assert same_bits(
    first(name, rates=(('norm/scal.', 1.0),))['cls'], plain['cls']
  )
  other = first(name, rates=rates[1:])
  assert not np.allclose(
    other['head/linear/kernel'], actual['head/linear/kernel']
  )


@every
def test_frozen_parameters_have_neither_updates_nor_state(name):
  rates = (('encoder/.*', 0.0), ('head/.*', 2.0))
  params, updates, state = run(name, rates=rates, **FIELDS)
  for path, before in BEFORE.items():
    still = path.startswith('encoder')
    assert same_bits(params[path], before) == still, path
    assert (updates[path] == 0).all() == still
  assert not [n for n, _ in trees.paths(state) if 'encoder' in n]
  assert [n for n, _ in trees.paths(state) if 'head' in n]


@every
def test_all_may_be_frozen(name):
  params, _, state = run(name, rates=(('.*', 0.0),), **FIELDS)
  assert all(same_bits(params[path], BEFORE[path]) for path in BEFORE)
  assert all(leaf.size <= 1 for leaf in jax.tree.leaves(state))


def test_no_gradient_is_computed_of_what_is_frozen(small_config):
  """The backward pass ends above: a linear probe is mostly a forward pass."""

  def of(rates):
    setup = Setup(small_config(optim__rates=rates))
    with jax.set_mesh(setup.mesh):
      step = setup.train_step.lower(setup.abstract_state, setup.abstract_batch)
      state = setup.init()  # its head is 0, and stops gradients
      state.params['head']['linear']['kernel'] += 0.1 * jnp.eye(32, 10)
      batch = setup.loader('train', setup.train_source).train_batch(0)
      flops = step.compile().cost_analysis()['flops']
      return flops, setup.train_step(state, batch)[1]

  whole, metrics = of('()')
  probe, found = of("(('head/.*', 1.0), ('.*', 0.0))")
  assert probe < 0.45 * whole
  assert found['loss'] == pytest.approx(float(metrics['loss']), rel=1e-6)
  assert 0 < found['grad_norm'] < metrics['grad_norm']
  late, _ = of("(('encoder/.*', 0.0),)")  # control: embeddings are below it
  assert late > 0.6 * whole


def test_clipping_does_not_see_what_is_frozen():
  fields = {'clip': 1e-3, 'weight_decay': 0.0, 'lr': 1.0, 'momentum': 0.0}
  updates = run('sgd', GRADS[:1], rates=(('enc.*', 0.0),), **fields)[1]
  norm = np.sqrt(sum((np.asarray(u) ** 2).sum() for u in updates.values()))
  np.testing.assert_allclose(norm, 1e-3, 1e-4)


@every
def test_decays(name):
  """Multiples of weight_decay, the first match; the rest has none."""
  decays = (('head/.*', 0.5), ('.*/scale', 2.0), ('cls', 0.0), ('.*', 1.0))
  fields = {'decays': decays}
  none, actual = first(name, weight_decay=0.0), first(name, **fields)
  for path, before in BEFORE.items():
    factor = {'head': 0.5, 'cls': 0.0}.get(path.split('/')[0], 1.0)
    factor = 2.0 if path.endswith('/scale') else factor
    if name == 'lamb' and path.endswith('kernel') and factor == 1:
      continue  # scaled with the rest; see test_optimizers.py
    expected = none[path] - 0.01 * 0.3 * factor * before
    np.testing.assert_allclose(actual[path], expected, 1e-4, 1e-7)
  assert not np.allclose(actual['norm/scale'], none['norm/scale'], 1e-4)


def beit_power(path, layer, depth):
  """num_max_layer - 1 - layer_id, as microsoft/unilm has it."""
  if path.split('/')[0] in ('cls', 'embed', 'positions'):
    layer_id = 0
  elif 'blocks' in path:
    layer_id = layer + 1
  else:
    layer_id = depth + 1
  return depth + 1 - layer_id


@every
def test_layer_decay(name):
  plain = first(name)
  actual = first(name, layer_decay=0.9, rates=(('cls', 2.0),))
  for path, update in plain.items():
    layers = len(update) if 'blocks' in path else 1
    powers = [0.9 ** beit_power(path, layer, 40) for layer in range(layers)]
    factor = np.reshape(powers, (layers, *[1] * (update.ndim - 1)))
    factor = factor * 2 if path == 'cls' else factor
    if 'blocks' not in path:
      factor = factor.reshape(())
    np.testing.assert_allclose(actual[path], factor * update, 1e-5)


def test_layer_decay_counts_frozen_layers():
  rates = (('encoder/.*', 0.0),)
  actual = first('sgd', layer_decay=0.9, rates=rates)['embed/linear/kernel']
  expected = 0.9**41 * first('sgd')['embed/linear/kernel']
  np.testing.assert_allclose(actual, expected, 1e-5)


def test_what_precedes_the_blocks():
  """Of every kind of model: all but these follow them."""
  late = {'norm', 'pool', 'representation', 'head', 'distill_head'}
  more = {'registers': 2, 'distill_token': True, 'embed_norm': True}
  seen = set()
  for fields in (*ZOO, {'variant': 'S/16', **more}):
    model = ViT(classes=10, **{'positions': 'learned', **fields})
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    seen |= set(jax.eval_shape(model.init, jax.random.key(0), images)['params'])
  assert seen == {*late, *groups._EARLY, 'encoder'}


@every
def test_heads_first(name):
  """Until then nothing else moves, bit for bit; then all does."""
  fields = FIELDS | {'head_warmup': '2 steps', 'decays': (('.*', 1.0),)}
  plain = FIELDS | {'decays': (('.*', 1.0),)}
  for count in (1, 2, 3):
    params, _, _ = run(name, GRADS[:count], **fields)
    without, _, _ = run(name, GRADS[:count], **plain)
    for path, before in BEFORE.items():
      waits = count < 3 and not path.startswith('head')
      assert same_bits(params[path], before) == waits, path
      assert path.startswith('head') == same_bits(params[path], without[path])


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'rates': (('head/(', 1.0),)}, "rates: 'head/(' is no regular expression"),
    ({'decays': (('*', 1.0),)}, "decays: '*' is no regular expression"),
    ({'rates': (('head/.*', -1.0),)}, "rates: 'head/.*' has the multiplier -1"),
    (
      {'decays': (('.*', float('nan')),)},
      "decays: '.*' has the multiplier nan",
    ),
    ({'layer_decay': 0.0}, 'layer_decay = 0.0: above 0, at most 1'),
    ({'layer_decay': 1.1}, 'layer_decay = 1.1: above 0'),
    ({'head_warmup': '101 steps'}, 'head_warmup = 101 steps, but the run has'),
  ],
)
def test_mistakes(fields, says):
  with pytest.raises(UserError, match=re.escape(f'config.optim.{says}')):
    make('adamw', **fields)


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'rates': (('haed/.*', 2.0),)}, "rates: 'haed/.*'.*Did you mean 'head/"),
    ({'decays': (('head', 1.0),)}, "decays: 'head' matches no parameter"),
    ({'rates': (('.*norm2/scale', 0.0),)}, 'Choices: .*encoder/blocks/norm1/s'),
  ],
)
def test_a_pattern_without_parameters(fields, says):
  """It is told when shapes are known: no array is made."""
  optimizer, _ = make('adamw', **fields)
  with pytest.raises(UserError, match=says):
    jax.eval_shape(optimizer.init, PARAMS)


def load(*overrides):
  path = str(ROOT / 'configs' / 'digits.py')
  return config.load(path, [*SMALL.items(), *overrides])


@pytest.mark.parametrize(
  'text', ["(('head/.*', 10.0),)", "(('head/.*', 10),)", "[['head/.*', 10]]"]
)
def test_pairs_from_the_command_line_and_from_json(text):
  loaded = load(('optim.rates', text))
  assert loaded.optim.rates == (('head/.*', 10.0),)
  assert type(loaded.optim.rates[0][1]) is float
  assert config.resolve(json.loads(config.to_json(loaded))) == loaded
  assert load().optim.decays == groups.KERNELS


@pytest.mark.parametrize(
  'text', ["('head/.*', 1.0)", "(('head/.*',),)", "((1.0, 'head/.*'),)", 'head']
)
def test_what_are_no_pairs(text):
  says = r'config.optim.rates = .*: expected a tuple of \(a string, a number\)'
  with pytest.raises(UserError, match=says):
    load(('optim.rates', text))


def test_a_mistake_leaves_no_workdir_behind(vit_jax, small_flags, tmp_path):
  """The corrected command may take the same one."""
  workdir = tmp_path / 'run'
  flags = (
    f'--config={ROOT}/configs/digits.py',
    *small_flags,
    f'--workdir={workdir}',
    "--config.optim.rates=(('haed/.*', 10.0),)",
  )
  code, _, err = vit_jax('train', *flags)
  assert code == 2 and "Did you mean 'head/.*'" in err
  assert not (workdir / 'config.json').exists()


def test_without_groups_the_chain_is_as_short_as_before():
  """No operation and no state for fields that have their defaults."""
  bare = make('adamw')[0].init(PARAMS)
  assert len(bare) == 4  # clip, scale, decay, rate
  moved = {
    'rates': (('head/.*', 2.0),),
    'layer_decay': 0.9,
    'head_warmup': '1 steps',
  }
  for field, value in moved.items():
    assert len(make('adamw', **{field: value})[0].init(PARAMS)) == 5
