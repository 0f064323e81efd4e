"""Which tensor of timm's holds which parameter of ours, both ways.

timm's VisionTransformer, also distilled or behind a ResNet, and its Eva class
as far as DINOv3 uses it; their kernels are (out, in), or (out, in, h, w).
"""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import positions
from vit_jax.models.patches import grid
from vit_jax.models.variants import STEMS, parse
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Description
from vit_jax.weights.mapping import Entry, one, transposed

_BLOCK = 'encoder/blocks'


def _linear(ours: str, theirs: str, layer: int | None = None) -> list[Entry]:
  return [
    transposed(f'{ours}/kernel', f'{theirs}.weight', layer),
    one(f'{ours}/bias', f'{theirs}.bias', layer=layer),
  ]


def _norm(ours: str, theirs: str, layer: int | None = None) -> list[Entry]:
  return [
    one(f'{ours}/scale', f'{theirs}.weight', layer=layer),
    one(f'{ours}/bias', f'{theirs}.bias', layer=layer),
  ]


def _conv(ours: str, theirs: str) -> Entry:
  return one(
    ours,
    theirs,
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
  )


def _tokens(ours: str, theirs: str) -> Entry:
  return one(ours, theirs, lambda x: x[0], lambda x: x[None])


def _zero(
  path: str, shape: tuple[int, ...], why: str, layer: int | None = None
) -> Entry:
  """A parameter that timm's model does not have, where it is zero."""

  def write(arrays):
    if np.any(arrays[0]):
      raise UserError(f'timm cannot hold {path}, which is not zero: {why}.')
    return []

  return Entry((path,), (), lambda _: [np.zeros(shape)], write, layer)


