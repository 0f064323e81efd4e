"""A model as a StableHLO program that runs without this package.

A folder of three files: the program for any number of images, on CPU, CUDA or
TPU; its weights, which are arguments; a manifest that says in which order. What
runs it needs jax and safetensors only:

  import json, pathlib
  import jax, jax.export, safetensors.numpy

  folder = pathlib.Path('FOLDER')
  manifest = json.loads((folder / 'manifest.json').read_text())
  program = (folder / manifest['program']).read_bytes()
  weights = safetensors.numpy.load_file(folder / manifest['weights'])
  params = [weights[param['name']] for param in manifest['params']]
  logits = jax.jit(jax.export.deserialize(program).call)(params, images)

`images` are float32 (B, h, w, c) as manifest['input'] says. jax promises to
read a program for at least six months after the version that wrote it, which
the manifest names; the weights do not age. jax.export needs flatbuffers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import load_file, save_file

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.schema import keyword_fields
from vit_jax.weights.formats import Preprocessing

PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, WEIGHTS, MANIFEST = (
  'model.stablehlo',
  'params.safetensors',
  'manifest.json',
)


def _program(
  model: ViT, params: Any, shape: tuple[int, int, int]
) -> jax.export.Exported:
  """The function of (list of parameters, images of any number)."""
  treedef = jax.tree.structure(params)

  def apply(leaves, images):
    params = {'params': treedef.unflatten(leaves)}
    # For all platforms, and any number of images: no kernel of one of them.
    plain = model.clone(attention='xla', mlp_kernel='xla')
    return plain.apply(params, images)

  (batch,) = jax.export.symbolic_shape('batch')
  leaves = [
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for leaf in jax.tree.leaves(params)
  ]
  images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  export = jax.export.export(jax.jit(apply), platforms=PLATFORMS)
  return export(leaves, images)


def _manifest(
  model: ViT, params: Any, exported: jax.export.Exported, seen: Preprocessing
) -> dict[str, Any]:
  (logits,) = exported.out_avals
  mean, std = np.array(seen.mean), np.array(seen.std)
  fields = {f: getattr(model, f) for f in keyword_fields(type(model))}
  return {
    'program': PROGRAM,
    'weights': WEIGHTS,
    'platforms': exported.platforms,
    'jax': jax.__version__,
    'params': [
      {'name': name, 'shape': leaf.shape, 'dtype': str(leaf.dtype)}
      for name, leaf in trees.paths(params)
    ],
    'input': {
      'shape': ['batch', *seen.size, len(seen.mean)],
      'dtype': 'float32',
      'axes': 'image, row, column, channel',
      'black': (-mean / std).tolist(),  # the value of each channel
      'white': ((1 - mean) / std).tolist(),
      'preprocessing': dataclasses.asdict(seen),
    },
    'output': {
      'shape': [n if isinstance(n, int) else str(n) for n in logits.shape],
      'dtype': str(logits.dtype),
      'what': 'logits' if model.classes else 'features',
    },
    'model': {'classes': model.classes, **fields},
  }


def export_stablehlo(
  model: ViT, params: Any, folder: str | Path, preprocessing: Preprocessing
):
  """Writes the program, its weights and the manifest.

  Args:
    model: to export, as it evaluates.
    params: its parameters.
    folder: made if need be.
    preprocessing: what the images are to be; its size is the program's.

  Raises:
    UserError: the folder is a file.
  """
  folder = Path(folder)
  if folder.is_file():
    raise UserError(f'--to={folder}: a program is a folder, this is a file.')
  shape = (*preprocessing.size, len(preprocessing.mean))
  exported = _program(model, params, shape)
  manifest = _manifest(model, params, exported, preprocessing)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / PROGRAM).write_bytes(exported.serialize())
  arrays = {name: np.asarray(leaf) for name, leaf in trees.paths(params)}
  save_file(arrays, folder / WEIGHTS)
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')


def run_stablehlo(
  folder: str | Path, images: Float[Array, 'B h w c'] | Float[np.ndarray, '...']
) -> jax.Array:
  """The outputs of an exported program, as the docstring above has it.

  Raises:
    UserError: the folder holds none, or images of another shape.
  """
  folder = Path(folder)
  if not (folder / MANIFEST).is_file():
    raise UserError(f'{folder} has no {MANIFEST}: not an exported program.')
  manifest = json.loads((folder / MANIFEST).read_text())
  want = manifest['input']['shape'][1:]
  if list(images.shape[1:]) != want:
    raise UserError(
      f'{folder} takes images of {"x".join(map(str, want))}, not '
      f'{"x".join(map(str, images.shape[1:]))}.'
    )
  program = (folder / manifest['program']).read_bytes()
  weights = load_file(folder / manifest['weights'])
  params = [weights[param['name']] for param in manifest['params']]
  return jax.jit(jax.export.deserialize(bytearray(program)).call)(
    params, images
  )
