"""The `data` verb, through its own flags and through the program."""

import csv
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from absl import flags
from absl.testing import flagsaver

from fer_jax import datasets
from fer_jax.commands import data
from fer_jax.errors import UserError

USAGES = ('Training', 'PublicTest', 'PrivateTest')


@pytest.fixture(scope='module', autouse=True)
def _flags():
  """The verb's flags, for this module alone."""
  before = set(flags.FLAGS)
  data.define_flags()
  # Before Grain, once it is imported, adds its own, which have to stay.
  defined = set(flags.FLAGS) - before
  flags.FLAGS(['test'])
  yield
  for name in defined:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A data folder with a build of fourteen faces of noise, and its csv."""
  root = tmp_path_factory.mktemp('data')
  rng = np.random.default_rng(0)
  lines = ['emotion,pixels,Usage']
  for row in range(14):
    pixels = ' '.join(map(str, rng.integers(0, 256, 2304)))
    lines.append(f'{row % 7},{pixels},{USAGES[row % 2]}')
  source = root / 'fer2013.csv'
  source.write_text('\n'.join(lines) + '\n')
  datasets.build('fer2013', data_dir=root, source=source)
  return root


def _run(action, **values):
  values = {key: str(v) if v is not True else v for key, v in values.items()}
  option = values.pop('option', None)
  with flagsaver.flagsaver(**values):
    if option:
      flags.FLAGS.option = option.split()
    return data.main(['data', *action.split()])


def test_build_prints_counts_and_the_verdict(place, tmp_path, capsys):
  result = tmp_path / 'result.json'
  status = _run(
    'build',
    dataset='fer2013',
    source=place / 'fer2013.csv',
    data_dir=tmp_path,
    json=result,
  )
  assert status == 0
  out = capsys.readouterr().out
  digest = hashlib.sha256((place / 'fer2013.csv').read_bytes()).hexdigest()
  assert digest in out
  assert 'note       layout: csv' in out
  assert 'NOT the official counts (3995, 436, 4097' in out
  assert 'NOT the official ones in train, validation' in out
  assert 'absent (officially 3,589)' in out
  found = json.loads(result.read_text())
  assert found['checksum'] == digest
  assert found['counts'] == {'train': [1] * 7, 'validation': [1] * 7}
  assert found['official'] is False


def test_the_official_counts_are_known_as_such(place, monkeypatch, capsys):
  from fer_jax.datasets import fer2013

  ones = (1,) * 7
  known = {'train': ones, 'validation': ones}
  monkeypatch.setattr(fer2013, 'OFFICIAL_COUNTS', known)
  _run('describe', dataset='fer2013', data_dir=place)
  assert 'class counts: the official ones in every split' in (
    capsys.readouterr().out
  )
  monkeypatch.setattr(fer2013, 'OFFICIAL_COUNTS', {**known, 'test': ones})
  _run('describe', dataset='fer2013', data_dir=place)
  assert 'the official ones, but test is absent' in capsys.readouterr().out


def test_skipped_rows_are_told(place, tmp_path, capsys):
  source = tmp_path / 'fer2013.csv'
  text = (place / 'fer2013.csv').read_text()
  source.write_text(text + '9,1 2 3,Training\n')
  build = {'dataset': 'fer2013', 'source': source, 'data_dir': tmp_path}
  with pytest.raises(UserError, match=r'line 16 .*--skip_bad_rows'):
    _run('build', **build)
  _run('build', **build, skip_bad_rows=True)
  assert '1 bad rows were left out; the first: ' in capsys.readouterr().out


def test_an_unsplit_test_folder_is_told(place, tmp_path, capsys):
  built = datasets.load('fer2013', data_dir=place)
  for number, folder in enumerate(('train/happy', 'test/sad')):
    path = tmp_path / 'in' / folder / 'x.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(built.read([number])[0][..., 0]).save(path)
  build = {'dataset': 'fer2013', 'source': tmp_path / 'in'}
  _run('build', **build, data_dir=tmp_path / 'd')
  out = capsys.readouterr().out
  assert 'cannot be the source of a validation set' in out


def test_list_names_all_and_their_builds(place, tmp_path, capsys):
  assert _run('list', data_dir=place, json=tmp_path / 'r.json') == 0
  out = capsys.readouterr().out
  root = datasets.load('fer2013', data_dir=place).root
  assert str(root) in out
  assert 'synthetic_faces: ' in out
  found = json.loads((tmp_path / 'r.json').read_text())
  assert [entry['name'] for entry in found] == list(datasets.names())
  fer2013 = next(entry for entry in found if entry['name'] == 'fer2013')
  assert fer2013['builds'][0]['rows'] == 14
  _run('list', data_dir=tmp_path / 'nowhere')
  assert 'data build --dataset=fer2013' in capsys.readouterr().out


def test_describe_draws_a_sheet_per_class(place, tmp_path):
  output = tmp_path / 'sheets'
  assert _run('describe', dataset='fer2013', data_dir=place, output=output) == 0
  names = sorted(path.name for path in output.iterdir())
  assert 'fer2013_3_happy.png' in names
  assert 'fer2013_class_balance.png' in names
  assert len(names) == 8
  with Image.open(output / 'fer2013_3_happy.png') as sheet:
    pixels = np.asarray(sheet)
  # Row 3 is the first happy face: its grey, twice as large, opens the sheet.
  first = datasets.load('fer2013', data_dir=place).read([3])[0][..., 0]
  cell = Image.fromarray(first).resize((96, 96), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(pixels[2:98, 2:98, 0], np.asarray(cell))


def test_a_class_may_be_named_like_a_formula(tmp_path):
  source, output = tmp_path / 'in', tmp_path / 'sheets'
  for name in ('$_$', 'sad'):
    (source / name).mkdir(parents=True)
    picture = np.full((8, 8), len(name) * 40, np.uint8)
    Image.fromarray(picture).save(source / name / '1.png')
  datasets.build('image_folder', source=source, data_dir=tmp_path)
  arguments = {'dataset': 'image_folder', 'data_dir': tmp_path}
  assert _run('describe', **arguments, output=output) == 0
  assert len(list(output.iterdir())) == 3


def test_export_manifests(place, tmp_path):
  built = datasets.load('fer2013', data_dir=place)
  digests = [
    hashlib.sha256(image.tobytes()).hexdigest()
    for image in built.read_records(range(14))
  ]
  export = {'dataset': 'fer2013', 'data_dir': place}
  _run('export', **export, output=tmp_path / 'm.csv')
  with (tmp_path / 'm.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['sha256'] for row in rows] == digests
  assert rows[9]['id'] == 'fer2013/00009'
  assert rows[9]['class'] == 'fear'
  assert rows[9]['official_split'] == 'validation'
  _run('export', **export, output=tmp_path / 'm.json')
  manifest = json.loads((tmp_path / 'm.json').read_text())
  assert [row['sha256'] for row in manifest['rows']] == digests
  assert manifest['checksum'] == built.checksum
  _run('export', **export, output=tmp_path / 'm.npz')
  with np.load(tmp_path / 'm.npz', allow_pickle=False) as arrays:
    np.testing.assert_array_equal(arrays['image'], built.read(range(14)))
    assert arrays['label'].tolist() == built.table['label'].tolist()


@pytest.mark.parametrize(
  ('action', 'values', 'reason'),
  [
    ('', {}, 'data needs an action; expected one of build, list'),
    ('biuld', {}, "no action 'biuld'.*did you mean 'build'"),
    ('list all', {}, 'takes one action'),
    ('build', {}, '--dataset is missing'),
    ('build', {'dataset': 'fer13'}, "no data set 'fer13'"),
    ('build', {'dataset': 'fer2013'}, '--source'),
    ('build', {'dataset': 'fer2013', 'source': 'x'}, 'x: no such file'),
    ('describe', {'dataset': 'fer2013'}, 'no build of fer2013'),
    ('export', {'dataset': 'fer2013'}, '--output is missing'),
    ('export', {'dataset': 'fer2013', 'output': 'a.txt'}, '.csv, .json, .npz'),
    ('build', {'dataset': 'fer2013', 'option': 'x'}, 'NAME=VALUE'),
    (
      'build',
      {'dataset': 'fer2013', 'option': 'x=1 x=2'},
      '--option=x=2: x is given twice',
    ),
    (
      'list',
      {'dataset': 'fer2013'},
      '--dataset is for build, describe, export, not for list',
    ),
    (
      'build',
      {'dataset': 'fer2013', 'source': 'x', 'output': 'x'},
      '--output is for describe, export, not for build',
    ),
    (
      'build',
      {'dataset': 'fer2013', 'option': 'x=1', 'source': 'x'},
      "fer2013 has no option 'x'; it takes none",
    ),
    # The names of arguments are no options.
    (
      'describe',
      {'dataset': 'image_folder', 'option': 'checksum=x'},
      "image_folder has no option 'checksum'; it takes classes",
    ),
  ],
)
def test_mistakes_are_one_line(action, values, reason, tmp_path):
  with pytest.raises(UserError, match=reason) as caught:
    _run(action, data_dir=tmp_path, **values)
  assert '\n' not in str(caught.value)


def test_files_that_cannot_be_written(place, tmp_path):
  blocked = tmp_path / 'file'
  blocked.touch()
  with pytest.raises(UserError, match='file'):
    _run('list', data_dir=place, json=blocked / 'r.json')
  build = {'dataset': 'fer2013', 'source': place / 'fer2013.csv'}
  with pytest.raises(UserError, match='file'):
    _run('build', **build, data_dir=blocked)
  # Refused before the build.
  with pytest.raises(UserError, match=r'--json .*no such folder'):
    _run('build', **build, data_dir=tmp_path / 'd', json=tmp_path / 'x' / 'r')
  assert not (tmp_path / 'd').exists()


def test_the_program_prints_no_traceback(tmp_path):
  command = [sys.executable, '-m', 'fer_jax', 'data', 'build']
  done = subprocess.run(
    [
      *command,
      '--dataset=fer2013',
      '--source=absent',
      f'--data_dir={tmp_path}',
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode != 0
  assert done.stderr.strip().endswith('absent: no such file or folder')
  assert len(done.stderr.splitlines()) == 1
