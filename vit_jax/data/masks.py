"""Masks: the class of each pixel, from the bytes of a PNG or an array."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from vit_jax.data.images import header, open_image, orientation
from vit_jax.data.sources import IGNORE, Record
from vit_jax.errors import BadRecord, UserError

_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG's header (RFC 2083, 11.2.2)


def decode(data: bytes, key: str) -> UInt8[np.ndarray, 'h w']:
  """The numbers in a PNG, grey or with a palette: those that were written.

  Args:
    data: of the file.
    key: names it in messages.

  Raises:
    BadRecord: it cannot be read, has colours, or a number over 255.
  """
  image = open_image(data, key)
  if image.format != 'PNG':
    raise BadRecord(
      f'{key}: a mask is a PNG, grey or with a palette; this is '
      f'{image.format}, which may change numbers.'
    )
  mode = image.mode
  if mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B'):
    raise BadRecord(
      f'{key}: a mask has one number a pixel, a grey level or an index of a '
      f'palette; this one is {mode}.'
    )
  try:
    pixels = np.asarray(image)
  except Exception as error:  # Pillow's readers raise nearly anything
    raise BadRecord(
      f'{key}: a damaged mask ({error}). Remove or replace it.'
    ) from error
  if mode[0] == 'I' and pixels.max() > 255:
    raise BadRecord(f'{key}: the mask has {pixels.max()}; 255 is the most.')
  pixels = pixels.astype(np.uint8)
  if mode == 'L' and data[_COLOUR_TYPE] == 0 and data[_BIT_DEPTH] < 8:
    pixels //= 255 // (2 ** data[_BIT_DEPTH] - 1)  # Pillow spread the levels
  return pixels


def table(
  values: Sequence[int], ignore: Sequence[int] = (), start: int = 0
) -> UInt8[np.ndarray, '256']:
  """From a number in a file to a class.

  Args:
    values: of the classes, in order; at most 254.
    ignore: numbers that are not counted.
    start: numbers below are not counted either.

  Returns:
    A class or IGNORE; of a number that is neither, len(values).
  """
  classes = np.full(256, len(values), np.uint8)
  classes[:start] = IGNORE
  classes[list(values)] = np.arange(len(values))
  classes[list(ignore)] = IGNORE
  return classes


def check_numbers(start: int, ignore: Sequence[int]):
  """Raises UserError unless the fields are those of `table`."""
  if not 0 <= start <= 254:
    raise UserError(f'config.data.mask_start = {start}: 0 to 254.')
  wrong = [number for number in ignore if not 0 <= number <= 255]
  if wrong:
    raise UserError(
      f'config.data.mask_ignore = {tuple(ignore)}: {wrong[0]} is not in a '
      'mask, whose numbers are 0 to 255.'
    )


def check(
  mask: UInt8[np.ndarray, 'h w'],
  classes: int,
  key: str,
  written: UInt8[np.ndarray, 'h w'] | None = None,
):
  """Raises BadRecord unless all labels are of classes, and one is counted.

  Args:
    mask: classes and IGNORE.
    classes: how many there are.
    key: names the mask in messages.
    written: the numbers in the file, for messages; None: those of the mask.
  """
  counted = mask != IGNORE
  if not counted.any():
    raise BadRecord(f'{key}: no pixel of the mask is counted.')
  wrong = (mask >= classes) & counted
  if wrong.any():
    pixels = mask if written is None else written
    y, x = np.argwhere(wrong)[0]
    raise BadRecord(
      f'{key}: the mask has {pixels[y, x]} at row {y}, column {x}, which is '
      f'none of the {classes} classes and not ignored.'
    )


def read(record: Record, classes: int) -> UInt8[np.ndarray, 'h w']:
  """The mask that is the label of a record.

  Raises:
    BadRecord: it cannot be read, is not as large as its image, or not a mask.
  """
  image, mask, key = record['image'], record['label'], record['key']
  if isinstance(mask, bytes):
    mask = decode(mask, key)
  plain = isinstance(image, np.ndarray)
  check_size(
    mask.shape, image.shape[:2] if plain else header(image, key)[0], key
  )
  check(mask, classes, key)
  return mask


def numbered(
  written: bytes | np.ndarray,
  classes: UInt8[np.ndarray, '256'],
  count: int,
  key: str,
) -> UInt8[np.ndarray, 'h w']:
  """The classes of a mask as a data set has it.

  Args:
    written: numbers; the bytes of a PNG, or integers (h, w) or (h, w, 1).
    classes: from `table`.
    count: of the classes.
    key: names the mask in messages.

  Raises:
    BadRecord: see `decode` and `check`.
  """
  if isinstance(written, bytes):
    pixels = decode(written, key)
  else:
    low, high = written.min(), written.max()
    if low < 0 or high > 255:
      wrong = low if low < 0 else high
      raise BadRecord(f'{key}: the mask has {wrong}; 0 to 255 can be read.')
    pixels = written.astype(np.uint8).reshape(written.shape[:2])
  mask = cv2.LUT(pixels, classes)
  check(mask, count, key, pixels)
  return mask


def check_upright(image: bytes, key: str):
  """Raises BadRecord if EXIF turns the picture: its mask may be of either."""
  turned = orientation(image, key)
  if turned != 1:
    raise BadRecord(
      f'{key}: EXIF turns the picture (orientation {turned}), and its mask may '
      'be of it as stored or as shown. Store it turned, without EXIF.'
    )


def check_size(mask: tuple[int, ...], image: tuple[int, int], key: str):
  """Raises BadRecord unless both are (h, w) of the same picture."""
  if mask != image:
    raise BadRecord(
      f'{key}: the mask has {mask[0]}x{mask[1]} pixels, its image '
      f'{image[0]}x{image[1]} (height x width).'
    )
