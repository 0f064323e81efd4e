"""FLOPs and memory traffic of a compiled program, loops counted as they run.

`Compiled.cost_analysis()` counts the body of a loop once, and bytes that stay
in a TPU's on-chip memory as if they went to HBM. On a program without either
both are within a few per cent of it (tests/test_plan.py).
"""

import json
import math
import re
from collections.abc import Collection

import jax
from jaxlib import _hlo, _jax  # XLA's parser and cost model: not public

from vit_jax.plan.hlo import (
  Computation,
  Instruction,
  Program,
  arrays,
  sides,
  size,
)

# What moves nothing by itself.
_FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'iota',
  'partition-id',
  'replica-id',
  'opt-barrier',
}
_MARKERS = ('ConcatBitcast', 'AllocateBuffer', 'AsyncCollective')
# What one sees through, looking for the part of an array that is used.
_VIEWS = ('bitcast', 'copy', 'convert', 'reshape', 'transpose')


def _parameters(inside: Computation) -> dict[int, str]:
  """The names of a computation's inputs, by number."""
  return {
    int(x.argument): x.name for x in inside.values() if x.op == 'parameter'
  }


def _fetched(program: Program, inside: Computation, name: str) -> float:
  """Bytes of its input `name` that a fusion reads: often only a slice."""
  total = 0.0
  for user in inside.values():
    if name not in user.inputs:
      continue
    if user.op in ('dynamic-slice', 'slice', 'gather'):
      total += size(user.type)
    elif user.op in _VIEWS:
      total += _fetched(program, inside, user.name)
    elif user.op == 'fusion':  # in a fusion, as TPUs have them
      inner = program.computations[user.attribute('calls')]
      names = _parameters(inner)
      for i, given in enumerate(user.inputs):
        if given == name:
          total += _fetched(program, inner, names[i])
    elif user.op != 'dynamic-update-slice' or user.inputs[0] != name:
      return math.inf
  return total


def _stored(
  program: Program, inside: Computation, name: str, whole: int
) -> int:
  """Bytes that a fusion writes to a result: of an update only the slice."""
  x = inside[name]
  if x.op in _VIEWS and x.inputs[0] in inside:
    return _stored(program, inside, x.inputs[0], whole)
  if x.op == 'fusion':
    inner = program.computations[x.attribute('calls')]
    root = next(y for y in inner.values() if y.root)
    return _stored(program, inner, root.name, whole)
  if x.op == 'dynamic-update-slice':
    return min(whole, size(inside[x.inputs[1]].type))
  return whole


def _fusion(program: Program, x: Instruction, types: Computation, hbm: bool):
  """Bytes that a fusion reads and writes."""
  inside = program.computations[x.attribute('calls')]
  numbers, total = _parameters(inside), 0.0
  for i, name in enumerate(x.inputs):
    whole = size(types[name].type, hbm)
    if whole:
      total += min(whole, _fetched(program, inside, numbers[i]))
  root = next(y for y in inside.values() if y.root)
  names = root.inputs if root.op == 'tuple' else (root.name,)
  for name, array in zip(names, arrays(x.type), strict=False):
    total += _stored(program, inside, name, size(array, hbm))
  return total


def _moved(program: Program, x: Instruction, types: Computation, hbm: bool):
  """Bytes that an instruction reads from and writes to memory."""
  if x.op in _FREE or x.op.endswith(('-done', '-update')):
    return 0
  if x.op == 'custom-call' and any(m in x.rest for m in _MARKERS):
    return 0
  if x.op == 'fusion':
    return _fusion(program, x, types, hbm)
  written = size(x.type, hbm)
  if x.op in ('dynamic-slice', 'slice', 'gather'):
    return size(x.type) + written
  if x.op == 'dynamic-update-slice':
    return 2 * size(types[x.inputs[1]].type, hbm)
  if x.op == 'copy-start':  # (to, from, a flag)
    return sum(size(array, hbm) for array in arrays(x.type)[:2])
  if x.op == 'slice-start':  # ((from), to, a flag)
    whole, part = arrays(x.type)[:2]
    return (size(part) if size(whole, hbm) else 0) + size(part, hbm)
  read = sum(size(types[name].type, hbm) for name in x.inputs)
  # The type of what is started holds its inputs, too.
  return read if x.op.endswith('-start') else read + written


