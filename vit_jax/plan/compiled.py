"""What one step of a run takes on hardware that is not here: compiled, read."""

import math
import re
import time
from typing import Any

import jax

from vit_jax import trees
from vit_jax.models import flops
from vit_jax.models.vit import ViT
from vit_jax.plan import costs
from vit_jax.plan.collectives import transfers
from vit_jax.plan.hlo import Program
from vit_jax.plan.topology import Topology
from vit_jax.setup import Setup

# '24.90G of 15.75G hbm', '(500.00G) exceeds available HBM (15.75G)'
_NUMBER = r'\(?([\d.]+)([KMGT]?)\)?'
_EXCEEDS = re.compile(
  rf'{_NUMBER} (?:of|exceeds available HBM) {_NUMBER}', re.IGNORECASE
)
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}

# Of what a program has of ours and JAX's kernels: their names in its text.
_MARKS = {
  'attention': {'splash': 'splash_mha_fwd', 'short': 'short_attention_forward'},
  'mlp': {'fused': 'fused_mlp_forward'},
}

# Without a GPU XLA cannot try its own kernels for matrix products, and some of
# those it then picks do not compile: it calls cuBLAS instead.
_CUDA = {'xla_gpu_enable_triton_gemm': False}


def exceeded(message: str) -> tuple[int, int] | None:
  """(bytes needed, bytes there) of a compiler's complaint, if it is that."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  match = _EXCEEDS.search(message)
  if not match:
    return 0, 0
  used, unit, limit, other = match.groups()
  scaled = float(used) * _UNITS[unit.upper()]
  return int(scaled), int(float(limit) * _UNITS[other.upper()])


def bytes_here(tree: Any) -> int:
  """Bytes of a tree of abstract arrays that one device holds."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _compile(setup: Setup, topology: Topology) -> Any:
  """The train step as `train` runs it, compiled."""
  options: dict[str, Any] | None = None
  if topology.hardware.platform == 'cuda':
    deterministic = {'xla_gpu_deterministic_ops': setup.config.deterministic}
    options = _CUDA | deterministic
  with jax.set_mesh(setup.mesh):
    lowered = setup.train_step.lower(
      setup.abstract_state, setup.abstract_batch, setup.abstract_given
    )
    return lowered.compile(compiler_options=options)


def _speed(report: dict[str, Any], setup: Setup, topology: Topology) -> dict:
  """The least time of a step, by what it does most of, and of the run.

  Products of matrices, memory and links may all overlap: the bound is the
  longest of them, not their sum.
  """
  hardware, moved = topology.hardware, report['bytes_moved']
  short = getattr(setup.model, 'dtype', '') == 'bfloat16'
  peak = hardware.flops if short else hardware.flops32
  seconds = {
    'compute': report['flops']['compiled'] / peak,
    'memory': report['bytes_accessed'] / hardware.bandwidth,
    'links': moved['links'] / hardware.links,
    'network': moved['network'] / (hardware.network or math.inf),
  }
  bound = max(seconds, key=lambda name: seconds[name])
  step, count = seconds[bound], report['devices']
  hours, model = step * setup.total / 3600, report['flops']['model']
  return {
    'seconds': seconds | {'step': step},
    'bound': bound,
    'images_per_second': setup.config.batch_size / step,
    'utilization': model and model / (step * peak * count),
    'device_hours': hours * count,
    'days': hours / 24,
  }


def _read(
  report: dict[str, Any], setup: Setup, topology: Topology, compiled: Any
):
  """Fills in what the compiled program tells."""
  used = compiled.memory_analysis()
  report['memory'] |= {
    'arguments': used.argument_size_in_bytes,
    'outputs': used.output_size_in_bytes,
    'reused': used.alias_size_in_bytes,
    'temporaries': used.temp_size_in_bytes,
    'program': used.generated_code_size_in_bytes,
  }
  report['memory']['total'] = (
    used.argument_size_in_bytes
    + used.output_size_in_bytes
    - used.alias_size_in_bytes
    + used.temp_size_in_bytes
    + used.generated_code_size_in_bytes
  )
  program = Program(compiled.as_text())
  analysis = compiled.cost_analysis() or {}  # GPUs have none
  report['flops'] |= {
    'compiled': costs.flops(program),
    'loops_once': analysis.get('flops'),
  }
  report['bytes_accessed'] = costs.traffic(
    program, on_chip=topology.hardware.platform == 'tpu'
  )
  slices = [topology.slice_of(device) for device in setup.mesh.devices.flat]
  moved: dict[str, dict[str, int]] = {}
  for t in transfers(program, slices):
    row = moved.setdefault(t.op, {'times': 0, 'links': 0, 'network': 0})
    row['times'] += t.times
    row['links'] += t.times * t.links
    row['network'] += t.times * t.network
  report['collectives'] = moved
  report['bytes_moved'] = {
    way: sum(row[way] for row in moved.values()) for way in ('links', 'network')
  }
  for what, marks in _MARKS.items():
    found = [name for name, mark in marks.items() if mark in program.text]
    report[what] = found[0] if found else 'xla'
  report['endless_loops'] = len(program.endless)


def estimate(setup: Setup, topology: Topology) -> dict[str, Any]:
  """Compiles the step of a run; all that `plan` tells, ready for JSON.

  Sizes are in bytes and of one device; `flops.model` is of the whole step.

  Args:
    setup: of the run, with the devices of the topology.
    topology: where they are.

  Raises:
    UserError: the mesh or the batch does not fit the devices.
  """
  config, mesh, state = setup.config, setup.mesh, setup.abstract_state
  ways = mesh.shape['data'] * mesh.shape['fsdp'] * config.accumulate
  report: dict[str, Any] = {
    'topology': topology.name,
    'device': topology.kind,
    'devices': mesh.size,
    'slices': topology.slices,
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'accumulate': config.accumulate,
    'images_per_device': config.batch_size // ways,
    'remat': getattr(setup.model, 'remat', 'none'),
    'steps': setup.total,
    'parameters': trees.count(state.params),
    'memory': {
      'parameters': bytes_here(state.params),
      'average': bytes_here(state.ema),
      'optimizer': bytes_here(state.optimizer),
      'limit': topology.hardware.memory,
    },
    'flops': {'model': None},
    'source': topology.hardware.source,
  }
  if isinstance(setup.model, ViT):
    info = setup.info
    of = flops.forward(setup.model, info.size, info.channels, train=True)
    per_image = flops.TRAINING * sum(of.values())
    report['flops']['model'] = per_image * config.batch_size
  begun = time.perf_counter()
  try:
    compiled = _compile(setup, topology)
  except jax.errors.JaxRuntimeError as error:
    numbers = exceeded(str(error))
    if numbers is None:
      raise
    used, limit = numbers
    report['memory'] |= {'total': used or None}
    report['memory'] |= {'limit': limit} if limit else {}
    report |= {'fits': False}
    return report | {'compile_seconds': time.perf_counter() - begun}
  report['compile_seconds'] = time.perf_counter() - begun
  _read(report, setup, topology, compiled)
  report['fits'] = report['memory']['total'] <= report['memory']['limit']
  return report | _speed(report, setup, topology)
