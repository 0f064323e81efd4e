"""Which position encoding learns most from 1,437 digits in 30 epochs?"""

from vit_jax.sweeps import grid

CONFIG = 'configs/digits.py'
FIXED = {'total': '30ep', 'save_every': '30ep'}


def sweep():
  return grid(
    {
      'model.positions': ('none', 'learned', 'sincos2d', 'rope2d'),
      'seed': range(3),
    }
  )
