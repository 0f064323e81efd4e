"""Segmentation: loss, metrics, decoder and windows against NumPy; layouts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from vit_jax import cli, evaluators, finetune, sharding, step, trees, weights
from vit_jax import config as config_lib
from vit_jax.data.sources import IGNORE
from vit_jax.errors import UserError
from vit_jax.evaluators import pixels as evaluator
from vit_jax.inspect_model import of_config
from vit_jax.models import flops
from vit_jax.models.segmenter import MaskTransformer, Segmenter
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup
from vit_jax.tasks import segmentation
from vit_jax.weights.formats import Preprocessing
from vit_jax.windows import Segmenting, enlarge, scaled, starts

SMALL = {
  'size': '32',
  'model.variant': 'Ti/8',
  'model.width': '16',
  'model.depth': '2',
  'model.heads': '2',
  'model.positions': 'sincos2d',
  'model.decoder': 'mask_transformer',
  'model.decoder_depth': '1',
  'model.decoder_dropout': '0.0',
  'model.detail': '2',
  'optim.name': 'adamw',
  'optim.lr': '2e-3',
  'task.dice': '0.0',
  'model.unroll': '1',
  'data.workers': '0',
  'data.name': 'digit_scenes:32',
  'data.test.split': 'test[:40]',
  'batch_size': '8',
  'total': '4 steps',
  'ema': '0',
  'eval_every': '4 steps',
  'save_every': '4 steps',
}


def load(**overrides):
  values = SMALL | {k.replace('__', '.'): v for k, v in overrides.items()}
  path = ROOT / 'configs' / 'segment_digits.py'
  return config_lib.load(str(path), list(values.items()))


def made(mesh=None, **overrides):
  mesh = {'data': '1'} | (mesh or {})
  axes = {f'mesh__{axis}': size for axis, size in mesh.items()}
  count = int(np.prod([int(n) for n in mesh.values()]))
  return Setup(load(**axes, **overrides), devices=jax.devices()[:count])


# --- The loss and the metrics ---


@pytest.fixture
def pixels():
  """Logits (3, 4, 5, 6), labels of which some are ignored; one has all so."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (3, 4, 5, 6)).astype(np.float32)
  label = rng.integers(0, 5, (3, 4, 5)).astype(np.int32)
  label[rng.random(label.shape) < 0.3] = IGNORE
  label[2] = IGNORE
  return logits, label


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def numpy_loss(logits, label, smoothing=0.0, dice=0.0):
  """(sum, weight): pixel by pixel, example by example."""
  total = weight = 0.0
  for x, t in zip(logits.astype(float), label, strict=True):
    p, on = softmax(x), t != IGNORE
    if not on.any():
      continue
    classes = x.shape[-1]
    targets = np.eye(classes)[t[on]] * (1 - smoothing) + smoothing / classes
    total += -(targets * np.log(p[on])).sum() / t.size
    score = [
      2 * p[on][t[on] == y, y].sum() / (p[on][:, y].sum() + (t[on] == y).sum())
      for y in np.unique(t[on])
    ]
    total += dice * (1 - np.mean(score)) * on.mean()
    weight += on.mean()
  return total, weight


def as_task(logits, label, **fields):
  """(task, apply, batch) of a model that says these logits."""
  names = tuple('abcdef')
  task = segmentation.Segmentation(classes=6, names=names, **fields)
  batch = {'image': jnp.asarray(logits), 'label': jnp.asarray(label)}
  batch['mask'] = jnp.ones(len(label))
  return task, lambda params, images, key=None: params * images, batch


@pytest.mark.parametrize(
  'fields', [(0.0, 0.0), (0.1, 0.0), (0.0, 0.7), (0.1, 0.7)]
)
def test_loss_is_numpys(pixels, fields):
  smoothing, dice = fields
  task, apply, batch = as_task(*pixels, label_smoothing=smoothing, dice=dice)
  (total, weight), metrics = task.loss(apply, 1.0, batch, None)
  expected = numpy_loss(*pixels, smoothing, dice)
  np.testing.assert_allclose((total, weight), expected, rtol=1e-5)
  on = pixels[1] != IGNORE
  hits = (pixels[0].argmax(-1) == pixels[1])[on].mean()
  share = metrics['pixel_accuracy']
  assert float(share[0] / share[1]) == pytest.approx(hits)
  # Controls: other fields; a pixel that is ignored counted.
  assert abs(numpy_loss(*pixels, smoothing + 0.1, dice)[0] - total) > 0.01
  assert abs(numpy_loss(*pixels, smoothing, dice + 0.1)[0] - total) > 0.01
  counted = np.where(pixels[1] == IGNORE, 0, pixels[1])
  assert abs(numpy_loss(pixels[0], counted)[0] - total) > 0.1


