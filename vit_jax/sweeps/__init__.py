"""Sweeps: many runs of one question. An experiment is a Python file:

  '''Which learning rate?'''
  from vit_jax.sweeps import grid

  CONFIG = 'configs/digits.py'

  def sweep():
    return grid({'optim.lr': (3e-4, 1e-3, 3e-3), 'seed': range(3)})

`points.py` has what sweep() may return, `experiment.py` reads the file,
`queue.py` says which run is whose, `local.py` starts them, `study.py` asks
Optuna, and `run.py` is the loop.
"""

from vit_jax.sweeps.points import (
  Choice,
  Range,
  Search,
  grid,
  product,
  sample,
  zipped,
)

__all__ = ['Choice', 'Range', 'Search', 'grid', 'product', 'sample', 'zipped']
