"""Files of weights: our own format, what is refused, other sizes and heads."""

import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from vit_jax import cli, finetune, origin, trees, weights
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.weights import mapping
from vit_jax.weights.formats import Preprocessing

SMALL = {'variant': 'S/4', 'width': 16, 'depth': 2, 'heads': 2, 'classes': 3}
SEEN = Preprocessing((16, 16), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """(file, model, parameters, images, logits) in our own format."""
  model = ViT(**SMALL)
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32), shapes
  )
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  weights.save(
    path,
    model,
    params,
    format='vit_jax',
    preprocessing=SEEN,
    labels=('a', 'b', 'c'),
  )
  return path, model, params, images, model.apply({'params': params}, images)


def test_our_own_format_is_the_identity(saved):
  path, _, params, images, logits = saved
  model, loaded, info = weights.load(path)
  assert trees.digest(loaded) == trees.digest(params)
  assert info.preprocessing == SEEN
  assert info.description.labels == ('a', 'b', 'c')
  out = model.apply({'params': loaded}, images)
  np.testing.assert_array_equal(out, logits)
  loaded['cls'] = loaded['cls'] + 1e-3  # and a change would be seen
  assert trees.digest(loaded) != trees.digest(params)


def _copy(saved, folder, change):
  tensors = load_file(saved[0])
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')
  config = (saved[0].parent / 'config.json').read_text()
  (folder / 'config.json').write_text(config)
  return folder / 'model.safetensors'


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda t: t.pop('cls'), 'missing: cls; unexpected: none'),
    (lambda t: t.update(x=np.ones(1)), 'missing: none; unexpected: x'),
    (
      lambda t: t.update(cls=np.ones((1, 17), np.float32)),
      'cls: (1, 17) where the model has (1, 16)',
    ),
    (lambda t: t.update(cls=np.ones((1, 16), np.int32)), 'cls holds int32'),
  ],
)
def test_tensors_that_are_not_the_models(saved, tmp_path, change, says):
  path = _copy(saved, tmp_path, change)
  with pytest.raises(UserError) as error:
    weights.load(path)
  assert says in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize('type', ['float16', 'bfloat16', 'float64'])
def test_other_float_types_become_float32(saved, tmp_path, type):
  def change(tensors):
    for name in tensors:
      tensors[name] = tensors[name].astype(jnp.dtype(type))

  _, params, _ = weights.load(_copy(saved, tmp_path, change))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(params['cls'], saved[2]['cls'], rtol=1e-2)


@pytest.mark.parametrize('name', ['m.pth', 'm.bin', 'm.pt', 'm.pkl'])
def test_pickles_are_refused(tmp_path, name):
  (tmp_path / name).write_bytes(b'cos\nsystem\n')
  with pytest.raises(UserError, match='pickles.*safetensors'):
    weights.load(tmp_path / name)


def test_objects_in_npz_are_refused(tmp_path):
  path = tmp_path / 'm.npz'
  name = 'Transformer/encoderblock_0/LayerNorm_0/scale'
  np.savez(path, **{name: np.array([{'a': 1}], dtype=object)})
  with pytest.raises(UserError, match=r'pickle|object'):
    weights.load(path)


@pytest.mark.parametrize('part', [0.1, 0.6, 0.99])
def test_a_truncated_file(saved, tmp_path, part):
  data = saved[0].read_bytes()
  path = tmp_path / 'model.safetensors'
  path.write_bytes(data[: int(part * len(data))])
  with pytest.raises(UserError, match='truncated or damaged'):
    weights.load(path)


def test_a_truncated_npz(tmp_path):
  path = tmp_path / 'm.npz'
  np.savez(path, a=np.ones(1000))
  path.write_bytes(path.read_bytes()[:500])
  assert not zipfile.is_zipfile(path)
  with pytest.raises(UserError, match='truncated or damaged'):
    weights.load(path)


def test_names_of_no_known_format(tmp_path):
  save_file({'a.b': np.ones(2)}, tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match='no known format'):
    weights.load(tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match='no such file'):
    weights.load(tmp_path / 'y.safetensors')
  with pytest.raises(UserError, match=r'no model.safetensors'):
    weights.load(tmp_path)


