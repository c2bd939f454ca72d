"""The verb `audit`: text, JSON, page and exit status."""

import json

import numpy as np
import pytest
from PIL import Image
from absl import flags
from absl.testing import flagsaver

from fer_jax import datasets
from fer_jax.commands import audit
from fer_jax.errors import UserError
from fer_jax.evaluation import audit_page


@pytest.fixture(scope='module', autouse=True)
def _flags():
  """The verb's flags, for this module alone."""
  before = set(flags.FLAGS)
  audit.define_flags()
  flags.FLAGS(['test'])
  yield
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A miniature FER2013 of which four PublicTest images are in Training."""
  folder = tmp_path_factory.mktemp('audit')
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (140, 48 * 48))
  images[120:124] = images[:4]
  lines = ['emotion,pixels,Usage']
  for n, image in enumerate(images):
    # As many copies as will be needed: the first class is the largest.
    label = 0 if 60 <= n < 120 else (n - 120 if 120 <= n < 124 else n % 7)
    usage = 'Training' if n < 120 else 'PublicTest'
    lines.append(f'{label},{" ".join(map(str, image))},{usage}')
  source = folder / 'fer2013.csv'
  source.write_text('\n'.join(lines) + '\n')
  datasets.build('fer2013', source=source, data_dir=folder)
  return folder


def _run(place, *arguments, **values):
  values = {key: str(v) for key, v in values.items()}
  values = {'dataset': 'fer2013', **values}
  with flagsaver.flagsaver(data_dir=str(place), **values):
    flags.FLAGS.protocol_option = list(arguments)
    return audit.main(['audit'])


def test_an_honest_protocol_that_leaks_is_exit_status_one(
  place, tmp_path, capsys
):
  status = _run(place, output=tmp_path, json=tmp_path / 'audit.json')
  said = capsys.readouterr().out
  assert status == 1
  assert 'LEAK: protocol fer2013_dev' in said
  result = json.loads((tmp_path / 'audit.json').read_text())
  seen = result['protocols'][0]['figures']['share_of_test_seen']
  assert seen['exact_copy'] == pytest.approx(4 / 20)
  html = (tmp_path / 'audit.html').read_text()
  assert html.count('fer2013/00120 (angry) beside fer2013/00000 (angry)') == 1
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert len(manifest['test']) == 20
  assert (
    manifest['protocol']['digest']
    == result['protocols'][0]['protocol']['digest']
  )
  ledger = (place / 'fer2013' / 'ledger.jsonl').read_text()
  assert json.loads(ledger.splitlines()[-1])['event'] == 'audited'


def test_without_its_twins_it_passes(place, capsys):
  status = _run(place, 'twins=drop_from_test', protocol='fer2013_dev')
  assert status == 0
  assert 'nothing of its test was found' in capsys.readouterr().out


def test_a_leaky_protocol_stands_beside_the_honest_one(place, capsys):
  status = _run(place, 'test_share=0.1', protocol='oversample_then_split')
  said = capsys.readouterr().out
  assert status == 0
  assert 'oversample_then_split says that it leaks, and it does' in said
  (line,) = [n for n in said.splitlines() if n.startswith('  protocol ')]
  assert line.split() == ['protocol', 'oversample_then_split', 'fer2013_dev']
  assert 'several folds' not in said
  # Of which a mirrored twin is none.
  assert 'the same, without copies and near twins' in said


def test_the_tests_of_all_folds_are_counted(place, capsys):
  _run(place, 'folds=3', 'validation_share=0', protocol='evaluate_on_train')
  (line,) = [n for n in capsys.readouterr().out.splitlines() if 'several' in n]
  assert line.split()[-2:] == ['140', '–']


def test_all_folds_are_audited_or_the_one_that_is_named(
  place, tmp_path, capsys
):
  given = ('folds=3', 'validation_share=0')
  for further, count in (((), 3), (('fold=1',), 1)):
    path = tmp_path / 'audit.json'
    asked = {'protocol': 'kfold_images', 'json': path, 'output': tmp_path}
    _run(place, *given, *further, **asked)
    said = capsys.readouterr().out
    (line,) = [n for n in said.splitlines() if 'folds audited' in n]
    assert line.split()[-4:] == [str(count), 'of', '3', '–']
    result = json.loads(path.read_text())
    figures = result['protocols'][0]['figures']
    assert len(figures['folds']['audited']) == count
    assert len(figures.get('each', [figures])) == count
    assert result['seconds'] > 0
    assert 50 < result['peak_memory_mib'] < 50_000
    html = (tmp_path / 'audit.html').read_text()
    assert f'>{count} of 3</td>' in html
    assert ('Fold 2 of 3 is' if further else 'All folds are') in html


def test_what_a_fold_lacks_is_told():
  each = [
    {'fold': 0, 'absent_classes': {'test': []}},
    {'fold': 2, 'absent_classes': {'test': ['sad', 'fear']}},
  ]
  folds = {'refused': {1: 'protocol kfold_twins leaves no test examples'}}
  figures = {**each[0], 'each': each, 'folds': folds}
  entry = {'protocol': {'name': 'kfold_twins'}, 'figures': figures}
  assert audit._notes(entry) == [
    'kfold_twins, fold 2: no sad, fear in test',
    'kfold_twins, fold 1: not audited: protocol kfold_twins leaves no test '
    'examples',
  ]
  alone = {'absent_classes': {'test': ['sad']}, 'folds': None}
  entry['figures'] = alone
  assert audit._notes(entry) == ['kfold_twins: no sad in test']


def test_a_protocol_that_cannot_tell_and_leaks_is_exit_status_one(
  tmp_path, capsys
):
  """One's own pictures, of which one is in train and in test."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (16, 12, 12, 3), np.uint8)
  pictures[15] = pictures[0]
  for n, picture in enumerate(pictures):
    folder = tmp_path / 'in' / ('train' if n < 12 else 'test') / f'{n % 2}'
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f'{n}.png')
  datasets.build('image_folder', source=tmp_path / 'in', data_dir=tmp_path)
  flagged = _run(
    tmp_path, 'validation_share=0', dataset='image_folder', protocol='official'
  )
  said = capsys.readouterr().out
  assert flagged == 1
  assert (
    'LEAK: protocol official does not say that it leaks, and part of its test '
    'was seen in training (an exact copy 25.0\u00a0%)'
  ) in said
  # Where no near twins are sought, none are left out.
  assert 'the same, without copies  ' in said


