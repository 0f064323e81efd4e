"""Distillation: what is minimised, who learns, and which teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL as BASE
from tests.layouts import apart, furthest
from vit_jax import cli, config, finetune, step, trees, weights, workdir
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup
from vit_jax.tasks import distilling
from vit_jax.teacher import open_teacher
from vit_jax.weights.formats import Preprocessing
from vit_jax.workdir import DataInfo

SMALL = BASE | {
  'model.heads': '4',
  'model.pool': 'cls',
  'task.mixup': '0.2',
  'optim.lr': '1e-3',
}
DIGITS = tuple('0123456789')
INFO = DataInfo(DIGITS, (8, 8), 1, 1437, '')


def load(teacher, **overrides):
  values = SMALL | {'task.teacher': str(teacher)}
  values |= {k.replace('__', '.'): v for k, v in overrides.items()}
  return config.load('configs/digits.py', list(values.items()))


def saved(path, classes=10, channels=1, side=8, seed=3):
  """A file of weights whose logits are not all the same."""
  fields = {'variant': 'Ti/4', 'width': 16, 'depth': 1, 'heads': 2}
  model = ViT(classes=classes, **fields)
  image = jnp.zeros((1, side, side, channels))
  params = model.init(jax.random.key(seed), image)['params']
  head = params['head']['linear']
  head['kernel'] = jax.random.normal(jax.random.key(seed), head['kernel'].shape)
  mean = (0.3, 0.5, 0.6)[:channels]
  seen = Preprocessing((side, side), mean, (0.25,) * channels)
  weights.save(path, model, params, format='vit_jax', preprocessing=seen)
  return path, model, params


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """(file, model, parameters)."""
  return saved(tmp_path_factory.mktemp('teacher') / 'teacher.safetensors')


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_losses(temperature):
  rng = np.random.default_rng(0)
  student, other = rng.normal(0, 3, (2, 50, 7))

  def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  picked = log_softmax(student)[np.arange(50), other.argmax(-1)]
  p, q = (log_softmax(x / temperature) for x in (other, student))
  soft = temperature**2 * (np.exp(p) * (p - q)).sum(-1)
  given = jnp.asarray(student, 'f'), jnp.asarray(other, 'f')
  hard_ = distilling.loss(*given, 'hard', temperature)
  np.testing.assert_allclose(hard_, -picked, rtol=1e-4, atol=1e-5)
  soft_ = distilling.loss(*given, 'soft', temperature)
  np.testing.assert_allclose(soft_, soft, rtol=1e-4, atol=1e-5)
  swapped = distilling.loss(*given[::-1], 'soft', temperature)
  assert np.abs(swapped - soft).max() > 0.1  # the divergence has a direction
  same = distilling.loss(given[0], given[0], 'soft', temperature)
  np.testing.assert_allclose(same, 0, atol=1e-5)


@pytest.mark.parametrize('channels, side', [(1, 8), (3, 8), (1, 16)])
def test_the_teacher_sees_pixels_as_it_was_trained(tmp_path, channels, side):
  """Whatever range and size the student's have."""
  path, model, params = saved(tmp_path / 't.safetensors', 10, channels, side)
  teacher = open_teacher(str(path), INFO, ('range(-1, 1)',), 'float32')
  pixels = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
  given = pixels * 2 - 1
  own = jnp.repeat(pixels, channels, -1)
  own = jax.image.resize(own, (5, side, side, channels), 'bilinear')
  mean, std = jnp.array([0.3, 0.5, 0.6][:channels]), 0.25
  expected = model.apply({'params': params}, (own - mean) / std)
  found = teacher(params, given)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  plain = model.apply({'params': params}, own * 2 - 1)
  assert np.abs(plain - expected).max() > 0.1  # the range matters
  shapes = jax.tree.map(lambda x: x.shape, teacher.shapes)
  assert shapes == jax.tree.map(jnp.shape, params)


def run_steps(setup, steps=4, **change):
  losses = []
  with jax.set_mesh(setup.mesh):
    state, given = setup.init(), finetune.given(setup)
    before = trees.digest(given)
    batches = setup.loader('train', setup.train_source)
    for t in range(steps):
      batch = batches.train_batch(t)
      for name, function in change.items():
        batch = batch | {name: function(batch[name])}
      state, metrics = setup.train_step(state, batch, given)
      losses.append(metrics['loss'])
    assert trees.digest(given) == before
  return state, np.array(jax.device_get(losses))


