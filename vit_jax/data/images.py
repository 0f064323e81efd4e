"""From the bytes of a file to uint8 pixels, or a message naming the file."""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from vit_jax.errors import BadRecord

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp')

# Checked by ourselves: Pillow only warns, and warnings are not thread-safe.
MOST_PIXELS = 2**27
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION = 0x0112
# OpenCV's flags for a JPEG read at 1/1, 1/2, 1/4, 1/8 of its size.
_REDUCED = {
  1: 0,
  2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def open_image(data: bytes, key: str) -> Image.Image:
  """The file, not yet decoded, or BadRecord: not an image, or too large."""
  try:
    image = Image.open(io.BytesIO(data))
  except Exception as error:  # Pillow's readers raise nearly anything
    what = 'an empty file' if not data else 'not an image that can be read'
    raise BadRecord(f'{key}: {what}. Remove or replace it.') from error
  if image.width * image.height > MOST_PIXELS:
    raise BadRecord(
      f'{key}: {image.width}x{image.height} pixels are too many for a picture '
      f'({MOST_PIXELS:,} at most). Remove or replace it.'
    )
  return image


def header(data: bytes, key: str) -> tuple[tuple[int, int], bool]:
  """((h, w) as it will be seen, whether it is grey), without decoding."""
  plain = _plain_jpeg(data)
  if plain:
    return (plain.h, plain.w), plain.channels == 1
  image = open_image(data, key)
  w, h = image.size
  if _orientation(image, key) > 4:  # on its side
    h, w = w, h
  return (h, w), image.mode in ('1', 'L', 'LA', 'I', 'I;16', 'F')


def orientation(data: bytes, key: str) -> int:
  """EXIF's, 1 to 8: how a picture is to be turned; 1 is not at all."""
  return 1 if _plain_jpeg(data) else _orientation(open_image(data, key), key)


def _orientation(image: Image.Image, key: str) -> int:
  try:
    # For a PNG without it, Pillow would decode all to look behind the pixels.
    known = image.format != 'PNG' or 'exif' in image.info
    found = image.getexif().get(_ORIENTATION) if known else 1
  except Exception as error:
    raise BadRecord(
      f'{key}: a damaged image ({error}). Remove or replace it.'
    ) from error
  return found if found in range(1, 9) else 1


class _Plain(NamedTuple):
  """A JPEG that needs nothing but decoding."""

  h: int
  w: int
  channels: int  # 1 or 3
  frame: int  # where its segment begins


def _plain_jpeg(data: bytes) -> _Plain | None:
  """None: another format, CMYK, with EXIF (it may be turned), or too odd.

  Walks the segments (ITU-T T.81, B.1): a tenth of the time that Pillow takes.
  """
  place = 2
  while data[:2] == b'\xff\xd8' and place + 10 <= len(data):
    marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
    if data[place] != 0xFF or marker in (0xDA, 0xEE):  # the scan, or Adobe's
      return None
    if marker == 0xE1 and data[place + 4 : place + 8] == b'Exif':
      return None
    if marker in (0xC0, 0xC1, 0xC2):  # the frame
      h, w = (data[i] << 8 | data[i + 1] for i in (place + 5, place + 7))
      channels = data[place + 9]
      sound = 0 < h * w <= MOST_PIXELS and channels in (1, 3)
      return _Plain(h, w, channels, place) if sound else None
    place += 2 + length
  return None


# Chroma is interpolated from the rows beside: those of 1/8 of the size too.
_SPARE_ROWS = 16


def _first_rows(data: bytes, plain: _Plain, rows: int) -> bytes:
  """The JPEG as if it ended below `rows`, whose pixels stay what they were.

  A decoder then leaves out the rest: the height in the frame is lowered, and
  zeros stand for the mark of the end, lest it complains of what lies before it.
  The whole file where this is not so simple: progressive (several scans),
  restart marks, no mark of an end, as in a file cut short; or where it saves
  not one row of blocks.
  """
  place, h = plain.frame, rows + _SPARE_ROWS
  sampling = data[place + 11 : place + 10 + 3 * plain.channels : 3]
  block = 8 * max((s & 15 for s in sampling), default=0)
  simple = data[place + 1] != 0xC2 and data[-2:] == b'\xff\xd9'
  if (
    not simple or not 8 <= block <= 16 or -(-h // block) >= -(-plain.h // block)
  ):
    return data
  while place + 5 <= len(data):
    marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
    if data[place] != 0xFF or marker == 0xDD:  # restart marks
      return data
    if marker == 0xDA:  # the scan: of all channels, or there are several
      if data[place + 4] != plain.channels:
        return data
      frame = plain.frame
      head = data[: frame + 5] + h.to_bytes(2, 'big')
      return head + data[frame + 7 : -2] + bytes(16)
    place += 2 + length
  return data


def _decode_plain(
  data: bytes, channels: int, reduce: int, rows: int | None
) -> np.ndarray | None:
  """OpenCV's pixels, which are Pillow's at half the time, of most JPEGs.

  None: not such a file, or OpenCV could not read all of it (it says no more).
  """
  plain = _plain_jpeg(data)
  if plain is None or plain.channels > channels:
    return None
  if rows is not None:
    data = _first_rows(data, plain, rows)
  flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
  flags |= cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[reduce]
  try:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    return None
  return None if pixels is None else pixels.reshape(*pixels.shape[:2], channels)


def decode(
  data: bytes,
  channels: int,
  key: str,
  reduce: int = 1,
  rows: int | None = None,
) -> np.ndarray:
  """Pixels uint8 (h, w, channels) of an encoded image.

  EXIF rotation is applied, transparency is laid on white, 16 bits a channel
  become 8, palettes and CMYK become RGB, an animation gives its first frame.

  Args:
    data: of a file.
    channels: 1 or 3.
    key: names the file in messages.
    reduce: 1, 2, 4 or 8: a JPEG is read at this fraction of its size, sides
      rounded up, which is faster; other formats at their size.
    rows: of the picture that are wanted, from the top and before `reduce`; of a
      JPEG what lies below may be missing, and what is damaged there unseen.

  Raises:
    BadRecord: not an image, or a damaged one; the message begins with `key`.
  """
  plain = _decode_plain(data, channels, reduce, rows)
  if plain is not None:
    return plain
  image = open_image(data, key)
  try:
    if reduce > 1:
      image.draft(image.mode, (image.width // reduce, image.height // reduce))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ('I', 'I;16', 'I;16B', 'I;16L'):
      wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
      image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == 'F':
      raise ValueError('32-bit float pixels have no fixed range')
    elif image.has_transparency_data:
      image = image.convert('RGBA')
      white = Image.new('RGBA', image.size, 'white')
      image = Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  except Exception as error:
    raise BadRecord(
      f'{key}: a damaged image ({error}). Remove or replace it.'
    ) from error
  return pixels[..., None] if channels == 1 else pixels