def test_photographs_are_shown_small_and_clips_by_their_middle():
  large = np.zeros((900, 600, 3), np.uint8)
  clip = np.stack([np.full((200, 200, 1), n, np.uint8) for n in (1, 2, 3)])
  shown = audit_page.side_by_side(large, clip)
  # The photograph 256 high and 171 wide, a gap of 2, the clip's frame.
  assert shown.shape == (256, 171 + 2 + 200, 3)
  assert set(shown[:200, 173:].ravel()) == {2}


@pytest.mark.parametrize(
  ('leaks', 'found', 'shown'),
  [
    (False, False, 'clean'),
    (False, True, 'leaks'),
    (True, False, 'leaks'),
    (None, False, 'leaks'),
  ],
)
def test_green_is_what_is_honest_by_word_and_by_deed(leaks, found, shown):
  facts = {'leaks': leaks, 'reason': 'Because.'}
  entry = {'protocol': facts, 'figures': {'leak_found': found}}
  html = audit_page._verdict({'protocols': [entry], 'verdict': 'So it is.'})
  assert f'class="notice {shown}"' in html


@pytest.mark.parametrize(
  ('arguments', 'values', 'said'),
  [
    (['folds=two'], {'protocol': 'kfold_images'}, "'two' is no int"),
    (['folds'], {'protocol': 'kfold_images'}, 'NAME=VALUE is expected'),
    (['folds=2'], {}, '--protocol_option needs --protocol'),
    ([], {'protocol': 'kfold_image'}, "did you mean 'kfold_images'"),
    ([], {'classes': 'angry,happpy'}, "has no class 'happpy'"),
    ([], {'dataset': 'fer'}, "no data set 'fer'"),
    ([], {'against': 'jaffe'}, 'no build of jaffe'),
    ([], {'against_checksum': 'abc'}, '--against_checksum needs --against'),
    # A folder that not even root can write.
    ([], {'output': '/proc/self'}, 'cannot write --output /proc/self: No such'),
  ],
)
def test_mistakes(place, arguments, values, said, monkeypatch):
  from fer_jax.data import audit as audit_lib

  # Told before minutes of work.
  monkeypatch.setattr(audit_lib, 'of_dataset', None)
  values = {'dataset': 'fer2013', **values}
  classes = values.pop('classes', None)
  with flagsaver.flagsaver(data_dir=str(place), **values):
    flags.FLAGS.protocol_option = arguments
    if classes:
      flags.FLAGS.classes = classes.split(',')
    with pytest.raises(UserError, match=said):
      audit.main(['audit'])
