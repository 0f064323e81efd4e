"""Predictions for image files, by a checkpoint of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.data import images, ops
from vit_jax.errors import UserError
from vit_jax.setup import Setup
from vit_jax.viz.overlay import draw_masks


def _pipeline(texts: tuple[str, ...]) -> ops.Pipeline:
  """The ops of an evaluation, for files of any size."""
  texts = texts if texts[:1] == ('decode',) else ('decode', *texts)
  sized = ('fit', 'resize', 'central_crop')
  if not any(text.startswith(sized) for text in texts):
    texts = ('decode', 'fit', *texts[1:])  # data of one size do without
  return ops.build('config.data.test.ops', texts)


def read(setup: Setup, files: Sequence[Path]) -> list[np.ndarray]:
  """Image files as the model is fed them, through the config's 'test' ops.

  Raises:
    UserError: a file that is not an image.
  """
  missing = [str(file) for file in files if not file.is_file()]
  if missing:
    raise UserError(f'no such image file: {", ".join(missing)}')
  pipeline, found = _pipeline(setup.config.data.test.ops), []
  for file in files:
    context = ops.Context(setup.info.size, setup.info.channels, key=str(file))
    data = file.read_bytes()
    ops.check('config.data.test.ops', pipeline, data, context)
    found.append(pipeline(data, context))
  return found


def segment(
  setup: Setup,
  params: Any,
  files: Sequence[Path],
  output: Path | None = None,
  whole: bool = False,
) -> Iterator[dict[str, Any]]:
  """For each file {'file', 'overlay', 'shares': {class: of the pixels}}.

  Args:
    setup, params: of a run of segmentation.
    files: pictures of any size.
    output: a folder for NAME.segmentation.png; None: beside each picture.
    whole: the picture at once, instead of by sliding windows.

  Raises:
    UserError: a file that is not an image, before any is predicted.
  """
  from vit_jax.windows import Segmenting

  read(setup, files)
  paths = [(output or f.parent) / f'{f.stem}.segmentation.png' for f in files]
  double = [str(p) for p in paths if paths.count(p) > 1]
  if double:
    raise UserError(f'two pictures would be written to {double[0]}.')
  given = ((file.read_bytes(), str(file)) for file in files)
  found = Segmenting(setup, params, whole=whole).classes(given)
  names = setup.info.classes
  for file, path, mask in zip(files, paths, found, strict=True):
    picture = images.decode(file.read_bytes(), setup.info.channels, str(file))
    draw_masks(picture, {'mask': mask}, names, file.name, path)
    counts = np.bincount(mask.ravel(), minlength=len(names))
    shares = {names[i]: counts[i] / mask.size for i in np.argsort(-counts)}
    yield {'file': str(file), 'overlay': str(path), 'shares': shares}


def run(
  setup: Setup, params: Any, files: Sequence[Path], *, top: int = 5
) -> Iterator[dict[str, Any]]:
  """For each file {'file', 'predictions': [{'class', 'probability'}, ...]}.

  Raises:
    UserError: a file that is not an image, before any is predicted.
  """
  if hasattr(setup.task, 'show'):
    raise UserError(
      f'a run of config.task.name = {setup.config.task.name!r} predicts no '
      'classes: `vit_jax viz` draws what it makes of pictures.'
    )
  given = read(setup, files)
  predict = jax.jit(setup.task.predict, static_argnums=0)
  for file, image in zip(files, given, strict=True):
    probabilities = np.asarray(predict(setup.apply, params, image[None]))[0]
    order = np.argsort(-probabilities, kind='stable')[:top]
    yield {
      'file': str(file),
      'predictions': [
        {
          'class': setup.info.classes[i],
          'probability': float(probabilities[i]),
        }
        for i in order
      ],
    }
