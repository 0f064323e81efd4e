"""A data set of TensorFlow Datasets, read from disk without TensorFlow.

Only array_record files can be read by index; data/prepare.py makes them of
TFRECORD files.
"""

import bisect
import hashlib
import itertools
import resource
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data import masks, tfds_features, tfds_files
from vit_jax.data.images import header
from vit_jax.data.sources import Record
from vit_jax.errors import BadRecord, UserError, did_you_mean

_SAMPLE = 64  # records that are looked at when a split is opened


def _ranges(splits: Any, text: str) -> list[tuple[str, int, int]]:
  """(split, start, stop) of each part of an expression such as 'a[:9]+b'."""
  import tensorflow_datasets as tfds

  for part in text.split('+'):
    name = part.partition('[')[0].strip()
    if name not in [*splits, 'all']:
      raise UserError(
        f'split {text!r}: there is no split {name!r}.'
        + did_you_mean(name, splits)
      )
  try:
    parts = tfds.core.ReadInstruction.from_spec(text).to_absolute(splits)
  except ValueError as error:
    reason = str(error).splitlines()[-1].partition(' See format')[0]
    raise UserError(
      f'split {text!r}: {reason.rstrip(".")}. Write '
      "'train', 'train[1150:]', 'train[:90%]' or 'train[:50%]+test'."
    ) from error
  result = []
  for part in parts:
    whole = splits[part.splitname].num_examples
    start, stop = part.from_ or 0, whole if part.to is None else part.to
    if start >= stop:
      raise UserError(
        f'split {text!r} selects none of the {whole} examples of '
        f'{part.splitname!r}.'
      )
    result.append((part.splitname, start, stop))
  return result


