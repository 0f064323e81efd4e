"""How transformers prepares pictures: preprocessor_config.json, both ways."""

import json
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError
from vit_jax.weights.formats import Preprocessing, crop_of

_HALF = (0.5,) * 3, (0.5,) * 3
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the processors that models of a family come with: mean and standard
# deviation, interpolation, mode, crop.
_FAMILIES = {
  'vit': (_HALF, 'bilinear', 'squash', 1.0),
  'dinov2': (_IMAGENET, 'bicubic', 'center', 224 / 256),
  'dinov3': (_IMAGENET, 'bilinear', 'squash', 1.0),
  'siglip': (_HALF, 'bicubic', 'squash', 1.0),
}
_RESAMPLE = {
  1: 'lanczos',
  2: 'bilinear',
  3: 'bicubic',
  4: 'area',
}  # Pillow's numbers


def beside(path: Path | None) -> dict[str, Any] | None:
  """The preprocessor_config.json beside a file, if there is one.

  Raises:
    UserError: it is not JSON.
  """
  file = path.parent / 'preprocessor_config.json' if path else None
  if file is None or not file.is_file():
    return None
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is not JSON: {error}') from error


def _sides(size: Any) -> tuple[int, int] | None:
  """(h, w); None: stated in some other way."""
  if isinstance(size, dict):
    both = {'height', 'width'} <= size.keys()
    return (size['height'], size['width']) if both else None
  return (size, size) if isinstance(size, int) else tuple(size)


def _framing(saved: dict, mode: str, crop: float, notes: list[str]):
  """(h, w) of the pictures or None, mode and crop; those given if not told."""
  full = saved.get('size')
  if not full:
    return None, mode, crop
  cut = saved.get('crop_size', full) if saved.get('do_center_crop') else full
  edge = full.get('shortest_edge') if isinstance(full, dict) else None
  size = _sides(cut)
  if edge is None and cut is full and size:
    return size, 'squash', 1.0
  if edge is not None and size:
    return size, 'center', crop_of(max(size), edge)
  if edge is not None and cut is full:
    return None, 'center', 1.0
  notes.append(
    f'size {full} and crop_size {cut} are unknown here: {mode!r} instead.'
  )
  return None, mode, crop


def preprocessing(
  family: str, size: tuple[int, int], channels: int, saved: dict | None
) -> tuple[Preprocessing, tuple[int, int] | None, tuple[str, ...]]:
  """What a model of `family` was trained to see; the pictures' size; notes.

  Args:
    family: of _FAMILIES; its values stand where `saved` has none.
    size: (h, w) of the pictures that the positions are for.
    channels: of the pictures.
    saved: the preprocessor_config.json.

  Returns:
    The preprocessing for `size`, (h, w) of the pictures if that is another or
    else None, and notes.
  """
  (mean, std), kernel, mode, crop = _FAMILIES[family]
  notes = []
  if saved is None:
    saved = {}
    notes.append(
      'there is no preprocessor_config.json: pictures are prepared as usual '
      f'for {family}.'
    )
  if 'resample' in saved:
    if saved['resample'] not in _RESAMPLE:
      notes.append(
        f'resample {saved["resample"]} is unknown: {kernel} instead.'
      )
    else:
      kernel = _RESAMPLE[saved['resample']]
  pictures, mode, crop = _framing(saved, mode, crop, notes)
  if pictures and pictures != size:
    notes.append(
      f'pictures are {pictures[0]}x{pictures[1]}, the positions for '
      f'{size[0]}x{size[1]}: they are resampled to predict, not to convert.'
    )
  mean, std = saved.get('image_mean', mean), saved.get('image_std', std)
  if saved.get('do_normalize') is False:
    mean, std = (0.0,) * channels, (1.0,) * channels
  # Pixels times the factor, for us over 255.
  scale = 255 * saved.get('rescale_factor', 1 / 255)
  if saved.get('do_rescale') is False:
    scale = 255.0
  if abs(scale - 1) > 1e-6:
    mean, std = [x / scale for x in mean], [x / scale for x in std]
  if len(mean) != channels:
    mean, std = [mean[0]] * channels, [std[0]] * channels
  found = Preprocessing(
    size=size,
    mean=tuple(float(x) for x in mean),
    std=tuple(float(x) for x in std),
    interpolation=kernel,
    crop=float(crop),
    mode=mode,
  )
  return found, pictures if pictures != size else None, tuple(notes)


def processor_json(preprocessing: Preprocessing) -> dict[str, Any]:
  """A preprocessor_config.json: AutoImageProcessor then does as we do."""
  h, w = preprocessing.size
  numbers = {name: number for number, name in _RESAMPLE.items()}
  result = {
    'do_resize': True,
    'resample': numbers[preprocessing.interpolation],
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(preprocessing.mean),
    'image_std': list(preprocessing.std),
  }
  if preprocessing.mode == 'squash':
    size = {'height': h, 'width': w}
    return {'image_processor_type': 'ViTImageProcessor', 'size': size, **result}
  return {
    'image_processor_type': 'BitImageProcessor',
    'do_center_crop': True,
    'size': {'shortest_edge': preprocessing.side},
    'crop_size': {'height': h, 'width': w},
    **result,
  }
