"""Masked autoencoding: what is hidden, drawn, measured, and handed on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SMALL as BASE
from tests.layouts import apart, furthest
from vit_jax import cli, config, finetune, trees
from vit_jax.errors import UserError
from vit_jax.models import MAE
from vit_jax.models.flops import forward
from vit_jax.models.mae import unshuffle
from vit_jax.models.patches import patchify, unpatchify
from vit_jax.setup import Setup
from vit_jax.tasks.reconstruction import Reconstruction

FIELDS = {
  'variant': 'Ti/2',
  'width': 16,
  'depth': 2,
  'heads': 2,
  'decoder_width': 8,
  'decoder_depth': 1,
  'decoder_heads': 2,
}
MODEL = MAE(classes=10, **FIELDS)
SMALL = BASE | {
  'model.heads': '4',
  'model.decoder_width': '16',
  'model.decoder_heads': '4',
  'model.dropout': '0.1',
  'optim.lr': '1e-3',
}
TUNE = {k: v for k, v in SMALL.items() if 'decoder' not in k}


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(0), (6, 8, 8, 1))


@pytest.fixture(scope='module')
def params(images):
  return MODEL.init(jax.random.key(1), images)['params']


def draw(params, images, key=2, model=MODEL):
  masking = jax.random.split(jax.random.key(key), len(images))
  return model.apply({'params': params}, images, masking=masking)


@pytest.mark.parametrize('ratio, hidden', [(0.75, 12), (0.5, 8), (0.1, 2)])
def test_as_many_are_hidden_as_the_ratio_says(images, params, ratio, hidden):
  model = MODEL.clone(mask_ratio=ratio)
  one = np.asarray(draw(params, images, 2, model)[1])
  assert one.shape == (6, 16) and (one.sum(1) == hidden).all()
  assert len({row.tobytes() for row in one}) > 1  # images differ
  # A function of the key, and of nothing else.
  np.testing.assert_array_equal(one, draw(params, images * 2, 2, model)[1])
  assert (one != np.asarray(draw(params, images, 3, model)[1])).any()


def test_unshuffle_puts_tokens_back():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 12, 3)).astype('f')
  seen = np.sort(rng.permuted(np.tile(np.arange(12), (5, 1)), axis=1)[:, :4], 1)
  tokens = np.take_along_axis(x, seen[..., None], 1)
  blank = np.full(3, 7, 'f')
  full, hidden = unshuffle(*map(jnp.asarray, (tokens, seen, blank)), 12)
  for row in range(5):
    for place in range(12):
      known = place in seen[row]
      assert bool(hidden[row, place]) != known
      expected = x[row, place] if known else blank
      np.testing.assert_array_equal(full[row, place], expected)
  other, _ = unshuffle(*map(jnp.asarray, (tokens, (seen + 1) % 12, blank)), 12)
  assert (np.asarray(other) != np.asarray(full)).any()


def test_the_encoder_sees_visible_patches_alone(images, params):
  drawn, hidden = draw(params, images)
  patches = patchify(images, 2)
  noise = jax.random.normal(jax.random.key(9), patches.shape)

  def with_noise(where):
    changed = jnp.where(where[..., None], noise, patches)
    return draw(params, unpatchify(changed, (8, 8), 2))[0]

  np.testing.assert_array_equal(drawn, with_noise(hidden))
  assert np.abs(drawn - with_noise(~hidden)).max() > 1e-3  # it would be seen


def np_loss(drawn, images, hidden, normalize):
  """Of each image, in float64, patch by patch."""
  losses = []
  for image, guess, where in zip(images, drawn, hidden, strict=True):
    errors = []
    for i in np.flatnonzero(where):
      y, x = divmod(int(i), 4)
      patch = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
      if normalize:
        patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
      errors.append(np.square(guess[i] - patch).mean())
    losses.append(np.mean(errors))
  return np.array(losses)


@pytest.mark.parametrize('normalize', [True, False])
def test_loss_is_of_hidden_patches(images, params, normalize):
  task = Reconstruction(classes=10, normalize=normalize)
  mask = jnp.array([1, 1, 1, 1, 1, 0.0])
  batch = {'image': images, 'mask': mask}
  found = []

  def apply(params, images, key=None, **given):
    del key
    found.append(MODEL.apply({'params': params}, images, **given))
    return found[-1]

  seen = task.augment(batch, jax.random.key(4))
  (total, weight), _ = task.loss(apply, params, seen, None)
  values, _ = task.evaluate(apply, params, batch)
  as_float = [[np.asarray(x, np.float64) for x in pair] for pair in found]
  pixels = np.asarray(images, np.float64)
  (drawn, hidden), (drawn2, hidden2) = as_float
  expected = np_loss(drawn, pixels, hidden > 0, normalize)
  np.testing.assert_allclose(total, expected[:5].sum(), rtol=1e-5)
  assert weight == 5
  expected = np_loss(drawn2, pixels, hidden2 > 0, normalize)
  np.testing.assert_allclose(values['loss'], expected, rtol=1e-5)
  other = np_loss(drawn2, pixels, hidden2 > 0, not normalize)
  assert np.abs(other - expected).max() > 0.1  # the two targets differ
  other = np_loss(drawn2, pixels, hidden2 == 0, normalize)
  assert np.abs(other - expected).max() > 0.01  # and so do the patches


@pytest.mark.parametrize('normalize', [True, False])
def test_r2(images, normalize):
  """1 for every pixel as it is, 0 for the mean of each patch."""
  task = Reconstruction(classes=10, normalize=normalize)
  target = np.asarray(patchify(images, 2))
  mean = target.mean(-1, keepdims=True)
  if normalize:
    deviation = np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    target, mean = (target - mean) / deviation, 0 * mean
  hidden = jnp.tile(jnp.arange(16) < 5, (6, 1))

  def score(drawn):
    values, _ = task.evaluate(
      lambda *_, **__: (jnp.asarray(drawn), hidden), None, {'image': images}
    )
    return task.summary({k: np.mean(v) for k, v in values.items()})['r2']

  assert score(target) == pytest.approx(1, abs=1e-6)
  assert score(np.broadcast_to(mean, target.shape)) == pytest.approx(
    0, abs=1e-5
  )
  assert 0.1 < score(target / 2 + mean / 2) < 0.9


def test_gradients_reach_everything_but_unused_parameters(images, params):
  task, batch = Reconstruction(classes=10), {'image': images}
  batch = task.augment(batch | {'mask': jnp.ones(6)}, jax.random.key(4))

  def loss(params):
    def apply(params, images, key=None, **given):
      del key
      return MODEL.apply({'params': params}, images, **given)

    return task.loss(apply, params, batch, None)[0][0]

  for name, leaf in trees.paths(jax.grad(loss)(params)):
    if not name.endswith('key/bias'):  # softmax does not see it
      assert np.abs(leaf).max() > 1e-7, name


def test_without_masking_it_is_a_vit(images, params):
  plain, kept = MAE(**FIELDS, classes=0), dict(params)
  pooled = plain.apply({'params': params}, images)
  assert pooled.shape == (6, 16)
  from vit_jax.models.mae import without_decoder

  model, kept = without_decoder(MODEL, params)
  assert 'decoder' not in kept and type(model).__name__ == 'ViT'
  np.testing.assert_array_equal(pooled, model.apply({'params': kept}, images))


def test_flops_of_a_step():
  """Those of the compiled forward pass, but for what is not a product."""
  model = MAE(classes=0, **FIELDS | {'width': 64, 'decoder_width': 64})
  image = jnp.zeros((1, 8, 8, 1))
  params = model.init(jax.random.key(0), image)
  keys = jax.random.split(jax.random.key(0), 1)
  run = jax.jit(lambda p, x: model.apply(p, x, masking=keys))
  model = model.clone(unroll=0)
  counted = sum(forward(model, (8, 8), 1, train=True).values())
  analysis = run.lower(params, image).compile().cost_analysis()
  assert counted == pytest.approx(analysis['flops'], rel=0.5)
  assert (
    forward(model, (8, 8), 1)['encoder']
    > 2 * (forward(model, (8, 8), 1, train=True)['encoder'])
  )


def load(**overrides):
  values = SMALL | {k.replace('__', '.'): v for k, v in overrides.items()}
  return config.load('configs/mae_digits.py', list(values.items()))


def losses_of(setup, steps=6, change=None):
  losses = []
  with jax.set_mesh(setup.mesh):
    state = setup.init()
    batches = setup.loader('train', setup.train_source)
    for t in range(steps):
      batch = batches.train_batch(t)
      state, metrics = setup.train_step(
        state, change(batch) if change else batch
      )
      losses.append(metrics['loss'])
  return state, np.array(jax.device_get(losses))


@pytest.mark.slow
def test_many_devices_are_one():
  single = Setup(load(mesh__data='1'), devices=jax.devices()[:1])
  mesh = {'mesh__data': '2', 'mesh__fsdp': '2', 'mesh__tensor': '2'}
  many = Setup(load(**mesh), devices=jax.devices())
  state, losses = losses_of(single)
  other, again = losses_of(many)
  assert apart(again, losses) < 1e-6
  assert furthest(other.params, state.params) < 1e-5

  def blurred(batch):
    return batch | {'image': batch['image'].at[0].multiply(0.5)}

  assert apart(losses_of(single, change=blurred)[1], losses) > 1e-4
  found = dict(trees.paths(other.params))
  up = found['decoder/encoder/blocks/mlp/up/kernel']
  assert up.addressable_shards[0].data.shape == (1, 8, 32)
  assert found['decoder/pixels/kernel'].addressable_shards[0].data.shape[0] == 8


@pytest.mark.slow
def test_micro_batches_hide_the_same_patches():
  found = []
  for parts, ratio in (('1', '0.5'), ('2', '0.5'), ('1', '0.6')):
    fields = {'accumulate': parts, 'model__mask_ratio': ratio}
    setup = Setup(load(**fields, model__dropout='0.0', model__depth='1'))
    found.append(losses_of(setup, 2)[1])
  assert apart(found[1], found[0]) < 1e-6
  assert apart(found[2], found[0]) > 1e-4


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'mask_ratio': '0.0'}, 'mask_ratio = 0.0 hides 0 of 16'),
    ({'mask_ratio': '1.0'}, 'mask_ratio = 1.0 hides 16 of 16'),
    ({'mask_ratio': '0.99'}, 'hides 16 of 16'),
    ({'mask_ratio': '-1.0'}, 'mask_ratio = -1.0'),
    ({'decoder_heads': '3'}, 'decoder_heads = 3 does not divide'),
    ({'decoder_depth': '0'}, 'decoder_depth = 0: at least 1'),
    ({'decoder_width': '6', 'decoder_heads': '2'}, 'multiple of 4'),
    ({'patch_dropout': '0.5'}, 'patch_dropout = 0.5: a masked'),
    ({'pool': 'map', 'cls_token': 'no'}, "pool = 'map'"),
    ({'name': 'vit', 'decoder_width': None}, "trains 'mae'"),
  ],
)
def test_mistakes(fields, words):
  values = {f'model.{k}': v for k, v in fields.items()}
  values = {k: v for k, v in (SMALL | values).items() if v is not None}
  if fields.get('name') == 'vit':
    values = {k: v for k, v in values.items() if 'decoder' not in k}
    values |= {'task.name': 'reconstruction'}
    target = 'configs/digits.py'
  else:
    target = 'configs/mae_digits.py'
  with pytest.raises(UserError, match=words):
    Setup(config.load(target, list(values.items())))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a small pretraining."""
  path = tmp_path_factory.mktemp('mae')
  flags = [f'--config.{name}={value}' for name, value in SMALL.items()]
  command = ['train', '--config=configs/mae_digits.py', f'--workdir={path}']
  assert cli.main([*command, *flags, '--config.data.workers=0']) == 0
  return path


