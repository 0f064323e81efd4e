"""Folders of pictures and masks: layouts, numbers, what is wrong."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.test_data import fetch, make
from vit_jax import cli, data
from vit_jax.errors import BadRecord, UserError


def png(pixels, mode='L', bits=None):
  buffer = io.BytesIO()
  image = Image.fromarray(pixels)
  if mode == 'P':
    image = Image.fromarray(pixels, 'L').convert('P')
    image.putdata(pixels.ravel().tolist())
    image.putpalette([(7 * i) % 256 for i in range(768)])
  image.save(buffer, 'png', **({'bits': bits} if bits else {}))
  return buffer.getvalue()


def numbers(seed, h=12, w=10, most=3):
  return np.random.default_rng(seed).integers(0, most, (h, w), np.uint8)


LAYOUTS = {
  '{}/images {}/masks': ('train', 'val'),
  'images/{} masks/{}': ('train', 'test'),
  'images/{} annotations/{}': ('training', 'validation'),
}


def write(root, layout='{}/images {}/masks', count=6, mode='L', shift=0):
  """Pairs in which red is 50 times the number in the mask."""
  for s, split in enumerate(LAYOUTS[layout]):
    images, labels = (root / part.format(split) for part in layout.split())
    for folder in (images, labels):
      folder.mkdir(parents=True)
    for i in range(count):
      mask = numbers(10 * s + i)
      picture = np.stack([50 * mask, mask, mask], -1)
      (images / f'{i}.png').write_bytes(png(picture))
      (labels / f'{i}.png').write_bytes(png(mask + np.uint8(shift), mode))
  return root


def matches(source):
  return all(
    (record['label'] == image[..., 0] // 50).all()
    for record in (source[i] for i in range(len(source)))
    for image in [
      np.asarray(Image.open(io.BytesIO(record['image'])))
      if isinstance(record['image'], bytes)
      else record['image']
    ]
  )


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('cache_mb', [0, 512])
def test_folders(layout, cache_mb, tmp_path):
  (write(tmp_path, layout) / 'classes.txt').write_text('sky\nsea\nland\n')
  fields = {'cache_mb': cache_mb}
  for split in ('train', 'test', 'train[:3]'):
    source = data.open_split(f'masks:{tmp_path}', split, **fields)
    assert len(source) == (3 if ':' in split else 6)
    assert source.classes == ('sky', 'sea', 'land') and source.masks
    assert (source.size, source.channels) == ((10, 10), 3)
    assert isinstance(source[0]['image'], bytes) == (cache_mb == 0)
    assert matches(source)
  before = source.fingerprint
  moved = data.open_split(f'masks:{tmp_path}', split, mask_ignore=(2,))
  assert not matches(moved)  # control
  mask = next(tmp_path.rglob(source[0]['key'].rpartition('/')[2]))
  for path in tmp_path.rglob(mask.name):
    if 'images' not in str(path.relative_to(tmp_path)):
      path.write_bytes(png(numbers(77)))
  after = data.open_split(f'masks:{tmp_path}', split, **fields).fingerprint
  assert len({before, after, moved.fingerprint}) == 3


def test_without_a_test_folder_some_are_held_out(tmp_path):
  write(tmp_path, count=30)
  (tmp_path / 'val').rename(tmp_path / 'else')
  name = f'masks:{tmp_path}'
  parts = [data.open_split(name, s) for s in ('train', 'test')]
  keys = [{source[i]['key'] for i in range(len(source))} for source in parts]
  assert len(keys[0] | keys[1]) == 30 and not keys[0] & keys[1]
  assert 1 < len(keys[1]) < 15 and all(map(matches, parts))
  flat = data.open_split(f'masks:{tmp_path}/train', 'all')
  assert len(flat) == 30 and matches(flat)


def test_numbers_name_the_classes(tmp_path):
  write(tmp_path)
  source = data.open_split(f'masks:{tmp_path}', 'train')
  assert source.classes == ('0', '1', '2') and matches(source)
  for path in (tmp_path / 'train' / 'masks').iterdir():
    pixels = np.asarray(Image.open(path)) * np.uint8(120)
    path.write_bytes(png(pixels))
  fields = {'mask_ignore': ()}
  source = data.open_split(f'masks:{tmp_path}', 'train', **fields)
  assert source.classes == ('0', '120', '240') and matches(source)


def test_the_first_class_may_have_another_number(tmp_path):
  """As ADE20k's: 0 is not counted, and 1 is the first class."""
  (write(tmp_path, shift=1) / 'classes.txt').write_text('a\nb\nc')
  name = f'masks:{tmp_path}'
  assert matches(data.open_split(name, 'train', mask_start=1))
  path = tmp_path / 'train' / 'masks' / '3.png'
  path.write_bytes(png(numbers(3, most=4)))
  source = data.open_split(name, 'train', mask_start=1, mask_ignore=(2,))
  labels = np.unique(
    [source[i]['label'] for i in range(6) if '3.png' in source[i]['key']]
  )
  assert labels.tolist() == [0, 2, 255]
  with pytest.raises(UserError, match=r'masks/\d.png: the mask has 3 at row'):
    data.open_split(name, 'train')


