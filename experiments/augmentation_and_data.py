"""Is augmentation worth more where there are fewer digits?

All see as many pictures: 30 epochs' worth of the whole training split.
"""

from vit_jax.sweeps import grid

CONFIG = 'configs/digits.py'
FIXED = {
  'total': '1350 steps',
  'eval_every': '135 steps',
  'save_every': '1350 steps',
}


def sweep():
  return grid(
    {
      'data.train.split': ('train[:10%]', 'train[:30%]', 'train'),
      'data.train.ops': (
        ('range(-1, 1)',),
        ("affine(15, 0.1, 0.1, 0.2, 'zero')", 'range(-1, 1)'),
      ),
      'seed': range(3),
    }
  )
