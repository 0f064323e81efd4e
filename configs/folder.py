"""A ViT on a folder of pictures: PATH/train/CLASS/*.jpg, from scratch.

  python -m vit_jax train --config=configs/folder.py \
    --config.data.name=folder:PATH --config.size=28 --workdir=W

Source: ours. Expected: 4,000 MNIST digits as PNG files, 1,000 to test:
  97.93 ± 0.38 % (three seeds). Hardware: 2 CPU cores, 457 seconds. Run
  here: yes, as configs/mnist.py, which has the same values.

For a few thousand small pictures; a test split is PATH/test/CLASS or, where
there is none, a fifth of the files. Without config.size the size is the
median shorter side, at most 64; it has to be a multiple of the patch, 4.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '40ep'
  config.batch_size = 32
  config.ema = 0.995
  config.recipe.update(batch_size=32, total='40ep')

  config.model.variant = 'Ti/4'
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

  config.data.name = 'folder:PATH'
  config.data.train = {
    'ops': ('decode', 'fit', 'affine(10, 0.1, 0.1, 0.1)', 'range(-1, 1)')
  }
  config.data.test = {'ops': ('decode', 'fit', 'range(-1, 1)')}
  return config
