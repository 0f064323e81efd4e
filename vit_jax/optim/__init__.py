"""Optimizers and schedules. `OPTIMIZERS` is the table of `config.optim.name`."""

from vit_jax.optim.chain import OPTIMIZERS, make

__all__ = ['OPTIMIZERS', 'make']