def _check_files(paths: list):
  """All shards are there, and may be open at once (often: 1,024 files)."""
  gone = [path for path in paths if not path.exists()]
  if gone:
    raise UserError(
      f'{gone[0]} is missing, and so are {len(gone) - 1} more of the '
      f'{len(paths)} files of the split.'
    )
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return
  wanted = soft + len(paths)
  if hard != resource.RLIM_INFINITY:
    if len(paths) + 64 > hard:
      raise UserError(
        f'The split has {len(paths)} files, but this process may open {hard}: '
        "raise the limit (ulimit -Hn), or use fewer by a split 'train[:50%]'."
      )
    wanted = min(wanted, hard)
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Tfds:
  """NAME[/CONFIG][:VERSION] as TensorFlow Datasets prepared it.

  Found below `data_dir` (default: TFDS_DATA_DIR or ~/tensorflow_datasets), or
  the directory itself. Any split expression of tfds; image and label are the
  data set's supervised keys unless named. Encoded images come as their bytes,
  for the op 'decode'. Python keeps one object a shard, none a record.

  A `label_feature` may be one of masks: an image of one channel, or integers
  (h, w). The first class then has the number `mask_start`; they are named by
  the feature, a LabeledImage, or by `mask_names`. Numbers below `mask_start`
  and those of `mask_ignore` are not counted.

  Attributes:
    masks: whether labels are masks.
  """

  def __init__(
    self,
    argument: str,
    split: str,
    *,
    data_dir: str = '',
    image_feature: str = '',
    label_feature: str = '',
    mask_names: tuple[str, ...] = (),
    mask_start: int = 0,
    mask_ignore: tuple[int, ...] = (255,),
  ):
    import tensorflow_datasets as tfds
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    path = tfds_files.locate(argument, data_dir)
    if path is None:
      raise tfds_files.missing(argument, data_dir)
    builder = tfds_files.open_builder(path)
    info = builder.info
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
      raise UserError(
        f'{path} holds {info.file_format.value} files, which cannot be read by '
        f'index: {tfds_files.command(argument, data_dir)} writes array_record '
        'beside them.'
      )
    ranges = _ranges(info.splits, split)
    self._image = tfds_features.choose(info, 0, image_feature)
    self._label = tfds_features.choose(info, 1, label_feature)
    self._parse = tf_example_pb2.Example.FromString
    self._errors = (RuntimeError, ValueError, LookupError, DecodeError)
    feature, labels = (info.features[n] for n in (self._image, self._label))
    self.masks = not tfds_features.is_label(labels)
    # What reads pixels that are not an encoded image.
    self._tensors = {
      name: tfds.features.FeaturesDict({name: info.features[name]})
      for name in (self._image, self._label)
      if type(info.features[name]) is tfds.features.Tensor
    }
    self._records = builder.as_data_source(
      split,
      file_format='array_record',
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    _check_files(info.splits[split].filepaths)
    self._name = f'tfds:{info.full_name}'
    self._parts = [(name, start) for name, start, _ in ranges]
    self._ends = [*itertools.accumulate(stop - a for _, a, stop in ranges)]
    names = tfds_features.names(self._label, labels, mask_names)
    self.classes = names
    if self.masks:
      masks.check_numbers(mask_start, mask_ignore)
      values = range(mask_start, mask_start + len(names))
      self._table = masks.table(values, mask_ignore, mask_start)
    self._survey(feature.shape, self._metadata(info, ranges, path))

  def _metadata(self, info: Any, ranges: list, path: Path) -> Any:
    """A hash of what tfds wrote down about the split."""
    what = [self._name, ranges, self.classes, self._image, self._label]
    if self.masks:
      what.append(self._table.tobytes())
    for name in sorted({name for name, _, _ in ranges}):
      split = info.splits[name]
      what += [name, split.shard_lengths, int(split.num_bytes)]
    sha = hashlib.sha256(repr(what).encode())
    sha.update((path / 'features.json').read_bytes())
    return sha

  def _survey(self, shape: tuple[int | None, ...], sha: Any):
    """Size, channels, fingerprint: by the feature's shape, and a sample."""
    count = min(len(self), _SAMPLE)
    sizes, greys, error = [], [], None
    for index in np.linspace(0, len(self) - 1, count).astype(int).tolist():
      try:
        record = self[index]
        size, grey = self._look(record)
      except BadRecord as broken:
        error = broken  # one is the loader's business, all are ours
        continue
      sizes.append(min(size))
      greys.append(grey)
      image, label = record['image'], record['label']
      sha.update(image if isinstance(image, bytes) else image.tobytes())
      sha.update(label.tobytes() if self.masks else f' {label} '.encode())
    if error and not sizes:
      raise error
    self.fingerprint = sha.hexdigest()
    h, w, channels = shape
    side = min(64, round(statistics.median(sizes)))
    self.size = (h, w) if h and w else (side, side)
    grey = channels == 1 or (channels is None and all(greys))
    self.channels = 1 if grey else 3

  @staticmethod
  def _look(record: Record) -> tuple[tuple[int, int], bool]:
    """Size, and whether it is grey."""
    image = record['image']
    if isinstance(image, bytes):
      return header(image, record['key'])
    return image.shape[:2], image.shape[-1] == 1

  def __len__(self) -> int:
    return len(self._records)

  def key(self, index: int) -> str:
    """'tfds:pets/1.0.0 train[1234]': the place in the whole split."""
    part = bisect.bisect_right(self._ends, index)
    name, start = self._parts[part]
    before = self._ends[part - 1] if part else 0
    return f'{self._name} {name}[{start + index - before}]'

  def _stored(self, name: str, data: bytes, fields: Any) -> bytes | np.ndarray:
    """A feature of a record: an encoded image, or an array."""
    if name in self._tensors:
      return self._tensors[name].deserialize_example_np(data)[name]
    return fields[name].bytes_list.value[0]

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = self.key(index)
    try:
      data = self._records[index]
      fields = self._parse(data).features.feature  # 9 x faster than tfds's
      if 'file_name' in fields:  # ReaL labels go by it
        key += f' {fields["file_name"].bytes_list.value[0].decode()}'
      image = self._stored(self._image, data, fields)
      if self.masks:
        label = self._stored(self._label, data, fields)
      else:
        label = fields[self._label].int64_list.value[0]
    except self._errors as error:
      raise BadRecord(
        f'{key}: a damaged record ({error}). Prepare the data set again.'
      ) from error
    if self.masks:
      if isinstance(image, bytes):
        masks.check_upright(image, key)
      label = masks.numbered(label, self._table, len(self.classes), key)
    elif not 0 <= label < len(self.classes):
      raise BadRecord(
        f'{key}: its label is {label}, not one of 0 to '
        f'{len(self.classes) - 1}. Is this a split without labels?'
      )
    return {'image': image, 'label': label, 'key': key}
