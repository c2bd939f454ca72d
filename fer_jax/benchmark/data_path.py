"""From what the user downloads to batches: building, opening, reading."""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from fer_jax import datasets, files
from fer_jax.benchmark import contest, published_layouts
from fer_jax.benchmark.contenders import data_set
from fer_jax.benchmark.contest import Contender, Effort
from fer_jax.benchmark.rounds import spread

MODULE = 'fer_jax.benchmark.contenders.data_set'
STEP_MODULE = 'fer_jax.benchmark.contenders.own'
STEP = 'train_step'

READERS = ('cache', 'records', 'stream_cache', 'stream_records')
NO_CACHE = 'images of different sizes, or too many, have no decoded cache'


@dataclasses.dataclass(frozen=True)
class Published:
  """A data set as published.

  Attributes:
    dataset: its name.
    write: lays it out in a folder, of about a number of examples.
    options: of its builder.
  """

  dataset: str
  write: Callable[[pathlib.Path, int], None]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


SETS = {
  'fer2013': Published('fer2013', published_layouts.fer2013),
  'ferplus': Published('ferplus', published_layouts.ferplus),
  'rafdb': Published('rafdb', published_layouts.rafdb),
  'ckplus': Published('ckplus', published_layouts.ckplus),
  # One length, so that a batch is a known number of frames.
  'ckplus_clips': Published(
    'ckplus', published_layouts.ckplus, {'form': 'clips', 'frames': 16}
  ),
  'jaffe': Published('jaffe', published_layouts.jaffe),
  'oahega': Published('oahega', published_layouts.oahega),
  'image_folder': Published('image_folder', published_layouts.image_folder),
}


def measure(
  case: dict,
  effort: Effort,
  *,
  examples: int,
  names: Sequence[str] = tuple(SETS),
) -> dict:
  """Times building, opening and reading of data sets that it makes itself.

  All is read from files that were just written, so from the system's memory
  rather than from a disk. A batch is `case['batch_size']` images; of clips as
  many as have about so many frames, each counted as an image.

  Args:
    case: see `fer_jax.benchmark.contenders`; the model whose training step
      stands beside the readers, with augmentation.
    effort: how long is measured.
    examples: of each set; CK+ has a sixteenth of it as sequences.
    names: of `SETS`.

  Returns:
    'examples', and 'sets': for each set what it is ('dataset', 'options',
    'examples', 'images', 'shape', 'source_bytes', 'build_bytes') and

    'build'    'seconds_per_step' (of a build), 'images_per_second' and
               'source_bytes_per_second', spreads over rounds
    'opening'  'seconds_per_step' (of `datasets.load`)
    'reading'  what `contest.hold` returns, the reference being the training
               step on as many images: 'speedup_of_reference' is the share of
               its time that reading a batch for it takes

    all with 'peak_memory_bytes', of a process that did this alone.

  Raises:
    WorkerError: a set could not be built or read.
    UserError: the files could not be written.
  """
  sets = {}
  for name in names:
    with tempfile.TemporaryDirectory(prefix='fer_jax_data_') as folder:
      sets[name] = _measure_set(
        name, pathlib.Path(folder), case, effort, examples
      )
  return {'examples': examples, 'sets': sets}


