"""Deep and narrow or shallow and wide, at equal FLOPs?

The forward passes are of 14.4 to 14.8 MFLOP an image.
"""

from vit_jax.sweeps import grid, product, zipped

CONFIG = 'configs/digits.py'
FIXED = {'total': '30ep', 'save_every': '30ep'}


def sweep():
  shapes = zipped(
    {
      'model.depth': (1, 2, 4, 8),
      'model.width': (192, 136, 96, 68),
      'model.heads': (6, 4, 3, 2),
    }
  )
  return product(shapes, grid({'seed': range(3)}))
