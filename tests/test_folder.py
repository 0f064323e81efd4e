"""A folder of pictures: what is found, how it is read, what is refused."""

import io

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import data, sharding
from vit_jax.data import folder as folder_lib
from vit_jax.data import ops
from vit_jax.data.images import decode, header
from vit_jax.data.loader import Loader
from vit_jax.errors import BadRecord, UserError


def noise(h=6, w=8, seed=0, channels=3):
  shape = (h, w) if channels == 1 else (h, w, channels)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(image, kind='png', **kwargs):
  """The bytes of a file, from an array or a PIL image."""
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  buffer = io.BytesIO()
  image.save(buffer, kind, **kwargs)
  return buffer.getvalue()


def build(root, files):
  """Writes {'train/cat/1.png': bytes or array}."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
      content = encode(content)
    path.write_bytes(content)
  return root


def many(prefix, count, classes=('cat', 'dog'), **kwargs):
  return {
    f'{prefix}{name}/{i}.png': noise(seed=100 * k + i, **kwargs)
    for k, name in enumerate(classes)
    for i in range(count)
  }


def names(source):
  """Paths of a split relative to their root, in order."""
  root = source._root
  keys = [source[i]['key'] for i in range(len(source))]
  assert keys == [source.key(i) for i in range(len(source))]
  return [key.removeprefix(f'{root}/') for key in keys]


def open_split(root, split='train', **kwargs):
  return data.open_split(f'folder:{root}', split, **kwargs)


def refused(root, split='train', **kwargs):
  with pytest.raises(UserError) as error:
    open_split(root, split, **kwargs)
  return str(error.value)


# --- Layouts ---


def test_train_and_test_folders(tmp_path):
  files = many('train/', 3, ('dog', 'cat', 'Eel')) | many('test/', 2)
  build(tmp_path, files)
  train, test = open_split(tmp_path), open_split(tmp_path, 'test')
  assert train.classes == test.classes == ('Eel', 'cat', 'dog')  # sorted
  assert (len(train), len(test)) == (9, 4)
  for source, prefix in ((train, 'train/'), (test, 'test/')):
    for i, name in enumerate(names(source)):
      record = source[i]
      assert source.classes[record['label']] == name.split('/')[0]
      assert (record['image'] == files[prefix + name]).all()
  assert len(open_split(tmp_path, 'train[:4]')) == 4
  assert names(open_split(tmp_path, 'test[-1:]')) == names(test)[-1:]


def test_a_val_folder(tmp_path):
  build(tmp_path, many('train/', 2) | many('val/', 3))
  assert len(open_split(tmp_path, 'val')) == 6
  assert names(open_split(tmp_path, 'test')) == names(
    open_split(tmp_path, 'val')
  )
  assert len(open_split(tmp_path)) == 4  # nothing is held out of it
  build(tmp_path, many('test/', 1))
  assert len(open_split(tmp_path, 'test')) == 2
  assert len(open_split(tmp_path, 'val')) == 6


@pytest.mark.parametrize('prefix', ['', 'train/'])
def test_a_hold_out(tmp_path, prefix):
  build(tmp_path, many(prefix, 150, h=2, w=2))
  train, test = (names(open_split(tmp_path, s)) for s in ('train', 'test'))
  assert not set(train) & set(test)
  assert len(train) + len(test) == 300
  assert 36 < len(test) < 84  # 60 +- 3.5 sigma
  larger = names(open_split(tmp_path, 'test', holdout=0.5))
  assert set(test) < set(larger) and 115 < len(larger) < 185


def test_a_hold_out_stays_when_files_come_and_go(tmp_path):
  build(tmp_path, many('', 40))
  before = {s: set(names(open_split(tmp_path, s))) for s in ('train', 'test')}
  build(tmp_path, {f'cat/new{i}.png': noise() for i in range(20)})
  (tmp_path / 'dog' / '0.png').unlink()
  for split, old in before.items():
    now = set(names(open_split(tmp_path, split)))
    assert now >= old - {'dog/0.png'}
    assert now - old <= {f'cat/new{i}.png' for i in range(20)}


def test_a_hold_out_is_the_same_on_every_machine(tmp_path):
  build(tmp_path, many('', 10))
  held = set(names(open_split(tmp_path, 'test')))
  assert held == {
    'cat/0.png',
    'cat/5.png',
    'cat/7.png',
    'cat/8.png',
    'dog/5.png',
    'dog/7.png',
    'dog/8.png',
  }


def test_part_of_a_split_has_all_classes(tmp_path):
  build(tmp_path, many('train/', 60, h=2, w=2) | many('test/', 1))
  part = open_split(tmp_path, 'train[:50%]')
  labels = [part[i]['label'] for i in range(len(part))]
  assert len(part) == 60 and 15 < sum(labels) < 45


def test_files_deep_in_a_class_and_hidden_ones(tmp_path):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  build(
    tmp_path,
    {
      'train/cat/more/deep/9.PNG': noise(),
      'train/cat/.hidden.png': b'',
      'train/.git/x.png': b'',
      'train/_old/x.png': b'',
      'train/top.txt': b'beside the classes',
    },
  )
  source = open_split(tmp_path)
  assert source.classes == ('cat', 'dog')
  assert 'cat/more/deep/9.PNG' in names(source) and len(source) == 5


def test_size_is_the_median_shorter_side_up_to_64(tmp_path):
  sizes = [(10, 50), (20, 12), (30, 30), (14, 99), (90, 13)]  # 10 12 13 14 30
  files = {f'{c}/{i}.png': noise(*s) for c in 'ab' for i, s in enumerate(sizes)}
  build(tmp_path / 'a' / 'train', files)
  build(tmp_path / 'a' / 'test', files)
  source = open_split(tmp_path / 'a')
  assert source.size == (13, 13)
  shapes = {source[i]['image'].shape for i in range(len(source))}
  assert shapes == {(*size, 3) for size in sizes}
  build(tmp_path / 'b', many('train/', 2, h=100, w=70) | many('test/', 1))
  assert open_split(tmp_path / 'b').size == (64, 64)


def test_channels(tmp_path):
  grey = noise(channels=1)
  files = {f'train/{c}/{i}.png': grey for c in 'ab' for i in range(2)}
  build(tmp_path, files | many('test/', 1, 'ab'))
  source = open_split(tmp_path)
  assert source.channels == 1
  assert (source[0]['image'] == grey[..., None]).all()
  build(tmp_path, {'train/b/colour.png': noise()})
  source = open_split(tmp_path)
  assert source.channels == 3
  assert (source[0]['image'] == grey[..., None].repeat(3, -1)).all()


def test_fingerprint(tmp_path):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  first = open_split(tmp_path).fingerprint
  assert open_split(tmp_path).fingerprint == first
  seen = {first, open_split(tmp_path, 'test').fingerprint}
  for change in (
    {'train/cat/0.png': noise(seed=77)},  # of the same size in bytes or not
    {'train/cat/5.png': noise()},
    {'train/eel/0.png': noise()},
  ):
    build(tmp_path, change)
    seen.add(open_split(tmp_path).fingerprint)
  (tmp_path / 'train/cat/5.png').rename(tmp_path / 'train/cat/6.png')
  seen.add(open_split(tmp_path).fingerprint)
  assert len(seen) == 6


def test_fingerprint_sees_one_pixel(tmp_path):
  image = noise()
  build(tmp_path, many('train/', 1) | many('test/', 1))
  build(tmp_path, {'train/cat/0.png': encode(image, compress_level=0)})
  path = tmp_path / 'train/cat/0.png'
  before, length = open_split(tmp_path).fingerprint, path.stat().st_size
  image[0, 0, 0] ^= 1
  path.write_bytes(encode(image, compress_level=0))
  assert path.stat().st_size == length
  assert open_split(tmp_path).fingerprint != before


@pytest.mark.parametrize('devices', [1, 4])
def test_cache_or_not_the_batches_are_equal(tmp_path, devices):
  files = {
    f'{c}/{i}.{kind}': encode(noise(9 + i, 12, seed=i), kind)
    for c in 'ab'
    for i, kind in enumerate(['png', 'jpeg', 'webp', 'png', 'png', 'jpeg'])
  }
  build(tmp_path, files)
  batches = []
  for cache_mb in (512, 0):
    source = open_split(tmp_path, cache_mb=cache_mb)
    assert isinstance(source[0]['image'], np.ndarray if cache_mb else bytes)
    mesh = sharding.make_mesh(
      {'data': -1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:devices]
    )
    loader = Loader(
      source=source,
      pipeline=ops.build('', ('decode', 'fit', 'affine', 'range(-1, 1)')),
      size=(8, 8),
      channels=source.channels,
      seed=0,
      batch_size=8,
      sharding=sharding.batch_sharding(mesh),
    )
    batches.append([b for t in range(4) for b in [loader.train_batch(t)]])
  for a, b in zip(*batches, strict=True):
    assert (np.asarray(a['image']) == np.asarray(b['image'])).all()
    assert (np.asarray(a['label']) == np.asarray(b['label'])).all()
    assert np.ptp(np.asarray(a['image'])) > 0.5


def test_a_large_folder_is_sampled(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lib, '_HEADERS', 10)
  build(tmp_path, many('train/', 8) | many('test/', 1))
  source = open_split(tmp_path)
  assert source.size == (6, 6) and source.channels == 3 and len(source) == 16
  assert open_split(tmp_path).fingerprint == source.fingerprint


# --- Kinds of files ---


def exif(orientation):
  result = Image.Exif()
  result[0x0112] = orientation
  return result


def palette(**kwargs):
  image = Image.new('P', (2, 1))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putdata([0, 1])
  return encode(image, **kwargs)


RGBA = np.array([[[255, 0, 0, 255], [0, 0, 255, 0], [0, 0, 0, 51]]], np.uint8)
LA = np.array([[[0, 255], [0, 0], [100, 255], [0, 51]]], np.uint8)
HALVES = np.zeros((16, 32, 3), np.uint8)
HALVES[:, 16:] = 255
FRAMES = [Image.fromarray(noise(seed=s)) for s in range(3)]
ANIMATED = {'save_all': True, 'append_images': FRAMES[1:], 'duration': 100}
WIDE = np.array([[0, 257 * 100, 65535]], np.uint16)
RED = np.full((8, 8, 3), [255, 0, 0], np.uint8)


@pytest.mark.parametrize(
  'content, expected, near',
  [
    (palette(), [[[255, 0, 0], [0, 0, 255]]], 0),
    (palette(transparency=1), [[[255, 0, 0], [255, 255, 255]]], 0),
    (encode(RGBA), [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]], 0),
    (encode(RGBA, 'webp', lossless=True, exact=True), None, 0),
    (encode(LA), [[[g] * 3 for g in (0, 255, 100, 204)]], 0),
    (encode(WIDE), [[[g] * 3 for g in (0, 100, 255)]], 0),
    (
      cv2.imencode('.png', WIDE[..., None].repeat(3, -1))[1].tobytes(),
      [[[g] * 3 for g in (0, 100, 255)]],
      0,
    ),
    (
      encode(Image.fromarray(np.array([[False, True]]))),
      [[[0] * 3, [255] * 3]],
      0,
    ),
    (encode(noise(channels=1)), noise(channels=1)[..., None].repeat(3, -1), 0),
    (encode(Image.fromarray(RED).convert('CMYK'), 'jpeg'), RED, 3),
    (encode(RED, 'jpeg', quality=95), RED, 3),
    (encode(HALVES, 'jpeg', exif=exif(6)), np.rot90(HALVES, -1), 4),
    (encode(HALVES, 'jpeg', exif=exif(8)), np.rot90(HALVES, 1), 4),
    (encode(HALVES, 'jpeg', exif=exif(3)), HALVES[::-1, ::-1], 4),
    (encode(HALVES, 'jpeg', exif=exif(2)), HALVES[:, ::-1], 4),
    (encode(HALVES, 'png', exif=exif(6)), np.rot90(HALVES, -1), 0),
    (encode(noise(), 'webp', lossless=True), noise(), 0),
    (encode(FRAMES[0], 'webp', lossless=True, **ANIMATED), noise(), 0),
    (encode(FRAMES[0], 'png', **ANIMATED), noise(), 0),
  ],
  ids='palette palette-transparent rgba rgba-webp la grey16 rgb16 bit grey '
  'cmyk jpeg exif6 exif8 exif3 exif2 exif6-png webp webp-animated apng'.split(),
)
def test_kinds(content, expected, near):
  if expected is None:
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
  expected = np.asarray(expected, np.int64)
  pixels = decode(content, 3, 'x')
  assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
  assert np.abs(pixels - expected).max() <= near
  assert header(content, 'x')[0] == expected.shape[:2]
  grey = decode(content, 1, 'x')
  assert grey.shape == (*expected.shape[:2], 1)
  if header(content, 'x')[1]:
    assert (grey == expected[..., :1]).all()


def test_which_kinds_are_grey():
  grey = [LA, WIDE, noise(channels=1), np.array([[True]])]
  assert all(header(encode(image), 'x')[1] for image in grey)
  assert not any(header(x, 'x')[1] for x in (palette(), encode(RGBA)))


def test_all_kinds_in_one_folder(tmp_path):
  files = {
    'a/palette.png': palette(transparency=1),
    'a/rgba.png': encode(RGBA),
    'a/wide.png': encode(WIDE),
    'a/cmyk.jpg': encode(Image.fromarray(RED).convert('CMYK'), 'jpeg'),
    'b/turned.JPEG': encode(HALVES, 'jpeg', exif=exif(6)),
    'b/moving.webp': encode(FRAMES[0], 'webp', lossless=True, **ANIMATED),
  }
  build(tmp_path / 'train', files)
  build(tmp_path / 'test', files)
  source = open_split(tmp_path)
  assert len(source) == 6
  shapes = {n: source[i]['image'].shape for i, n in enumerate(names(source))}
  assert shapes['b/turned.JPEG'] == (32, 16, 3)
  assert shapes['a/palette.png'] == (1, 2, 3)


# --- Mistakes ---

JPEG = encode(noise(64, 64), 'jpeg')
PNG = encode(noise(64, 64))


@pytest.mark.parametrize('cache_mb', [0, 512])
@pytest.mark.parametrize(
  'name, content, says',
  [
    ('empty.png', b'', 'an empty file. Remove or replace it'),
    ('text.png', b'hello, not a picture', 'not an image that can be read'),
    ('head.jpg', JPEG[:20], 'not an image that can be read'),
    ('zeros.webp', bytes(100), 'not an image that can be read'),
  ],
)
def test_files_that_are_not_pictures(tmp_path, name, content, says, cache_mb):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  build(tmp_path, {f'train/dog/{name}': content})
  message = refused(tmp_path, cache_mb=cache_mb)
  assert message.startswith(f'{tmp_path}/train/dog/{name}: {says}')


@pytest.mark.parametrize(
  'name, content',
  [
    ('half.jpg', JPEG[: len(JPEG) // 2]),
    ('half.png', PNG[: len(PNG) // 2]),
    ('flipped.png', PNG[:3000] + bytes([PNG[3000] ^ 255]) + PNG[3001:]),
  ],
)
def test_damaged_pictures(tmp_path, name, content):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  build(tmp_path, {f'train/dog/{name}': content})
  says = f'{tmp_path}/train/dog/{name}: a damaged image ('
  assert refused(tmp_path).startswith(says)
  source = open_split(tmp_path, cache_mb=0)  # seen when it is read
  index = names(source).index(f'dog/{name}')
  with pytest.raises(UserError) as error:
    context = ops.Context((8, 8), 3, key='the key')
    ops.build('', ('decode', 'fit', 'range'))(source[index]['image'], context)
  assert str(error.value).startswith('the key: a damaged image')


def test_damaged_exif(tmp_path):
  """Either read or refused, with a message; never another exception."""
  rng = np.random.default_rng(0)
  for kind in ('png', 'jpeg', 'webp'):
    whole = encode(noise(), kind, exif=exif(6))
    for _ in range(150):
      content = bytearray(whole)
      for place in rng.integers(0, min(len(content), 120), 2):
        content[place] = rng.integers(256)
      for read in (lambda c: header(c, 'x'), lambda c: decode(c, 3, 'x')):
        try:
          read(bytes(content))
        except UserError as error:
          assert str(error).startswith('x: ')
        except UserWarning:  # Pillow's, an error in tests
          pass


def test_several_broken_files_in_one_message(tmp_path):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  broken = [f'train/dog/bad{i}.png' for i in range(3)]
  build(tmp_path, dict.fromkeys(broken, b'text'))
  message = refused(tmp_path)
  assert all(str(tmp_path / name) in message for name in broken)
  assert len(message.splitlines()) == 3
  build(tmp_path, {f'train/cat/bad{i}.png': b'' for i in range(9)})
  lines = refused(tmp_path).splitlines()
  assert len(lines) == 6 and lines[-1] == '... and 7 more'


def test_other_files_are_left_out_with_a_warning(tmp_path, caplog):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  build(tmp_path, {'train/dog/notes.txt': b'x', 'train/dog/Thumbs.db': b'x'})
  with caplog.at_level('WARNING', logger='absl'):
    assert len(open_split(tmp_path)) == 4
  text = caplog.text
  assert 'train/dog: 2 files are not pictures' in text and 'Thumbs.db' in text


def damaged(kind):
  """Files that Pillow and OpenCV answer with other errors than OSError."""
  buffer = io.BytesIO()
  image = Image.fromarray(noise(24, 24))
  if kind == 'exif':  # an offset that points nowhere
    exif = b'Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12'
    image.save(buffer, 'jpeg', exif=exif)
  if kind == 'frame':  # as many channels as it says, but none described
    image.save(buffer, 'jpeg')
    content = buffer.getvalue()
    return content[: content.index(b'\xff\xc0') + 10]
  if kind == 'dds':
    return b'DDS ' + bytes(124)
  return buffer.getvalue()


@pytest.mark.parametrize('kind', ['exif', 'frame', 'dds'])
@pytest.mark.parametrize('crop', ['fit', 'inception_crop(0.08, 0.2)'])
def test_damage_is_a_bad_record_or_is_read(kind, crop):
  """Whatever a damaged picture makes the libraries raise."""
  pipeline = ops.build('ops', ('decode', crop, 'range(-1, 1)'))
  content = damaged(kind)
  try:
    shape = pipeline(content, ops.Context((8, 8), 3, key='a.jpg')).shape
  except BadRecord as error:
    assert str(error).startswith('a.jpg: ')
  else:
    assert kind == 'exif' and shape == (8, 8, 3)


def test_pictures_with_flipped_bytes():
  """Of hundreds of damaged files none raises what is no BadRecord."""
  rng = np.random.default_rng(0)
  whole, seen = {}, 0
  for kind in ('jpeg', 'png', 'webp'):
    buffer = io.BytesIO()
    mode = 'CMYK' if kind == 'jpeg' else 'RGBA'
    Image.fromarray(rng.integers(0, 255, (30, 40, 4), np.uint8), mode).save(
      buffer, kind
    )
    whole[kind] = buffer.getvalue()
  pipeline = ops.build('ops', ('decode', 'inception_crop', 'range(-1, 1)'))
  for number in range(450):
    content = bytearray(whole[('jpeg', 'png', 'webp')[number % 3]])
    for place in rng.integers(0, min(400, len(content)), 4):
      content[place] = rng.integers(0, 256)
    context = ops.Context((8, 8), 3, (number, 0), 'x')
    try:
      pipeline(bytes(content), context)
    except BadRecord:
      seen += 1
  assert 50 < seen < 450


def test_the_fingerprint_does_not_depend_on_the_cache(tmp_path):
  """But it does on a byte within a picture."""
  build(tmp_path, many('train/', 3) | many('test/', 2))
  name = f'folder:{tmp_path}'
  one, other = (
    data.open_split(name, 'train', cache_mb=mb).fingerprint for mb in (0, 9)
  )
  assert one == other
  file = next((tmp_path / 'train' / 'dog').iterdir())
  changed = bytearray(file.read_bytes())
  changed[-20] ^= 1
  file.write_bytes(changed)
  assert data.open_split(name, 'train', cache_mb=0).fingerprint != one


def test_too_many_pixels(tmp_path, monkeypatch):
  monkeypatch.setattr('vit_jax.data.images.MOST_PIXELS', 1000)
  build(tmp_path, many('train/', 1) | many('test/', 1))
  build(tmp_path, {'train/dog/huge.png': noise(40, 40)})
  assert 'dog/huge.png: 40x40 pixels are too many' in refused(tmp_path)


@pytest.mark.parametrize(
  'files, split, says',
  [
    (
      {},
      'train',
      '{0} needs a subfolder of pictures for each class, at least ',
    ),
    ({}, 'train', 'two; it has none'),
    ({'x.png': b''}, 'train', 'it has none'),
    (many('', 3, ('cat',)), 'train', "it has only 'cat'"),
    (many('train/', 3, ('cat',)), 'train', '{0}/train needs a subfolder'),
    (many('', 3) | {'eel/x.txt': b''}, 'train', '{0}/eel: no pictures (.png'),
    (
      many('train/', 2) | many('test/', 1, ('cat', 'eel')),
      'test',
      '{0}/test/eel: no such class in {0}/train',
    ),
    (
      many('train/', 2) | {'test/cat/x.txt': b''},
      'test',
      "split 'test': no pictures in {0}/test.",
    ),
    (
      many('', 9),
      'val',
      "split 'val': {0} has no folder 'val', only all, test, tr",
    ),
    (many('train/', 2) | many('val/', 2), 'tset', "no folder 'tset', only tes"),
    (
      many('train/', 2) | many('test/', 2),
      'train[4:]',
      'selects none of the 4',
    ),
    (many('train/', 2) | many('test/', 2), 'train[', "split 'train['"),
  ],
)
def test_folders_that_will_not_do(tmp_path, files, split, says):
  build(tmp_path, files)
  assert says.format(tmp_path) in refused(tmp_path, split)


def test_a_folder_that_is_not_there(tmp_path):
  missing = tmp_path / 'missing'
  says = f"config.data.name = 'folder:{missing}': no such folder."
  assert refused(missing) == says
  (tmp_path / 'file').write_text('')
  assert 'no such folder' in refused(tmp_path / 'file')
  assert 'no such folder' in refused('')


@pytest.mark.parametrize('holdout', [0.0, 1.0, -1.0, 20.0])
def test_holdout_is_a_fraction(tmp_path, holdout):
  build(tmp_path, many('', 2))
  assert f'config.data.holdout = {holdout}' in refused(
    tmp_path, holdout=holdout
  )


def test_stated_numbers_are_checked(tmp_path):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  open_split(tmp_path, examples=4, classes=2)
  open_split(tmp_path, 'test', examples=4, classes=2)
  assert 'config.data.examples = 5' in refused(tmp_path, examples=5)
  assert 'config.data.classes = 3' in refused(tmp_path, classes=3)


def test_a_dangling_link(tmp_path):
  build(tmp_path, many('train/', 2) | many('test/', 1))
  (tmp_path / 'train' / 'dog' / 'link.png').symlink_to('/nowhere/at-all.png')
  assert 'link.png cannot be read' in refused(tmp_path)