def test_a_run_draws_panels(run, capsys, tmp_path):
  result = json.loads((run / 'result.json').read_text())
  assert -1 < result['metrics']['eval/test/r2'] < 1
  first, last = sorted((run / 'panels').glob('test_*.png'))
  assert (first.name, last.name) == ('test_0000012.png', 'test_0000024.png')
  sheets = [np.asarray(Image.open(p).convert('L')) for p in (first, last)]
  assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()
  # Input, masked, output: 96 pixels wide, 8 apart, from (8, 30).
  top = sheets[1][30:126]
  shown = [top[6::12, 8 + 104 * i : 104 + 104 * i][:, 6::12] for i in range(3)]
  grey = (shown[1] >= 126) & (shown[1] <= 129)
  assert grey.sum() >= 8 * 4  # half of the patches
  np.testing.assert_array_equal(shown[0][~grey], shown[1][~grey])
  np.testing.assert_array_equal(shown[0][~grey], shown[2][~grey])
  assert (shown[0] != shown[2]).any()
  assert cli.main(['viz', f'--workdir={run}', f'--output={tmp_path}']) == 0
  assert (tmp_path / 'panels.png').exists()
  assert 'panels' in (tmp_path / 'index.html').read_text()
  picture = tmp_path / 'panels.png'
  capsys.readouterr()
  assert cli.main(['predict', f'--workdir={run}', str(picture)]) == 2
  assert 'viz' in capsys.readouterr().err


