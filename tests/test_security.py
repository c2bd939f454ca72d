"""Each line of docs/security.md that no other file of tests proves."""

import ast
import io
import json
import math
import os
import pathlib
import re
import tarfile
import zipfile

import h5py
import numpy as np
import pytest

import fer_jax
from fer_jax import __main__ as command_line
from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.datasets import sources
from fer_jax.errors import UserError
from fer_jax.models.pretrained import hdf5
from fer_jax.models.pretrained.files import opened

PACKAGE = pathlib.Path(fer_jax.__file__).parent
ROOT = PACKAGE.parent


def test_the_tests_that_the_document_names_are_there():
  text = (ROOT / 'docs' / 'security.md').read_text()
  rows = [line for line in text.splitlines() if line.startswith('| ')][1:]
  assert len(rows) > 15
  for row in rows:
    named = re.findall(r'`(tests/[\w/]+\.py)((?:::\w+)+)`', row)
    assert named, row
    for path, names in named:
      source = (ROOT / path).read_text()
      assert f'def {names.rpartition(":")[2]}(' in source, row


def _modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    yield path, ast.parse(path.read_text())


def _imported(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module.split('.')[0]


def test_no_module_can_execute_what_it_reads():
  picklers = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}
  picklers |= {'marshal', 'yaml', 'code'}
  for path, tree in _modules():
    assert not picklers & set(_imported(tree)), path
    for node in ast.walk(tree):
      if not isinstance(node, ast.Call):
        continue
      name = ast.unparse(node.func)
      assert name not in ('eval', 'exec', 'os.system', 'torch.load'), path
      given = {k.arg: ast.unparse(k.value) for k in node.keywords}
      assert given.get('allow_pickle', 'False') == 'False', path
      assert given.get('shell', 'False') == 'False', path
      if name in ('np.load', 'numpy.load'):
        assert given.get('allow_pickle') == 'False', path


def test_no_module_makes_web_requests():
  clients = {'urllib', 'urllib3', 'http', 'requests', 'ftplib', 'httpx'}
  for path, tree in _modules():
    assert not clients & set(_imported(tree)), path
    calls = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert not [c for c in calls if c.startswith('socket.create_conn')], path


class _Trap:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f'touch {self.path}',)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
  trap = np.array([_Trap(tmp_path / 'sprung')], object)
  np.savez(tmp_path / 'x.npz', logits=trap)
  with pytest.raises(UserError, match=r'x\.npz is damaged \(an array of obj'):
    files.read_npz(tmp_path / 'x.npz')
  assert not (tmp_path / 'sprung').exists()
  # The trap is a real one.
  np.load(tmp_path / 'x.npz', allow_pickle=True)['logits']
  assert (tmp_path / 'sprung').exists()


def _npy(shape, content=b''):
  stream = io.BytesIO()
  header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue() + content


def test_an_npz_is_as_large_as_it_says(tmp_path, monkeypatch):
  path = tmp_path / 'x.npz'
  # 2**62 elements of 4 bytes are 0 in 64 bits.
  for shape in ((2**40,), (2**62,), (2, 3), (-1,)):
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('a.npy', _npy(shape, bytes(8)))
    with pytest.raises(UserError, match='not as many bytes as'):
      files.read_npz(path)
  monkeypatch.setattr(files, '_SUSPECT_BYTES', 1 << 16)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.npy', _npy((1 << 16,), bytes(4 << 16)))
  with pytest.raises(UserError, match=r'bytes unpack to 262,272'):
    files.read_npz(path)


def test_arrays_survive_the_careful_reader(tmp_path):
  arrays = {
    'text': np.array(['é', 'ab']),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'scalar': np.array(3, np.int32),
    'empty': np.zeros((0, 2), np.uint8),
  }
  np.savez_compressed(tmp_path / 'x.npz', **arrays)
  found = files.read_npz(tmp_path / 'x.npz')
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)
    assert found[name].flags.writeable


