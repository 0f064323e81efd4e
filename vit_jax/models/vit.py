"""The Vision Transformer (arXiv 2010.11929): patches, positions, encoder, head.

Read with `patches.py`, `positions.py`, `attention.py`, `encoder.py` and
`heads.py`; `docs/tour.md` walks through them in this order.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import UserError, check_choice
from vit_jax.models import kernels
from vit_jax.models import mlp as mlps
from vit_jax.models import positions as encodings
from vit_jax.models.attention import LayerNorm
from vit_jax.models.encoder import Encoder, Layer, Remat
from vit_jax.models.heads import AttentionPool, Head, Pool
from vit_jax.models.patches import PatchEmbed, grid, keep_patches
from vit_jax.models.stem import Flavour, Stem
from vit_jax.models.variants import STEMS, Variant, parse

CAPTURES = (
  'tokens',
  'attention',
  'pooled',
  'logits',
  'class_logits',
  'distill_logits',
)


class ViT(nn.Module, kw_only=True):
  """Images (B, h, w, c) -> logits (B, Y), or pooled features if Y is 0.

  The attributes with defaults are the fields of `config.model`.

  Attributes:
    classes: Y; 0: no head.
    variant: size and patch, 'S/16', or a hybrid, 'R50+B/16'; see variants.py.
    width: D, depth: L, hidden: F, heads: H; 0: the variant's.
    pool: the head reads the CLS token ('cls'), the mean of the patch tokens
      ('mean'), both side by side ('cls_mean', as DINOv2's classifiers do), what
      a learned query finds ('map', see AttentionPool), or each token by itself
      ('none').
    cls_token: whether there is a CLS token; 'auto': if `pool` reads it.
    distill_token: a second such token with a head of its own, and the logits
      (without heads the features) are the mean of both (DeiT, arXiv
      2012.12877).
    registers: tokens without a meaning of their own (arXiv 2309.16588).
    positions: 'learned', 'sincos1d', 'sincos2d', 'rope2d' or 'none'; see
      positions.py.
    prefix_positions: whether CLS and distillation token have positions too.
    rope_theta: of 'rope2d'.
    pool_norm: the last LayerNorm is 'before' or 'after' the pooling.
    embed_norm: a LayerNorm before the first block too (CLIP).
    representation: width of a tanh layer before the head; 0: none.
    head_bias: initial bias of the head.
    mlp: 'gelu' or 'swiglu'; see mlp.py.
    gelu: 'exact' (erf, as in PyTorch), 'tanh' (as in Google's ViTs), 'quick'.
    epsilon: of the LayerNorms.
    qkv_bias, qk_norm: see attention.py.
    layer_scale: initial scale of each branch's output; 0: none.
    stem: of a hybrid, whose epsilons; see stem.py.
    dropout: rate after attention, and within and after the MLP.
    drop_path: rate of stochastic depth in the last block.
    patch_dropout: rate of patch tokens left out in training (arXiv 2212.00794).
    dtype: of the computation; parameters, normalisation, softmax and loss are
      float32 in any case.
    attention: the kernel of it, 'auto', 'xla', 'cudnn' (GPUs), 'splash' or
      'short' (TPUs); see kernels.py.
    mlp_kernel: of the blocks' MLPs, 'auto', 'xla' or 'fused' (TPUs); see
      mlp.py.
    remat, unroll: memory and speed, not the function; see encoder.py.
  """

  classes: int
  variant: str = 'S/16'
  width: int = 0
  depth: int = 0
  hidden: int = 0
  heads: int = 0
  pool: Pool = 'cls'
  cls_token: Literal['auto', 'yes', 'no'] = 'auto'
  distill_token: bool = False
  registers: int = 0
  positions: encodings.Kind = 'learned'
  prefix_positions: bool = True
  rope_theta: float = 100.0
  pool_norm: Literal['before', 'after'] = 'before'
  embed_norm: bool = False
  representation: int = 0
  head_bias: float = 0.0
  mlp: mlps.Kind = 'gelu'
  gelu: mlps.Gelu = 'exact'
  epsilon: float = 1e-6
  qkv_bias: bool = True
  qk_norm: bool = False
  layer_scale: float = 0.0
  stem: Flavour = 'google'
  dropout: float = 0.0
  drop_path: float = 0.0
  patch_dropout: float = 0.0
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  attention: kernels.Kind = 'auto'
  mlp_kernel: mlps.Kernel = 'auto'
  remat: Remat = 'none'
  unroll: int = 1

  @property
  def shape(self) -> Variant:
    """Width, depth, MLP width and heads, the variant's unless overridden."""
    base = parse(self.variant)[0]
    return Variant(
      width=self.width or base.width,
      depth=self.depth or base.depth,
      hidden=self.hidden or (4 * self.width if self.width else base.hidden),
      heads=self.heads or base.heads,
    )

  @property
  def patch(self) -> int:
    """Side in pixels of what a token sees."""
    return parse(self.variant)[1]

  @property
  def special(self) -> tuple[str, ...]:
    """The tokens before registers and patches: of ('cls', 'distill')."""
    auto = 'yes' if self.pool in ('cls', 'cls_mean') else 'no'
    cls = (auto if self.cls_token == 'auto' else self.cls_token) == 'yes'
    return ('cls',) * cls + ('distill',) * self.distill_token

  @property
  def prefix(self) -> int:
    """Number of tokens before those of the patches."""
    return len(self.special) + self.registers

  def check(self, size: tuple[int, int]):
    """Raises UserError unless the fields make a model for images (h, w)."""
    shape = self.shape
    for field in (
      'width',
      'depth',
      'hidden',
      'heads',
      'unroll',
      'registers',
      'representation',
      'layer_scale',
      'epsilon',
    ):
      if getattr(self, field) < 0:
        raise UserError(f'config.model.{field} = {getattr(self, field)} < 0.')
    for field in ('dropout', 'drop_path', 'patch_dropout'):
      if not 0 <= getattr(self, field) < 1:
        value = getattr(self, field)
        raise UserError(f'config.model.{field} = {value}: a rate, 0 <= r < 1.')
    if shape.width % shape.heads:
      near = [h for h in range(1, shape.width + 1) if not shape.width % h]
      best = min(near, key=lambda h: abs(h - shape.heads))
      raise UserError(
        f'config.model.heads = {shape.heads} does not divide the width '
        f'{shape.width}; {best} does.'
      )
    if self.pool in ('cls', 'cls_mean') and 'cls' not in self.special:
      raise UserError(
        f"config.model.cls_token = 'no', but pool = {self.pool!r} reads it."
      )
    if self.distill_token and 'cls' not in self.special:
      raise UserError('config.model.distill_token needs a CLS token beside it.')
    pooled = self.pool in ('cls', 'mean') and self.pool_norm == 'before'
    if self.distill_token and not pooled:
      raise UserError(
        'config.model.distill_token is treated as CLS is: '
        "pool = 'cls' or 'mean', pool_norm = 'before'."
      )
    if self.rope_theta <= 0:
      raise UserError(f'config.model.rope_theta = {self.rope_theta}: above 0.')
    head_width = shape.width // shape.heads
    if self.positions == 'rope2d' and head_width % 4:
      raise UserError(
        f"config.model.positions = 'rope2d' needs heads of a width that is a "
        f'multiple of 4, not {head_width}.'
      )
    refused = {
      'attention': kernels.refusal(self.attention, self.dtype, head_width),
      'mlp_kernel': mlps.refusal(self.mlp_kernel, self.dtype, self.mlp),
    }
    fields = {'attention': 'dtype, heads, width', 'mlp_kernel': 'dtype, mlp'}
    for field, why in refused.items():
      if why:
        raise UserError(
          f'config.model.{field} = {getattr(self, field)!r}: {why} '
          f"(config.model.{fields[field]}); 'auto' and 'xla' take any."
        )
    patches = grid(size, self.patch)
    if self.positions == 'sincos2d':
      encodings.sincos2d(patches, shape.width)

  def _embed(self, images: Float[Array, 'B h w c']) -> Float[Array, 'B N D']:
    """Tokens with their positions: CLS, distillation, registers, patches."""
    dtype, width = jnp.dtype(self.dtype), self.shape.width
    _, patch, stem = parse(self.variant)
    stages, stride = STEMS[stem]
    x = images
    if stem:
      x = Stem(stages, self.stem, dtype, name='stem')(x)
    x = PatchEmbed(width, patch // stride, dtype, name='embed')(x)

    def tokens(name, count):
      init = (
        nn.initializers.normal(0.02) if count > 1 else nn.initializers.zeros
      )
      table = self.param(name, init, (count, width)).astype(dtype)
      return jnp.broadcast_to(table, (images.shape[0], count, width))

    def positioned(x, prefix):
      patches = grid(images.shape[1:3], patch)
      return encodings.Positions(
        self.positions, patches, prefix, name='positions'
      )(x)

    special = [tokens(name, 1) for name in self.special]
    if self.prefix_positions:
      x = positioned(jnp.concatenate([*special, x], 1), len(special))
      special, x = jnp.split(x, [len(special)], 1)
      special = [special]
    else:
      x = positioned(x, 0)
    if self.registers:
      special.append(tokens('registers', self.registers))
    return jnp.concatenate([*special, x], 1)

  def _rotation(self, size: tuple[int, int]) -> encodings.Rotation | None:
    if self.positions != 'rope2d':
      return None
    width = self.shape.width // self.shape.heads
    patches = grid(size, self.patch)
    return encodings.rope2d(patches, width, self.rope_theta, self.prefix)

  def _pool(self, x: Float[Array, 'B N D']):
    if self.pool == 'cls':
      return x[:, 0]
    if self.pool in ('mean', 'cls_mean'):
      mean = jnp.mean(x[:, self.prefix :], axis=1)
      if self.pool == 'mean':
        return mean
      return jnp.concatenate([x[:, 0], mean], -1)
    if self.pool == 'none':
      return x
    shape, dtype = self.shape, jnp.dtype(self.dtype)
    return AttentionPool(
      shape.heads, shape.hidden, self.gelu, self.epsilon, dtype, name='pool'
    )(x)

  def _logits(
    self, x: Float[Array, '... D'], distill: Float[Array, 'B D'] | None
  ):
    if self.representation:
      dtype = jnp.dtype(self.dtype)
      x = nn.Dense(self.representation, dtype=dtype, name='representation')(x)
      x = jnp.tanh(x)
    if not self.classes:
      return x, x if distill is None else distill
    logits = Head(self.classes, self.head_bias, name='head')(x)
    if distill is None:
      return logits, logits
    other = Head(self.classes, self.head_bias, name='distill_head')(distill)
    return logits, other

  def encode(
    self,
    images: Float[Array, 'B h w c'],
    *,
    train: bool,
    capture: tuple[str, ...] = (),
    visible: tuple[jax.Array, float] | None = None,
  ):
    """Tokens (B, N, D) after the last block, to be called by `__call__`.

    Args:
      images: (B, h, w, c).
      train: as of `__call__`.
      capture: any of 'tokens', 'attention'.
      visible: (keys (B,), fraction) of the patches that are seen at all.

    Returns:
      The tokens, normalised if that is done before the pooling; what `capture`
      names; and which patches were visible (B, n), or None: all.
    """
    shape, dtype, seen = self.shape, jnp.dtype(self.dtype), None
    x = self._embed(images)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    rotation = self._rotation(images.shape[1:3])
    if self.patch_dropout and train:
      keys = jax.random.split(self.make_rng('dropout'), len(x))
      visible = keys, 1 - self.patch_dropout
    if visible:
      keys, kept = visible
      x, rotation, seen = keep_patches(keys, x, rotation, self.prefix, kept)
    if self.embed_norm:
      x = LayerNorm(self.epsilon, dtype, name='embed_norm')(x)
    layer = Layer(
      heads=shape.heads,
      hidden=shape.hidden,
      mlp=self.mlp,
      gelu=self.gelu,
      epsilon=self.epsilon,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      dropout=self.dropout,
      drop_path=self.drop_path,
      dtype=dtype,
      attention=self.attention,
      mlp_kernel=self.mlp_kernel,
    )
    x, outputs = Encoder(
      shape.depth, layer, self.remat, self.unroll, name='encoder'
    )(x, rotation, train=train, capture=capture)
    return self._norm(x, 'before'), outputs, seen

  def _norm(self, x: jax.Array, where: str) -> jax.Array:
    """The last LayerNorm, in the one of two places where it is."""
    if self.pool_norm != where:
      return x
    return LayerNorm(self.epsilon, jnp.dtype(self.dtype), name='norm')(x)

  def read(
    self, x: Float[Array, 'B N D'], outputs: dict, capture: tuple[str, ...]
  ):
    """What `__call__` returns, from what `encode` does."""
    pooled, distill = self._pool(x), x[:, 1] if self.distill_token else None
    pooled = self._norm(pooled, 'after')
    logits, other = self._logits(pooled, distill)
    both = logits if distill is None else (logits + other) / 2
    found = {
      'pooled': pooled,
      'logits': both,
      'class_logits': logits,
      'distill_logits': other,
    } | outputs
    return (both, {n: found[n] for n in capture}) if capture else both

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B h w c'],
    *,
    train: bool = False,
    capture: tuple[str, ...] = (),
  ):
    """Logits; with `capture`, also a dict of what it names.

    Args:
      images: (B, h, w, c), in the value range of the data's ops.
      train: dropout and stochastic depth, which need rngs={'dropout': key}.
      capture: any of 'tokens' (L, B, N, D) after each block, 'attention'
        (L, B, H, N, N), 'pooled' (B, D), 'logits' (B, Y), 'class_logits' of
        the CLS token's head and 'distill_logits' of the distillation token's
        (where there is none, all three are the same).
    """
    for name in capture:
      check_choice('capture', name, CAPTURES)
    of_blocks = tuple(n for n in capture if n in ('tokens', 'attention'))
    x, outputs, _ = self.encode(images, train=train, capture=of_blocks)
    return self.read(x, outputs, capture)
