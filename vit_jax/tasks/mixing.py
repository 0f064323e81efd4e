"""mixup and cutmix: on the devices, over the global batch, in the step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import UserError


def check(mixup: float, cutmix: float, probability: float):
  """Raises UserError unless the values are those of `mix`."""
  for field, value in (('mixup', mixup), ('cutmix', cutmix)):
    if value < 0:
      raise UserError(f'config.task.{field} = {value}: at least 0 (0: none).')
  if not 0 <= probability <= 1:
    raise UserError(f'config.task.mix_probability = {probability}: 0 to 1.')


def box(
  key: jax.Array, size: tuple[int, int], share: Float[Array, '']
) -> Float[Array, 'h w']:
  """0 inside of a box about a random point, cut off at the borders, 1 outside.

  Args:
    key: of the point.
    size: (h, w) of the image.
    share: of the image's area that is outside of a box not cut off.
  """
  inside = []
  for axis, (length, k) in enumerate(
    zip(size, jax.random.split(key), strict=True)
  ):
    side = jnp.floor(length * jnp.sqrt(1 - share))
    centre = jax.random.randint(k, (), 0, length)
    places = jax.lax.broadcasted_iota(jnp.int32, size, axis)
    first = centre - side // 2
    inside.append((places >= first) & (places < first + side))
  return 1.0 - (inside[0] & inside[1])


def mix(
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  mixup: float,
  cutmix: float,
  probability: float,
) -> dict[str, jax.Array]:
  """Each image with the next one of the batch: w x + (1 - w) x'.

  The weights w are one number (mixup, arXiv 1710.09412) or 0 in a box and 1
  around it (cutmix, arXiv 1905.04899), the same for the whole batch; labels get
  their mean. Of both, each batch gets one, by the toss of a coin.

  Args:
    batch: image (B, h, w, c) in float32, label (B,).
    key: random.
    mixup, cutmix: alpha of Beta(alpha, alpha), from which the share of an
      image's own pixels is drawn; 0: not used.
    probability: that a batch is mixed at all.

  Returns:
    The batch with mixed images, `other` (B,), the labels mixed in, and
    `share` (B,), how much of the first label is left.
  """
  image, label = batch['image'], batch['label']
  size = image.shape[1:3]
  coin, alpha, place, chance = jax.random.split(key, 4)
  cut = jax.random.bernoulli(coin) if mixup and cutmix else bool(cutmix)

  def weights(number, strength):
    if not strength:
      return jnp.ones(size)
    k = jax.random.fold_in(alpha, number)
    share = jax.random.beta(k, strength, strength)
    return box(place, size, share) if number else jnp.full(size, share)

  w = jnp.where(cut, weights(1, cutmix), weights(0, mixup))
  w = jnp.where(jax.random.bernoulli(chance, probability), w, 1.0)
  mask = w[..., None]
  return batch | {
    'image': image * mask + jnp.roll(image, 1, 0) * (1 - mask),
    'other': jnp.roll(label, 1, 0),
    'share': jnp.broadcast_to(w.mean(), label.shape),
  }
