"""R50+ViT-B/16 on ImageNet-1k from scratch: a ResNet's features as patches.

  python -m vit_jax data prepare tfds:imagenet2012
  python -m vit_jax train --config=configs/hybrid_i1k.py --workdir=W

Other hybrids by --config.model.variant: R+Ti/16, R26+S/32, R50+L/32.

Source: arXiv 2106.10270. Expected: not known. We know of no published number of
  this model from scratch on ImageNet-1k; trained on ImageNet-21k and fine-tuned
  at 384 it has 83.72 to 85.08 % (README of google-research/vision_transformer).
  Hardware: not known.
  Run here: no; a small one is, configs/hybrid_digits.py.
The hyper-parameters are AugReg's for ViTs (whose hybrids had the same ones),
the augmentation and the bfloat16 of the first moment are big_vision's for B/16.
We differ: the rule for other batches is ours (Adam: arXiv 2205.10287), and
activations are bfloat16 (big_vision: float32).
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '300ep'
  config.batch_size = 4096
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '1ep'
  config.recipe.update(batch_size=4096, total='300ep', scale='sqrt')

  config.model.variant = 'R50+B/16'
  config.model.gelu = 'tanh'
  config.model.dtype = 'bfloat16'

  config.task.mixup = 0.5

  config.optim.lr = 1e-3
  config.optim.warmup = '10k steps'
  config.optim.weight_decay = 0.1  # times lr: the 1e-4 of big_vision
  config.optim.moments = 'bfloat16'

  config.data.name = 'tfds:imagenet2012'
  config.data.examples = 1_281_167
  config.data.classes = 1000
  config.data.workers = 16
  config.data.train = {
    'ops': (
      'decode',
      'inception_crop(0.05)',
      'flip',
      'randaugment(2, 15)',
      'range(-1, 1)',
    )
  }
  config.data.test = {
    'split': 'validation',
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)'),
  }
  return config
