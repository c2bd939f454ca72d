"""The wheel: that it builds, and that it is enough by itself."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope='module')
def unpacked(request, tmp_path_factory):
  """The content of the wheel, as pip would lay it out."""
  folder = tmp_path_factory.mktemp('wheel')
  # In a copy: setuptools leaves a build folder where it works.
  source = folder / 'source'
  root = request.config.rootpath
  shutil.copytree(
    root / 'fer_jax',
    source / 'fer_jax',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(root / name, source)
  subprocess.run(
    [
      sys.executable, '-m', 'build', '--wheel', '--no-isolation',
      '--outdir', str(folder), str(source),
    ],
    check=True,
    capture_output=True,
    text=True,
  )  # fmt: skip
  (wheel,) = folder.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / 'site')
  return folder / 'site'


def test_the_layers_import_from_the_wheel_alone(unpacked, tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', 'import fer_jax.nn; print(fer_jax.nn.__file__)'],
    check=True,
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(unpacked)},
  )
  assert done.stdout.startswith(str(unpacked))


def test_types_licence_and_console_script_are_in_the_wheel(unpacked):
  assert (unpacked / 'fer_jax' / 'py.typed').exists()
  (metadata,) = unpacked.glob('fer_jax-*.dist-info')
  assert list(metadata.rglob('LICENSE'))
  entry_points = (metadata / 'entry_points.txt').read_text()
  assert 'fer-jax = fer_jax.__main__:run' in entry_points


def test_no_test_or_config_is_in_the_wheel(unpacked):
  tops = {path.name for path in unpacked.iterdir()}
  assert {t for t in tops if not t.endswith('.dist-info')} == {'fer_jax'}
