"""Seeing inside: each number against its definition, and the pictures."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import browser
from vit_jax import cli, config, train
from vit_jax.data import ops
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup
from vit_jax.viz import attention, features, filters, inside


def random_attention(rng, shape=(3, 2, 5, 5)):
  weights = rng.random(shape)
  return weights / weights.sum(-1, keepdims=True)


def test_rollout():
  maps = random_attention(np.random.default_rng(0))
  got = attention.rollout(maps)
  # Token by token: half stays, half is the mean head's mixture.
  expected = np.eye(5)
  for layer in maps:
    expected = np.stack(
      [
        sum(
          (0.5 * (i == j) + 0.5 * layer[:, i, j].mean()) * expected[j]
          for j in range(5)
        )
        for i in range(5)
      ]
    )
  assert np.allclose(got, expected) and np.allclose(got.sum(-1), 1)
  assert not np.allclose(got, attention.rollout(maps[::-1]))  # order counts


def test_distances():
  """Of heads that look at themselves, to the right, and everywhere."""
  n = 9
  own, right = np.eye(n), np.zeros((n, n))
  for i in range(n):
    right[i, i + 1 if i % 3 < 2 else i - 1] = 1
  everywhere = np.full((n, n), 1 / n)
  patches = np.stack([own, right, everywhere])[None]
  maps = np.zeros((1, 3, n + 1, n + 1))  # with a CLS token, left out
  maps[..., 1:, 1:] = 0.5 * patches
  maps[..., 0] = 0.5
  got = attention.distances(maps, 1, (3, 3), 4)
  y, x = np.mgrid[:3, :3]
  far = np.hypot(
    y.ravel()[:, None] - y.ravel(), x.ravel()[:, None] - x.ravel()
  ).mean()
  assert np.allclose(got, [[0, 4, 4 * far]])


def test_from_tokens_to_patches():
  maps = random_attention(np.random.default_rng(1), (2, 3, 7, 7))
  got = attention.to_patches(maps, 1, True, (2, 3))
  assert got.shape == (2, 3, 2, 3)
  assert np.array_equal(got[1, 2].ravel(), maps[1, 2, 0, 1:])
  # A register is no CLS: from the mean of the patches, without it.
  without = attention.to_patches(maps, 1, False, (2, 3))
  assert np.allclose(without[0, 0, 1, 2], maps[0, 0, 1:, 6].mean())


@pytest.mark.slow
def test_registers_without_cls(run):
  """Of the first token, a register, nothing is shown."""
  saved = json.loads((run / 'w' / 'config.json').read_text())
  given = saved['model'] | {'registers': 2, 'pool': 'mean'}
  setup = Setup(config.resolve(saved | {'model': given}))
  with jax.set_mesh(setup.mesh):
    params = setup.init().params
  seen = inside.Inside(setup, params, [np.zeros((8, 8, 1), np.float32)])
  assert (seen.prefix, seen.cls) == (2, False)

  def shown():
    figure = seen.heads(0)
    return np.asarray(figure.axes[1].images[1].get_array())

  maps = seen.attention[0].copy()
  before = shown()
  maps[:, :, 0, 2:] = np.linspace(0, 1, 16)  # the register looks elsewhere
  seen.attention[0] = maps
  assert np.array_equal(before, shown())
  seen.cls = True  # the control
  assert not np.array_equal(before, shown())


def test_pictures_have_their_own_colours():
  """A mean and a deviation for each channel are taken back for each."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
  texts = ('normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))',)
  pipeline = ops.build('ops', texts)
  context = ops.Context((5, 6), 3)
  fed = np.stack([pipeline(p, context) for p in pixels])
  assert np.array_equal(ops.undo(texts, fed), pixels)
  unit = (fed - fed.min()) / (fed.max() - fed.min())  # as if of one range
  assert not np.allclose(255 * unit, pixels, atol=20)


@pytest.mark.slow
def test_the_page_in_a_real_browser(run, tmp_path, root):
  flags = [f'--workdir={run / "w"}', f'--output={tmp_path}']
  assert cli.main(['viz', *flags, str(run / '0.png')]) == 0
  for seen in browser.look(tmp_path / 'index.html', root):
    assert seen['pictures'] == 6


