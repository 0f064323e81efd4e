"""What weights are of: their model, and the pictures that they were fed."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import config as config_lib
from vit_jax import weights
from vit_jax.data import ops
from vit_jax.models.mae import handed_on
from vit_jax.weights.formats import Preprocessing, crop_of
from vit_jax.workdir import read_data_info, read_json


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


def class_names(path: str) -> tuple[str, ...]:
  """Of the head, in order; () of a file that does not tell them."""
  if is_run(path):
    return read_data_info(Path(path)).classes
  return tuple(weights.describe(path)[2].labels or ())


def found(path: str) -> tuple[Mapping[str, Any], Preprocessing]:
  """Fields of the model and preprocessing, without reading arrays."""
  if not is_run(path):
    about = weights.describe(path)[2]
    seen = about.preprocessing
    size = about.pictures or seen.size
    return about.fields, dataclasses.replace(seen, size=size)
  saved = config_lib.resolve(read_json(Path(path) / 'config.json') or {})
  info = read_data_info(Path(path))
  seen = preprocessing_of(saved.data.test.ops, info.size, info.channels)
  fields = saved.model.to_dict() | {'classes': len(info.classes)}
  return handed_on(fields) if fields['name'] == 'mae' else fields, seen
