"""Starting from weights: a file of any format, or the workdir of a run.

The architecture is that of the weights; `config.model` keeps its say in what is
not part of it (`TRAINING`). What is found is written into the config before the
run starts, so that its config.json stands by itself.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import config as config_lib
from vit_jax import trees, weights
from vit_jax.data import open_split, ops
from vit_jax.errors import UserError
from vit_jax.evaluate import load_run
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.setup import Setup
from vit_jax.step import TrainState
from vit_jax.weights.formats import Preprocessing, crop_of
from vit_jax.weights.refit import is_head, new_heads, refit
from vit_jax.workdir import DataInfo, read_data_info, read_json

# Fields of config.model that are the run's, not the weights'.
TRAINING = (
  'dropout',
  'drop_path',
  'patch_dropout',
  'dtype',
  'attention',
  'remat',
  'unroll',
  'head_bias',
)


def is_run(path: str | Path) -> bool:
  """Whether a path is the workdir of a run, rather than a file of weights."""
  return (Path(path) / 'checkpoints').is_dir()


def preprocessing_of(
  texts: tuple[str, ...], size: tuple[int, int], channels: int
) -> Preprocessing:
  """What the ops of an evaluation amount to.

  Raises:
    UserError: they are not a resize or crop and a linear map of the pixels.
  """
  field = 'config.data.test.ops'
  context = ops.Context(size, channels)
  ends = [np.full((*size, channels), v, np.uint8) for v in (0, 255)]
  low, high = (ops.build(field, texts[-1:])(x, context)[0, 0] for x in ends)
  std = 1 / (high - low)
  kernels = re.findall(r'bilinear|bicubic|area|lanczos', ' '.join(texts))
  small = re.search(r'resize_small\((\d+)', ' '.join(texts))
  squash = any(text.startswith('resize') for text in texts) and not small
  return Preprocessing(
    size=size,
    mean=tuple(float(x) for x in -low * std),
    std=tuple(float(x) for x in std),
    interpolation=kernels[0] if kernels else 'bilinear',
    crop=crop_of(max(size), int(small[1])) if small else 1.0,
    mode='squash' if squash else 'center',
  )


def ops_of(preprocessing: Preprocessing) -> tuple[str, ...]:
  """The ops that do to a picture what weights were trained to see."""
  kernel, size = preprocessing.interpolation, preprocessing.size
  normalize = f'normalize({preprocessing.mean}, {preprocessing.std})'
  if preprocessing.mode == 'squash':
    return ('decode', f"resize('{kernel}')", normalize)
  if size[0] != size[1]:  # as near as it gets: `crop` is for squares
    return ('decode', f"fit('{kernel}')", normalize)
  small = f"resize_small({preprocessing.side}, '{kernel}')"
  return ('decode', small, 'central_crop', normalize)


def _run_config(preprocessing: Preprocessing, data: str | None) -> dict:
  """Values of a config that sees pictures as the weights did."""
  texts = ops_of(preprocessing)
  return {
    'size': preprocessing.size,
    'channels': len(preprocessing.mean),
    'data': {
      'name': data or 'folder:',
      'train': {'ops': texts},
      'test': {'ops': texts},
    },
  }


def _tell(path: str | Path, info: weights.Info):
  """What was taken for granted, or is not exact, is said."""
  for note in info.description.notes:
    logging.warning('%s: %s', path, note)


def open_weights(
  path: str | Path,
  data: str | None,
  options: dict[str, Any],
  headless: bool = False,
) -> tuple[Setup, dict[str, Any]]:
  """A setup to evaluate or predict with a file of weights, and the parameters.

  Args:
    path: of the weights.
    data: a source ('folder:PATH') of which the classes are the weights', in
      their order; None: predictions only.
    options: of weights.load.
    headless: whether weights without a head will do.

  Raises:
    UserError: weights without a head, or data with another number of classes.
  """
  model, params, info = weights.load(path, **options)
  _tell(path, info)
  if not (model.classes or headless):
    raise UserError(f'{path} has no head, so it tells no classes.')
  seen = info.preprocessing
  config = config_lib.resolve(_run_config(seen, data))
  labels = info.description.labels or tuple(map(str, range(model.classes)))
  fingerprint, examples = '', 1
  if data:
    source = open_split(data, 'test')
    if len(source.classes) != model.classes:
      raise UserError(
        f'{path} has {model.classes} classes, {data} {len(source.classes)}.'
      )
    labels, fingerprint = tuple(source.classes), source.fingerprint
  about = DataInfo(labels, seen.size, len(seen.mean), examples, fingerprint)
  return Setup(config, about, model), params


def convert(
  source: Path, target: Path, format: str, options: dict[str, Any]
) -> str:
  """Writes a run or a file of weights in another format; says what it did.

  Args:
    source: a file of weights, or the workdir of a run (its averaged parameters
      if there are any).
    target: the file to write, or the folder of a 'stablehlo' program.
    format: of weights.FORMATS, or 'stablehlo'; '': by the file's ending.
    options: of weights.load, for a file.
  """
  if is_run(source):
    if options:
      raise UserError(f'--{min(options)} is for files; {source} is a run.')
    setup, step, params = load_run(source, None, raw=False)
    model, info = setup.model, setup.info
    texts = setup.config.data.test.ops
    seen = preprocessing_of(texts, info.size, info.channels)
    labels, pictures = info.classes, None
    what = f'step {step} of {source}'
  else:
    model, params, info = weights.load(source, native=True, **options)
    seen, found = info.preprocessing, info.description
    labels, pictures = found.labels, found.pictures
    what = f'{source} ({found.family})'
    for note in found.notes:
      what += f'\n  note: {note}'
  if format == 'stablehlo':
    from vit_jax.weights.export import export_stablehlo

    export_stablehlo(model, params, target, seen)
  else:
    format = format or ('google' if target.suffix == '.npz' else 'vit_jax')
    weights.save(
      target,
      model,
      params,
      format=format,
      preprocessing=seen,
      labels=labels,
      pictures=pictures,
    )
  return f'wrote {target} ({format}) from {what}'


def _found(path: str) -> tuple[Mapping[str, Any], Preprocessing]:
  """Fields of the model and preprocessing, without reading arrays."""
  if not is_run(path):
    found = weights.describe(path)[2]
    seen = found.preprocessing
    size = found.pictures or seen.size
    return found.fields, dataclasses.replace(seen, size=size)
  saved = config_lib.resolve(read_json(Path(path) / 'config.json') or {})
  info = read_data_info(Path(path))
  seen = preprocessing_of(saved.data.test.ops, info.size, info.channels)
  fields = saved.model.to_dict() | {'classes': len(info.classes)}
  return fields, seen


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
  saved = read_json(workdir / 'config.json')
  if saved and saved.get('init_from') == config.init_from:
    before = config_lib.resolve(saved)
    found, size, channels = before.model.to_dict(), before.size, before.channels
    normal = next(
      text
      for text in before.data.train.ops
      if text.startswith(('normalize', 'range'))
    )
  else:
    found, seen = _found(config.init_from)
    size, channels = config.size or seen.size, len(seen.mean)
    normal = f'normalize({seen.mean}, {seen.std})'
  values['size'], values['channels'] = config.size or size, channels
  own = set(keyword_fields(ViT)) - set(TRAINING)
  values['model'] |= {name: found[name] for name in own if name in found}
  for group in values['data'].values():
    if isinstance(group, dict):
      group['ops'] = tuple(
        normal if text.strip() == 'normalize' else text for text in group['ops']
      )
  return config_lib.resolve(values)


def _parameters(setup: Setup, place: Callable[[str, Any], jax.Array]) -> dict:
  config, info = setup.config, setup.info
  path, new = config.init_from, config.init_head == 'new'
  known, classes = _found(path)[0]['classes'], len(info.classes)
  if not new and known != classes:
    raise UserError(
      f'config.init_from = {path!r} has {known} classes, the data {classes}. '
      "Set config.init_head='new' to replace the head."
    )
  if not is_run(path):
    fit = {'size': info.size, 'classes': classes, 'new_head': new}
    _, params, found = weights.load(path, **fit, place=place)
    _tell(path, found)
    return params
  run, _, params = load_run(Path(path), None, raw=False)
  model, change = refit(run.model, run.info.size, info.size)
  flat, result = flatten_dict(params, sep='/'), {}
  if new:
    flat = {key: leaf for key, leaf in flat.items() if not is_head(key)}
    model = model.clone(classes=classes)
    result = new_heads(model, info.size, info.channels)
  for key, leaf in flat.items():
    result[key] = change(key, np.asarray(leaf))
  return unflatten_dict({k: place(k, v) for k, v in result.items()}, sep='/')


def initial(setup: Setup) -> TrainState:
  """The first state of a run, with the parameters of `config.init_from`.

  Raises:
    UserError: another number of classes, and the head is to be kept.
  """
  state = setup.init()
  if not setup.config.init_from:
    return state
  where = dict(trees.paths(setup.abstract_state.params))
  state = state.replace(params=None, ema=None)  # makes room

  def place(name: str, array: np.ndarray) -> jax.Array:
    # Of its part alone for each device.
    return jax.make_array_from_callback(
      array.shape, where[name].sharding, lambda index: array[index]
    )

  params = _parameters(setup, place)
  averaged = setup.abstract_state.ema is not None
  ema = jax.tree.map(jnp.copy, params) if averaged else None
  return state.replace(params=params, ema=ema)
