"""What does a search of 20 trials find for digits in at most 20 epochs?

ASHA ends a trial that is not among the best third after 2, 6 or 18 epochs.
"""

from vit_jax.sweeps import Choice, Range, Search

CONFIG = 'configs/digits.py'
FIXED = {'total': '20ep', 'eval_every': '2ep', 'save_every': '20ep'}


def sweep():
  return Search(
    {
      'optim.lr': Range(2e-4, 2e-2, log=True),
      'optim.weight_decay': Range(0.0, 0.5),
      'model.drop_path': Range(0.0, 0.3),
      'model.pool': Choice('mean', 'cls', 'map'),
    },
    trials=20,
  )
