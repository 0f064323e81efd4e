"""Which features of a tfds data set are its image and its label."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError, check_choice, did_you_mean


def is_image(feature: Any) -> bool:
  """Encoded images, or pixels uint8 (h, w, 1 or 3)."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.Image):
    return feature.np_dtype != np.float32  # they have no fixed range
  return (
    type(feature) is tfds.features.Tensor
    and feature.np_dtype == np.uint8
    and len(feature.shape) == 3
    and feature.shape[-1] in (1, 3)
  )


def is_label(feature: Any) -> bool:
  """A class for each image."""
  import tensorflow_datasets as tfds

  label = isinstance(feature, tfds.features.ClassLabel)
  return label and bool(feature.num_classes)


def is_mask(feature: Any) -> bool:
  """Encoded images of one channel, or integers (h, w) or (h, w, 1)."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.Image):
    return feature.np_dtype != np.float32 and feature.shape[-1] == 1
  return (
    type(feature) is tfds.features.Tensor
    and np.issubdtype(feature.np_dtype, np.integer)
    and (len(feature.shape) == 2 or feature.shape[2:] == (1,))
  )


def choose(info: Any, position: int, wanted: str) -> str:
  """The name of a feature: as wanted, else supervised, else the only one.

  Args:
    info: of the data set.
    position: in the supervised keys; 0: the image, 1: the label. Masks are the
      label if they are wanted or supervised.
    wanted: the config's choice, or ''.

  Raises:
    UserError: none, several, or not one that will do.
  """
  field = f'config.data.{("image_feature", "label_feature")[position]}'
  what = ('an image of uint8 or uint16', 'a ClassLabel')[position]
  fits = (is_image, is_label)[position]
  names = [name for name, feature in info.features.items() if fits(feature)]
  known = list(names)
  if position:
    known += [name for name, f in info.features.items() if is_mask(f)]
  if wanted:
    check_choice(field, wanted, info.features)
    if wanted not in known:
      raise UserError(
        f'{field} = {wanted!r} is {info.features[wanted]!r}, not {what}'
        + (' or masks.' if position else '.')
        + did_you_mean(wanted, known)
      )
    return wanted
  if info.supervised_keys and info.supervised_keys[position] in known:
    return info.supervised_keys[position]
  if not names:
    kinds = [f'{n} ({type(f).__name__})' for n, f in info.features.items()]
    raise UserError(
      f'{info.full_name} has no feature that is {what}, only '
      + ', '.join(kinds)
    )
  if len(names) > 1:
    raise UserError(f'{field}: say which of {", ".join(names)}.')
  return names[0]


def names(
  name: str, feature: Any, mask_names: tuple[str, ...]
) -> tuple[str, ...]:
  """Of the classes: a label's, those of LabeledImage, or `mask_names`.

  Raises:
    UserError: masks without names, or names without masks.
  """
  known = tuple(getattr(feature, 'names', None) or ())
  if mask_names and is_label(feature):
    raise UserError(
      f'config.data.mask_names = {mask_names}: the label {name!r} is a class '
      'for each image, which has its names.'
    )
  if known and not mask_names:
    return known
  if not 2 <= len(mask_names) <= 254:
    raise UserError(
      f'config.data.mask_names = {mask_names}: the classes in {name!r} have no '
      "names; give 2 to 254, in order: ('pet', 'background')."
    )
  return mask_names
