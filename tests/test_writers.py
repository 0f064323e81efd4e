"""Weights & Biases, offline: what is written is what metrics.jsonl has."""

import json
import os
import subprocess
import sys

import pytest

from vit_jax import cli


def test_without_the_package(tmp_path, root, monkeypatch, capsys, small_flags):
  import importlib.util

  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name == 'wandb' else found(name, *rest),
  )
  flags = [f'--config={root / "configs" / "digits.py"}', *small_flags]
  flags += [f'--workdir={tmp_path}', '--config.wandb=vit']
  assert cli.main(['train', *flags]) == 2
  said = capsys.readouterr().err
  assert "config.wandb = 'vit'" in said and 'vit_jax[wandb]' in said


_READ = """
import json, sys
from wandb.proto import wandb_internal_pb2

def scan(data):
  # LevelDB's log: blocks of 32 KiB; crc (4), length (2), type (1), then data.
  at, whole = 7, b''  # behind W&B's own header
  while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:
      at += left
      continue
    length, kind = int.from_bytes(data[at + 4:at + 6], 'little'), data[at + 6]
    whole += data[at + 7:at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # full, or the last part
      yield whole
      whole = b''

lines, config = [], {}
for data in scan(open(sys.argv[1], 'rb').read()):
  record = wandb_internal_pb2.Record()
  record.ParseFromString(data)
  if record.HasField('history'):
    lines.append({
      (i.key or '/'.join(i.nested_key)): json.loads(i.value_json)
      for i in record.history.item
    })
  if record.HasField('run'):
    config['id'] = record.run.run_id
    config['project'] = record.run.project
    config['config'] = {
      c.key: json.loads(c.value_json) for c in record.run.config.update
    }
print(json.dumps([lines, config]))
"""


@pytest.mark.slow
def test_offline(tmp_path, root, small_flags):
  pytest.importorskip('wandb')
  flags = ['--config=configs/digits.py', *small_flags, '--config.wandb=vit']
  flags += [f'--workdir={tmp_path / "run"}']
  environment = os.environ | {'WANDB_MODE': 'offline'}
  seen = []
  for total in (12, 24):  # the second start goes on with the same run
    command = [sys.executable, '-m', 'vit_jax', 'train', *flags]
    done = subprocess.run(
      [*command, f'--config.total={total} steps'],
      cwd=root,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(
      (tmp_path / 'run').rglob('*.wandb'), key=lambda p: p.stat().st_mtime
    )
    assert len(files) == len(seen) + 1
    read = subprocess.run(
      [sys.executable, '-c', _READ, str(files[-1])],
      capture_output=True,
      text=True,
      check=True,
    )
    seen.append(json.loads(read.stdout))
  (first, one), (second, other) = seen
  assert one['id'] == other['id'] and one['project'] == 'vit'
  assert one['config']['model']['width'] == 32
  written = [*first, *second]
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  for line in map(json.loads, lines):
    same = [w for w in written if line.items() <= w.items()]
    assert len(same) == 1, line
