"""No config field that nothing reads.

The groups `task`, `model`, `optim` and the sources are handed on as parameters:
their code is read. Of all other fields a run is watched.
"""

import ast
import inspect
import sys
import textwrap
import typing

import ml_collections
import pytest

from tests.recipes import saved
from vit_jax import config, sharding, train
from vit_jax.errors import UserError
from vit_jax.models import MODELS
from vit_jax.schema import keyword_fields

# --- By a run ---

PASSED_ON = ('task', 'model', 'optim', 'mesh')
CHECKS = ('_check_values', 'check_start', 'rate')  # to look at is not to use


def _reader(frame):
  """The function of vit_jax that looks a field up, if one does."""
  while frame.f_code.co_name in ('__getattr__', 'get'):
    frame = frame.f_back
  module = frame.f_globals['__name__']
  return frame.f_code.co_name if module.startswith('vit_jax.') else None


@pytest.fixture
def found(monkeypatch):
  """Paths of config fields that vit_jax has read, but for its checks."""
  found, paths, kept = set(), {}, []
  resolve, get = config.resolve, ml_collections.ConfigDict.__getitem__

  def register(group, prefix):
    paths[id(group)] = prefix
    kept.append(group)  # so that no other has its id
    for key, value in group.items():
      if isinstance(value, ml_collections.ConfigDict):
        register(value, f'{prefix}{key}.')

  def resolved(values):
    result = resolve(values)
    register(result, '')
    return result

  def getitem(group, key):
    if id(group) in paths and _reader(sys._getframe(1)) not in (None, *CHECKS):
      found.add(f'{paths[id(group)]}{key}')
    return get(group, key)

  monkeypatch.setattr(config, 'resolve', resolved)
  monkeypatch.setattr(ml_collections.ConfigDict, '__getitem__', getitem)
  return found


def test_a_run_reads_every_field(found, small_config, tmp_path):
  file = saved(tmp_path / 'w.safetensors', 10, 8, 1, variant='Ti/4')
  fields = {'total': '2 steps', 'data__workers': '0'}
  small = small_config(
    init_from=str(file), init_head='new', recipe__devices='3', **fields
  )
  assert train.run(small, tmp_path / 'run') == train.FINISHED
  names = set(config.flat(small))
  names = {n for n in names if n.partition('.')[0] not in PASSED_ON}
  assert {'ema', 'recipe.scale', 'data.repeats', 'data.train.ops'} <= names
  # The control: nothing went wrong, so none but checks looked at these.
  assert names - found == {'on_nonfinite', 'max_rollbacks'}
  fields |= {'model__depth': '1', 'optim__lr': '1e30'}
  broken = small_config(on_nonfinite='rollback', **fields)
  with pytest.raises(UserError):
    train.run(broken, tmp_path / 'broken')
  assert names - found == set()


def test_every_axis_of_the_mesh_is_one(small_config):
  assert set(small_config().mesh) == set(sharding.AXES)


# --- By the code of what they are parameters of ---


class _WithoutChecks(ast.NodeTransformer):
  """Leaves out what only refuses a value: `if ...: raise`, `check(...)`."""

  def visit_If(self, node):
    refuses = all(isinstance(n, ast.Raise) for n in node.body)
    return None if refuses and not node.orelse else self.generic_visit(node)

  def visit_Expr(self, node):
    name = getattr(node.value, 'func', None)
    name = getattr(name, 'attr', getattr(name, 'id', ''))
    return None if name.startswith('check') else node

  def visit_For(self, node):
    node = self.generic_visit(node)
    return node if node.body else None


def parsed(function):
  source = (
    function if isinstance(function, str) else inspect.getsource(function)
  )
  return _WithoutChecks().visit(ast.parse(textwrap.dedent(source))).body[0]


def loads(tree, kind):
  return [
    n
    for n in ast.walk(tree)
    if isinstance(n, kind) and isinstance(n.ctx, ast.Load)
  ]


