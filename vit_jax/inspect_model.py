"""What a model is made of: parameters, FLOPs and memory, without running it."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from vit_jax import trees
from vit_jax.models import flops
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.setup import Setup, stated_info

# Parts of a model, in the order in which an image meets them.
ORDER = (
  'stem',
  'embed',
  'cls',
  'distill',
  'registers',
  'positions',
  'embed_norm',
  'encoder',
  'norm',
  'pool',
  'representation',
  'head',
  'distill_head',
  'decoder',
)
REMATS = ('none', 'dots', 'full')


def _bytes(tree: Any) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def activation_bytes(
  model: ViT, size: tuple[int, int], channels: int = 3
) -> int:
  """Bytes that the forward pass keeps for the backward pass, per image.

  Not a formula: the residuals of jax.vjp, for two images less those for one,
  so that parameters do not count. XLA's temporaries in float32 are 5 % above
  it without remat (measured, Ti/16 on CPU); with remat, what is recomputed of
  one block at a time comes on top.
  """

  def residuals(params, images):
    def apply(params):
      rngs = {'dropout': jax.random.key(0)}
      return model.apply({'params': params}, images, train=True, rngs=rngs)

    return jax.vjp(apply, params)[1]

  def kept(count):
    images = jax.ShapeDtypeStruct((count, *size, channels), jnp.float32)
    params = shapes(model, size, channels)
    return _bytes(jax.eval_shape(residuals, params, images))

  return kept(2) - kept(1)


def shapes(model: ViT, size: tuple[int, int], channels: int = 3) -> Any:
  """Abstract parameters."""
  images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)['params']


def report(
  model: ViT, params: Any, size: tuple[int, int], channels: int
) -> dict[str, Any]:
  """All that `inspect` tells, ready for JSON.

  Args:
    model: to inspect.
    params: arrays or shapes; what is told of dtypes is theirs.
    size: (h, w) of the images.
    channels: of the images.
  """
  of = flops.forward(model, size, channels)
  training = flops.forward(model, size, channels, train=True)
  place = {name: i for i, name in enumerate(ORDER)}
  modules = [
    {
      'path': path,
      'shape': list(leaf.shape),
      'dtype': str(leaf.dtype),
      'parameters': math.prod(leaf.shape),
    }
    for path, leaf in trees.paths(params)
  ]
  modules.sort(key=lambda m: place[m['path'].split('/')[0]])
  parts = {m['path'].split('/')[0]: 0 for m in modules}
  for m in modules:
    parts[m['path'].split('/')[0]] += m['parameters']
  return {
    'model': {
      'classes': model.classes,
      **{name: getattr(model, name) for name in keyword_fields(type(model))},
    },
    'size': list(size),
    'channels': channels,
    'tokens': model.prefix + math.prod(s // model.patch for s in size),
    'modules': modules,
    'parts': [
      {'name': name, 'parameters': count, 'flops': of.get(name, 0)}
      for name, count in parts.items()
    ],
    'parameters': trees.count(params),
    'parameter_bytes': _bytes(params),
    'flops': sum(of.values()),
    'training_flops': flops.TRAINING * sum(training.values()),
    'activation_bytes': {
      remat: activation_bytes(model.clone(remat=remat), size, channels)
      for remat in REMATS
    },
  }


def of_config(config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
  """The report of a config.

  Data are opened only if the config does not state data.examples, data.classes
  and size (then images have config.channels, or their source's, or three).

  Raises:
    UserError: a config that does not make a model.
  """
  from vit_jax import finetune

  full: Any = finetune.adopt(config, Path(os.devnull))
  setup = Setup(full, stated_info(full))
  model, info = setup.model, setup.info
  assert isinstance(model, ViT)
  params = shapes(model, info.size, info.channels)
  return report(model, params, info.size, info.channels)


def of_weights(path: Path, options: dict[str, Any]) -> dict[str, Any]:
  """The report of a file of weights; `options` of weights.load."""
  from vit_jax import weights

  model, params, info = weights.load(path, **options)
  seen = info.preprocessing
  size = options.get('size') or seen.size
  result = report(model, params, size, len(seen.mean))
  return {'format': info.format, 'family': info.description.family} | result


def _si(value: int | float, unit: str = '') -> str:
  """1234567 -> '1.23 M'."""
  for prefix in ('', 'k', 'M', 'G'):
    if value < 999.5:
      return f'{value:.3g} {prefix}{unit}' if prefix else f'{value} {unit}'
    value /= 1000
  return f'{value:.4g} T{unit}'


def text(result: dict[str, Any]) -> str:
  """A report as a table for people."""
  fields, (h, w) = result['model'], result['size']
  family = f'{result["family"]}: ' if 'family' in result else ''
  lines = [
    f'{family}{fields["variant"]} on {h}x{w}x{result["channels"]}, '
    f'{result["tokens"]} tokens',
    '',
  ]
  wide = max(len(m['path']) for m in result['modules']) + 2

  def line(name, shape, dtype, count, cost):
    row = f'{name:{wide}}{shape:>18}  {dtype:9}{count:>14}  {cost:>11}'
    lines.append(row.rstrip())

  line('', 'shape', 'dtype', 'parameters', 'FLOPs/image')
  for part in result['parts']:
    cost = _si(part['flops']) if part['flops'] else ''
    line(part['name'], '', '', f'{part["parameters"]:,}', cost)
    for m in result['modules']:
      group, _, _ = m['path'].partition('/')
      if group == part['name']:
        shape = 'x'.join(map(str, m['shape'])) or 'scalar'
        line(f'  {m["path"]}', shape, m['dtype'], f'{m["parameters"]:,}', '')
  memory = ', '.join(
    f'{_si(value, "B")} ({remat})'
    for remat, value in result['activation_bytes'].items()
  )
  size = _si(result['parameter_bytes'], 'B')
  return '\n'.join(
    [
      *lines,
      '',
      f'parameters   {result["parameters"]:,} ({size})',
      f'FLOPs        {_si(result["flops"])} an image, '
      f'{_si(result["training_flops"])} in training',
      f'activations  {memory} an image in training, by config.model.remat; '
      f'here {fields["remat"]}',
    ]
  )
