"""Segmenter on scenes of real digits over clutter, from scratch, on a CPU.

Command:  python -m vit_jax train --config=configs/segment_digits.py --workdir=W
Expected:
Run here:
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '20ep'
  config.batch_size = 32
  config.eval_every = '5ep'
  config.save_every = '10ep'
  config.ema = 0.99
  config.recipe.update(batch_size=32, total='20ep')

  config.task.name = 'segmentation'

  config.model.name = 'segmenter'
  config.model.variant = 'Ti/8'
  config.model.width = 128
  config.model.depth = 4
  config.model.heads = 4
  config.model.positions = 'sincos2d'
  config.model.decoder_depth = 1
  config.model.decoder_dropout = 0.0
  config.model.gelu = 'tanh'
  config.model.unroll = 0

  config.optim.lr = 2e-3
  config.optim.warmup = '10%'
  config.optim.weight_decay = 0.1

  config.data.name = 'digit_scenes'
  config.data.workers = 1
  config.data.train = {'ops': ('range(-1, 1)',)}
  config.data.test = {'ops': ('range(-1, 1)',)}
  return config
