"""A view of some classes, against the rows of the build picked by hand."""

import csv
import json
import sys
import types

import numpy as np
import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import datasets
from fer_jax.commands import data
from fer_jax.data import resident, stream, twins
from fer_jax.datasets import registry
from fer_jax.errors import UserError
from fer_jax.evaluation import evaluate
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.training import loop

pytestmark = pytest.mark.usefixtures('shared_programs')
CLASS_NAMES = ('angry', 'fear', 'happy', 'sad', 'absent')
COUNT = 40
LABELS = np.random.default_rng(0).integers(0, 4, COUNT)
SPLITS = np.array(['train', 'train', 'validation', 'test'])[
  np.arange(COUNT) % 4
]
VOTES = np.random.default_rng(1).integers(0, 9, (COUNT, len(CLASS_NAMES)))
PUBLISHED = {'train': (1, 2, 3, 4, 5), 'test': (6, 7, 8, 9, 10)}


def _image(row: int) -> np.ndarray:
  """Blurred noise: every fifth picture is near to the one before it, every
  seventh is the one before it."""
  row = row - 1 if row % 7 == 0 and row else row
  base = row - 1 if row % 5 == 0 and row else row
  coarse = np.random.default_rng(base).integers(20, 200, (6, 6, 1))
  noise = np.random.default_rng(100 + row).integers(0, 9, (24, 24, 1))
  return (np.kron(coarse, np.ones((4, 4, 1))) + noise).astype(np.uint8)


@pytest.fixture
def build(monkeypatch, tmp_path):
  """Builds the data set `tiny`, with changes to its examples."""

  def build(**columns):
    def examples(source, options, intake):
      for row in range(COUNT):
        yield {
          'id': f'tiny/{row:02d}',
          'label': int(LABELS[row]),
          'official_split': str(SPLITS[row]),
          'image': _image(row),
          'votes': VOTES[row].tolist(),
        } | {name: value(row) for name, value in columns.items()}

    module = types.ModuleType('tiny')
    module.__dict__.update(
      CLASS_NAMES=CLASS_NAMES,
      VERSION='1.0.0',
      DESCRIPTION='tiny',
      LICENCE='none',
      OPTIONS={},
      NEEDS_SOURCE=False,
      OFFICIAL_COUNTS=PUBLISHED,
      examples=examples,
    )
    monkeypatch.setitem(sys.modules, 'tiny_builder', module)
    monkeypatch.setitem(registry._MODULES, 'tiny', 'tiny_builder')
    return datasets.build('tiny', data_dir=tmp_path)

  return build


WANTED = ('sad', 'angry')
ROWS = np.flatnonzero(np.isin(LABELS, (3, 0)))


def _requires_rows(view, rows):
  assert view.table['id'].tolist() == [f'tiny/{row:02d}' for row in rows]
  for read in (view.read, view.read_records):
    for row, image in zip(rows, read(np.arange(len(rows))), strict=True):
      np.testing.assert_array_equal(image, _image(row))


def test_labels_and_images_are_those_of_the_classes(build):
  view = build().with_classes(WANTED)
  assert view.class_names == WANTED
  assert len(view) == view.facts()['examples'] == len(ROWS) < COUNT
  expected = np.array([1, -1, -1, 0])[LABELS[ROWS]]
  np.testing.assert_array_equal(view.table['label'], expected)
  assert view.table['label'].dtype == np.int32
  np.testing.assert_array_equal(view.table['official_split'], SPLITS[ROWS])
  _requires_rows(view, ROWS)
  np.testing.assert_array_equal(view.read([2, 0])[0], _image(ROWS[2]))
  for outside in (len(ROWS), -1):
    with pytest.raises(IndexError):
      view.read([outside])
  view.verify()


def test_images_of_other_shapes_are_read_from_the_records(build):
  # No cache of pixels holds them.
  dataset = build(image=lambda row: _image(row)[: 9 + row])
  assert dataset.shape is None
  view = dataset.with_classes(WANTED)
  for n, row in enumerate(ROWS):
    np.testing.assert_array_equal(view.read([n])[0], _image(row)[: 9 + row])


def test_a_view_of_a_view_is_one_of_the_build(build):
  dataset = build()
  view = dataset.with_classes(('happy', 'sad', 'angry')).with_classes(WANTED)
  once = dataset.with_classes(WANTED)
  _requires_rows(view, ROWS)
  for name, column in once.table.items():
    np.testing.assert_array_equal(view.table[name], column)
  np.testing.assert_array_equal(view.rows, once.rows)
  assert len(view.build()) == COUNT
  assert dataset.build() is dataset


def test_votes_follow_their_classes(build):
  view = build().with_classes(WANTED)
  np.testing.assert_array_equal(view.table['votes'], VOTES[ROWS][:, [3, 0]])
  targets = resident.soft_targets(view, np.arange(len(ROWS)))
  chosen = VOTES[ROWS][:, [3, 0]].astype(float)
  total = chosen.sum(-1)
  assert (total > 0).sum() > 5
  np.testing.assert_allclose(
    targets[total > 0], (chosen / np.maximum(total, 1)[:, None])[total > 0],
    rtol=1e-6,
  )  # fmt: skip


