"""The benchmark of data sets, on a handful of images."""

import importlib
import json

import numpy as np
import pytest

from fer_jax import datasets
from fer_jax.benchmark import contest, data_path, rounds
from fer_jax.benchmark.contenders import data_set
from fer_jax.benchmark.contest import Effort
from fer_jax.commands import benchmark
from fer_jax.data import resident
from fer_jax.datasets import building, layout, pictures

CASE = {
  'model': 'residual_lstm',
  'overrides': {
    'input_shape': [8, 8, 1],
    'stem_filters': [2],
    'filters': [2],
    'blocks': [1],
    'units': 2,
    'attention': False,
    'head': [],
  },
  'layers': [],
  'input_shape': [8, 8, 1],
  'dropout': 0.0,
  'num_classes': 7,
  'batch_size': 4,
  'steps_per_dispatch': 8,
  'learning_rate': 1e-3,
  'seed': 0,
}
COUNT = 20
# Examples, shape and format of picture files as published.
PUBLISHED = {
  'fer2013': (20, (48, 48, 1), None),
  'ferplus': (20, (48, 48, 1), None),
  'rafdb': (20, (100, 100, 3), 'JPEG'),
  'ckplus': (6, (490, 640, 1), 'PNG'),
  'ckplus_clips': (2, (16, 490, 640, 1), 'PNG'),
  'jaffe': (20, (256, 256, 1), 'TIFF'),
  'oahega': (20, None, 'PNG'),
  'image_folder': (20, (224, 224, 3), 'JPEG'),
}


def build(name, tmp_path, count=COUNT):
  published = data_path.SETS[name]
  published.write(tmp_path / 'source', count)
  return datasets.build(
    published.dataset,
    data_dir=tmp_path / 'data',
    source=tmp_path / 'source',
    **published.options,
  )


def case_of(name, tmp_path, what):
  published = data_path.SETS[name]
  return {
    'what': what,
    'dataset': published.dataset,
    'options': published.options,
    'source': str(tmp_path / 'source'),
    'data_dir': str(tmp_path / 'data'),
    'batch_size': 3,
    'input_shape': [8, 8, 1],
    'seed': 0,
  }


def test_every_set_has_its_expectation():
  assert set(PUBLISHED) == set(data_path.SETS)


@pytest.mark.parametrize('name', PUBLISHED)
def test_files_are_as_published(name, tmp_path):
  dataset = build(name, tmp_path)
  examples, shape, form = PUBLISHED[name]
  assert (len(dataset), dataset.shape) == (examples, shape)
  assert dataset.metadata['skipped_rows'] == 0
  found = {
    pictures.decode_with_format(path.read_bytes())[1]
    for path in (tmp_path / 'source').rglob('*')
    if layout.is_picture(path.name)
  }
  assert found == ({form} if form else set())
  if name == 'oahega':
    sizes = [image.shape for image in dataset.read(np.arange(20))]
    assert len(set(sizes)) > 5
    assert all(180 <= side <= 220 for size in sizes for side in size[:2])
  expected = {
    'fer2013': {'train', 'validation', 'test'},
    'ferplus': {'train', 'validation', 'test'},
    'rafdb': {'train', 'test'},
    'image_folder': {'train', 'test'},
  }.get(name, {'none'})
  assert set(dataset.table['official_split']) == expected
  assert ('votes' in dataset.table) == (name == 'ferplus')
  assert bool(dataset.attributes) == (name == 'rafdb')
  if name == 'ckplus':
    # A drawing of this size alone has neighbours far nearer to each other.
    image = dataset.read([0])[0].astype(int)
    assert np.abs(np.diff(image, axis=1)).mean() > 3


@pytest.mark.parametrize('what', data_path.READERS)
def test_a_reader_reads_what_is_counted_and_no_more(
  what, tmp_path, monkeypatch
):
  """Rows asked for, and whether they come from the records."""
  build('jaffe', tmp_path, 4)
  rows = {'read': 0, 'read_records': 0}
  fitted = []
  for method in rows:
    original = getattr(datasets.Dataset, method)

    def spy(self, index, original=original, method=method):
      rows[method] += len(index)
      return original(self, index)

    monkeypatch.setattr(datasets.Dataset, method, spy)
  fill = resident.fill_images

  def spy_on_fill(arrays, stored):
    fitted.append(arrays['image'].shape)
    fill(arrays, stored)

  monkeypatch.setattr(resident, 'fill_images', spy_on_fill)
  # So that five steps are two passes and the end of a third.
  monkeypatch.setattr(data_set, 'EPOCH_STEPS', 2)
  run, info = data_set.prepare(case_of('jaffe', tmp_path, what))
  assert info['steps_per_dispatch'] == 1
  assert run(5) > 0
  assert rows['read'] == 15
  assert rows['read_records'] == (15 if what.endswith('records') else 0)
  streamed = what.startswith('stream')
  assert fitted == ([(3, 8, 8, 1)] * 5 if streamed else [])
  assert ('grain' in info['versions']) == streamed


def test_every_build_is_made_anew_and_the_last_one_stays(tmp_path, monkeypatch):
  data_path.SETS['jaffe'].write(tmp_path / 'source', 4)
  made = []
  fill = building._fill
  monkeypatch.setattr(
    building, '_fill', lambda *a: made.append(a[0]) or fill(*a)
  )
  run, _ = data_set.prepare(case_of('jaffe', tmp_path, 'build'))
  assert run(3) > 0
  assert len(made) == 3
  opened = []
  load = datasets.load
  monkeypatch.setattr(
    datasets, 'load', lambda *a, **k: opened.append(load(*a, **k)) or opened[-1]
  )
  run, _ = data_set.prepare(case_of('jaffe', tmp_path, 'open'))
  assert run(2) > 0
  assert [len(dataset) for dataset in opened] == [4, 4]