@pytest.mark.parametrize('kind', ['soft', 'hard'])
@pytest.mark.parametrize(
  'token', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_step_is_that_of_its_loss(teacher, kind, token):
  """Of the whole step: the loss, and gradients for the student alone."""
  path, model, params = teacher
  fields = {'task__distillation': kind, 'task__distill_weight': '0.25'}
  fields |= {'task__temperature': '2.0', 'task__mixup': '0.0'}
  fields |= {'model__distill_token': str(token), 'model__drop_path': '0.0'}
  setup = Setup(load(path, **fields), devices=jax.devices()[:1])
  task, student = setup.task, setup.model
  with jax.set_mesh(setup.mesh):
    state = setup.init()
    batch = setup.loader('train', setup.train_source).train_batch(0)
  noise = {'head': 6, 'distill_head': 7}
  own = dict(state.params)
  for name in noise.keys() & own.keys():
    kernel = own[name]['linear']['kernel']
    made = jax.random.normal(jax.random.key(noise[name]), kernel.shape)
    own[name] = {'linear': own[name]['linear'] | {'kernel': made}}
  names = ('class_logits', 'distill_logits')
  _, seen = student.apply({'params': own}, batch['image'], capture=names)
  labels, follows = (np.asarray(seen[name], np.float64) for name in names)
  assert np.array_equal(labels, follows) != token
  pixels = batch['image'] / 2 + 0.5
  says = np.asarray(model.apply({'params': params}, (pixels - 0.3) / 0.25))

  def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  rows, y = np.arange(32), np.asarray(batch['label'])
  first = -log_softmax(labels)[rows, y]
  if kind == 'hard':
    second = -log_softmax(follows)[rows, says.argmax(-1)]
  else:
    p, q = log_softmax(says / 2), log_softmax(follows / 2)
    second = 4 * (np.exp(p) * (p - q)).sum(-1)
  expected = 0.75 * first.mean() + 0.25 * second.mean()

  def loss(own, given):
    seen = batch | {'teacher': setup.teacher(given, batch['image'])}
    apply = step.make_apply(student)
    return task.loss(apply, own, seen, jax.random.key(0))[0][0] / 32

  assert loss(own, params) == pytest.approx(expected, rel=1e-4)
  assert 0.75 * second.mean() + 0.25 * first.mean() != pytest.approx(
    expected, rel=1e-2
  )
  grads = jax.grad(loss)(own, params)
  reached = {n: np.abs(x).max() for n, x in trees.paths(grads)}
  assert all(v > 0 for n, v in reached.items() if 'key/bias' not in n)
  assert ('distill_head/linear/kernel' in reached) == token


@pytest.mark.parametrize('stopped', [True, False])
def test_no_gradient_reaches_the_teacher(teacher, stopped, monkeypatch):
  """Of the whole step's loss; the control: it would."""
  if not stopped:
    monkeypatch.setattr(jax.lax, 'stop_gradient', lambda x: x)
  fields = {'task__distillation': 'soft', 'task__mixup': '0.0'}
  setup = Setup(load(teacher[0], **fields), devices=jax.devices()[:1])
  with jax.set_mesh(setup.mesh):
    state, given = setup.init(), finetune.given(setup)
    batch = setup.loader('train', setup.train_source).train_batch(0)
    run = step.make_train_step(
      setup.task,
      setup.apply,
      setup.optimizer,
      setup.rate,
      seed=0,
      ema=0.0,
      accumulate=1,
      teach=setup.teacher,
    )
    state = state.replace(ema=None)
    loss = jax.jit(jax.grad(lambda given: run(state, batch, given)[1]['loss']))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(loss(given)))
  assert (largest == 0) == stopped


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher):
  """Soft distillation alone: no loss, no gradient; another teacher has both."""
  path, model, params = teacher
  fields = {'task__distillation': 'soft', 'task__distill_weight': '1.0'}
  fields |= {'task__mixup': '0.0', 'ema': '0.0'}
  setup = Setup(load(path, **fields), devices=jax.devices()[:1])
  task, apply = setup.task, step.make_apply(model)
  images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
  batch = {'image': images, 'label': jnp.arange(6), 'mask': jnp.ones(6)}

  def loss(own, given):
    seen = model.apply({'params': given}, images)
    return task.loss(apply, own, batch | {'teacher': seen}, None)[0][0]

  value, grads = jax.value_and_grad(loss)(params, params)
  assert abs(value) < 1e-4
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e-4
  other = jax.tree.map(lambda x: 1.1 * x, params)
  value, grads = jax.value_and_grad(loss)(params, other)
  assert value > 1e-2
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-2


