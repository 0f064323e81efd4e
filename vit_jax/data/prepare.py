"""`data prepare`: a tfds data set as array_record, which is read by index."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vit_jax.data import tfds_files
from vit_jax.data.sources import parse_name
from vit_jax.errors import UserError, did_you_mean


def _tfrecords(path: Path) -> Iterator[bytes]:
  """The records of a TFRECORD file: length, its checksum, bytes, checksum."""
  with open(path, 'rb') as file:
    while head := file.read(12):
      length = struct.unpack('<Q', head[:8])[0] if len(head) == 12 else -1
      data = file.read(length) if length >= 0 else b''
      if len(data) != length or len(file.read(4)) != 4:
        raise UserError(f'{path} is cut short. Prepare the data set again.')
      yield data


def _convert_shard(source: Path, target: Path) -> int:
  """Writes the same records as array_record; how many. All or nothing."""
  from array_record.python.array_record_module import ArrayRecordWriter
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  temporary = target.with_name(f'.{target.name}.incomplete')
  writer, count = ArrayRecordWriter(str(temporary), 'group_size:1'), 0
  try:
    for data in _tfrecords(source):
      tf_example_pb2.Example.FromString(data)  # raises if it is damaged
      writer.write(data)
      count += 1
    writer.close()
    temporary.replace(target)
  except DecodeError as error:
    raise UserError(
      f'{source}: record {count} is damaged ({error}).'
    ) from error
  finally:
    temporary.unlink(missing_ok=True)
  return count


def _convert(path: Path, builder: Any) -> str:
  """Writes array_record files beside the TFRECORD ones of a data set."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info

  info, formats = builder.info, tfds.core.FileFormat
  if formats.ARRAY_RECORD in info.available_file_formats():
    return f'{path} has array_record files already'
  if info.file_format != formats.TFRECORD:
    raise UserError(
      f'{path} holds {info.file_format.value} files; only tfrecord is known.'
    )
  shards = [
    (split, number, Path(source))
    for split in info.splits.values()
    for number, source in enumerate(split.filepaths)
  ]
  console = Console(stderr=True)
  for split, number, source in track(
    shards, 'converting', console=console, disable=not console.is_terminal
  ):
    target = source.with_name(source.name.replace('.tfrecord', '.array_record'))
    found, wanted = _convert_shard(source, target), split.shard_lengths[number]
    if found != wanted:
      raise UserError(f'{source} has {found} records, not {wanted}.')
  info.add_alternative_file_format(formats.ARRAY_RECORD)
  dataset_info.write_dataset_info_proto(info.as_proto, dataset_info_dir=path)
  return f'wrote {len(shards)} array_record files to {path}'


def _generate(argument: str, data_dir: str) -> str:
  """Downloads a known data set, or takes it from downloads/manual."""
  import tensorflow_datasets as tfds

  name, _, version = argument.partition(':')
  root = tfds_files.root_of(data_dir)
  try:
    builder = tfds.builder(
      f'{name}:{version}' if version else name,
      data_dir=str(root),
      file_format='array_record',
    )
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'tfds knows no data set {name!r}.'
      + did_you_mean(
        name, tfds.list_builders(with_community_datasets=False)
      ).split(' Choices')[0]
    ) from error
  except (ValueError, AssertionError) as error:
    raise UserError(f'tfds:{argument}: {error}') from error
  try:
    builder.download_and_prepare()
  except ImportError as error:
    raise UserError(
      f'Preparing {name} needs {error.name or "TensorFlow"}: '
      "pip install 'vit_jax[tf]' (not needed to train)."
    ) from error
  except Exception as error:  # of networks, archives, tfds: many kinds
    reason = ' '.join(str(error).split())[:300]
    raise UserError(
      f'{name} could not be prepared: {type(error).__name__}: {reason}'
    ) from error
  return f'prepared {builder.info.full_name} in {builder.data_path}'


def prepare(name: str, data_dir: str) -> str:
  """Makes a data set readable as 'tfds:NAME'; says what it did.

  Of TFRECORD files on disk it writes array_record files beside them, which
  needs no TensorFlow; what is not on disk is prepared by tfds.

  Args:
    name: 'tfds:NAME[/CONFIG][:VERSION]', or 'tfds:/DIRECTORY'.
    data_dir: where data sets are; '': tfds' default.

  Raises:
    UserError: unknown, damaged, or TensorFlow is needed and not installed.
  """
  kind, argument = parse_name(name)
  if kind != 'tfds' or not argument:
    raise UserError(f'{name!r}: write tfds:NAME, as in config.data.name.')
  path = tfds_files.locate(argument, data_dir)
  if path is not None:
    return _convert(path, tfds_files.open_builder(path))
  if argument[:1] in ('/', '.', '~'):
    raise tfds_files.missing(argument, data_dir)
  return _generate(argument, data_dir)
