"""The fastest way to run a recipe on given devices: remat, mesh, accumulation.

The recipe stays what it is: the global batch is the config's, and accumulation
divides what a device has of it. Ways are compiled in the order of an estimate,
which learns from each, until none that is left promises more than the best, or
`TRIES` are made.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.inspect_model import REMATS, activation_bytes
from vit_jax.models import flops
from vit_jax.models.vit import ViT
from vit_jax.plan.compiled import bytes_here, estimate
from vit_jax.plan.topology import Topology
from vit_jax.setup import Setup

TRIES = 6
_HOPE = 0.8  # an estimate may be as wrong as this
_TENSOR = (1, 2, 4, 8)
_ACCUMULATE = 64  # the most
# Forward passes that a step takes: full remat has one more of the encoder.
_PASSES = {'none': 3, 'dots': 3, 'full': 4}
# The part of the estimated memory without which it cannot be.
_SURE = 0.7


@dataclasses.dataclass(frozen=True)
class Way:
  """To run a recipe; `seconds` a step and `memory` a device are estimates."""

  remat: str
  accumulate: int
  fsdp: int
  tensor: int
  seconds: float
  memory: float

  @property
  def overrides(self) -> list[tuple[str, str]]:
    """Of the config."""
    return [
      ('model.remat', self.remat),
      ('accumulate', str(self.accumulate)),
      ('mesh.data', '-1'),
      ('mesh.fsdp', str(self.fsdp)),
      ('mesh.tensor', str(self.tensor)),
    ]

  def frugal(self, other: 'Way') -> bool:
    """Whether it takes no more memory than another, on the same mesh."""
    return (
      (self.fsdp, self.tensor) == (other.fsdp, other.tensor)
      and REMATS.index(self.remat) >= REMATS.index(other.remat)
      and self.accumulate >= other.accumulate
    )


def apply(
  config: ml_collections.FrozenConfigDict, overrides: list[tuple[str, str]]
) -> ml_collections.FrozenConfigDict:
  """The config with overrides."""
  return config_lib.resolve(config_lib.override(config.to_dict(), overrides))


def _divisors(n: int) -> list[int]:
  return [k for k in range(1, n + 1) if n % k == 0]


def _meshes(count: int, topology: Topology, heads: int, batch: int):
  """(fsdp, tensor, images a replica of the data has) of what divides."""
  for tensor in _TENSOR:
    if count % tensor or heads % tensor:
      continue
    for fsdp in _divisors(count // tensor):
      ways = count // tensor  # that divide the batch
      if ways // fsdp % topology.slices == 0 and batch % ways == 0:
        yield fsdp, tensor, batch // ways


def ways(setup: Setup, topology: Topology, devices: list[Any]) -> Iterator[Way]:
  """All that the devices and the batch allow, with estimates.

  Memory: parameters, average, optimizer and a gradient, divided by the mesh,
  and activations as inspect_model has them. Time: the most of matrix products;
  of the state and the activations, written and read; and of what the links
  carry (arXiv 1910.02054, section 7): with fsdp each micro-batch gathers the
  parameters twice and scatters a gradient, over data a gradient is summed, and
  tensor sums the residual stream four times a block.
  """
  model, hardware, info = setup.model, topology.hardware, setup.info
  batch, count = setup.config.batch_size, len(devices)
  short = model.dtype == 'bfloat16'
  width, peak = (2, hardware.flops) if short else (4, hardware.flops32)
  per_image = sum(flops.forward(model, info.size, info.channels).values())
  alone = apply(
    setup.config,
    [('accumulate', '1'), *((f'mesh.{n}', '1') for n in _MESH)],
  )
  one = Setup(alone, info, devices=devices[:1])
  state = one.abstract_state
  with jax.sharding.use_abstract_mesh(one.mesh.abstract_mesh):  # its attention
    kept = {
      remat: activation_bytes(
        model.clone(remat=remat), info.size, info.channels
      )
      for remat in REMATS
    }
  params, held = bytes_here(state.params), bytes_here(state)
  tokens = model.prefix + math.prod(s // model.patch for s in info.size)
  stream = tokens * model.shape.width * model.shape.depth * width
  meshes = list(_meshes(count, topology, model.shape.heads, batch))
  for (fsdp, tensor, own), remat in ((m, r) for m in meshes for r in REMATS):
    weights, shards = params / 4 * width / tensor, fsdp * tensor
    compute = per_image * _PASSES[remat] * batch / count
    moved = 2 * (held + params) / shards
    moved += 2 / 3 * _PASSES[remat] * kept['none'] * own / tensor
    for accumulate in _divisors(own):
      if accumulate > _ACCUMULATE:
        break
      carried = 2 * params / shards * (count > shards)
      carried += 3 * accumulate * weights * (fsdp > 1)
      carried += 8 * own * stream * (tensor > 1)
      yield Way(
        remat=remat,
        accumulate=accumulate,
        fsdp=fsdp,
        tensor=tensor,
        seconds=max(
          compute / peak,
          (moved + 2 * accumulate * weights) / hardware.bandwidth,
          carried / hardware.links,
        ),
        memory=(held + params) / shards
        + kept[remat] * own / accumulate / tensor,
      )


_MESH = ('data', 'fsdp', 'tensor')


def search(
  setup: Setup,
  topology: Topology,
  devices: list[Any],
  tried: Callable[[int, int, dict[str, Any]], None],
) -> list[dict[str, Any]]:
  """The reports of what was compiled, the fastest that fits first.

  Args:
    setup: of the config as it is; its mesh is not used.
    topology: to run on.
    devices: its devices.
    tried: called after each, with its number, the number there will be at most,
      and its report.

  Raises:
    UserError: no mesh divides the batch, or none can hold the model.
  """
  if not isinstance(setup.model, ViT):
    raise UserError('--search knows what a ViT takes, not this model.')
  limit = topology.hardware.memory
  left = [w for w in ways(setup, topology, devices) if _SURE * w.memory < limit]
  if not left:
    raise UserError(
      f'--search: no mesh of the {len(devices)} devices of {topology.name} '
      f'divides the batch of {setup.config.batch_size} and can hold this model.'
    )
  reports: list[dict[str, Any]] = []
  best, slower, larger = math.inf, math.inf, 0.0  # than the estimates

  def likely(way: Way) -> bool:
    return (larger or 1.0) * way.memory <= limit

  def promise(way: Way):
    order = REMATS.index(way.remat)
    return not likely(way), way.seconds, way.accumulate, order, way.fsdp

  while left and len(reports) < TRIES:
    way = min(left, key=promise)
    left.remove(way)
    hopeless = _HOPE * slower * way.seconds >= best or not likely(way)
    if hopeless and best < math.inf:
      continue
    config = apply(setup.config, way.overrides)
    report = estimate(Setup(config, setup.info, devices=devices), topology)
    report['overrides'] = {f'config.{k}': v for k, v in way.overrides}
    reports.append(report)
    larger = max(larger, (report['memory']['total'] or 0) / way.memory)
    if report['fits']:
      seconds = report['seconds']['step']
      best, slower = min(best, seconds), min(slower, seconds / way.seconds)
      left = [w for w in left if not w.frugal(way)]  # slower, without need
    else:
      left = [w for w in left if not way.frugal(w)]  # they do not fit either
    tried(len(reports), min(TRIES, len(reports) + len(left)), report)
  return sorted(
    reports, key=lambda r: r['seconds']['step'] if r['fits'] else math.inf
  )
