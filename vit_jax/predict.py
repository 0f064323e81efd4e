"""Predictions for image files, by a checkpoint of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.data import ops
from vit_jax.errors import UserError
from vit_jax.evaluate import load_run


def run(
  workdir: Path,
  files: Sequence[Path],
  *,
  step: int | None = None,
  raw: bool = False,
  top: int = 5,
) -> Iterator[dict[str, Any]]:
  """For each file {'file', 'predictions': [{'class', 'probability'}, ...]}.

  Images go through the ops of the config's 'test', decoded first.

  Raises:
    UserError: a file that is not an image, before any is predicted.
  """
  missing = [str(file) for file in files if not file.is_file()]
  if missing:
    raise UserError(f'no such image file: {", ".join(missing)}')
  setup, _, params = load_run(workdir, step, raw)
  texts = setup.config.data.test.ops
  texts = texts if texts[:1] == ('decode',) else ('decode', *texts)
  pipeline = ops.build('config.data.test.ops', texts)
  images = []
  for file in files:
    context = ops.Context(
      setup.info.size, setup.info.channels, np.random.default_rng(0), str(file)
    )
    data = file.read_bytes()
    try:
      ops.check('config.data.test.ops', pipeline, data, context)
    except UserError:
      texts = (*texts[:1], 'fit', *texts[1:])  # data of one size need no 'fit'
      pipeline = ops.build('config.data.test.ops', texts)
      ops.check('config.data.test.ops', pipeline, data, context)
    images.append(pipeline(data, context))
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