def test_no_gradient_where_nothing_is_counted(pixels):
  logits, label = pixels
  task, _, batch = as_task(logits, label, dice=0.5, label_smoothing=0.1)

  def loss(x):
    return task.loss(lambda *_, key: x, None, batch, None)[0][0]

  grad = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
  on = label != IGNORE
  assert (grad[~on] == 0).all() and (np.abs(grad[on]).sum(-1) > 0).all()


def numpy_iou(prediction, label, classes):
  """By a confusion matrix over all counted pixels."""
  on = label != IGNORE
  table = np.zeros((classes, classes), int)
  np.add.at(table, (label[on], prediction[on]), 1)
  union = table.sum(0) + table.sum(1) - np.diag(table)
  with np.errstate(invalid='ignore'):
    iou = np.diag(table) / union
  return iou, np.diag(table).sum() / table.sum()


def test_metrics_are_numpys(pixels):
  logits, label = pixels
  logits[..., 5] = -9  # a class that is nowhere
  task, apply, batch = as_task(logits, label)
  batch['mask'] = jnp.array([1.0, 1.0, 0.0])
  sums, each = step.make_eval_step(task, apply)(1.0, batch)
  assert 'label' not in each and each['true'].dtype == jnp.int32
  means = {k: np.asarray(t, float) / w for k, (t, w) in sums.items()}
  found = task.summary(means)
  iou, accuracy = numpy_iou(logits.argmax(-1), label, 6)
  assert found['miou'] == pytest.approx(np.nanmean(iou))
  assert found['pixel_accuracy'] == pytest.approx(accuracy)
  ours = [found.get(f'iou_{name}', np.nan) for name in 'abcdef']
  np.testing.assert_allclose(ours, iou)
  assert 'iou_f' not in found
  total, weight = numpy_loss(logits, label)
  assert found['loss'] == pytest.approx(total / weight, rel=1e-5)
  own, accuracy = numpy_iou(logits[:1].argmax(-1), label[:1], 6)
  assert float(each['miou'][0]) == pytest.approx(np.nanmean(own))
  assert float(each['pixel_accuracy'][0]) == pytest.approx(accuracy)
  # Control: the mean of the examples' mIoU is another number.
  mean = float(each['miou'][:2].mean())
  assert abs(mean - found['miou']) > 1e-3
  host = evaluator.count(
    logits.argmax(-1).astype(np.uint8)[0], label[0].astype(np.uint8), 6
  )
  for row, name in zip(host, ('true', 'predicted', 'both'), strict=True):
    np.testing.assert_array_equal(row, each[name][0])


def test_names_of_metrics():
  ones = np.ones(3)
  found = segmentation.scores(
    {'true': ones, 'predicted': ones, 'both': ones}, ('a b', 'a-b', 'tv (set)')
  )
  assert {k for k in found if k.startswith('iou')} == {
    'iou_a_b_0',
    'iou_a_b_1',
    'iou_tv_set',
  }


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'dice': -1.0}, 'config.task.dice = -1.0: at least 0'),
    ({'label_smoothing': 1.0}, 'config.task.label_smoothing = 1.0'),
  ],
)
def test_a_task_that_cannot_be(fields, says):
  with pytest.raises(UserError) as error:
    segmentation.Segmentation(classes=2, names=('a', 'b'), **fields)
  assert says in str(error.value)


# --- The model ---


def normed(x, p, epsilon=1e-6):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1) + epsilon)[..., None]
  return x * p['scale'] + p['bias']