@pytest.mark.parametrize('pool', ['mean', 'map'])
def test_a_classifier_starts_from_its_encoder(run, tmp_path, pool):
  values = TUNE | {'init_from': str(run), 'model.pool': pool}
  values |= {'model.dropout': '0.0'}
  target = 'configs/mae_digits.py:tune'
  loaded = config.load(target, list(values.items()))
  setup = Setup(finetune.adopt(loaded, tmp_path / 'none'))
  assert setup.model.pool == pool and setup.model.special == ('cls',)
  assert len(setup.train_source) == 100
  labels = [setup.train_source[i]['label'] for i in range(100)]
  assert np.bincount(labels).tolist() == [10] * 10
  with jax.set_mesh(setup.mesh):
    state, fresh = finetune.initial(setup), setup.init()
  from vit_jax.opening import load_run

  before = dict(trees.paths(load_run(run, None, raw=False)[2]))
  random = dict(trees.paths(fresh.params))
  for name, leaf in trees.paths(state.params):
    top = name.split('/')[0]
    if top in ('head', 'pool'):
      np.testing.assert_array_equal(leaf, random[name])
    else:
      np.testing.assert_array_equal(leaf, before[name])
      if name.endswith('kernel'):
        assert (np.asarray(leaf) != np.asarray(random[name])).any()
  assert 'decoder' not in state.params


