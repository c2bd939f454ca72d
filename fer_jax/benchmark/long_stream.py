"""Whether a set that no memory holds streams at constant memory.

    python -m fer_jax.benchmark.long_stream --folder=/tmp/long \
      --json=docs/records/long_stream.json

Writes a set of tiny pictures as ArrayRecord, as every build is, in a process
of its own; then streams one epoch of it, in random order and batches, as
training does, and notes rate and resident memory as it goes. What is read are
the records: there is no cache of decoded pixels.
"""

import argparse
import dataclasses
import multiprocessing
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

NAME, VERSION = 'tiny_pictures', '1.0.0'
CLASS_NAMES = ('dark', 'bright')
SIDE = 8


def _examples(count: int) -> Iterator[dict[str, Any]]:
  draws = np.random.default_rng(0)
  for n in range(count):
    label = n % len(CLASS_NAMES)
    image = draws.integers(0, 128, (SIDE, SIDE, 1), np.uint8) + 127 * label
    yield {
      'id': str(n),
      'label': label,
      'official_split': 'train',
      'image': image.astype(np.uint8),
    }


def write(folder: pathlib.Path, count: int) -> None:
  """Writes the set; for a process of its own, whose memory goes with it."""
  from fer_jax.datasets import records

  intake = records.Intake()
  intake.expect(count)
  folder.mkdir(parents=True)
  writer = records.RecordWriter(NAME, folder, CLASS_NAMES, intake, False)
  try:
    writer.write(_examples(count), VERSION)
  finally:
    writer.cache.close()


def opened(folder: pathlib.Path, count: int) -> Any:
  """The set with the table that streaming asks for, and no cache."""
  from fer_jax.datasets.dataset import Dataset

  return Dataset(
    name=NAME,
    version=VERSION,
    checksum='',
    class_names=CLASS_NAMES,
    root=folder,
    options={},
    table={
      'id': np.arange(count, dtype=np.int32),
      'label': (np.arange(count) % len(CLASS_NAMES)).astype(np.int32),
    },
    notes={},
    metadata={'files': {}, 'shape': [SIDE, SIDE, 1]},
  )


def resident_bytes() -> int:
  """Memory of this process; of Linux alone."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmRSS:'):
      return int(line.split()[1]) * 1024
  raise OSError('/proc/self/status has no VmRSS')


@dataclasses.dataclass(frozen=True)
class Look:
  """At one moment of the epoch.

  Attributes:
    images: read so far.
    seconds: since the first batch was asked for.
    resident_bytes: memory of this process.
  """

  images: int
  seconds: float
  resident_bytes: int


def stream(
  folder: pathlib.Path, count: int, *, batch_size: int, looks: int
) -> list[Look]:
  """Streams one epoch.

  Args:
    folder: of `write`.
    count: of its images.
    batch_size: images a batch.
    looks: how many are taken, at equal distances.

  Raises:
    RuntimeError: an image came twice, or with another's label.
  """
  import jax

  from fer_jax.data import stream as stream_lib

  read = stream_lib.Stream(
    opened(folder, count),
    np.arange(count),
    batch_size=batch_size,
    image_size=(SIDE, SIDE),
    channels=1,
    key=jax.random.key(0),
  )
  every = max(read.steps_per_epoch // looks, 1)
  begun, seen, bright, taken = time.monotonic(), 0, 0, []
  for n, batch in enumerate(read.epoch(0), 1):
    real = batch['weight'] > 0
    label = batch['target'][real].argmax(-1)
    if ((batch['image'][real].min((1, 2, 3)) >= 127) != label).any():
      raise RuntimeError(f'batch {n} has images of other labels')
    seen, bright = seen + int(real.sum()), bright + int(label.sum())
    if n % every == 0 or n == read.steps_per_epoch:
      taken.append(Look(seen, time.monotonic() - begun, resident_bytes()))
  if (seen, bright) != (count, count // 2):
    raise RuntimeError(f'{seen} images, {bright} bright, of {count}')
  return taken


def measure(
  folder: pathlib.Path, count: int, *, batch_size: int = 128, looks: int = 40
) -> dict[str, Any]:
  """Writes the set where it is not there, and streams it once."""
  from fer_jax import provenance

  if not folder.exists():
    process = multiprocessing.get_context('spawn').Process(
      target=write, args=(folder, count)
    )
    process.start()
    process.join()
    if process.exitcode:
      raise RuntimeError(f'writing {folder} failed')
  taken = stream(folder, count, batch_size=batch_size, looks=looks)
  return {
    'environment': provenance.environment(),
    'images': count,
    'batch_size': batch_size,
    'record_bytes': sum(
      path.stat().st_size for path in (folder / 'records').rglob('*.array_*')
    ),
    'images_per_second': count / taken[-1].seconds,
    'looks': [dataclasses.asdict(look) for look in taken],
  }


def lines(record: dict[str, Any]) -> list[str]:
  """The record as text."""
  return [
    f'{record["images"]:,} images, {record["record_bytes"] / 1e6:,.0f} MB of '
    f'records: {record["images_per_second"]:,.0f} images/s',
    *(
      f'{look["images"]:>12,} images{look["seconds"]:>8.0f} s'
      f'{look["resident_bytes"] / 2**20:>8,.0f} MiB'
      for look in record['looks']
    ),
  ]


def main() -> None:
  """Writes, streams, prints, and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m fer_jax.benchmark.long_stream',
    description='Streams a set of millions of images at constant memory.',
  )
  parser.add_argument('--folder', required=True, help='where the set is')
  parser.add_argument('--images', type=int, default=2_000_000)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--json', help='file to write the record to')
  values = parser.parse_args()
  from fer_jax import files
  from fer_jax.errors import UserError

  try:
    files.require_writable(values.json)
  except UserError as error:
    parser.error(str(error))
  record = measure(
    pathlib.Path(values.folder), values.images, batch_size=values.batch_size
  )
  print('\n'.join(lines(record)))
  files.write_result(values.json, record)


if __name__ == '__main__':
  main()