# Between HBM and the chip, ahead of use, as the compiler schedules them.
COPIES = ('copy', 'copy-start', 'slice-start')


def traffic(program: Program, on_chip: bool, ops: Collection[str] = ()) -> int:
  """Bytes that a step reads from and writes to the device's memory.

  Args:
    program: of one device.
    on_chip: whether what the layout puts in S(1) is on the chip, as on TPUs.
    ops: these instructions alone; empty: all.
  """
  return int(
    sum(
      times * _moved(program, x, types, on_chip)
      for types, x, times in program.executed()
      if not ops or x.op in ops
    )
  )


def _once(program: Program, name: str) -> float:
  """XLA's FLOPs of a computation, with the bodies of its loops once."""
  text = program.text[program.text.index('\n') :]  # the header is the entry's
  text = text.replace('\nENTRY %', '\n%')
  text = text.replace(f'\n%{name} (', f'\nENTRY %{name} (')
  module = _hlo.hlo_module_from_text('HloModule part\n' + text)
  client = jax.devices('cpu')[0].client
  return _jax.hlo_module_cost_analysis(client, module)['flops']


def _again(program: Program, name: str) -> float:
  """FLOPs of all rounds of the loops in a computation but the first."""
  total = 0.0
  for x in program.computations[name].values():
    if x.op == 'while':
      body, rounds = x.attribute('body'), program.rounds(x)
      total += (rounds - 1) * _once(program, body)
      total += rounds * _again(program, body)
    elif x.op == 'call':
      total += _again(program, x.attribute('to_apply'))
  return total


def _cublas(x: Instruction, types: Computation) -> int:
  """FLOPs of a matrix product that calls cuBLAS, which XLA does not count."""
  config = json.loads(x.rest.split('backend_config=', 1)[1])
  dims = config['gemm_backend_config']['dot_dimension_numbers']
  left = sides(types[x.inputs[0]].type)
  contracted = [left[int(i)] for i in dims['lhs_contracting_dimensions']]
  return 2 * math.prod(sides(arrays(x.type)[0])) * math.prod(contracted)


# Matrix products of splash attention: forward; backward, all in one kernel.
_SPLASH = {'fwd': 2, 'dkv': 5}


def _splash(x: Instruction, types: Computation) -> int:
  """FLOPs of an attention kernel on a TPU, padding included; 0: it is none."""
  kind = re.match('splash_mha_(fwd|dkv)_', x.name)
  if not kind or 'tpu_custom_call' not in x.rest:
    return 0
  query, key = [
    shape
    for shape in (sides(types[name].type) for name in x.inputs)
    if len(shape) > 3
  ][:2]  # (B, H, N, K)
  return 2 * _SPLASH[kind[1]] * math.prod(query) * key[-2]


# Of short attention (models/short.py), which has q, k and v side by side.
_SHORT = {'forward': 2, 'backward': 5}


def _short(x: Instruction, types: Computation) -> int:
  """FLOPs of our attention kernel on a TPU; 0: it is none."""
  kind = re.match('short_attention_(forward|backward)', x.name)
  if not kind or 'tpu_custom_call' not in x.rest:
    return 0
  images, tokens, columns = sides(types[x.inputs[0]].type)
  return 2 * _SHORT[kind[1]] * images * tokens * tokens * columns // 3


# Of the fused MLP (models/fused.py).
_FUSED = {'forward': 2, 'backward': 4}


def _fused(x: Instruction, types: Computation) -> int:
  """FLOPs of our MLP's kernel on a TPU; 0: it is none."""
  kind = re.match('fused_mlp_(forward|backward)', x.name)
  if not kind or 'tpu_custom_call' not in x.rest:
    return 0
  rows, matrices = [], []
  for name in x.inputs:
    shape = sides(types[name].type)
    (matrices if len(shape) == 2 else rows).append(shape)
  images, tokens, width = rows[0]
  return 2 * _FUSED[kind[1]] * images * tokens * width * matrices[0][1]


def flops(program: Program) -> float:
  """Floating-point operations of a step on one device."""
  total = _once(program, program.entry) + _again(program, program.entry)
  for types, x, times in program.executed():
    if x.op == 'custom-call' and '__cublas' in x.rest:
      total += times * _cublas(x, types)
    elif x.op == 'custom-call':
      kernels = (_splash, _short, _fused)
      total += times * sum(kernel(x, types) for kernel in kernels)
  return total
