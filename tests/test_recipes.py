"""The recipes of configs/: what they promise, build and train; what differs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import red_and_blue
from tests.recipes import TARGETS, load
from vit_jax import config as config_lib
from vit_jax import finetune, plan, recipe, train, trees, weights
from vit_jax.data import ops
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup, stated_info
from vit_jax.weights.formats import Preprocessing

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


# --- Two steps of each ---

TINY = {
  'model__width': '16',
  'model__depth': '1',
  'model__hidden': '0',
  'model__heads': '2',
  'model__head_bias': '0',
  'batch_size': '8',
  'total': '3 steps',
  'optim__warmup': '1 steps',
  'optim__cooldown': '0 steps',
  'data__workers': '0',
}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """16 pictures of two colours, 40x32."""
  return red_and_blue(tmp_path_factory.mktemp('pictures'), 8, 32, 40)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Weights of a small model."""
  model = ViT(classes=5, variant='Ti/16', width=16, depth=2, heads=2)
  params = model.init(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))['params']
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  seen = Preprocessing((32, 32), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
  weights.save(path, model, params, format='vit_jax', preprocessing=seen)
  return path


def masked(pictures):
  """The pictures again, of each a mask of two classes, 1 and 2."""
  path = pictures / 'masked'
  for folder in ('images', 'masks'):
    (path / folder).mkdir(parents=True, exist_ok=True)
  for i, file in enumerate(sorted((pictures / 'train').rglob('*.png'))):
    with Image.open(file) as image:
      image.save(path / 'images' / f'{i}.png')
      mask = np.ones(image.size[::-1], np.uint8)
    mask[:, ::2] = 2
    Image.fromarray(mask).save(path / 'masks' / f'{i}.png')
  return path


def tiny(target, pictures, file, workdir):
  """The recipe on small pictures of another source, from other weights."""
  config, changed = load(target), dict(TINY)
  masks = config.task.name == 'segmentation'
  if config.data.name.split(':')[0] not in ('digits', 'digit_scenes'):
    changed |= {'data__name': f'folder:{pictures}'}
    changed |= {'data__examples': '0', 'data__classes': '0'}
    if masks:
      changed |= {'data__name': f'masks:{masked(pictures)}'}
    patch = re.sub('.*/', '', config.model.variant)
    changed['size'] = str({'4': 28, '14': 28}.get(patch, 32))
  if masks:  # which have no head
    changed = {k: v for k, v in changed.items() if 'head_bias' not in k}
  if config.model.variant.startswith('R50'):
    changed |= {'model__variant': 'R+Ti/16'}  # a shorter stem
  if config.init_head == 'new' and config.data.name != 'digits':
    changed |= {'init_from': str(file), 'size': '32'}
  return finetune.adopt(load(target, **changed), workdir)


@pytest.fixture
def two_steps(pictures, file, tmp_path):
  """A function from a recipe to its parameters before and after, and losses."""

  def run(target):
    config = tiny(target, pictures, file, tmp_path)
    setup = Setup(config, devices=jax.devices()[:1])
    losses = []
    with jax.set_mesh(setup.mesh):
      state = finetune.initial(setup)
      before = jax.device_get(state.params)
      loader = setup.loader('train', setup.train_source)
      for batch in loader.train(0, 2):
        state, metrics = setup.train_step(state, batch)
        losses.append(float(metrics['loss']))
        assert metrics['finite'] and metrics['grad_norm'] > 0
    return before, jax.device_get(state.params), losses

  return run


def moved(before, after):
  """The parts of the model whose parameters changed."""
  names = set()
  for (name, a), (_, b) in zip(
    trees.paths(before), trees.paths(after), strict=True
  ):
    if not np.array_equal(a, b):
      names.add(name.split('/')[0])
  return names


# Each compiles for seconds: the rest is for `make test-slow`.
QUICK = ('deit_i1k', 'linear_probe')


@pytest.mark.parametrize(
  'target',
  [
    pytest.param(t, marks=[] if t in QUICK else [pytest.mark.slow])
    for t in TARGETS
  ],
)
def test_two_steps_of_every_recipe(target, two_steps):
  before, after, losses = two_steps(target)
  assert len(losses) == 2 and all(map(math.isfinite, losses))
  if target == 'linear_probe':
    assert moved(before, after) == {'head'}
  elif target.startswith(('segment', 'mae_i1k')) or target == 'mae_digits':
    assert {'decoder', 'encoder', 'embed'} <= moved(before, after)
  else:  # the control: others train the trunk
    assert {'head', 'encoder'} <= moved(before, after)
