"""A small ViT on the 1,797 real handwritten digits that ship with scikit-learn.

Command:  make digits
Source:   ours.
Expected: test accuracy 99.44 ± 0.28 % (seeds 0, 1, 2: 99.17, 99.72, 99.44); an
  RBF SVM on the same split gets 99.17 %, 3 nearest neighbours 98.06 %.
Hardware: 2 CPU cores, 100 to 170 seconds. Run here: yes.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '100ep'
  config.batch_size = 32
  config.eval_every = '10ep'
  config.save_every = '10ep'
  config.ema = 0.99
  config.recipe.update(batch_size=32, total='100ep')

  config.model.variant = 'Ti/2'
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
  config.data.workers = 1
  config.data.train = {
    'ops': ('affine(15, 0.1, 0.1, 0.2, "zero")', 'range(-1, 1)')
  }
  config.data.test = {'ops': ('range(-1, 1)',)}
  return config
