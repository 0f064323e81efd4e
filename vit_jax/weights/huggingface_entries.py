"""Which tensor of transformers' holds which parameter of ours, both ways.

Kernels there are (out, in), or (out, in, h, w).
"""

import dataclasses

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights.formats import Description
from vit_jax.weights.huggingface_names import QKV, Found, Layout, to_write
from vit_jax.weights.mapping import Entry, one, transposed


def _norm(ours: str, theirs: str, layer: int | None = None) -> list[Entry]:
  leaves = {'scale': 'weight', 'bias': 'bias'}
  return [
    one(f'{ours}/{a}', f'{theirs}.{b}', layer=layer) for a, b in leaves.items()
  ]


def _dense(ours: str, theirs: str, layer: int | None = None) -> list[Entry]:
  bias = one(f'{ours}/bias', f'{theirs}.bias', layer=layer)
  return [transposed(f'{ours}/kernel', f'{theirs}.weight', layer), bias]


def _row(ours: str, theirs: str) -> Entry:
  return one(ours, theirs, lambda x: x.squeeze(0), lambda x: x[None])


def _project(
  ours: str, theirs: str, heads: int, layer: int | None = None
) -> list[Entry]:
  """(H K, D) there, (D, H, K) here."""
  kernel = one(
    f'{ours}/kernel',
    f'{theirs}.weight',
    lambda x: x.T.reshape(x.shape[1], heads, -1),
    lambda x: x.reshape(len(x), -1).T,
    layer,
  )
  bias = one(
    f'{ours}/bias',
    f'{theirs}.bias',
    lambda x: x.reshape(heads, -1),
    np.ravel,
    layer,
  )
  return [kernel, bias]


def _out(ours: str, theirs: str, heads: int, layer: int | None = None):
  kernel = one(
    f'{ours}/kernel',
    f'{theirs}.weight',
    lambda x: x.T.reshape(heads, -1, len(x)),
    lambda x: x.reshape(-1, x.shape[-1]).T,
    layer,
  )
  return [kernel, one(f'{ours}/bias', f'{theirs}.bias', layer=layer)]


def _joined(
  parts: tuple[list[Entry], ...], names: dict[str, str], layer: int | None
) -> list[Entry]:
  """Entries of modules of which the file has one, their rows one below another.

  `names`: the leaf here: the name there.
  """

  def join(entries, name):
    def read(arrays):
      rows = np.split(arrays[0], len(entries))
      return [e.read([x])[0] for e, x in zip(entries, rows, strict=True)]

    def write(arrays):
      rows = [e.write([x])[0] for e, x in zip(entries, arrays, strict=True)]
      return [np.concatenate(rows)]

    return Entry(tuple(e.ours[0] for e in entries), (name,), read, write, layer)

  return [
    join([e for part in parts for e in part if e.ours[0].endswith(leaf)], name)
    for leaf, name in names.items()
  ]


def _zero(entry: Entry, shape: tuple[int, ...]) -> Entry:
  """Of a tensor that the file leaves out, as it is zero."""

  def write(arrays):
    if np.any(arrays[0]):
      raise UserError(
        f'{entry.ours[0]} is not zero, but there is to be no {entry.theirs[0]}.'
      )
    return []

  return Entry(entry.ours, (), lambda _: [np.zeros(shape)], write, entry.layer)


