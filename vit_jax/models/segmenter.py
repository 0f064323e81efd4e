"""A class for each pixel: a ViT, and a decoder of its patch tokens."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import UserError, check_choice
from vit_jax.models.attention import LayerNorm
from vit_jax.models.encoder import Encoder, Layer
from vit_jax.models.heads import Head, Pool
from vit_jax.models.patches import grid, unpatchify
from vit_jax.models.vit import CAPTURES, ViT
from vit_jax.schema import keyword_fields

# Fields of a ViT that say how one vector is made of the tokens.
READING = ('pool', 'representation')


def _unit(x: jax.Array) -> jax.Array:
  """Of length 1 along the last axis, in float32; zero stays zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


class MaskTransformer(nn.Module):
  """A token a class attends with the patches; then each patch with each class.

  Segmenter (arXiv 2105.05633, section 3.2): after `depth` blocks of patches and
  classes, both are projected, scaled to length 1, and a patch's scores are its
  products with the classes, normalised over the classes.

  Attributes:
    classes: Y.
    detail: scores of a patch, to each side; a projection for each.
    width: of its blocks.
    depth: number of its blocks.
    layer: of each block.
  """

  classes: int
  detail: int
  width: int
  depth: int
  layer: Layer

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B N D'], *, train: bool
  ) -> Float[Array, 'B N rrY']:
    dtype, width = self.layer.dtype, self.width
    (b, n), small = x.shape[:2], nn.initializers.normal(0.02)

    def project(y, name, count):
      init = nn.initializers.normal(width**-0.5)
      y = nn.Dense(
        count * width, use_bias=False, dtype=dtype, kernel_init=init, name=name
      )(y)
      return _unit(y.reshape(b, -1, width))

    x = nn.Dense(width, dtype=dtype, kernel_init=small, name='embed')(x)
    tokens = self.param('classes', small, (self.classes, width)).astype(dtype)
    tokens = jnp.broadcast_to(tokens, (b, *tokens.shape))
    x, _ = Encoder(self.depth, self.layer, 'none', 1, name='encoder')(
      jnp.concatenate([x, tokens], 1), None, train=train, capture=()
    )
    x = LayerNorm(self.layer.epsilon, dtype, 'norm')(x)
    patches = project(x[:, :n], 'patch_projection', self.detail**2)
    tokens = project(x[:, n:], 'class_projection', 1)
    scores = jnp.einsum('BND,BYD->BNY', patches, tokens, precision='highest')
    scores = LayerNorm(1e-5, jnp.dtype('float32'), 'class_norm')(scores)
    return scores.reshape(b, n, -1)