def test_principal_components_as_colours():
  """Alike tokens get alike colours; a turned space gets the same ones."""
  rng = np.random.default_rng(2)
  centres = rng.normal(size=(3, 8)) * 5
  tokens = np.repeat(centres, 40, 0) + 0.05 * rng.normal(size=(120, 8))
  colors = features.pca_colors(tokens)
  assert colors.shape == (120, 3) and colors.min() == 0 and colors.max() == 1
  groups = colors[:, :2].reshape(3, 40, 2)  # three places span a plane
  apart = np.linalg.norm(groups.mean(1)[:, None] - groups.mean(1), axis=-1)
  assert apart[~np.eye(3, dtype=bool)].min() > 0.3 > groups.std(1).max()
  assert features.pca_colors(tokens[:, :2]).shape == (120, 3)


def test_outliers():
  rng = np.random.default_rng(3)
  tokens = rng.normal(size=(2, 20, 16))
  tokens[1, 5] *= 10
  tokens[0, 0] *= 100  # CLS is not a patch
  found = features.outliers(tokens, 1)
  assert np.argwhere(found).tolist() == [[1, 4]]


def test_filters():
  """Orthogonal directions that explain the filters, the largest first."""
  model = ViT(classes=3, variant='Ti/4', width=48, depth=1, heads=2)
  images = jnp.zeros((1, 8, 8, 3))
  params = model.init(jax.random.key(0), images)['params']
  kernel = np.asarray(params['embed']['linear']['kernel'])
  stripe = np.zeros((4, 4, 3))
  stripe[::2] = 1
  kernel = kernel + 5 * np.outer(
    stripe.ravel(), np.random.default_rng(0).normal(size=48)
  )
  params['embed']['linear']['kernel'] = kernel
  first = filters.filters(model, params, 3)[0]
  assert first.shape == (4, 4, 3) and first.min() == 0 and first.max() == 1
  likeness = np.corrcoef(first.ravel(), stripe.ravel())[0, 1]
  assert abs(likeness) > 0.98
  kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 64))
  stem = {'stem': {'root': {'kernel': kernel}}}
  assert filters.filters(model, stem, 3).shape[1:] == (7, 7, 3)


@pytest.mark.parametrize('kind', ['learned', 'sincos1d', 'sincos2d', 'rope2d'])
def test_positions(kind):
  model = ViT(
    classes=3, variant='Ti/2', width=48, depth=1, heads=2, positions=kind
  )
  images = jnp.zeros((1, 8, 8, 1))
  params = model.init(jax.random.key(0), images)['params']
  table = filters.position_table(model, params, (4, 4))
  if kind == 'rope2d':
    assert table is None
    return
  assert table.shape == (16, 48)
  if kind == 'learned':
    whole = np.asarray(params['positions']['table'])
    assert len(whole) == 17 and np.array_equal(table, whole[1:])
  alike = filters.similarity(table, (4, 4))
  assert np.allclose(alike[2, 3, 2, 3], 1, atol=1e-5)
  assert np.allclose(alike[0, 1, 2, 3], alike[2, 3, 0, 1], atol=1e-5)
  if kind == 'sincos2d':
    assert alike[1, 1, 1, 2] > alike[1, 1, 3, 3]


@pytest.fixture(scope='module')
def run(tmp_path_factory, root):
  from tests.conftest import SMALL

  path = tmp_path_factory.mktemp('run')
  values = SMALL | {'total': '2 steps', 'model.attention': 'auto'}
  file = str(root / 'configs' / 'digits.py')
  train.run(config.load(file, list(values.items())), path / 'w')
  rng = np.random.default_rng(0)
  for i in range(2):
    pixels = rng.integers(0, 255, (20, 20 + i), dtype=np.uint8)
    Image.fromarray(pixels).save(path / f'{i}.png')
  return path


def test_the_command(run, tmp_path, capsys):
  pictures = [str(run / f'{i}.png') for i in range(2)]
  flags = [f'--workdir={run / "w"}', f'--output={tmp_path / "viz"}']
  assert cli.main(['viz', *flags, *pictures]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / 'viz' / 'index.html')
  names = {p.stem for p in (tmp_path / 'viz').glob('*.png')}
  others = set(inside.CAPTIONS) - {'attention', 'panels'}
  assert names == {'attention_0', 'attention_1'} | others
  html = (tmp_path / 'viz' / 'index.html').read_text()
  assert html.count('<img ') == 7 and not re.findall(r'src="(?!data:)', html)
  for path in (tmp_path / 'viz').glob('*.png'):
    pixels = np.asarray(Image.open(path).convert('RGB'), float)
    assert min(pixels.shape[:2]) > 90 and pixels.std() > 10, path


