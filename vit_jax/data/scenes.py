"""Scenes of real digits on clutter, with a class for each pixel."""

import hashlib
import math
import statistics

import cv2
import numpy as np

from vit_jax.data.context import generator
from vit_jax.data.sources import (
  Digits,
  Record,
  place_of,
  split_base,
  split_range,
)
from vit_jax.errors import UserError

_LENGTHS = {'train': 20_000, 'test': 500}
_COUNT = (2, 4)  # digits in 64x64 pixels
_SIZE = (20.0, 30.0)  # of a digit, pixels
_EDGE = 11  # pixels from it to the middle of a digit, at least
_TURN = math.radians(20)  # at most, either way
_DARKEST, _LIGHTEST = 20, 110  # greys of the background before noise
_CONTRAST = (90, 150)  # of a digit, above the lightest
# Of the ink of an enlarged digit: from here on it is the digit's pixel. Edges
# are made steeper about it, so that a label is what is seen.
_INK, _STEEP = 102, 4.0
_ALPHA = np.clip((np.arange(256) - _INK) / 255 * _STEEP + 0.5, 0, 1)
_ALPHA = _ALPHA.astype(np.float32)
# Normal noise of 8 grey levels by a random byte: a tenth of the time.
_NORMAL = statistics.NormalDist(0, 8)
_NOISE = np.array([_NORMAL.inv_cdf((i + 0.5) / 256) for i in range(256)], 'f4')


def _lay(
  canvas: np.ndarray, glyph: np.ndarray, grey: float, place: tuple[float, ...]
) -> tuple[tuple[slice, slice], np.ndarray]:
  """Draws a glyph; gives where, and which pixels there are its own.

  Args:
    canvas: (side, side) float32, drawn on.
    glyph: ink, uint8 (k, k).
    grey: to draw it in.
    place: x and y of its middle and its size in pixels, and radians.
  """
  x, y, size, angle = place
  reach = math.ceil(0.72 * size)
  left, top = max(0, round(x) - reach), max(0, round(y) - reach)
  where = (slice(top, round(y) + reach), slice(left, round(x) + reach))
  part = canvas[where]
  scale = len(glyph) / size
  cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
  middle, x, y = (len(glyph) - 1) / 2, x - left, y - top
  matrix = (
    (cos, sin, middle - cos * x - sin * y),
    (-sin, cos, middle + sin * x - cos * y),
  )
  ink = cv2.warpAffine(
    glyph,
    np.array(matrix),
    part.shape[::-1],
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
  )
  part += cv2.LUT(ink, _ALPHA) * (grey - part)
  return where, ink >= _INK