def attributes(tree):
  """X of each `self.X` that is read."""
  nodes = loads(tree, ast.Attribute)
  return {n.attr for n in nodes if getattr(n.value, 'id', '') == 'self'}


def unread(function, names):
  """The parameters that a function, or a class by its __init__, ignores."""
  tree = parsed(function)
  kept = {}  # self.X = x: x is then read where self.X is
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
      for target in node.targets:
        if isinstance(target, ast.Attribute):
          kept[node.value] = target.attr
  read = attributes(tree)
  return set(names) - {
    n.id for n in loads(tree, ast.Name) if n not in kept or kept[n] in read
  }


def reached(cls, start='__call__'):
  """What of `self` is read by a method and by those that it calls."""
  found, names = set(), [start]
  while names:
    name = names.pop()
    if name in found:
      continue
    found.add(name)
    member = inspect.getattr_static(cls, name, None)
    function = getattr(member, 'fget', member)
    if inspect.isfunction(function):
      names += attributes(parsed(inspect.unwrap(function)))
  return found


# Of `open_split`: those that its callers read, for which a run is watched, and
# what is stated of the data only to be checked.
ELSEWHERE = {'workers', 'repeats', 'max_skipped', 'examples', 'classes'}


def _entries():
  for section, (table, shared) in config.SECTIONS.items():
    if section != 'model':
      for name, function in table.items():
        yield f'{section}.{name}', function
    if shared:
      yield section, shared


@pytest.mark.parametrize('where, function', list(_entries()))
def test_every_parameter_is_read(where, function):
  missing = unread(function, keyword_fields(function))
  assert missing == (ELSEWHERE if where == 'data' else set())


def another(field):
  """A value of the field's type that is not its default."""
  choices = typing.get_args(field.hint)
  if isinstance(field.default, str):
    return next(value for value in choices if value != field.default)
  return type(field.default)(not field.default)


@pytest.mark.parametrize('name', MODELS)
def test_a_model_reads_or_refuses_each_field(name):
  """By its own methods: what a base class read and it does not is refused."""
  fields = keyword_fields(MODELS[name])
  assert {'variant', 'depth', 'head_bias'} <= set(fields)
  for field in set(fields) - reached(MODELS[name]):
    value = another(fields[field])
    model = MODELS[name](classes=3, **{'variant': 'Ti/16', field: value})
    with pytest.raises(UserError, match=rf'config\.model\.{field} = '):
      model.check((32, 32))


def test_the_checkers_would_notice():
  function = """
    def f(*, used=1, deleted=2, shadowed=3, documented=4, refused=5, checked=6):
      '''documented.'''
      del deleted
      shadowed = 5
      if refused < 0:
        raise ValueError(refused)
      for value in (checked, used):
        check_choice('f', value)
      return used, 'documented'
  """
  names = ['used', 'deleted', 'shadowed', 'documented', 'refused', 'checked']
  assert unread(function, names) == set(names) - {'used'}

  kept = """
    class Fake:
      def __init__(self, *, kept=1, dropped=2):
        self.kept = kept
        self.dropped = dropped

      def f(self):
        return self.kept
  """
  assert unread(kept, ['kept', 'dropped']) == {'dropped'}


class Base:
  width, depth, bias, seen = 1, 2, 3, 4

  @property
  def shape(self):
    return self.width

  def check(self):
    return self.seen

  def head(self):
    return self.bias

  def __call__(self):
    self.depth = 3
    return self.head() + self.shape


class Derived(Base):
  def head(self):
    return 'bias'


def test_a_method_that_is_not_called_reads_nothing():
  fields = {'width', 'depth', 'bias', 'seen'}
  assert fields & reached(Base) == {'width', 'bias'}
  assert fields & reached(Derived) == {'width'}
  assert fields & reached(Derived, 'check') == {'seen'}
  assert 'head_bias' in reached(MODELS['vit']) - reached(MODELS['mae'])