def test_votes_that_are_not_by_class_are_never_taken_for_such(build):
  # Two categories, as many as the view has classes.
  dataset = build(votes=lambda row: [row, 1])
  assert dataset.table['votes'].shape == (COUNT, 2)
  view = dataset.with_classes(WANTED)
  targets = resident.soft_targets(view, np.arange(len(view)))
  np.testing.assert_array_equal(targets, np.eye(2)[view.table['label']])


def test_counts_are_those_of_its_classes(build):
  view = build().with_classes(WANTED)
  for split, counts in view.counts().items():
    here = LABELS[ROWS][SPLITS[ROWS] == split]
    assert counts.tolist() == [np.sum(here == 3), np.sum(here == 0)]
  published = view.official_counts()
  assert {name: list(counts) for name, counts in published.items()} == {
    'train': [4, 1],
    'test': [9, 6],
  }


@pytest.mark.parametrize(
  ('wanted', 'said'),
  [
    (('sad,angry',), "several are a tuple, \\('sad', 'angry'\\)"),
    (('sad', 'angri'), "tiny has no class 'angri'; it has angry, fear"),
    (('sad',), 'classes sad: at least two, each once'),
    (('sad', 'sad'), 'classes sad, sad: at least two, each once'),
    (('sad', 'absent', 'happy'), 'tiny has no example of absent'),
  ],
)
def test_what_makes_no_view_is_named(build, wanted, said):
  with pytest.raises(UserError, match=said):
    build().with_classes(wanted)


def test_its_manifest_is_that_of_its_rows(build):
  dataset = build()
  view = dataset.with_classes(WANTED)

  def rows_of(chosen):
    return list(csv.DictReader(data._manifest(chosen, '.csv').splitlines()))

  whole = {row['id']: row for row in rows_of(dataset)}
  found = rows_of(view)
  assert len(found) == len(ROWS)
  for row in found:
    assert row['label'] == str(WANTED.index(row['class']))
    for name in ('class', 'official_split', 'sha256'):
      assert row[name] == whole[row['id']][name]


def _correlated(images):
  """bool (n, n): which images are, or nearly are, the same."""
  return np.corrcoef(images.reshape(len(images), -1)) >= twins.THRESHOLD


def test_twins_are_those_among_its_rows(build, capsys):
  dataset = build()
  view = dataset.with_classes(WANTED)
  found = twins.find(view)
  images = np.stack([_image(row) for row in ROWS]).astype(float)
  same = (images[:, None] == images[None]).all((2, 3, 4))
  np.testing.assert_array_equal(found.image[:, None] == found.image, same)
  assert found.image.max() + 1 == len(np.unique(found.image))
  near = _correlated(images) & ~same
  assert near.any()
  linked = np.zeros((found.image.max() + 1,) * 2, bool)
  linked[tuple(found.pairs.T)] = True
  linked |= linked.T
  np.testing.assert_array_equal(linked[found.image][:, found.image], near)
  one = np.arange(1)
  everyone = np.arange(len(ROWS))
  np.testing.assert_array_equal(found.exact_among(everyone, one), same[:, 0])
  # Those of the build are kept, and serve every view of it.
  assert 'comparing 40 images' in capsys.readouterr().err
  twins.find(view.with_classes(('angry', 'sad')))
  assert 'comparing' not in capsys.readouterr().err


def test_streamed_and_resident_batches_are_of_its_rows(build):
  view = build().with_classes(WANTED)
  index = np.arange(len(view))[::-1]
  made = resident.load_resident(view, index, image_size=(24, 24), channels=1)
  for n, row in enumerate(ROWS[::-1]):
    np.testing.assert_array_equal(made['image'][n], _image(row))
  batches = stream.Stream(
    view, index, batch_size=8, image_size=(24, 24), channels=1
  )
  streamed = list(batches.epoch(0))
  for name in ('image', 'target'):
    together = np.concatenate([batch[name] for batch in streamed])
    np.testing.assert_array_equal(together[: len(index)], made[name])
    assert together[0].shape == made[name].shape[1:]


def _config(root, classes):
  config = small_config(root)
  config.data.classes = classes
  config.train.batch_size = 16
  return config


def test_a_run_on_some_classes_resumes_and_is_evaluated(tmp_path):
  classes = ('sad', 'angry', 'happy')
  config = _config(tmp_path / 'data', classes)
  workdir = tmp_path / 'run'
  assert not loop.train(config, workdir, max_seconds=1e-3).finished
  other = _config(tmp_path / 'data', ('angry', 'sad', 'happy'))
  with pytest.raises(UserError, match=r'data\.classes is'):
    loop.train(other, workdir)
  # As config.json gives it, in lists.
  assert loop.train(
    config_lib.load_json(workdir / 'config.json'), workdir
  ).finished
  run = json.loads((workdir / 'run.json').read_text())
  assert run['class_names'] == list(classes)

  build = datasets.load(
    'synthetic_faces', data_dir=tmp_path / 'data', images=160
  )
  names = np.array(build.class_names)[build.table['label']]
  metrics = evaluate.evaluate(workdir, 'test', n_boot=20)
  found = workdir_lib.read_evaluation(workdir, 'test')
  chosen = np.isin(names, classes) & (build.table['official_split'] == 'test')
  np.testing.assert_array_equal(found.ids, build.table['id'][chosen])
  assert [classes[k] for k in found.labels] == names[chosen].tolist()
  assert metrics['class_names'] == list(classes)
  assert metrics['n'] == chosen.sum()
  assert metrics['dataset']['examples'] == np.isin(names, classes).sum()
