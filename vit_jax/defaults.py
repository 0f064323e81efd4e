"""The schema of a config: every top-level field, its type, default, meaning.

The groups `task`, `model`, `optim` and `data` hold a `name` and the keyword
parameters of what that name stands for (see `config.SECTIONS`): their fields
are documented there. A config file starts from `get_config()` and says what
differs; `config.load` fills in the rest.
"""

import dataclasses
from typing import Literal

import ml_collections


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; at most one -1 takes what is left."""

  data: int = -1  # replicas of the model; the batch is divided
  fsdp: int = 1  # the batch is divided, and the parameters too
  tensor: int = 1  # heads and MLP width are divided


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What the other values were chosen for; a run that differs says so."""

  batch_size: int = 0  # that optim.lr is for; 0: nothing is promised
  total: str = ''  # length of the run; '': nothing is promised
  devices: int = 0  # 0: any number
  # How the learning rate follows the batch: not; or times batch_size /
  # recipe.batch_size, or its square root.
  scale: Literal['none', 'linear', 'sqrt'] = 'none'


@dataclasses.dataclass(frozen=True)
class Defaults:
  """Top-level fields."""

  seed: int = 0  # of initialisation, data order, augmentation and dropout
  total: str = '60ep'  # length of the run: '300ep', '10k steps', '1M examples'
  batch_size: int = 128  # examples a step, over all devices
  size: int | tuple[int, int] = 0  # image side or (h, w); 0: the source's own
  channels: int = 0  # 1 or 3; 0: the source's own
  mesh: Mesh = Mesh()
  recipe: Recipe = Recipe()
  accumulate: int = 1  # micro-batches a step; the same update but for dropout
  ema: float = 0.0  # decay of the averaged parameters; 0: none
  eval_every: str = '5ep'
  evaluators: tuple[str, ...] = ()  # after the last step: ('knn(20)', ...)
  save_every: str = '5ep'
  log_every: str = '10 steps'
  wandb: str = ''  # project of Weights & Biases to write to as well; '': none
  init_from: str = ''  # weights file or workdir to start from; '': random
  init_head: Literal['keep', 'new'] = 'keep'  # of the weights
  # When the loss or its gradient is nan or inf: stop; leave the step out; or
  # go back to the last checkpoint, and around the data that followed it.
  on_nonfinite: Literal['halt', 'skip', 'rollback'] = 'halt'
  max_rollbacks: int = 3  # of a run, before it stops
  deterministic: bool = True  # ask GPU compilers for reproducible kernels


# What may differ when a run is resumed: how it is computed and written, not
# what is (but for rounding, and for dropout under another `accumulate`); and
# `total`, which continues a finished run and stretches its schedule.
RESUMABLE = (
  'total',
  'mesh',
  'accumulate',
  'eval_every',
  'evaluators',
  'save_every',
  'log_every',
  'wandb',
  'on_nonfinite',
  'max_rollbacks',
  'task.teacher',  # where it is; that it is the same one is checked
  'recipe.total',
  'recipe.devices',
  'data.workers',
  'data.cache_mb',
  'data.index_dir',
  'data.data_dir',
  'data.on_error',
  'data.max_skipped',
)


def get_config() -> ml_collections.ConfigDict:
  """The defaults, with groups that take any field until they are resolved."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Defaults()))
  config.task = ml_collections.ConfigDict({'name': 'classification'})
  config.model = ml_collections.ConfigDict({'name': 'vit'})
  config.optim = ml_collections.ConfigDict({'name': 'adamw'})
  config.data = ml_collections.ConfigDict({'name': 'digits'})
  config.lock()
  for section in ('task', 'model', 'optim', 'data'):
    config[section].unlock()
  return config