def numpy_block(x, p, heads):
  """x (N, D) through a pre-norm block, the MLP with a tanh GELU."""

  def dense(y, name, axes=1):
    of = p['attention'][name] if name in p['attention'] else p['mlp'][name]
    return np.tensordot(y, of['kernel'], axes) + of['bias']

  y = normed(x, p['norm1'])
  q, k, v = (dense(y, name) for name in ('query', 'key', 'value'))  # N H K
  a = softmax(np.einsum('nhk,mhk->hnm', q, k) / np.sqrt(q.shape[-1]))
  assert a.shape[0] == heads
  x = x + dense(np.einsum('hnm,mhk->nhk', a, v), 'out', 2)
  y = dense(normed(x, p['norm2']), 'up')
  y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
  return x + dense(y, 'down')


def decode(p, x, detail, depth):
  """The mask transformer by its paper: x (N, D) -> (N r r, Y)."""
  n = len(x)
  x = x @ p['embed']['kernel'] + p['embed']['bias']
  x = np.concatenate([x, p['classes']])
  blocks = p['encoder']['blocks']
  for layer in range(depth):
    x = numpy_block(x, jax.tree.map(lambda a, i=layer: a[i], blocks), 2)
  x = normed(x, p['norm'])
  width = x.shape[-1]
  patches = x[:n] @ p['patch_projection']['kernel']
  patches = patches.reshape(n * detail**2, width)
  classes = x[n:] @ p['class_projection']['kernel']
  patches, classes = (
    v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (patches, classes)
  )
  return normed(patches @ classes.T, p['class_norm'], 1e-5)


@pytest.fixture(scope='module')
def small():
  """(model, parameters with nothing at its initial value, images)."""
  model = Segmenter(
    classes=5,
    variant='Ti/4',
    width=16,
    depth=2,
    heads=2,
    gelu='tanh',
    detail=2,
    positions='sincos2d',
  )
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)
  params = model.init(jax.random.key(0), images)['params']
  params = jax.tree.map(
    lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params
  )
  return model, params, images


def test_mask_transformer_is_numpys(small):
  model, params, images = small
  width, heads = model.decoder_shape
  assert (width, heads) == (16, 2)
  found = {}

  def keep(next_, args, kwargs, context):
    result = next_(*args, **kwargs)
    if isinstance(context.module, MaskTransformer):
      found['given'], found['scores'] = args[0], result
    return result

  import flax.linen as nn

  with nn.intercept_methods(keep):
    model.apply({'params': params}, images)
  p = jax.tree.map(lambda a: np.asarray(a, float), params['decoder'])
  given = np.asarray(found['given'], float)
  expected = [decode(p, rows, 2, 2) for rows in given]
  scores = np.asarray(found['scores']).reshape(2, 6 * 4, 5)
  np.testing.assert_allclose(scores, expected, atol=1e-4)
  # Control: a block less, or the classes not among the tokens.
  assert np.abs(scores - [decode(p, r, 2, 1) for r in given]).max() > 1e-2


def test_scores_are_where_their_patch_is(small):
  """A linear decoder that tells a patch's mean: the picture, in blocks."""
  model = small[0].clone(decoder='linear', classes=1, detail=1)
  images = jnp.asarray(small[2])
  x = jnp.arange(6.0).reshape(1, 2, 3, 1)

  class Told(Segmenter, kw_only=True):
    def _scores(self, x, *, train):
      return jnp.arange(6.0 * self.detail**2).reshape(1, 6, -1)

  told = Told(
    **{
      f: getattr(model, f)
      for f in model.__dataclass_fields__
      if f not in ('parent', 'name')
    }
  )
  logits = told.apply(told.init(jax.random.key(0), images[:1]), images[:1])
  expected = jax.image.resize(x, (1, 8, 12, 1), 'bilinear')
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  fine = told.clone(detail=4)  # each pixel has its own
  logits = fine.apply(fine.init(jax.random.key(0), images[:1]), images[:1])
  blocks = np.arange(96.0).reshape(2, 3, 4, 4).transpose(0, 2, 1, 3)
  np.testing.assert_array_equal(logits[0, ..., 0], blocks.reshape(8, 12))


