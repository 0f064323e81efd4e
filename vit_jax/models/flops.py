"""Floating-point operations of a ViT, counted from its fields."""

from vit_jax.models.mae import MAE
from vit_jax.models.patches import grid
from vit_jax.models.segmenter import Segmenter
from vit_jax.models.variants import STEMS, parse
from vit_jax.models.vit import ViT

# What the backward pass and the forward pass cost, in forward passes.
TRAINING = 3


def _stem(
  stages: tuple[int, ...], size: tuple[int, int], channels: int
) -> tuple[int, int]:
  """FLOPs of the convolutions of stem.py, and the channels they end with."""

  def halved(h, w):
    return -(-h // 2), -(-w // 2)

  h, w = halved(*size)
  total = 2 * 7 * 7 * channels * 64 * h * w
  (h, w), inputs = halved(h, w), 64
  for i, units in enumerate(stages):
    features = 64 * 2**i
    for j in range(units):
      before = h * w
      if i and not j:
        h, w = halved(h, w)
      after, wide = h * w, 4 * features
      macs = inputs * features * before  # 1x1
      macs += 3 * 3 * features * features * after
      macs += features * wide * after  # 1x1
      if inputs != wide or before != after:
        macs += inputs * wide * after  # the shortcut
      total, inputs = total + 2 * macs, wide
  return total, inputs


def _decoder(model: Segmenter, size: tuple[int, int]) -> int:
  """FLOPs of a segmenter's decoder, and of the enlargement of its scores."""
  patches, classes = grid(size, model.patch), model.classes
  gh, gw = (n * model.detail for n in patches)
  total = 2 * classes * (size[0] * gh * gw + size[0] * size[1] * gw)
  total *= model.detail < model.patch
  n, inputs = patches[0] * patches[1], model.shape.width
  inputs *= len(model.features) or 1
  if model.decoder == 'linear':
    return total + 2 * inputs * gh * gw * classes
  d, _ = model.decoder_shape
  tokens = n + classes
  mlp = (24 if model.mlp == 'swiglu' else 16) * tokens * d * d
  block = 8 * tokens * d * d + mlp + 4 * tokens * tokens * d
  ends = 2 * n * inputs * d + 2 * (gh * gw + classes) * d * d
  return total + model.decoder_depth * block + ends + 2 * gh * gw * classes * d


def forward(
  model: ViT, size: tuple[int, int], channels: int = 3, *, train: bool = False
) -> dict[str, int]:
  """FLOPs of one image (h, w, channels), by part of the model.

  Matrix products and convolutions only, 2 FLOPs a multiply-add. A layer of N
  tokens takes 8 N D² (projections) + 4 N D F (MLP; 6 if 'swiglu') + 4 N² D
  (scores and their use). `train`: without the patches that `patch_dropout`
  leaves out or a masked autoencoder hides, and with its decoder; a step takes
  `TRAINING` times as many.
  """
  shape, (_, patch, stem) = model.shape, parse(model.variant)
  d, f = shape.width, shape.hidden
  stages, stride = STEMS[stem]
  parts = {}
  if stem:
    parts['stem'], channels = _stem(stages, size, channels)
  gh, gw = grid(size, patch)
  patches = gh * gw
  parts['embed'] = 2 * patches * (patch // stride) ** 2 * channels * d
  masked = model.mask_ratio if isinstance(model, MAE) else model.patch_dropout
  if train and masked:
    patches = max(1, round(patches * (1 - masked)))
  n = model.prefix + patches
  mlp = (6 if model.mlp == 'swiglu' else 4) * n * d * f
  parts['encoder'] = shape.depth * (8 * n * d * d + mlp + 4 * n * n * d)
  if model.pool == 'map':  # one query
    parts['pool'] = (4 + 4 * n) * d * d + 4 * n * d + 4 * d * f
  outputs = n if model.pool == 'none' else 1
  if model.representation:
    parts['representation'] = 2 * outputs * d * model.representation
  if isinstance(model, Segmenter):
    return parts | {'decoder': _decoder(model, size)}
  if model.classes and not isinstance(model, MAE):
    one = 2 * (model.representation or d) * model.classes
    parts['head'] = outputs * one
    if model.distill_token:
      parts['distill_head'] = 2 * d * model.classes
  if isinstance(model, MAE) and train:
    width, n = model.decoder_width, model.prefix + gh * gw
    block = 24 * n * width * width + 4 * n * n * width
    ends = 2 * n * width * (d + patch**2 * channels)
    parts['decoder'] = model.decoder_depth * block + ends
  return parts
