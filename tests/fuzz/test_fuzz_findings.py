"""What fuzzing found, each case by name; the readers' limits are in
test_security.py."""

import json
import tarfile
import zipfile

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import datasets, files, forms
from fer_jax.datasets import fer2013, jaffe, sources
from fer_jax.datasets.records import Intake
from fer_jax.errors import UserError
from fer_jax.evaluation import runs, sweeps
from fer_jax.tuning import space


def test_a_whole_number_may_be_written_with_an_exponent():
  """`int('1e1')` raised ValueError, `float(10**400)` OverflowError."""
  given = {'form': 'clips', 'frames': '1e1'}
  assert datasets.resolve_options('ckplus', given)['frames'] == 10
  for value in (10**400, '9' * 400, float('nan'), '1e-1'):
    with pytest.raises(UserError, match='is not a whole number'):
      datasets.resolve_options('ckplus', given | {'frames': value})


def test_a_dotted_capital_i_is_no_letter_of_an_expression(tmp_path):
  """`re.IGNORECASE` took it for an i, and no label is called DİSGUST."""
  (tmp_path / 'KA.Dİ1.39.tiff').write_bytes(b'x')
  intake = Intake()
  with sources.Source(tmp_path) as source:
    assert not list(jaffe.examples(source, {}, intake))
  assert 'a name such as KA.AN1.39.tiff is expected' in intake.first_rejected


@pytest.mark.parametrize('name', ['a' * 256, '../fold_0', '', '.', '/', 'a\0'])
def test_a_member_of_a_cross_validation_is_named_by_its_folder(name):
  """One of 5,000 letters raised OSError, and one may lie anywhere."""
  assert forms.name('fold_0')
  assert not forms.name(name)


def test_a_name_that_is_no_utf_8_is_refused(tmp_path):
  """Its checksum, and its id, could not be encoded."""
  (tmp_path / 'a\udcff.png').write_bytes(b'x')
  with pytest.raises(UserError, match=r"the name 'a\\udcff.png' is not UTF-8"):
    sources.Source(tmp_path)


def test_a_number_that_no_float_holds_is_no_value_of_a_field(tmp_path):
  """`math.isfinite(10**400)` raised OverflowError."""
  value = config_lib.to_json(config_lib.get_base())
  for section, name in (('optim', 'learning_rate'), ('train', 'batch_size')):
    changed = json.loads(json.dumps(value))
    changed[section][name] = -(10**400)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=name):
      config_lib.validate(config_lib.load_json(path))


@pytest.mark.parametrize('seed', [2**32, 2**70])
def test_a_seed_is_one_that_a_key_can_hold(seed):
  """2**32 drew what 0 draws, and 2**70 overflowed once training began."""
  config = config_lib.get_base()
  config.seed = seed
  with pytest.raises(UserError, match=f'seed is {seed}; .* most 4294967295'):
    config_lib.validate(config)


def test_damaged_records_are_one_line(tmp_path):
  """ArrayRecord's RuntimeError, and TFDS' own of its JSON files, got out."""
  options = {'images': 64}
  built = datasets.build('synthetic_faces', data_dir=tmp_path, **options)
  (records,) = built.root.rglob('*.array_record*')
  whole = records.read_bytes()
  changed = bytearray(whole)
  changed[len(changed) // 2] ^= 1
  records.write_bytes(changed)
  with pytest.raises(UserError, match=r'records is damaged .*build again'):
    datasets.load('synthetic_faces', data_dir=tmp_path, **options).read_records(
      range(64)
    )
  records.write_bytes(whole)
  features = records.with_name('features.json')
  features.write_bytes(features.read_bytes().replace(b'Text', b'text'))
  with pytest.raises(UserError, match=r'features\.json is damaged'):
    datasets.load('synthetic_faces', data_dir=tmp_path, **options)


def test_a_zip_that_names_a_member_in_two_ways(tmp_path):
  """The second name was decoded where nobody looked for UnicodeDecodeError."""
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('é.txt', b'x')
  content = path.read_bytes()
  path.write_bytes(content.replace('é'.encode(), b'\x80\x80', 1))
  with (
    sources.Source(path) as source,
    pytest.raises(UserError, match='cannot be read'),
  ):
    source.read('é.txt')


def test_a_range_has_ends_that_a_float_holds():
  domains = {'optim.learning_rate': space.uniform(0.1, 10**400)}
  with pytest.raises(UserError, match='expected two finite numbers'):
    space.Space(domains, config_lib.get_base())


def test_a_damaged_deflate_stream_is_a_damaged_npz(tmp_path):
  """zlib.error is neither OSError nor ValueError."""
  path = tmp_path / 'x.npz'
  np.savez_compressed(path, a=np.arange(1000))
  content = bytearray(path.read_bytes())
  content[60:70] = b'\xff' * 10
  path.write_bytes(content)
  with pytest.raises(UserError, match=r'x\.npz is damaged'):
    files.read_npz(path)


@pytest.mark.parametrize('cut', [2 * 1024, 1024 + 257])
def test_a_tar_that_ends_or_breaks_between_members(cut, tmp_path):
  """`tarfile` ends its list there without a word: rows would be lost."""
  path = tmp_path / 'x.tar'
  with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as archive:
    for name in ('a', 'b'):
      (tmp_path / name).write_bytes(b'x')
      archive.add(tmp_path / name, name)
  content = bytearray(path.read_bytes())
  if cut == 2048:
    content = content[:cut]
  else:
    content[cut] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match='a damaged tar file'):
    sources.Source(path)


def test_figures_of_another_kind_are_named(tmp_path):
  """A report and a comparison reckon with what they read."""
  (tmp_path / 'config.json').write_text('{"model": {"name": 3}}')
  with pytest.raises(UserError, match=r'config\.json: model\.name is 3, exp'):
    runs.read(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": {"name": "m"}}')
  (tmp_path / 'metrics_test.json').write_text('{"macro": {"recall": "x"}}')
  with pytest.raises(UserError, match=r'metrics_test\.json: macro\.precision'):
    runs.read(tmp_path)


def test_a_workdir_that_no_file_can_be_called_has_no_facts(tmp_path):
  """`Path.is_file` raised OSError: File name too long."""
  trial = {'number': 0, 'state': 'complete', 'params': {}, 'workdir': 'a' * 300}
  content = {'space': {}, 'metric': 'accuracy', 'trials': [trial]}
  (tmp_path / sweeps.FILE).write_text(json.dumps(content))
  assert sweeps.read(tmp_path).facts == {}


def test_a_field_of_pixels_may_be_anything():
  for field in (b'', b' ', b'\xb2' * 2304, b'9' * 100_000):
    with pytest.raises(ValueError, match='pixel'):
      fer2013.parse_pixels(field)