def _projections(
  ours: str,
  names: tuple[str, ...],
  theirs: str,
  heads: int,
  layer: int | None = None,
  bias: bool = True,
) -> list[Entry]:
  """Queries, keys, values of (D, H, K), one below the other in theirs."""
  n = len(names)

  def read_kernel(arrays):
    out, width = arrays[0].shape
    x = arrays[0].reshape(n, heads, out // n // heads, width)
    return list(x.transpose(0, 3, 1, 2))

  def write_kernel(arrays):
    return [np.concatenate([x.reshape(len(x), -1).T for x in arrays])]

  def read_bias(arrays):
    return list(arrays[0].reshape(n, heads, -1))

  def write_bias(arrays):
    return [np.concatenate([x.ravel() for x in arrays])]

  def paths(kind):
    return tuple(f'{ours}/{name}/{kind}' for name in names)

  kernel = (f'{theirs}.weight',), read_kernel, write_kernel
  biases = (f'{theirs}.bias',), read_bias, write_bias
  entries = [Entry(paths('kernel'), *kernel, layer)]
  return [*entries, Entry(paths('bias'), *biases, layer)] if bias else entries


def _out(
  ours: str, theirs: str, heads: int, layer: int | None = None
) -> list[Entry]:
  kernel = one(
    f'{ours}/kernel',
    f'{theirs}.weight',
    lambda x: x.T.reshape(heads, -1, len(x)),
    lambda x: x.reshape(-1, x.shape[-1]).T,
    layer,
  )
  return [kernel, one(f'{ours}/bias', f'{theirs}.bias', layer=layer)]


def _gated(ours: str, theirs: str, layer: int) -> list[Entry]:
  """SwiGLU with gate and up as one layer, the gate first."""

  def entry(kind, name, turn):
    return Entry(
      (f'{ours}/gate/{kind}', f'{ours}/up/{kind}'),
      (f'{theirs}.{name}',),
      lambda arrays: [turn(x) for x in np.split(arrays[0], 2)],
      lambda arrays: [np.concatenate([turn(x) for x in arrays])],
      layer,
    )

  return [
    entry('kernel', 'weight', np.transpose),
    entry('bias', 'bias', lambda x: x),
  ]


def _mlp(ours: str, theirs: str, layer: int, model: ViT) -> list[Entry]:
  down = _linear(f'{ours}/down', f'{theirs}.fc2', layer)
  if model.mlp == 'gelu':
    return [*_linear(f'{ours}/up', f'{theirs}.fc1', layer), *down]
  if model.positions != 'rope2d':
    return [*_gated(ours, f'{theirs}.fc1', layer), *down]
  gate = _linear(f'{ours}/gate', f'{theirs}.fc1_g', layer)
  return [*gate, *_linear(f'{ours}/up', f'{theirs}.fc1_x', layer), *down]


def _block(model: ViT, i: int) -> list[Entry]:
  theirs, ours = f'blocks.{i}', f'{_BLOCK}/attention'
  heads, eva = model.shape.heads, model.positions == 'rope2d'
  entries = [
    *_norm(f'{_BLOCK}/norm1', f'{theirs}.norm1', i),
    *_projections(
      ours,
      ('query', 'key', 'value'),
      f'{theirs}.attn.qkv',
      heads,
      i,
      model.qkv_bias and not eva,
    ),
    *_out(f'{ours}/out', f'{theirs}.attn.proj', heads, i),
    *_norm(f'{_BLOCK}/norm2', f'{theirs}.norm2', i),
    *_mlp(f'{_BLOCK}/mlp', f'{theirs}.mlp', i, model),
  ]
  if model.qk_norm:
    entries += _norm(f'{ours}/query_norm', f'{theirs}.attn.q_norm', i)
    entries += _norm(f'{ours}/key_norm', f'{theirs}.attn.k_norm', i)
  if model.layer_scale:
    names = ('gamma_1', 'gamma_2') if eva else ('ls1.gamma', 'ls2.gamma')
    for j, name in enumerate(names, 1):
      entries.append(one(f'{_BLOCK}/scale{j}', f'{theirs}.{name}', layer=i))
  if model.qkv_bias and eva:
    for name in ('query', 'value'):
      bias = f'{ours}/{name}/bias', f'{theirs}.attn.{name[0]}_bias'
      entries.append(one(*bias, lambda x: x.reshape(heads, -1), np.ravel, i))
    shape = (heads, model.shape.width // heads)
    why = "timm's DINOv3 has no bias of the keys"
    entries.append(_zero(f'{ours}/key/bias', shape, why, i))
  return entries


def _stem(stages: tuple[int, ...]) -> list[Entry]:
  top = 'patch_embed.backbone'
  root = f'{top}.stem' if stages else top
  entries = [
    _conv('stem/root/kernel', f'{root}.conv.weight'),
    *_norm('stem/root_norm', f'{root}.norm'),
  ]
  for i, units in enumerate(stages):
    for j in range(units):
      ours = f'stem/stage{i + 1}_unit{j + 1}'
      theirs = f'{top}.stages.{i}.blocks.{j}'
      for k in (1, 2, 3):
        conv = f'{theirs}.conv{k}.weight'
        entries.append(_conv(f'{ours}/conv{k}/kernel', conv))
        entries += _norm(f'{ours}/norm{k}', f'{theirs}.norm{k}')
      if not j:
        down = f'{theirs}.downsample'
        entries.append(_conv(f'{ours}/proj/kernel', f'{down}.conv.weight'))
        entries += _norm(f'{ours}/proj_norm', f'{down}.norm')
  return entries


def _positions(model: ViT, size: tuple[int, int]) -> list[Entry]:
  """Tables and registers, which in timm have positions where CLS has one."""
  count = model.registers
  registers = [_tokens('registers', 'reg_token')] * bool(count)
  if model.positions in ('rope2d', 'none'):
    return registers
  first = len(model.special) if model.prefix_positions else 0
  last = first + count * model.prefix_positions

  def spread(table):
    zeros = np.zeros((last - first, table.shape[1]), table.dtype)
    return np.concatenate([table[:first], zeros, table[first:]])[None]

  if model.positions != 'learned':
    patches, width = grid(size, model.patch), model.shape.width
    n = first + patches[0] * patches[1]
    if model.positions == 'sincos1d':
      table = positions.sincos1d(n, width)
    else:
      table = positions.sincos2d(patches, width)
      table = np.pad(table, ((first, 0), (0, 0)))
    fixed = Entry((), ('pos_embed',), lambda _: [], lambda _: [spread(table)])
    return [fixed, *registers]
  if last == first:
    return [_tokens('positions/table', 'pos_embed'), *registers]

  def read(arrays):
    table, tokens = arrays[0][0], arrays[1][0]
    kept = np.concatenate([table[:first], table[last:]])
    return [kept, tokens + table[first:last]]

  return [
    Entry(
      ('positions/table', 'registers'),
      ('pos_embed', 'reg_token'),
      read,
      lambda arrays: [spread(arrays[0]), arrays[1][None]],
    )
  ]


def _embed(model: ViT) -> list[Entry]:
  _, patch, stem = parse(model.variant)
  stages, stride = STEMS[stem]
  p = patch // stride
  entries = _stem(stages) if stem else []
  entries.append(
    one(
      'embed/linear/kernel',
      'patch_embed.proj.weight',
      lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
      lambda x: x.reshape(p, p, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )
  )
  bias = 'embed/linear/bias'
  if not model.embed_norm:
    return [*entries, one(bias, 'patch_embed.proj.bias')]
  why = 'before a LayerNorm timm has no bias of the patches'
  entries.append(_zero(bias, (model.shape.width,), why))
  return [*entries, *_norm('embed_norm', 'norm_pre')]


def _pool(model: ViT) -> list[Entry]:
  ours, theirs, heads = 'pool', 'attn_pool', model.shape.heads
  mlp = f'{theirs}.mlp.fc'
  return [
    _tokens(f'{ours}/probe', f'{theirs}.latent'),
    *_projections(ours, ('query',), f'{theirs}.q', heads),
    *_projections(ours, ('key', 'value'), f'{theirs}.kv', heads),
    *_out(f'{ours}/out', f'{theirs}.proj', heads),
    *_norm(f'{ours}/norm', f'{theirs}.norm'),
    *_linear(f'{ours}/mlp/up', f'{mlp}1'),
    *_linear(f'{ours}/mlp/down', f'{mlp}2'),
  ]


def all_entries(model: ViT, description: Description) -> list[Entry]:
  """Of a model that timm has the like of."""
  entries = _embed(model)
  for ours, theirs in (('cls', 'cls_token'), ('distill', 'dist_token')):
    if ours in model.special:
      entries.append(_tokens(ours, theirs))
  entries += _positions(model, description.preprocessing.size)
  for i in range(model.shape.depth):
    entries += _block(model, i)
  after = model.pool_norm == 'after'
  entries += _norm('norm', 'fc_norm' if after else 'norm')
  if model.pool == 'map':
    entries += _pool(model)
  if model.classes:
    entries += _linear('head/linear', 'head')
  if model.classes and model.distill_token:
    entries += _linear('distill_head/linear', 'head_dist')
  return entries
