"""A compiled program, read from its text: computations and their loops.

The text is that of `Compiled.as_text()`: computations of instructions, one a
line, as in `%add.1 = f32[8,2]{1,0:T(8,128)S(1)} add(%a, %b), metadata={...}`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_SHAPE = re.compile(r'\b(pred|[a-z]{1,2}\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_START = re.compile(r'\s+(ROOT )?%([\w.\-]+) = ')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')


def arrays(type: str) -> list[str]:
  """The arrays of a type: '(f32[2]{0}, u8[])' -> ['f32[2]{0}', 'u8[]']."""
  return [match[0] for match in _SHAPE.finditer(type)]


def sides(array: str) -> tuple[int, ...]:
  """'f32[8,2]{1,0}' -> (8, 2)."""
  match = _SHAPE.match(array)
  assert match, array
  return tuple(int(n) for n in match[2].split(',') if n)


def size(type: str, hbm: bool = False) -> int:
  """Bytes of the arrays of a type; `hbm`: but of those on the chip, S(1)."""
  bits = 0
  for dtype, dims, layout in _SHAPE.findall(type):
    if hbm and re.search(r'S\([1-9]', layout):
      continue
    width = 8 if dtype == 'pred' else int(re.findall(r'\d+', dtype)[0])
    bits += width * math.prod(int(n) for n in dims.split(',') if n)
  return bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation."""

  name: str
  type: str
  op: str
  inputs: tuple[str, ...]  # names
  argument: str  # all that is in the parentheses
  rest: str  # attributes
  root: bool

  def attribute(self, key: str) -> str:
    """The name that `key=%NAME` gives, or ''."""
    match = re.search(rf'\b{key}=%([\w.\-]+)', self.rest)
    return match[1] if match else ''


Computation = dict[str, Instruction]  # by name, in order


def _closing(text: str) -> int:
  """Position of the parenthesis that closes the one `text` begins with."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return i
  raise ValueError(f'no end: {text[:80]}')


def _instruction(line: str) -> Instruction | None:
  match = _START.match(line)
  if not match:
    return None
  rest = line[match.end() :]
  end = _closing(rest) + 1 if rest[0] == '(' else rest.index(' ')
  type, rest = rest[:end], rest[end + 1 :]
  start = rest.index('(')
  end = start + _closing(rest[start:])
  argument = rest[start + 1 : end]
  return Instruction(
    name=match[2],
    type=type,
    op=rest[:start],
    inputs=tuple(re.findall(r'%([\w.\-]+)', argument)),
    argument=argument,
    rest=rest[end + 1 :],
    root=bool(match[1]),
  )


class Program:
  """A program for one device.

  Attributes:
    text: without where its instructions come from: half of it.
    computations: by name.
    entry: the name of the one that is run.
    endless: loops that do not say how often they run, and are counted once.
  """

  def __init__(self, text: str):
    self.text = re.sub(r', metadata=\{[^}]*\}', '', text)
    self.computations: dict[str, Computation] = {}
    self.entry, self.endless = '', set[str]()
    inside: Computation | None = None
    for line in self.text.splitlines():
      header = _HEADER.match(line)
      if header and inside is None:
        inside = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif line.startswith('}') and not line.startswith('}}'):
        inside = None  # '}}' ends an attribute of several lines
      elif inside is not None and (parsed := _instruction(line)):
        inside[parsed.name] = parsed

  def _stride(self, loop: Instruction) -> int:
    """By how much a `while` counts: 2 where its body was unrolled, often 1."""
    condition = self.computations[loop.attribute('condition')]
    body = self.computations[loop.attribute('body')]
    test = next((x for x in condition.values() if x.op == 'compare'), None)
    counter = condition.get(test.inputs[0]) if test else None
    index = re.search(r'index=(\d+)', counter.rest) if counter else None
    root = next(x for x in body.values() if x.root)
    if not index or root.op != 'tuple':
      return 1
    new = body[root.inputs[int(index[1])]]
    steps = [body[name] for name in new.inputs if new.op == 'add']
    found = [int(x.argument) for x in steps if x.op == 'constant']
    return found[0] if found else 1

  def rounds(self, loop: Instruction) -> int:
    """How often the body of a `while` runs; 1 if the text does not say."""
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if match:
      return int(match[1])
    condition = self.computations[loop.attribute('condition')].values()
    limits = [x.argument for x in condition if x.op == 'constant']
    if len(limits) == 1 and limits[0].isdigit():  # from 0
      return -(-int(limits[0]) // self._stride(loop))
    self.endless.add(loop.name)
    return 1

  def executed(
    self, name: str = '', times: int = 1, fusions: bool = False
  ) -> Iterator[tuple[Computation, Instruction, int]]:
    """(where, instruction, how often) of all that runs.

    Args:
      name: of the computation; '': the program.
      times: how often it runs.
      fusions: what they are made of comes too, after each.
    """
    inside = self.computations[name or self.entry]
    for x in inside.values():
      if x.op == 'while':
        rounds = self.rounds(x)
        yield from self.executed(x.attribute('body'), times * rounds, fusions)
        continue
      called = {'call': 'to_apply', 'async-start': 'calls'}.get(x.op)
      if called:
        yield from self.executed(x.attribute(called), times, fusions)
        continue
      yield inside, x, times
      if fusions and x.op == 'fusion':
        yield from self.executed(x.attribute('calls'), times, fusions)