def test_a_new_head_only_when_asked(saved):
  path, *_, images, _ = saved
  with pytest.raises(UserError, match='3 classes, not 7'):
    weights.load(path, classes=7)
  model, params, _ = weights.load(path, classes=7, new_head=True)
  logits = model.apply({'params': params}, images)
  assert logits.shape == (2, 7) and (logits == 0).all()
  model, params, _ = weights.load(path, classes=0, new_head=True)
  pooled = model.apply({'params': params}, images)
  assert pooled.shape == (2, 16) and 'head' not in params


def test_another_size(saved):
  path, _, params, _, _ = saved
  model, loaded, _ = weights.load(path, size=(24, 12))
  assert loaded['positions']['table'].shape == (1 + 6 * 3, 16)
  images = jnp.zeros((1, 24, 12, 3))
  assert model.apply({'params': loaded}, images).shape == (1, 3)
  table, cls = params['positions']['table'], loaded['positions']['table'][0]
  np.testing.assert_array_equal(cls, table[0])


def test_another_patch(saved):
  path, *_ = saved
  model, params, _ = weights.load(path, patch=8, size=(32, 32))
  assert model.patch == 8
  assert params['embed']['linear']['kernel'].shape == (8 * 8 * 3, 16)
  assert params['positions']['table'].shape == (17, 16)


def test_each_parameter_is_placed(saved):
  path, *_ = saved
  mesh = jax.make_mesh((8,), ('x',))
  spec = jax.sharding.PartitionSpec()
  where = jax.sharding.NamedSharding(mesh, spec)
  seen = []

  def place(name, array):
    seen.append(name)
    return jax.device_put(array, where)

  _, params, _ = weights.load(path, place=place)
  assert sorted(seen) == [name for name, _ in trees.paths(params)]
  assert all(x.sharding == where for x in jax.tree.leaves(params))


def test_convert_and_predict_by_the_command(saved, tmp_path, capsys):
  path, *_ = saved
  target = tmp_path / 'out' / 'copy.safetensors'
  assert cli.main(['convert', f'--from={path}', f'--to={target}']) == 0
  assert 'wrote' in capsys.readouterr().out
  assert target.read_bytes() == path.read_bytes()
  from PIL import Image

  file = tmp_path / 'p.png'
  Image.fromarray(np.full((20, 33, 3), 90, np.uint8)).save(file)
  flags = ['predict', f'--weights={target}', str(file), '--json']
  assert cli.main(flags) == 0
  (line,) = capsys.readouterr().out.splitlines()
  predictions = json.loads(line)['predictions']
  pixel = (90 / 255 - np.array(SEEN.mean)) / np.array(SEEN.std)
  images = jnp.broadcast_to(jnp.asarray(pixel, jnp.float32), (1, 16, 16, 3))
  expected = jax.nn.softmax(saved[1].apply({'params': saved[2]}, images))[0]
  for row in predictions:
    want = expected['abc'.index(row['class'])]
    assert row['probability'] == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--to=x.npz', '--format=vit_jax'], 'is written as .safetensors'),
    (['--to=x.safetensors', '--format=tim'], "Did you mean 'timm'"),
    (['--to=x.safetensors', '--size=1x2x3'], 'write 224 or 224x192'),
    (['--to=x.safetensors', '--size=18'], 'does not divide the image'),
  ],
)
def test_mistakes(saved, capsys, flags, says):
  assert cli.main(['convert', f'--from={saved[0]}', *flags]) == 2
  err = capsys.readouterr().err
  assert says in err and 'Traceback' not in err


