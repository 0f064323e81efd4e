"""How well do masked autoencoders of five seeds draw the digits?

Into runs/masked, where few_labels.py starts from them.
"""

from vit_jax.sweeps import grid

CONFIG = 'configs/mae_digits.py'


def sweep():
  return grid({'seed': range(5)})
