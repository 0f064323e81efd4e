"""Fine-tuning weights of any format on a folder of pictures.

  python -m vit_jax train --config=configs/finetune.py \
    --config.init_from=FILE --config.data.name=folder:PATH --workdir=W

FILE: .npz or .safetensors (docs/weights.md), or the workdir of a run. The
architecture, the image size and the normalisation are those of the weights;
another --config.size resamples the positions. The head is new. Hyper-parameters
after DeiT's fine-tuning, for small sets. Run here: on weights trained here only
(tests/test_finetune.py); no published weights on this machine.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '10ep'
  config.batch_size = 64
  config.eval_every = '1ep'
  config.save_every = '1ep'
  config.init_head = 'new'

  config.model.drop_path = 0.1

  config.optim.lr = 1e-4
  config.optim.warmup = '10%'
  config.optim.weight_decay = 0.05

  config.data.name = 'folder:PATH'
  config.data.train = {
    'ops': ('decode', 'fit', 'affine(5, 0.1, 0.05, 0.05)', 'normalize')
  }
  config.data.test = {'ops': ('decode', 'fit', 'normalize')}
  return config
