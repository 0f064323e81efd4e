"""ViTs of any size on ImageNet-1k: a plain baseline, or AugReg by argument.

  python -m vit_jax data prepare tfds:imagenet2012
  python -m vit_jax train --config=configs/vit_i1k.py --workdir=runs/i1k
  python -m vit_jax plan --config=configs/vit_i1k.py --topology=v5e:4x4

Without an argument: the baseline of configs/vit_s16_i1k.py (90 epochs, batch
1024) without its tanh layer (model.representation) and its number of devices
(recipe.devices); for any --config.model.variant.

AugReg (300 epochs, batch 4096), from no augmentation to much:
  configs/vit_i1k.py:none configs/vit_i1k.py:light1 configs/vit_i1k.py:light2
  configs/vit_i1k.py:medium1 configs/vit_i1k.py:medium2
  configs/vit_i1k.py:strong1 configs/vit_i1k.py:strong2
and configs/vit_i1k.py:medium1,drop: dropout and stochastic depth of 0.1. Weight
decay 0.1, or --config.optim.weight_decay=0.03. big_vision takes light1 for
Ti/16, light2 for S/32, medium2 for S/16, B/32, B/16 and L/16.

Source: arXiv 2106.10270; without an argument arXiv 2205.01580. Expected: AugReg
  S/16 78.84, B/16 79.15, B/32 74.91 % at 224 (timm's evaluation of Google's
  weights; with which augmentation is not said). Hardware: not said. Run here:
  no.
We differ: the rule for other batches is ours (Adam: arXiv 2205.10287), all of
the training split is trained on, and activations are bfloat16 (big_vision:
float32).
"""

from vit_jax import defaults
from vit_jax.errors import check_choice

# RandAugment's layers and magnitude, mixup's alpha (big_vision).
AUGREG = {
  'none': ('', 0.0),
  'light1': ('randaugment(2, 0)', 0.0),
  'light2': ('randaugment(2, 10)', 0.2),
  'medium1': ('randaugment(2, 15)', 0.2),
  'medium2': ('randaugment(2, 15)', 0.5),
  'strong1': ('randaugment(2, 20)', 0.5),
  'strong2': ('randaugment(2, 20)', 0.8),
}


def get_config(argument=''):
  name, *more = argument.split(',')
  check_choice('argument', name, ('', *AUGREG))
  for word in more:
    check_choice('argument', word, ('drop',))
  augment, mixup = AUGREG[name or 'light2']

  config = defaults.get_config()
  config.total = '300ep' if name else '90ep'
  config.batch_size = 4096 if name else 1024
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '1ep'
  config.recipe.update(batch_size=config.batch_size, total=config.total)
  config.recipe.scale = 'sqrt'

  config.model.variant = 'S/16'
  config.model.pool = 'cls' if name else 'mean'
  config.model.positions = 'learned' if name else 'sincos2d'
  config.model.gelu = 'tanh'
  config.model.dtype = 'bfloat16'
  if more:
    config.model.dropout = config.model.drop_path = 0.1

  config.task.mixup = mixup

  config.optim.lr = 1e-3
  config.optim.warmup = '10k steps'
  config.optim.weight_decay = 0.1  # times lr: the 1e-4 of the papers
  config.optim.moments = 'bfloat16'

  config.data.name = 'tfds:imagenet2012'
  config.data.examples = 1_281_167
  config.data.classes = 1000
  config.data.workers = 16
  ops = ('decode', 'inception_crop(0.05)', 'flip', augment, 'range(-1, 1)')
  config.data.train = {'ops': tuple(op for op in ops if op)}
  config.data.test = {
    'split': 'validation',
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)'),
  }
  return config
