"""A teacher: a trained model whose logits another one learns from.

DeiT, arXiv 2012.12877, section 4. It sees the student's pictures, mixed and
augmented, in its own range of values and at its own size.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float

from vit_jax import origin
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.weights.formats import Preprocessing
from vit_jax.workdir import DataInfo


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What is known of it before its parameters are read.

  Attributes:
    path: of the weights or of the run.
    model: of them.
    sees: how the teacher's pictures were made.
    given: how the student's are.
  """

  path: str
  model: ViT
  sees: Preprocessing
  given: Preprocessing

  def __call__(
    self, params: Any, images: Float[Array, 'B h w c']
  ) -> Float[Array, 'B Y']:
    """Logits of the student's images."""
    mean, std = (jnp.array(x) for x in (self.given.mean, self.given.std))
    x = images * std + mean
    mean, std = (jnp.array(x) for x in (self.sees.mean, self.sees.std))
    x = (x - mean) / std  # of a grey student's, one channel becomes three
    size = (len(x), *self.sees.size, x.shape[-1])
    x = jax.image.resize(x, size, 'bilinear') if x.shape != size else x
    return self.model.apply({'params': params}, x).astype(jnp.float32)

  @property
  def shapes(self) -> Any:
    """Shapes and dtypes of the parameters."""
    image = jnp.zeros((1, *self.sees.size, len(self.sees.mean)))
    return jax.eval_shape(self.model.init, jax.random.key(0), image)['params']


def open_teacher(
  path: str, info: DataInfo, texts: tuple[str, ...], dtype: str
) -> Teacher:
  """The teacher of `config.task.teacher`.

  Args:
    path: a file of weights, or the workdir of a run.
    info: of the student's data.
    texts: the ops of its training.
    dtype: of the computation.

  Raises:
    UserError: no such weights, other classes, or pixels it cannot be shown.
  """
  field = f'config.task.teacher = {path!r}'
  if not Path(path).exists():
    raise UserError(f'{field}: no such file of weights, nor workdir of a run.')
  fields, sees = origin.found(path)
  known = fields['classes']
  # Of data that are only stated (`plan`) no name is known.
  # Those of a file may be others for the same.
  names = origin.class_names(path) if info.fingerprint else ()
  same = names == info.classes or sorted(names) != sorted(info.classes)
  if origin.is_run(path):
    same = not names or names == info.classes
  if known != len(info.classes) or not same:
    raise UserError(
      f'{field} tells {known} classes'
      + (f' ({", ".join(names[:3])}, ...)' if names else '')
      + f', the data have {len(info.classes)} ({", ".join(info.classes[:3])}, '
      '...): a teacher has to tell the same ones in the same order.'
    )
  if names and names != info.classes:
    logging.warning(
      '%s calls its classes %s, the data %s: taken for the same in this order.',
      field,
      ', '.join(names[:3]),
      ', '.join(info.classes[:3]),
    )
  if len(sees.mean) < info.channels:
    raise UserError(
      f'{field} sees pictures of {len(sees.mean)} channel, the student of '
      f'{info.channels}: set config.channels = {len(sees.mean)}.'
    )
  values = [t for t in texts if t.strip().startswith(('range', 'normalize'))]
  given = origin.preprocessing_of(tuple(values), info.size, info.channels)
  own = {*keyword_fields(ViT), 'classes'}
  known = {name: fields[name] for name in own if name in fields}
  model = ViT(**known | {'dtype': dtype, 'remat': 'none'})
  return Teacher(path, model, sees, given)
