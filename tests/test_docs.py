"""What the documents show runs: README and tour snippets, links, fields."""

import importlib
import os
import pkgutil
import re
import shlex
import sys

import pytest

import vit_jax as package
from tests import shown
from tests.conftest import ROOT
from vit_jax import flags
from vit_jax.data.ops import OPS

PAGES = [
  'README.md',
  *(f'docs/{p.name}' for p in sorted(ROOT.glob('docs/*.md'))),
]


def blocks(text, language):
  return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


@pytest.mark.parametrize('page', ['docs/tour.md', 'README.md'])
def test_python_snippets_run(root, page, monkeypatch):
  monkeypatch.chdir(root)
  scope = {}
  snippets = blocks((root / page).read_text(), 'python')
  assert snippets or page == 'README.md'
  for snippet in snippets:
    exec(compile(snippet, page, 'exec'), scope)


def test_the_shown_config_is_the_recipe(root):
  code = (root / 'configs' / 'digits.py').read_text()
  shown = blocks((root / 'README.md').read_text(), 'python')
  assert code[code.index('from vit_jax') :].strip() in [
    x.strip() for x in shown
  ]


def test_shapes_are_checked():
  """The import hook of conftest is on: a wrong shape is an error."""
  import jax.numpy as jnp
  from jaxtyping import TypeCheckError

  from vit_jax.models.patches import patchify

  with pytest.raises(TypeCheckError):
    patchify(jnp.zeros((4, 4, 3)), 2)


def test_a_false_snippet_would_fail():
  (snippet,) = blocks('```python\nassert 1 == 2\n```', 'python')
  with pytest.raises(AssertionError):
    exec(snippet, {})


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(root, page):
  file = root / page
  for target in re.findall(r'\]\(([^)#]+)', file.read_text()):
    if '://' not in target:
      assert (file.parent / target).exists(), f'{page}: {target}'


@pytest.mark.parametrize('page', PAGES)
def test_shown_commands_parse(root, page):
  """Flags, files and fields of `python -m vit_jax` and `vit-jax` exist."""
  shown.check((root / page).read_text())


def test_every_module_is_imported():
  modules = pkgutil.walk_packages(package.__path__, 'vit_jax.')
  names = [m.name for m in modules if not m.name.endswith('__main__')]
  assert len(names) > 25
  for name in names:
    assert importlib.import_module(name).__doc__, name


def test_every_field_has_a_line_in_the_docs(root):
  """docs/config.md names every field of every group, and no other."""
  from vit_jax import config

  text = (root / 'docs' / 'config.md').read_text()
  shown = set(re.findall(r'^\| `([\w.]+)` \| `', text, re.MULTILINE))
  known = set()
  for section in config.SECTIONS:
    table, _ = config.SECTIONS[section]
    for name in table:
      values = {section: {'name': name}}
      known |= set(config.flat(_names(config.schema_of(values))))
  assert shown == known
  ops = set(re.findall(r'^\| `(\w+)(?:\(.*\))?` \| \w', text, re.MULTILINE))
  assert ops == set(OPS)


def _names(schema):
  return {
    key: _names(value) if isinstance(value, dict) else None
    for key, value in schema.items()
  }


def test_files_to_launch_by(root, tmp_path):
  """Shell parses, YAML is what Kubernetes takes, commands are ours."""
  import subprocess

  import yaml

  folder = root / 'docs' / 'launch'
  for script in folder.glob('*.sh'):
    subprocess.run(['bash', '-n', script], check=True)
  service, job = yaml.safe_load_all((folder / 'kubernetes.yaml').read_text())
  pod = job['spec']['template']['spec']
  assert pod['subdomain'] == service['metadata']['name']
  (container,) = pod['containers']
  *rules, evicted = job['spec']['podFailurePolicy']['rules']
  assert [
    (rule['action'], rule['onExitCodes']['values']) for rule in rules
  ] == [('FailJob', [2]), ('Ignore', [75])]
  for rule in rules:
    assert rule['onExitCodes']['containerName'] == container['name']
  assert evicted['onPodConditions'] == [{'type': 'DisruptionTarget'}]
  claimed = {mount['name'] for mount in container['volumeMounts']}
  assert claimed == {volume['name'] for volume in pod['volumes']}
  words = shlex.split(
    container['args'][0].replace('$JOB_COMPLETION_INDEX', '1')
  )
  assert words[:5] == ['exec', 'python', '-m', 'vit_jax', 'train']
  args = flags.parser().parse_args(words[4:])
  assert args.processes == job['spec']['completions']
  assert args.coordinator.startswith(f'{job["metadata"]["name"]}-0.')
  box = [folder / 'one_box.sh', '--config=nowhere.py', f'--workdir={tmp_path}']
  done = subprocess.run(
    box,
    env=os.environ | {'PYTHON': sys.executable},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and 'nowhere.py' in done.stderr


@pytest.mark.parametrize(
  'codes, last',
  [
    ([0, 0], 0),
    ([0, 2], 2),
    ([0, 75, 255, 0], 0),
    ([1], 1),
    ([0, 255, 1, 255, 1, 1], 1),
  ],
)
def test_tpu_vm_starts_again_unless_it_is_a_mistake(
  codes, last, root, tmp_path
):
  """With a gcloud that exits with one of `codes` after the other."""
  import subprocess

  gcloud = 'echo "$@" >>calls; head -1 codes >code; sed -i 1d codes; exit '
  fakes = {'gcloud': gcloud + '$(cat code)', 'sleep': 'true'}
  for name, text in fakes.items():
    (tmp_path / name).write_text(f'#!/bin/sh\n{text}\n')
    (tmp_path / name).chmod(0o700)
  (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
  known = {'TPU': 'slice', 'ZONE': 'z', 'WORKDIR': '/w', 'REPOSITORY': 'r'}
  path = f'{tmp_path}:{os.environ["PATH"]}'
  done = subprocess.run(
    [root / 'docs' / 'launch' / 'tpu_vm.sh'],
    cwd=tmp_path,
    env=os.environ | known | {'PATH': path},
    timeout=60,
  )
  assert done.returncode == last
  assert (tmp_path / 'codes').read_text() == ''  # all starts, and no more
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('-m vit_jax train') == len(codes) - 1
  for line in re.findall(r'-m vit_jax (.*)', calls):
    args = flags.parser().parse_args(shlex.split(line))
    assert args.distributed and (root / args.config).exists()
