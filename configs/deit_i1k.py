"""DeiT on ImageNet-1k from scratch (arXiv 2012.12877).

  python -m vit_jax data prepare tfds:imagenet2012
  python -m vit_jax train --config=configs/deit_i1k.py --workdir=W
  python -m vit_jax train --config=configs/deit_i1k.py:B \
    --config.model.distill_token=True --config.task.teacher=FILE --workdir=W

The size is the argument: configs/deit_i1k.py:Ti, configs/deit_i1k.py:S (the
default), configs/deit_i1k.py:B; the hyper-parameters are those of all three.
The last command distills, hard and by the token, any weights of these classes.

Source: arXiv 2012.12877. Expected: Ti 72.2, S 79.9, B 81.8, B distilled 83.4 %
  at 224 (the authors' README_deit.md; their teacher, a RegNetY-16GF, is no ViT
  and not loaded here).
Hardware: 4 GPUs for Ti and S, 16 for B. Run here: no.
We differ: the head starts at zero; the warm-up starts at 0, not at 1e-6; noise
of `random_erasing` is drawn on the host, an image at a time. As by the authors'
code what is evaluated are the parameters, not their average.
"""

from vit_jax import defaults
from vit_jax.errors import check_choice

DEVICES = {'Ti': 4, 'S': 4, 'B': 16}
NORMALIZE = 'normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))'


def get_config(size='S'):
  check_choice('argument', size, DEVICES)
  config = defaults.get_config()
  config.total = '300ep'
  config.batch_size = 1024
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '1ep'
  config.recipe.update(batch_size=1024, total='300ep', devices=DEVICES[size])
  config.recipe.scale = 'linear'  # 5e-4 for 512

  config.model.variant = f'{size}/16'
  config.model.drop_path = 0.1
  config.model.dtype = 'bfloat16'

  config.task.mixup = 0.8
  config.task.cutmix = 1.0
  config.task.label_smoothing = 0.1

  config.optim.lr = 1e-3
  config.optim.final_lr = 0.01  # of the peak: 1e-5
  config.optim.warmup = '5ep'
  config.optim.weight_decay = 0.05
  config.optim.clip = 0.0

  config.data.name = 'tfds:imagenet2012'
  config.data.examples = 1_281_167
  config.data.classes = 1000
  config.data.workers = 16
  config.data.repeats = 3  # an epoch then has a third of the pictures
  config.data.train = {
    'ops': (
      'decode',
      "inception_crop(kernel='bicubic')",
      'flip',
      'randaugment(2, 9, 0.5, True, 0.5)',
      NORMALIZE,
      'random_erasing(0.25)',
    )
  }
  config.data.test = {
    'split': 'validation',
    'ops': (
      'decode',
      "resize_small(256, 'bicubic')",
      'central_crop',
      NORMALIZE,
    ),
  }
  return config
