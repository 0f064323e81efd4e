"""Runs and files of weights, opened: to evaluate, to predict, to be written.

`load_run` opens a workdir and `open_weights` a file, each as a setup.Setup and
parameters; `convert` writes either in another format.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from vit_jax import checkpoint, origin, trees, weights
from vit_jax import config as config_lib
from vit_jax.data import open_split
from vit_jax.errors import UserError
from vit_jax.models.mae import without_decoder
from vit_jax.setup import Setup
from vit_jax.weights.formats import Preprocessing
from vit_jax.weights.refit import Change, is_head
from vit_jax.workdir import DataInfo, read_data_info, read_json


def load_run(
  workdir: Path, step: int | None, raw: bool
) -> tuple[Setup, int, Any]:
  """The setup of a run, a step of it, and its parameters.

  Args:
    workdir: of the run.
    step: of a checkpoint; None: the newest sound one.
    raw: the parameters themselves even if there are averaged ones.

  Raises:
    UserError: no run, no such step, no sound checkpoint.
  """
  saved = read_json(workdir / 'config.json')
  if saved is None:
    raise UserError(f'--workdir={workdir} holds no run (no config.json).')
  if not (workdir / 'checkpoints').is_dir():
    raise UserError(f'--workdir={workdir} has no checkpoint yet.')
  # On the devices that are here, whatever the run was trained on.
  devices = jax.device_count()
  saved['mesh'], saved['accumulate'] = {}, 1
  saved['batch_size'] = -(-saved['batch_size'] // devices) * devices
  setup = Setup(config_lib.resolve(saved), read_data_info(workdir))
  averaged = setup.abstract_state.ema is not None and not raw
  item = 'ema' if averaged else 'params'
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  abstract = checkpoint.abstract_items(setup.abstract_state, (item,))
  found = checkpoints.load(abstract, step)
  checkpoints.close()
  if found is None:
    raise UserError(f'--workdir={workdir} has no checkpoint yet.')
  return setup, found[0], found[1][item]


def _run_config(preprocessing: Preprocessing, data: str | None) -> dict:
  """Values of a config that sees pictures as the weights did."""
  texts = origin.ops_of(preprocessing)
  return {
    'size': preprocessing.size,
    'channels': len(preprocessing.mean),
    'data': {
      'name': data or 'folder:',
      'train': {'ops': texts},
      'test': {'ops': texts},
    },
  }


def tell(path: str | Path, info: weights.Info):
  """What was taken for granted, or is not exact, is said."""
  for note in info.description.notes:
    logging.warning('%s: %s', path, note)


def in_order(
  path: str | Path, own: Sequence[str], classes: Sequence[str]
) -> Change:
  """Heads of weights, in the order of `classes` if theirs are in another.

  Of other names they stay as they are: classes are matched by number, which is
  told. A decoder of masks is not put in order.

  Raises:
    UserError: as soon as it is asked for a decoder that would have to be.
  """
  number = {name: i for i, name in enumerate(own)}
  same = sorted(number) == sorted(classes)
  order = np.array([number[name] for name in classes if same], int)
  if own and sorted(own) != sorted(classes) and len(own) == len(classes):
    logging.warning(
      '%s calls its classes %s, ..., the data %s, ...: matched by number.',
      path,
      ', '.join(own[:3]),
      ', '.join(classes[:3]),
    )

  def change(name, array):
    if not same or not is_head(name) or tuple(own) == tuple(classes):
      return array
    if name.startswith('decoder'):
      raise UserError(
        f'{path} is for {", ".join(own[:3])}, ..., the data have these '
        f'classes in another order: {", ".join(classes[:3])}, ...'
      )
    return array[..., order]

  return change


def open_weights(
  path: str | Path,
  data: str | None,
  options: dict[str, Any],
  headless: bool = False,
  split: str = 'test',
) -> tuple[Setup, dict[str, Any]]:
  """A setup to evaluate or predict with a file of weights, and the parameters.

  Args:
    path: of the weights.
    data: a source ('folder:PATH'), the classes of which the head is put in the
      order of, where it tells the same; None: predictions only.
    options: of weights.load.
    headless: whether weights without a head, or for other classes than those
      of the data, will do.
    split: of the data.

  Raises:
    UserError: they do not.
  """
  model, params, info = weights.load(path, **options)
  tell(path, info)
  if not (model.classes or headless):
    raise UserError(f'{path} has no head, so it tells no classes.')
  seen = info.preprocessing
  config = config_lib.resolve(_run_config(seen, data))
  labels = info.description.labels or tuple(map(str, range(model.classes)))
  fingerprint, examples = '', 1
  if data:
    source = open_split(data, split)
    matched = len(source.classes) == model.classes
    if not (matched or headless):
      raise UserError(
        f'{path} has {model.classes} classes, {data} {len(source.classes)}.'
      )
    change = in_order(path, info.description.labels, source.classes)
    params = trees.map_paths(change, params)
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
  if origin.is_run(source):
    if options:
      raise UserError(f'--{min(options)} is for files; {source} is a run.')
    setup, step, params = load_run(source, None, raw=False)
    model, params = without_decoder(setup.model, params)
    info = setup.info
    texts = setup.config.data.test.ops
    seen = origin.preprocessing_of(texts, info.size, info.channels)
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
