"""How far apart are runs that differ in nothing but their seed?"""

from vit_jax.sweeps import grid

CONFIG = 'configs/digits.py'
FIXED = {'total': '30ep', 'save_every': '30ep'}


def sweep():
  return grid({'seed': range(8)})
