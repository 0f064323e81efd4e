"""A ViT of 22 billion parameters (arXiv 2302.05442), to be planned.

  python -m vit_jax plan --config=configs/vit_22b.py --topology=v5p:8x8x8

Source: arXiv 2302.05442. Expected: not known. Hardware: 512 v5p chips, by our
  plan (docs/scaling.md). Run here: no.
Width 6144, depth 48, MLP 24576, 48 heads, normalised queries and keys, no
biases of queries, keys and values, a MAP head; batch and steps are the paper's,
and as many examples and classes as its private JFT-4B are stated. The paper's
blocks have attention and MLP side by side, for 15 % more speed; ours, one after
the other, have the same products and as many parameters. It trains with
Adafactor; here AdamW holds two numbers for each parameter.
"""

from vit_jax import defaults


def get_config():
  config = defaults.get_config()
  config.total = '177k steps'
  config.batch_size = 65_536
  config.size = 224
  config.eval_every = '10k steps'
  config.save_every = '1k steps'
  config.recipe.update(batch_size=65_536, total='177k steps', devices=512)
  config.mesh.data = 1
  config.mesh.fsdp = -1

  config.model.variant = '22B/14'
  config.model.pool = 'map'
  config.model.gelu = 'tanh'
  config.model.qk_norm = True
  config.model.qkv_bias = False
  config.model.dtype = 'bfloat16'
  config.model.remat = 'full'

  config.task.objective = 'sigmoid'
  config.model.head_bias = -10.0

  config.optim.lr = 1e-3
  config.optim.schedule = 'rsqrt'
  config.optim.warmup = '10k steps'
  config.optim.cooldown = '30k steps'
  config.optim.weight_decay = 0.03

  config.data.name = 'tar:PATH/{split}-*.tar'
  config.data.examples = 4_000_000_000
  config.data.classes = 30_000
  config.data.workers = 32
  config.data.train = {
    'ops': ('decode', 'inception_crop', 'flip', 'range(-1, 1)')
  }
  config.data.test = {
    'ops': ('decode', 'resize_small(256)', 'central_crop', 'range(-1, 1)')
  }
  return config
