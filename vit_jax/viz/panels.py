"""What a model makes of pictures, beside them: reconstructions, segmentations.

A task with a method `show` has them: a run draws its first examples at each
evaluation, and `viz` those it is given.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from vit_jax import distributed
from vit_jax.data import ops
from vit_jax.data.loader import Loader
from vit_jax.evaluators.view import fetch
from vit_jax.setup import Setup
from vit_jax.viz.contact_sheet import draw_contact_sheet
from vit_jax.viz.overlay import COLORS

_EXAMPLES = 16  # of a split


def pixels(
  setup: Setup,
  images: Float[np.ndarray, 'B h w c'] | Int[np.ndarray, 'B h w'],
) -> UInt8[np.ndarray, 'B h w d']:
  """Images in the model's range of values -> bytes; classes -> colours."""
  if images.ndim == 3:
    return COLORS[images]
  texts = setup.config.data.test.ops
  return np.stack([ops.undo(texts, image) for image in images])


def draw(
  setup: Setup, params: Any, batch: dict[str, Any], title: str, path: Path
):
  """Writes what `show` gives of a batch as one PNG, an example after another.

  By the first process; all have to call it.
  """
  show = jax.jit(setup.task.show, static_argnums=0)
  found = fetch(show(setup.apply, params, batch) | {'mask': batch['mask']})
  if not distributed.primary():
    return
  kept = np.flatnonzero(found.pop('mask'))[:_EXAMPLES]
  shown = {name: pixels(setup, images[kept]) for name, images in found.items()}
  if len({images.shape[-1] for images in shown.values()}) > 1:  # grey, RGB
    shown = {n: np.broadcast_to(x, (*x.shape[:3], 3)) for n, x in shown.items()}
  rows = [images[i] for i in range(len(kept)) for images in shown.values()]
  draw_contact_sheet(
    np.stack(rows),
    list(shown) * len(kept),
    title,
    path,
    columns=2 * len(shown),
  )


def draw_split(
  setup: Setup, params: Any, loader: Loader, name: str, step: int, path: Path
):
  """The first examples of a split, into PATH/panels, if the task has any."""
  if hasattr(setup.task, 'show'):
    title = f'{setup.config.task.name}, {name}, step {step}'
    file = path / 'panels' / f'{name}_{step:07d}.png'
    draw(setup, params, loader.eval_batch(0), title, file)
