"""The recipes of configs/: what they promise and build; what differs."""

import functools
import re

import jax
import pytest

from tests.recipes import TARGETS, TAUGHT, header, load, saved
from vit_jax import config as config_lib
from vit_jax import plan, recipe, train, trees
from vit_jax.data import ops
from vit_jax.errors import UserError
from vit_jax.setup import Setup, stated_info

# --- What is built, at full size ---


def stated(target, **overrides):
  """The config; of a user's own folder what is not known is made up."""
  known = config_lib.flat(load(target, **overrides))
  made_up = {'data__examples': 1000, 'data__classes': 1000, 'size': 224}
  for name, value in made_up.items():
    if not known[name.replace('__', '.')]:
      overrides.setdefault(name, str(value))
  return load(target, **overrides)


_counts: dict[str, int] = {}


def count(config):
  """Parameters of the abstract train state, made once for what is alike."""
  setup = Setup(config, stated_info(config), devices=jax.devices()[:1])
  # Rates and what training draws have no part in shapes.
  alike = ('lr', 'final_lr', 'warmup', 'weight_decay', 'clip')
  optim = {k: v for k, v in config.optim.items() if k not in alike}
  model = setup.model.clone(drop_path=0.0, dropout=0.0)
  key = f'{model} {optim} {setup.info.size} {setup.info.channels}'
  if key not in _counts:
    _counts[key] = trees.count(setup.abstract_state.params)
  return _counts[key]


@pytest.mark.parametrize('target', TARGETS)
def test_every_recipe_is_built_at_full_size(target):
  config = stated(target)
  assert count(config) > 50_000
  for group in ('train', 'test'):
    texts = [
      'range(0, 1)' if text == 'normalize' else text  # the weights' own
      for text in config.data[group].ops
    ]
    ops.build(f'config.data.{group}.ops', texts)


@pytest.mark.parametrize('target', TAUGHT)
def test_a_teacher_of_a_recipe_at_full_size(target, tmp_path):
  """It sees the pictures of the recipe, and has to tell their classes."""

  def setup(classes):
    path = saved(tmp_path / f'{classes}.safetensors', classes, 48, width=32)
    config = stated(target, task__teacher=str(path))
    return Setup(config, stated_info(config), devices=jax.devices()[:1])

  taught = setup(1000)
  assert (taught.info.size[0] in (192, 224)) and taught.teacher.sees.size[
    0
  ] == 48
  given = taught.abstract_given
  assert given['head']['linear']['kernel'].shape == (32, 1000)
  batch = taught.abstract_batch['image']
  logits = jax.eval_shape(taught.teacher, given, batch)
  assert logits.shape == (taught.config.batch_size, 1000)
  with pytest.raises(UserError, match='tells 10 classes, the data have 1000'):
    _ = setup(10).teacher


# As counted by Google's, big_vision's and timm's code; CIFAR-10's: published.
@pytest.mark.parametrize(
  'target, overrides, parameters',
  [
    ('vit_s16_i1k', {}, 22_122_472),
    ('vit_i1k', {'model__positions': 'learned'}, 22_049_896),
    ('vit_i1k:light1', {}, 22_050_664),
    ('vit_i1k:light1', {'model__variant': 'B/16'}, 86_567_656),
    ('vit_i21k', {}, 102_594_387),
    ('deit_i1k:Ti', {}, 5_717_416),
    ('deit_i1k', {}, 22_050_664),
    ('deit_i1k:B', {}, 86_567_656),
    ('deit_i1k:B taught', {}, 87_338_192),
    ('deit3_i1k', {}, 22_059_496),
    ('deit3_i1k:B,tune', {}, 86_585_320),
    ('deit3_i1k:L,tune', {}, 304_374_760),
    ('deit3_i1k:H,tune', {}, 632_126_440),
    ('hybrid_i1k', {}, 98_659_112),
    ('cifar10', {}, 3_716_874),
    # The authors' 111,907,840 without both tables of sines.
    ('mae_i1k', {}, 111_907_840 - 197 * (768 + 512)),
  ],
)
def test_as_many_parameters_as_published(target, overrides, parameters):
  assert count(load(target, **overrides)) == parameters


