"""From a config to the parts of a run: data, model, task, optimizer, mesh."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from vit_jax import (
  durations,
  evaluators,
  models,
  optim,
  recipe,
  sharding,
  tasks,
)
from vit_jax import step as step_lib
from vit_jax import teacher as teacher_lib
from vit_jax.data import (
  SOURCES,
  loader,
  open_split,
  ops,
  parse_mixture,
  source_fields,
)
from vit_jax.data.few import Few
from vit_jax.data.sources import Source, parse_name
from vit_jax.errors import UserError
from vit_jax.workdir import DataInfo


def _fields(group: Any) -> dict[str, Any]:
  """A group without its name: what is splatted into what the name names."""
  return {k: v for k, v in group.items() if k != 'name'}


def open_group(data: Any, name: str, **changed: Any) -> Source:
  """The source of a group of config.data, or of a split expression.

  Args:
    data: the group `data` of a complete config.
    name: 'test', or 'train[1150:]'.
    **changed: fields of `data` to take other values for.
  """
  group = data.get(name)
  split = (group.split or name) if hasattr(group, 'split') else name
  shared = ('examples', 'classes', 'on_error')
  fields = {k: data[k] for k in [*shared, *source_fields(data.name)]}
  source = open_split(data.name, split, **fields | changed)
  count, field = getattr(group, 'per_class', 0), f'config.data.{name}.per_class'
  if count < 0:
    raise UserError(f'{field} = {count}: at least 1, or 0 for all.')
  if not count:
    return source
  on_error = changed.get('on_error', data.on_error)
  return Few(source, count, field, on_error)


def stated_info(config: Any) -> DataInfo | None:
  """What a config itself says of its data: nothing has to be on disk.

  None unless it states data.examples, data.classes and size. Images have
  config.channels, or their source's, or three.
  """
  data, size = config.data, config.size
  if not (data.classes and data.examples and size):
    return None
  kind = parse_name(parse_mixture(data.name)[0][0])[0]
  return DataInfo(
    classes=tuple(map(str, range(data.classes))),
    size=(size, size) if isinstance(size, int) else size,
    channels=config.channels or getattr(SOURCES[kind], 'channels', 3),
    examples=data.train.per_class * data.classes or data.examples,
    fingerprint='',
  )


def _check_values(config: Any):
  """Raises UserError of a field whose value cannot be, whatever the data."""
  for field in ('batch_size', 'accumulate'):
    if config[field] < 1:
      raise UserError(f'config.{field} = {config[field]}: at least 1.')
  if not 0 <= config.seed < 2**32:
    raise UserError(f'config.seed = {config.seed}: 0 to {2**32 - 1}.')
  if config.max_rollbacks < 0:
    raise UserError(
      f'config.max_rollbacks = {config.max_rollbacks}: at least 0.'
    )
  if not 0 <= config.ema < 1:
    raise UserError(f'config.ema = {config.ema}: a decay, 0 <= d < 1.')
  data = config.data
  if data.workers < 0:
    raise UserError(f'config.data.workers = {data.workers} < 0.')
  if not 0 <= data.max_skipped <= 1:
    raise UserError(
      f'config.data.max_skipped = {data.max_skipped}: a fraction, 0 to 1.'
    )
  if data.repeats < 1:
    raise UserError(f'config.data.repeats = {data.repeats}: at least 1.')
  if config.channels not in (0, 1, 3):
    raise UserError(f'config.channels = {config.channels}: 0, 1 or 3.')
  for field in ('total', 'eval_every', 'save_every', 'log_every'):
    durations.parse(config[field], f'config.{field}')


class Setup:
  """The parts of a run. What needs no device is checked when it is made.

  Attributes:
    config: complete, from config.load.
    info: what the model has to know of the data.
    model: the linen module.
    task: of tasks.TASKS.
    total: steps of the run.
    lr: peak learning rate, as scaled by the recipe.
    optimizer, rate: optax's transformation, learning rate by step.
  """

  def __init__(
    self,
    config: ml_collections.FrozenConfigDict,
    info: DataInfo | None = None,
    model: nn.Module | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Opens the training split, unless `info` says what it would.

    Args:
      config: complete.
      info: of the data.
      model: of weights; None: made by the config.
      devices: to run on, or to compile for; None: all there are.

    Raises:
      UserError: a value that cannot be, or data that are not there.
    """
    self.config, self._devices = config, devices
    _check_values(config)
    # Of a run that is there (`info`), to look at it needs no W&B.
    if config.wandb and not info and not importlib.util.find_spec('wandb'):
      raise UserError(
        f'config.wandb = {config.wandb!r} needs Weights & Biases: '
        "pip install 'vit_jax[wandb]'."
      )
    evaluators.check('config.evaluators', config.evaluators)
    if info is None:
      self.train_source = self.source('train')
      info = self._info(self.train_source)
    self.info = info
    self.model = model or self._model()
    task, known = tasks.TASKS[config.task.name], {}
    if getattr(task, 'masks', False):
      known['names'] = info.classes
    self.task = task(classes=len(info.classes), **known, **_fields(config.task))
    evaluators.check_labels('config.evaluators', config.evaluators, self.task)
    self.total = self.steps(config.total, 'config.total')
    if self.total < 1:
      raise UserError(f'config.total = {config.total!r}: no steps at all.')
    self.lr = recipe.rate(config)
    self.optimizer, self.rate = optim.make(
      config.optim.name,
      self.total,
      self.steps,
      **_fields(config.optim) | {'lr': self.lr},
    )
    self.apply = step_lib.make_apply(self.model)
    if hasattr(self, 'train_source'):
      _ = self.teacher  # is it there? Later, to look at a run, it need not be

  def _check_labels(self, source: Source, what: str):
    """Raises UserError unless the labels are what the task learns."""
    task, masks = self.config.task.name, getattr(source, 'masks', False)
    if getattr(tasks.TASKS[task], 'masks', False) in (masks, None):
      return
    fitting = [
      repr(name)
      for name, other in tasks.TASKS.items()
      if getattr(other, 'masks', False) is masks
    ]
    kinds = ('a class for each image', 'masks, a class for each pixel')
    raise UserError(
      f'config.task.name = {task!r} learns {kinds[not masks]}; the labels of '
      f'{what} are {kinds[masks]}'
      + (f': choose {" or ".join(fitting)}.' if fitting else '.')
    )

  def _info(self, source: Source) -> DataInfo:
    self._check_labels(source, f'config.data.name = {self.config.data.name!r}')
    size = self.config.size or source.size
    size = (size, size) if isinstance(size, int) else size
    if min(size) < 1:
      raise UserError(f'config.size = {self.config.size!r}: at least 1 pixel.')
    return DataInfo(
      classes=tuple(source.classes),
      size=size,
      channels=self.config.channels or source.channels,
      examples=len(source),
      fingerprint=source.fingerprint,
    )

  def _model(self) -> nn.Module:
    name, wanted = self.config.model.name, tasks.TASKS[self.config.task.name]
    if name not in wanted.models:
      raise UserError(
        f'config.model.name = {name!r}: config.task.name = '
        f'{self.config.task.name!r} trains '
        + ' or '.join(map(repr, wanted.models))
        + '.'
      )
    fields = _fields(self.config.model)
    model = models.MODELS[self.config.model.name](
      classes=len(self.info.classes), **fields
    )
    model.check(self.info.size)
    return model

  def describe(self, parameters: int) -> str:
    """One line: what is trained on what, and where."""
    (h, w), c, data = self.info.size, self.info.channels, self.config.data
    devices = dict(self.mesh.shape)
    return (
      f'{self.config.model.name} {self.config.model.variant}, '
      f'{parameters:,} parameters; {data.name}: {self.info.examples:,} '
      f'examples of {len(self.info.classes)} classes at {h}x{w}x{c}; '
      f'{self.total:,} steps of {self.config.batch_size}; '
      f'{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}'
      + (f' as {devices}' if self.mesh.size > 1 else '')
    )

  def steps(self, text: str, field: str) -> int:
    """A duration of the config in steps."""
    return durations.to_steps(
      text,
      batch_size=self.config.batch_size,
      examples=self.info.examples,
      total=None if field == 'config.total' else self.total,
      field=field,
    )

  @property
  def evaluations(self) -> list[str]:
    """The groups of config.data that name a split to evaluate on."""
    groups = [k for k, v in self.config.data.items() if hasattr(v, 'items')]
    return [name for name in groups if name != 'train']

  def source(self, name: str) -> Source:
    """The source of a group of config.data, or of a split of its own."""
    return open_group(self.config.data, name)

  def loader(
    self, name: str, source: Source, whole: bool = False
  ) -> loader.Loader:
    """Batches of a source, by the ops of `name` (or those of 'test').

    With `whole` a picture of the model's size is neither resized nor cropped.
    """
    data = self.config.data
    group = name if hasattr(data.get(name), 'ops') else 'test'
    field, texts = f'config.data.{group}.ops', data[group].ops
    texts = ops.whole(texts) if whole else texts
    self._check_labels(source, f'split {name!r}')
    if tuple(source.classes) != self.info.classes:
      raise UserError(f'split {name!r} has other classes than the training.')
    if source.channels > self.info.channels:
      logging.warning(
        'split %r has colour, but the training split is grey, and so is the '
        'model: its pictures are made grey. config.channels=3 keeps colour.',
        name,
      )
    result = loader.Loader(
      source=source,
      pipeline=ops.build(field, texts, self._accelerated),
      size=self.info.size,
      channels=self.info.channels,
      seed=self.config.seed,
      batch_size=self.config.batch_size,
      sharding=sharding.batch_sharding(self.mesh),
      field=field,
      workers=data.workers,
      on_error=data.on_error,
      repeats=data.repeats if name == 'train' else 1,
    )
    result.check()
    return result

  @property
  def _accelerated(self) -> bool:
    return self.mesh.devices.flat[0].platform != 'cpu'

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices, arranged by config.mesh. The first use of them."""
    flags, flag = os.environ.get('XLA_FLAGS', ''), '--xla_gpu_deterministic_ops'
    if self.config.deterministic and flag not in flags:
      os.environ['XLA_FLAGS'] = f'{flags} {flag}=true'
    mesh = sharding.make_mesh(self.config.mesh.to_dict(), self._devices)
    ways = mesh.shape['data'] * mesh.shape['fsdp'] * self.config.accumulate
    if self.config.batch_size % ways:
      near = max(1, round(self.config.batch_size / ways)) * ways
      raise UserError(
        f'config.batch_size = {self.config.batch_size} is not a multiple of '
        f'data x fsdp x accumulate = {ways}; {near} is.'
      )
    return mesh

  @functools.cached_property
  def abstract_state(self) -> step_lib.TrainState:
    """Shapes, dtypes and shardings of the state."""
    with jax.set_mesh(self.mesh):
      shapes = jax.eval_shape(self._init)
    return self._placed(shapes)

  def _placed(self, shapes: Any) -> Any:
    return jax.tree.map(
      lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
      shapes,
      sharding.shard(shapes, self.mesh),
    )

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of what the loader gives the train step."""
    where, count = sharding.batch_sharding(self.mesh), self.config.batch_size
    image = (*self.info.size, self.info.channels)
    leaf = functools.partial(jax.ShapeDtypeStruct, sharding=where)
    pixels = self.info.size if getattr(self.task, 'masks', False) else ()
    batch = {
      'image': leaf((count, *image), jnp.float32),
      'label': leaf((count, *pixels), jnp.int32),
      'mask': leaf((count,), jnp.float32),
    }
    if self.config.data.on_error == 'skip':
      batch['skipped'] = leaf((count,), jnp.float32)
    return batch

  @functools.cached_property
  def teacher(self) -> teacher_lib.Teacher | None:
    """Of config.task.teacher."""
    path = getattr(self.task, 'teacher', '')
    if not path:
      return None
    return teacher_lib.open_teacher(
      path, self.info, self.config.data.train.ops, self.config.model.dtype
    )

  @functools.cached_property
  def abstract_given(self) -> Any:
    """What the train step is given beside state and batch, or None."""
    if self.teacher is None:
      return None
    return self._placed(self.teacher.shapes)

  @functools.cached_property
  def _init(self):
    return step_lib.make_init(
      self.model,
      self.optimizer,
      (*self.info.size, self.info.channels),
      seed=self.config.seed,
      ema=self.config.ema > 0,
    )

  @property
  def _state_shardings(self):
    return jax.tree.map(lambda s: s.sharding, self.abstract_state)

  def init(self) -> step_lib.TrainState:
    """The first state, made where it will live."""
    return jax.jit(self._init, out_shardings=self._state_shardings)()

  @functools.cached_property
  def train_step(self):
    """step.make_train_step, jitted: donates the state, compiles once."""

    def apply(params, *args, **kwargs):
      rates = self.config.optim.rates
      trained = optim.without_gradient(rates, params)
      return self.apply(trained, *args, **kwargs)

    step = step_lib.make_train_step(
      self.task,
      apply,
      self.optimizer,
      self.rate,
      seed=self.config.seed,
      ema=self.config.ema,
      accumulate=self.config.accumulate,
      teach=self.teacher,
    )
    return jax.jit(
      step, donate_argnums=0, out_shardings=(self._state_shardings, None)
    )

  @functools.cached_property
  def eval_step(self):
    """step.make_eval_step, jitted."""
    return jax.jit(step_lib.make_eval_step(self.task, self.apply))
