"""Segmenter on ADE20k (arXiv 2105.05633), from ImageNet-21k weights.

  python -m vit_jax data check --data=masks:ADEChallengeData2016 \
    --config.data.mask_start=1
  python -m vit_jax train --config=configs/segment_ade20k.py:S \
    --config.init_from=FILE --workdir=W
  python -m vit_jax evaluate --workdir=W --evaluators=segmentation

ADEChallengeData2016 is the folder as it is downloaded (data_dir.csail.mit.edu);
a classes.txt of 150 lines in it names the classes (docs/data.md). FILE: weights
of ImageNet-21k, tuned at 384 (timm's vit_*_patch16_384.augreg_in21k_ft_in1k, or
Google's .npz). Model, and decoder:
configs/segment_ade20k.py:Ti configs/segment_ade20k.py:S
configs/segment_ade20k.py:B configs/segment_ade20k.py:L
configs/segment_ade20k.py:Ti,linear configs/segment_ade20k.py:S,linear
configs/segment_ade20k.py:B,linear configs/segment_ade20k.py:L,linear.

Source: arXiv 2105.05633. Expected, mIoU at one scale by the evaluator
  (slide_miou): Ti 38.1, S 45.3, B 48.5 %, L 51.8 % with the mask transformer
  (the authors' README); the loop's own mIoU, of the middle of each picture, is
  another. Hardware: one GPU for Ti, 4 V100 for B, 12 minutes an epoch (README);
  of others not said. Run here: no; two steps of it on small pictures.
Rate, decay, dropout, epochs, crops and jitter are those of the authors' code
(its config.yml, ade20k.py). We differ: the rate falls linearly to 1e-5, theirs
as the power 0.9; color_jitter(0.5, 0.5, 0.5) for PhotoMetricDistortion;
windows overlap by a third in evaluation, theirs at 512 do not.
"""

from vit_jax import defaults
from vit_jax.errors import check_choice

SIDES = {'Ti': 512, 'S': 512, 'B': 512, 'L': 640}
DEVICES = {'Ti': 1, 'B': 4}
DECODERS = {'': 'mask_transformer', 'linear': 'linear'}


def get_config(argument='S'):
  size, _, decoder = argument.partition(',')
  check_choice('argument: size', size, SIDES)
  check_choice('argument: decoder', decoder, DECODERS)
  side = SIDES[size]

  config = defaults.get_config()
  config.total = '64ep'
  config.batch_size = 8
  config.size = side
  config.eval_every = '2ep'
  config.save_every = '1ep'
  config.evaluators = ('segmentation',)
  config.init_head = 'new'
  config.recipe.update(batch_size=8, total='64ep')
  config.recipe.devices = DEVICES.get(size, 0)

  config.task.name = 'segmentation'

  config.model.name = 'segmenter'
  config.model.variant = f'{size}/16'
  config.model.decoder = DECODERS[decoder]
  config.model.drop_path = 0.1
  config.model.dtype = 'bfloat16'
  config.model.remat = 'dots'

  config.optim.name = 'sgd'
  config.optim.momentum = 0.9
  config.optim.lr = 1e-3
  config.optim.final_lr = 0.01  # of the peak: 1e-5
  config.optim.schedule = 'linear'
  config.optim.warmup = '0 steps'
  config.optim.weight_decay = 0.0
  config.optim.clip = 0.0

  config.data.name = 'masks:ADEChallengeData2016'
  config.data.examples = 20_210
  config.data.classes = 150
  config.data.mask_start = 1
  config.data.workers = 8
  config.data.train = {
    'ops': (
      'decode',
      'scale_jitter(0.5, 2.0)',
      'crop_or_pad(max_share=0.75)',
      'flip',
      'color_jitter(0.5, 0.5, 0.5)',
      'normalize',
    )
  }
  config.data.test = {
    'ops': ('decode', f'resize_small({side})', 'central_crop', 'normalize')
  }
  return config
