"""Images a second of a ViT, training and inference, beside its peers.

The same parameters, carried by vit_jax/weights, the same images; before
anything is timed, logits and the norm of the gradient have to agree. A training
step is forward, backward and AdamW. Ours is the step that `train` runs: it also
clips, looks for what is not finite and measures norms. One product, of
(1024, 1024) matrices, says what this CPU can do. Peers (none is needed):

  pip install torch==2.13.0 transformers && pip install --no-deps timm
"""

import dataclasses
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, sides
from vit_jax.models import ViT, flops

GOALS = {  # of CPUs
  ('ours', 'textbook flax'): (1.0, 1.0),
  ('ours', 'timm'): (1.3, 1.6),
  ('ours, bfloat16', 'ours'): (1.0, 1.3),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """What is measured: a variant, images of a size, so many at a time."""

  folder: Path
  variant: str = 'S/16'
  size: int = 224
  batch: int = 8
  steps: int = 3  # of a round

  def images(self) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (self.batch, self.size, self.size, 3)
    return rng.normal(size=shape).astype(np.float32)

  def labels(self) -> np.ndarray:
    return np.arange(self.batch) % sides.CLASSES


def _make(case: Case, name: str):
  """(a round, {'logits', 'norm'}) of a side; of a product, its FLOP/s."""
  if name in sides.PRODUCTS:
    product = sides.PRODUCTS[name]()
    return lambda: {'GFLOP/s': product() / 1e9}, None
  infer, train = sides.SIDES[name](case)
  logits, norm = np.asarray(infer(), np.float32), float(train())
  infer(), train()

  def timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    for _ in range(case.steps):
      call()
    return case.steps * case.batch / (time.perf_counter() - begun)

  def once() -> dict[str, float]:
    return {'training': timed(train), 'inference': timed(infer)}

  return once, {'logits': logits, 'norm': norm}


def differences(facts: dict[str, Any]) -> dict[str, tuple[float, float]]:
  """Of each side from ours in float32: relative, of logits and of the norm."""
  facts = {name: found for name, found in facts.items() if found}
  wanted = facts['ours']
  scale = np.abs(wanted['logits']).max()
  return {
    name: (
      float(np.abs(found['logits'] - wanted['logits']).max() / scale),
      abs(found['norm'] / wanted['norm'] - 1),
    )
    for name, found in facts.items()
  }


def check(facts: dict[str, Any]):
  """Raises AssertionError unless all sides compute the same function."""
  for name, found in differences(facts).items():
    allowed = 0.05 if 'bfloat16' in name else 1e-3
    assert max(found) < allowed, f'{name} is another function: {found}'


def _gflop(case: Case) -> dict[str, float]:
  """GFLOP of an image."""
  model = ViT(classes=sides.CLASSES, variant=case.variant)
  parts = flops.forward(model, (case.size, case.size), 3, train=True)
  forward = sum(parts.values()) / 1e9
  return {'training': flops.TRAINING * forward, 'inference': forward}


def run(
  rounds: int, variant: str = 'S/16', size: int = 224, batch: int = 8
) -> dict[str, Any]:
  """Measures; the record."""
  load, kept = os.getloadavg()[0], {}

  def checked(facts: dict[str, Any]):
    check(facts)
    kept.update(differences(facts))

  with tempfile.TemporaryDirectory() as name:
    case = Case(Path(name), variant, size, batch)
    sides.write_weights(case)
    every = [*sides.SIDES, *sides.PRODUCTS]
    names = [name for name in every if not sides.missing(name)]
    absent = {n: sides.missing(n) for n in every if n not in names}
    make = functools.partial(_make, case)
    found, died = measure.in_turn(make, names, rounds, checked)
  medians = {name: measure.median(values) for name, values in found.items()}
  rates = {f'{n}: {k}': v for n, m in medians.items() for k, v in m.items()}
  work = _gflop(case)
  rows = [
    (
      name,
      *itertools.chain.from_iterable(
        (
          m[what],
          m[what] * work[what],
          measure.ratio(found['ours'], found[name], what),
        )
        for what in ('training', 'inference')
      ),
      *(f'{x:.1g}' for x in kept[name]),
    )
    for name, m in medians.items()
    if name in sides.SIDES
  ]
  rows += [
    (name, '', m['GFLOP/s'], '', '', m['GFLOP/s'], *[''] * 3)
    for name, m in medians.items()
    if name in sides.PRODUCTS
  ]
  rows += [(n, why, *[''] * 7) for n, why in (absent | died).items()]
  columns = ('', 'training, images/s', 'GFLOP/s', 'ours / it')
  columns += ('inference, images/s', 'GFLOP/s', 'ours / it')
  columns += ('logits differ by', 'norm of the gradient by')
  goals = {
    f'{what}: {one} / {other}': measure.goal(
      measure.ratio(found[one], found[other], what), least=least
    )
    for (one, other), bounds in GOALS.items()
    for what, least in zip(('training', 'inference'), bounds, strict=True)
    if one in found and other in found
  }
  about = (
    f'ViT-{variant} at {size}, batch {batch}, ours with unroll=0, medians of '
    f'{rounds} rounds of {case.steps} steps, sides in turn, ratios of rounds'
  )
  title = 'Training and inference'
  tables = {title: measure.table(columns, rows)}
  return measure.record(
    'step',
    load=load,
    about=about,
    rates=rates,
    tables=tables,
    goals=goals,
    rounds=found,
  )
