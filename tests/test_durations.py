"""Durations: what is read, how it is rounded, and what a mistake is told."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_jax.durations import parse, to_steps
from vit_jax.errors import UserError


@pytest.mark.parametrize(
  'text, value, unit',
  [
    ('300ep', 300, 'epochs'),
    ('1 epoch', 1, 'epochs'),
    ('2 epochs', 2, 'epochs'),
    ('0.5ep', Fraction(1, 2), 'epochs'),
    ('.5EP', Fraction(1, 2), 'epochs'),
    ('5.ep', 5, 'epochs'),
    ('10k steps', 10_000, 'steps'),
    ('10K Steps', 10_000, 'steps'),
    ('10 k steps', 10_000, 'steps'),
    ('10ksteps', 10_000, 'steps'),
    ('1 step', 1, 'steps'),
    ('5%', 5, 'percent'),
    ('2.5 %', Fraction(5, 2), 'percent'),
    ('1M examples', 10**6, 'examples'),
    ('1.2B examples', 1_200_000_000, 'examples'),
    ('  7 steps\n', 7, 'steps'),
    ('0.1ep', Fraction(1, 10), 'epochs'),  # exactly, as no float is
    ('0 steps', 0, 'steps'),
  ],
)
def test_parse(text, value, unit):
  assert parse(text) == (value, unit)


@pytest.mark.parametrize(
  'text',
  ['', '60', '10k', 'ep', 'steps', '-5ep', '5 minutes', '5 ep ep', '1e3 steps']
  + ['5%%', '1.2.3ep', '5,5ep', 'inf ep', 'nan%', '10 M', '3x steps', '0x1ep'],
)
def test_unreadable(text):
  with pytest.raises(UserError) as error:
    parse(text, 'config.total')
  message = str(error.value)
  assert message.startswith(f'config.total = {text!r} is not a duration')
  assert "'300ep', '10k steps', '5%', '1M examples'" in message


@pytest.mark.parametrize('text', ['60', '10k', '0.5'])
def test_a_bare_number_is_asked_for_its_unit(text):
  with pytest.raises(UserError, match=f"Did you mean '{text}ep' or '{text} st"):
    parse(text)


def steps(text, **kwargs):
  size = {'batch_size': 128, 'examples': 1437}
  return to_steps(text, **(size | kwargs))


@pytest.mark.parametrize(
  'text, expected',
  [
    ('1ep', 12),  # 11.2 batches
    ('60ep', 674),  # 673.6, rounded once and not each epoch
    ('0.5ep', 6),
    ('128 examples', 1),
    ('129 examples', 2),
    ('10k steps', 10_000),
    ('0.1 steps', 1),
    ('0ep', 0),
  ],
)
def test_to_steps(text, expected):
  assert steps(text) == expected


def test_percentages():
  assert steps('5%', total=1000) == 50
  assert steps('5%', total=1001) == 51
  assert steps('100%', total=674) == 674
  assert steps('0.1%', total=1) == 1
  with pytest.raises(UserError, match="total = '5%': a percentage of what.*ep"):
    steps('5%', field='config.total')


def test_epochs_of_unknown_size():
  assert steps('3 steps', examples=0) == 3
  with pytest.raises(UserError, match='config.data.examples'):
    steps('3ep', examples=0)


def test_whole_epochs_are_not_rounded_up_by_floats():
  assert steps('0.1ep', examples=10, batch_size=1) == 1
  assert steps('1.1ep', examples=10, batch_size=1) == 11  # 11.000000000000002
  assert steps('7%', total=100) == 7  # 7.000000000000001


sizes = st.integers(1, 10**9)
decimals = st.decimals(0, 10**6, places=3)


@given(decimals, st.sampled_from(['', 'k', 'M', 'B']), st.integers(0, 2))
def test_spaces_and_case_do_not_matter(number, factor, spaces):
  gap = ' ' * spaces
  for unit in ('ep', 'steps', 'examples', '%'):
    text = f'{gap}{number}{gap}{factor}{gap}{unit}{gap}'
    value, _ = parse(text)
    exact = {'': 1, 'k': 10**3, 'M': 10**6, 'B': 10**9}[factor]
    assert value == Fraction(str(number)) * exact
    assert parse(text) == parse(text.upper()) == parse(text.lower())


@given(decimals, sizes, sizes)
def test_the_fewest_steps_that_are_enough(number, batch, examples):
  count = to_steps(f'{number}ep', batch_size=batch, examples=examples)
  wanted = Fraction(str(number)) * examples
  assert (count - 1) * batch < wanted <= count * batch
  same = to_steps(f'{number} examples', batch_size=batch, examples=examples)
  assert same == math.ceil(Fraction(str(number)) / batch)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
  try:
    value, unit = parse(text)
  except UserError as error:
    assert repr(text) in str(error)
  else:
    assert value >= 0 and unit in ('epochs', 'steps', 'examples', 'percent')
