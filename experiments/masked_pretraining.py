"""Five masked autoencoders of the digits, for few_labels.py to start from.

Into runs/masked, where that looks for them.
"""

from vit_jax.sweeps import grid

CONFIG = 'configs/mae_digits.py'


def sweep():
  return grid({'seed': range(5)})
