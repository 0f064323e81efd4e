"""ViT-G/14 (1.8 billion parameters, arXiv 2106.04560) on ImageNet-21k.

  python -m vit_jax plan --config=configs/vit_g14.py --topology=v5p:4x4x4

Source: arXiv 2106.04560. Expected: not known. Hardware: 64 v5p chips, by our
  plan (docs/scaling.md). Run here: no.
The paper's data, JFT-3B, are private: here it is the 14.2 million pictures of
ImageNet-21k, as tar shards in PATH. Shape, MAP head, sigmoid loss and the
schedule's form are the paper's; rates and length are untuned. It trains with
Adafactor, we with AdamW.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '90ep'
  config.batch_size = 4096
  config.size = 224
  config.eval_every = '5ep'
  config.save_every = '5k steps'
  config.recipe.update(batch_size=4096, total='90ep', devices=64)
  config.mesh.data = 1
  config.mesh.fsdp = -1

  config.model.variant = 'G/14'
  config.model.pool = 'map'
  config.model.gelu = 'tanh'
  config.model.dtype = 'bfloat16'
  config.model.remat = 'full'

  config.task.objective = 'sigmoid'
  config.model.head_bias = -10.0

  config.optim.lr = 8e-4
  config.optim.schedule = 'rsqrt'
  config.optim.warmup = '10k steps'
  config.optim.cooldown = '50k steps'
  config.optim.weight_decay = 0.03

  config.data.name = 'tar:PATH/{split}-*.tar'
  config.data.examples = 14_197_122
  config.data.classes = 21_841
  config.data.workers = 32
  config.data.train = {
    'ops': ('decode', 'inception_crop', 'flip', 'range(-1, 1)')
  }
  config.data.test = {
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)')
  }
  return config
