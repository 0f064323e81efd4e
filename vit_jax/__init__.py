"""vit_jax: train, study and ship Vision Transformers in JAX.

Read `train.py` first; `docs/tour.md` walks through the model.
"""

__version__ = '0.1.0'