def test_counts_tell_recipes_apart():
  """A control: without its tanh layer S/16 has another count."""
  assert count(load('vit_s16_i1k', model__representation='0')) != 22_122_472


# --- What they promise ---


@pytest.mark.parametrize('target', TARGETS)
def test_a_recipe_is_what_it_promises(target):
  config = load(target)
  assert config.recipe.batch_size == config.batch_size
  assert config.recipe.total == config.total
  assert recipe.rate(config) == config.optim.lr


@pytest.mark.parametrize(
  'target, says',
  [
    ('vit_i1k:lite1', "argument = 'lite1' is unknown. Did you mean 'light1'?"),
    ('vit_i1k:light1,dorp', "argument = 'dorp' is unknown. Did you mean 'drop"),
    ('vit_i21k:medium', "Did you mean 'medium"),
    ('vit_s16_i1k:100', 'Choices: 90, 150, 300.'),
    ('deit_i1k:L', "argument = 'L' is unknown. Choices: Ti, S, B."),
    ('deit3_i1k:M,800', "argument: size = 'M' is unknown."),
    ('deit3_i1k:B', "argument: epochs = '' is unknown. Choices: 400, 800"),
    ('finetune:layer', "Did you mean 'layers'?"),
    ('digits:90', 'takes no argument'),
  ],
)
def test_an_argument_that_is_not_there(target, says):
  with pytest.raises(UserError) as error:
    load(target)
  assert says in str(error.value)
  assert f'{target.partition(":")[0]}.py' in str(error.value)


# --- What differs ---


@pytest.mark.parametrize(
  'scale, factor', [('none', 1.0), ('linear', 0.25), ('sqrt', 0.5)]
)
def test_the_rate_follows_the_batch(small_config, scale, factor):
  fields = {'recipe__batch_size': '128', 'recipe__scale': scale}
  config = small_config(batch_size='32', **fields)
  setup = Setup(config)
  assert setup.lr == factor * config.optim.lr
  peak = max(float(setup.rate(step)) for step in range(setup.total))
  assert peak == pytest.approx(factor * 2e-3, rel=0.05)
  assert recipe.rate(small_config(batch_size='128', **fields)) == 2e-3


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'scale': 'liner'}, "expected one of 'none', 'linear', 'sqrt'. Did you"),
    ({'scale': 'sqrt', 'batch_size': '0'}, 'config.recipe.batch_size, which'),
    ({'batch_size': '-1'}, 'config.recipe.batch_size = -1: at least 0'),
    ({'devices': '-8'}, 'config.recipe.devices = -8: at least 0'),
    ({'total': '90'}, "config.recipe.total = '90' is not a duration. Did you"),
    ({'total': '5%'}, "config.recipe.total = '5%': a percentage of what?"),
  ],
)
def test_a_promise_that_cannot_be(small_config, fields, says):
  with pytest.raises(UserError) as error:
    Setup(small_config(**{f'recipe__{k}': v for k, v in fields.items()}))
  assert says in str(error.value)


def setup_of(target, devices=1, **overrides):
  config = load(target, **overrides)
  return Setup(config, stated_info(config), devices=jax.devices()[:devices])


def test_words_say_what_changes_in_effect():
  changed = {'batch_size': '256', 'total': '30ep', 'mesh__fsdp': '2'}
  lines = recipe.words(setup_of('vit_s16_i1k', devices=4, **changed))
  assert lines == [
    'not as the recipe has it: batch 256, not 1,024; total 30ep, not 90ep; '
    'devices 4, not 8',
    "  learning rate: 0.0005, not 0.001 (config.recipe.scale='sqrt', times the "
    'square root of batch / batch of the recipe)',
    '  length: 150,137 steps (30 epochs), not 112,603 steps (90 epochs)',
    '  warm-up: 10,000 steps (1.998 epochs), not 10,000 steps (7.993 epochs)',
    '  images a device and step: 64, not 128',
  ]


