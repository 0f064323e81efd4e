"""Our own format: safetensors of our paths; config.json says what model."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.schema import coerce, keyword_fields
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import Entry, abstract_params, one


def matches(names: Collection[str]) -> bool:
  """Whether these are our paths."""
  return 'embed/linear/kernel' in names


def describe(
  tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], _: Options
) -> Description:
  """From config.json, which has to be there."""
  del tensors
  saved = config.get('vit_jax')
  if not isinstance(saved, dict):
    raise UserError(
      "weights in vit_jax's own format need the config.json written with them, "
      'in the same folder.'
    )
  hints = keyword_fields(ViT)
  unknown = sorted(set(saved['model']) - {*hints, 'classes'})
  if unknown:
    raise UserError(f'config.json: model.{unknown[0]} is not a field of ViT.')
  fields = {
    name: coerce(f'model.{name}', value, hints[name].hint)
    if name in hints
    else value
    for name, value in saved['model'].items()
  }
  values = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in saved['preprocessing'].items()
  }
  pictures = saved.get('pictures')
  return Description(
    family='vit_jax',
    fields=fields,
    preprocessing=Preprocessing(**values),
    labels=tuple(saved['labels']),
    pictures=tuple(pictures) if pictures else None,
  )


def entries(model: ViT, description: Description) -> list[Entry]:
  """Every parameter under its own path."""
  preprocessing = description.preprocessing
  channels = len(preprocessing.mean)
  paths = abstract_params(model, preprocessing.size, channels)
  return [one(path, path) for path in paths]


def config_json(model: ViT, description: Description) -> dict[str, Any]:
  """All that `describe` needs."""
  fields = {name: getattr(model, name) for name in keyword_fields(ViT)}
  return {
    'vit_jax': {
      'model': {'classes': model.classes, **fields},
      'preprocessing': dataclasses.asdict(description.preprocessing),
      'pictures': description.pictures,
      'labels': description.labels,
    }
  }
