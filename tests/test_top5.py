"""The whole path, decoding and resizing included: the same top 5."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli


@pytest.fixture
def picture(tmp_path):
  """A JPEG of smooth colours, 150x100."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
  file = tmp_path / 'picture.jpg'
  small.resize((150, 100), Image.Resampling.BICUBIC).save(file, quality=92)
  return file


@pytest.mark.slow
@pytest.mark.parametrize('back', [False, True])
def test_hugging_face(tmp_path, picture, capsys, back):
  """Read from transformers, or written for it: the same top 5."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.ViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
    id2label={i: f'class {i}' for i in range(11)},
    label2id={f'class {i}': i for i in range(11)},
    initializer_range=0.4,
  )
  folder = tmp_path / 'source'
  transformers.ViTForImageClassification(config).save_pretrained(folder)
  processor = transformers.ViTImageProcessor(
    size={'height': 32, 'width': 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3
  )
  processor.save_pretrained(folder)
  if back:
    target = tmp_path / 'ours' / 'model.safetensors'
    flags = [f'--from={folder}', f'--to={target}', '--format=huggingface']
    assert cli.main(['convert', *flags]) == 0
    folder = target.parent
    capsys.readouterr()
  assert (
    cli.main(['predict', f'--weights={folder}', str(picture), '--json']) == 0
  )
  ours = json.loads(capsys.readouterr().out)['predictions']
  model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
  processor = transformers.AutoImageProcessor.from_pretrained(folder)
  pixels = processor(Image.open(picture), return_tensors='pt')['pixel_values']
  with torch.no_grad():
    probabilities = model(pixels).logits.softmax(-1)[0].numpy()
  best = np.argsort(-probabilities)[:5]
  assert len({round(float(p), 6) for p in probabilities[best]}) == 5
  labels = [model.config.id2label[int(i)] for i in best]
  assert [row['class'] for row in ours] == labels
  found = [row['probability'] for row in ours]
  np.testing.assert_allclose(found, probabilities[best], atol=1e-4)