def _measure_set(
  name: str, folder: pathlib.Path, case: dict, effort: Effort, examples: int
) -> dict:
  published = SETS[name]

  def say(line: str) -> None:
    print(f'{name}: {line}', file=sys.stderr)

  say('writing its files')
  source, data_dir = folder / 'source', folder / 'data'
  with files.writing(f'a data set to measure into {source}'):
    published.write(source, examples)
  own = {
    'dataset': published.dataset,
    'options': published.options,
    'source': str(source),
    'data_dir': str(data_dir),
    'input_shape': case['input_shape'],
    'seed': case['seed'],
  }
  build = _alone('build', own, effort, say)
  dataset = datasets.load(
    published.dataset, data_dir=data_dir, **published.options
  )
  frames = 1
  if dataset.is_clips:
    frames = int(dataset.table['frame_count'].max())
  images = len(dataset) * frames
  source_bytes = _size(source)
  build |= {
    'images_per_second': spread([images / s for s in build['rounds']]),
    'source_bytes_per_second': spread(
      [source_bytes / s for s in build['rounds']]
    ),
  }
  opening = _alone('open', own, effort, say)
  own['batch_size'] = max(1, case['batch_size'] // frames)
  step_images = own['batch_size'] * frames
  step = {**case, 'what': 'whole', 'batch_size': step_images}
  cached = data_set.has_cache(dataset)
  readers = [r for r in READERS if cached or not r.endswith('cache')]
  reading = contest.hold(
    [
      Contender(STEP, STEP_MODULE, step),
      *(Contender(r, MODULE, {**own, 'what': r}) for r in readers),
    ],
    effort,
    images=step_images,
    say=say,
  )
  reading['absent'] |= {r: NO_CACHE for r in READERS if r not in readers}
  return {
    'dataset': published.dataset,
    'options': published.options,
    'examples': len(dataset),
    'images': images,
    'shape': dataset.shape,
    'source_bytes': source_bytes,
    'build_bytes': _size(dataset.root),
    'build': build,
    'opening': opening,
    'reading': reading,
  }


def _alone(
  what: str, case: dict, effort: Effort, say: Callable[[str], None]
) -> dict:
  """Figures of one contender that is compared with no other."""
  result = contest.hold(
    [Contender(what, MODULE, {**case, 'what': what})],
    # The first one imports what is imported late; a build is long.
    dataclasses.replace(effort, warm_up=1),
    images=1,
    say=say,
  )
  row = result['contenders'][what]
  # Those of one image, and of the one contender against itself.
  del row['images_per_second'], row['speedup_of_reference']
  return row


def _size(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder."""
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


def lines(result: dict) -> list[str]:
  """The result as text for the terminal."""
  found = [
    f'data sets as published, {result["examples"]} drawn faces or fewer; peak '
    'memory of a process that builds, or reads',
    f'{"":14}{"images":>8}{"build, images/s":>26}{"MB/s":>8}{"opening":>12}'
    f'{"build":>12}{"read":>12}',
  ]
  for name, row in result['sets'].items():
    build, rows = row['build'], row['reading']['contenders']
    rate = build['images_per_second']
    rates = f'{rate["median"]:,.0f} ({rate["min"]:,.0f} to {rate["max"]:,.0f})'
    found.append(
      f'{name:14}{row["images"]:>8,}{rates:>26}'
      f'{build["source_bytes_per_second"]["median"] / 1e6:>8.1f}'
      f'{row["opening"]["seconds_per_step"]["median"] * 1e3:>9.2f} ms'
      f'{_peak([build]):>12}'
      f'{_peak([rows[reader] for reader in READERS if reader in rows]):>12}'
    )
  found += [
    '',
    'reading batches, images/s, and its time as a share of the training '
    "step's on as many images",
    f'{"":14}'
    + ''.join(f'{reader.replace("_", ", "):>22}' for reader in READERS)
    + f'{"training step":>16}',
  ]
  for name, row in result['sets'].items():
    rows = row['reading']['contenders']
    cells = [
      _reader(rows[reader]) if reader in rows else 'none' for reader in READERS
    ]
    step = rows[STEP]['images_per_second']['median']
    found.append(
      f'{name:14}{"".join(f"{cell:>22}" for cell in cells)}{step:>16,.0f}'
    )
  return found


def _reader(row: dict) -> str:
  rate = row['images_per_second']['median']
  return f'{rate:,.0f} {row["speedup_of_reference"]["median"]:>8.2%}'


def _peak(rows: list[dict]) -> str:
  peaks = [row['peak_memory_bytes'] for row in rows]
  return 'unknown' if None in peaks else f'{max(peaks) / 2**20:,.0f} MiB'
