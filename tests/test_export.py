"""Exported programs: the same logits without the package, at any batch size."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.inspect_model import shapes
from vit_jax.models import Segmenter, ViT
from vit_jax.weights import export
from vit_jax.weights.formats import Preprocessing

SIZE = (4, 6)
SEEN = Preprocessing(SIZE, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
SMALL = {
  'classes': 3,
  'variant': 'Ti/2',
  'width': 16,
  'depth': 2,
  'hidden': 24,
  'heads': 2,
}
# A whole image of 2x3 patches; together all that looks at the batch's size.
MODELS = [
  {},
  {'pool': 'map', 'positions': 'rope2d', 'registers': 2, 'qk_norm': True},
  {'pool': 'mean', 'positions': 'sincos2d', 'remat': 'full', 'classes': 0},
  {'distill_token': True, 'mlp': 'swiglu', 'layer_scale': 0.1},
  {'pool': 'none', 'dtype': 'bfloat16', 'patch_dropout': 0.5, 'dropout': 0.1},
]


def randomised(model, size=SIZE):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.4, s.shape).astype(np.float32),
    shapes(model, size),
  )


def images(count, size=SIZE):
  rng = np.random.default_rng(count)
  return rng.normal(size=(count, *size, 3)).astype(np.float32)


def outputs(model, params, x):
  return jax.jit(lambda p, x: model.apply({'params': p}, x))(params, x)


def test_a_segmenter_of_any_number_of_pictures(tmp_path):
  model = Segmenter(**SMALL, decoder='linear', detail=2)
  params = randomised(model)
  export.export_stablehlo(model, params, tmp_path, SEEN)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['model']['decoder'] == 'linear'
  for count in (1, 3):
    x = images(count)
    got = export.run_stablehlo(tmp_path, x)
    assert got.shape == (count, *SIZE, 3)
    np.testing.assert_allclose(got, outputs(model, params, x), atol=1e-5)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """(model, parameters, folder) of the plainest."""
  model, folder = ViT(**SMALL), tmp_path_factory.mktemp('exported')
  params = randomised(model)
  export.export_stablehlo(model, params, folder, SEEN)
  return model, params, folder


@pytest.mark.parametrize('fields', MODELS, ids=str)
def test_any_number_of_images(fields, tmp_path):
  model = ViT(**SMALL | fields)
  params = randomised(model)
  export.export_stablehlo(model, params, tmp_path / 'a' / 'b', SEEN)
  for count in (1, 5):
    x = images(count)
    got = export.run_stablehlo(tmp_path / 'a' / 'b', x)
    tolerance = 1e-5 if model.dtype == 'float32' else 2e-2
    np.testing.assert_allclose(
      got, outputs(model, params, x), tolerance, tolerance
    )
    other = outputs(model, params, -x[:, ::-1])
    assert np.abs(np.asarray(other - got)).max() > 10 * tolerance


def test_a_hybrid(tmp_path):
  model, size = ViT(classes=3, variant='R+Ti/16', depth=1), (32, 64)
  params = randomised(model, size)
  export.export_stablehlo(model, params, tmp_path, Preprocessing(size))
  x = images(2, size)
  got = export.run_stablehlo(tmp_path, x)
  expected = outputs(model, params, x)
  np.testing.assert_allclose(got, expected, 1e-4, 1e-4)


BLOCKED = """
import sys
sys.modules['vit_jax'] = None  # importing it raises
import numpy as np
for path in sys.argv[2:]:
  images = np.load(path)
{snippet}
  np.save(path, logits)
assert not any(name.startswith(('vit_jax.', 'flax')) for name in sys.modules)
"""


def test_the_documented_snippet_without_the_package(exported, tmp_path):
  model, params, folder = exported
  lines = (export.__doc__ or '').splitlines()
  snippet = '\n'.join(line for line in lines if line.startswith('  '))
  assert snippet.count('\n') < 10 and 'vit_jax' not in snippet
  assert "'FOLDER'" in snippet
  snippet = snippet.replace("'FOLDER'", 'sys.argv[1]')
  files = []
  for count in (1, 5):
    files.append(tmp_path / f'{count}.npy')
    np.save(files[-1], images(count))
  subprocess.run(
    [sys.executable, '-c', BLOCKED.format(snippet=snippet), folder, *files],
    check=True,
    cwd=tmp_path,
    timeout=120,
  )
  for count, file in zip((1, 5), files, strict=True):
    expected = outputs(model, params, images(count))
    np.testing.assert_allclose(np.load(file), expected, 1e-5, 1e-5)


def test_blocked_is_blocked(exported):
  code = BLOCKED.format(snippet=textwrap.indent('import vit_jax', '  '))
  path = exported[2] / 'images.npy'
  np.save(path, images(1))
  done = subprocess.run(
    [sys.executable, '-c', code, exported[2], path],
    capture_output=True,
    text=True,
    cwd=exported[2],
  )
  assert done.returncode == 1 and 'import of vit_jax halted' in done.stderr


def test_the_manifest(exported):
  model, params, folder = exported
  manifest = json.loads((folder / 'manifest.json').read_text())
  weights = load_file(folder / manifest['weights'])
  for param, (name, leaf) in zip(
    manifest['params'], trees.paths(params), strict=True
  ):
    assert param['name'] == name and tuple(param['shape']) == leaf.shape
    assert param['dtype'] == 'float32'
    np.testing.assert_array_equal(weights[name], leaf)
  assert manifest['input']['shape'] == ['batch', 4, 6, 3]
  assert manifest['input']['black'] == [-1, -1, 0]
  assert manifest['input']['white'] == [1, 3, 1]
  assert manifest['output']['shape'] == ['batch', 3]
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  assert manifest['model']['width'] == 16
  assert manifest['jax'] == jax.__version__
  program = (folder / 'model.stablehlo').read_bytes()
  assert len(program) < 100_000  # the weights are not in it
  loaded = jax.export.deserialize(bytearray(program))
  assert loaded.platforms == ('cpu', 'cuda', 'tpu')


def test_the_weights_may_be_others(exported, tmp_path):
  """Weights are arguments: another file, another function."""
  model, params, folder = exported
  for file in folder.glob('m*'):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  other = jax.tree.map(lambda leaf: leaf * 0.5, params)
  save_file(dict(trees.paths(other)), tmp_path / 'params.safetensors')
  got = export.run_stablehlo(tmp_path, images(2))
  expected = outputs(model, other, images(2))
  np.testing.assert_allclose(got, expected, 1e-5, 1e-5)
  before = export.run_stablehlo(folder, images(2))
  assert np.abs(np.asarray(got - before)).max() > 0.1


def test_mistakes(exported, tmp_path):
  model, params, folder = exported
  with pytest.raises(UserError, match='manifest.json'):
    export.run_stablehlo(tmp_path, images(1))
  with pytest.raises(UserError, match='4x6x3, not 4x4x3'):
    export.run_stablehlo(folder, images(1, (4, 4)))
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='is a file'):
    export.export_stablehlo(model, params, tmp_path / 'file', SEEN)
