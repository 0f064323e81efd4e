"""Configs: files, overrides, types, messages."""

import dataclasses
import itertools
import json
import os
import textwrap
import tomllib

import pytest

from vit_jax import config
from vit_jax.defaults import RESUMABLE, Defaults, Mesh, Recipe
from vit_jax.errors import UserError
from vit_jax.setup import Setup


def load(*flags, target=None):
  """config.load of 'model.variant=S/16', ..."""
  pairs = [tuple(flag.split('=', 1)) for flag in flags]
  return config.load(None if target is None else str(target), pairs)


@pytest.fixture
def file(tmp_path):
  """A function from the text of a config file to its path."""

  def write(text, name='my.py'):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path

  return write


def files(root):
  return sorted((root / 'configs').glob('*.py'))


def test_every_file_loads(root):
  assert files(root)
  for path in files(root):
    loaded = load(target=path)
    assert set(config.schema_of(loaded.to_dict())) == set(loaded), path


def test_digits_makes_a_setup(small_config):
  setup = Setup(small_config())
  assert setup.total == 24 and setup.evaluations == ['test']


def test_the_defaults_are_a_config():
  loaded = load()
  for field in dataclasses.fields(Defaults):
    if field.name not in ('mesh', 'recipe'):
      assert loaded[field.name] == field.default
  assert loaded.mesh.to_dict() == dataclasses.asdict(Mesh())
  assert loaded.recipe.to_dict() == dataclasses.asdict(Recipe())
  assert {name for name in RESUMABLE if '.' not in name} <= set(loaded)


# --- Values ---


@pytest.mark.parametrize(
  'flag, expected',
  [
    ('batch_size=1e3', 1000),
    ('batch_size=64.0', 64),
    ('ema=1', 1.0),
    ('optim.lr=3', 3.0),
    ('optim.lr=3e-4', 3e-4),
    ('deterministic=false', False),
    ('deterministic=True', True),
    ('size=28', 28),
    ('size=28.0', 28),
    ('size=(28, 20)', (28, 20)),
    ('size=[28,20]', (28, 20)),
    ('total=100 steps', '100 steps'),
    ('model.variant=B/16', 'B/16'),
    ('model.pool=mean', 'mean'),
    ('mesh.fsdp=2', 2),
    ("data.train.ops=('decode', 'fit')", ('decode', 'fit')),
    ("data.test.ops=('range(-1, 1)',)", ('range(-1, 1)',)),
    ('data.test.ops=()', ()),
    ('data.train.split=train[:90%]', 'train[:90%]'),
    ('data.train.split=', ''),
  ],
)
def test_values_from_the_command_line(flag, expected):
  name = flag.partition('=')[0]
  value = config.flat(load(flag))[name]
  assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
  'flag, says',
  [
    ('batch_size=abc', "config.batch_size = 'abc': expected an int"),
    ('batch_size=1.5', 'config.batch_size = 1.5: expected an int'),
    ('batch_size=True', 'config.batch_size = True: expected an int'),
    ('batch_size=None', 'config.batch_size = None: expected an int'),
    ('optim.lr=big', "config.optim.lr = 'big': expected a number"),
    ('optim.lr=True', 'config.optim.lr = True: expected a number'),
    ('deterministic=1', 'config.deterministic = 1: expected a bool'),
    ('deterministic=yes', "config.deterministic = 'yes': expected a bool"),
    ('size=4x4', "config.size = '4x4': expected an int or (an int, an int)"),
    ('size=(1, 2, 3)', 'config.size = (1, 2, 3): expected'),
    ('size=(1.5, 2)', 'config.size = (1.5, 2): expected'),
    ('data.train.ops=flip', "ops = 'flip': expected a tuple of strings"),
    ('data.train.ops=(1, 2)', 'ops = (1, 2): expected a tuple of strings'),
    (
      'on_nonfinite=hlat',
      "one of 'halt', 'skip', 'rollback'. Did you mean 'halt'?",
    ),
    ('model.pool=gap', "config.model.pool = 'gap': expected one of 'cls'"),
    ('total=None', "config.total = None: write '' for nothing"),
  ],
)
def test_values_of_the_wrong_type(flag, says):
  with pytest.raises(UserError) as error:
    load(flag)
  assert says in str(error.value)