def trunk(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Of the fields of any ViT's weights those of its encoder.

  How the tokens were read is left out; which tokens there are is not.
  """
  known = {'classes', *keyword_fields(ViT)}
  model = ViT(**{k: v for k, v in fields.items() if k in known})
  kept = {k: v for k, v in fields.items() if k not in READING}
  return kept | {'cls_token': 'yes' if 'cls' in model.special else 'no'}


class Segmenter(ViT, kw_only=True):
  """Images (B, h, w, c) -> logits of each pixel (B, h, w, Y), float32.

  The scores of the patches, enlarged bilinearly to the images (arXiv
  2105.05633, section 3.2). Every patch is read: `pool` is 'none', and there is
  no `representation`, nor `patch_dropout`.

  Attributes:
    decoder: 'linear', each patch by itself; or 'mask_transformer'.
    decoder_depth: blocks of the latter.
    decoder_width: of them; 0: the encoder's.
    decoder_dropout: as `dropout`, of them; there is no `drop_path` in them.
    features: encoder blocks, from 1 to the depth, whose tokens are put side by
      side for the decoder, each normalised; (): the last one's.
    detail: scores that a patch has, to each side: 1, as Segmenter's; more make
      outlines finer than the patches (by pixel shuffle, arXiv 1609.05158).
  """

  pool: Pool = 'none'
  decoder: Literal['linear', 'mask_transformer'] = 'mask_transformer'
  decoder_depth: int = 2
  decoder_width: int = 0
  decoder_dropout: float = 0.1
  features: tuple[int, ...] = ()
  detail: int = 1

  @property
  def decoder_shape(self) -> tuple[int, int]:
    """Width and heads of the decoder's blocks: heads as wide as the encoder's.

    Where that does not divide the width, there is one head.
    """
    shape = self.shape
    width = self.decoder_width or shape.width
    head = shape.width // shape.heads
    return width, 1 if width % head else width // head

  def check(self, size: tuple[int, int]):
    """Raises UserError unless the fields make a model for images (h, w)."""
    # As of a ViT that pools: weights with a distillation token do.
    ViT.check(self.clone(pool='mean', pool_norm='before'), size)
    for field, value in (
      ('pool', 'none'),
      ('representation', 0),
      ('patch_dropout', 0),
    ):
      if getattr(self, field) != value:
        raise UserError(
          f'config.model.{field} = {getattr(self, field)!r}: a segmenter reads '
          f'each patch, and nothing else; {value!r}.'
        )
    if self.decoder_depth < 1 or self.decoder_width < 0:
      raise UserError(
        f'config.model.decoder_depth = {self.decoder_depth}, decoder_width = '
        f'{self.decoder_width}: at least 1, at least 0.'
      )
    if not 0 <= self.decoder_dropout < 1:
      raise UserError(
        f'config.model.decoder_dropout = {self.decoder_dropout}: a rate, '
        '0 <= r < 1.'
      )
    if self.detail < 1 or self.patch % self.detail:
      near = [n for n in range(1, self.patch + 1) if not self.patch % n]
      raise UserError(
        f'config.model.detail = {self.detail} does not divide the patch of '
        f'{self.patch} pixels; of {near} one does.'
      )
    depth = self.shape.depth
    wrong = [n for n in self.features if not 1 <= n <= depth]
    if wrong or len(set(self.features)) < len(self.features):
      raise UserError(
        f'config.model.features = {self.features}: different numbers of blocks '
        f'from 1 to the depth, {depth}.'
      )

  def _scores(
    self, x: Float[Array, 'B N D'], *, train: bool
  ) -> Float[Array, 'B N rrY']:
    """Of each patch, `detail` squared times the classes."""
    if self.decoder == 'linear':
      count = self.detail**2 * self.classes
      return Head(count, self.head_bias, name='decoder')(x)
    width, heads = self.decoder_shape
    layer = Layer(
      heads=heads,
      hidden=4 * width,
      mlp=self.mlp,
      gelu=self.gelu,
      epsilon=self.epsilon,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      dropout=self.decoder_dropout,
      drop_path=0.0,
      dtype=jnp.dtype(self.dtype),
      attention=self.attention,
      mlp_kernel=self.mlp_kernel,
    )
    return MaskTransformer(
      self.classes,
      self.detail,
      width,
      self.decoder_depth,
      layer,
      name='decoder',
    )(x, train=train)

  def _features(
    self, x: Float[Array, 'B N D'], outputs: dict
  ) -> Float[Array, 'B n F']:
    """Of the patches, side by side; the last block's are `x`.

    Others are normalised without a scale: the decoder's first layer has one.
    """
    plain = nn.LayerNorm(
      epsilon=self.epsilon,
      dtype=jnp.dtype(self.dtype),
      use_scale=False,
      use_bias=False,
      name='plain',
    )
    depth = self.shape.depth
    parts = [
      x if n == depth else plain(outputs['tokens'][n - 1])
      for n in self.features or (depth,)
    ]
    return jnp.concatenate([part[:, self.prefix :] for part in parts], -1)

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B h w c'],
    *,
    train: bool = False,
    capture: tuple[str, ...] = (),
  ):
    """Logits; with `capture`, also a dict of what it names, as of a ViT.

    `pooled` is the mean of the patches; all logits are those of the pixels.
    """
    for name in capture:
      check_choice('capture', name, CAPTURES)
    of_blocks = [n for n in capture if n in ('tokens', 'attention')]
    if self.features and 'tokens' not in of_blocks:
      of_blocks.append('tokens')
    x, outputs, _ = self.encode(images, train=train, capture=tuple(of_blocks))
    x = self._norm(x, 'after')  # before or after a pooling that is not there
    size = images.shape[1:3]
    scores = self._scores(self._features(x, outputs), train=train)
    coarse = tuple(n * self.detail for n in grid(size, self.patch))
    scores = unpatchify(scores, coarse, self.detail)
    logits = jax.image.resize(
      scores.astype(jnp.float32),
      (images.shape[0], *size, self.classes),  # any number, in an export
      'bilinear',
    )
    if not capture:
      return logits
    found = dict.fromkeys(CAPTURES, logits) | outputs
    found['pooled'] = jnp.mean(x[:, self.prefix :], axis=1)
    return logits, {name: found[name] for name in capture}
