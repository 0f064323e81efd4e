"""A linear probe: what frozen features of any weights tell of any data set.

  python -m vit_jax train --config=configs/linear_probe.py \
    --config.init_from=FILE --config.data.name=folder:PATH --workdir=W

FILE: .npz or .safetensors (docs/weights.md), or the workdir of a run. The new
head alone is trained, on the pooled features of the last block.

Source: arXiv 2104.14294. Expected: depends on the weights; DINOv2's have 81.1
  (S), 84.5 (B), 86.3 (L), 86.5 % (g) on ImageNet-1k by their authors' own probe
  (its README). Hardware: 8 GPUs. Run here: no.
Hyper-parameters: those of DINO's eval_linear.py: SGD with momentum, 100 epochs,
1e-3 for a batch of 256, linear in it; it recommends to try other rates for
other weights. We differ: features of one block, not of four (its ViT-S), nor
with the patches' mean (its ViT-B); test pictures are resized to 224, not to 256
and then cropped; no other statistics than those that the weights come with; the
head starts at zero.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '100ep'
  config.batch_size = 1024
  config.eval_every = '5ep'
  config.save_every = '5ep'
  config.init_head = 'new'
  config.recipe.update(batch_size=1024, total='100ep', scale='linear')
  config.recipe.devices = 8

  config.optim.name = 'sgd'
  config.optim.momentum = 0.9
  config.optim.lr = 4e-3
  config.optim.rates = (('(distill_)?head/.*', 1.0), ('.*', 0.0))
  config.optim.warmup = '0 steps'
  config.optim.weight_decay = 0.0
  config.optim.clip = 0.0

  config.data.name = 'folder:PATH'
  config.data.workers = 8
  config.data.train = {'ops': ('decode', 'inception_crop', 'flip', 'normalize')}
  config.data.test = {
    'ops': ('decode', "fit('bicubic')", 'normalize'),
  }
  return config
