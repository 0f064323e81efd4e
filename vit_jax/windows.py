"""Classes of the pixels of pictures of any size: sliding windows, or whole.

Pictures are made as large as the evaluation's ops make them, but nothing is cut
off. Windows of the model's size slide over them, and where they overlap their
logits are averaged (as in Segmenter, arXiv 2105.05633, section 4.2); the
logits are enlarged to the picture before the best class is chosen.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from vit_jax.data import images, ops
from vit_jax.evaluators.view import local_mesh
from vit_jax.weights.refit import refit

_FIELD = 'config.data.test.ops'
_BATCH = 16  # windows at a time
# Ops that give pictures their size; of 'resize_small' the number is kept.
_SIZED = (
  'resize',
  'fit',
  'central_crop',
  'random_crop',
  'crop_or_pad',
  'inception_crop',
  'scale_jitter',
)


def scaled(
  texts: tuple[str, ...], size: tuple[int, int], side: int
) -> tuple[str, ...]:
  """The ops of an evaluation, but that pictures keep their shape.

  Args:
    texts: of config.data.test.ops.
    size: of the model.
    side: shorter side of the pictures; 0: what `resize_small` says or, where
      the ops resize otherwise, the model's; as they are where none does.
  """
  names = [text.partition('(')[0].strip() for text in texts]
  pairs = list(zip(names, texts, strict=True))
  how = next((text for name, text in pairs if name == 'resize_small'), '')
  if not how and any(name in ('resize', 'fit') for name in names):
    how = f'resize_small({min(size)})'
  if side:
    how = f'resize_small({side})'
  left = ('decode', 'resize_small', *_SIZED)
  rest = [text for name, text in pairs if name not in left]
  return ('decode', *([how] if how else []), *rest)


def starts(length: int, window: int, stride: float) -> list[int]:
  """Where windows begin along a side; the last one ends with the picture.

  Args:
    length: of the side, at least `window`.
    window: pixels.
    stride: from one to the next, of the window; above 0, at most 1.
  """
  step = max(1, round(window * stride))
  count = 1 + math.ceil((length - window) / step)
  return [min(i * step, length - window) for i in range(count)]


def enlarge(
  scores: Float[np.ndarray, 'h w Y'], size: tuple[int, int]
) -> Float[np.ndarray, 'a b Y']:
  """Bilinearly, by pixel centres; the same where the size is."""
  if scores.shape[:2] == size:
    return scores
  parts = [
    cv2.resize(scores[..., i : i + 4], size[::-1]).reshape(*size, -1)
    for i in range(0, scores.shape[-1], 4)
  ]
  return np.concatenate(parts, -1)


@dataclasses.dataclass
class _Open:
  """A picture of which windows are still to come."""

  size: tuple[int, int]
  total: np.ndarray  # (h, w, Y), of logits
  count: np.ndarray  # (h, w, 1), of windows
  left: int


class Segmenting:
  """A model that tells the classes of pictures, each process by itself."""

  def __init__(
    self,
    setup: Any,
    params: Any,
    *,
    stride: float = 2 / 3,
    side: int = 0,
    whole: bool = False,
  ):
    """Puts the parameters, whole, on each of this process's devices.

    Args:
      setup: of the model.
      params: of it.
      stride: see `starts`.
      side: see `scaled`.
      whole: the picture at once, padded to whole patches; learned positions
        are resampled, and the program is compiled for each size.
    """
    self.setup, self.stride, self.whole = setup, stride, whole
    info, texts = setup.info, setup.config.data.test.ops
    self._pipeline = ops.build(_FIELD, scaled(texts, info.size, side))
    mesh = local_mesh()
    self._divided = NamedSharding(mesh, PartitionSpec('rows'))
    self._each = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(setup.mesh):
      here = multihost_utils.process_allgather(params, tiled=True)
    self._params = jax.device_put(here, self._each)
    self._batch = -(-_BATCH // mesh.size) * mesh.size
    self._at = functools.lru_cache(8)(self._resampled)

    @jax.jit
    def logits(params, images):
      return setup.apply(params, images).astype(jnp.float32)

    self._logits = logits

  def read(self, image: bytes | np.ndarray, key: str) -> np.ndarray:
    """A picture as the model is fed it (h, w, c), float32, of any size."""
    return self._pipeline(image, self._context(key))

  def _context(self, key: str) -> ops.Context:
    info = self.setup.info
    return ops.Context(info.size, info.channels, key=key)

  @functools.cached_property
  def _grey(self) -> np.ndarray:
    """What a grey of 128 is to the model: of it is what lies outside."""
    channels = self.setup.info.channels
    pixel = np.full((64, 64, channels), 128, np.uint8)
    return self._pipeline(pixel, self._context('grey'))[0, 0]

  def _padded(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """At least of a size, below and at the right filled with grey."""
    h, w = image.shape[:2]
    shape = (max(h, size[0]), max(w, size[1]), image.shape[-1])
    if shape == image.shape:
      return image
    result = np.broadcast_to(self._grey, shape).copy()
    result[:h, :w] = image
    return result

  def _resampled(self, size: tuple[int, int]) -> Any:
    """The parameters for pictures of a size."""
    info = self.setup.info
    if size == info.size:
      return self._params
    _, change = refit(self.setup.model, info.size, size)
    flat = flatten_dict(self._params, sep='/')
    table = 'positions/table'
    if table in flat:
      new = change(table, np.asarray(flat[table]))
      flat[table] = jax.device_put(new, self._each)
    return unflatten_dict(flat, sep='/')

  def _at_once(self, image: np.ndarray) -> np.ndarray:
    patch = self.setup.model.patch
    h, w = image.shape[:2]
    size = (-(-h // patch) * patch, -(-w // patch) * patch)
    given = self._padded(image, size)[None]
    found = self._logits(self._at(size), given)
    return np.asarray(found)[0, :h, :w]

  def logits(
    self, pictures: Iterable[Float[np.ndarray, '_ _ c']]
  ) -> Iterator[Float[np.ndarray, '_ _ Y']]:
    """Of each picture, as large as it is given, in the same order."""
    if self.whole:
      yield from map(self._at_once, pictures)
      return
    window, classes = self.setup.info.size, len(self.setup.info.classes)
    waiting: deque[_Open] = deque()
    queue: list[tuple[_Open, int, int, np.ndarray]] = []

    def run():
      batch = np.zeros((self._batch, *queue[0][3].shape), np.float32)
      for row, (*_, part) in enumerate(queue):
        batch[row] = part
      found = self._logits(self._params, jax.device_put(batch, self._divided))
      for of, (picture, y, x, _) in zip(np.asarray(found), queue, strict=False):
        where = (slice(y, y + window[0]), slice(x, x + window[1]))
        picture.total[where] += of
        picture.count[where] += 1
        picture.left -= 1
      queue.clear()

    def finished():
      while waiting and not waiting[0].left:
        picture = waiting.popleft()
        h, w = picture.size
        yield picture.total[:h, :w] / picture.count[:h, :w]

    for image in pictures:
      full = self._padded(image, window)
      h, w = full.shape[:2]
      ys, xs = (
        starts(*x, self.stride) for x in zip((h, w), window, strict=True)
      )
      totals = np.zeros((h, w, classes), np.float32)
      count = np.zeros((h, w, 1), np.float32)
      picture = _Open(image.shape[:2], totals, count, len(ys) * len(xs))
      waiting.append(picture)
      for y in ys:
        for x in xs:
          part = full[y : y + window[0], x : x + window[1]]
          queue.append((picture, y, x, part))
          if len(queue) == self._batch:
            run()
      yield from finished()
    if queue:
      run()
    yield from finished()

  def classes(
    self, pictures: Iterable[tuple[bytes | np.ndarray, str]]
  ) -> Iterator[UInt8[np.ndarray, 'h w']]:
    """Of each pixel of pictures (image, key), at their own size."""
    sizes: deque[tuple[int, int]] = deque()

    def given():
      for image, key in pictures:
        plain = isinstance(image, np.ndarray)
        sizes.append(image.shape[:2] if plain else images.header(image, key)[0])
        yield self.read(image, key)

    for found in self.logits(given()):
      scores = enlarge(found, sizes.popleft())
      yield scores.argmax(-1).astype(np.uint8)