@pytest.mark.parametrize(
  'texts, expected',
  [
    (
      ('decode', 'fit', 'range(-1, 1)'),
      Preprocessing((8, 8), (0.5,), (0.5,), 'bilinear'),
    ),
    (
      ('decode', "resize('bicubic')", 'normalize((0.1, 0.2, 0.3), (1, 2, 4))'),
      Preprocessing((8, 8), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), mode='squash'),
    ),
    (
      ('decode', "resize_small(16, 'bicubic')", 'central_crop', 'normalize'),
      Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, crop=0.5),
    ),
  ],
)
def test_preprocessing_and_ops_say_the_same(texts, expected):
  channels = len(expected.mean)
  found = origin.preprocessing_of(texts, (8, 8), channels)
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)
  np.testing.assert_allclose(found.std, expected.std, rtol=1e-5)
  for name in ('size', 'interpolation', 'crop', 'mode'):
    assert getattr(found, name) == getattr(expected, name)
  again = origin.preprocessing_of(origin.ops_of(found), (8, 8), channels)
  np.testing.assert_allclose(again.std, expected.std, rtol=1e-5)
  assert (again.crop, again.mode) == (expected.crop, expected.mode)


# --- Memory, and shards on their devices ---

LOADING = """
import sys
def high():
  lines = open('/proc/self/status').read().splitlines()
  return 1024 * int(next(x for x in lines if x.startswith('VmHWM')).split()[1])
import jax, numpy as np
from vit_jax import weights
jax.numpy.zeros(3).block_until_ready()
before = high()
if sys.argv[2] == 'all at once':
  tensors = weights.files.read(__import__('pathlib').Path(sys.argv[1]))[0]
  kept = {name: np.array(tensors[name]) for name in tensors}
model, params, _ = weights.load(sys.argv[1])
jax.block_until_ready(params)
print(high() - before)
"""


@pytest.mark.slow
def test_loading_takes_less_than_twice_the_file(tmp_path, root):
  """B/16 of 330 MB; the control keeps the tensors while it loads."""
  model = ViT(classes=1000, variant='B/16')
  shapes = mapping.abstract_params(model, (224, 224))
  rng = np.random.default_rng(0)
  flat = {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in shapes.items()
  }
  path = tmp_path / 'model.safetensors'
  weights.save(
    path,
    model,
    unflatten_dict(flat, sep='/'),
    format='timm',
    preprocessing=Preprocessing(size=(224, 224)),
  )
  del flat
  rise = {}
  for how in ('one by one', 'all at once'):
    done = subprocess.run(
      [sys.executable, '-c', LOADING, str(path), how],
      capture_output=True,
      text=True,
      cwd=root,
      check=True,
    )
    rise[how] = int(done.stdout) / path.stat().st_size
  assert rise['one by one'] < 2 < rise['all at once'], rise


def test_a_shard_goes_straight_to_its_device(tmp_path, small_config):
  """Of init_from, each device gets its part, and the parts are the whole."""
  from vit_jax.setup import Setup

  source = Setup(small_config(model__width='32', model__heads='4'))
  path = tmp_path / 'w.safetensors'
  params = jax.device_get(source.init().params)
  weights.save(
    path,
    source.model,
    params,
    format='vit_jax',
    preprocessing=Preprocessing((8, 8), (0.5,), (0.5,)),
    labels=source.info.classes,
  )
  fields = {
    'init_from': str(path),
    'mesh__data': '1',
    'mesh__fsdp': '4',
    'mesh__tensor': '2',
  }
  setup = Setup(finetune.adopt(small_config(**fields), tmp_path / 'none'))
  asked = []
  original = jax.make_array_from_callback

  def record(shape, sharding, callback):
    def part(index):
      asked.append((shape, callback(index).shape))
      return callback(index)

    return original(shape, sharding, part)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'make_array_from_callback', record)
    state = finetune.initial(setup)
  where = dict(trees.paths(setup.abstract_state.params))
  for name, leaf in trees.paths(state.params):
    assert leaf.sharding == where[name].sharding, name
  kernel = state.params['encoder']['blocks']['mlp']['up']['kernel']
  assert kernel.addressable_shards[0].data.size * 8 == kernel.size
  parts = {part for shape, part in asked if shape == kernel.shape}
  assert (kernel.shape[0], kernel.shape[1] // 4, kernel.shape[2] // 2) in parts
  assert trees.digest(state.params) == trees.digest(
    jax.tree.map(jnp.asarray, params)
  )
