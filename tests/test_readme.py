"""The README's tables are what the records beside it say."""

import pathlib
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TABLES = runpy.run_path(str(ROOT / 'launch' / 'tables.py'))['TABLES']


@pytest.mark.parametrize('name', TABLES)
def test_tables_of_speed_are_those_of_the_records(name):
  lines = TABLES[name]()
  assert len(lines) > 2, 'no record is there'
  missing = set(lines) - set((ROOT / 'README.md').read_text().splitlines())
  assert not missing, f'paste what `python launch/tables.py {name}` prints'
