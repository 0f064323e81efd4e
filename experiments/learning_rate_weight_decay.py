"""Which learning rate and weight decay suit the digits recipe at 15 epochs?"""

from vit_jax.sweeps import grid

CONFIG = 'configs/digits.py'
FIXED = {'total': '15ep', 'eval_every': '5ep', 'save_every': '15ep'}


def sweep():
  return grid(
    {
      'optim.lr': (5e-4, 2e-3, 8e-3),
      'optim.weight_decay': (0.0, 0.1, 0.5),
      'seed': range(3),
    }
  )
