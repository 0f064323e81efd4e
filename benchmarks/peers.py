"""Those who load pictures: a function each, from a folder to a measurement.

What a peer returns is called with (batches to drop, batches to time) and gives
images a second; it keeps its iterator between calls.
"""

import dataclasses
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH, SIZE = 64, 224
OURS = ('decode', 'inception_crop', 'flip', 'range(-1, 1)')
Measure = Callable[[int, int], float]


def _files(folder: Path) -> list[str]:
  return sorted(map(str, (folder / 'jpeg' / 'train').rglob('*.jpeg')))


def _timed(batches: Iterator[Any], ready: Callable = lambda x: x) -> Measure:
  def measure(dropped: int, count: int) -> float:
    for _ in range(dropped):
      next(batches)
    begun = time.perf_counter()
    for _ in range(count):
      ready(next(batches))
    return count * BATCH / (time.perf_counter() - begun)

  return measure


def config_of(folder: Path, texts: tuple[str, ...], **fields: Any) -> Any:
  from vit_jax import config

  values = {
    'size': SIZE,
    'batch_size': BATCH,
    'model': {'variant': 'Ti/16'},
    'data': {
      'name': f'folder:{folder}',
      'cache_mb': 0,
      'train': {'ops': texts},
      'test': {'ops': ('decode', 'fit', 'range(-1, 1)')},
    },
  }
  for name, value in fields.items():
    group, _, key = name.partition('__')
    target = values.setdefault(group, {}) if key else values
    target[key or group] = value
  return config.resolve(values)


def _setup(folder: Path, texts: tuple[str, ...], **fields: Any) -> Any:
  from vit_jax.setup import Setup

  return Setup(config_of(folder, texts, **fields))


def stream(setup: Any) -> Iterator[Any]:
  return setup.loader('train', setup.train_source).train(0, 10**9)


def ours(folder: Path) -> Measure:
  """The loader of this project, JPEGs read from the disk's cache."""
  import jax

  return _timed(stream(_setup(folder / 'jpeg', OURS)), jax.block_until_ready)


def _bytes(setup: Any) -> Iterator[Any]:
  """Batches as they reach an accelerator, uint8: the work of the host alone."""
  from vit_jax.data import ops

  pipeline = ops.build('ops', setup.config.data.train.ops[:-1])
  pipeline.dtype = np.dtype(np.uint8)  # the last op is the accelerator's
  loader = setup.loader('train', setup.train_source)
  return dataclasses.replace(loader, pipeline=pipeline).train(0, 10**9)


def ours_bytes(folder: Path) -> Measure:
  """As `ours`, without the conversion to float32 on the device."""
  return _timed(_bytes(_setup(folder / 'jpeg', OURS)))


def in_memory(folder: Path) -> Measure:
  """Pictures of the model's size, decoded once, without that conversion."""
  texts = ('flip', 'range(-1, 1)')
  setup = _setup(folder / 'png', texts, data__cache_mb=4096)
  measure = _timed(_bytes(setup))
  return lambda dropped, count: measure(dropped, 8 * count)


def pillow(data: bytes, rng: np.random.Generator) -> np.ndarray:
  """torchvision's RandomResizedCrop and flip by Pillow, antialiased."""
  from vit_jax.data.geometry import inception_box

  image = Image.open(io.BytesIO(data)).convert('RGB')
  top, left, h, w = inception_box(image.height, image.width, rng, 0.08, 1.0)
  image = image.crop((left, top, left + w, top + h))
  image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
  if rng.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image, np.float32) / 127.5 - 1


class _TorchSet:
  def __init__(self, files: list[str]):
    self._files = files

  def __len__(self) -> int:
    return 10**9

  def __getitem__(self, index: int):
    data = Path(self._files[index % len(self._files)]).read_bytes()
    return pillow(data, np.random.default_rng(index)), index % 2


def torch(folder: Path) -> Measure:
  """A DataLoader with two worker processes and Pillow."""
  from torch.utils.data import DataLoader

  loader = DataLoader(_TorchSet(_files(folder)), BATCH, num_workers=2)
  return _timed(iter(loader))


def tf_data(folder: Path) -> Measure:
  """decode_and_crop_jpeg and tf.image.resize, as big_vision and others do."""
  import tensorflow as tf

  def load(path):
    data = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(data)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      shape,
      tf.zeros((0, 0, 4), tf.float32),
      area_range=(0.08, 1),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (SIZE, SIZE))
    return tf.image.random_flip_left_right(image) / 127.5 - 1

  data = tf.data.Dataset.from_tensor_slices(_files(folder)).repeat()
  data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE)
  data = data.batch(BATCH).prefetch(2)
  return _timed(data.as_numpy_iterator())


def grain(folder: Path) -> Measure:
  """Grain's MapDataset with its reading threads, and Pillow."""
  import grain as pygrain

  files = _files(folder)

  def load(index: int):
    data = Path(files[index % len(files)]).read_bytes()
    return pillow(data, np.random.default_rng(index))

  data = (
    pygrain.MapDataset.range(10**9)
    .map(load)
    .to_iter_dataset(pygrain.ReadOptions(prefetch_buffer_size=2 * BATCH))
  )
  return _timed(iter(data.batch(BATCH)))


PEERS: dict[str, Callable[[Path], Measure]] = {
  'ours': ours,
  'ours, to the device': ours_bytes,
  'ours, 224x224 in memory, to the device': in_memory,
  'torch + Pillow': torch,
  'tf.data, not antialiased': tf_data,
  'Grain + Pillow': grain,
}
_NEEDS = {
  'torch + Pillow': 'torch',
  'tf.data, not antialiased': 'tensorflow',
  'Grain + Pillow': 'grain',
}


def missing(name: str) -> str:
  """Why a peer cannot take part, or ''."""
  module = _NEEDS.get(name)
  if module is None or importlib.util.find_spec(module):
    return ''
  return f'{module} is not installed'


def agreement(folder: Path) -> dict[str, float]:
  """Mean difference from Pillow on a whole picture, in levels of 255."""
  from vit_jax.data import images, resample

  file = _files(folder)[0]
  data = Path(file).read_bytes()
  with Image.open(file) as image:
    wanted = np.asarray(
      image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32
    )
  pixels = images.decode(data, 3, file)
  box = (0, 0, *pixels.shape[:2])
  found = {'ours': resample.crop(pixels, box, (SIZE, SIZE), 'bilinear')}
  if not missing('tf.data, not antialiased'):
    import tensorflow as tf

    image = tf.image.decode_jpeg(data, channels=3)
    found['tf.data, not antialiased'] = tf.image.resize(
      image, (SIZE, SIZE)
    ).numpy()
  return {
    name: float(np.abs(image.astype(np.float32) - wanted).mean())
    for name, image in found.items()
  }
