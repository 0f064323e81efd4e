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
from flax.traverse_util import unflatten_dict

from vit_jax.errors import UserError, check_choice
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.weights import files, google, huggingface, native, timm
from vit_jax.weights.formats import Description, Options, Preprocessing
from vit_jax.weights.mapping import abstract_params, read_params, write_tensors
from vit_jax.weights.refit import is_head, new_heads, refit
from vit_jax.weights.resample import Kernel

# Tried in this order: the first whose names they are.
FORMATS = {
  'vit_jax': native,
  'google': google,
  'timm': timm,
  'huggingface': huggingface,
}
_NONE = Options()

# Options, by their flags, that files of a format may need.
_ASKS = {
  'vit_jax': (),
  'google': ('patches',),
  'timm': ('heads', 'patches', 'architecture'),
  'huggingface': ('heads', 'patches'),
}


def _check_options(path: str | Path, name: str, options: Options):
  """Raises UserError for one that the format would not look at."""
  given = {
    'heads': options.heads,
    'patches': options.grid and 'x'.join(map(str, options.grid)),
    'architecture': options.architecture,
  }
  for flag, value in given.items():
    if value and flag not in _ASKS[name]:
      raise UserError(
        f'--{flag}={value}: {path} is of the format {name}, whose files tell '
        'that by themselves.'
      )


def _resizing(format: str, model: ViT) -> tuple[Kernel, bool]:
  """How the code that weights come from resizes their positions."""
  if format == 'google':
    return 'corners', False
  # Hugging Face antialiases in its models with registers only.
  return 'bicubic-torch', format == 'timm' or model.registers > 0


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
  _check_options(path, name, options)
  return name, tensors, FORMATS[name].describe(tensors, config, options)


def load(
  path: str | Path,
  *,
  size: tuple[int, int] | None = None,
  native: bool = False,
  patch: int = 0,
  classes: int | None = None,
  new_head: bool = False,
  heads: int = 0,
  patches: tuple[int, int] | None = None,
  architecture: str = '',
  place: Callable[[str, np.ndarray], jax.Array] = lambda _, x: jnp.asarray(x),
) -> tuple[ViT, dict[str, Any], Info]:
  """A model and its parameters from a file or folder.

  Parameters are read and placed one after another: beside those that are placed
  only one is in memory.

  Args:
    path: .npz, .safetensors, or a folder with model.safetensors.
    size: (h, w) of the images to come, see `refit`; None: of those that the
      model was evaluated on, or with `native` that its positions are for.
    native: see `size`; they are the same but for some of Hugging Face's.
    patch: of the patches to come, see `refit`; 0: as in the file.
    classes: that the head has to have; None: as in the file.
    new_head: replaces the head by one of `classes`, None or 0: by none.
    heads: attention heads, where the file cannot tell.
    patches: grid (gh, gw) of the file's positions, where it is not square.
    architecture: the format's name of the model, where the file cannot tell.
    place: from (path, array) to where a parameter is to live, such as
      jax.device_put with a sharding; by default to the default device.

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
  seen = description.preprocessing
  pictures = description.pictures if not size else None
  size = size or (not native and pictures) or seen.size
  channels = len(seen.mean)
  kernel, antialias = _resizing(name, model)
  after, change = refit(
    model, seen.size, size, patch=patch, kernel=kernel, antialias=antialias
  )
  entries = FORMATS[name].entries(model, description)
  abstract = abstract_params(model, seen.size, channels)
  left: set[str] = set()
  if new_head:
    heads_of = [e for e in entries if any(map(is_head, e.ours))]
    left = {name for entry in heads_of for name in entry.theirs}
    entries = [e for e in entries if e not in heads_of]
    abstract = {k: leaf for k, leaf in abstract.items() if not is_head(k)}
    after = after.clone(classes=classes or 0)

  def placed(key: str, array: np.ndarray) -> jax.Array:
    # Waited for: what is on its way to a device still is in memory here.
    array = change(key, array)
    return jax.block_until_ready(place(key, array))

  try:
    params = read_params(
      entries,
      tensors,
      abstract,
      lambda n: n in left or description.ignored(n),
      placed,
    )
  except UserError as error:
    raise UserError(f'{tensors.path} ({description.family}): {error}') from None
  if new_head:
    fresh = new_heads(after, size, channels)
    fresh = {key: placed(key, array) for key, array in fresh.items()}
    params |= unflatten_dict(fresh, sep='/')
  description = dataclasses.replace(
    description,
    preprocessing=dataclasses.replace(seen, size=size),
    pictures=pictures if native else None,
  )
  return after, params, Info(name, description, Path(path))


def save(
  path: str | Path,
  model: ViT,
  params: Any,
  *,
  format: str,
  preprocessing: Preprocessing,
  labels: tuple[str, ...] = (),
  pictures: tuple[int, int] | None = None,
) -> Description:
  """Writes a model in a format of FORMATS, its config.json beside it.

  Args:
    path: of the file.
    model: that the parameters are of.
    params: arrays.
    format: of FORMATS.
    preprocessing: from a picture to the model; of the size of its positions.
    labels: names of the classes.
    pictures: see Description.

  Raises:
    UserError: an unknown format, or a model that it cannot express.
  """
  check_choice('--format', format, FORMATS)
  path = Path(path)
  if type(model) is not ViT:
    raise UserError(
      f'--to={path}: {format} has no place for the decoder of a '
      f'{type(model).__name__}. --format=stablehlo writes a model whole; a run '
      'starts from it by --config.init_from.'
    )
  suffix = '.npz' if format == 'google' else '.safetensors'
  if path.suffix != suffix:
    raise UserError(f'--to={path}: {format} is written as {suffix}.')
  fields = {name: getattr(model, name) for name in keyword_fields(ViT)}
  description = Description(
    family=format,
    fields={'classes': model.classes, **fields},
    preprocessing=preprocessing,
    labels=labels,
    pictures=pictures,
  )
  module = FORMATS[format]
  tensors = write_tensors(module.entries(model, description), params)
  files.write(path, tensors, module.config_json(model, description))
  if format == 'huggingface':  # where transformers looks for preprocessing
    seen = dataclasses.replace(
      preprocessing, size=pictures or preprocessing.size
    )
    text = json.dumps(huggingface.processor_json(seen), indent=2)
    (path.parent / 'preprocessor_config.json').write_text(text + '\n')
  return description
