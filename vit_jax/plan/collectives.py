"""Bytes that the devices of a compiled program send to each other."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from vit_jax.plan.hlo import Computation, Instruction, Program, size

OPS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective of the program, as one device sees it in a step."""

  op: str
  times: int  # it runs
  links: int  # bytes sent each time within a slice (or node)
  network: int  # bytes sent each time to other slices


def _numbers(text: str) -> list[int]:
  return [int(n) for n in re.findall(r'\d+', text)]


def groups(rest: str, devices: int) -> np.ndarray:
  """Who takes part in a collective with whom: (groups, members), by position.

  Args:
    rest: the attributes of the instruction; its groups are a list,
      `{{0,1},{2,3}}`; an iota, `[2,4]<=[4,2]T(1,0)`: arange(8) as (4, 2),
      transposed, as (2, 4); or axes of a mesh, `mesh['a'=2,'b'=4] {'b'}`, of
      which `'b':(2)2` is the part of size 2 after one of size 2.
    devices: in the program: without groups all form one.
  """
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', rest)
  if mesh:
    whole = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[2])
    shape: list[int] = []
    last: list[int] = []  # dimensions of a group's members
    for name, side in whole.items():
      part = next((p for p in parts if p[0] == name), None)
      if part and part[1]:
        before, own = int(part[1]), int(part[2])
        last.append(len(shape) + 1)
        shape += [before, own, int(side) // before // own]
      else:
        last += [len(shape)] if part else []
        shape.append(int(side))
    order = [i for i in range(len(shape)) if i not in last] + last
    members = math.prod(shape[i] for i in last)
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(order)
    return ids.reshape(-1, members)
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  )
  if iota:
    shape = _numbers(iota[2])
    order = _numbers(iota[3]) if iota[3] else list(range(len(shape)))
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(order)
    return ids.reshape(_numbers(iota[1]))
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', rest)
  if listed:
    return np.array([_numbers(g) for g in listed[1].split('},{')])
  return np.arange(devices)[None]


def _sent(op: str, data: int, members: int, slices: int) -> tuple[int, int]:
  """Bytes a device sends (within its slice, to others), at the least.

  Rings do no better (Patarasu and Yuan, 2009); of several slices, what each
  has reduced or gathered by itself crosses the network, once.

  Args:
    op: of `OPS`.
    data: bytes that it puts in.
    members: devices of its group.
    slices: that the group spans.
  """
  here = members // slices
  if op == 'all-gather':
    return data * slices * (here - 1), data * (slices - 1)
  if op in ('all-to-all', 'ragged-all-to-all'):
    across = data * (members - here) // members
    return data * (here - 1) // members, across
  if op in ('collective-permute', 'collective-broadcast'):
    return (data, 0) if slices == 1 else (0, data)
  ways = 2 if op == 'all-reduce' else 1
  within = ways * data * (here - 1) // here
  return within, ways * data // here * (slices - 1) // slices


def _between_slices(x: Instruction, types: Computation, slices: int) -> int:
  """Bytes of a send to other slices: the form multi-slice TPUs have."""
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', x.rest)
  if x.op != 'send' or not kind:
    return 0
  op = kind[1].lower().replace('_', '-')
  data = size(types[x.inputs[0]].type)
  return _sent(op, data, slices, slices)[1] if op in OPS else data


def transfers(program: Program, slice_of: Sequence[int]) -> list[Transfer]:
  """The collectives of a program, each once.

  A TPU program has the same one in several fusions, its start, its middle and
  its end; they share a channel.

  Args:
    program: compiled for several devices.
    slice_of: the slice of each device, in the order of the mesh.
  """
  slices, found = len(set(slice_of)), dict[str, Transfer]()
  partitions = re.search(r'num_partitions=(\d+)', program.text)
  if partitions and int(partitions[1]) < len(slice_of):
    slice_of = [0] * int(partitions[1])  # a TPU program knows its slice only
  scattering = {
    id(inside)
    for name, inside in program.computations.items()
    if name.startswith('all-reduce-scatter')
  }
  for types, x, times in program.executed(fusions=True):
    number = re.search(r'channel_id=(\d+)', x.rest)
    key = number[1] if number else f'{id(types)} {x.name}'
    network = _between_slices(x, types, slices)
    op = x.op.removesuffix('-start')
    if network:
      found[f'send {key}'] = Transfer('all-reduce', times, 0, network)
    if op not in OPS:
      continue
    if op == 'collective-permute':
      pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', x.rest)
      teams = np.array(_numbers(pairs[1] if pairs else '')).reshape(-1, 2)
    else:
      teams = groups(x.rest, len(slice_of))
    spans = max(len({slice_of[i] for i in team}) for team in teams)
    data = sum(size(types[name].type) for name in x.inputs)
    if op == 'all-reduce' and id(types) in scattering:
      op = 'reduce-scatter'  # only a slice of the result is kept
    sent = _sent(op, data, teams.shape[1], spans)
    known = found.get(key)
    if known is None or sum(sent) * times > known.times * (
      known.links + known.network
    ):
      found[key] = Transfer(op, times, *sent)
  return list(found.values())
