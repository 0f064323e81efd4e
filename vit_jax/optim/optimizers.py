"""The optimizers: what they make of a gradient, before decay and rate.

The keyword-only parameters are the fields of `config.optim`. Blocks are stacked
along axis 0, so whatever an optimizer does by matrix is done there by layer.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit_jax import trees
from vit_jax.models.heads import is_head
from vit_jax.optim.groups import names, stacked

# Of the first moment at rest: bfloat16 saves two bytes a parameter. The second
# one stays: bfloat16's 8 bits would lose its small changes.
Moments = Literal['float32', 'bfloat16']


def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  moments: Moments = 'float32',
) -> optax.GradientTransformation:
  """Adam's scaling; the decay is decoupled (arXiv 1412.6980, 1711.05101)."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moments)


def sgd(
  *, momentum: float = 0.9, nesterov: bool = False, moments: Moments = 'float32'
) -> optax.GradientTransformation:
  """Momentum: m <- momentum * m + g; the decay is decoupled here too."""
  return optax.trace(
    decay=momentum, nesterov=nesterov, accumulator_dtype=moments
  )


def lion(
  *, b1: float = 0.9, b2: float = 0.99, moments: Moments = 'float32'
) -> optax.GradientTransformation:
  """The sign of b1 * m + (1 - b1) * g (arXiv 2302.06675, algorithm 2).

  It wants 3 to 10 times less rate, and as much more decay, than AdamW.
  """
  return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=moments)


def lamb(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  moments: Moments = 'float32',
) -> optax.GradientTransformation:
  """Adam's scaling; `trust_ratio` follows the decay (arXiv 1904.00962)."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moments)


def trust_ratio() -> optax.GradientTransformation:
  """Updates of the kernels get their kernel's norm, layer by layer.

  arXiv 1904.00962, algorithm 2, with phi(z) = z. Biases and norms are left out
  as in the authors' code; so are heads, which start at 0 and would stay there.
  """
  inner = optax.scale_by_trust_ratio()

  def one(name, update, param):
    if not name.endswith('kernel') or is_head(name):
      return update

    def scale(update, param):
      return inner.update(update, optax.EmptyState(), param)[0]

    return (jax.vmap(scale) if stacked(name) else scale)(update, param)

  return optax.stateless(
    lambda updates, params: jax.tree.map(one, names(updates), updates, params)
  )


def adafactor(
  *, momentum: float = 0.9, b2: float = 0.999, moments: Moments = 'bfloat16'
) -> optax.GradientTransformation:
  """Adafactor as ViTs are trained by it (arXiv 2106.04560, section 3.4).

  A factored second moment whose decay, 1 - step^-0.8, stops growing at `b2`,
  then a momentum; the rate is as for Adam, not relative to the parameters.
  """
  return optax.chain(
    scale_by_factored_rms(b2),
    optax.ema(momentum, debias=False, accumulator_dtype=moments),
  )


class Factored(NamedTuple):
  count: Any
  v: Any  # by parameter: an array, or {'row': array, 'col': array}


def scale_by_factored_rms(b2: float) -> optax.GradientTransformation:
  """Divides by the root of a mean square of rank one (arXiv 1804.04235).

  Rows and columns are the two largest axes, if both are of 32 or more; means
  over each are kept. Optax's would take the layer for one in a deep model, and
  keeps placeholders, which sharding by path would have to know.
  """

  def axes(name, shape):
    own = range(stacked(name), len(shape))
    large = sorted(own, key=lambda axis: shape[axis])[-2:]
    return large if len(large) == 2 and shape[large[0]] >= 32 else None

  def start(name, param):
    square = jnp.zeros(param.shape, jnp.float32)
    if found := axes(name, param.shape):
      row, col = found
      return {'row': square.mean(col), 'col': square.mean(row)}
    return square

  def update(updates, state, params=None):
    del params
    step = (state.count + 1).astype(jnp.float32)
    decay = jnp.minimum(b2, 1 - step**-0.8)

    def moved(name, grad, v):
      square = jnp.square(grad) + 1e-30
      if found := axes(name, grad.shape):
        row, col = found
        square = {'row': square.mean(col), 'col': square.mean(row)}
      return jax.tree.map(lambda v, s: decay * v + (1 - decay) * s, v, square)

    def scaled(name, grad, v):
      if not (found := axes(name, grad.shape)):
        return grad * jax.lax.rsqrt(v)
      row, col = found
      rows = jnp.expand_dims(v['row'], col)
      cols = jnp.expand_dims(v['col'], row)
      rows /= rows.mean(row, keepdims=True)  # apart: products underflow
      return grad * jax.lax.rsqrt(rows) * jax.lax.rsqrt(cols)

    paths = names(updates)
    v = jax.tree.map(moved, paths, updates, state.v)
    return jax.tree.map(scaled, paths, updates, v), Factored(state.count + 1, v)

  return optax.GradientTransformation(
    lambda params: Factored(
      jnp.zeros((), jnp.int32), trees.map_paths(start, params)
    ),
    update,
  )


def muon(
  *,
  momentum: float = 0.95,
  nesterov: bool = True,
  rms: float = 0.2,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  moments: Moments = 'float32',
) -> optax.GradientTransformation:
  """Muon for the matrices of the blocks, Adam for the rest.

  Momentum, made nearly orthogonal (Keller Jordan,
  kellerjordan.github.io/posts/muon). Optax's corrects the momentum's bias,
  which gives the gradient more weight in the first steps.

  Args:
    momentum, nesterov: of the matrices.
    rms: of their updates; 0.2 is about Adam's, so that one rate serves both
      (arXiv 2502.16982, section 2.2). 0: Jordan's sqrt(max(1, out / in)) times
      an orthogonal matrix.
    b1, b2, eps: of Adam.
    moments: of the momentum and of Adam's first moment.
  """

  def orthogonal(name, x):
    size = math.prod(x.shape[1:])
    # Kernels are (in, out), (D, H, K) or (H, K, D).
    out = name.endswith('attention/out/kernel')
    fan_in = size // x.shape[-1] if out else x.shape[1]
    fan_out = size // fan_in
    y = orthogonalised(x.reshape(-1, fan_in, fan_out)).reshape(x.shape)
    if rms:
      return y * (rms * max(fan_in, fan_out) ** 0.5)
    return y * max(1, fan_out / fan_in) ** 0.5

  def labels(tree):
    return trees.map_paths(
      lambda name, _: (
        'muon' if stacked(name) and name.endswith('kernel') else 'adam'
      ),
      tree,
    )

  matrices = optax.chain(
    optax.trace(momentum, nesterov, moments),
    optax.stateless(lambda updates, _: trees.map_paths(orthogonal, updates)),
  )
  rest = adamw(b1=b1, b2=b2, eps=eps, moments=moments)
  return optax.partition({'muon': matrices, 'adam': rest}, labels)


def orthogonalised(x: Float[Array, 'L m n']) -> Float[Array, 'L m n']:
  """U Vᵀ of each matrix U S Vᵀ, nearly: singular values of 0.7 to 1.2.

  Five steps of Newton-Schulz with Keller Jordan's coefficients.
  """
  if x.shape[1] > x.shape[2]:  # the smaller products
    return orthogonalised(x.mT).mT
  x /= jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7
  for _ in range(5):
    a = x @ x.mT
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x


OPTIMIZERS = {
  'adamw': adamw,
  'sgd': sgd,
  'adafactor': adafactor,
  'lamb': lamb,
  'lion': lion,
  'muon': muon,
}
# What comes between the decay and the rate.
AFTER_DECAY = {'lamb': (trust_ratio,)}
