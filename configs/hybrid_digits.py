"""A hybrid (section 1.7.2 of the notes): a CNN's feature map into the encoder.

Command:  python -m vit_jax train --config=configs/hybrid_digits.py --workdir=W
The digits enlarged to 32x32; a stem of stride 4 (7x7 convolution, max-pool) and
patches of 2 on its map: 16 tokens, as in configs/digits.py.
Source: ours. Expected: test accuracy 98.43 ± 0.58 % (seeds 0, 1, 2:
  97.78, 98.89, 98.61). Hardware: 2 CPU cores, 71 seconds. Run here: yes.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '30ep'
  config.batch_size = 32
  config.size = 32
  config.eval_every = '5ep'
  config.save_every = '10ep'
  config.ema = 0.99
  config.recipe.update(batch_size=32, total='30ep')

  config.model.variant = 'R+Ti/8'
  config.model.width = 96
  config.model.depth = 4
  config.model.heads = 3
  config.model.pool = 'mean'
  config.model.positions = 'sincos2d'
  config.model.drop_path = 0.1
  config.model.gelu = 'tanh'
  config.model.unroll = 0

  config.optim.lr = 2e-3
  config.optim.warmup = '10%'
  config.optim.weight_decay = 0.1

  config.data.name = 'digits'
  config.data.train = {
    'ops': (
      "resize('bicubic')",
      'affine(15, 0.1, 0.1, 0.2, "zero")',
      'range(-1, 1)',
    )
  }
  config.data.test = {'ops': ("resize('bicubic')", 'range(-1, 1)')}
  return config