def test_a_cache_that_is_not_there_is_not_measured(tmp_path):
  build('oahega', tmp_path)
  with pytest.raises(ValueError, match='oahega has no decoded cache'):
    data_set.prepare(case_of('oahega', tmp_path, 'stream_cache'))


@pytest.fixture
def held(monkeypatch):
  """Contests in this process, run once, with figures of our own.

  What takes part: its case, images a step, steps to warm up.
  """
  found = {}

  def hold(contenders, effort, *, images, say):
    for contender in contenders:
      run, info = importlib.import_module(contender.module).prepare(
        contender.case
      )
      # The training step has tests of its own, and compiles for long.
      if contender.module == data_path.MODULE:
        assert run(info['steps_per_dispatch']) > 0
      found[contender.name] = (contender.case, images, effort.warm_up)
    reference = contenders[0].name
    summary = rounds.summarise(
      {contender.name: [0.5, 2.0, 1.0] for contender in contenders},
      images=images,
      reference=reference,
    )
    for row in summary.values():
      row['peak_memory_bytes'] = 1 << 20
    return {'reference': reference, 'contenders': summary, 'absent': {}}

  monkeypatch.setattr(contest, 'hold', hold)
  return found


def test_clips_count_their_frames(held, capsys):
  """A batch of 40 images is two clips of 16, which is what the step is of."""
  result = data_path.measure(
    {**CASE, 'batch_size': 40},
    Effort(warm_up=8),
    examples=48,
    names=['ckplus_clips'],
  )
  assert 'ckplus_clips: writing' in capsys.readouterr().err
  row = json.loads(json.dumps(result))['sets']['ckplus_clips']
  # Three sequences, of which a clip takes 16 of 18 frames.
  assert (row['examples'], row['images']) == (3, 48)
  assert row['shape'] == [16, 490, 640, 1]
  assert row['build']['images_per_second'] == {
    'median': 48.0,
    'min': 24.0,
    'max': 96.0,
  }
  rates = row['build']['source_bytes_per_second']
  assert rates['median'] == row['source_bytes'] > 18 * 3 * 50_000
  assert 'images_per_second' not in row['opening']
  assert row['opening']['rounds'] == [0.5, 2.0, 1.0]
  contenders = list(row['reading']['contenders'])
  assert contenders == ['train_step', *data_path.READERS]
  assert row['reading']['absent'] == {}
  step, images, warm_up = held['train_step']
  assert (step['batch_size'], images, warm_up) == (32, 32, 8)
  assert step['what'] == 'whole'
  reader, images, _ = held['stream_records']
  assert (reader['batch_size'], images) == (2, 32)
  # A build is long.
  assert held['build'][2] == 1


def test_images_of_different_sizes_are_read_from_the_records_alone(held):
  result = data_path.measure(CASE, Effort(), examples=8, names=['oahega'])
  row = result['sets']['oahega']
  assert (row['images'], row['shape']) == (8, None)
  assert held['records'][0]['batch_size'] == held['records'][1] == 4
  reading = row['reading']
  assert list(reading['contenders']) == [
    *('train_step', 'records', 'stream_records')
  ]
  assert list(reading['absent']) == ['cache', 'stream_cache']
  assert 'different sizes' in reading['absent']['cache']
  assert [line for line in data_path.lines(result) if 'oahega' in line]


def test_table():
  spread = {'median': 2000.0, 'min': 1000.0, 'max': 3000.0}
  share = {'median': 0.125, 'min': 0.1, 'max': 0.2}
  reader = {
    'images_per_second': spread,
    'speedup_of_reference': share,
    'peak_memory_bytes': 3 << 20,
  }
  row = {
    'images': 512,
    'build': {
      'images_per_second': spread,
      'source_bytes_per_second': {'median': 1.5e6},
      'peak_memory_bytes': None,
    },
    'opening': {'seconds_per_step': {'median': 0.00125}},
    'reading': {
      'contenders': {
        'train_step': reader,
        'records': reader,
        'stream_records': {**reader, 'peak_memory_bytes': 5 << 20},
      }
    },
  }
  header, _, _, *lines = benchmark.render(
    {
      'machine': {'cpu': 'A CPU', 'cores': 2, 'load_average_before': 0.1},
      'settings': {'model': 'm', 'batch_size': 64, 'rounds': 5},
      'data': {'examples': 512, 'sets': {'oahega': row}},
    }
  ).splitlines()
  assert header == 'm, batch 64, 5 rounds, medians (smallest to largest)'
  assert [' '.join(line.split()) for line in lines[1:]] == [
    'images build, images/s MB/s opening build read',
    'oahega 512 2,000 (1,000 to 3,000) 1.5 1.25 ms unknown 5 MiB',
    '',
    "reading batches, images/s, and its time as a share of the training step's "
    'on as many images',
    'cache records stream, cache stream, records training step',
    'oahega none 2,000 12.50% none 2,000 12.50% 2,000',
  ]
  assert len({len(line) for line in lines[1:3]}) == 1
  assert len(lines[5]) == len(lines[6])
