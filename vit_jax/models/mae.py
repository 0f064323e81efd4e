"""Masked autoencoder (MAE, arXiv 2111.06377): a ViT that learns by filling in.

Without a `masking` key it is a ViT without a head, whose features may be looked
at; with one, its encoder sees few patches and a small decoder draws the others.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError
from vit_jax.models import kernels
from vit_jax.models.attention import LayerNorm
from vit_jax.models.encoder import Encoder, Layer, Remat
from vit_jax.models.patches import grid
from vit_jax.models.positions import Positions, sincos2d
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields


def unshuffle(
  tokens: Float[Array, 'B n D'],
  seen: Int[Array, 'B n'],
  blank: Float[Array, 'D'],
  count: int,
) -> tuple[Float[Array, 'B N D'], Bool[Array, 'B N']]:
  """Visible tokens back in their places, blanks in all others.

  Args:
    tokens: of the visible patches.
    seen: where those are; increasing.
    blank: the token of a patch that is hidden.
    count: N, of all patches.

  Returns:
    All tokens, and which patches were hidden. By gathers alone, which the
    devices do each for its rows.
  """
  b, n, width = tokens.shape
  hidden = ~(seen[:, :, None] == jnp.arange(count)).any(1)
  place = jnp.where(hidden, n, jnp.cumsum(~hidden, 1) - 1)
  blank = jnp.broadcast_to(blank.astype(tokens.dtype), (b, 1, width))
  tokens = jnp.concatenate([tokens, blank], 1)
  return jnp.take_along_axis(tokens, place[..., None], 1), hidden


class Decoder(nn.Module):
  """From the tokens of visible patches to the pixels of all."""

  depth: int
  layer: Layer
  prefix: int  # tokens before the patches
  remat: Remat
  unroll: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B n D'],
    seen: Int[Array, 'B m'],
    patches: tuple[int, int],
    pixels: int,
    train: bool,
  ) -> tuple[Float[Array, 'B N PPc'], Bool[Array, 'B N']]:
    of, prefix = self.layer, self.prefix
    width, init = of.hidden // 4, nn.initializers.xavier_uniform()
    y = nn.Dense(width, dtype=of.dtype, kernel_init=init, name='embed')(x)
    blank = self.param('blank', nn.initializers.normal(0.02), (width,))
    full, hidden = unshuffle(
      y[:, prefix:], seen, blank, patches[0] * patches[1]
    )
    y = jnp.concatenate([y[:, :prefix], full], 1)
    y = Positions('sincos2d', patches, prefix, name='positions')(y)
    blocks = Encoder(self.depth, of, self.remat, self.unroll, name='encoder')
    y, _ = blocks(y, None, train=train, capture=())
    y = LayerNorm(of.epsilon, of.dtype, 'norm')(y)
    # In float32, as a head.
    drawn = nn.Dense(pixels, kernel_init=init, name='pixels')(
      y[:, prefix:].astype(jnp.float32)
    )
    return drawn, hidden


def handed_on(fields: dict[str, Any]) -> dict[str, Any]:
  """Of a masked autoencoder's fields, what its encoder is for another task.

  How its tokens are read is yet open: not its `pool`, but which tokens it has.
  """
  model = MAE(**{k: v for k, v in fields.items() if k != 'name'})
  named = {'classes': 0, 'cls_token': 'yes' if 'cls' in model.special else 'no'}
  open_ = ('pool', 'pool_norm', 'representation', 'name')
  return {k: v for k, v in fields.items() if k not in open_} | named


def without_decoder(model: ViT, params: Any) -> tuple[ViT, Any]:
  """A masked autoencoder as a ViT without a head; another model as it is."""
  if not isinstance(model, MAE):
    return model, params
  fields = {f: getattr(model, f) for f in keyword_fields(ViT)}
  kept = {name: tree for name, tree in params.items() if name != 'decoder'}
  return ViT(classes=0, **fields), kept


class MAE(ViT, kw_only=True):
  """A ViT, and a decoder that draws what it was not shown.

  The fields are ViT's, and those of the decoder. `classes` is not used.

  Attributes:
    mask_ratio: of the patches that are hidden, above 0, below 1.
    decoder_width, decoder_depth, decoder_heads: of the decoder, whose blocks
      are plain ones, with an MLP four times as wide, and 'sincos2d' positions.
  """

  mask_ratio: float = 0.75
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16

  def check(self, size: tuple[int, int]):
    super().check(size)
    patches = grid(size, self.patch)
    count = patches[0] * patches[1]
    kept = round(count * (1 - self.mask_ratio))
    if not (0 < self.mask_ratio < 1 and 0 < kept < count):
      raise UserError(
        f'config.model.mask_ratio = {self.mask_ratio} hides '
        f'{max(0, min(count, count - kept))} of {count} patches: above 0 and '
        f'below 1, so that some are seen and some are not.'
      )
    for field in ('decoder_width', 'decoder_depth', 'decoder_heads'):
      if getattr(self, field) < 1:
        raise UserError(
          f'config.model.{field} = {getattr(self, field)}: at least 1.'
        )
    if self.decoder_width % self.decoder_heads:
      raise UserError(
        f'config.model.decoder_heads = {self.decoder_heads} does not divide '
        f'config.model.decoder_width = {self.decoder_width}.'
      )
    sincos2d(patches, self.decoder_width)  # refuses what is no multiple of 4
    width = self.decoder_width // self.decoder_heads
    why = kernels.refusal(self.attention, self.dtype, width)
    if why:
      raise UserError(f'config.model.attention in the decoder: {why}.')
    plain = {'patch_dropout': 0.0, 'pool_norm': 'before', 'representation': 0}
    plain |= {'distill_token': False, 'head_bias': 0.0}
    for field, value in plain.items():
      if getattr(self, field) != value:
        raise UserError(
          f'config.model.{field} = {getattr(self, field)!r}: a masked '
          f'autoencoder has none; leave it at {value!r}.'
        )
    if self.pool == 'map':
      raise UserError(
        "config.model.pool = 'map' is learned with labels, which a masked "
        "autoencoder has not; 'cls' and 'mean' are not."
      )

  def _logits(self, x, distill):
    return x, x if distill is None else distill

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B h w c'],
    *,
    train: bool = False,
    capture: tuple[str, ...] = (),
    masking: jax.Array | None = None,
  ):
    """What a ViT without head gives; with `masking`, what the decoder draws.

    Args:
      images: (B, h, w, c).
      train: as in ViT.
      capture: as in ViT, without `masking`.
      masking: keys (B,); an image's hidden patches are a function of its own.

    Returns:
      With `masking`, all patches as drawn (B, N, P²·c), in float32 and in the
      units of the loss, and which were hidden (B, N).
    """
    if masking is None and not self.is_initializing():
      of_blocks = tuple(n for n in capture if n in ('tokens', 'attention'))
      x, outputs, _ = self.encode(images, train=train, capture=of_blocks)
      return self.read(x, outputs, capture)
    keys = masking
    if keys is None:  # initialising
      keys = jax.random.split(jax.random.key(0), len(images))
    x, _, seen = self.encode(
      images, train=train, visible=(keys, 1 - self.mask_ratio)
    )
    layer = Layer(
      heads=self.decoder_heads,
      hidden=4 * self.decoder_width,
      mlp='gelu',
      gelu=self.gelu,
      epsilon=self.epsilon,
      qkv_bias=True,
      qk_norm=False,
      layer_scale=0.0,
      dropout=0.0,
      drop_path=0.0,
      dtype=jnp.dtype(self.dtype),
      attention=self.attention,
      mlp_kernel=self.mlp_kernel,
    )
    pixels = self.patch**2 * images.shape[-1]
    patches = grid(images.shape[1:3], self.patch)
    return Decoder(
      self.decoder_depth,
      layer,
      self.prefix,
      self.remat,
      self.unroll,
      name='decoder',
    )(x, seen, patches, pixels, train)
