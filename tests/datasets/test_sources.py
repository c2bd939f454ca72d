"""Sources: every form gives the same members; hostile archives are refused."""

import bz2
import gzip
import hashlib
import io
import os
import pathlib
import tarfile
import unicodedata
import zipfile

import pytest
import trees

from fer_jax.datasets import sources
from fer_jax.errors import UserError

FILES = {
  'a/one.txt': b'first\nsecond\n',
  'a/two.bin': bytes(range(256)) * 3000,
  'b.txt': b'',
}


def _folder(root: pathlib.Path) -> pathlib.Path:
  for name, content in FILES.items():
    path = root / 'in' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  (root / 'in' / '.DS_Store').write_bytes(b'litter')
  return root / 'in'


def _zip(root: pathlib.Path) -> pathlib.Path:
  with zipfile.ZipFile(root / 'in.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in reversed(FILES.items()):
      archive.writestr(name, content)
    archive.writestr('__MACOSX/a/._one.txt', b'litter')
  return root / 'in.zip'


def _tar(root: pathlib.Path, mode: str = '') -> pathlib.Path:
  path = root / f'in.tar.{mode or "plain"}'
  with tarfile.open(path, f'w:{mode}') as archive:
    for name, content in reversed(FILES.items()):
      entry = tarfile.TarInfo(f'./{name}')
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return path


FORMS = {
  'folder': _folder,
  'zip': _zip,
  'tar': _tar,
  'tar.gz': lambda root: _tar(root, 'gz'),
  'tar.bz2': lambda root: _tar(root, 'bz2'),
  'tar.xz': lambda root: _tar(root, 'xz'),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_reads_the_same_members_in_any_order(form, tmp_path):
  path = FORMS[form](tmp_path)
  with sources.Source(path, spool_dir=tmp_path) as source:
    assert source.members == sorted(FILES)
    assert source.size == sum(map(len, FILES.values()))
    for name in [*reversed(source.members), *source.members]:
      assert source.read(name) == FILES[name]
    with source.open('a/one.txt') as stream:
      assert list(stream) == [b'first\n', b'second\n']
  # Nothing was extracted beside the archive.
  assert not any(p.name == 'one.txt' for p in tmp_path.glob('**/*')) or (
    form == 'folder'
  )


@pytest.mark.parametrize('opener', [gzip.open, bz2.open, open])
def test_a_single_file_may_be_compressed(opener, tmp_path):
  path = tmp_path / 'rows.csv.gz'
  with opener(path, 'wb') as file:
    file.write(FILES['a/two.bin'])
  with sources.Source(path) as source:
    (name,) = source.members
    for _ in range(2):
      with source.open(name) as stream:
        assert stream.read() == FILES['a/two.bin']


def test_checksums_follow_contents_and_names(tmp_path):
  file = tmp_path / 'file'
  file.write_bytes(b'abc')
  # FIPS 180-2, appendix B.1.
  known = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  assert sources.Source(file).checksum() == known
  folder = _folder(tmp_path)
  listing = ''.join(
    f'{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n'
    for name in sorted(FILES)
  )
  expected = hashlib.sha256(listing.encode()).hexdigest()
  assert sources.Source(folder).checksum() == expected
  (folder / 'b.txt').rename(folder / 'c.txt')
  assert sources.Source(folder).checksum() != expected


@pytest.mark.parametrize('form', trees.FORMS)
def test_a_name_is_one_however_its_accents_are_written(form, tmp_path):
  checksums = []
  for way in ('NFC', 'NFD'):
    name = unicodedata.normalize(way, 'fröhlich/Zoé.txt')
    path = trees.write(tmp_path / way, {name: b'glad'}, form)
    with sources.Source(path, spool_dir=tmp_path) as source:
      assert source.members == ['fr\xf6hlich/Zo\xe9.txt']
      assert source.read('fr\xf6hlich/Zo\xe9.txt') == b'glad'
      checksums.append(source.checksum())
  # Of an archive it is that of the file.
  assert (checksums[0] == checksums[1]) == (form == 'folder')
  if form != 'tar':
    return
  twice = {unicodedata.normalize(way, 'é'): b'' for way in ('NFC', 'NFD')}
  with pytest.raises(UserError, match='occurs twice'):
    sources.Source(trees.write(tmp_path / 'twice', twice, form))


def test_a_zip_may_have_backslashes_if_it_is_of_windows(tmp_path):
  for system, members in ((0, ['a/b/c.txt']), (3, ['a\\b\\', 'a\\b\\c.txt'])):
    with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as archive:
      for name in ('a\\b\\', 'a\\b\\c.txt'):
        entry = zipfile.ZipInfo(name)
        entry.create_system = system
        archive.writestr(entry, b'')
    with sources.Source(tmp_path / 'in.zip') as source:
      assert source.members == members


def test_nothing_of_a_folder_is_passed_over_in_silence(tmp_path, monkeypatch):
  folder = _folder(tmp_path)
  (folder / 'a' / 'loop').symlink_to(folder)
  assert sources.Source(folder).members == sorted(FILES)
  (folder / 'a' / 'loop').unlink()
  (folder / 'again').symlink_to(folder / 'a')
  with pytest.raises(UserError, match=r'again, by a link; each folder once'):
    sources.Source(folder)
  (folder / 'again').unlink()
  (folder / 'far.png').symlink_to('../annex/far.png')
  with pytest.raises(
    UserError, match=r'far\.png: a link to \.\./annex/far\.png'
  ):
    sources.Source(folder)
  (folder / 'far.png').unlink()
  scandir = os.scandir

  def refusing(path):
    if pathlib.Path(path).name == 'a':
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refusing)
  with pytest.raises(UserError, match=r'in/a: cannot be read \(Permission'):
    sources.Source(folder)


@pytest.mark.parametrize(
  'name', ['../evil', '/evil', 'a/../../evil', 'C:/evil']
)
@pytest.mark.parametrize('kind', ['zip', 'tar', 'tar.gz'])
def test_a_member_outside_its_folder_is_refused(name, kind, tmp_path):
  path = tmp_path / f'in.{kind}'
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('fine', b'x')
      archive.writestr(name, b'x')
  else:
    with tarfile.open(path, 'w:gz' if kind == 'tar.gz' else 'w') as archive:
      for member in ('fine', name):
        entry = tarfile.TarInfo(member)
        archive.addfile(entry, io.BytesIO())
  with pytest.raises(UserError, match='outside its folder'):
    sources.Source(path, spool_dir=tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(kind, tmp_path):
  with tarfile.open(tmp_path / 'in.tar', 'w') as archive:
    entry = tarfile.TarInfo('link')
    entry.type, entry.linkname = kind, '/etc/passwd'
    archive.addfile(entry)
  with pytest.raises(UserError, match="'link' is a link"):
    sources.Source(tmp_path / 'in.tar')


def test_links_in_a_zip_are_refused(tmp_path):
  entry = zipfile.ZipInfo('link')
  entry.external_attr = 0o120777 << 16
  with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as archive:
    archive.writestr(entry, '/etc/passwd')
  with pytest.raises(UserError, match="'link' is a link"):
    sources.Source(tmp_path / 'in.zip')


@pytest.mark.parametrize('form', ['zip', 'tar.gz'])
def test_a_bomb_is_refused(form, tmp_path, monkeypatch):
  # The limit is lowered rather than a gigabyte written.
  monkeypatch.setattr(sources, '_SUSPECT_BYTES', 1 << 20)
  path = tmp_path / 'in'
  blank = bytes(8 << 20)
  if form == 'zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('blank', blank)
  else:
    with gzip.open(path, 'wb') as file:
      file.write(blank)
  with pytest.raises(UserError, match='unpack to'):
    sources.Source(path, spool_dir=tmp_path)


def test_damage_is_one_line(tmp_path):
  packed = _zip(tmp_path)
  content = bytearray(packed.read_bytes())
  with zipfile.ZipFile(packed) as archive:
    at = archive.getinfo('a/two.bin').header_offset + 60
  content[at] ^= 0xFF
  packed.write_bytes(content)
  with sources.Source(packed) as source:
    with pytest.raises(UserError, match=r"member 'a/two.bin': cannot be read"):
      source.read('a/two.bin')
    with (
      source.open('a/two.bin') as stream,
      pytest.raises(UserError, match='cannot be read'),
    ):
      stream.read()


@pytest.mark.parametrize('form', ['zip', 'tar', 'tar.gz', 'tar.bz2', 'tar.xz'])
def test_a_cut_archive_is_one_line(form, tmp_path):
  path = FORMS[form](tmp_path)
  # A plain tar ends in 10 KB of padding, which it can lose unharmed.
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'damaged|cut|cannot be read'):
    sources.Source(path, spool_dir=tmp_path)


def test_what_is_not_there_or_empty(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    sources.Source(tmp_path / 'absent')
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match='an empty folder'):
    sources.Source(tmp_path / 'folder')
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='an empty file'):
    sources.Source(tmp_path / 'file')
  zipfile.ZipFile(tmp_path / 'in.zip', 'w').close()
  with pytest.raises(UserError, match='an empty zip'):
    sources.Source(tmp_path / 'in.zip')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(UserError, match='neither a file nor a folder'):
    sources.Source(tmp_path / 'pipe')
