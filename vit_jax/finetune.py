"""Starting from weights: a file of any format, or the workdir of a run.

The architecture is that of the weights; `config.model` keeps its say in what is
not part of it (`TRAINING`). What is found is written into the config before the
run starts, so that its config.json stands by itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import config as config_lib
from vit_jax import models, origin, trees, weights
from vit_jax.errors import UserError
from vit_jax.models.mae import MAE
from vit_jax.models.segmenter import READING, trunk
from vit_jax.models.variants import parse
from vit_jax.models.vit import ViT
from vit_jax.opening import in_order, load_run, tell
from vit_jax.schema import keyword_fields
from vit_jax.setup import Setup
from vit_jax.step import TrainState
from vit_jax.weights.refit import is_head, refit
from vit_jax.workdir import read_json

# Fields of config.model that are the run's, not the weights'.
TRAINING = (
  'dropout',
  'drop_path',
  'patch_dropout',
  'dtype',
  'attention',
  'mlp_kernel',
  'remat',
  'unroll',
  'head_bias',
  'decoder_dropout',
)


def check_start(config: ml_collections.FrozenConfigDict):
  """Raises UserError of a new head for weights that are not named."""
  if config.init_head == 'new' and not config.init_from:
    raise UserError(
      "config.init_head = 'new' replaces the head of weights, and none are "
      'named: --config.init_from=FILE, a run, or --config.init_head=keep to '
      'start from random values.'
    )


def _normalized(
  ops: Sequence[str], known: Sequence[str], normal: str
) -> tuple[str, ...]:
  """With numbers for each bare 'normalize': as in `known`, or `normal`."""
  at = dict(enumerate(known))
  return tuple(
    at.get(i, normal) if text.strip() == 'normalize' else text
    for i, text in enumerate(ops)
  )


def adopt(
  config: ml_collections.FrozenConfigDict, workdir: Path
) -> ml_collections.FrozenConfigDict:
  """The config with the architecture, size and pixels of `config.init_from`.

  A run that began keeps what it found then, so it resumes without the file.

  Raises:
    UserError: the weights are not there, or of no known format.
  """
  if not config.init_from:
    return config
  values = config.to_dict()
  saved, known = read_json(workdir / 'config.json'), {}
  if saved and saved.get('init_from') == config.init_from:
    before = config_lib.resolve(saved)
    found, size, channels = before.model.to_dict(), before.size, before.channels
    known = {k: v.ops for k, v in before.data.items() if hasattr(v, 'ops')}
    normal = 'normalize'
  else:
    found, seen = origin.found(config.init_from)
    size, channels = config.size or seen.size, len(seen.mean)
    normal = f'normalize({seen.mean}, {seen.std})'
  values['size'], values['channels'] = config.size or size, channels
  fields = keyword_fields(ViT)
  if 'segmenter' in (config.model.name, found.get('name')):
    found = trunk(found)
    if config.init_head == 'keep':  # and so the decoder
      fields |= keyword_fields(models.MODELS[config.model.name])
  own = set(fields) - set(TRAINING)
  values['model'] |= {name: found[name] for name in own if name in found}
  for name, group in values['data'].items():
    if isinstance(group, dict):
      group['ops'] = _normalized(group['ops'], known.get(name, ()), normal)
  return config_lib.resolve(values)


_SHAPE = ('variant', 'width', 'depth', 'hidden', 'heads')


def _shaped(fields: dict[str, Any]) -> ViT:
  """A model with those of `_SHAPE` that are among the fields."""
  return ViT(classes=0, **{k: v for k, v in fields.items() if k in _SHAPE})


def _alike(name: str, asked: dict[str, Any], found: dict[str, Any]) -> bool:
  """Whether a field that was asked for is so in the weights."""
  if name not in _SHAPE or asked[name] == found[name]:
    return asked[name] == found[name]
  model = _shaped(found)
  if name != 'variant':  # a number may be the variant's, or beside another one
    return _shaped(found | {name: asked[name]}).shape == model.shape
  other = _shaped(asked)
  same = parse(other.variant)[1:] == parse(model.variant)[1:]
  return same and other.shape == model.shape


def check_asked(
  config: ml_collections.FrozenConfigDict,
  workdir: Path,
  overrides: Sequence[tuple[str, str]],
):
  """Raises UserError if overrides ask for another model than the weights'.

  What a config says of its model may be for when it starts from none; what is
  asked for beside them is not dropped in silence.

  Args:
    config: complete, the overrides in it.
    workdir: see `adopt`.
    overrides: of the command line, or of a point of a sweep.
  """
  names = [path for path, _ in overrides if path.startswith('model.')]
  names += ['channels'] if 'channels' in dict(overrides) else []
  if not (config.init_from and names):
    return
  own, after = config_lib.flat(config), config_lib.flat(adopt(config, workdir))
  asked, found = (
    {k.removeprefix('model.'): v for k, v in values.items() if k in names}
    for values in (own, after)
  )
  found |= {name: after[f'model.{name}'] for name in _SHAPE}
  for name, value in asked.items():
    free = name == 'channels' and not value
    if free or _alike(name, asked, found):
      continue
    sizes = dataclasses.asdict(_shaped(found).shape)
    has = repr(sizes.get(name, found[name]))
    if name == 'variant':
      has += f' ({", ".join(f"{k} {v}" for k, v in sizes.items())})'
    path = name if name == 'channels' else f'model.{name}'
    raise UserError(
      f'--config.{path}={value}: the weights of config.init_from = '
      f'{config.init_from!r} have {has}, which stays. Leave it out.'
    )


def _placer(abstract: Any) -> Callable[[str, Any], jax.Array]:
  """A function of (path, array) that gives each device its part alone."""
  where = dict(trees.paths(abstract))

  def place(name: str, array: np.ndarray) -> jax.Array:
    wanted = where[name].shape if name in where else 'not there'
    if wanted != array.shape:
      raise UserError(
        f'the weights have {name} {array.shape}, which in the model is '
        f"{wanted}. Is it of the head? config.init_head='new' makes a new one."
      )
    return jax.make_array_from_callback(
      array.shape, where[name].sharding, lambda index: array[index]
    )

  return place


def given(setup: Setup) -> Any:
  """The teacher's parameters, placed like the student's; None: no teacher."""
  if setup.teacher is None:
    return None
  path, place = setup.teacher.path, _placer(setup.abstract_given)
  if not origin.is_run(path):
    return weights.load(path, place=place)[1]
  params = flatten_dict(load_run(Path(path), None, raw=False)[2], sep='/')
  placed = {key: place(key, np.asarray(leaf)) for key, leaf in params.items()}
  return unflatten_dict(placed, sep='/')


def _parameters(
  setup: Setup, place: Callable[[str, Any], jax.Array], fresh: dict
) -> dict:
  """Those of the weights; of `fresh`, by path, what they lack or give up."""
  config, info = setup.config, setup.info
  path, new = config.init_from, config.init_head == 'new'
  known = origin.found(path)[0]['classes']
  classes = 0 if isinstance(setup.model, MAE) else len(info.classes)
  names = [name for name, _ in trees.paths(setup.abstract_state.params)]

  own = () if new or not classes else origin.class_names(path)
  order = in_order(path, own, info.classes)

  def put(name, array):
    array = order(name, array)
    # Of weights that pool, a model that does not has no use for these.
    unused = name not in names and name.split('/')[0] in READING
    return jnp.asarray(array) if unused else place(name, array)

  if not new and known != classes:
    raise UserError(
      f'config.init_from = {path!r} has {known} classes, the model {classes}. '
      "Set config.init_head='new' to replace the head."
    )
  if not origin.is_run(path):
    fit = {'size': info.size, 'classes': 0 if new else classes}
    _, params, found = weights.load(path, **fit, new_head=new, place=put)
    tell(path, found)
    flat = flatten_dict(params, sep='/')
  else:
    run, _, params = load_run(Path(path), None, raw=False)
    _, change = refit(run.model, run.info.size, info.size)
    flat = {
      key: put(key, change(key, np.asarray(leaf)))
      for key, leaf in flatten_dict(params, sep='/').items()
      if not (new and is_head(key))
    }
  flat = (fresh if new else {}) | flat
  lacking = [name for name in names if name not in flat]
  if lacking:
    raise UserError(
      f'config.init_from = {path!r} has no {lacking[0]}, which the model has. '
      "Is it of the head? config.init_head='new' makes a new one."
    )
  return unflatten_dict({name: flat[name] for name in names}, sep='/')


def initial(setup: Setup) -> TrainState:
  """The first state of a run, with the parameters of `config.init_from`.

  Raises:
    UserError: another number of classes, and the head is to be kept.
  """
  state = setup.init()
  if not setup.config.init_from:
    return state
  # What a task makes, and how tokens are read if the weights do not say.
  fresh = {
    path: leaf
    for path, leaf in trees.paths(state.params)
    if is_head(path) or path.split('/')[0] in READING
  }
  state = state.replace(params=None, ema=None)  # makes room
  params = _parameters(setup, _placer(setup.abstract_state.params), fresh)
  averaged = setup.abstract_state.ema is not None
  ema = jax.tree.map(jnp.copy, params) if averaged else None
  return state.replace(params=params, ema=ema)
