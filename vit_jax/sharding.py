"""The mesh, and one table of rules from parameter path to mesh axes.

Axes: 'data' replicates the model, 'fsdp' divides the parameters too, 'tensor'
divides heads and MLP width. The batch is divided over data and fsdp. Rules are
by path and parameters plain arrays; what a rule names and the array's size does
not allow is replicated, with one log line.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax import trees
from vit_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(('data', 'fsdp'))

# First match wins. Blocks have the layer as one more axis in front, which is
# never divided. The stem's convolutions are whole on each device on purpose (8
# million parameters of R50): divided, XLA may divide the channels of images.
RULES = (
  (r'(attention|pool)/(query|key|value)/kernel$', ('fsdp', 'tensor', None)),
  (r'(attention|pool)/(query|key|value)/bias$', ('tensor', None)),
  (r'(attention|pool)/out/kernel$', ('tensor', None, 'fsdp')),
  (r'mlp/(up|gate)/kernel$', ('fsdp', 'tensor')),
  (r'mlp/(up|gate)/bias$', ('tensor',)),
  (r'mlp/down/kernel$', ('tensor', 'fsdp')),
  (r'(embed|head|decoder)/linear/kernel$', ('fsdp', None)),
  (r'representation/kernel$', ('fsdp', None)),
  (r'decoder/(embed|pixels|\w+_projection)/kernel$', ('fsdp', None)),
  (r'decoder/classes$', (None, 'fsdp')),
  (r'positions/table$', (None, 'fsdp')),
)


_SAID: set[tuple[int, str, int]] = set()  # what does not divide, once each


def make_mesh(
  axes: Mapping[str, int], devices: Any = None
) -> jax.sharding.Mesh:
  """A mesh of the given shape; one axis of -1 takes the devices left over.

  Devices of several slices (of TPUs, or nodes of GPUs) are arranged so that the
  slow network between them is crossed by 'data' as far as it divides, else by
  'fsdp', never by 'tensor'.

  Raises:
    UserError: the devices cannot be arranged so.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [axes[name] for name in AXES]
  shown = 'config.mesh = ' + ', '.join(
    f'{n}={s}' for n, s in zip(AXES, sizes, strict=True)
  )
  if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
    raise UserError(f'{shown}: sizes from 1, and at most one -1.')
  known = int(np.prod([s for s in sizes if s > 0]))
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    kept = [math.gcd(s, len(devices)) for s in sizes[1:]]
    kept[1] = math.gcd(kept[1], len(devices) // kept[0])
    raise UserError(
      f'{shown} does not fit {len(devices)} devices: their product has to be '
      f'{len(devices)}, as of data=-1, fsdp={kept[0]}, tensor={kept[1]}.'
    )
  sizes = [len(devices) // known if s == -1 else s for s in sizes]
  slices = len({getattr(d, 'slice_index', None) for d in devices})
  data = math.gcd(sizes[0], slices)
  outer = (data, slices // data, 1)
  inner = [size // o for size, o in zip(sizes, outer, strict=True)]
  if sizes[1] % outer[1]:
    raise UserError(
      f'{shown}: data x fsdp = {sizes[0]} x {sizes[1]} does not divide among '
      f'{slices} slices; tensor has to stay within one.'
    )
  split = {'devices': devices, 'allow_split_physical_axes': True}
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, **split)
  else:
    grid = mesh_utils.create_device_mesh(inner, **split)
  return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def constrain(x: jax.Array) -> jax.Array:
  """Keeps activations (B, ...) divided by batch, where a mesh is set.

  Without this, FSDP gathers whole-batch activations instead of parameters.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or 'fsdp' not in mesh.axis_names:
    return x
  return jax.lax.with_sharding_constraint(x, BATCH)


def ways(axis: str) -> int:
  """In how many parts the mesh that is set divides an axis of it."""
  return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def _of_batch(mesh: Any, count: int) -> tuple[str, ...] | None:
  """The axes that divide so many examples; None: none does evenly."""
  if mesh.empty or 'fsdp' not in mesh.axis_names:
    return None
  return None if count % (mesh.shape['data'] * mesh.shape['fsdp']) else BATCH[0]


def heads_spec(shape: tuple[int, ...]) -> PartitionSpec | None:
  """How an array (B, N, H, K) is divided where a mesh is set, or None.

  What the mesh does not divide evenly, each device has whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or 'fsdp' not in mesh.axis_names:
    return None
  batch = _of_batch(mesh, shape[0])
  heads = None if shape[2] % mesh.shape['tensor'] else 'tensor'
  return PartitionSpec(batch, None, heads, None)


def by_batch(
  function: Callable[..., jax.Array], x: jax.Array, *whole: jax.Array
) -> jax.Array:
  """function(x, *whole), of what each device has of the batch.

  For what the compiler cannot look into, and so cannot divide. `whole` is
  whole on each device. A batch that the mesh does not divide evenly is computed
  by each device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(x, *whole)
  batch = PartitionSpec(_of_batch(mesh, x.shape[0]))
  specs = (batch, *[PartitionSpec()] * len(whole))
  return jax.shard_map(
    function, in_specs=specs, out_specs=batch, check_vma=False
  )(x, *whole)


def spec_of(
  name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> PartitionSpec:
  """The mesh axis of each dimension of the parameter at path `name`."""
  for pattern, axes in RULES:
    if re.search(pattern, name):
      axes = (None,) * (len(shape) - len(axes)) + axes
      spec = []
      for size, axis in zip(shape, axes, strict=True):
        if axis and size % mesh.shape[axis]:
          if (size, axis, mesh.shape[axis]) not in _SAID:
            _SAID.add((size, axis, mesh.shape[axis]))
            logging.warning(
              '%s=%d does not divide %d: each device has such parameters '
              'whole (%s %s)',
              axis,
              mesh.shape[axis],
              size,
              name,
              shape,
            )
          axis = None
        spec.append(axis)
      return PartitionSpec(*spec)
  return PartitionSpec()


def shard(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """The sharding of each leaf of a tree of (abstract) parameters or state."""
  return trees.map_paths(
    lambda name, leaf: NamedSharding(mesh, spec_of(name, leaf.shape, mesh)),
    tree,
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The batch divided over data and fsdp."""
  return NamedSharding(mesh, BATCH)
