"""The names in transformers' files, to read by and to write.

The library renamed modules in version 5 but still writes, and always reads, the
names of version 4: those are written here, and both are read.
"""

import dataclasses
import re
from collections.abc import Collection
from typing import Literal

from vit_jax.errors import UserError
from vit_jax.models.variants import parse
from vit_jax.models.vit import ViT
from vit_jax.weights.checks import require
from vit_jax.weights.formats import Description

Family = Literal['vit', 'dinov2', 'dinov3', 'siglip']
QKV = ('query', 'key', 'value')


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a file names things.

  Attributes:
    family: whose modules it has; registers or none are the same family.
    prefix: of all but the classifier.
    version: of transformers whose names these are: 4 or 5.
    biasless: our modules of a block whose biases the file leaves out.
    mask_token: whether to write one, which no inference reads.
  """

  family: Family
  prefix: str = ''
  version: int = 4
  biasless: frozenset[str] = frozenset()
  mask_token: bool = False

  @property
  def embed(self) -> str:
    """The patch embedding."""
    dino = 'embeddings.patch_embeddings'
    siglip = 'embeddings.patch_embedding'
    names = {'siglip': siglip, 'dinov3': dino}
    return names.get(self.family, f'{dino}.projection')

  @property
  def table(self) -> str:
    """The positions."""
    if self.family == 'siglip':
      return 'embeddings.position_embedding.weight'
    return 'embeddings.position_embeddings'

  @property
  def norm(self) -> str:
    """The last LayerNorm."""
    names = {'siglip': 'post_layernorm', 'dinov3': 'norm'}
    return names.get(self.family, 'layernorm')

  @property
  def blocks(self) -> str:
    """What stands before the number of a layer."""
    new = self.version > 4
    return {
      'vit': 'layers.' if new else 'encoder.layer.',
      'dinov2': 'encoder.layer.',
      'dinov3': 'model.layer.' if new else 'layer.',
      'siglip': 'encoder.layers.',
    }[self.family]

  def block(self, gated: bool) -> dict[str, str]:
    """Our modules of a block: theirs."""
    old, family = self.version == 4, self.family
    qkv = 'attention.{0[0]}_proj'
    out, norms = 'attention.o_proj', ('norm1', 'norm2')
    mlp = {'up': 'mlp.fc1', 'down': 'mlp.fc2'}
    if family == 'siglip':
      qkv, out = 'self_attn.{0[0]}_proj', 'self_attn.out_proj'
      norms = 'layer_norm1', 'layer_norm2'
    elif family == 'vit':
      norms = 'layernorm_before', 'layernorm_after'
    if family in ('vit', 'dinov2') and old:
      qkv, out = 'attention.attention.{0}', 'attention.output.dense'
      if family == 'vit':
        mlp = {'up': 'intermediate.dense', 'down': 'output.dense'}
      elif gated:
        mlp = {'gate': 'mlp.weights_in', 'down': 'mlp.weights_out'}
    elif gated or family == 'dinov3':
      mlp = {'up': 'mlp.up_proj', 'down': 'mlp.down_proj'}
      mlp |= {'gate': 'mlp.gate_proj'} if gated else {}
    return {
      'norm1': norms[0],
      **{f'attention/{name}': qkv.format(name) for name in QKV},
      'attention/out': out,
      'norm2': norms[1],
      **{f'mlp/{name}': theirs for name, theirs in mlp.items()},
    }


@dataclasses.dataclass(frozen=True)
class Found(Description):
  """With the names of the file."""

  layout: Layout = Layout('vit')


def layouts(names: Collection[str]) -> list[Layout]:
  """Those of the models in a file."""
  embed = re.compile(r'(.*\.|)embeddings\.patch_embedding(s|s\.projection|)\.')
  matches = [embed.match(name) for name in names]
  result = []
  for prefix in sorted({match[1] for match in matches if match}):
    for family in ('vit', 'dinov2', 'dinov3', 'siglip'):
      for version in (4, 5) if family != 'siglip' else (4,):
        layout = Layout(family, prefix, version)
        block = f'{prefix}{layout.blocks}0.'
        query = layout.block(False)['attention/query']
        needs = layout.block(False)['norm1'], query
        if (
          all(f'{block}{name}.weight' in names for name in needs)
          and f'{prefix}{layout.embed}.weight' in names
          and f'{prefix}embeddings.class_embedding' not in names  # CLIP
        ):
          result.append(layout)
  return result


def to_write(model: ViT, size: tuple[int, int]) -> Layout:
  """The names for a model; raises UserError if transformers has no such."""
  if parse(model.variant)[2]:
    raise UserError('transformers has no hybrids of ViT: write another format.')
  if model.positions == 'rope2d':
    family, of = 'dinov3', 'DINOv3ViTModel'
  elif model.layer_scale:
    family, of = 'dinov2', 'Dinov2'
  elif 'cls' in model.special:
    family, of = 'vit', 'ViTModel'
  else:
    family, of = 'siglip', 'SiglipVisionModel'
  require(
    model,
    of,
    distill_token=(False,),
    embed_norm=(False,),
    qk_norm=(False,),
    pool_norm=('before',),
  )
  if family != 'dinov3':
    require(model, of, positions=('learned',))
  if family != 'siglip':
    both = family == 'dinov2' and model.classes
    require(model, of, pool=('cls_mean',) if both else ('cls',))
  if family in ('vit', 'dinov2'):
    require(model, of, prefix_positions=(True,))
  if family in ('vit', 'siglip'):
    require(model, of, registers=(0,), mlp=('gelu',))
  if family == 'siglip':
    require(model, of, pool=('map', 'mean'), qkv_bias=(True,))
  if family == 'dinov3' and not model.layer_scale:
    raise UserError(f'{of} has no layer_scale = 0: write another format.')
  if model.classes or family != 'vit':
    require(model, of, representation=(0,))
  if family == 'dinov3' or model.pool == 'map':
    require(model, of, classes=(0,))
  if family in ('dinov2', 'siglip') and size[0] != size[1]:
    raise UserError(
      f'{of} has no positions for {size[0]}x{size[1]}, only for a square.'
    )
  prefix = 'vision_model.' if family == 'siglip' else ''
  if model.classes and family == 'vit':
    prefix = 'vit.'
  elif model.classes and family == 'dinov2':
    prefix = f'dinov2{"_with_registers" if model.registers else ""}.'
  mask = family == 'dinov3' or (family == 'dinov2' and model.registers > 0)
  return Layout(family, prefix, mask_token=mask)
