"""How much of what the devices can do a run uses, and where its time goes."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models import flops
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup

# Names of HARDWARE (plan/hardware.py, with sources) by what JAX calls a device:
# the first that it begins with.
_KINDS = (
  ('TPU v3', 'v3'),
  ('TPU v4', 'v4'),
  ('TPU v5 lite', 'v5e'),
  ('TPU v5e', 'v5e'),
  ('TPU v5', 'v5p'),
  ('TPU v6', 'v6e'),
  ('TPU7x', 'tpu7x'),
  ('NVIDIA A100', 'a100'),
  ('NVIDIA H100 80GB HBM3', 'h100'),  # others have other peaks
  ('NVIDIA B200', 'b200'),
)
_SIDE = 1024  # of the matrices that a CPU's peak is measured with


def published(kind: str, dtype: str) -> float | None:
  """FLOP/s of a device by its name in JAX, or None."""
  from vit_jax.plan.hardware import HARDWARE

  names = [name for prefix, name in _KINDS if kind.startswith(prefix)]
  if not names:
    return None
  found = HARDWARE[names[0]]
  return found.flops if dtype == 'bfloat16' else found.flops32


@functools.cache
def measured(dtype: str) -> float:
  """FLOP/s of matrix products here: the best of a few, all cores."""
  x = jnp.ones((_SIDE, _SIDE), dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  best = float('inf')
  for _ in range(8):
    begun = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - begun)
  return 2 * _SIDE**3 / best


def peak(setup: Setup) -> float | None:
  """FLOP/s of all devices together, or None if nobody says.

  Of CPUs what products of the model's dtype reach, measured: the devices of a
  process, which JAX may simulate, share it.
  """
  device = setup.mesh.devices.flat[0]
  dtype = getattr(setup.model, 'dtype', 'float32')
  if device.platform == 'cpu':
    return measured(dtype) * jax.process_count()
  one = published(device.device_kind, dtype)
  return one and one * setup.mesh.size


def of_a_step(setup: Setup) -> int | None:
  """FLOPs of a step by the model's fields; None: they are not counted."""
  if not isinstance(setup.model, ViT):
    return None
  info = setup.info
  parts = flops.forward(setup.model, info.size, info.channels, train=True)
  return flops.TRAINING * sum(parts.values()) * setup.config.batch_size


class Utilization:
  """Model FLOPs utilization (arXiv 2204.02311, appendix B)."""

  def __init__(self, setup: Setup):
    self._flops, self._peak = of_a_step(setup), peak(setup)

  def of(self, steps: int, seconds: float) -> dict[str, float]:
    """{'time/mfu': ...} of some steps; empty where it cannot be told."""
    if not (self._flops and self._peak):
      return {}
    return {'time/mfu': self._flops * steps / seconds / self._peak}


def sums(
  lines: list[dict[str, Any]], batch_size: int, saving: float
) -> dict[str, float]:
  """Where the time of a run went, in seconds, by its metrics.

  Training and waiting for data are of the steps that were logged; the first of
  each start, which compiles, is not among them. `saving`: seconds for the last
  checkpoint, which no line tells.
  """
  total = {'training': 0.0, 'input_wait': 0.0, 'evaluation': 0.0}
  total['checkpoints'] = saving
  images = 0.0
  for line in lines:
    seconds = line.get('time/training') or 0.0
    here = seconds * (line.get('time/images_per_second') or 0.0)
    images += here
    total['training'] += seconds
    waited = line.get('time/input_wait') or 0.0
    total['input_wait'] += waited * here / batch_size
    total['checkpoints'] += line.get('time/checkpoint') or 0.0
    for name, value in line.items():
      if name.startswith('time/eval_'):
        total['evaluation'] += value or 0.0
  found = {name: round(value, 3) for name, value in total.items()}
  if total['training']:
    found['images_per_second'] = round(images / total['training'], 2)
  used = [
    (v, line['time/training'])
    for line in lines
    if (v := line.get('time/mfu')) and line.get('time/training')
  ]
  if used:
    weight = sum(seconds for _, seconds in used)
    found['mfu'] = round(sum(v * s for v, s in used) / weight, 4)
  return found