def test_a_crash_of_the_hdf5_library_is_one_line(tmp_path, monkeypatch):
  path = tmp_path / 'x.h5'
  path.write_bytes(b'x')
  reader = tmp_path / 'reader.py'
  monkeypatch.setattr(hdf5, 'READER', reader)
  reader.write_text('import os; os.abort()')
  with pytest.raises(UserError, match=r'broke down on it .status -6'):
    opened(path).__enter__()
  reader.write_text('import time; time.sleep(60)')
  monkeypatch.setattr(hdf5, 'MOST_SECONDS', 0.1)
  with pytest.raises(UserError, match=r'broke down on it .status -9'):
    opened(path).__enter__()


def test_the_reader_of_hdf5_has_little_memory(tmp_path):
  """Enough for the largest tensor that a backbone has, packed in one piece."""
  path = tmp_path / 'x.weights.h5'
  largest = (1, 1, 1536, 2048)  # of Xception
  with h5py.File(path, 'w') as file:
    layers = file.create_group('layers/conv2d/vars')
    values = np.arange(math.prod(largest), dtype=np.float32).reshape(largest)
    layers.create_dataset('0', data=values, chunks=largest, compression='gzip')
    layers.create_dataset('1', (1 << 27,), np.float32)  # zeros that take none
  with hdf5.layers(path) as (layer,):
    fits, too_large = layer.tensors
    np.testing.assert_array_equal(fits.read(), values)
    with pytest.raises(UserError, match=r'(?i)memory|allocate'):
      too_large.read()


def test_a_bomb_of_weights_is_refused(tmp_path):
  path = tmp_path / 'x.keras'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('model.weights.h5', bytes(1 << 20))
  with pytest.raises(UserError, match='its weights are said to take 1048576'):
    opened(path).__enter__()


def _tar(path, members):
  with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
    for name, headers in members:
      entry = tarfile.TarInfo(name)
      entry.pax_headers = headers
      archive.addfile(entry)
  return path


def test_headers_of_a_tar_are_bounded(tmp_path, monkeypatch):
  path = _tar(tmp_path / 'long.tar', [('a', {'comment': 'x' * 70_000})])
  with pytest.raises(UserError, match='a header of 70,'):
    sources.Source(path)
  # A negative size led back to the same header for ever.
  path = _tar(tmp_path / 'back.tar', [('a', {}), ('b', {})])
  content = bytearray(path.read_bytes())
  content[124:136] = b'\xff' * 10 + b'\xfc\x00'
  content[148:156] = b' ' * 8
  content[148:156] = b'%06o\x00 ' % sum(content[:512])
  path.write_bytes(content)
  with pytest.raises(UserError, match=r'back\.tar: a (cut|damaged) tar file'):
    sources.Source(path)
  monkeypatch.setattr(sources, 'MAX_MEMBERS', 2)
  path = _tar(tmp_path / 'many.tar', [('a', {}), ('b', {}), ('c', {})])
  with pytest.raises(UserError, match='more than 2 members'):
    sources.Source(path)


def test_json_is_bounded(tmp_path, monkeypatch):
  path = tmp_path / 'x.json'
  path.write_text('[' * 100_000)
  with pytest.raises(UserError, match='nested deeper than 64'):
    files.read_json(path)
  path.write_text('[' * 65 + ']' * 65)
  with pytest.raises(UserError, match='nested deeper than 64'):
    files.read_json(path)
  path.write_text('[' * 64 + ']' * 64)
  assert files.read_json(path)
  monkeypatch.setattr(files, 'MOST_JSON_BYTES', 100)
  with pytest.raises(UserError, match='over 100 bytes'):
    files.read_json(path)


def test_a_config_json_is_data(tmp_path, monkeypatch):
  sprung = tmp_path / 'sprung'
  value = config_lib.to_json(config_lib.get_base())
  value['data']['data_dir'] = f"__import__('os').system('touch {sprung}')"
  value['train']['pretrained'] = '{{7*7}}'
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(value))
  config = config_lib.load_json(path)
  assert config.data.data_dir == value['data']['data_dir']
  assert not sprung.exists()


def test_a_message_is_one_printable_line(capsys):
  said = 'x.zip: \x1b]0;title\x07\nmember\u202e "\udcff" ' + 'y' * 5000
  assert command_line._complain(said) == 2
  line = capsys.readouterr().err
  assert line.startswith(
    'fer_jax: x.zip: \\x1b]0;title\\x07 member\\u202e "\\udcff" yyy'
  )
  assert len(line) < 1050
  assert line.count('\n') == 1
