"""The configs of configs/, their headers, and what these name."""

import re

import jax
import jax.numpy as jnp

from tests import shown
from tests.conftest import ROOT
from vit_jax import config, weights
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Preprocessing

CONFIGS = ROOT / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def header(name: str) -> str:
  """The docstring of a config."""
  text = (CONFIGS / f'{name}.py').read_text()
  return text[3 : text.index('"""', 3)]


def _named(name: str) -> list[str]:
  """The config, and those of its arguments that the header names."""
  found = re.findall(rf'configs/({name}\.py:[\w,]*\w)', header(name))
  return [name, *(x.replace('.py', '') for x in dict.fromkeys(found))]


def _taught(name: str) -> dict[str, list[tuple[str, str]]]:
  """Overrides of the commands with a teacher, by what they then are called."""
  return {
    args.config.removeprefix('configs/').replace('.py', '') + ' taught': pairs
    for args, pairs in shown.commands(header(name))
    if 'task.teacher' in dict(pairs)
  }


TAUGHT = {key: pairs for name in NAMES for key, pairs in _taught(name).items()}
TARGETS = [
  target for name in NAMES for target in (*_named(name), *_taught(name))
]


def load(target, **overrides):
  """The config of one of TARGETS, or of another argument, and overrides."""
  name, colon, argument = target.removesuffix(' taught').partition(':')
  pairs = [(k.replace('__', '.'), v) for k, v in overrides.items()]
  return config.load(
    f'{CONFIGS / name}.py{colon}{argument}', TAUGHT.get(target, []) + pairs
  )


def saved(path, classes, side=32, channels=3, **fields):
  """Weights of a small model of square pictures, in a file."""
  fields = {'variant': 'Ti/16', 'width': 16, 'depth': 1, 'heads': 2} | fields
  model = ViT(classes=classes, **fields)
  image = jnp.zeros((1, side, side, channels))
  params = model.init(jax.random.key(3), image)['params']
  mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.2, 0.3)[:channels]
  seen = Preprocessing((side, side), mean, std)
  weights.save(path, model, params, format='vit_jax', preprocessing=seen)
  return path