@pytest.mark.slow
@pytest.mark.parametrize('decoder', ['linear', 'mask_transformer'])
def test_features_of_several_blocks(small, decoder):
  model, _, images = small
  several = model.clone(features=(1, 2), decoder=decoder)
  params = several.init(jax.random.key(0), images)['params']
  kernel = params['decoder']['linear' if decoder == 'linear' else 'embed']
  assert kernel['kernel'].shape[0] == 32
  logits, seen = several.apply(
    {'params': params}, images, capture=('pooled', 'tokens', 'logits')
  )
  assert seen['pooled'].shape == (2, 16) and seen['tokens'].shape[0] == 2
  np.testing.assert_array_equal(seen['logits'], logits)
  assert logits.shape == (2, 8, 12, 5) and logits.dtype == jnp.float32

  def loss(params, of):
    out = of.apply({'params': params}, images)
    return jnp.square(out - 1).sum()

  # Gradients only where due: of the first block alone, not to the second.
  first = model.clone(features=(1,))
  params = first.init(jax.random.key(0), images)['params']
  grads = jax.grad(loss)(params, first)
  up = grads['encoder']['blocks']['mlp']['up']['kernel']
  assert np.abs(up[0]).max() > 0 and not up[1].any()
  assert not grads['norm']['scale'].any()
  assert jax.grad(loss)(params, first.clone(features=(2,)))['norm'][
    'scale'
  ].any()


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'features': (0,)}, 'config.model.features = (0,): different numbers'),
    ({'features': (1, 3)}, 'from 1 to the depth, 2'),
    ({'features': (1, 1)}, 'different numbers'),
    ({'pool': 'cls'}, "config.model.pool = 'cls': a segmenter reads each"),
    ({'representation': 8}, 'config.model.representation = 8'),
    ({'patch_dropout': 0.5}, 'config.model.patch_dropout = 0.5'),
    ({'detail': 3}, 'config.model.detail = 3 does not divide the patch of 4'),
    ({'decoder_dropout': 1.0}, 'config.model.decoder_dropout = 1.0: a rate'),
    ({'decoder_depth': 0}, 'config.model.decoder_depth = 0'),
    ({'heads': 3}, 'config.model.heads = 3 does not divide the width'),
  ],
)
def test_a_model_that_cannot_be(small, fields, says):
  with pytest.raises(UserError) as error:
    small[0].clone(**fields).check((8, 12))
  assert says in str(error.value)


# In millions: the mask transformer has 2 blocks and 3 projections of width D
# more than the ViT, 5.5 and 85.8.
@pytest.mark.parametrize(
  'variant, decoder, millions',
  [('Ti/16', 'mask_transformer', 6.7), ('B/16', 'linear', 86.0)],
)
def test_parameters_of_the_papers_models(variant, decoder, millions):
  model = Segmenter(classes=150, variant=variant, decoder=decoder)
  image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  assert trees.count(params) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize('decoder', ['linear', 'mask_transformer'])
