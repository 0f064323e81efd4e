"""Starting from weights: architecture, pixels and head of a file or a run."""

import json
import os
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from tests.conftest import red_and_blue
from vit_jax import cli, finetune, opening, preview, trees, weights, workdir
from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.setup import Setup
from vit_jax.weights.formats import Preprocessing


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """40 pictures of two colours, 20x20."""
  return red_and_blue(tmp_path_factory.mktemp('pictures'), 20, 20, 20)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Weights of an unusual model: registers, mean pooling, own statistics."""
  model = ViT(
    classes=5,
    variant='S/4',
    width=16,
    depth=2,
    heads=2,
    pool='mean',
    registers=3,
    layer_scale=0.5,
    gelu='tanh',
  )
  images = jnp.zeros((1, 16, 16, 3))
  params = model.init(jax.random.key(3), images)['params']
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  seen = Preprocessing((16, 16), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
  weights.save(path, model, params, format='vit_jax', preprocessing=seen)
  return path, model, params


def command(pictures, source, workdir, *more):
  return cli.main(
    [
      'train',
      '--config=configs/finetune.py',
      f'--config.init_from={source}',
      f'--config.data.name=folder:{pictures}',
      '--config.batch_size=8',
      f'--workdir={workdir}',
      *more,
    ]
  )


def test_launched_from_a_file(pictures, file, tmp_path, monkeypatch):
  """The config is checked with the architecture of the weights in it."""
  from vit_jax.launch import slurm

  sent = []
  monkeypatch.setattr(slurm, 'submit', lambda args, argv: sent.append(argv))
  assert command(pictures, file[0], tmp_path, '--launch=slurm') == 0
  assert command(pictures, '/no.npz', tmp_path, '--launch=slurm') == 2
  (argv,) = sent
  assert f'--config.init_from={file[0]}' in argv


@pytest.mark.slow
def test_the_two_commands_of_the_readme(root, pictures, file, tmp_path):
  """pip install, away from the clone; then from weights to the pictures."""
  target = tmp_path / 'target'
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  install = [*pip, 'install', '--no-deps', f'--target={target}', str(root)]
  subprocess.run(install, check=True)
  script = (
    'import sys; from vit_jax import cli; print(cli.__file__); '
    'sys.exit(cli.main(sys.argv[1:]))'
  )

  def run(*words):
    return subprocess.run(
      [sys.executable, '-c', script, *map(str, words)],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(target)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout

  out = run('inspect', '--config=configs/vit_s16_i1k.py')
  assert out.startswith(str(target)) and '22,122,472' in out
  readme = (root / 'README.md').read_text()
  own = {'model.safetensors': str(file[0]), 'PATH': str(pictures)}
  (line,) = (x for x in readme.splitlines() if 'config.init_from=' in x)
  for name, path in own.items():
    assert name in line
    line = line.replace(name, path)
  small = ['--config.batch_size=8', '--config.optim.lr=3e-3']
  run(*shlex.split(line)[1:], *small, '--config.total=6ep')
  result = json.loads((tmp_path / 'W' / 'result.json').read_text())
  assert result['metrics']['eval/test/accuracy'] == 1
  for name in ('curves.png', 'mistakes.png'):
    with Image.open(tmp_path / 'W' / name) as image:
      assert min(image.size) > 200


@pytest.mark.slow
def test_a_run_from_a_file(pictures, file, tmp_path):
  path, model, params = file
  frozen = ['--config.total=1 steps', '--config.optim.lr=0']
  assert command(pictures, path, tmp_path, *frozen) == 0
  config = config_lib.load(str(tmp_path / 'config.json'))
  for name in ('width', 'depth', 'pool', 'registers', 'layer_scale', 'gelu'):
    assert config.model[name] == getattr(model, name)
  assert config.size == (16, 16) and config.channels == 3
  assert config.data.test.ops[-1] == (
    'normalize((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))'
  )
  setup, _, found = opening.load_run(tmp_path, None, raw=True)
  head = found.pop('head')
  assert head['linear']['kernel'].shape == (16, 2)
  assert trees.digest(found) == trees.digest(
    {k: v for k, v in params.items() if k != 'head'}
  )
  random = setup.init().params
  random.pop('head')
  assert trees.digest(random) != trees.digest(found)


def test_it_learns_resumes_without_the_file_and_converts(
  pictures, file, tmp_path, capsys
):
  source = tmp_path / 'model.safetensors'
  source.write_bytes(file[0].read_bytes())
  (tmp_path / 'config.json').write_bytes(
    (file[0].parent / 'config.json').read_bytes()
  )
  run = tmp_path / 'run'
  flags = ['--config.optim.lr=3e-3', '--config.save_every=2ep']
  assert command(pictures, source, run, *flags, '--config.total=6ep') == 0
  source.unlink()
  assert command(pictures, source, run, *flags, '--config.total=8ep') == 0
  result = json.loads((run / 'result.json').read_text())
  assert result['metrics']['eval/test/accuracy'] == 1
  target = tmp_path / 'out' / 'model.safetensors'
  assert cli.main(['convert', f'--from={run}', f'--to={target}']) == 0
  picture = str(pictures / 'train' / 'blue' / '0.png')
  capsys.readouterr()
  shown = []
  for flag in (f'--workdir={run}', f'--weights={target}'):
    assert cli.main(['predict', flag, picture, '--json']) == 0
    shown.append(capsys.readouterr().out)
  assert shown[0] == shown[1] and '"blue"' in shown[0]
  again = f'--data=folder:{pictures}'
  flags = ['evaluate', f'--weights={target}', again, '--json']
  assert cli.main(flags) == 0
  found = json.loads(capsys.readouterr().out)
  assert (
    found['accuracy'] == 1
    and found['count'] == result['metrics']['eval/test/count']
  )


@pytest.mark.slow
def test_a_run_from_a_run_at_another_size(pictures, file, tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  assert command(pictures, file[0], first, '--config.total=2 steps') == 0
  flags = ['--config.total=2 steps', '--config.size=24']
  keep = ['--config.init_head=keep', '--config.optim.lr=0']
  assert command(pictures, first, second, *flags, *keep) == 0
  setup, _, params = opening.load_run(second, None, raw=True)
  assert setup.info.size == (24, 24)
  assert params['positions']['table'].shape == (36, 16)
  _, _, before = opening.load_run(first, None, raw=True)
  for name in ('head', 'encoder', 'registers'):
    assert trees.digest(params[name]) == trees.digest(before[name])


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--config.init_head=keep'], 'has 5 classes, the model 2'),
    (['--config.init_from=no.safetensors'], 'no such file of weights'),
    (['--config.size=18'], 'does not divide the image'),
  ],
)
def test_mistakes(pictures, file, tmp_path, capsys, flags, says):
  assert command(pictures, file[0], tmp_path / 'run', *flags) == 2
  err = capsys.readouterr().err
  assert says in err and 'Traceback' not in err


@pytest.mark.parametrize(
  'flags, says',
  [
    (
      ['--workdir=W', '--data=digits'],
      "on others by --evaluators=\"on('digits'",
    ),
    (['--workdir=W', '--heads=7'], '--heads is for --weights=FILE'),
    (['--weights=FILE', '--data=DATA', '--step=0'], '--step is for --workdir'),
    (['--weights=FILE', '--data=DATA', '--raw'], '--raw is for --workdir'),
    (['--weights=FILE', '--evaluators=knn(5)'], '--data=folder:PATH, which is'),
    (
      ['--weights=FILE', '--data=DATA', '--heads=2'],
      '--heads=2: FILE is of th',
    ),
    (['--weights=FILE', '--data=DATA', '--patches=4x4'], '--patches=4x4: FILE'),
    (
      ['--weights=FILE', '--data=DATA', '--evaluators=knn', '--keep=K.npz'],
      'K.npz: the',
    ),
  ],
)
def test_flags_that_do_not_go_together(pictures, file, capsys, flags, says):
  names = {'FILE': str(file[0]), 'DATA': f'folder:{pictures}'}
  for name, value in names.items():
    flags = [flag.replace(f'={name}', f'={value}') for flag in flags]
    says = says.replace(f': {name}', f': {value}')
  assert cli.main(['evaluate', *flags]) == 2
  err = capsys.readouterr().err
  assert says in err and 'Traceback' not in err


@pytest.mark.parametrize(
  'flags, says',
  [
    (['depth=3'], 'depth=3: the weights of config.init_from = '),
    (['depth=3'], 'have 2, which stays'),
    (['heads=4', 'depth=2'], 'heads=4: '),
    (['hidden=32'], 'have 64, which stays'),
    (['gelu=exact'], "have 'tanh', which stays"),
    (['registers=0'], 'registers=0: '),
    (['variant=S/2'], "have 'S/4' (width 16, depth 2, hidden 64, heads 2)"),
    (['variant=B/4'], 'variant=B/4: '),
    (['channels=1'], '--config.channels=1: '),
    # As they are, in these words or in others; or not theirs to say.
    (['depth=2', 'hidden=64', 'width=16', 'gelu=tanh', 'variant=S/4'], ''),
    (['variant=Ti/4', 'width=16', 'depth=2', 'heads=2', 'channels=3'], ''),
    (['dropout=0.1', 'drop_path=0.1', 'patch_dropout=0.5', 'channels=0'], ''),
    (['dtype=bfloat16', 'attention=xla', 'remat=full', 'unroll=2'], ''),
    (['mlp_kernel=xla'], ''),
    (['head_bias=-3.0'], ''),
  ],
)
def test_what_is_asked_of_weights(
  pictures, file, flags, says, tmp_path, capsys
):
  flags = [flag if 'channels' in flag else f'model.{flag}' for flag in flags]
  code = command(
    pictures,
    file[0],
    tmp_path / 'run',
    *(f'--config.{flag}' for flag in flags),
    *(['--config.total=0 steps'] if not says else []),
  )
  err = capsys.readouterr().err
  assert code == 2 and not (tmp_path / 'run' / 'config.json').exists()
  assert (says or "config.total = '0 steps': no steps") in err


def test_what_a_config_says_of_its_model_is_for_random_values(
  pictures, file, tmp_path, capsys
):
  """It is not what was asked for; a field of a sweep's point is."""
  start = [('init_from', str(file[0])), ('data.name', f'folder:{pictures}')]
  depth = [('model.depth', '7')]
  path = tmp_path / 'c.json'
  loaded = config_lib.load('configs/finetune.py', depth + start)
  path.write_text(config_lib.to_json(loaded))
  flags = ['inspect', f'--config={path}', '--config.model.dropout=0.1']
  assert cli.main([*flags, '--json']) == 0
  assert json.loads(capsys.readouterr().out)['model']['depth'] == 2
  assert cli.main([*flags, '--config.model.depth=7']) == 2
  assert '--config.model.depth=7: the weights' in capsys.readouterr().err
  experiment = tmp_path / 'e.py'
  for points, code in (("{'model.depth': (3, 4)}", 2), ("{'seed': (3, 4)}", 0)):
    experiment.write_text(
      'from vit_jax.sweeps import grid\n'
      f'CONFIG = {str(path)!r}\n'
      f'def sweep():\n  return grid({points})\n'
    )
    given = [f'--experiment={experiment}', f'--workdir={tmp_path / "sweep"}']
    assert cli.main(['sweep', '--dry_run', *given]) == code
  assert 'depth=3: --config.model.depth=3: the w' in capsys.readouterr().err


