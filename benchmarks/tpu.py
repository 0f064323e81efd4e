"""What the TPU compiler says of our step beside the textbook's; no TPU needed.

Both in training on v5e:4x4, AdamW; ours by configs/vit_i1k.py (bfloat16)
without mixing, from the CLS token with learned positions, so that both have the
same parameters. Bytes are XLA's own count ("bytes accessed"), and ours
(plan/costs.py): of what crosses to HBM; and, on the chip or not, of operations
and of the copies that are scheduled before them. All are of the unrolled
program, without a loop: minutes for S/16 and B/16, 20 for L/16. Wants libtpu,
of .venv/plan (make .venv/installed-slow) or the extra plan-tpu.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.progress import track

from benchmarks import measure, textbook
from vit_jax.plan import costs
from vit_jax.plan import topology as topologies
from vit_jax.plan.collectives import transfers
from vit_jax.plan.hlo import Program

IMAGES = {'S/16': 64, 'B/16': 32, 'L/16': 64}  # of a device
GOALS = {'S/16': 300.0, 'B/16': 700.0}
COLUMNS = (
  'GFLOP',
  'bytes accessed, MB',
  'of HBM, MB',
  'operations, MB',
  'copies, MB',
  'memory, MB',
  'collectives',
  'sent, MB',
)
_ROOT = Path(__file__).parent.parent
_CLASSES = 1000


def ours(variant: str, devices: list, images: int, depth: int):
  """Our step, without a loop, compiled for devices that are not here.

  Args:
    variant: of the model.
    devices: of a topology.
    images: of a device.
    depth: of the model; 0: the variant's.
  """
  from vit_jax import config
  from vit_jax.setup import Setup, stated_info

  fields = {
    'batch_size': str(images * len(devices)),
    'optim.warmup': '5%',
    'task.mixup': '0.0',
    'model.variant': variant,
    'model.depth': str(depth),
    'model.unroll': '0',
    'model.pool': 'cls',
    'model.positions': 'learned',
    'optim.moments': 'float32',  # as the textbook's
  }
  file = str(_ROOT / 'configs' / 'vit_i1k.py')
  loaded = config.load(file, list(fields.items()))
  setup = Setup(loaded, stated_info(loaded), devices=devices)
  with jax.set_mesh(setup.mesh):
    return setup.train_step.lower(
      setup.abstract_state, setup.abstract_batch
    ).compile()


def theirs(variant: str, devices: list, images: int, depth: int):
  """The textbook's step, compiled for the same devices, data parallel."""
  mesh = Mesh(np.array(devices), ('data',))
  everywhere = NamedSharding(mesh, PartitionSpec())
  divided = NamedSharding(mesh, PartitionSpec('data'))
  net = textbook.Textbook(variant, _CLASSES, depth)
  optimizer = optax.adamw(1e-3, weight_decay=0.1)
  count = images * len(devices)
  one = jnp.zeros((1, 224, 224, 3))
  params = jax.eval_shape(lambda key: net.init(key, one), jax.random.key(0))
  params = params['params']
  state = jax.eval_shape(optimizer.init, params)
  pixels = jax.ShapeDtypeStruct((count, 224, 224, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((count,), jnp.int32)
  where = (everywhere, everywhere, divided, divided)
  step = jax.jit(
    textbook.make_step(net, optimizer),
    in_shardings=where,
    donate_argnums=(0, 1),
  )
  return step.lower(params, state, pixels, labels).compile()


def facts(compiled: Any, devices: int, images: int) -> dict[str, float]:
  """Of one image, but for memory and links, which are of a device."""
  program = Program(compiled.as_text())
  analysis, used = compiled.cost_analysis(), compiled.memory_analysis()
  memory = used.argument_size_in_bytes + used.temp_size_in_bytes
  memory += used.output_size_in_bytes - used.alias_size_in_bytes
  moved = transfers(program, [0] * devices)
  everywhere = costs.traffic(program, on_chip=False)
  copies = costs.traffic(program, on_chip=False, ops=costs.COPIES)
  return {
    'GFLOP': costs.flops(program) / images / 1e9,
    'bytes accessed, MB': analysis['bytes accessed'] / images / 1e6,
    'of HBM, MB': costs.traffic(program, on_chip=True) / images / 1e6,
    'operations, MB': (everywhere - copies) / images / 1e6,
    'copies, MB': copies / images / 1e6,
    'memory, MB': memory / 1e6,
    'collectives': float(sum(t.times for t in moved)),
    'sent, MB': sum(t.times * t.links for t in moved) / 1e6,
  }


def _compiler() -> bool:
  """Whether libtpu is here, in the environment or where `plan` has it."""
  sys.path.append(str(Path(sys.prefix) / 'plan'))
  return bool(importlib.util.find_spec('libtpu'))


def run(
  variants: Collection[str] = tuple(IMAGES),
  topology: str = 'v5e:4x4',
  depth: int = 0,
) -> dict[str, Any]:
  """Compiles; the record. Says so if there is no compiler.

  Args:
    variants: of the model.
    topology: of TPUs.
    depth: of all; 0: the variants'.
  """
  load, wanted = os.getloadavg()[0], topologies.parse(topology)
  rates, rows, goals = {}, [], {}
  about = f'{topology}, unroll=0, '
  about += f'{depth} blocks' if depth else 'whole models'
  if found := _compiler():
    topologies.prepare([wanted])
    devices = topologies.devices(wanted)
  else:
    about += ': libtpu is not installed, nothing was compiled'
  for variant in track(variants if found else (), 'compiling', transient=True):
    images, sides = IMAGES.get(variant, 64), {}
    try:
      for name, make in (('ours', ours), ('textbook flax', theirs)):
        compiled = make(variant, devices, images, depth)
        sides[name] = facts(compiled, len(devices), images)
    except Exception:  # what the others had is kept
      traceback.print_exc()
      rows.append((variant, images, 'failed', *[''] * len(COLUMNS)))
      continue
    for name, values in sides.items():
      rows.append((variant, images, name, *(values[c] for c in COLUMNS)))
      rates |= {f'{variant}, {name}: {k}': v for k, v in values.items()}
    us, them = sides.values()
    shares = (us[c] / them[c] if them[c] else '' for c in COLUMNS)
    rows.append((variant, images, 'ratio', *shares))
    if variant in GOALS:
      goals[f'{variant}: MB accessed per image'] = measure.goal(
        us['bytes accessed, MB'], most=GOALS[variant]
      )
  columns = ('', 'images a device', '', *COLUMNS)
  return measure.record(
    'tpu',
    load=load,
    about=about,
    rates=rates,
    tables={'A step by the TPU compiler': measure.table(columns, rows)},
    goals=goals,
  )
