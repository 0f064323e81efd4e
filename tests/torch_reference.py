"""Torch, timm and transformers as references (slow tests only).

`make test-slow` installs them. torchvision has no build to go with the CPU's
torch: its compiled operators cannot be loaded, and nothing here calls them, but
it declares shapes for two of them when it is imported, so they have to exist.
"""

import importlib
import importlib.util
import sys
import warnings

import pytest

_DECLARED = []  # kept: what a library declares goes with it


def _import_torchvision(torch):
  try:
    importlib.import_module('torchvision')
  except RuntimeError:  # operator torchvision::nms does not exist
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
      del sys.modules[name]
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor a, Tensor b, float c) -> Tensor')
    _DECLARED.append(library)
    importlib.import_module('torchvision')


def _needed(name):
  """The module; skips the test where it is not installed at all."""
  if importlib.util.find_spec(name) is None:
    pytest.skip(f'{name} is not installed: make test-slow')
  return importlib.import_module(name)


def import_torch():
  """The torch module; skips without it."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch = _needed('torch')
    if not _DECLARED and importlib.util.find_spec('torchvision'):
      _import_torchvision(torch)
  torch.set_num_threads(2)
  return torch


def import_timm():
  """The timm module; skips without it. Weights: pretrained=False."""
  import_torch()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    timm = _needed('timm')
    importlib.import_module('timm.models')
  return timm


def import_transformers():
  """The transformers module; skips without it."""
  import_torch()
  return _needed('transformers')
