"""A convolutional stem: the first stages of a ResNet-v2 (section 1.7.2).

The hybrid of arXiv 2010.11929, section 3.1: the encoder reads the feature map
of a CNN. Weight-standardised convolutions (arXiv 1903.10520) and GroupNorm, as
in BiT (arXiv 1912.11370): no batch statistics.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# What keeps a division finite is part of a trained model. Google: the kernel
# over (std + 1e-5), GroupNorm 1e-6; timm: over sqrt(var + 1e-8), and 1e-5.
Flavour = Literal['google', 'timm']


class StdConv(nn.Module):
  """A convolution whose kernel has mean 0 and variance 1 per output channel."""

  features: int
  size: int
  stride: int
  flavour: Flavour
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w c']) -> Float[Array, 'B g f d']:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
    variance = jnp.square(kernel).mean((0, 1, 2), keepdims=True)
    if self.flavour == 'timm':
      kernel = kernel / jnp.sqrt(variance + 1e-8)
    else:
      kernel = kernel / (jnp.sqrt(variance) + 1e-5)
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _norm(flavour, dtype, name, **kwargs):
  epsilon = 1e-5 if flavour == 'timm' else 1e-6
  return nn.GroupNorm(32, epsilon=epsilon, dtype=dtype, name=name, **kwargs)


class Unit(nn.Module):
  """A bottleneck: 1x1, 3x3 (with the stride), 1x1 to 4 x `features`."""

  features: int
  stride: int
  flavour: Flavour
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w c']):
    def conv(features, size, stride, name):
      return StdConv(
        features, size, stride, self.flavour, self.dtype, name=name
      )

    def norm(name, **kwargs):
      return _norm(self.flavour, self.dtype, name, **kwargs)

    wide, shortcut = 4 * self.features, x
    if x.shape[-1] != wide or self.stride > 1:
      shortcut = norm('proj_norm')(conv(wide, 1, self.stride, 'proj')(x))
    y = nn.relu(norm('norm1')(conv(self.features, 1, 1, 'conv1')(x)))
    y = nn.relu(norm('norm2')(conv(self.features, 3, self.stride, 'conv2')(y)))
    # Zero at first: a unit starts as its shortcut.
    last = norm('norm3', scale_init=nn.initializers.zeros)
    return nn.relu(shortcut + last(conv(wide, 1, 1, 'conv3')(y)))


class Stem(nn.Module):
  """Images (B, h, w, c) -> features (B, h / s, w / s, C).

  A 7x7 convolution of stride 2 with 64 channels, a 3x3 max-pool of stride 2,
  then stages of bottlenecks of 64, 128, 256, 512 features; s is 4 after the
  pool and doubles from the second stage on.
  """

  stages: tuple[int, ...]
  flavour: Flavour
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w c']):
    x = StdConv(64, 7, 2, self.flavour, self.dtype, name='root')(x)
    x = nn.relu(_norm(self.flavour, self.dtype, 'root_norm')(x))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for i, units in enumerate(self.stages):
      for j in range(units):
        stride = 2 if i and not j else 1
        x = Unit(
          64 * 2**i,
          stride,
          self.flavour,
          self.dtype,
          name=f'stage{i + 1}_unit{j + 1}',
        )(x)
    return x
