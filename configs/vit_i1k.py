"""A plain ViT on ImageNet-1k from scratch: the baseline of arXiv 2205.01580.

  python -m vit_jax data prepare tfds:imagenet2012
  python -m vit_jax train --config=configs/vit_i1k.py --workdir=runs/i1k

Any size by --config.model.variant=B/16. What it takes, without data or devices:
  python -m vit_jax plan --config=configs/vit_i1k.py --topology=v5e:4x4

Expected: not run here. The paper has S/16 at 76.5 % after these 90 epochs (6 to
7 hours on 8 cores of TPU v3); we differ in that the tanh layer before the head
is left out and the test crop is of a picture resized to 256 pixels.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '90ep'
  config.batch_size = 1024
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '1ep'

  config.model.variant = 'S/16'
  config.model.pool = 'mean'
  config.model.positions = 'sincos2d'
  config.model.gelu = 'tanh'
  config.model.dtype = 'bfloat16'

  config.task.mixup = 0.2

  config.optim.lr = 1e-3
  config.optim.warmup = '10k steps'
  config.optim.weight_decay = 0.1  # times lr: the 1e-4 of the paper

  config.data.name = 'tfds:imagenet2012'
  config.data.examples = 1_281_167
  config.data.classes = 1000
  config.data.workers = 16
  config.data.train = {
    'ops': (
      'decode',
      'inception_crop',
      'flip',
      'randaugment(2, 10)',
      'range(-1, 1)',
    )
  }
  config.data.test = {
    'split': 'validation',
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)'),
  }
  return config