def _enlarged(glyph: np.ndarray) -> np.ndarray:
  """Four times as large, smooth, so that a warp may be bilinear."""
  return cv2.resize(glyph, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
  """A gradient, strokes on it."""
  corners = rng.uniform(_DARKEST, _LIGHTEST, (2, 2)).astype(np.float32)
  canvas = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
  count = int(rng.integers(3, 8)) * side // 64
  ends = rng.integers(-8, side + 8, (count, 4)).tolist()
  greys = rng.uniform(_DARKEST, _LIGHTEST + 60, count).tolist()
  for i, (x, y, to_x, to_y) in enumerate(ends):
    width = 1 + i % 3
    cv2.line(canvas, (x, y), (to_x, to_y), greys[i], width, cv2.LINE_AA)
  return canvas


class DigitScenes:
  """Real digits at random places, by pixel: `digit_scenes` or `:SIDE`.

  Grey, SIDE (64) pixels square, with 2 to 4 digits of 20 to 30 pixels (more in
  larger scenes, by the area), turned, in greys of their own, the later ones on
  top; on a gradient with strokes, noise, and pieces of digits that are none.
  Those of 'train' (20,000 scenes) and of 'test' (500) are of the same splits of
  `Digits`. A scene is a pure function of (split, index, SIDE); where all fit
  `cache_mb` each is drawn once.
  """

  classes = ('background', *Digits.classes)
  channels = 1
  masks = True

  def __init__(self, argument: str, split: str, *, cache_mb: int = 512):
    side = argument or '64'
    if not side.isdecimal() or not 32 <= int(side) <= 1024:
      raise UserError(
        f"config.data.name = 'digit_scenes:{argument}': write 'digit_scenes' "
        "or, for another side than 64 pixels, 'digit_scenes:96' (32 to 1024)."
      )
    self._side, self._split = int(side), split_base(split)
    if self._split not in _LENGTHS:
      raise UserError(
        f"digit_scenes has no split {self._split!r}, only 'train' and 'test'."
      )
    self._indices = split_range(split, _LENGTHS[self._split])
    self.size = (self._side, self._side)
    digits = Digits('', self._split)
    records = [digits[i] for i in range(len(digits))]
    self._digits = [(_enlarged(r['image']), r['label']) for r in records]
    self._seed = place_of(f'digit_scenes {self._split} {side}')
    size = 2 * self._side**2 * len(self)
    self._kept: dict[int, Record] | None = (
      {} if size <= cache_mb * 2**20 else None
    )
    sha = hashlib.sha256(f'{self.size} {self._indices}'.encode())
    sha.update(digits.fingerprint.encode())
    for index in range(0, len(self), max(1, len(self) // 8)):
      record = self[index]
      sha.update(record['image'].tobytes() + record['label'].tobytes())
    self.fingerprint = sha.hexdigest()

  def __len__(self) -> int:
    return len(self._indices)

  def _places(
    self, rng: np.random.Generator, count: int
  ) -> list[tuple[float, ...]]:
    """x, y, size, radians of each; of eight places the one with most room."""
    room = self._side - 2 * _EDGE
    places: list[tuple[float, ...]] = []
    for u in rng.random((count, 18)).tolist():
      best, xy = -1.0, (0.0, 0.0)
      for i in range(8):
        x, y, near = _EDGE + room * u[i], _EDGE + room * u[i + 8], math.inf
        for other in places:
          away = (x - other[0]) ** 2 + (y - other[1]) ** 2
          near = away if away < near else near
        if near > best:
          best, xy = near, (x, y)
      size = _SIZE[0] + (_SIZE[1] - _SIZE[0]) * u[16]
      places.append((*xy, size, _TURN * (2 * u[17] - 1)))
    return places

  def _key(self, number: int) -> str:
    return f'digit_scenes {self._split} {number}'

  def key(self, index: int) -> str:
    return self._key(self._indices[index])

  def __getitem__(self, index: int) -> Record:
    number = self._indices[index]
    if self._kept is None:
      return self._draw(number)
    if number not in self._kept:
      self._kept[number] = self._draw(number)
    return self._kept[number]

  def _draw(self, number: int) -> Record:
    rng = generator((self._seed, number))
    canvas = _ground(rng, self._side)
    area = self._side**2 / 64**2
    low, high = (max(1, round(n * area)) for n in _COUNT)
    count = int(rng.integers(low, high + 1))
    pieces = int(rng.integers(1, 4) * area)
    which = rng.integers(len(self._digits), size=count + pieces).tolist()
    greys = rng.uniform(*_CONTRAST, count + pieces).tolist()
    places = self._places(rng, count + pieces)
    mask = np.zeros(canvas.shape, np.uint8)
    # Pieces first: what lies on a digit would have its class.
    for i in range(count, count + pieces):
      glyph, _ = self._digits[which[i]]
      k = len(glyph) // 8
      start = which[i] % 6 * k
      piece = np.zeros_like(glyph)  # but for three of eight rows: no digit
      piece[start : start + 3 * k] = glyph[start : start + 3 * k]
      _lay(canvas, piece, _LIGHTEST + greys[i], places[i])
    for i in range(count):
      glyph, label = self._digits[which[i]]
      where, own = _lay(canvas, glyph, _LIGHTEST + greys[i], places[i])
      np.putmask(mask[where], own, 1 + label)
    noise = np.frombuffer(rng.bytes(mask.size), np.uint8).reshape(mask.shape)
    canvas += cv2.LUT(noise, _NOISE)
    # Rounded and clipped, with one channel.
    image = cv2.convertScaleAbs(np.maximum(canvas, 0))[..., None]
    return {'image': image, 'label': mask, 'key': self._key(number)}
