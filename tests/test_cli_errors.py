"""Mistakes on the command line: exit code 2, one message, no traceback."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli, errors
from vit_jax.cli import main

DIGITS = '--config=configs/digits.py'


@pytest.fixture(autouse=True)
def as_before(root, monkeypatch, tmp_path):
  """Main changes the process it runs in; all is undone after each test."""
  monkeypatch.chdir(root)
  monkeypatch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'xla'))
  handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  values = {name: getattr(jax.config, name) for name in names}
  yield
  for number, handler in handlers.items():
    signal.signal(number, handler)
  for name, value in values.items():
    jax.config.update(name, value)


@pytest.fixture
def fails(capsys):
  """Runs main, which has to exit 2; gives the message."""

  def run(*argv):
    try:
      code = main([str(arg) for arg in argv])
    except SystemExit as error:  # argparse's way
      code = error.code
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert 'Traceback' not in out + err
    assert err.startswith(('vit_jax: ', 'usage: vit_jax')) and err[-1] == '\n'
    assert 'Error(' not in err and 'object at 0x' not in err
    return err

  return run


@pytest.fixture(scope='module')
def run_dir(vit_jax, small_flags, tmp_path_factory):
  """The workdir of a finished run of two steps."""
  path = tmp_path_factory.mktemp('run')
  flags = [*small_flags, '--config.total=2 steps']
  code, out, err = vit_jax('train', DIGITS, f'--workdir={path}', *flags)
  assert code == 0, out + err
  return path


# --- The config ---


@pytest.mark.parametrize(
  'flag, says',
  [
    ('totl=1ep', "config.totl is not a config field. Did you mean 'total'?"),
    ('model.widht=3', 'config.model.widht is not a config field. Did you mea'),
    (
      'model.variant=Tii/2',
      "'Tii/2': there is no size 'Tii'. Did you mean 'Ti'?",
    ),
    ('model.variant=Ti', "config.model.variant = 'Ti'"),
    ('model.name=vitt', "config.model.name = 'vitt' is unknown. Did you mean"),
    ('optim.name=adam', "config.optim.name = 'adam' is unknown. Did you mean"),
    ('optim.schedule=cosin', "'rsqrt'. Did you mean 'cosine'?"),
    ('batch_size=many', "config.batch_size = 'many': expected an int."),
    ('optim.lr=fast', "config.optim.lr = 'fast': expected a number."),
    ('total=60', "Did you mean '60ep' or '60 steps'?"),
    ('total=a while', "config.total = 'a while' is not a duration."),
    ('total=5%', "config.total = '5%': a percentage of what?"),
    ('total=0ep', "config.total = '0ep': no steps at all."),
    ('save_every=often', "config.save_every = 'often' is not a duration."),
    ('optim.warmup=5', "config.optim.warmup = '5' is not a duration."),
    ('optim.warmup=999ep', "for example to '10%'"),
    ('model.variant=Ti/3', 'patch size 3 does not divide the image 8x8: set'),
    ('size=9', 'patch size 2 does not divide the image 9x9'),
    ('size=0.5', 'config.size = 0.5: expected an int or (an int, an int)'),
    ('size=-8', 'config.size = -8: at least 1 pixel'),
    ('model.heads=5', 'config.model.heads = 5 does not divide the width 96'),
    ('model.dropout=1', 'config.model.dropout = 1.0: a rate, 0 <= r < 1.'),
    ('batch_size=0', 'config.batch_size = 0: at least 1.'),
    ('batch_size=-8', 'config.batch_size = -8: at least 1.'),
    ('batch_size=100', 'config.batch_size = 100 is not a multiple of'),
    ('accumulate=0', 'config.accumulate = 0: at least 1.'),
    ('ema=1', 'config.ema = 1.0: a decay, 0 <= d < 1.'),
    ('seed=-1', 'config.seed = -1: 0 to 4294967295.'),
    ('optim.lr=-1', 'config.optim.lr = -1.0 is negative'),
    ('task.label_smoothing=1', 'config.task.label_smoothing = 1.0'),
    ('data.workers=-1', 'config.data.workers = -1'),
    ('mesh.data=3', 'config.mesh = data=3, fsdp=1, tensor=1 does not fit 8 '),
    ('mesh.fsdp=0', 'config.mesh = data=-1, fsdp=0, tensor=1: sizes from 1'),
    ('mesh.tensor=-1', 'at most one -1'),
    ('data.name=folder:/none', "'folder:/none': no such folder."),
    ('data.name=digits:x', "config.data.name = 'digits:x': write 'digits'."),
    ('data.examples=5', 'config.data.examples = 5, but'),
    ('data.test.split=tset', "digits has no split 'tset', only"),
    ("data.test.ops=('flop',)", "op = 'flop' is unknown. Did you mean 'flip'?"),
    ("data.train.ops=('flip',)", "ops give uint8. End with 'range(-1, 1)'."),
    ('model=Ti/2', 'config.model is a group: set one of its fields, --config'),
  ],
)
def test_config_fields(fails, tmp_path, flag, says):
  workdir = tmp_path / 'run'
  err = fails('train', DIGITS, f'--workdir={workdir}', f'--config.{flag}')
  assert says in err
  assert len(err.splitlines()) == 1
  assert not (workdir / 'config.json').exists()  # it can be used again


@pytest.mark.parametrize(
  'name, text, says',
  [
    (
      'my.py',
      'def get_config():\n  return 1 / 0\n',
      'my.py, line 2, raised Ze',
    ),
    ('my.py', 'x = [\n', 'my.py, line 1, raised SyntaxError'),
    ('my.py', 'x = 1\n', 'my.py has no function get_config().'),
    ('my.json', '{', 'my.json is not a config in JSON'),
    ('my.json', '{"sede": 1}', 'config.sede is not a config field. Did you me'),
    ('nope.py', None, 'nope.py: no such file.'),
  ],
)
def test_config_files(fails, tmp_path, name, text, says):
  if text is not None:
    (tmp_path / name).write_text(text)
  flags = f'--workdir={tmp_path}/run', f'--config={tmp_path}/{name}'
  err = fails('train', *flags)
  assert says in err
  assert str(tmp_path / name) in err or 'is not a config field' in err
  assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
  'argv, says',
  [
    (
      ['train', '--workdir=W'],
      '--config=FILE is missing, for example --config=',
    ),
    (
      ['train', '--workdir=W', '--config='],
      '--config=: no such file. Choices: ',
    ),
    (['train', '--workdir=W', '--config=digits.py'], "'configs/digits.py'?"),
    (
      ['train', '--workdir=W', DIGITS + ':3'],
      'it takes no argument',
    ),
    (['train', DIGITS], 'arguments are required: --workdir'),
    (['train', '--workdir=W', '--workdr=V'], "Did you mean '--workdir'?"),
    (['train', '--workdir=W', '--split=x'], '--split is not a flag of train.'),
    (['train', '--workdir=W', DIGITS, '--config.seed'], '--config.seed=VALUE'),
    (
      ['train', '--workdir=W', 'configs/digits.py'],
      '--config=configs/digits.py',
    ),
    (['evaluate'], 'either --workdir=DIR or --weights=FILE'),
    (
      ['evaluate', '--workdir=W', '--config.seed=1'],
      'evaluate takes no --conf',
    ),
    (['evaluate', '--workdir=W', '--step=x'], "invalid int value: 'x'"),
    (
      ['evaluate', '--workdir=W', '--pictures=P'],
      '--pictures=P is for what --',
    ),
    (
      ['evaluate', '--workdir=W', '--pictures=P', '--evaluators= ,'],
      '--pictures=P is for what --evaluators draw',
    ),
    (
      ['evaluate', '--workdir=W', '--keep=k'],
      '--keep=k: a name that ends in .',
    ),
    (
      ['report', '--diff', 'A', 'B', '--output=X'],
      '--output=X is for the page',
    ),
    (['report', 'A', '--json'], '--json is for --diff'),
    (
      ['train', '--workdir=W', DIGITS, '--peer_timeout=9'],
      '--peer_timeout=9 is',
    ),
    (
      ['data', 'check', '--data=digits', '--config.data.name=digits'],
      '--data and --config.data.name are one',
    ),
    (
      ['data', 'prepare', 'tfds:x', '--config.seed=1'],
      '--config.seed is for data check',
    ),
    (
      ['inspect', DIGITS, '--size=8', '--config.size=9'],
      '--size and --config.s',
    ),
    (
      ['sweep', '--workdir=W', '--storage=sqlite']
      + ['--experiment=experiments/depth_or_width.py'],
      '--storage=sqlite is for the trials of a search; experiments/depth_or_wi',
    ),
    (
      ['train', '--workdir=W', DIGITS, '--profile=3:9']
      + ['--config.total=8 steps'],
      '--profile=3:9: the run has 8 steps',
    ),
    (['predict', '--workdir=W'], 'arguments are required: IMAGE'),
    (['trian', '--workdir=W'], "invalid choice: 'trian' (choose from 'train'"),
    (['--wrong'], '--wrong is not a flag of vit_jax.'),
  ],
)
def test_flags(fails, argv, says):
  err = fails(*argv)
  assert says in err and len(err.splitlines()) <= 5
  assert not os.path.exists('W')


# --- The workdir ---


@pytest.mark.slow
def test_a_run_of_another_model(fails, run_dir, small_flags):
  before = {p.name: p.stat().st_mtime_ns for p in run_dir.iterdir()}
  err = fails(
    'train',
    DIGITS,
    f'--workdir={run_dir}',
    *small_flags,
    '--config.total=3 steps',  # may differ
    '--config.model.width=64',
    '--config.optim.name=sgd',
  )
  assert f'--workdir={run_dir} holds a run of another config' in err
  assert 'config.model.width was 32, is now 64' in err
  assert "config.optim.name was 'adamw', is now 'sgd'" in err
  assert 'config.total' not in err and 'config.model.depth' not in err
  assert err.rstrip().endswith('or another --workdir.')
  after = {p.name: p.stat().st_mtime_ns for p in run_dir.iterdir()}
  before.pop('.lock'), after.pop('.lock')
  assert before == after


def test_a_workdir_that_is_a_file(fails, tmp_path):
  path = tmp_path / 'file'
  path.write_text('')
  assert f'--workdir={path} cannot be written' in fails(
    'train', DIGITS, f'--workdir={path}'
  )
  for command in (['evaluate'], ['predict', 'configs/digits.py']):
    err = fails(*command, f'--workdir={path}')
    assert f'--workdir={path} holds no run' in err


def test_a_damaged_config_json(fails, tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": ')
  for command in (['train', DIGITS], ['evaluate']):
    err = fails(*command, f'--workdir={tmp_path}')
    assert f'{tmp_path}/config.json is damaged' in err


def test_checkpoints_without_a_config(fails, tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  err = fails('train', DIGITS, f'--workdir={tmp_path}')
  assert 'has checkpoints but no config.json' in err


HOLD = """
import sys
from pathlib import Path
from vit_jax import workdir
with workdir.locked(Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_workdir_in_use(fails, tmp_path):
  child = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with child:
    assert child.stdout.readline() == 'held\n'
    err = fails('train', DIGITS, f'--workdir={tmp_path}')
    child.stdin.close()
  where = f'process {child.pid} on {socket.gethostname()}'
  assert err == f'vit_jax: --workdir={tmp_path} is in use by {where}.\n'
  from vit_jax import workdir

  with workdir.locked(tmp_path):  # let go of when the other one ended
    pass


# --- A finished run ---


@pytest.mark.parametrize('command', [['evaluate'], ['predict', 'IMAGE']])
def test_no_run(fails, tmp_path, command):
  image = tmp_path / 'x.png'
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
  command = [str(image) if x == 'IMAGE' else x for x in command]
  for workdir in (tmp_path, tmp_path / 'missing'):
    err = fails(*command, f'--workdir={workdir}')
    assert f'--workdir={workdir} holds no run (no config.json).' in err


@pytest.mark.slow
def test_a_step_that_is_not_there(fails, run_dir):
  err = fails('evaluate', f'--workdir={run_dir}', '--step=7')
  assert f'--step=7: {run_dir}/checkpoints has 2.' in err


def test_a_split_that_is_not_there(fails, run_dir):
  err = fails('evaluate', f'--workdir={run_dir}', '--split=vla')
  assert "digits has no split 'vla', only 'train' and 'test'." in err


def test_predictions_of_what_is_no_picture(fails, run_dir, tmp_path):
  good, text = tmp_path / 'good.png', tmp_path / 'text.png'
  Image.fromarray(np.zeros((20, 30), np.uint8)).save(good)
  text.write_text('hello')
  missing = tmp_path / 'missing.png'
  flag = f'--workdir={run_dir}'
  assert f'no such image file: {missing}' in fails(
    'predict', flag, good, missing
  )
  assert f'no such image file: {tmp_path}' in fails('predict', flag, tmp_path)
  err = fails('predict', flag, good, text)
  assert f'{text}: not an image that can be read.' in err
  assert len(err.splitlines()) == 1


# --- As it is run ---


@pytest.mark.slow
def test_a_subprocess_and_debug(vit_jax, tmp_path):
  flags = DIGITS, f'--workdir={tmp_path}', '--config.optim.name=adam'
  code, out, err = vit_jax('train', *flags)
  assert (code, out) == (2, '')
  assert err == (
    "vit_jax: config.optim.name = 'adam' is unknown. Did you mean 'adamw'? "
    'Choices: adamw, sgd, adafactor, lamb, lion, muon.\n'
  )
  code, _, err = vit_jax('train', *flags, '--debug')
  assert code == 1 and 'Traceback' in err and "'adam' is unknown" in err


@pytest.mark.parametrize('before', [True, False])
def test_debug_raises(tmp_path, before):
  argv = ['train', f'--workdir={tmp_path}', '--config=nope.py']
  argv.insert(0 if before else 3, '--debug')
  with pytest.raises(errors.UserError, match='no such file'):
    main(argv)


@pytest.mark.parametrize('argv, loaded', [('--help', False), ('inspect', True)])
def test_help_needs_no_jax(argv, loaded):
  """Which is most of what a start takes."""
  code = (
    'import atexit, sys; from vit_jax import cli\n'
    'atexit.register(lambda: print("jax" in sys.modules))\n'
    'cli.main([sys.argv[1]])'
  )
  command = [sys.executable, '-c', code, argv]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.stdout.splitlines()[-1] == str(loaded)


def test_programs_are_kept(monkeypatch, tmp_path):
  """By default where caches are; JAX's own variable says otherwise."""
  own, asked = tmp_path / 'vit_jax' / 'xla', tmp_path / 'elsewhere'
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  try:
    for variable, folder in ((None, own), (str(asked), asked)):
      monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
      if variable:
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', variable)
      cli._cache_compilations()
      assert jax.config.jax_compilation_cache_dir == str(folder)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_help_and_nothing(capsys):
  assert main([]) == 0
  with pytest.raises(SystemExit) as error:
    main(['--help'])
  assert error.value.code == 0
  out = capsys.readouterr().out
  assert all(word in out for word in ('train', 'evaluate', 'predict'))
