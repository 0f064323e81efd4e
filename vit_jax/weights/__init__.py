"""Weights in and out: Google .npz, timm and Hugging Face safetensors, our own.

  from vit_jax import weights
  model, params, info = weights.load('model.safetensors')
  logits = model.apply({'params': params}, images)  # (B, h, w, c)

The format and the architecture are found from the names and shapes in the file
and the config.json beside it; what those cannot tell is asked for, not guessed.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.errors import UserError, check_choice
from vit_jax.models.patches import grid
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.weights import files, google, huggingface, native, timm
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import abstract_params, read_params, write_tensors
from vit_jax.weights.resample import resize_patches, resize_positions

# Tried in this order: the first whose names they are.
FORMATS = {
  'vit_jax': native,
  'google': google,
  'timm': timm,
  'huggingface': huggingface,
}
HEADS = ('head', 'distill_head')
_NONE = Options()


@dataclasses.dataclass(frozen=True)
class Info:
  """What was loaded.

  Attributes:
    format: of FORMATS.
    description: family, fields, preprocessing, labels, notes.
    path: of the file.
  """

  format: str
  description: Description
  path: Path

  @property
  def preprocessing(self) -> Preprocessing:
    """From a picture to the model's input."""
    return self.description.preprocessing


def _detect(tensors: files.Tensors) -> str:
  names = set(tensors)
  for name, module in FORMATS.items():
    if module.matches(names):
      return name
  raise UserError(
    f'{tensors.path}: these names are of no known format ('
    + ', '.join(sorted(names)[:4])
    + f', ...). Known: {", ".join(FORMATS)}.'
  )


def describe(
  path: str | Path, options: Options = _NONE
) -> tuple[str, files.Tensors, Description]:
  """(format, tensors, description) of a file, without reading its arrays.

  Raises:
    UserError: no such file, a pickle, a damaged file, an unknown format, or
      something that only an option can tell.
  """
  tensors, config = files.read(Path(path))
  name = _detect(tensors)
  return name, tensors, FORMATS[name].describe(tensors, config, options)


def refit(
  model: ViT,
  params: dict[str, Any],
  native: tuple[int, int],
  channels: int,
  *,
  size: tuple[int, int] | None = None,
  patch: int = 0,
  classes: int | None = None,
  new_head: bool = False,
  antialias: bool = False,
) -> tuple[ViT, dict[str, Any]]:
  """Weights for other images, another patch, other classes.

  Learned positions are resampled (bicubic, as PyTorch does it), the patch
  kernel by the pseudo-inverse of the resize (arXiv 2212.08013), and a new head
  is zero. Of parameters without a head, or with one to be replaced, pass them
  without.

  Args:
    model: that the parameters are of.
    params: as numpy arrays.
    native: (h, w) that the positions are for.
    channels: of the images.
    size: (h, w) of the images to come; None: the same.
    patch: side of a patch; 0: the same.
    classes: of the new head.
    new_head: makes one.
    antialias: of the positions, as timm does it and Hugging Face does not.
  """
  size, old = size or native, grid(native, model.patch)
  if patch and patch != model.patch:
    kernel = params['embed']['linear']['kernel']
    params['embed']['linear']['kernel'] = np.asarray(
      resize_patches(kernel, model.patch, patch)
    )
    variant = model.variant.rpartition('/')[0]
    model = model.clone(variant=f'{variant}/{patch}')
  new = grid(size, model.patch)
  if model.positions == 'learned' and new != old:
    table = params['positions']['table']
    prefix = len(model.special) if model.prefix_positions else 0
    params['positions']['table'] = np.asarray(
      resize_positions(
        table, old, new, prefix, kernel='bicubic-torch', antialias=antialias
      )
    )
  if new_head:
    model = model.clone(classes=classes or 0)
    for name, leaf in abstract_params(model, size, channels).items():
      top, last = name.split('/')[0], name.split('/')[-1]
      if top in HEADS:
        value = model.head_bias if last == 'bias' else 0.0
        layer = params.setdefault(top, {}).setdefault('linear', {})
        layer[last] = np.full(leaf.shape, value, np.float32)
  return model, params