@pytest.mark.parametrize(
  'flag, says',
  [
    ('totl=1ep', "config.totl is not a config field. Did you mean 'total'?"),
    ('model.widht=3', 'config.model.widht is not a config field. Did you me'),
    ('model.width.x=3', 'config.model.width.x is not a config field.'),
    ('mesh.dta=2', "config.mesh.dta is not a config field. Did you mean 'da"),
    ('data.train.opps=()', 'config.data.train.opps is not a config field. D'),
    ('data.vall.ops=()', 'config.data.vall is not a config field.'),
    ('a.b.c=2', 'config.a is not a config field.'),
    ('model.name=vti', "config.model.name = 'vti' is unknown. Did you mean 'v"),
    ('optim.name=adam', "'adam' is unknown. Did you mean 'adamw'? Choices: a"),
    ('task.name=clasification', "Did you mean 'classification'?"),
    ('data.name=digit', "config.data.name = 'digit' is unknown. Did you mean"),
    ('data.name=fodler:/x', "Did you mean 'folder'?"),
    ('model=B/16', 'config.model is a group: set one of its fields, --config'),
    ('mesh=2', '--config.mesh.data, --config.mesh.fsdp, --config.mesh.tensor'),
    ('data.train=x', 'config.data.train is a group'),
  ],
)
def test_unknown_fields_and_names(flag, says):
  with pytest.raises(UserError) as error:
    load(flag)
  assert says in str(error.value)


@pytest.mark.parametrize(
  'values, says',
  [
    ({'sede': 1}, "config.sede is not a config field. Did you mean 'seed'?"),
    ({'model': {'dept': 2}}, 'config.model.dept is not a config field. Did y'),
    ({'data': {'val': {'opps': ()}}}, 'config.data.val.opps is not'),
    ({'model': 3}, 'config.model = 3: expected a group'),
    ({'mesh': 3}, 'config.mesh is a group of fields: config.mesh.data'),
    ({'seed': '0'}, "config.seed = '0': expected an int"),
    ({'seed': {'a': 1}}, "config.seed = {'a': 1}: expected an int"),
    ({'data': {'name': ['digits']}}, "is unknown. Did you mean 'digits'?"),
  ],
)
def test_mistakes_in_a_file(values, says):
  with pytest.raises(UserError) as error:
    config.resolve(values)
  assert says in str(error.value)


@pytest.mark.parametrize('flag', ['mesh.data=2', 'optim.name=sgd'])
def test_an_override_into_what_should_be_a_group(file, flag):
  path = file("def get_config():\n  return {'mesh': 3, 'optim': 4}\n")
  with pytest.raises(UserError, match='expected a group'):
    load(flag, target=path)


def test_a_further_split(file):
  path = file(
    "def get_config():\n  return {'data': {'val': {'split': 'train[1150:]'}}}\n"
  )
  loaded = load("data.val.ops=('flip',)", target=path)
  assert loaded.data.val.to_dict() == {
    'split': 'train[1150:]',
    'ops': ('flip',),
    'per_class': 0,
  }


# --- Names ---


def test_a_name_swaps_the_fields():
  adamw, sgd = load(), load('optim.name=sgd')
  assert 'b1' in adamw.optim and 'momentum' not in adamw.optim
  assert 'momentum' in sgd.optim and 'b1' not in sgd.optim
  assert sgd.optim.lr == adamw.optim.lr
  assert 'holdout' in load('data.name=folder:/x').data
  assert 'holdout' not in adamw.data


def test_a_name_keeps_the_files_shared_fields(root):
  path = root / 'configs' / 'digits.py'
  before = load(target=path).optim
  after = load('optim.name=sgd', target=path).optim
  assert after.warmup == before.warmup and after.lr == before.lr
  assert after.weight_decay == before.weight_decay


def test_a_field_of_the_other_name_is_refused():
  assert load('optim.b1=0.8').optim.b1 == 0.8
  with pytest.raises(UserError, match='config.optim.b1 is not a config field'):
    load('optim.name=sgd', 'optim.b1=0.8')


def test_names_come_first_in_any_order():
  flags = ['optim.name=sgd', 'optim.momentum=0.5', 'optim.lr=2', 'seed=3']
  loaded = {load(*order) for order in itertools.permutations(flags)}
  assert len(loaded) == 1
  assert loaded.pop().optim.momentum == 0.5
  with pytest.raises(UserError):
    load(*flags[1:])  # without the name, adamw has no momentum


# --- Files ---


