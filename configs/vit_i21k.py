"""ViTs on ImageNet-21k, to be fine-tuned: AugReg, by argument.

  python -m vit_jax train --config=configs/vit_i21k.py \
    --config.data.name='tar:PATH/{split}-*.tar' --workdir=W

The augmentation, from none to much:
  configs/vit_i21k.py:none configs/vit_i21k.py:light1 configs/vit_i21k.py:light2
  configs/vit_i21k.py:medium1 configs/vit_i21k.py:medium2
  configs/vit_i21k.py:strong1 configs/vit_i21k.py:strong2
and configs/vit_i21k.py:medium1,drop: dropout and stochastic depth of 0.1.
Weight decay 0.1, or --config.optim.weight_decay=0.03. Sizes by
--config.model.variant; big_vision takes none for Ti/16 and S/32, light1 for
S/16, light2 for B/32 and B/16 (here the default), medium2 for L/16.

Source: arXiv 2106.10270. Expected: once fine-tuned on ImageNet-1k at 224, S/16
  81.40, B/16 84.53, L/16 85.86 % (timm's evaluation of Google's weights).
  Hardware: not said. Run here: no.
We differ: weights of the paper have a CLS token, these a mean (big_vision);
activations are bfloat16 (big_vision: float32); the rule for other batches is
ours (Adam: arXiv 2205.10287). PATH holds the tar shards train-*.tar and
test-*.tar of 21,843 classes; the count of their pictures is data.examples, here
that of the whole set, checked when they are opened.
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


def get_config(argument='light2'):
  name, *more = argument.split(',')
  check_choice('argument', name, AUGREG)
  for word in more:
    check_choice('argument', word, ('drop',))
  augment, mixup = AUGREG[name]

  config = defaults.get_config()
  config.total = '300ep'
  config.batch_size = 4096
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '5k steps'
  config.recipe.update(batch_size=4096, total='300ep', scale='sqrt')

  config.model.variant = 'B/16'
  config.model.pool = 'mean'
  config.model.gelu = 'tanh'
  config.model.dtype = 'bfloat16'
  config.model.head_bias = -10.0
  if more:
    config.model.dropout = config.model.drop_path = 0.1

  config.task.objective = 'sigmoid'
  config.task.mixup = mixup

  config.optim.lr = 1e-3
  config.optim.warmup = '10k steps'
  config.optim.weight_decay = 0.1  # times lr: the 1e-4 of big_vision
  config.optim.moments = 'bfloat16'

  config.data.name = 'tar:PATH/{split}-*.tar'
  config.data.examples = 14_197_122
  config.data.classes = 21_843
  config.data.workers = 32
  ops = ('decode', 'inception_crop(0.05)', 'flip', augment, 'range(-1, 1)')
  config.data.train = {'ops': tuple(op for op in ops if op)}
  config.data.test = {
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)')
  }
  return config
