"""Parameter trees by path: names, counts, and a digest of their bits."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def paths(tree: Any) -> list[tuple[str, Any]]:
  """The leaves with their paths: ('blocks/mlp/up/kernel', array), in order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in leaves
  ]


def map_paths(function: Any, tree: Any) -> Any:
  """The tree of function(path, leaf)."""
  names = [name for name, _ in paths(tree)]
  leaves, treedef = jax.tree_util.tree_flatten(tree)
  return treedef.unflatten(map(function, names, leaves))


def count(tree: Any) -> int:
  """Number of scalars in a tree of arrays or abstract arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bits(leaf: jax.Array) -> jax.Array:
  """The leaf's bits as uint32, one or more words an element."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = jax.lax.bitcast_convert_type(leaf, word[leaf.dtype.itemsize])
  return bits.astype(jnp.uint32)


_SEEDS = np.array([1, 0x9E3779B1], np.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 (MurmurHash3's last step)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


@jax.jit
def _sums(tree: Any) -> Any:
  """Two sums modulo 2^32 a leaf, of words mixed with their positions: (2,).

  A mixed word is a bijection of the word: a change of any one changes both
  sums. (Weighted sums would not do: two changed signs, 2^31 each, cancel.)
  Positions come from iotas, so a sharded leaf is summed where it lies.
  """

  def leaf_sums(leaf):
    bits = _bits(leaf)
    position = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
      iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
      position += iota * np.uint32(stride % 2**32)
      stride *= bits.shape[axis]
    mixed = [_mix(bits ^ _mix(position + s)) for s in _SEEDS]
    return jnp.stack([jnp.sum(m, dtype=jnp.uint32) for m in mixed])

  return jax.tree.map(leaf_sums, tree)


def digest(tree: Any) -> str:
  """sha256 over (path, dtype, shape, sums) of the leaves: same bits, same hex.

  Independent of how the arrays are sharded; computed on the devices, so that
  only eight bytes a leaf travel.
  """
  sums = jax.device_get(_sums(tree))
  sha = hashlib.sha256()
  for (name, leaf), (_, pair) in zip(paths(tree), paths(sums), strict=True):
    sha.update(f'{name} {leaf.dtype} {tuple(leaf.shape)} '.encode())
    sha.update(np.asarray(pair, '<u4').tobytes())
  return sha.hexdigest()
