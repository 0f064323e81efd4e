"""The names in Google's .npz files, to read by and to write; see google.py."""

import dataclasses
from typing import Any

from vit_jax.models.variants import STEMS, parse
from vit_jax.models.vit import ViT
from vit_jax.weights.checks import require
from vit_jax.weights.formats import Description
from vit_jax.weights.mapping import Entry, one

BLOCKS = 'Transformer/encoderblock'
TABLES = (
  'Transformer/posembed_input/pos_embedding',
  'Transformer/pos_embedding',
  'pos_embedding',
)


@dataclasses.dataclass(frozen=True)
class Names:
  """How a file names things; by default as vision_transformer does.

  Attributes:
    prefix: of all parameters.
    numbers: in a block: of LayerNorm, attention, LayerNorm, MLP.
    table: of positions.
    scanned: whether layers are stacked.
  """

  prefix: str = ''
  numbers: tuple[int, int, int, int] = (0, 1, 2, 3)
  table: str = TABLES[0]
  scanned: bool = False


BIG_VISION = Names(numbers=(0, 0, 1, 0), table=TABLES[2])


@dataclasses.dataclass(frozen=True)
class Found(Description):
  """With the names of the file."""

  names: Names = Names()


def _to_write(model: ViT) -> Names:
  """The names for a model; raises UserError if Google's code has no such."""
  require(
    model,
    "Google's code",
    pool=('cls', 'mean', 'map'),
    positions=('learned', 'sincos2d'),
    gelu=('tanh',),
    epsilon=(1e-6,),
    mlp=('gelu',),
    registers=(0,),
    distill_token=(False,),
    embed_norm=(False,),
    pool_norm=('before',),
    qkv_bias=(True,),
    qk_norm=(False,),
    layer_scale=(0,),
  )
  if ('cls' in model.special) != (model.pool == 'cls'):
    require(model, f"Google's pool = {model.pool!r}", cls_token=('auto',))
  big = model.pool == 'map' or model.positions == 'sincos2d'
  big |= model.pool == 'cls' and not model.prefix_positions
  if not parse(model.variant)[2]:
    return BIG_VISION if big else Names()
  hybrid = "a hybrid of Google's code"
  require(model, hybrid, stem=('google',), pool=('cls', 'mean'))
  positions = (True,) if model.pool == 'cls' else (True, False)
  require(model, hybrid, positions=('learned',), prefix_positions=positions)
  return Names()


def _leaves(ours: str, theirs: str, layer: int | None = None) -> list[Entry]:
  leaves = ('scale' if 'norm' in ours else 'kernel', 'bias')
  return [one(f'{ours}/{x}', f'{theirs}/{x}', layer=layer) for x in leaves]


def _row(ours: str, theirs: str) -> Entry:
  """Theirs has a first axis of 1."""
  return one(ours, theirs, lambda x: x.squeeze(0), lambda x: x[None])


def _block(numbers: tuple[int, int, int, int]) -> dict[str, str]:
  """Ours: theirs, below a block."""
  norm1, attention, norm2, mlp = numbers
  heads = f'MultiHeadDotProductAttention_{attention}'
  return {
    'norm1': f'LayerNorm_{norm1}',
    **{
      f'attention/{name}': f'{heads}/{name}'
      for name in ('query', 'key', 'value', 'out')
    },
    'norm2': f'LayerNorm_{norm2}',
    'mlp/up': f'MlpBlock_{mlp}/Dense_0',
    'mlp/down': f'MlpBlock_{mlp}/Dense_1',
  }


def _pool_entries() -> list[Entry]:
  modules = _block((0, 0, 0, 0)) | {'norm': 'LayerNorm_0'}
  del modules['norm1'], modules['norm2']
  result = [_row('pool/probe', 'MAPHead_0/probe')]
  for ours, theirs in modules.items():
    ours = ours.removeprefix('attention/')
    result += _leaves(f'pool/{ours}', f'MAPHead_0/{theirs}')
  return result


def _stem_entries(stages: tuple[int, ...]) -> list[Entry]:
  modules = {'root': 'conv_root', 'root_norm': 'gn_root'}
  for i, units in enumerate(stages, 1):
    for j in range(1, units + 1):
      ours, theirs = f'stage{i}_unit{j}', f'block{i}/unit{j}'
      for n in (1, 2, 3):
        modules[f'{ours}/conv{n}'] = f'{theirs}/conv{n}'
        modules[f'{ours}/norm{n}'] = f'{theirs}/gn{n}'
      if j == 1:
        modules[f'{ours}/proj'] = f'{theirs}/conv_proj'
        modules[f'{ours}/proj_norm'] = f'{theirs}/gn_proj'
  result = []
  for ours, theirs in modules.items():
    if 'norm' not in ours:
      result.append(one(f'stem/{ours}/kernel', f'{theirs}/kernel'))
      continue
    for leaf in ('scale', 'bias'):  # (1, 1, 1, C) in old files
      names = f'stem/{ours}/{leaf}', f'{theirs}/{leaf}'
      result.append(one(*names, lambda x: x.reshape(x.shape[-1:])))
  return result


def entries(model: ViT, description: Description) -> list[Entry]:
  """What belongs to what, by the names of the file, or those to write.

  Raises:
    UserError: Google's code has no such model.
  """
  found = isinstance(description, Found)
  names = description.names if found else _to_write(model)
  _, patch, stem = parse(model.variant)
  stages, stride = STEMS[stem]
  side, width = patch // stride, model.shape.width

  def flat(kernel):
    if kernel.shape[:2] != (side, side):
      raise ValueError(f'not of a patch of {side}x{side}')
    return kernel.reshape(-1, width)

  embed = one(
    'embed/linear/kernel',
    'embedding/kernel',
    flat,
    lambda x: x.reshape(side, side, -1, width),
  )
  result = [embed, one('embed/linear/bias', 'embedding/bias')]
  if stem:
    result += _stem_entries(stages)
  if 'cls' in model.special:
    result.append(_row('cls', 'cls'))
  if model.positions == 'learned':
    result.append(_row('positions/table', names.table))
  depth = model.shape.depth
  layers = [(f'{BLOCKS}_{i}', i) for i in range(depth)]
  for block, layer in [(BLOCKS, None)] if names.scanned else layers:
    for ours, theirs in _block(names.numbers).items():
      result += _leaves(f'encoder/blocks/{ours}', f'{block}/{theirs}', layer)
  result += _leaves('norm', 'Transformer/encoder_norm')
  if model.pool == 'map':
    result += _pool_entries()
  if model.representation:
    result += _leaves('representation', 'pre_logits')
  if model.classes:
    result += _leaves('head/linear', 'head')
  return [
    dataclasses.replace(e, theirs=tuple(names.prefix + n for n in e.theirs))
    for e in result
  ]


def config_json(model: ViT, description: Description) -> dict[str, Any]:
  """Nothing: an .npz of Google's has no config beside it."""
  del model, description
  return {}
