"""Antialiased resizing, two ways with the same kernels.

`resize` is Pillow's, to the bit: evaluation and everything that is compared
with numbers of others. `crop` is for the crops of training, four times as fast:
fast_image_resize (a SIMD rewrite of Pillow's algorithm, the same on every
instruction set) rounds its weights otherwise, and comes within 1 grey level of
Pillow on average. Where it has no wheel (Linux on ARM), Pillow does both.
"""

import math

import numpy as np
from PIL import Image

from vit_jax.data.context import Kernel

try:
  import cykooz_resizer as simd
except ImportError:
  simd = None

KERNELS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'area': Image.Resampling.BOX,
  'lanczos': Image.Resampling.LANCZOS,
}
# Without 'area': where a box ends between two pixels the two may differ.
_FILTERS = {
  'bilinear': 'bilinear',
  'bicubic': 'catmull_rom',
  'lanczos': 'lanczos3',
}

Number = int | float
Box = tuple[Number, Number, Number, Number]  # top, left, height, width


def resize(
  image, size: tuple[int, int], kernel: Kernel, box: Box | None = None
):
  """uint8 (h, w, c), or a box of it, at another size, as Pillow does it."""
  if image.shape[:2] == size and box is None:
    return image
  if box:
    top, left, h, w = box
    box = (left, top, left + w, top + h)
  grey = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if grey else image)
  result = np.asarray(picture.resize(size[::-1], KERNELS[kernel], box))
  return result[..., None] if grey else result


def crop(image, box: Box, size: tuple[int, int], kernel: Kernel):
  """A box of uint8 (h, w, c), at another size; fast.

  Args:
    image: of which nothing outside of the box is seen.
    box: in pixels, fractions too.
    size: (h, w) to reach.
    kernel: widened by the scale, so that the result has no aliases.
  """
  top, left, h, w = box
  y, x = math.floor(top), math.floor(left)
  image = image[y : math.ceil(top + h), x : math.ceil(left + w)]
  rest = (top - y, left - x, h, w)
  whole = rest == (0, 0, *image.shape[:2])
  if simd is None or kernel not in _FILTERS:
    return resize(image, size, kernel, None if whole else rest)
  if whole and image.shape[:2] == size:
    return image
  kind = simd.PixelType.U8 if image.shape[-1] == 1 else simd.PixelType.U8x3
  source = simd.ImageData(*image.shape[1::-1], kind, image.tobytes())
  target = simd.ImageData(*size[::-1], kind)
  options = simd.ResizeOptions(
    simd.ResizeAlg.convolution(simd.FilterType[_FILTERS[kernel]]),
    use_alpha=False,
    crop_box=None if whole else simd.CropBox(rest[1], rest[0], w, h),
  )
  simd.Resizer().resize(source, target, options)
  pixels = np.frombuffer(target.get_buffer(), np.uint8)
  return pixels.reshape(*size, -1)


def nearest(mask, size: tuple[int, int], box: Box | None = None):
  """A mask (h, w), or a box of it, at another size: no label is between two."""
  top, left, h, w = box or (0, 0, *mask.shape)
  rows, columns = (
    (start + (np.arange(count) + 0.5) * (length / count)).astype(np.intp)
    for start, length, count in ((top, h, size[0]), (left, w, size[1]))
  )
  return mask[rows][:, columns]
