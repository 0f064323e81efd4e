"""Two steps of each recipe of configs/, small and on small pictures."""

import math
import re

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import red_and_blue
from tests.recipes import TARGETS, TAUGHT, load, saved
from vit_jax import finetune, trees
from vit_jax.setup import Setup

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
  folder = tmp_path_factory.mktemp('weights')
  return saved(folder / 'model.safetensors', classes=5, depth=2)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """Weights that tell as many classes as the pictures have."""
  return saved(tmp_path_factory.mktemp('teacher') / 'two.safetensors', 2)


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


def tiny(target, pictures, file, teacher, workdir):
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
  if target in TAUGHT:
    changed |= {'task__teacher': str(teacher)}
  return finetune.adopt(load(target, **changed), workdir)


@pytest.fixture
def two_steps(pictures, file, teacher, tmp_path):
  """A function from a recipe to its parameters before and after, and losses."""

  def run(target):
    config = tiny(target, pictures, file, teacher, tmp_path)
    setup = Setup(config, devices=jax.devices()[:1])
    losses = []
    with jax.set_mesh(setup.mesh):
      state = finetune.initial(setup)
      before = jax.device_get(state.params)
      given = finetune.given(setup)
      loader = setup.loader('train', setup.train_source)
      for batch in loader.train(0, 2):
        state, metrics = setup.train_step(state, batch, given)
        losses.append(float(metrics['loss']))
        assert metrics['finite'] and metrics['grad_norm'] > 0
        assert ('agreement' in metrics) == (target in TAUGHT)
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
  by_token = target in TAUGHT and target.startswith('deit_i1k')
  assert ('distill_head' in moved(before, after)) == by_token
