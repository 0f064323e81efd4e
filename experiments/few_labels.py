"""What is masked pretraining worth where only 10 digits of a class have labels?

Wants the runs of masked_pretraining.py in runs/masked. Each seed has labelled
digits of its own, and an autoencoder of its own, which saw no label. Both ways
at two learning rates, so that neither is favoured.
"""

from vit_jax.sweeps import grid, product, zipped

CONFIG = 'configs/mae_digits.py:tune'
SEEDS = range(5)


def sweep():
  labels = [f'train[{250 * seed}:]' for seed in SEEDS]
  rates = grid({'optim.lr': (1e-3, 3e-3)})

  def started(weights, layer_decay):
    points = {'seed': SEEDS, 'data.train.split': labels, 'init_from': weights}
    points['optim.layer_decay'] = [layer_decay] * len(SEEDS)
    points['init_head'] = ['new' if w else 'keep' for w in weights]
    return product(rates, zipped(points))

  pretrained = [f'runs/masked/seed={seed}' for seed in SEEDS]
  return started([''] * len(SEEDS), 1.0) + started(pretrained, 0.75)
