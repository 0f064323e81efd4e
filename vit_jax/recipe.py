"""What a config promises, and what a run changes in effect that differs.

`config.recipe` says for which global batch, length and number of devices the
other values were chosen, and by which rule the learning rate follows the batch:
`rate` is what the run then has, `words` what it says before its first step.
"""

from typing import TYPE_CHECKING, Any

from vit_jax import durations
from vit_jax.errors import UserError

if TYPE_CHECKING:
  from vit_jax.setup import Setup

# By scale: the power of batch / batch of the recipe; in words.
_RULES = {
  'none': (0, 'does not follow the batch'),
  'linear': (1, 'times batch / batch of the recipe'),
  'sqrt': (0.5, 'times the square root of batch / batch of the recipe'),
}


def rate(config: Any) -> float:
  """The peak learning rate of the run: `optim.lr`, scaled by the recipe's rule.

  Linear: arXiv 1706.02677, for SGD; the square root: arXiv 1904.00962 (LAMB)
  and 2205.10287 (Adam).

  Raises:
    UserError: a promise that cannot be.
  """
  recipe = config.recipe
  for field in ('batch_size', 'devices'):
    if recipe[field] < 0:
      raise UserError(f'config.recipe.{field} = {recipe[field]}: at least 0.')
  if recipe.total:  # of any batch and data: is it a length at all?
    field = 'config.recipe.total'
    durations.to_steps(recipe.total, batch_size=1, examples=1, field=field)
  if recipe.scale == 'none':
    return config.optim.lr
  if not recipe.batch_size:
    raise UserError(
      f'config.recipe.scale = {recipe.scale!r} scales from '
      'config.recipe.batch_size, which is 0. Set it to the batch that '
      "config.optim.lr is for, or the scale to 'none'."
    )
  power, _ = _RULES[recipe.scale]
  return config.optim.lr * (config.batch_size / recipe.batch_size) ** power


def _change(name: str, now: str, promised: str) -> str:
  same = now == promised
  return f'  {name}: {now}, ' + ('as there' if same else f'not {promised}')


def words(setup: 'Setup') -> list[str]:
  """What differs from the recipe and what follows, line by line; or nothing."""
  config, recipe, mesh = setup.config, setup.config.recipe, setup.mesh
  batch, examples = config.batch_size, setup.info.examples
  promised = recipe.batch_size or batch
  total = recipe.total or config.total

  def steps(text: str, size: int, whole: int | None = None) -> int:
    return durations.to_steps(
      text, batch_size=size, examples=examples, total=whole
    )

  def length(count: int, size: int) -> str:
    return f'{count:,} steps ({count * size / examples:.4g} epochs)'

  differs = []
  if batch != promised:
    differs.append(f'batch {batch:,}, not {promised:,}')
  if steps(total, batch) != setup.total:  # '90 epochs' is '90ep'
    differs.append(f'total {config.total}, not {total}')
  if recipe.devices and mesh.size != recipe.devices:
    differs.append(f'devices {mesh.size:,}, not {recipe.devices:,}')
  if not differs:
    return []
  whole = steps(total, promised)
  warmup = config.optim.warmup
  rule = f"config.recipe.scale='{recipe.scale}', {_RULES[recipe.scale][1]}"
  # Tensor parallelism has several devices look at the same images; of a recipe
  # that promises a number of devices, no two do.
  apart = mesh.size / mesh.shape['tensor']
  return [
    'not as the recipe has it: ' + '; '.join(differs),
    _change('learning rate', f'{setup.lr:.4g}', f'{config.optim.lr:.4g}')
    + f' ({rule})',
    _change('length', length(setup.total, batch), length(whole, promised)),
    _change(
      'warm-up',
      length(steps(warmup, batch, setup.total), batch),
      length(steps(warmup, promised, whole), promised),
    ),
    _change(
      'images a device and step',
      f'{batch / apart:g}',
      f'{promised / (recipe.devices or apart):g}',
    ),
  ]