def test_words_of_one_difference():
  lines = recipe.words(setup_of('deit_i1k:S', devices=1))
  assert lines[0] == 'not as the recipe has it: devices 1, not 4'
  assert lines[1].startswith('  learning rate: 0.001, as there')
  assert lines[3] == '  warm-up: 6,256 steps (5 epochs), as there'
  assert lines[4] == '  images a device and step: 1024, not 256'


@pytest.mark.parametrize(
  'promised, tensor, images',
  [
    ('8', '1', '128, as there'),
    ('8', '2', '256, not 128'),  # half of each image's work, of twice as many
    ('4', '2', '256, as there'),
    ('0', '1', '128, as there'),
    ('0', '2', '256, as there'),  # of devices nothing is promised
  ],
)
def test_images_a_device_under_tensor_parallelism(promised, tensor, images):
  other = {'total': '91ep', 'recipe__devices': promised, 'mesh__tensor': tensor}
  lines = recipe.words(setup_of('vit_s16_i1k', devices=8, **other))
  assert lines[4] == f'  images a device and step: {images}'


def test_nothing_is_said_where_nothing_differs():
  said = functools.partial(setup_of, 'vit_s16_i1k', devices=8)
  assert recipe.words(said()) == []
  assert recipe.words(said(total='90 epochs', accumulate='4')) == []
  assert recipe.words(said(mesh__tensor='2', optim__lr='1')) == []
  assert recipe.words(said(total='91ep'))  # the control
  silent = {
    'recipe__batch_size': '0',
    'recipe__total': '',
    'recipe__devices': '0',
  }
  other = {'batch_size': '64', 'total': '1ep', 'recipe__scale': 'none'}
  assert recipe.words(setup_of('vit_s16_i1k', **silent, **other)) == []


def test_plan_sees_the_scaled_rate(monkeypatch):
  report = {'parameters': 1, 'fits': False}
  monkeypatch.setattr(plan, 'estimate', lambda s, t: dict(report, lr=s.lr))
  config = load('deit_i1k', batch_size='4096', model__depth='1', size='32')
  result = plan.run(config, ['cpu:8'])
  assert result['learning_rate'] == result['plans'][0]['lr'] == 4e-3


def test_a_run_says_it_before_its_first_step(
  small_config, tmp_path, capsys, monkeypatch
):
  def said(**fields):
    with pytest.raises(KeyError, match='the first step'):
      train.run(small_config(**fields), tmp_path / str(len(fields)))
    return capsys.readouterr().out

  def step(setup, state, batch, given):
    raise KeyError('the first step')

  monkeypatch.setattr(Setup, 'train_step', step)
  promise = {'recipe__total': '24 steps'}
  assert 'recipe' not in said(**promise)
  other = {'recipe__batch_size': '64', 'recipe__scale': 'linear'}
  out = said(**promise, **other)
  assert 'not as the recipe has it: batch 32, not 64' in out
  assert '  learning rate: 0.001, not 0.002' in out


def test_the_baseline_is_the_other_but_for_what_its_header_says():
  (said,) = re.findall(r'Without an argument: [^;]*;', header('vit_i1k'))
  named = set(re.findall(r'\((\w+\.\w+)\)', said))
  ours = config_lib.flat(load('vit_i1k'))

  def differ(**overrides):
    other = config_lib.flat(load('vit_s16_i1k', **overrides))
    return {name for name in ours if ours[name] != other[name]}

  assert differ() == named and len(named) == 2
  control = differ(optim__moments='float32')
  assert control == named | {'optim.moments'}