def load(
  path: str | Path,
  *,
  size: tuple[int, int] | None = None,
  patch: int = 0,
  classes: int | None = None,
  new_head: bool = False,
  heads: int = 0,
  patches: tuple[int, int] | None = None,
  architecture: str = '',
  place: Callable[[str, np.ndarray], jax.Array] | None = None,
) -> tuple[ViT, dict[str, Any], Info]:
  """A model and its parameters from a file or folder.

  Args:
    path: .npz, .safetensors, or a folder with model.safetensors.
    size, patch, classes: see `refit`; None, 0: as in the file.
    new_head: whether the head may be replaced by one of `classes`; 0: by none.
    heads: attention heads, where the file cannot tell.
    patches: grid (gh, gw) of the file's positions, where it is not square.
    architecture: the format's name of the model, where the file cannot tell.
    place: from (path, array) to where a parameter is to live, such as
      jax.device_put with a sharding; None: the default device.

  Raises:
    UserError: see `describe`; also tensors that are missing, unexpected or of
      a wrong shape, with the difference both ways.
  """
  options = Options(heads=heads, grid=patches, architecture=architecture)
  name, tensors, description = describe(path, options)
  model = ViT(**description.fields)
  if classes not in (None, model.classes) and not new_head:
    raise UserError(
      f'{path} has {model.classes} classes, not {classes}: ask for a new head.'
    )
  native = description.preprocessing.size
  channels = len(description.preprocessing.mean)
  entries = FORMATS[name].entries(model, description)
  abstract = abstract_params(model, native, channels)

  def replaced(ours: str) -> bool:
    return new_head and ours.split('/')[0] in HEADS

  left = {n for e in entries if replaced(e.ours[0]) for n in e.theirs}
  try:
    params = read_params(
      [entry for entry in entries if not replaced(entry.ours[0])],
      tensors,
      {key: leaf for key, leaf in abstract.items() if not replaced(key)},
      lambda n: n in left or description.ignored(n),
    )
  except UserError as error:
    raise UserError(f'{tensors.path} ({description.family}): {error}') from None
  model, params = refit(
    model,
    params,
    native,
    channels,
    size=size,
    patch=patch,
    classes=classes,
    new_head=new_head,
    # As their own code resizes: timm, and Hugging Face's with registers.
    antialias=name == 'timm' or model.registers > 0,
  )
  leaves = flatten_dict(params, sep='/')
  del params  # leaf by leaf, so that each is let go of once it is placed
  for key in leaves:
    array = leaves[key]
    leaves[key] = place(key, array) if place else jnp.asarray(array)
  params = unflatten_dict(leaves, sep='/')
  return model, params, Info(name, description, Path(path))


def save(
  path: str | Path,
  model: ViT,
  params: Any,
  *,
  format: str,
  preprocessing: Preprocessing,
  labels: tuple[str, ...] = (),
) -> Description:
  """Writes a model in a format of FORMATS, its config.json beside it.

  Raises:
    UserError: an unknown format, or a model that it cannot express.
  """
  check_choice('--format', format, FORMATS)
  path = Path(path)
  suffix = '.npz' if format == 'google' else '.safetensors'
  if path.suffix != suffix:
    raise UserError(f'--to={path}: {format} is written as {suffix}.')
  fields = {name: getattr(model, name) for name in keyword_fields(ViT)}
  description = Description(
    family=format,
    fields={'classes': model.classes, **fields},
    preprocessing=preprocessing,
    labels=labels,
  )
  module = FORMATS[format]
  tensors = write_tensors(module.entries(model, description), params)
  files.write(path, tensors, module.config_json(model, description))
  if format == 'huggingface':  # where transformers looks for preprocessing
    text = json.dumps(huggingface.processor_json(preprocessing), indent=2)
    (path.parent / 'preprocessor_config.json').write_text(text + '\n')
  return description
