"""The whole path, decoding and resizing included: the same top 5."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from tests.torch_reference import (
  import_timm,
  import_torch,
  import_transformers,
)
from vit_jax import cli

pytestmark = pytest.mark.slow

LABELS = [f'class {i}' for i in range(11)]


@pytest.fixture
def picture(tmp_path):
  """A JPEG with edges, 211x150."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8))
  file = tmp_path / 'picture.jpg'
  small.resize((211, 150), Image.Resampling.BICUBIC).save(file, quality=92)
  return file


def predicted(folder, picture, capsys):
  """({class: probability} of the five best, in order)."""
  capsys.readouterr()
  flags = [f'--weights={folder}', str(picture), '--json']
  assert cli.main(['predict', *flags]) == 0
  rows = json.loads(capsys.readouterr().out)['predictions']
  return {row['class']: row['probability'] for row in rows}


def converted(folder, target, format):
  """The folder of the weights, written in a format."""
  flags = [f'--from={folder}', f'--to={target}/model.safetensors']
  assert cli.main(['convert', *flags, f'--format={format}']) == 0
  return target


def same(ours, logits, tolerance=1e-5):
  """Whether ours are the five best of the logits, in order and value."""
  probabilities = logits.softmax(-1)[0].numpy()
  best = np.argsort(-probabilities)[:5]
  assert np.diff(-probabilities[best]).min() > 5e-4  # five to tell apart
  return [*ours] == [LABELS[i] for i in best] and np.allclose(
    list(ours.values()), probabilities[best], rtol=0, atol=tolerance
  )


def randomise(model, torch):
  """Large enough for logits that differ."""
  torch.manual_seed(3)
  with torch.no_grad():
    for p in model.parameters():
      if p.ndim > 1:
        p.normal_(0, 1.3 / math.sqrt(p[0].numel()))
  return model.eval()


TIMM = {
  'ViT': ('vit_tiny_patch16_224', {'crop_pct': 0.9}),
  'bilinear': (
    'vit_tiny_patch16_224',
    {'crop_pct': 0.875, 'interpolation': 'bilinear'},
  ),
  'squash': (
    'vit_base_patch16_clip_224',
    {'crop_mode': 'squash', 'crop_pct': 1.0},
  ),
  'DeiT III': ('deit3_small_patch16_224', {'crop_pct': 0.95}),
}


def timm_source(name, folder):
  """A folder as timm saves it."""
  timm, torch = import_timm(), import_torch()
  architecture, seen = TIMM[name]
  size = 48
  model = timm.create_model(
    architecture,
    embed_dim=48,
    depth=2,
    num_heads=3,
    img_size=size,
    num_classes=len(LABELS),
    pretrained_cfg_overlay={'input_size': (3, size, size), **seen},
  )
  arguments = {'embed_dim': 48, 'depth': 2, 'num_heads': 3, 'img_size': size}
  timm.models.save_for_hf(
    randomise(model, torch),
    str(folder),
    model_config={'label_names': LABELS},
    model_args=arguments,
    safe_serialization=True,
  )
  return folder


def timm_logits(folder, picture):
  """By timm alone: its model and its own preparation of the picture."""
  timm, torch = import_timm(), import_torch()
  from timm.data import create_transform, resolve_data_config

  model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
  transform = create_transform(**resolve_data_config(model=model))
  image = transform(Image.open(picture).convert('RGB'))
  with torch.no_grad():
    return model(image[None])


@pytest.mark.parametrize('back', [False, True])
@pytest.mark.parametrize('name', TIMM)
def test_timm(tmp_path, picture, capsys, name, back):
  """Read from timm, or written for it; also by way of our own format."""
  folder = timm_source(name, tmp_path / 'source')
  expected = timm_logits(folder, picture)
  if back:
    folder = converted(folder, tmp_path / 'ours', 'vit_jax')
    assert same(predicted(folder, picture, capsys), expected)
    folder = converted(folder, tmp_path / 'back', 'timm')
    expected = timm_logits(folder, picture)
  assert same(predicted(folder, picture, capsys), expected)


@pytest.mark.parametrize(
  'change', [{'crop_pct': 48 / 54}, {'interpolation': 'bilinear'}], ids=str
)
def test_a_pixel_more_is_seen(tmp_path, picture, capsys, change):
  """48 / 0.9 is 53 for timm, rounded down; 54 would not be the same."""
  folder = timm_source('ViT', tmp_path / 'source')
  expected = timm_logits(folder, picture)
  config = json.loads((folder / 'config.json').read_text())
  config['pretrained_cfg'] |= change
  (folder / 'config.json').write_text(json.dumps(config))
  assert not same(predicted(folder, picture, capsys), expected)


HUGGING_FACE = {
  'ViT': (
    'ViT',
    {'image_size': 32},
    'ViTImageProcessorPil',
    {'size': {'height': 32, 'width': 32}, 'image_std': [0.3] * 3},
  ),
  # Positions for 64x64, pictures of 48x48 cut out of 52.
  'DINOv2': (
    'Dinov2',
    {'image_size': 64},
    'BitImageProcessorPil',
    {
      'size': {'shortest_edge': 52},
      'crop_size': {'height': 48, 'width': 48},
      'resample': 3,
    },
  ),
}


def hugging_face_source(name, folder):
  """A folder as transformers saves it."""
  torch, transformers = import_torch(), import_transformers()
  family, size, processor, seen = HUGGING_FACE[name]
  config = getattr(transformers, f'{family}Config')(
    **size,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    patch_size=8,
    id2label=dict(enumerate(LABELS)),
    label2id={label: i for i, label in enumerate(LABELS)},
  )
  model = getattr(transformers, f'{family}ForImageClassification')(config)
  randomise(model, torch).save_pretrained(folder)
  getattr(transformers, processor)(**seen).save_pretrained(folder)
  return folder


def hugging_face_logits(folder, picture, backend):
  """By transformers alone."""
  torch, transformers = import_torch(), import_transformers()
  auto = transformers.AutoModelForImageClassification
  model = auto.from_pretrained(folder).eval()
  processor = transformers.AutoImageProcessor.from_pretrained(
    folder, backend=backend
  )
  pixels = processor(Image.open(picture), return_tensors='pt')['pixel_values']
  with torch.no_grad():
    return model(pixels).logits


# torchvision rounds resized pixels otherwise than Pillow, by 1 of 255.
@pytest.mark.parametrize('backend, off', [('pil', 1e-5), ('torchvision', 2e-3)])
@pytest.mark.parametrize('back', [False, True])
@pytest.mark.parametrize('name', HUGGING_FACE)
def test_hugging_face(tmp_path, picture, capsys, name, back, backend, off):
  """Read from transformers, or written for it; by way of our own format."""
  folder = hugging_face_source(name, tmp_path / 'source')
  expected = hugging_face_logits(folder, picture, backend)
  if back:
    folder = converted(folder, tmp_path / 'ours', 'vit_jax')
    assert same(predicted(folder, picture, capsys), expected, off)
    folder = converted(folder, tmp_path / 'back', 'huggingface')
    expected = hugging_face_logits(folder, picture, backend)
  assert same(predicted(folder, picture, capsys), expected, off)