def _block(model: ViT, layout: Layout, layer: int) -> list[Entry]:
  shape, result = model.shape, []
  start = f'{layout.blocks}{layer}.'
  widths = {'mlp/up': shape.hidden, 'mlp/gate': shape.hidden}
  for name, theirs in layout.block(model.mlp == 'swiglu').items():
    ours, theirs = f'encoder/blocks/{name}', start + theirs
    bias: tuple[int, ...] = (widths.get(name, shape.width),)
    if name.startswith('norm'):
      found = _norm(ours, theirs, layer)
    elif name == 'attention/out':
      found = _out(ours, theirs, shape.heads, layer)
    elif name.startswith('attention'):
      found = _project(ours, theirs, shape.heads, layer)
      found = found if model.qkv_bias else found[:1]
      bias = (shape.heads, shape.width // shape.heads)
    elif theirs.endswith('weights_in'):
      up = _dense(ours.replace('gate', 'up'), theirs, layer)
      leaves = {'kernel': f'{theirs}.weight', 'bias': f'{theirs}.bias'}
      found = _joined((_dense(ours, theirs, layer), up), leaves, layer)
    else:
      found = _dense(ours, theirs, layer)
    if name in layout.biasless and len(found) > 1:
      found = [found[0], _zero(found[1], bias)]
    result += found
  for i in (1, 2) if model.layer_scale else ():
    theirs = f'{start}layer_scale{i}.lambda1'
    result.append(one(f'encoder/blocks/scale{i}', theirs, layer=layer))
  return result


def _pool(heads: int) -> list[Entry]:
  head = [_project(f'pool/{name}', '', heads) for name in QKV]
  fused = {
    'kernel': 'head.attention.in_proj_weight',
    'bias': 'head.attention.in_proj_bias',
  }
  return [
    _row('pool/probe', 'head.probe'),
    *_joined(tuple(head), fused, None),
    *_out('pool/out', 'head.attention.out_proj', heads),
    *_norm('pool/norm', 'head.layernorm'),
    *_dense('pool/mlp/up', 'head.mlp.fc1'),
    *_dense('pool/mlp/down', 'head.mlp.fc2'),
  ]


def _cls(width: int, registers: int, layout: Layout) -> Entry:
  """The CLS token; written with what the library asks for but does not use."""
  more = {}
  if layout.mask_token:
    shape = (1, width) if layout.family == 'dinov2' else (1, 1, width)
    more['embeddings.mask_token'] = np.zeros(shape, np.float32)
    if not registers:
      empty = np.zeros((1, 0, width), np.float32)
      more['embeddings.register_tokens'] = empty
  return Entry(
    ('cls',),
    ('embeddings.cls_token', *more),
    lambda arrays: [arrays[0].squeeze(0)],
    lambda arrays: [arrays[0][None], *more.values()],
  )


def _embed(model: ViT, layout: Layout) -> list[Entry]:
  patch, width = model.patch, model.shape.width

  def read(kernel):
    if kernel.shape[2:] != (patch, patch):
      raise ValueError(f'not of a patch of {patch}x{patch}')
    return kernel.transpose(2, 3, 1, 0).reshape(-1, width)

  def write(kernel):
    return kernel.reshape(patch, patch, -1, width).transpose(3, 2, 0, 1)

  bias = f'{layout.embed}.bias'
  result = [
    one('embed/linear/kernel', f'{layout.embed}.weight', read, write),
    one('embed/linear/bias', bias),
  ]
  if 'cls' in model.special:
    result.append(_cls(width, model.registers, layout))
  if model.registers:
    result.append(_row('registers', 'embeddings.register_tokens'))
  if model.positions == 'learned':
    make = one if layout.family == 'siglip' else _row
    result.append(make('positions/table', layout.table))
  return result


def entries(model: ViT, description: Description) -> list[Entry]:
  """What belongs to what, by the names of the file, or those to write.

  Raises:
    UserError: transformers has no such model.
  """
  found = isinstance(description, Found)
  size = description.preprocessing.size
  layout = description.layout if found else to_write(model, size)
  result = _embed(model, layout)
  for layer in range(model.shape.depth):
    result += _block(model, layout, layer)
  result += _norm('norm', layout.norm)
  if model.pool == 'map':
    result += _pool(model.shape.heads)
  if model.representation:
    result += _dense('representation', 'pooler.dense')
  result = [
    dataclasses.replace(e, theirs=tuple(layout.prefix + n for n in e.theirs))
    for e in result
  ]
  return result + (_dense('head/linear', 'classifier') if model.classes else [])