def test_a_preview_is_of_what_weights_see(
  pictures, file, tmp_path, monkeypatch
):
  drawn = []
  monkeypatch.setattr(preview, 'draw', lambda *args: drawn.append(args[0]))
  flags = ['data', 'preview', '--config=configs/finetune.py']
  flags += [f'--config.data.name=folder:{pictures}', '--config.batch_size=8']
  flags += [f'--config.init_from={file[0]}', f'--output={tmp_path}/x.png']
  assert cli.main(flags) == 0
  assert drawn[0].info.size == (16, 16)
  assert drawn[0].config.data.test.ops[-1].startswith('normalize((0.4')


def test_a_new_head_is_for_weights(pictures, tmp_path, capsys):
  flags = ['train', '--config=configs/finetune.py', f'--workdir={tmp_path}/run']
  assert cli.main([*flags, f'--config.data.name=folder:{pictures}']) == 2
  assert '--config.init_from=FILE' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_classes_in_another_order(pictures, tmp_path, capsys, caplog):
  """A head is matched by the names of its classes, where they are the same."""
  model = ViT(classes=2, variant='S/4', width=16, depth=1, heads=2)
  images = jnp.zeros((1, 16, 16, 3))
  params = model.init(jax.random.key(0), images)['params']
  params['head']['linear']['kernel'] += jnp.array([0.3, -0.3])
  params['head']['linear']['bias'] += jnp.array([0.1, -0.1])
  path = tmp_path / 'model.safetensors'
  about = {'format': 'vit_jax', 'preprocessing': Preprocessing((16, 16))}

  def scores(*labels):
    weights.save(path, model, params, labels=labels, **about)
    flags = [f'--weights={path}', f'--data=folder:{pictures}', '--json']
    assert cli.main(['evaluate', *flags]) == 0
    return json.loads(capsys.readouterr().out)['loss']

  same = scores('blue', 'red')
  assert scores('red', 'blue') != pytest.approx(same, rel=1e-3)
  assert 'by number' not in caplog.text
  assert scores('cat', 'dog') == same
  said = f'{path} calls its classes cat, dog, ..., the data blue, red, ...: '
  assert said + 'matched by number' in caplog.text
  with pytest.raises(UserError, match='in another order: blue, red'):
    opening.in_order('w', ('red', 'blue'), ('blue', 'red'))('decoder/x', None)
  kernels = []
  for labels in (('blue', 'red'), ('red', 'blue')):
    weights.save(path, model, params, labels=labels, **about)
    fields = [('init_from', str(path)), ('init_head', 'keep')]
    fields += [('data.name', f'folder:{pictures}'), ('batch_size', '8')]
    config = config_lib.load('configs/finetune.py', fields)
    setup = Setup(finetune.adopt(config, tmp_path / 'none'))
    with jax.set_mesh(setup.mesh):
      state = finetune.initial(setup)
    kernels.append(state.params['head']['linear']['kernel'])
  assert (kernels[0] == kernels[1][:, ::-1]).all()
  assert not (kernels[0] == kernels[1]).all()


def test_a_run_keeps_the_pixels_of_each_group(pictures, file, tmp_path):
  """What it found at first; the same command is the same config again."""
  flags = [
    ('init_from', str(file[0])),
    ('data.name', f'folder:{pictures}'),
    ('data.train.ops', "('decode', 'fit', 'range(-1, 1)')"),
  ]
  config = config_lib.load('configs/finetune.py', flags)
  first = finetune.adopt(config, tmp_path)
  workdir.write_json(tmp_path / 'config.json', config_lib.to_json(first))
  assert finetune.adopt(config, tmp_path) == first
  assert first.data.train.ops[-1] == 'range(-1, 1)'
  assert first.data.test.ops[-1].startswith('normalize((0.4')
