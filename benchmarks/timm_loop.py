"""The recipe of configs/folder.py in a plain loop of timm and torch.

The same model, data, batch, schedule, decay, averaging and augmentation, as one
would write it there: to compare what is reached, and how long it takes.

  python -m benchmarks.timm_loop FOLDER EPOCHS SEED
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

BATCH, RATE, DECAY, AVERAGE = 32, 2e-3, 0.1, 0.995


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
  """Pictures (n, 1, 28, 28) from 0 to 255, and labels."""
  files = sorted(folder.glob('*/*.png'))
  pixels = np.stack([np.asarray(Image.open(file)) for file in files])
  labels = [int(file.parent.name) for file in files]
  return torch.from_numpy(pixels).float()[:, None], torch.tensor(labels)


def augment(images: torch.Tensor) -> torch.Tensor:
  """Turned, scaled, sheared, shifted as by 'affine(10, 0.1, 0.1, 0.1)'."""
  n = len(images)
  u = torch.rand(n, 6) * 2 - 1
  angle = u[:, 0] * math.radians(10)
  cos, sin = angle.cos(), angle.sin()
  turn = torch.stack([cos, -sin, sin, cos], 1).reshape(n, 2, 2)
  skew = torch.zeros(n, 2, 2)
  skew[:, 0, 0], skew[:, 1, 1] = 1 + 0.1 * u[:, 1], 1 + 0.1 * u[:, 3]
  skew[:, 0, 1] = 0.1 * u[:, 2]
  # A grid from -1 to 1: twice the fraction of the size.
  matrix = torch.cat([turn @ skew, 0.2 * u[:, 4:, None]], 2)
  grid = functional.affine_grid(matrix, images.shape, align_corners=False)
  moved = functional.grid_sample(
    images, grid, 'bicubic', 'border', align_corners=False
  )
  return moved.clamp(0, 255)


def model() -> nn.Module:
  """The ViT of configs/folder.py: sines as positions, mean of the patches."""
  from timm.models.vision_transformer import VisionTransformer

  from vit_jax.models.positions import sincos2d

  net = VisionTransformer(
    img_size=28,
    patch_size=4,
    in_chans=1,
    num_classes=10,
    embed_dim=96,
    depth=4,
    num_heads=3,
    class_token=False,
    global_pool='avg',
    fc_norm=False,
    drop_path_rate=0.1,
    act_layer=lambda: nn.GELU(approximate='tanh'),
  )
  table = np.asarray(sincos2d((7, 7), 96))
  net.pos_embed = nn.Parameter(torch.tensor(table)[None], requires_grad=False)
  start(net)
  return net


def start(net: nn.Module):
  """The first parameters as ours: timm's, of deviation 0.02, learn later."""
  for name, module in net.named_modules():
    if isinstance(module, nn.Linear):
      parts = module.weight.chunk(3) if 'qkv' in name else [module.weight]
      for part in parts:
        nn.init.xavier_uniform_(part.data)
      nn.init.zeros_(module.bias)
  nn.init.normal_(net.patch_embed.proj.weight, std=1 / 4)  # of 16 pixels
  nn.init.zeros_(net.patch_embed.proj.bias)
  nn.init.zeros_(net.head.weight)


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
  """AdamW; kernels decay, biases and norms do not."""
  own = [p for p in net.parameters() if p.requires_grad]
  groups = [
    {'params': [p for p in own if p.ndim > 1], 'weight_decay': DECAY},
    {'params': [p for p in own if p.ndim < 2], 'weight_decay': 0.0},
  ]
  return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)


def rate(step: int, total: int) -> float:
  """Of the peak: a warm-up of a tenth, then a cosine to 0."""
  warmup = total // 10
  if step < warmup:
    return (step + 1) / warmup
  return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def train(folder: Path, epochs: int, seed: int) -> dict:
  """{'accuracy', 'seconds'} of a run; the seconds are those of the loop."""
  torch.manual_seed(seed)
  (x, y), (tests, truth) = (read(folder / part) for part in ('train', 'test'))
  net = model()
  adam, average = (
    optimizer(net),
    torch.optim.swa_utils.AveragedModel(
      net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)
    ),
  )
  steps = epochs * len(x) // BATCH
  order = torch.cat([torch.randperm(len(x)) for _ in range(epochs)])
  schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: rate(t, steps))
  begun = time.perf_counter()
  net.train()
  for step in range(steps):
    rows = order[step * BATCH : (step + 1) * BATCH]
    images = augment(x[rows]) / 127.5 - 1
    loss = functional.cross_entropy(net(images), y[rows])
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    adam.step()
    schedule.step()
    average.update_parameters(net)
  seconds = time.perf_counter() - begun
  average.eval()
  with torch.no_grad():
    said = torch.cat([average(t / 127.5 - 1) for t in tests.split(250)])
  accuracy = (said.argmax(1) == truth).float().mean().item()
  return {'accuracy': accuracy, 'seconds': seconds, 'steps': steps}


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).parent.parent))
  from tests import torch_reference

  torch_reference.import_timm()  # wants torchvision, half of which is here
  result = train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
  print(json.dumps(result))
