"""Models. `MODELS` is the table of `config.model.name`."""

from vit_jax.models import cpu
from vit_jax.models.mae import MAE
from vit_jax.models.segmenter import Segmenter
from vit_jax.models.vit import ViT

cpu.install()
MODELS = {'vit': ViT, 'segmenter': Segmenter, 'mae': MAE}
