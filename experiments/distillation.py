"""Does a small student of the digits learn more with a teacher?

The teacher is the digits recipe: `make digits`, whose run is runs/digits. Hard
and soft, on the logits and by the distillation token (arXiv 2012.12877, table
3), for 20 epochs of all digits; soft also with the paper's weight for it, 0.1.
"""

from vit_jax.sweeps import grid, product

CONFIG = 'configs/digits.py'
FIXED = {
  'total': '20ep',
  'eval_every': '20ep',
  'save_every': '20ep',
  'model.width': 48,
  'model.depth': 2,
  'model.pool': 'cls',
}
TEACHER = 'runs/digits'


def sweep():
  alone = grid({'task.teacher': ('',), 'model.distill_token': (False, True)})
  taught = grid(
    {
      'task.teacher': (TEACHER,),
      'model.distill_token': (False, True),
      'task.distillation': ('hard', 'soft'),
    }
  )
  soft = {'task.teacher': (TEACHER,), 'task.distillation': ('soft',)}
  soft |= {'model.distill_token': (False, True), 'task.distill_weight': (0.1,)}
  return product(alone + taught + grid(soft), grid({'seed': range(5)}))
