"""`plan`: the train step of a config, compiled for hardware that is not here.

Read with `topology` (the devices), `compiled` (what their step takes), `costs`
and `collectives` (what its text says, by `hlo`), `search` and `table`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from vit_jax.errors import UserError
from vit_jax.models.kernels import refusal
from vit_jax.models.vit import ViT
from vit_jax.plan import topology as topologies
from vit_jax.plan.compiled import estimate
from vit_jax.plan.search import apply
from vit_jax.plan.search import search as search_ways
from vit_jax.plan.table import Progress
from vit_jax.setup import Setup, stated_info


def _takes_cudnn(setup: Setup) -> bool:
  """Whether a run on GPUs would have cuDNN's attention."""
  model = setup.model
  if not isinstance(model, ViT) or model.attention not in ('auto', 'cudnn'):
    return False
  shape = model.shape
  return not refusal('cudnn', model.dtype, shape.width // shape.heads)


def run(
  config: ml_collections.FrozenConfigDict,
  names: Sequence[str],
  search: bool = False,
) -> dict[str, Any]:
  """What is planned, and a report for each topology; ready for JSON.

  Data are opened only if the config does not state data.examples, data.classes
  and size.

  Args:
    config: complete.
    names: of topologies, 'v5e:4x4'.
    search: for the fastest way to run it; the report (see `estimate`) is then
      that way's, and `tried` holds those of all that were compiled.

  Raises:
    UserError: a config or a topology that cannot be, or a compiler that is not
      installed.
  """
  from vit_jax import finetune

  if not names:
    raise UserError('--topology is missing, for example --topology=v5e:4x4')
  wanted = [topologies.parse(name) for name in names]
  topologies.prepare(wanted)
  full = finetune.adopt(config, Path(os.devnull))
  first = Setup(full, stated_info(full))
  info, model = first.info, full.model
  reports = []
  with Progress(len(wanted)) as progress:
    for topology in wanted:
      devices = topologies.devices(topology)
      setup = Setup(full, info, devices=devices)
      cudnn = topology.hardware.platform == 'cuda' and _takes_cudnn(setup)
      if cudnn:  # which only a GPU can compile
        config = apply(full, [('model.attention', 'xla')])
        setup = Setup(config, info, devices=devices)
      progress.begin(topology.name)
      if search:
        tried = search_ways(setup, topology, devices, progress.tried)
        reports.append(tried[0] | {'tried': tried})
      else:
        reports.append(estimate(setup, topology))
        progress.tried(1, 1, reports[-1])
      reports[-1]['cudnn'] = cudnn
  return {
    'model': f'{model.name} {model.get("variant", "")}'.rstrip(),
    'parameters': reports[0]['parameters'],
    'size': list(info.size),
    'classes': len(info.classes),
    'examples': info.examples,
    'learning_rate': first.lr,
    'plans': reports,
  }
