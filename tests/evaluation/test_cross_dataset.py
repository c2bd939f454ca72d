"""A run on other data: classes, copies, looks and what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fer_jax import config as config_lib
from fer_jax import datasets, files
from fer_jax.data import ledger, protocol, resize, twins
from fer_jax.datasets import pictures
from fer_jax.errors import UserError
from fer_jax.evaluation import (
  cross_dataset,
  report,
  runs,
  scores,
  summary,
  wording,
)
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.training.inference import Predictor

N_BOOT = 50
NAME = 'synthetic_faces'
# Larger, in colour and with contempt, unlike what the run was trained on.
OTHER = {
  'images': 32,
  'per_subject': 4,
  'classes': 8,
  'seed': 3,
  'size': 56,
  'channels': 3,
}


PART = workdir_lib.part_on(NAME, '', OTHER)


@pytest.fixture
def copied(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'run')


def _dataset(workdir, options):
  config = config_lib.load_json(workdir / 'config.json')
  return datasets.load(NAME, data_dir=config.data.data_dir, **options)


def _evaluate(workdir, **given):
  given = {'options': OTHER, 'class_map': {'contempt': '-'}} | given
  return cross_dataset.evaluate_on(workdir, NAME, n_boot=N_BOOT, **given)


def test_all_of_another_set_is_scored_and_recorded(copied):
  other = _dataset(copied, OTHER)
  looks = len(ledger.read(other))
  opened = len(ledger.read(other, ledger.OPENED))
  metrics = _evaluate(copied)

  label = other.table['label']
  contempt = other.class_names.index('contempt')
  rows = np.flatnonzero(label != contempt)
  assert metrics['n'] == len(rows)
  assert metrics['left_out'] == {'contempt': 32 - len(rows)}
  assert 0 < len(rows) < 32
  evaluation = workdir_lib.read_evaluation(copied, PART)
  np.testing.assert_array_equal(evaluation.ids, other.table['id'][rows])
  np.testing.assert_array_equal(evaluation.labels, label[rows])
  size = config_lib.load_json(copied / 'config.json').data.image_size
  images = np.stack(
    [resize.convert(i, size=(size, size), channels=1) for i in other.read(rows)]
  )
  logits = Predictor.from_workdir(copied).predict(images)
  np.testing.assert_allclose(evaluation.logits, logits, atol=1e-5)
  assert metrics['accuracy'] == np.mean(logits.argmax(-1) == label[rows])

  assert metrics['split'] == 'all'
  assert metrics['protocol']['name'] == 'cross_dataset'
  # Rendered strangers look as near as copies: none found is no proof.
  assert metrics['protocol']['leaks'] is None
  assert 'saved anew would not be found' in metrics['protocol']['reason']
  assert (
    "not the run's own protocol, official on" in (metrics['protocol']['reason'])
  )
  assert (metrics['copies'], metrics['near_copies']) == (0, None)
  assert metrics['slices'] == {}
  assert metrics['trained_on']['name'] == NAME
  assert metrics['dataset']['checksum'] == other.checksum
  assert metrics['class_map']['happy'] == 'happy'
  assert metrics['class_map']['contempt'] == '-'
  entries = ledger.read(other)[looks:]
  assert len(ledger.read(other, ledger.OPENED)) == opened + 1
  assert [entry['figures']['accuracy'] for entry in entries] == [
    metrics['accuracy']
  ]
  assert (entries[0]['protocol'], entries[0]['split']) == (
    'cross_dataset', 'all'
  )  # fmt: skip
  assert _evaluate(copied)['looks'] == metrics['looks'] + 1
  said = summary.text(metrics)
  assert f'contempt is left out ({32 - len(rows)})' in said
  assert f'look {metrics["looks"]} at exactly these examples of synth' in said
  shown = report.render([runs.read(copied)]).html
  assert 'On other data sets' in shown
  assert 'synthetic_faces, all' in shown
  assert wording.percent(metrics['accuracy']) in shown


def test_the_opening_is_recorded_before_anything_is_read(copied, monkeypatch):
  other = _dataset(copied, OTHER)
  before = len(ledger.read(other, ledger.OPENED))
  opened = []

  def read(predictor, dataset, index):
    opened.append(len(ledger.read(dataset, ledger.OPENED)))
    raise UserError('stop')

  monkeypatch.setattr(cross_dataset.evaluate, 'read', read)
  with pytest.raises(UserError, match='stop'):
    _evaluate(copied)
  assert opened == [before + 1]


def test_no_set_is_opened_whose_figures_have_no_room(copied, monkeypatch):
  other = _dataset(copied, OTHER)
  before = ledger.read(other, ledger.OPENED)

  def refuse(_):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(files.os, 'fsync', refuse)
  with pytest.raises(UserError, match=r'cannot write the fig.*Read-only'):
    _evaluate(copied)
  assert ledger.read(other, ledger.OPENED) == before


def test_one_split_has_its_own_files_and_only_test_is_a_look(copied):
  other = _dataset(copied, OTHER)
  looks = len(ledger.read(other))
  metrics = _evaluate(copied, split='validation')
  assert len(ledger.read(other)) == looks
  assert 'looks' not in metrics
  of_row = other.table['official_split']
  contempt = other.class_names.index('contempt')
  kept = (of_row == 'validation') & (other.table['label'] != contempt)
  assert metrics['n'] == kept.sum()
  assert (copied / f'predictions_{PART}_validation.npz').exists()
  assert (copied / f'metrics_{PART}_validation.json').exists()
  assert not (copied / f'metrics_{PART}.json').exists()
  flipped = _evaluate(copied, split='validation', augmentations=('flip',))
  part = f'{PART}_validation'
  for views, made in (('', metrics), ('_flip', flipped)):
    kept = workdir_lib.read_evaluation(copied, part + views)
    assert kept.metrics['loss'] == made['loss']
  assert metrics['loss'] != flipped['loss']
  shown = report.render([runs.read(copied)]).html
  assert 'synthetic_faces, validation, flip, images 32, ' in shown
  _evaluate(copied, split='test')
  assert [entry['split'] for entry in ledger.read(other)[looks:]] == ['test']


def test_builds_of_other_options_have_files_of_their_own(copied):
  of_32 = _evaluate(copied, split='validation')
  options = OTHER | {'images': 64}
  of_64 = _evaluate(copied, split='validation', options=options)
  for made, given in ((of_32, OTHER), (of_64, options)):
    part = workdir_lib.part_on(NAME, 'validation', given)
    assert workdir_lib.read_evaluation(copied, part).metrics['n'] == made['n']
  assert of_32['n'] < of_64['n']
  shown = report.render([runs.read(copied)]).html
  assert 'images 32, ' in shown
  assert 'images 64, ' in shown
  assert workdir_lib.part_on(NAME, 'test', {}) == f'on_{NAME}_test'


def test_public_test_is_looked_at_as_well(copied, monkeypatch):
  monkeypatch.setattr(protocol.published, 'CHALLENGE', (NAME,))
  other = _dataset(copied, OTHER)
  opened = len(ledger.read(other, ledger.OPENED))
  metrics = _evaluate(copied, split='validation')
  assert len(ledger.read(other, ledger.OPENED)) == opened + 1
  assert ledger.read(other)[-1]['figures']['n'] == metrics['n']
  assert f'look {metrics["looks"]} at exactly' in summary.text(metrics)


def test_every_class_of_the_run_competes(copied):
  mapped = {'contempt': 'sad', 'happy': 'sad', 'fear': '-'}
  metrics = _evaluate(copied, class_map=mapped)
  other = _dataset(copied, OTHER)
  names = Predictor.from_workdir(copied).class_names
  expected = [
    names.index(mapped.get(name, name))
    for name in np.array(other.class_names)[other.table['label']]
    if name != 'fear'
  ]
  evaluation = workdir_lib.read_evaluation(copied, PART)
  np.testing.assert_array_equal(evaluation.labels, expected)
  said = evaluation.logits.argmax(-1)
  missing = [names.index('happy'), names.index('fear')]
  assert metrics['predicted_elsewhere'] == np.isin(said, missing).sum()
  assert metrics['accuracy'] == np.mean(said == expected)
  assert metrics['absent_classes'] == [names[k] for k in sorted(missing)]
  text = summary.text(metrics)
  assert 'happy counts as sad, contempt counts as sad, fear is left' in text
  # The other set has both of them.
  assert f'predictions are classes that no class of {NAME} counts as' in text


def test_copies_of_what_trained_are_found_and_left_out_of_a_slice(copied):
  # The first 80 of the run's own 160 images.
  config = config_lib.load_json(copied / 'config.json')
  options = dict(config.data.options) | {'images': 80}
  metrics = _evaluate(copied, options=options, class_map={})
  other = _dataset(copied, options)
  own = _dataset(copied, dict(config.data.options))
  of_row = own.table['official_split'][:80]
  np.testing.assert_array_equal(
    np.stack(other.read(range(80))), np.stack(own.read(range(80)))
  )
  unseen = of_row == 'test'
  assert metrics['copies'] == np.sum(~unseen) > 0
  assert metrics['protocol']['leaks'] is True
  chosen = datasets.chosen_options(NAME, options)
  part = workdir_lib.part_on(NAME, '', chosen)
  evaluation = workdir_lib.read_evaluation(copied, part)
  right = evaluation.logits.argmax(-1) == evaluation.labels
  assert evaluation.metrics['accuracy'] == right.mean()
  found = metrics['slices']['without_copies']
  assert found['n'] == unseen.sum() == 8
  assert found['accuracy'] == right[unseen].mean()
  assert 'LEAKS' in summary.text(metrics)


def _blocks(seed):
  """A grey image (48, 48, 1) of blurred noise, unlike that of another seed."""
  coarse = np.random.default_rng(seed).integers(20, 236, (8, 8, 1))
  return np.kron(coarse, np.ones((6, 6, 1))).astype(np.uint8)


def _as_jpeg(image):
  buffer = io.BytesIO()
  Image.fromarray(image[..., 0]).save(buffer, 'JPEG', quality=60)
  return pictures.decode(buffer.getvalue())


# What became of the run's images in the other set, by row modulo 4.
_CHANGES = (
  lambda image: image,
  _as_jpeg,
  lambda image: image[:, ::-1],
  lambda image: 255 - image,
)


@pytest.mark.parametrize('changed', [_CHANGES, _CHANGES[3:]])
def test_photographs_saved_anew_are_found_where_near_twins_are_copies(
  copied, monkeypatch, changed
):
  config = config_lib.load_json(copied / 'config.json')
  own = _dataset(copied, dict(config.data.options))

  def read(self, index):
    images = [_blocks(row) for row in index]
    if self.checksum == own.checksum:
      return images
    return [
      changed[row % len(changed)](image)
      for row, image in zip(index, images, strict=True)
    ]

  monkeypatch.setattr(datasets.Dataset, 'read', read)
  monkeypatch.setattr(twins, 'near_twins_are_copies', lambda dataset: True)
  options = dict(config.data.options) | {'images': 80}
  metrics = _evaluate(copied, options=options, class_map={})
  seen = own.table['official_split'][:80] != 'test'
  kind = np.arange(80) % 4 if len(changed) == 4 else np.full(80, 3)
  assert metrics['copies'] == np.sum(seen & (kind == 0))
  assert metrics['near_copies'] == np.sum(seen & np.isin(kind, (1, 2)))
  if len(changed) == 1:
    assert metrics['protocol']['leaks'] is False
    assert metrics['slices'] == {}
    return
  assert metrics['protocol']['leaks'] is True
  unseen = ~seen | (kind == 3)
  assert metrics['slices']['without_copies']['n'] == unseen.sum()
  assert (
    f'{metrics["near_copies"]} more are near twins'
    in (metrics['protocol']['reason'])
  )
  # Where the other set's strangers look alike, near twins mean nothing.
  monkeypatch.setattr(
    twins, 'near_twins_are_copies', lambda d: d.checksum == own.checksum
  )
  assert _evaluate(copied, options=options, class_map={})['near_copies'] is None


def test_another_build_of_the_runs_source_is_scored_and_leaks(
  copied, monkeypatch
):
  load = datasets.load
  own = json.loads((copied / 'run.json').read_text())['dataset']

  def of_one_source(*args, **options):
    dataset = load(*args, **options)
    dataset.checksum = own['checksum']
    return dataset

  monkeypatch.setattr(cross_dataset.datasets, 'load', of_one_source)
  metrics = _evaluate(copied)
  # Unlike in every pixel, but examples of the same ids.
  evaluation = workdir_lib.read_evaluation(copied, PART)
  config = config_lib.load_json(copied / 'config.json')
  table = _dataset(copied, dict(config.data.options)).table
  trained = table['id'][table['official_split'] != 'test']
  assert 0 < metrics['copies'] == np.isin(evaluation.ids, trained).sum()
  assert metrics['protocol']['leaks'] is True
  # Nor is another set that was built from the same archive the run's own.
  facts = json.loads((copied / 'run.json').read_text())
  facts['dataset'] |= {'name': 'ferplus', 'options': dict(OTHER)}
  (copied / 'run.json').write_text(json.dumps(facts))
  assert _evaluate(copied)['n'] == metrics['n']


@pytest.mark.parametrize(
  ('section', 'field', 'said'),
  [
    ('dataset', 'checksum', 'with checksum elsewhere'),
    ('protocol', 'digest', 'now gives another partition'),
  ],
)
def test_without_the_runs_data_copies_are_not_known(
  copied, section, field, said
):
  facts = json.loads((copied / 'run.json').read_text())
  facts[section][field] = 'elsewhere'
  (copied / 'run.json').write_text(json.dumps(facts))
  metrics = _evaluate(copied)
  assert metrics['copies'] is None
  assert metrics['protocol']['leaks'] is None
  assert 'seen these examples is not known' in metrics['protocol']['reason']
  assert said in metrics['protocol']['reason']
  assert 'not known whether it leaks' in summary.text(metrics)


def test_attributes_make_groups(copied, monkeypatch):
  load = datasets.load

  def with_attribute(*args, **options):
    dataset = load(*args, **options)
    race = np.array(['a', 'b'])[np.arange(len(dataset)) % 2]
    dataset.table['attribute.race'] = race
    return dataset

  monkeypatch.setattr(cross_dataset.datasets, 'load', with_attribute)
  metrics = _evaluate(copied)
  evaluation = workdir_lib.read_evaluation(copied, PART)
  other = _dataset(copied, OTHER)
  first = np.flatnonzero(np.isin(other.table['id'], evaluation.ids)) % 2 == 0
  right = evaluation.logits.argmax(-1) == evaluation.labels
  found = metrics['groups']['race']['groups']['a']
  assert (found['n'], found['accuracy']) == (first.sum(), right[first].mean())


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ({'class_map': {}}, 'the run has no class contempt (it has angry,'),
    ({'class_map': {}}, '--class_map=contempt:CLASS, or leave it out'),
    ({'split': 'dev'}, "no split 'dev'; expected one of all, train, valid"),
    ({'augmentations': ('mirror',)}, "--tta names 'mirror'"),
    ({'options': {'images': 160}, 'class_map': {}}, 'was trained on this very'),
    (
      {'options': OTHER | {'clips': True, 'frames': 2}},
      'was trained on images, but synthetic_faces holds clips',
    ),
    ({'options': {'sizes': 3}}, "no option 'sizes'"),
  ],
)
def test_what_is_refused_leaves_no_file_and_no_look(trained, given, said):
  # Of the folder that all builds share.
  other = _dataset(trained, OTHER)
  before = len(ledger.read(other, ledger.OPENED))
  with pytest.raises(UserError) as caught:
    _evaluate(trained, **given)
  assert said in str(caught.value)
  assert '\n' not in str(caught.value)
  assert len(ledger.read(other, ledger.OPENED)) == before
  assert not list(trained.glob('*_on_*'))


def test_a_split_of_classes_left_out_is_empty(trained):
  names = _dataset(trained, OTHER).class_names
  with pytest.raises(UserError, match='no example of a class that is scored'):
    _evaluate(trained, class_map=dict.fromkeys(names, '-'))


def test_a_model_that_does_not_take_the_data_says_so(copied, monkeypatch):
  def refuse(*_):
    raise ValueError('the model takes float images')

  monkeypatch.setattr(cross_dataset.evaluate, 'predict_rows', refuse)
  with pytest.raises(UserError, match='does not take what synthetic_faces'):
    _evaluate(copied)

  def damaged(*_):
    raise UserError('records is damaged')

  monkeypatch.setattr(cross_dataset.evaluate, 'predict_rows', damaged)
  with pytest.raises(UserError, match=r'^records is damaged'):
    _evaluate(copied)


def test_classes_map_by_name_and_as_they_are_told():
  theirs = ('surprise', 'happiness', 'anger', 'contempt', 'disgust')
  ours = ('angry', 'happy', 'surprise', 'disgust')
  told = {'happiness': 'happy', 'anger': 'angry', 'contempt': '-'}
  labels = cross_dataset.run_classes(theirs, ours, told)
  assert labels.tolist() == [2, 1, 0, -1, 3]
  # An equal name is overruled, and two classes may become one.
  labels = cross_dataset.run_classes(theirs, ours, told | {'disgust': 'angry'})
  assert labels.tolist() == [2, 1, 0, -1, 0]


@pytest.mark.parametrize(
  ('told', 'said'),
  [
    ({'joy': 'happy'}, "the data set has no class 'joy'; it has surprise,"),
    ({'happiness': 'hapy'}, "the run has no class 'hapy'"),
    ({'happiness': 'hapy'}, "did you mean 'happy'"),
    ({'contempt': '-'}, 'the run has no class happiness, anger (it'),
  ],
)
def test_a_wrong_class_map_is_one_clear_line(told, said):
  theirs = ('surprise', 'happiness', 'anger', 'contempt')
  with pytest.raises(UserError) as caught:
    cross_dataset.run_classes(theirs, ('angry', 'happy', 'surprise'), told)
  assert said in str(caught.value)


def test_class_maps_are_read_from_the_command_line():
  pairs = ['happiness:happy', ' contempt : - ']
  assert cross_dataset.parse_class_map(pairs) == {
    'happiness': 'happy',
    'contempt': '-',
  }
  for bad in ('happiness', 'happiness:', ':happy'):
    with pytest.raises(UserError, match=f"--class_map has '{bad}'; expected"):
      cross_dataset.parse_class_map([bad])
  with pytest.raises(UserError, match="class 'a' twice"):
    cross_dataset.parse_class_map(['a:b', 'a:c'])


def test_figures_can_be_recomputed_from_the_files(copied):
  metrics = _evaluate(copied)
  evaluation = workdir_lib.read_evaluation(copied, PART)
  again = scores.all_scores(
    evaluation.logits,
    evaluation.labels,
    metrics['class_names'],
    units=evaluation.units,
    n_boot=N_BOOT,
  )
  assert again['confusion'] == metrics['confusion']
  assert again['intervals'] == metrics['intervals']
