"""Torch and timm as references, where they are installed (slow tests only).

timm imports torchvision for what its models never call (image transforms, data
sets, a frozen norm). Where torchvision is not installed, hollow modules stand
in for it while timm is imported, and are taken away again.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import pytest


class _Anything(type):
  """A class whose attributes are names: InterpolationMode.BICUBIC and such."""

  def __getattr__(cls, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return name.lower()


class _Hollow(types.ModuleType):
  """A module that has any name, a class that does nothing."""

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds torchvision and all that is under it, hollow."""

  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] != 'torchvision':
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec):
    return _Hollow(spec.name)

  def exec_module(self, module):
    pass


def import_torch():
  """The torch module; skips the test where it is not installed."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch = pytest.importorskip('torch')
  torch.set_num_threads(2)
  return torch


def import_timm():
  """The timm module, without torchvision if need be; skips without timm.

  For the models: `timm.create_model(name, pretrained=False)`. What needs
  torchvision's transforms does not work.
  """
  import_torch()
  finder = _Finder()
  hollow = importlib.util.find_spec('torchvision') is None
  if hollow:
    sys.meta_path.append(finder)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      timm = pytest.importorskip('timm')
      importlib.import_module('timm.models')
  finally:
    if hollow:
      sys.meta_path.remove(finder)
      for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
        del sys.modules[name]
  return timm
