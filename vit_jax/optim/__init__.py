"""Optimizers and schedules. `OPTIMIZERS`: what `config.optim.name` may be."""

from vit_jax.optim.chain import OPTIMIZERS, make

__all__ = ['OPTIMIZERS', 'make']