def test_what_is_seen_does_not_depend_on_the_layout(run):
  """Sharded over eight devices, by fsdp and tensor, as on one."""
  saved = json.loads((run / 'w' / 'config.json').read_text())
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
  images = images.astype(np.float32)
  seen = []
  for mesh in ((1, 1, 1), (2, 2, 2)):
    values = saved | {'mesh': dict(zip(('data', 'fsdp', 'tensor'), mesh))}  # noqa: B905
    devices = jax.devices()[: int(np.prod(mesh))]
    setup = Setup(config.resolve(values), devices=devices)
    with jax.set_mesh(setup.mesh):
      params = setup.init().params
    seen.append(inside.Inside(setup, params, list(images)))
  one, many = seen
  kernel = many.params['encoder']['blocks']['mlp']['up']['kernel']
  assert len(kernel.sharding.device_set) == 8
  assert not kernel.sharding.is_fully_replicated
  for a, b in zip(one.attention, many.attention, strict=True):
    assert np.allclose(a, b, atol=1e-5)
    assert np.allclose(a.sum(-1), 1, atol=1e-5)
  assert not np.allclose(one.attention[0], one.attention[1], atol=1e-5)
  for a, b in zip(one.tokens, many.tokens, strict=True):
    assert np.allclose(a, b, atol=1e-4)


def test_fused_attention_tells_its_maps_too(run):
  """cuDNN and splash have none: XLA's attention takes their place."""
  saved = json.loads((run / 'w' / 'config.json').read_text())
  image = np.zeros((8, 8, 1), np.float32)
  maps = []
  for kernel in ('xla', 'splash'):
    model = saved['model'] | {'attention': kernel}
    setup = Setup(config.resolve(saved | {'model': model}))
    with jax.set_mesh(setup.mesh):
      params = setup.init().params
    maps.append(inside.Inside(setup, params, [image]).attention[0])
  assert np.array_equal(*maps) and maps[0].shape == (2, 2, 16, 16)


def test_weights_without_a_head(run, tmp_path, capsys):
  """Features are enough to look inside; to predict they are not."""
  from vit_jax import weights
  from vit_jax.weights.formats import Preprocessing

  model = ViT(classes=0, variant='Ti/4', width=48, depth=2, heads=2)
  images = jnp.zeros((1, 16, 16, 3))
  params = model.init(jax.random.key(0), images)['params']
  file = tmp_path / 'features.safetensors'
  about = Preprocessing(size=(16, 16))
  weights.save(file, model, params, format='vit_jax', preprocessing=about)
  flags = [f'--weights={file}', str(run / '0.png')]
  assert cli.main(['viz', *flags, f'--output={tmp_path / "v"}']) == 0
  assert (tmp_path / 'v' / 'features.png').exists()
  capsys.readouterr()
  assert cli.main(['predict', *flags]) == 2
  assert 'has no head' in capsys.readouterr().err


def test_mistakes(run, tmp_path, capsys):
  flags = [f'--workdir={run / "w"}', f'--output={tmp_path / "viz"}']
  assert cli.main(['viz', *flags, str(tmp_path / 'none.png')]) == 2
  assert 'no such image file' in capsys.readouterr().err
  output = f'--output={run / "0.png"}'
  assert cli.main(['viz', flags[0], output, str(run / '1.png')]) == 2
  assert '0.png is a file; give a folder' in capsys.readouterr().err
  (tmp_path / 'bad.png').write_bytes(b'no picture')
  assert cli.main(['viz', *flags, str(tmp_path / 'bad.png')]) == 2
  assert 'bad.png' in capsys.readouterr().err
  assert not (tmp_path / 'viz').exists()


@pytest.mark.slow
def test_the_notebook(root):
  """docs/inside.ipynb runs, and every picture in it is drawn."""
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  book = nbformat.read(root / 'docs' / 'inside.ipynb', as_version=4)
  environment = os.environ | {'PYTHONPATH': str(root)}
  client = nbclient.NotebookClient(
    book,
    timeout=400,
    kernel_name='python3',
    resources={'metadata': {'path': str(root / 'docs')}},
  )
  client.execute(env=environment)
  drawn = [
    cell.source
    for cell in book.cells
    if any('image/png' in o.get('data', {}) for o in cell.get('outputs', []))
  ]
  wanted = ('heads', 'distances', 'features', 'norms', 'filters', 'positions')
  assert len(drawn) == len(wanted)
  assert all(f'inside.{w}(' in d for w, d in zip(wanted, drawn, strict=True))
