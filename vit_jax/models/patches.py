"""An image as a sequence of patches: (h, w, c) -> (N, P²·c), and back.

Sections 1.2 and 1.3 of the notes; arXiv 2010.11929, section 3.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vit_jax.errors import UserError


def grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
  """Patches down and across, (gh, gw).

  Raises:
    UserError: the patch does not divide the image.
  """
  h, w = size
  if patch < 1 or h % patch or w % patch:
    near = [max(1, round(side / max(patch, 1))) * patch for side in size]
    dividing = [p for p in range(1, min(size) + 1) if not (h % p or w % p)]
    raise UserError(
      f'patch size {patch} does not divide the image {h}x{w}: set config.size '
      f'to {near[0] if near[0] == near[1] else tuple(near)}, or a patch in '
      f'config.model.variant among {dividing}.'
    )
  return h // patch, w // patch


def patchify(
  images: Shaped[Array, 'B h w c'], patch: int
) -> Shaped[Array, 'B N PPc']:
  """Patches row by row, each flattened in the order (row, column, channel)."""
  b, h, w, c = images.shape
  gh, gw = grid((h, w), patch)
  x = images.reshape(b, gh, patch, gw, patch, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, gh * gw, patch * patch * c)


def unpatchify(
  patches: Shaped[Array, 'B N PPc'], size: tuple[int, int], patch: int
) -> Shaped[Array, 'B h w c']:
  """The inverse of `patchify`, for images of `size` (h, w)."""
  gh, gw = grid(size, patch)
  b, n, length = patches.shape
  if n != gh * gw or length % patch**2:
    raise ValueError(f'{patches.shape} are not the patches of {size}')
  x = patches.reshape(b, gh, gw, patch, patch, length // patch**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, *size, -1)


def keep_patches(
  keys: jax.Array,
  x: Float[Array, 'B N D'],
  tables: tuple | None,
  prefix: int,
  fraction: float,
):
  """A random subset of each image's patch tokens, in their order.

  Args:
    keys: (B,), each draws its image's subset.
    x: tokens, of which the first `prefix` are not patches and all stay.
    tables: of one row a token (N, K), to be taken along; or None.
    prefix: number of tokens before the patches.
    fraction: of the patches to keep; the same number for each image.

  Returns:
    The tokens, their tables, and which patches they are (B, kept).
  """
  n = x.shape[1] - prefix
  kept = max(1, round(n * fraction))
  noise = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)
  order = jnp.sort(jnp.argsort(noise, 1)[:, :kept], 1)
  fixed = jnp.broadcast_to(jnp.arange(prefix), (len(x), prefix))
  index = jnp.concatenate([fixed, order + prefix], 1)
  x = jnp.take_along_axis(x, index[..., None], 1)
  return x, tables and tuple(table[index] for table in tables), order


class PatchEmbed(nn.Module):
  """Each patch, flattened, through one linear layer: (B, h, w, c) -> (B, N, D).

  The same function as a convolution of size and stride P.
  """

  width: int
  patch: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: Shaped[Array, 'B h w c']):
    return nn.Dense(
      self.width,
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name='linear',
    )(patchify(images, self.patch))