def test_a_head_is_not_taken_for_granted(run, tmp_path):
  values = TUNE | {'init_from': str(run), 'init_head': 'keep'}
  loaded = config.load('configs/mae_digits.py:tune', list(values.items()))
  setup = Setup(finetune.adopt(loaded, tmp_path / 'none'))
  with (
    pytest.raises(UserError, match="init_head='new'"),
    jax.set_mesh(setup.mesh),
  ):
    finetune.initial(setup)


def test_pretraining_goes_on_from_pretraining(run, tmp_path):
  loaded = load(init_from=str(run))
  setup = Setup(finetune.adopt(loaded, tmp_path / 'none'))
  from vit_jax.opening import load_run

  before = load_run(run, None, raw=False)[2]
  with jax.set_mesh(setup.mesh):
    state = finetune.initial(setup)
  assert trees.digest(state.params) == trees.digest(before)
  other = Setup(
    finetune.adopt(
      load(init_from=str(run), model__decoder_width='8'), run / 'x'
    )
  )
  with pytest.raises(UserError, match='decoder/'), jax.set_mesh(other.mesh):
    finetune.initial(other)


def test_its_encoder_is_shipped(run, tmp_path):
  """As a ViT without a head; and its features are looked at."""
  from vit_jax import weights
  from vit_jax.opening import load_run

  for name in ('timm.safetensors', 'ours.safetensors'):
    file = tmp_path / name
    format = [] if name == 'ours.safetensors' else ['--format=timm']
    assert cli.main(['convert', f'--from={run}', f'--to={file}', *format]) == 0
    model, params, _ = weights.load(file)
    assert model.classes == 0 and 'decoder' not in params
    setup, _, before = load_run(run, None, raw=False)
    image = jax.random.normal(jax.random.key(5), (2, 8, 8, 1))
    expected = setup.apply(before, image)
    found = model.apply({'params': params}, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  from vit_jax import evaluate

  found = evaluate.run(setup, before, evaluators=('knn(5)',))
  assert 0.1 < found['knn_5'] <= 1
