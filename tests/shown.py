"""Commands as a text shows them, given to the real parser."""

import re
import shlex
from collections.abc import Iterator

from tests.conftest import ROOT

COMMAND = re.compile(
  r'(?:python -m vit_jax|(?:^|`) *vit-jax) ([^`\n]*)', re.MULTILINE
)


def join(text: str) -> str:
  """The text, with lines that a backslash continues as one."""
  return text.replace('\\\n', ' ')


def commands(text: str) -> Iterator[tuple]:
  """(arguments, overrides) of each command; exits by a flag that is not."""
  from vit_jax import cli, flags

  for line in COMMAND.findall(join(text)):
    rest, overrides = cli._split_overrides(shlex.split(line.split('#')[0]))
    yield flags.parser().parse_args(rest), overrides


def check(text: str) -> int:
  """Parses each command and loads its config; how many there are."""
  from vit_jax import config

  count = 0
  for args, overrides in commands(text):
    count += 1
    target, data = getattr(args, 'config', None), getattr(args, 'data', None)
    if args.command == 'sweep' or not (target or data):
      continue  # a sweep's config is its experiment's
    named = [('data.name', data)] if data else []
    config.load(str(ROOT / target) if target else None, named + overrides)
  return count
