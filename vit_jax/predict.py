"""Predictions for image files, by a checkpoint of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.data import ops
from vit_jax.errors import UserError
from vit_jax.setup import Setup


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
  pipeline, images = _pipeline(setup.config.data.test.ops), []
  for file in files:
    context = ops.Context(setup.info.size, setup.info.channels, key=str(file))
    data = file.read_bytes()
    ops.check('config.data.test.ops', pipeline, data, context)
    images.append(pipeline(data, context))
  return images


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
  images = read(setup, files)
  predict = jax.jit(setup.task.predict, static_argnums=0)
  for file, image in zip(files, images, strict=True):
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