def test_an_argument(file):
  path = file("""
    def get_config(side='8'):
      return {'size': int(side)}
  """)
  assert load(target=path).size == 8
  assert load(target=f'{path}:28').size == 28
  assert load('size=3', target=f'{path}:28').size == 3
  assert load(target=f'{path}:28').model == load().model


def test_json_round_trip(root, tmp_path, file):
  for path in files(root):
    loaded = load('size=(16, 24)', 'optim.name=sgd', target=path)
    saved = tmp_path / 'config.json'
    saved.write_text(config.to_json(loaded))
    again = load(target=saved)
    assert again == loaded and config.flat(again) == config.flat(loaded)
    assert load('seed=1', target=saved) != loaded
  for text in ('{', '[1]', '3', 'null', ''):
    with pytest.raises(UserError, match='bad.json is not a config in JSON'):
      load(target=file(text, 'bad.json'))


@pytest.mark.parametrize(
  'text, says',
  [
    ('def get_config():\n  return 1 / 0\n', 'line 2, raised ZeroDivisionError'),
    ('x = 1\ny = nope\n', "line 2, raised NameError: name 'nope'"),
    ('def get_config()\n  return 1\n', 'line 1, raised SyntaxError'),
    ('import nothing_here\n', 'line 1, raised ModuleNotFoundError'),
    ('x = 1\n', 'has no function get_config()'),
    ('def get_config():\n  return 3\n', 'get_config() returned int'),
    ('def get_config(size):\n  return {}\n', "argument: 'size'"),
    (
      'import json\ndef get_config():\n  return json.loads("\\n\\n\\n{")\n',
      'line 3, raised JSONDecodeError',
    ),
    (
      'from vit_jax import defaults\n\n\ndef get_config():\n'
      '  config = defaults.get_config()\n  config.totl = 1\n  return config\n',
      'line 6, raised AttributeError: \'Key "totl" does not exist',
    ),
    (
      'from vit_jax import defaults\n\n\ndef get_config():\n'
      '  config = defaults.get_config()\n  config.total = 6\n  return config\n',
      'line 6, raised TypeError',
    ),
  ],
)
@pytest.mark.parametrize('relative', [False, True])
def test_a_file_that_does_not_run(file, text, says, relative, monkeypatch):
  path = file(text)
  if relative:
    monkeypatch.chdir(path.parent)
    path = path.relative_to(path.parent)
  with pytest.raises(UserError) as error:
    load(target=path)
  assert str(error.value).startswith(str(path))
  assert says in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_is_not_there(root, file, monkeypatch):
  path = file('', 'digits2.py')
  with pytest.raises(UserError) as error:
    load(target=path.with_name('digits.py'))
  assert f'--config={path.with_name("digits.py")}: no such' in str(error.value)
  assert f'Did you mean {str(path)!r}' in str(error.value)
  monkeypatch.chdir(root)
  for name in ('digits.py', 'config/digits.py', 'configs/digit.py'):
    with pytest.raises(UserError, match="Did you mean 'configs/digits.py'"):
      load(target=name)
  for name in ('', 'configs', os.devnull):
    with pytest.raises(UserError, match='no such file'):
      load(target=name)


def test_names_and_defaults_can_be_written_to_a_file():
  for table, _ in config.SECTIONS.values():
    assert all(name == name.lower() and ':' not in name for name in table)
  json.dumps(load().to_dict())


# --- Where files are found ---


def test_all_packages_are_installed(root):
  settings = tomllib.loads((root / 'pyproject.toml').read_text())
  listed = settings['tool']['setuptools']['packages']
  files = (root / 'vit_jax').rglob('__init__.py')
  found = {'.'.join(f.parent.relative_to(root).parts) for f in files}
  assert set(listed) == found | {'vit_jax.configs', 'vit_jax.experiments'}


def test_our_configs_are_found_from_anywhere(root, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config.find_file('-', 'configs/digits.py', 'configs').is_file()
  assert config.find_file('-', 'experiments/seeds.py', 'experiments').is_file()
  with pytest.raises(UserError, match="Did you mean 'configs/digits.py'"):
    config.find_file('--config', 'configs/digit.py', 'configs')
  with pytest.raises(UserError, match='no such file'):  # a user's own folder
    config.find_file('--config', 'mine/digits.py', 'configs')
  own = tmp_path / 'configs' / 'digits.py'
  own.parent.mkdir()
  own.touch()
  assert config.find_file('-', 'configs/digits.py', 'configs').samefile(own)