@pytest.mark.slow
def test_many_devices_and_micro_batches_are_one(teacher):
  single = Setup(load(teacher[0], mesh__data='1'), devices=jax.devices()[:1])
  state, losses = run_steps(single)
  mesh = {'mesh__data': '2', 'mesh__fsdp': '2', 'mesh__tensor': '2'}
  for fields in (mesh, {'mesh__data': '1', 'accumulate': '4'}):
    fields |= {'model__drop_path': '0.0'} if 'accumulate' in fields else {}
    devices = jax.devices()[: 8 if 'mesh__tensor' in fields else 1]
    if 'accumulate' in fields:
      plain = load(teacher[0], mesh__data='1', model__drop_path='0.0')
      state, losses = run_steps(Setup(plain, devices=devices))
    other, again = run_steps(Setup(load(teacher[0], **fields), devices=devices))
    assert apart(again, losses) < 1e-6
    assert furthest(other.params, state.params) < 1e-5
  dim = {'image': lambda x: x.at[0].multiply(0.5)}
  assert apart(run_steps(single, **dim)[1], losses) > 1e-4


def test_a_teacher_neither_comes_nor_goes(teacher, tmp_path):
  """On resume; that it moved is no difference."""
  taught, alone = load(teacher[0]), load('')
  for saved, other in ((taught, alone), (alone, taught)):
    text = config.to_json(saved)
    workdir.write_json(tmp_path / 'config.json', text)
    workdir.check_resumable(tmp_path, saved)
    with pytest.raises(UserError, match='config.task.teacher was'):
      workdir.check_resumable(tmp_path, other)
  workdir.write_json(tmp_path / 'config.json', config.to_json(taught))
  workdir.check_resumable(tmp_path, load('elsewhere.npz'))


def test_names_of_classes_have_to_agree(tmp_path):
  """Where both have names: of data that are only stated there are none."""
  path, model, params = saved(tmp_path / 't.safetensors')
  seen = Preprocessing((8, 8), (0.5,), (0.5,))
  given = {'format': 'vit_jax', 'preprocessing': seen}
  weights.save(path, model, params, labels=DIGITS[::-1], **given)
  known = DataInfo(DIGITS, (8, 8), 1, 1437, 'known')
  texts = ('range(-1, 1)',)
  with pytest.raises(UserError, match='in the same order'):
    open_teacher(str(path), known, texts, 'float32')
  open_teacher(str(path), INFO, texts, 'float32')
  weights.save(path, model, params, labels=DIGITS, **given)
  open_teacher(str(path), known, texts, 'float32')
  others = tuple('abcdefghij')  # of the same, in other words, for all we know
  weights.save(path, model, params, labels=others, **given)
  open_teacher(str(path), known, texts, 'float32')


def train(path, teacher, *more):
  flags = [f'--config.{name}={value}' for name, value in SMALL.items()]
  return cli.main(
    [
      'train',
      '--config=configs/digits.py',
      f'--workdir={path}',
      *flags,
      f'--config.task.teacher={teacher}',
      *more,
    ]
  )


@pytest.mark.slow
def test_a_run_of_a_run_and_its_resume(tmp_path, capsys):
  """The teacher: the workdir of a run. It may move, it may not change."""
  teacher, moved = tmp_path / 'teacher', tmp_path / 'moved'
  short = '--config.total=6 steps'
  assert train(teacher, '', short) == 0
  # Rates that do not depend on the length: half a run is a run's first half.
  even = ['--config.optim.schedule=constant', '--config.optim.warmup=2 steps']
  assert train(tmp_path / 'whole', teacher, *even) == 0
  half = tmp_path / 'half'
  assert train(half, teacher, *even, '--config.total=12 steps') == 0
  teacher.rename(moved)
  found = cli.main(['evaluate', f'--workdir={half}'])  # needs no teacher
  assert found == 0
  assert train(half, teacher, *even) == 2
  assert 'no such file of weights' in capsys.readouterr().err
  assert train(half, moved, *even) == 0
  ends = [
    workdir.read_json(path / 'result.json')['parameters_sha256']
    for path in (half, tmp_path / 'whole')
  ]
  assert ends[0] == ends[1]
  other = tmp_path / 'other'
  assert train(other, '', short, '--config.seed=1') == 0
  capsys.readouterr()
  assert train(half, other, *even, '--config.total=30 steps') == 2
  assert 'not the one that the run began with' in capsys.readouterr().err


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'task__distill_weight': '1.5'}, 'distill_weight = 1.5: 0 to 1'),
    ({'task__temperature': '0.0'}, 'temperature = 0.0: above 0'),
    ({'task__distillation': 'warm'}, "distillation = 'warm'"),
    ({'task__teacher': 'nothing.npz'}, "teacher = 'nothing.npz': no such"),
  ],
)
def test_mistakes(teacher, fields, words):
  with pytest.raises(UserError, match=words):
    Setup(load(teacher[0], **fields))


def test_a_teacher_of_something_else(tmp_path):
  path, *_ = saved(tmp_path / 'other.safetensors', classes=7)
  with pytest.raises(UserError, match='tells 7 classes, the data have 10'):
    Setup(load(path))
  path, *_ = saved(tmp_path / 'grey.safetensors')
  with pytest.raises(UserError, match='config.channels = 1'):
    Setup(load(path, channels='3'))
