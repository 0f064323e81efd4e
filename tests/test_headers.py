"""A config's header is a contract: source, numbers, hardware, commands."""

import inspect
import re

import pytest

from tests import shown
from tests.conftest import ROOT
from tests.recipes import CONFIGS, NAMES, TARGETS, header, load
from vit_jax import config
from vit_jax.errors import UserError

SOURCE = r'ours|arXiv \d{4}\.\d{5}|[\w-]+/[\w-]+'
# Parts of a header that it has once, each with what it may begin with.
PARTS = {
  'Source: ': SOURCE,
  'Expected': r'[^.:]*: \S',
  'Hardware: ': r'\S',
  'Run here: ': r'(yes|no)\b',
}
# '8 GPUs', 'one GPU', '64 v5p chips for G and H', and '16 for B' after another.
DEVICE = r'(?:cores|chips) of TPU v\w+|v\w+ chips|GPUs?|[A-Z]\d+s?'
DEVICES = re.compile(
  rf'\b(one|\d+) (?:(?:{DEVICE})\b|(?=for ))'
  r'(?: ?for ([\w,]*\w(?: and [\w,]*\w)*))?'
)
UNKNOWN = re.compile(r'not said|not known|\bany\b|CPU cores')


def flat(text):
  return ' '.join(text.split())


def sentence(text, part):
  """What follows 'Source: ', up to the end of the sentence."""
  (found,) = re.findall(rf'{part}: (.+?)\.(?: |$)', flat(text))
  return found


def promised(text, argument=''):
  """Devices that the 'Hardware: ' of a header has for an argument; 0: unsaid.

  A count is 'for' the arguments of which it names most parts, or for all.
  """
  said = sentence(text, 'Hardware')
  unknown, best = UNKNOWN.search(said), (-1, 0)
  for count, arguments in DEVICES.findall(said):
    assert arguments or not unknown, f'both a count and none: {said}'
    for one in arguments.split(' and ') if arguments else ['']:
      parts = set(one.split(',')) - {''}
      if parts <= set(argument.split(',')):
        number = 1 if count == 'one' else int(count)
        best = max(best, (len(parts), number))
  assert unknown or best[0] >= 0, f'no count for {argument!r}: {said}'
  return best[1]


def check(name, text):
  """Raises where the header of configs/NAME.py breaks the contract."""
  for part, begins in PARTS.items():
    assert len(re.findall(rf'\b{part}', flat(text))) == 1, part
    assert re.search(rf'\b{part}(?:{begins})', flat(text)), part
  made = re.findall(r'make (\w+)', text)
  for target in made:
    assert f'\n{target}:' in (ROOT / 'Makefile').read_text()
  assert shown.check(text) or made
  assert made or f'--config=configs/{name}.py' in text
  prose = shown.COMMAND.sub('', shown.join(text))
  known = config.flat(load(name))
  for field, value in re.findall(r'--config\.([\w.]*\w)(?:=(\S+))?', prose):
    assert field in known
    if value:
      load(name, **{field.replace('.', '__'): value.rstrip('.,;:)')})


@pytest.mark.parametrize('name', NAMES)
def test_a_header_is_a_contract(name):
  check(name, header(name))
  assert len((CONFIGS / f'{name}.py').read_text().splitlines()) <= 100


@pytest.mark.parametrize(
  'right, wrong',
  [
    ('Source: arXiv 2012.12877', 'By arXiv 2012.12877'),
    ('Source: arXiv 2012.12877', 'Source: a paper'),
    ('Run here: no', 'Run here: perhaps'),
    ('Run here: no', 'Not run here'),
    ('Expected: Ti', 'Promised: Ti'),
    ('Hardware: ', 'Machines: '),
    ('--workdir', '--workdr'),
    ('data prepare', 'data prepair'),
    ('configs/deit_i1k.py', 'configs/deit_i2k.py'),
    ('deit_i1k.py:B \\', 'deit_i1k.py:L \\'),
    ('--config.task.teacher=', '--config.task.teachr='),
    ('The size', '--config.optim.l=1. The size'),
    ('The size', '--config.optim.lr=high. The size'),
  ],
)
def test_a_contract_that_is_broken(right, wrong):
  text = header('deit_i1k')
  assert right in text
  check('deit_i1k', text)
  with pytest.raises((AssertionError, SystemExit, UserError)):
    check('deit_i1k', text.replace(right, wrong))


def argument_of(target):
  """As given, or get_config's default."""
  name, _, argument = target.removesuffix(' taught').partition(':')
  function = config.run_file(CONFIGS / f'{name}.py').get_config
  defaults = [
    p.default for p in inspect.signature(function).parameters.values()
  ]
  return argument or ''.join(defaults)


@pytest.mark.parametrize('target', TARGETS)
def test_as_many_devices_as_the_hardware_says(target):
  text = header(target.partition(':')[0].partition(' ')[0])
  assert load(target).recipe.devices == promised(text, argument_of(target))


@pytest.mark.parametrize(
  'said, counts',
  [
    ('one GPU', {'': 1, 'B': 1}),
    ('4 A100', {'': 4}),
    ('8 cores of TPU v3, 6 to 7 hours for 90 epochs', {'': 8, '90': 8}),
    ('64 v5p chips, by our plan (docs/scaling.md)', {'': 64}),
    ('64 V100s; L takes 42 hours for 800 epochs', {'L': 64}),
    ('4 GPUs for Ti and S, 16 for B', {'Ti': 4, 'S': 4, 'B': 16}),
    (
      '32 chips of TPU v4 for 4; 8 GPUs for t, 16 for H,t',
      {'H,4': 32, 'B,t': 8},
    ),
    ('8 GPUs for t, 16 for H,t', {'H,t': 16, 'S,t': 8}),
    (
      '4 V100 for B, 12 minutes an epoch; of others not known',
      {'B': 4, 'S': 0},
    ),
    ('2 CPU cores, 75 to 155 seconds', {'': 0}),
    ('not said', {'': 0}),
    ('8 GPUs for sgd, else any', {'sgd': 8, '': 0}),
    ('one GPU (not said)', {'': None}),
    ('4 GPUs for Ti and S', {'B': None}),
    ('a fast machine', {'': None}),
  ],
)
def test_devices_are_read_from_words(said, counts):
  for argument, count in counts.items():
    text = f'Hardware: {said}. Run here: no.'
    if count is None:
      with pytest.raises(AssertionError):
        promised(text, argument)
    else:
      assert promised(text, argument) == count


@pytest.mark.parametrize('name', NAMES)
def test_the_table_names_the_same_source(name):
  """docs/recipes.md and the header; a paper in both, or 'ours'."""
  table = (ROOT / 'docs' / 'recipes.md').read_text()
  (row,) = re.findall(rf'^\| \[`{name}\.py`\](.*)$', table, re.MULTILINE)
  paper, source = r'(\d{4}\.\d{5})', row.split('|')[2]
  said = re.findall(paper, sentence(header(name), 'Source'))
  assert set(re.findall(rf'\[{paper}\]', source)) == set(said)
  assert ('ours' in source) == (not said)
