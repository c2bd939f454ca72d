"""Data flows one way: a module imports only from its left."""

import ast
import os
import pathlib
import subprocess
import sys

import fer_jax

ROOT = pathlib.Path(fer_jax.__file__).parent

# Left to right. Rooms of one entry may import each other.
ORDER = (
  ('errors', 'files', 'forms', 'hosts', 'provenance', 'nn', 'metrics'),
  ('datasets',),
  ('data',),
  ('models',),
  ('config', 'config_json'),
  ('training',),
  ('evaluation',),
  ('claims',),
  ('tuning',),
  ('benchmark',),
  ('torture',),
  ('commands',),
  ('__main__',),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def _room(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def _imports(path: pathlib.Path):
  """Rooms of fer_jax that a module imports, wherever in the module."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split('.')
      if parts[0] == 'fer_jax' and len(parts) > 1 and parts[1] in RANK:
        yield parts[1]


def test_every_module_has_a_place_in_the_order():
  rooms = {_room(path) for path in ROOT.rglob('*.py')}
  assert rooms - {'__init__'} == set(RANK)


def test_modules_import_only_from_their_left():
  wrong = [
    f'{path.relative_to(ROOT)} imports {room}'
    for path in ROOT.rglob('*.py')
    if _room(path) != '__init__'
    for room in _imports(path)
    if RANK[room] > RANK[_room(path)]
  ]
  assert wrong == []


def test_nn_and_metrics_import_nothing_else_of_the_package():
  for room in ('nn', 'metrics'):
    paths = [p for p in ROOT.rglob('*.py') if _room(p) == room]
    assert paths
    for path in paths:
      assert set(_imports(path)) <= {room}, path


def test_graphs_are_split_and_merged_in_one_place():
  # `nn` shows other people's code how, `models` traces itself for its layer
  # table, `benchmark` is other people's code.
  elsewhere = ('nn', 'models', 'benchmark')
  for path in ROOT.rglob('*.py'):
    if path == ROOT / 'training' / 'state.py' or _room(path) in elsewhere:
      continue
    for word in ('nnx.split(', 'nnx.merge(', 'nnx.as_pure('):
      assert word not in path.read_text(), path


def test_a_run_does_not_import_pytorch(tmp_path):
  """Which takes seconds wherever it is installed."""
  for package in ('torch', 'tensorflow'):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(f'print("{package}")')
  code = 'import fer_jax.training.loop, fer_jax.evaluation\nprint("then")\n'
  path = os.pathsep.join([str(tmp_path), str(ROOT.parent)])
  done = subprocess.run(
    [sys.executable, '-c', code + 'import torch'],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': path},
  )
  assert done.stdout.split() == ['then', 'torch']
