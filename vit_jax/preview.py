"""Looking at data before training on them: what the model is fed."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax import step as step_lib
from vit_jax.data import ops
from vit_jax.data.loader import Batch
from vit_jax.data.sources import IGNORE
from vit_jax.errors import UserError
from vit_jax.setup import Setup
from vit_jax.viz.contact_sheet import draw_contact_sheet
from vit_jax.viz.overlay import legend, overlay


def draw(setup: Setup, split: str, number: int, count: int, output: Path):
  """Draws what the model is fed: a batch after the ops, and after mixing.

  Args:
    setup: of the config.
    split: 'train', or another group of config.data.
    number: of the batch, from 0.
    count: pictures.
    output: the PNG to write.
  """
  if not 0 <= number < 2**40 or count < 1:
    raise UserError(
      f'--batch={number}: from 0 to {2**40}; --count={count}: from 1.'
    )
  train = split == 'train'
  source = setup.train_source if train else setup.source(split)
  loader = setup.loader(split, source)
  with jax.set_mesh(setup.mesh):
    if train:
      batch = loader.train_batch(number)
      key = step_lib.key_for(setup.config.seed, number, 'mix')
      batch = setup.task.augment(batch, key)
    else:
      batch = loader.eval_batch(number)
  batch = {name: np.asarray(array) for name, array in batch.items()}
  rows = np.flatnonzero(batch['mask'])[:count]
  if not len(rows):
    raise UserError(f'--batch={number}: split {split!r} has no such batch.')
  names = setup.info.classes
  group = split if hasattr(setup.config.data.get(split), 'ops') else 'test'
  texts = setup.config.data[group].ops
  pixels = ops.undo(texts, batch['image'][rows])
  title = (
    f'{setup.config.data.name}, {split}, batch {number}: {" ".join(texts)}'
  )
  if loader.masks:
    labels = batch['label'][rows].astype(np.uint8)
    pixels = np.concatenate(
      [overlay(pixels, labels, 0.0), overlay(pixels, labels)], -2
    )
    captions = [_shares(mask, names) for mask in labels]
    meaning = legend(labels, names)
    draw_contact_sheet(pixels, captions, title, output, legend=meaning)
    return
  captions = [_caption(batch, row, names) for row in rows.tolist()]
  draw_contact_sheet(pixels, captions, title, output)


def _caption(batch: Batch, row: int, names: Sequence[str]) -> str:
  """The class of an image, or of the two that are mixed."""
  caption = names[batch['label'][row]]
  share = batch['share'][row] if 'share' in batch else 1.0
  if share < 1:
    other = names[batch['other'][row]]
    caption = f'{caption}: {share:.0%},  {other}: {1 - share:.0%}'
  return caption


def _shares(mask: np.ndarray, names: Sequence[str]) -> str:
  """Classes in a mask, the largest first."""
  counts = np.bincount(mask.ravel(), minlength=256)
  order = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
  return ', '.join(
    f'{"ignored" if i == IGNORE else names[i]} {counts[i] / mask.size:.0%}'
    for i in order.tolist()
  )
