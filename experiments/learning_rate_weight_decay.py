"""Which learning rate and weight decay suit the digits recipe at 15 epochs?

Run here: test accuracy, mean and standard deviation of three seeds, by lr and
weight decay (docs/sweeps.md has the whole table):

            0.0            0.1            0.5
  5e-4      0.759 ± 0.050  0.766 ± 0.047  0.765 ± 0.048
  2e-3      0.782 ± 0.024  0.782 ± 0.062  0.800 ± 0.024
  8e-3      0.402 ± 0.037  0.312 ± 0.132  0.461 ± 0.116

The rate matters; what the weight decay does is within noise.
"""

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
