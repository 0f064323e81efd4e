"""A contact sheet: many small pictures with captions, as one PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE, _LEAST = 8, 14, 96


def _fit(text: str, font: Any, width: int) -> str:
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '…') > width:
    text = text[:-1]
  return text + '…'


def _rows_of(
  names: Sequence[str], font: Any, width: int
) -> tuple[list[tuple[int, int]], int]:
  """Where names stand in lines of a width, and how high those are."""
  places, x, y = [], _GAP, 0
  for name in names:
    wide = math.ceil(font.getlength(name)) + 14 + 2 * _GAP
    if x > _GAP and x + wide > width:
      x, y = _GAP, y + _LINE + 2
    places.append((x, y))
    x += wide
  return places, y + _LINE + _GAP if names else 0


def draw_contact_sheet(
  images: np.ndarray,
  captions: Sequence[str],
  title: str,
  path: Path,
  columns: int = 0,
  legend: Sequence[tuple[str, tuple[int, ...]]] = (),
):
  """Writes images uint8 (n, h, w, c) with a line under each.

  Small ones are enlarged by a whole factor, without smoothing, so that every
  pixel can be seen. `columns`: 0, as many as make the sheet wide. `legend`:
  what colours mean, (name, RGB), below the pictures.
  """
  n, h, w, c = images.shape
  zoom = max(1, round(_LEAST / max(h, w / 2)))
  h, w = h * zoom, w * zoom
  wide = max(1, min(n, math.ceil(math.sqrt(1.5 * n * h / w))))
  columns = min(columns, n) or wide
  rows = math.ceil(n / columns)
  width = columns * (w + _GAP) + _GAP
  height = rows * (h + _LINE + _GAP) + _LINE + 2 * _GAP
  font = ImageFont.load_default(11)
  places, below = _rows_of([name for name, _ in legend], font, width)
  sheet = Image.new('RGB', (width, height + below), '#f4f4f2')
  draw = ImageDraw.Draw(sheet)
  for (name, color), (x, y) in zip(legend, places, strict=True):
    y += height
    draw.rectangle((x, y + 2, x + 10, y + 12), fill=color, outline='#888')
    draw.text((x + 14, y), name, fill='#222', font=font)
  draw.text(
    (_GAP, _GAP), _fit(title, font, width - 2 * _GAP), fill='#222', font=font
  )
  for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
    x = _GAP + (i % columns) * (w + _GAP)
    y = 2 * _GAP + _LINE + (i // columns) * (h + _LINE + _GAP)
    picture = Image.fromarray(image[..., 0] if c == 1 else image)
    sheet.paste(picture.resize((w, h), Image.Resampling.NEAREST), (x, y))
    draw.text((x, y + h + 1), _fit(caption, font, w), fill='#222', font=font)
  path.parent.mkdir(parents=True, exist_ok=True)
  sheet.save(path)
