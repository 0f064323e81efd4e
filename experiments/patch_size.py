"""Does an 8x8 digit want patches of 1, 2 or 4 pixels?"""

from vit_jax.sweeps import grid

CONFIG = 'configs/digits.py'
FIXED = {'total': '30ep', 'save_every': '30ep'}


def sweep():
  return grid({'model.variant': ('Ti/1', 'Ti/2', 'Ti/4'), 'seed': range(3)})
