"""Other sets: ImageNet-V2, -A, -R, -Sketch, -C, and anybody's own."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from vit_jax.data import SOURCES, open_split, source_fields
from vit_jax.data.loader import Loader
from vit_jax.data.sources import Record, Source, key_of, location, parse_name
from vit_jax.errors import UserError, check_choice, did_you_mean
from vit_jax.evaluators.view import View

# Names for `on`: (config.data.name, split) of tfds.
SETS = {
  'imagenet_v2': ('tfds:imagenet_v2/matched-frequency', 'test'),
  'imagenet_a': ('tfds:imagenet_a', 'test'),
  'imagenet_r': ('tfds:imagenet_r', 'test'),
  'imagenet_sketch': ('tfds:imagenet_sketch', 'test'),
}

# Of these 200 classes occur, but tfds declares all 1,000 (arXiv 1907.07174,
# 2006.16241).
_OF_SOME = re.compile(r'tfds:imagenet_[ar]([/:].*)?')

# Mean errors of AlexNet over five severities, by which ImageNet-C's are divided
# (arXiv 1903.12261; github.com/hendrycks/robustness).
ALEXNET = {
  'gaussian_noise': 0.886428,
  'shot_noise': 0.894468,
  'impulse_noise': 0.922640,
  'defocus_blur': 0.819880,
  'glass_blur': 0.826268,
  'motion_blur': 0.785948,
  'zoom_blur': 0.798360,
  'snow': 0.866816,
  'frost': 0.826572,
  'fog': 0.819324,
  'brightness': 0.564592,
  'contrast': 0.853204,
  'elastic_transform': 0.646056,
  'pixelate': 0.717840,
  'jpeg_compression': 0.606500,
}


class _Relabelled:
  """A source with the labels of the model's classes.

  Attributes:
    answers: the model's number of each class of the source's own.
  """

  def __init__(
    self, source: Source, classes: tuple[str, ...], answers: list[int]
  ):
    self._source, self.classes, self.answers = source, classes, answers
    self.size, self.channels = source.size, source.channels
    self.fingerprint = source.fingerprint
    self.masks = getattr(source, 'masks', False)  # which the loader refuses

  def __len__(self) -> int:
    return len(self._source)

  def key(self, index: int) -> str:
    return key_of(self._source, index)

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    return record | {'label': self.answers[record['label']]}


@contextlib.contextmanager
def _named(call: str) -> Iterator[None]:
  """What is wrong with an evaluator's own data is told of its call.

  Sources name fields of config.data, which say nothing of these data.
  """
  try:
    yield
  except UserError as error:
    text = str(error).removeprefix('config.data.name = ')
    text = text.replace('(config.data.data_dir)', '(TFDS_DATA_DIR)')
    raise UserError(f'{call}: {text}') from error


def _relabelled(
  call: str, source: Source, classes: tuple[str, ...]
) -> _Relabelled:
  """With the number of the class of the same name.

  Where not one name is the same, and there are as many: with the same number,
  which is told with the evaluator's `call`.

  Raises:
    UserError: a class that the model does not have.
  """
  numbers = {own: number for number, own in enumerate(classes)}
  missing = [own for own in source.classes if own not in numbers]
  if not missing:
    labels = [numbers[own] for own in source.classes]
  elif len(missing) == len(source.classes) == len(classes):
    logging.warning(
      "%s: no class is named as one of the model's: matched by number", call
    )
    labels = list(range(len(classes)))
  else:
    raise UserError(
      f"its class {missing[0]!r} is none of the model's {len(classes)}."
      + did_you_mean(missing[0], classes)
    )
  return _Relabelled(source, classes, labels)


def _open(
  setup: Any,
  call: str,
  name: str,
  split: str,
  published: bool = False,
  whole: bool = False,
) -> Loader:
  """Of a split whose first picture can be read, by the ops of 'test'."""
  kind, path = parse_name(name)
  check_choice('data', kind, SOURCES)
  if not split:
    parts = [location(path) / part for part in ('train', 'val', 'test')]
    bare = kind == 'folder' and not any(part.is_dir() for part in parts)
    split = 'all' if bare else 'test'
  data = setup.config.data
  known = source_fields(name)
  fields = {k: v for k, v in data.items() if k in known and k != 'index_dir'}
  if published:  # whose features are not named as the training set's may be
    fields = {k: v for k, v in fields.items() if not k.endswith('_feature')}
  source = open_split(name, split, on_error=data.on_error, **fields)
  source = _relabelled(call, source, setup.info.classes)
  return setup.loader('test', source, whole)


def error_on(
  view: View, loader: Loader, name: str, occurring: bool = False
) -> tuple[float, int]:
  """Share of wrong answers, and how many classes could be answered.

  Args:
    view: of the model.
    loader: of the set, whose classes are the answers.
    name: of what each example has, to be kept.
    occurring: only classes that occur are answers.
  """
  rows, known = view.logits(loader), loader.source.answers
  answers = np.unique(rows['label'] if occurring else known)
  predicted = answers[rows['logits'][:, answers].argmax(1)]
  kept = {'record': rows['record'], 'label': rows['label']}
  view.keep(name, **kept, prediction=predicted)
  return float((predicted != rows['label']).mean()), len(answers)


def other_set(
  setup: Any, data: str, split: str = ''
) -> tuple[str, str, Loader]:
  """What `on` needs: as config.data.name, its split, the loader."""
  call = f'on({data!r})'
  name, split = SETS.get(data, (data, split))
  if ':' not in name and name not in SOURCES:
    choices = [*SETS, *(f'{kind}:...' for kind in SOURCES)]
    check_choice(f'{call}: data', data, choices)
  with _named(call):
    return name, split, _open(setup, call, name, split, data in SETS)


def on(view: View, data: str, split: str = '') -> dict[str, float]:
  """Accuracy on another set, its classes matched by name.

  Only its own classes are answers: all that it declares, of ImageNet-A and -R
  the 200 that occur. How many they are is the second metric.

  Args:
    view: of the model.
    data: a name of `SETS`, or as config.data.name.
    split: of the latter; '': 'test', or all of a folder of class folders.
  """
  name, split, loader = other_set(view.setup, data, split)
  view = view.of(loader.source, f'{data} {split}'.rstrip())
  short = data if data in SETS else re.sub(r'[^A-Za-z0-9_]+', '_', data)
  short = f'on_{short.strip("_")}'
  some = bool(_OF_SOME.fullmatch(name))
  with _named(f'on({data!r})'):
    error, classes = error_on(view, loader, short, some)
  return {short: 1 - error, f'{short}_classes': float(classes)}


_CORRUPTED = 'tfds:imagenet2012_corrupted/{corruption}_{severity}'


def corrupted_sets(
  setup: Any, data: str = _CORRUPTED, split: str = 'validation'
) -> dict[str, list[Loader]]:
  """What `imagenet_c` needs: by corruption, five loaders each."""
  for part in ('{corruption}', '{severity}'):
    if part not in data:
      raise UserError(f'imagenet_c({data!r}): it has no {part}.')

  def opened(corruption, severity):
    name = data.replace('{corruption}', corruption)
    name = name.replace('{severity}', str(severity))
    call = f'imagenet_c({name!r})'
    with _named(call):
      return _open(setup, call, name, split, published=True, whole=True)

  return {
    corruption: [opened(corruption, severity) for severity in range(1, 6)]
    for corruption in ALEXNET
  }


def imagenet_c(
  view: View, data: str = _CORRUPTED, split: str = 'validation'
) -> dict[str, float]:
  """Error on each corruption, and `mce`, the mean of them over AlexNet's.

  AlexNet saw the pictures as they are stored, at 224 pixels; so does a model of
  that size, whatever its own ops resize and crop. To another size they are
  fitted.

  Args:
    view: of the model.
    data: as config.data.name, with {corruption} and {severity}, 1 to 5.
    split: of each.
  """
  errors = {}
  for corruption, five in corrupted_sets(view.setup, data, split).items():
    found = []
    for severity, loader in enumerate(five, 1):
      name = f'imagenet_c_{corruption}_{severity}'
      own = view.of(loader.source, name)
      found.append(error_on(own, loader, name)[0])
    errors[corruption] = float(np.mean(found))
  relative = [error / ALEXNET[name] for name, error in errors.items()]
  named = {f'imagenet_c_{name}': error for name, error in errors.items()}
  return named | {'mce': float(np.mean(relative))}