@pytest.mark.parametrize('detail', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_flops_of_the_decoder_are_xlas(small, decoder, detail):
  model = small[0].clone(
    decoder=decoder, detail=detail, features=(1, 2), unroll=0, decoder_depth=1
  )
  images = jnp.zeros((1, 32, 32, 3))
  params = model.init(jax.random.key(0), images)
  cost = jax.jit(model.apply).lower(params, images).compile().cost_analysis()
  ours = sum(flops.forward(model, (32, 32)).values())
  assert ours == pytest.approx(cost['flops'], rel=0.25)
  assert abs(ours * 2 - cost['flops']) > 0.25 * cost['flops']


# --- Layouts ---


MESHES = [
  {'data': '8'},
  {'fsdp': '8'},
  {'data': '2', 'fsdp': '2', 'tensor': '2'},
]
DESCENT = {
  'optim__name': 'sgd',
  'optim__momentum': '0.0',
  'optim__clip': '0.0',
  'optim__weight_decay': '0.0',
  'optim__warmup': '0 steps',
  'optim__lr': '0.1',
  'task__dice': '0.5',
}


def ragged(batch):
  """Of some rows much is ignored, of one all, and one is no example."""
  label = np.array(batch['label'])
  label[1, :20], label[2, 5:], label[3] = IGNORE, IGNORE, IGNORE
  mask = np.ones(8, np.float32)
  mask[4] = 0
  put = jax.device_put
  return batch | {
    'label': put(label, batch['label'].sharding),
    'mask': put(mask, batch['mask'].sharding),
  }


def updated(mesh=None, change=ragged, **fields):
  """(setup, state, metrics) after one step of gradient descent."""
  setup = made(mesh, **DESCENT, **fields)
  with jax.set_mesh(setup.mesh):
    loader = setup.loader('train', setup.train_source)
    batch = change(loader.train_batch(0))
    state, metrics = setup.train_step(setup.init(), batch)
  return setup, state, jax.device_get(metrics)


@pytest.fixture(scope='module')
def one():
  return updated()


def furthest(one, other):
  """The largest difference, but of what only rounding moves."""
  pairs = zip(trees.paths(one), trees.paths(other), strict=True)
  return max(
    np.abs(np.asarray(x) - np.asarray(y)).max() for (_, x), (_, y) in pairs
  )


@pytest.mark.parametrize(
  'mesh',
  [
    *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES[:2]),
    MESHES[2],
  ],
  ids=str,
)
def test_many_devices_are_one(one, mesh):
  setup, state, metrics = updated(mesh)
  assert metrics['loss'] == pytest.approx(one[2]['loss'], rel=1e-6)
  assert furthest(state.params, one[1].params) < 1e-6
  f, t = (int(mesh.get(axis, 1)) for axis in ('fsdp', 'tensor'))
  parts = {
    'decoder/encoder/blocks/attention/query/kernel': (1, 16 // f, 2 // t, 8),
    'decoder/encoder/blocks/mlp/up/kernel': (1, 16 // f, 64 // t),
    'decoder/embed/kernel': (16 // f, 16),
    'decoder/patch_projection/kernel': (16 // f, 64),
    'decoder/class_projection/kernel': (16 // f, 16),
    'decoder/classes': (11, 16 // f),
  }
  flat = dict(trees.paths(state.params))
  for name, shape in parts.items():
    assert flat[name].addressable_shards[0].data.shape == shape, name


def test_accumulation_is_the_same_update(one):
  _, state, metrics = updated(accumulate='4')
  assert metrics['loss'] == pytest.approx(one[2]['loss'], rel=1e-6)
  assert furthest(state.params, one[1].params) < 1e-6


@pytest.mark.slow
def test_control_of_the_layouts(one):
  """One pixel in sixty-four of a label, or the rows that are left out."""

  def wrong(batch):
    label = ragged(batch)['label']
    return ragged(batch) | {'label': label.at[0, ::8, ::8].set(3)}

  assert furthest(updated(change=wrong)[1].params, one[1].params) > 1e-5
  _, whole, _ = updated(change=lambda batch: batch)
  assert furthest(whole.params, one[1].params) > 1e-4


def test_nothing_counted_is_no_update(one):
  def ignored(batch):
    return batch | {'label': jnp.full_like(batch['label'], IGNORE)}

  setup, state, metrics = updated(change=ignored)
  assert metrics['finite'] and metrics['loss'] == 0 == metrics['grad_norm']
  with jax.set_mesh(setup.mesh):
    assert furthest(state.params, setup.init().params) == 0
    assert furthest(one[1].params, setup.init().params) > 1e-4  # the control


ZOO = (
  {'decoder': 'linear', 'features': (1, 2)},
  {'decoder': 'mask_transformer'},
)


def test_every_kernel_of_a_decoder_has_a_rule():
  import re

  def unmatched(rules):
    left = set()
    for fields in ZOO:
      model = Segmenter(classes=150, variant='L/16', depth=2, **fields)
      image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
      params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
      for name, leaf in trees.paths(params['decoder']):
        name = f'decoder/{name}'
        inner = leaf.ndim - ('/blocks/' in name)
        whole = name.endswith(('bias', 'scale'))
        ruled = any(re.search(rule, name) for rule, _ in rules)
        if inner >= 2 and not whole and not ruled:
          left.add(name)
    return left

  assert unmatched(sharding.RULES) == set()
  fewer = [rule for rule in sharding.RULES if 'classes' not in rule[0]]
  assert unmatched(fewer) == {'decoder/classes'}


# --- Windows ---


def test_where_windows_begin():
  assert starts(64, 64, 2 / 3) == [0]
  assert starts(100, 64, 2 / 3) == [0, 36]
  assert starts(160, 64, 0.5) == [0, 32, 64, 96]
  assert starts(65, 64, 1.0) == [0, 1]
  for length in range(16, 90, 7):
    for stride in (0.1, 0.5, 1.0):
      begins = starts(length, 16, stride)
      covered = {p for s in begins for p in range(s, s + 16)}
      assert covered == set(range(length))
      assert max(np.diff([0, *begins])) <= max(1, round(16 * stride))


def test_scale_of_pictures():
  fit = ('decode', 'fit', 'range(-1, 1)')
  assert scaled(fit, (48, 32), 0) == (
    'decode',
    'resize_small(32)',
    'range(-1, 1)',
  )
  small = ('decode', "resize_small(40, 'area')", 'central_crop', 'range(-1, 1)')
  assert scaled(small, (32, 32), 0)[1:] == (
    "resize_small(40, 'area')",
    'range(-1, 1)',
  )
  assert scaled(small, (32, 32), 99)[1] == 'resize_small(99)'
  assert scaled(('range(-1, 1)',), (32, 32), 0) == ('decode', 'range(-1, 1)')


def test_enlarging_is_by_pixel_centres():
  x = np.random.default_rng(0).normal(size=(5, 7, 6)).astype(np.float32)
  expected = jax.image.resize(x, (10, 21, 6), 'bilinear')
  np.testing.assert_allclose(enlarge(x, (10, 21)), expected, atol=1e-5)
  assert enlarge(x, (5, 7)) is x


@pytest.fixture(scope='module')
def seen():
  """(setup, parameters): a small segmenter with a decoder that says things."""
  setup = made({'data': '1'})
  with jax.set_mesh(setup.mesh):
    params = setup.init().params
  rng = np.random.default_rng(3)
  return setup, jax.tree.map(
    lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params
  )


def picture(h, w, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (h, w, 1)).astype(np.uint8)


def test_a_window_as_large_as_the_picture_is_the_whole(seen):
  setup, params = seen
  images = [picture(32, 32, i) for i in range(3)]
  given = [((x / 255) * 2 - 1).astype(np.float32) for x in images]
  direct = np.asarray(setup.apply(params, jnp.stack(given)))
  slide, whole = (Segmenting(*seen, whole=way) for way in (False, True))
  for model in (slide, whole):
    for image, expected in zip(model.logits(given), direct, strict=True):
      np.testing.assert_allclose(image, expected, atol=1e-3)
  pairs = [(image, 'x') for image in images]
  for mask, expected in zip(slide.classes(pairs), direct, strict=True):
    np.testing.assert_array_equal(mask, expected.argmax(-1))
  # Control: another picture, and one that takes several windows.
  larger = ((picture(40, 52) / 255) * 2 - 1).astype(np.float32)
  a, b = (next(model.logits([larger])) for model in (slide, whole))
  assert a.shape == b.shape == (40, 52, 11)
  assert np.abs(a - b).max() > 1e-2


def test_windows_are_stitched(seen):
  """By hand: every window by itself, added where it lies."""
  setup, params = seen
  sizes = [(40, 52), (32, 32), (20, 33), (64, 32)]
  given = [
    ((picture(*s, i) / 255) * 2 - 1).astype(np.float32)
    for i, s in enumerate(sizes)
  ]
  found = list(Segmenting(setup, params, stride=0.5).logits(given))
  assert [x.shape[:2] for x in found] == sizes
  grey = 128 / 255 * 2 - 1
  for image, logits in zip(given, found, strict=True):
    h, w = image.shape[:2]
    full = np.full((max(h, 32), max(w, 32), 1), grey, np.float32)
    full[:h, :w] = image
    total, count = np.zeros((*full.shape[:2], 11)), np.zeros(full.shape)
    for y in starts(full.shape[0], 32, 0.5):
      for x in starts(full.shape[1], 32, 0.5):
        part = jnp.asarray(full[None, y : y + 32, x : x + 32])
        total[y : y + 32, x : x + 32] += setup.apply(params, part)[0]
        count[y : y + 32, x : x + 32] += 1
    expected = (total / count)[:h, :w]
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_the_evaluator(seen, tmp_path):
  """Of scenes as large as the model it is the evaluation of the loop."""
  setup, params = seen
  source = setup.source('test[:30]')
  loader = setup.loader('test', source)
  from vit_jax.evaluate import evaluate

  with jax.set_mesh(setup.mesh):
    expected = evaluate(setup, loader, params)
  view = evaluators.View(setup, params, loader, tmp_path)
  found = evaluators.run_all(
    'x', ('segmentation', 'segmentation(whole=True)'), view
  )
  for prefix in ('slide', 'whole'):
    for name in ('miou', 'pixel_accuracy', 'iou_background', 'iou_3'):
      assert found[f'{prefix}_{name}'] == pytest.approx(expected[name])
  assert len(list((tmp_path / 'worst').glob('*.png'))) == 12
  half = evaluators.run_all('x', ('segmentation(side=16)',), view)
  assert half['slide_miou'] != pytest.approx(expected['miou'])  # the control


# --- Starting from weights ---


@pytest.mark.parametrize(
  'fields',
  [
    {'pool': 'map', 'registers': 2},
    *(
      pytest.param(fields, marks=pytest.mark.slow)
      for fields in (
        {'pool': 'mean'},
        {'pool': 'cls', 'representation': 12},
        {'pool': 'cls', 'distill_token': True},
      )
    ),
  ],
  ids=str,
)
@pytest.mark.slow
def test_from_the_weights_of_a_classifier(tmp_path, fields):
  """Everything but what reads one vector; at another size."""
  vit = ViT(classes=7, variant='Ti/8', width=16, depth=2, heads=2, **fields)
  images = jnp.zeros((1, 48, 48, 1))
  params = vit.init(jax.random.key(7), images)['params']
  path = tmp_path / 'model.safetensors'
  seen = Preprocessing((48, 48), (0.4,), (0.2,))
  weights.save(path, vit, params, format='vit_jax', preprocessing=seen)
  config = finetune.adopt(
    load(init_from=str(path), init_head='new', model__positions='learned'),
    tmp_path / 'none',
  )
  assert config.model.registers == vit.registers
  setup = Setup(config, devices=jax.devices()[:1])
  with jax.set_mesh(setup.mesh):
    random, state = setup.init().params, finetune.initial(setup)
  found, before = dict(trees.paths(state.params)), dict(trees.paths(params))
  parts = {name.split('/')[0] for name in found}
  assert 'decoder' in parts and not parts & {'head', 'pool', 'representation'}
  for name, leaf in found.items():
    if name.startswith('decoder'):
      fresh = dict(trees.paths(random))[name]
      np.testing.assert_array_equal(leaf, fresh)
      assert 'kernel' not in name or np.asarray(leaf).any()
    elif name == 'positions/table':
      assert leaf.shape == (16 + len(vit.special), 16)
    else:
      np.testing.assert_array_equal(leaf, before[name], err_msg=name)
      if name.endswith('embed/linear/kernel'):  # the control
        assert (np.asarray(leaf) != dict(trees.paths(random))[name]).any()


# --- The command line ---


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  flags = [f'--config.{name}={value}' for name, value in SMALL.items()]
  config = '--config=configs/segment_digits.py'
  assert cli.main(['train', config, f'--workdir={path}', *flags]) == 0
  return path


def test_a_run(run, capsys):
  result = json.loads((run / 'result.json').read_text())
  assert 0 < result['metrics']['eval/test/miou'] < 1
  assert 'eval/test/iou_background' in result['metrics']
  with np.load(run / 'predictions' / 'test.npz') as kept:
    assert {'miou', 'pixel_accuracy', 'true', 'record'} <= set(kept)
    assert 'label' not in kept and kept['miou'].shape == (40,)
  assert cli.main(['report', str(run), str(run)]) == 0
  (panel,) = (run / 'panels').glob('*.png')
  with Image.open(panel) as image:
    assert image.mode == 'RGB'
  assert cli.main(['evaluate', f'--workdir={run}', '--evaluators=knn']) == 2
  assert "'knn' is for one label an image" in capsys.readouterr().err


def test_predict(run, tmp_path, capsys):
  file = tmp_path / 'scene.png'
  Image.fromarray(picture(50, 70)[..., 0]).save(file)
  flags = ['predict', f'--workdir={run}', str(file), '--json']
  shown = {}
  for more in ((), ('--whole',)):
    assert cli.main([*flags, f'--output={tmp_path / "out"}', *more]) == 0
    shown[more] = json.loads(capsys.readouterr().out)
  found = shown[()]
  assert sum(found['shares'].values()) == pytest.approx(1)
  assert found['overlay'] == str(tmp_path / 'out' / 'scene.segmentation.png')
  with Image.open(found['overlay']) as image:
    assert image.width > 3 * 70 * 2 and image.mode == 'RGB'
  assert cli.main(flags[:-1]) == 0
  assert (tmp_path / 'scene.segmentation.png').exists()
  assert '\t' in capsys.readouterr().out
  twin = tmp_path / 'other' / 'scene.png'
  twin.parent.mkdir()
  twin.write_bytes(file.read_bytes())
  two = [*flags[:3], str(twin), f'--output={tmp_path / "out"}']
  code = cli.main(two)
  assert code == 2 and 'two pictures would be' in capsys.readouterr().err


def test_viz_and_convert(run, tmp_path, capsys):
  """Pictures without masks are shown; its weights are of no format."""
  file = tmp_path / 'scene.png'
  Image.fromarray(picture(32, 32)[..., 0]).save(file)
  out = tmp_path / 'viz'
  flags = ['viz', f'--workdir={run}', f'--output={out}', str(file)]
  assert cli.main(flags) == 0 and (out / 'panels.png').exists()
  target = tmp_path / 'w.safetensors'
  assert cli.main(['convert', f'--from={run}', f'--to={target}']) == 2
  err = capsys.readouterr().err
  assert '--format=stablehlo' in err and 'decoder of a Segmenter' in err
  assert not target.exists()


def test_inspect_tells_the_decoder():
  result = of_config(load())
  parts = {part['name']: part for part in result['parts']}
  assert parts['decoder']['flops'] > 0 and 'head' not in parts
  assert result['model']['detail'] == 2


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'data__name': 'digits'}, 'learns masks, a class for each pixel'),
    ({'evaluators': "('knn(5)',)"}, "'knn' is for one label an image"),
    ({'evaluators': "('segmentation(0)',)"}, 'expected a number over 0, at'),
  ],
)
def test_mistakes(fields, says):
  with pytest.raises(UserError) as error:
    Setup(load(**fields))
  assert says in str(error.value)


def test_masks_are_not_for_classifiers(small_config):
  config = small_config(model__name='segmenter', model__pool='none')
  with pytest.raises(UserError) as error:
    Setup(config)
  assert "config.task.name = 'classification' trains 'vit'" in str(error.value)
  config = small_config(evaluators="('segmentation',)")
  with pytest.raises(UserError, match="'segmentation' is for masks"):
    Setup(config)
  config = small_config(data__name='digit_scenes', model__pool='mean')
  with pytest.raises(UserError, match='learns a class for each image'):
    Setup(config)


@pytest.mark.slow
def test_the_evaluator_of_two_processes(tmp_path, root):
  """Each its share, an odd number of pictures: as by the loop, which is one."""
  from tests.test_distributed import Cluster

  values = SMALL | {
    'data.test.split': 'test[:27]',
    'evaluators': "('segmentation', 'segmentation(whole=True)')",
    'mesh.data': '1',
    'mesh.fsdp': '2',
  }
  flags = [f'--config.{name}={value}' for name, value in values.items()]
  flags = ['--config=configs/segment_digits.py', *flags]
  cluster = Cluster(root, tmp_path / 'run', flags, 2)
  assert cluster.end(500) == [0, 0], cluster.text()
  path = tmp_path / 'run'
  metrics = json.loads((path / 'result.json').read_text())['metrics']
  for name in ('miou', 'pixel_accuracy', 'iou_background'):
    for prefix in ('slide', 'whole'):
      found = metrics[f'eval/test/{prefix}_{name}']
      assert found == pytest.approx(metrics[f'eval/test/{name}'], abs=1e-4)
  with np.load(path / 'predictions' / 'slide_segmentation.npz') as kept:
    np.testing.assert_array_equal(kept['record'], np.arange(27))
  assert len(list((path / 'worst').glob('*.png'))) == 12
