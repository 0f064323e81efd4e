"""Masked autoencoding of the 1,437 digits, without their labels.

  python -m vit_jax train --config=configs/mae_digits.py --workdir=W
  python -m vit_jax train --config=configs/mae_digits.py:tune \
    --config.init_from=W --workdir=W10

The second line fine-tunes on 10 labels a class; with :scratch the same from
random weights.
"""

from vit_jax import defaults
from vit_jax.errors import check_choice


def get_config(stage='pretrain'):
  check_choice('argument', stage, ('pretrain', 'tune', 'scratch'))
  config = defaults.get_config()
  config.total = '400ep'
  config.batch_size = 128
  config.eval_every = '50ep'
  config.save_every = '100ep'

  config.task.name = 'reconstruction'

  config.model.name = 'mae'
  config.model.variant = 'Ti/2'
  config.model.width = 96
  config.model.depth = 4
  config.model.heads = 3
  config.model.positions = 'sincos2d'
  config.model.gelu = 'tanh'
  config.model.unroll = 0
  config.model.mask_ratio = 0.5
  config.model.decoder_width = 48
  config.model.decoder_depth = 1
  config.model.decoder_heads = 3

  config.optim.lr = 2e-3
  config.optim.b2 = 0.95
  config.optim.warmup = '10%'
  config.optim.weight_decay = 0.05

  config.data.name = 'digits'
  config.data.workers = 1
  config.data.train = {
    'ops': ('affine(15, 0.1, 0.1, 0.2, "zero")', 'range(-1, 1)')
  }
  config.data.test = {'ops': ('range(-1, 1)',)}
  return config
