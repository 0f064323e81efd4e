"""Devices to compile for that are not here: 'v5e:4x4', 'h100:8', '2xh100:8'."""

import contextlib
import dataclasses
import importlib.util
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vit_jax.errors import UserError, check_choice, did_you_mean
from vit_jax.plan.hardware import HARDWARE, TARGET, Hardware

_FORM = re.compile(r'(?:([1-9]\d*)x)?([a-z]\w*):([1-9]\d*(?:x[1-9]\d*)*)')

_NODE = 8  # GPUs

# The compilers: the module to look for, and the extra that brings it.
_COMPILERS = {
  'tpu': ('libtpu', 'plan-tpu'),
  'cuda': ('jax_plugins.xla_cuda12', 'plan-gpu'),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices (or nodes) of devices, alike and of a shape."""

  name: str
  kind: str  # of HARDWARE
  shape: tuple[int, ...]  # of a slice
  slices: int

  @property
  def hardware(self) -> Hardware:
    return HARDWARE[self.kind]

  @property
  def count(self) -> int:
    """Of simulated devices and GPUs; TPUs have one or two a chip."""
    return self.slices * math.prod(self.shape)

  def slice_of(self, device: Any) -> int:
    """The number of the slice (or node) that a device is in."""
    if self.hardware.platform == 'cuda':
      return device.coords[0]
    return getattr(device, 'slice_index', None) or 0


def parse(text: str) -> Topology:
  """'2xv5e:4x4' -> two slices of 4x4 v5e; '2xh100:8' -> two nodes of 8.

  Raises:
    UserError: another form, or no such accelerator.
  """
  match = _FORM.fullmatch(text)
  if not match:
    examples = [f'{k}:{h.shapes[-1]}' for k, h in HARDWARE.items()]
    raise UserError(
      f"--topology = {text!r}: write KIND:SHAPE, as in 'v5e:4x4' or 'h100:8', "
      "and for several slices or nodes '2xv5e:4x4'."
      + did_you_mean(text, examples)
    )
  slices, kind, shape = match.groups()
  check_choice('--topology', kind, HARDWARE)
  sides = tuple(int(n) for n in shape.split('x'))
  if HARDWARE[kind].platform != 'tpu' and len(sides) > 1:
    raise UserError(
      f'--topology = {text!r}: {kind} takes a number of devices, as in '
      f"'{kind}:8', and several nodes are '{shape.partition('x')[0]}x{kind}:8'."
    )
  if HARDWARE[kind].platform == 'cuda' and sides[0] > _NODE:
    raise UserError(
      f'--topology = {text!r}: a node has {_NODE} GPUs at most; several are '
      f"'{-(-sides[0] // _NODE)}x{kind}:{_NODE}'."
    )
  known = HARDWARE[kind].shapes
  if HARDWARE[kind].platform == 'tpu' and shape not in known:
    raise UserError(
      f'--topology = {text!r}: {kind} has no slices of {shape}.'
      + did_you_mean(shape, known)
    )
  return Topology(text, kind, sides, int(slices or 1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides what plugins say of the hardware that they do not find.

  They write to the process's stderr, not to Python's.
  """
  logger = logging.getLogger('jax_plugins.xla_cuda12')
  level, kept = logger.level, os.dup(2)
  sink = os.open(os.devnull, os.O_WRONLY)
  logger.setLevel(logging.ERROR)
  try:
    os.dup2(sink, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(sink)
    logger.setLevel(level)


def prepare(wanted: Sequence[Topology]):
  """Runs JAX on the CPU, with as many simulated devices as are wanted.

  Raises:
    UserError: a compiler is not installed.
  """
  for topology in wanted:
    module, extra = _COMPILERS.get(topology.hardware.platform, ('jax', ''))
    try:
      found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # nor what it is in
      found = None
    if not found:
      raise UserError(
        f'--topology={topology.name} needs a compiler that is not installed: '
        f"pip install 'vit_jax[{extra}]'"
      )
  # What libtpu would otherwise ask the network for.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  simulated = [t.count for t in wanted if t.kind == 'cpu']
  with contextlib.suppress(RuntimeError):  # too late in a test: they are there
    jax.config.update('jax_platforms', 'cpu')
    if len(simulated) < len(wanted):  # what is for elsewhere cannot be read
      jax.config.update('jax_enable_compilation_cache', False)
    if simulated:
      jax.config.update('jax_num_cpu_devices', max(simulated))
  with _quiet():
    jax.devices('cpu')


def _options(topology: Topology) -> dict[str, Any]:
  """Arguments of get_topology_desc."""
  if topology.hardware.platform == 'cuda':
    # Slices, hosts a slice, devices a host.
    return {
      'platform': 'cuda',
      'topology_name': '',
      'topology': f'{topology.slices}x1x{topology.shape[0]}',
      'target_config': TARGET.format(**topology.hardware.target),
    }
  shape = 'x'.join(map(str, topology.shape))
  options: dict[str, Any] = {
    'platform': 'tpu',
    'topology_name': f'{topology.kind}:{shape}',
  }
  if topology.kind == 'v4':  # both cores of a chip as one device
    options['chip_config_name'] = 'megacore'
  if math.prod(topology.shape) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  return options


def devices(topology: Topology) -> list[Any]:
  """Devices to compile for, after `prepare`.

  Raises:
    UserError: there is no slice of that shape.
  """
  if topology.kind == 'cpu':
    found = jax.devices('cpu')[: topology.count]
    if len(found) < topology.count or topology.slices > 1:
      raise UserError(
        f'--topology = {topology.name!r}: this process simulates '
        f'{len(found)} devices, of one node.'
      )
    return found
  try:
    with _quiet():
      return topologies.get_topology_desc(**_options(topology)).devices
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f'--topology = {topology.name!r}: the compiler refuses it: '
      f'{str(error).partition(":")[2].strip()}'
    ) from error
