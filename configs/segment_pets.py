"""Pets from their background: Oxford-IIIT Pet, from any ViT's weights.

  python -m vit_jax data prepare tfds:oxford_iiit_pet
  python -m vit_jax train --config=configs/segment_pets.py \
    --config.init_from=FILE --workdir=W

FILE: .npz or .safetensors (docs/weights.md), or the workdir of a run; its size
is kept. The decoder is linear, with four scores a side for each patch, so that
outlines are finer than the patches. The border of the pets, the trimap's third
number, is not counted.

Source: ours. Expected: not known, no number of this trimap without its border
  is published. Hardware: not known. Run here: no; two steps of it on small
  pictures.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '20ep'
  config.batch_size = 64
  config.eval_every = '2ep'
  config.save_every = '2ep'
  config.evaluators = ('segmentation',)
  config.init_head = 'new'
  config.recipe.update(batch_size=64, total='20ep')

  config.task.name = 'segmentation'

  config.model.name = 'segmenter'
  config.model.decoder = 'linear'
  config.model.detail = 4
  config.model.drop_path = 0.1

  config.optim.lr = 1e-4
  config.optim.warmup = '10%'
  config.optim.weight_decay = 0.05
  config.optim.layer_decay = 0.75

  config.data.name = 'tfds:oxford_iiit_pet'
  config.data.examples = 3680
  config.data.classes = 2
  config.data.label_feature = 'segmentation_mask'
  config.data.mask_start = 1
  config.data.mask_names = ('pet', 'background')
  config.data.mask_ignore = (3, 255)
  config.data.train = {
    'ops': ('decode', 'scale_jitter(1.0, 1.5)', 'crop_or_pad', 'flip')
    + ('color_jitter(0.3, 0.3, 0.3)', 'normalize')
  }
  config.data.test = {'ops': ('decode', 'fit', 'normalize')}
  return config
