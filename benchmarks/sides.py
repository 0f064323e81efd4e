"""The sides of `benchmarks step`: from a case to (inference, a training step).

Both are called without arguments and return when they are done: the logits
(B, Y) and the norm of the gradient of the mean loss. The state of training
stays in the side.
"""

import functools
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES, RATE, DECAY = 1000, 1e-4, 0.05
Side = tuple[Callable[[], Any], Callable[[], Any]]


def _setup(case: Any, model: Any = None) -> Any:
  from vit_jax import config
  from vit_jax.setup import Setup
  from vit_jax.workdir import DataInfo

  values = {
    'size': case.size,
    'batch_size': case.batch,
    'total': '1000 steps',
    'model': {'variant': case.variant},
    'optim': {'lr': RATE, 'weight_decay': DECAY, 'schedule': 'constant'},
  }
  values['optim']['warmup'] = '0 steps'
  labels = tuple(map(str, range(CLASSES)))
  info = DataInfo(labels, (case.size, case.size), 3, 1000, '')
  return Setup(config.resolve(values), info, model)


def write_weights(case: Any):
  """Random parameters, the head's too, as timm and Hugging Face have them."""
  import jax

  from vit_jax import weights
  from vit_jax.weights.formats import Preprocessing

  setup = _setup(case)
  params = setup.init().params
  kernel = params['head']['linear']['kernel']
  noise = jax.random.normal(jax.random.key(1), kernel.shape) * 0.05
  params['head']['linear']['kernel'] = noise
  about = Preprocessing(size=(case.size, case.size))
  for name in ('timm', 'huggingface'):
    folder = case.folder / name
    folder.mkdir()
    file = folder / 'model.safetensors'
    weights.save(file, setup.model, params, format=name, preprocessing=about)


def _ours(case: Any, dtype: str) -> Side:
  import jax

  from vit_jax import weights

  model, params, _ = weights.load(case.folder / 'timm')
  setup = _setup(case, model.clone(dtype=dtype, unroll=0))
  infer = jax.jit(setup.apply)
  images, labels = case.images(), case.labels().astype(np.int32)
  mask = np.ones(case.batch, np.float32)
  batch = {'image': images, 'label': labels, 'mask': mask}
  with jax.set_mesh(setup.mesh):
    given = jax.device_put(
      params, jax.tree.map(lambda s: s.sharding, setup.abstract_state.params)
    )
    state = setup.init().replace(params=jax.tree.map(lambda x: x + 0, given))
    batch = jax.device_put(batch, setup.abstract_batch['label'].sharding)

  def train():
    nonlocal state
    with jax.set_mesh(setup.mesh):
      state, metrics = setup.train_step(state, batch)
      jax.block_until_ready(state)
    return metrics['grad_norm']

  def inferred():
    with jax.set_mesh(setup.mesh):
      return jax.block_until_ready(infer(given, batch['image']))

  return inferred, train


def _textbook(case: Any, stacked: bool = False) -> Side:
  """Flax's own layers; `stacked`: fed our parameters, blocks in one array."""
  import jax
  import optax

  from benchmarks import textbook
  from vit_jax import weights

  model, params, _ = weights.load(case.folder / 'timm')
  own = functools.partial(
    textbook.params_of, depth=model.shape.depth, patch=model.patch
  )
  net = textbook.Textbook(case.variant, CLASSES, approximate=False)
  if stacked:
    net = textbook.Renamed(net, own)
  else:
    params = own(params)
  optimizer = optax.adamw(RATE, weight_decay=DECAY)
  step = jax.jit(textbook.make_step(net, optimizer), donate_argnums=(0, 1))
  infer = jax.jit(lambda params, images: net.apply({'params': params}, images))
  images, labels = jax.device_put((case.images(), case.labels()))
  state = jax.jit(optimizer.init)(params)
  copy = jax.tree.map(lambda x: x + 0, params)
  gradient = jax.jit(jax.grad(textbook.make_loss(net)))
  norm = optax.tree.norm(gradient(params, images, labels))

  def train():
    nonlocal copy, state
    copy, state, _ = step(copy, state, images, labels)
    jax.block_until_ready(copy)
    return norm

  return lambda: jax.block_until_ready(infer(params, images)), train


def _torch(case: Any, net: Any, forward: Callable, short: bool) -> Side:
  import torch
  from torch.nn import functional

  images = torch.from_numpy(case.images()).permute(0, 3, 1, 2).contiguous()
  labels = torch.from_numpy(case.labels())
  adam = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
  cast = torch.autocast('cpu', torch.bfloat16, enabled=short)
  norm = 0.0

  def train():
    nonlocal norm
    net.train()
    with cast:
      loss = functional.cross_entropy(forward(images), labels)
    adam.zero_grad()
    loss.backward()
    if not norm:
      grads = [p.grad for p in net.parameters() if p.grad is not None]
      norm = float(torch.nn.utils.get_total_norm(grads))
    adam.step()
    return norm

  def infer():
    net.eval()
    with torch.inference_mode(), cast:
      return forward(images).float().numpy()

  return infer, train


def _timm(case: Any, short: bool = False) -> Side:
  from safetensors.torch import load_file

  from tests import torch_reference

  torch_reference.import_timm()
  from timm.models.vision_transformer import VisionTransformer

  from vit_jax.models.variants import parse

  shape, patch, _ = parse(case.variant)
  net = VisionTransformer(
    case.size,
    patch,
    num_classes=CLASSES,
    embed_dim=shape.width,
    depth=shape.depth,
    num_heads=shape.heads,
    mlp_ratio=shape.hidden / shape.width,
  )
  net.load_state_dict(load_file(case.folder / 'timm' / 'model.safetensors'))
  return _torch(case, net, net, short)


def _huggingface(case: Any) -> Side:
  from tests import torch_reference

  library = torch_reference.import_transformers()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    folder = case.folder / 'huggingface'
    net = library.ViTForImageClassification.from_pretrained(folder)
  return _torch(case, net, lambda images: net(images).logits, False)


SIDES: dict[str, Callable[[Any], Side]] = {
  'ours': lambda case: _ours(case, 'float32'),
  'ours, bfloat16': lambda case: _ours(case, 'bfloat16'),
  'textbook flax': _textbook,
  'textbook flax, stacked': lambda case: _textbook(case, stacked=True),
  'timm': _timm,
  'timm, bfloat16 autocast': lambda case: _timm(case, True),
  'Hugging Face': _huggingface,
}


def _product(dtype: str) -> Callable[[], float]:
  """FLOP/s that the models here can hope for: XLA's best of a few."""
  from vit_jax.speed import measured

  return lambda: measured.__wrapped__(dtype)


def _torch_product() -> Callable[[], float]:
  import torch

  x = torch.ones((1024, 1024))

  def best() -> float:
    seconds = []
    for _ in range(8):
      begun = time.perf_counter()
      torch.mm(x, x)
      seconds.append(time.perf_counter() - begun)
    return 2 * 1024**3 / min(seconds)

  return best


PRODUCTS: dict[str, Callable[[], Callable[[], float]]] = {
  'one product, float32': lambda: _product('float32'),
  'one product, bfloat16': lambda: _product('bfloat16'),
  'one product, float32, torch': _torch_product,
}
_NEEDS = {
  'one product, float32, torch': 'torch',
  'timm': 'timm',
  'timm, bfloat16 autocast': 'timm',
  'Hugging Face': 'transformers',
}


def missing(name: str) -> str:
  """Why a side cannot take part, or ''."""
  module = _NEEDS.get(name)
  if module is None or importlib.util.find_spec(module):
    return ''
  return f'{module} is not installed'
