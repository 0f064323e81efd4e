"""Optimizers and schedules. `OPTIMIZERS`: what `config.optim.name` may be."""

from vit_jax.optim.chain import make
from vit_jax.optim.groups import without_gradient
from vit_jax.optim.optimizers import OPTIMIZERS

__all__ = ['OPTIMIZERS', 'make', 'without_gradient']