@pytest.mark.parametrize(
  'mode, bits', [('L', None), ('P', 8), ('P', 4), ('P', 2), ('1', None)]
)
def test_kinds_of_png(mode, bits, tmp_path):
  mask = numbers(0, most=2)
  content = png(mask, 'P', bits) if mode == 'P' else png(mask)
  if mode == '1':
    content = png(mask.astype(bool))
  assert (data.masks.decode(content, 'x') == mask).all()


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_few_bits_of_grey(bits):
  """Written by hand: Pillow writes none, and spreads what it reads."""
  mask = numbers(1, 5, 8, 2**bits)
  per = 8 // bits
  weights = 2 ** (bits * np.arange(per)[::-1])
  rows = (mask.reshape(5, -1, per) * weights).sum(-1).astype(np.uint8)
  raw = b''.join(b'\0' + row.tobytes() for row in rows)

  def chunk(kind, body):
    sum_ = struct.pack('>I', zlib.crc32(kind + body))
    return struct.pack('>I', len(body)) + kind + body + sum_

  header = struct.pack('>IIBBBBB', 8, 5, bits, 0, 0, 0, 0)
  content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
  content += chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')
  assert (data.masks.decode(content, 'x') == mask).all()


def jpeg(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'jpeg')
  return buffer.getvalue()


GOOD = numbers(0)
FLAWS = {
  'another size': (
    lambda: png(numbers(0, 12, 9)),
    'images/2.png: the mask has 12x9 pixels, its image 12x10',
  ),
  'out of range': (
    lambda: png(GOOD + (np.arange(10) == 4).astype(np.uint8) * 9),
    'at row 0, column 4, which is none of the 3 classes and not ignored',
  ),
  'ignored': (
    lambda: png(np.full_like(GOOD, 255)),
    'masks/2.png: no pixel of the mask is counted',
  ),
  'colours': (
    lambda: png(np.stack([GOOD] * 3, -1)),
    'masks/2.png: a mask has one number a pixel',
  ),
  'jpeg': (lambda: jpeg(GOOD), 'masks/2.png: a mask is a PNG'),
  'damaged': (lambda: png(GOOD)[:60], 'masks/2.png: a damaged mask'),
  'missing': (lambda: None, 'images/2.png has no mask: '),
  '16 bits': (
    lambda: png(GOOD.astype(np.uint16) + 300),
    'masks/2.png: the mask has 302; 255 is the most',
  ),
}


@pytest.mark.parametrize('flaw', FLAWS)
@pytest.mark.parametrize('cache_mb', [0, 512])
def test_flawed_masks(flaw, cache_mb, tmp_path, capsys):
  """Named when the folder is opened, when read, or by `data check`; skipped."""
  (write(tmp_path) / 'classes.txt').write_text('a\nb\nc')
  path = tmp_path / 'train' / 'masks' / '2.png'
  content, says = FLAWS[flaw][0](), FLAWS[flaw][1]
  path.unlink()
  if content:
    path.write_bytes(content)
  name = f'masks:{tmp_path}'
  fields = {'cache_mb': cache_mb}
  with pytest.raises((UserError, BadRecord)) as error:
    source = data.open_split(name, 'train', **fields)
    [source[i] for i in range(6)]
  assert says in str(error.value)
  source = data.open_split(name, 'train', on_error='skip', **fields)
  texts = ('decode', 'resize', 'range(-1, 1)')
  loader = make(source, texts, channels=3, on_error='skip')
  assert sum(b['skipped'].sum() for b in fetch(loader.train(0, 3))) == 8
  flags = ['check', f'--data={name}', '--split=train', '--json']
  assert cli.main(['data', *flags, f'--config.data.cache_mb={cache_mb}']) == 2
  report = json.loads(capsys.readouterr().out)['train']
  assert len(report['unreadable']) == 1 and says in report['unreadable'][0]
  assert set(report['pixels']) == {'a', 'b', 'c'} and report['ignored'] == 0
  assert abs(sum(report['pixels'].values()) - 1) < 1e-9


@pytest.mark.parametrize('cache_mb', [0, 64])
@pytest.mark.parametrize('orientation', [1, 3])
def test_a_picture_that_exif_turns_has_no_certain_mask(
  orientation, cache_mb, tmp_path
):
  write(tmp_path)
  (path,) = (tmp_path / 'train' / 'images').glob('2.*')
  exif = Image.Exif()
  exif[0x0112] = orientation
  with Image.open(path) as image:
    turned = image.copy()
  path.unlink()
  turned.save(path.with_suffix('.jpg'), exif=exif)
  says = ''
  try:
    name = f'masks:{tmp_path}'
    source = data.open_split(name, 'train', cache_mb=cache_mb)
    [source[i] for i in range(len(source))]
  except UserError as error:
    says = str(error)
  told = '2.jpg: EXIF turns the picture (orientation 3)' in says
  assert told == (orientation == 3) and told == bool(says)


@pytest.mark.parametrize(
  'change, fields, says',
  [
    (lambda p: (p / 'train').rename(p / 'x'), {}, 'no train/images and train'),
    (None, {'split': 'val2'}, "split 'val2': "),
    (None, {'mask_start': 300}, 'config.data.mask_start = 300: 0 to 254'),
    (None, {'mask_ignore': (1, 256)}, 'mask_ignore = (1, 256): 256 is not'),
    (None, {'mask_ignore': (0, 1)}, '1 classes (2); 2 to 254 are needed'),
    (None, {'classes': 4}, 'config.data.classes = 4, but the source has 3'),
    (
      lambda p: (p / 'classes.txt').write_text('one\n'),
      {},
      'classes.txt: 1 classes (one)',
    ),
    (None, {'name': 'folder'}, "config.data.name = 'masks:"),
    (None, {'name': 'mask'}, "Did you mean 'masks'?"),
  ],
)
def test_mistakes_about_folders(change, fields, says, tmp_path):
  write(tmp_path)
  if change:
    change(tmp_path)
  fields = dict(fields)
  name = f'{fields.pop("name", "masks")}:{tmp_path}'
  with pytest.raises(UserError) as error:
    data.open_split(name, fields.pop('split', 'train'), **fields)
  assert says in str(error.value)
