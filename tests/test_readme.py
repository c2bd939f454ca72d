"""The tables of the pages are what the records beside them say."""

import functools
import json
import pathlib
import re
import runpy

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TABLES = runpy.run_path(str(ROOT / 'launch' / 'tables.py'))['TABLES']


@pytest.mark.parametrize('name', TABLES)
def test_tables_are_those_of_the_records(name):
  lines = TABLES[name]()
  assert len(lines) > 2, 'no record is there'
  shown = [
    line
    for page in ('README.md', 'docs/speed.md', 'docs/models.md')
    for line in (ROOT / page).read_text().splitlines()
  ]
  missing = set(lines) - set(shown)
  assert not missing, f'paste what `python launch/tables.py {name}` prints'
  twice = [line for line in lines[2:] if line and shown.count(line) > 1]
  assert not twice, 'a table is pasted twice'


def test_speeds_of_the_models_are_those_of_the_records():
  page = (ROOT / 'docs' / 'models.md').read_text()
  rows = re.findall(r'^\| `(\w+)` \| P.*\| ([\d,]+) \|$', page, re.MULTILINE)
  assert len(rows) == 11
  for model, rate in rows:
    path = ROOT / 'docs' / 'records' / 'models' / f'{model}_64.json'
    own = json.loads(path.read_text())['train_step']['contenders']['fer_jax']
    assert f'{own["images_per_second"]["median"]:,.0f}' == rate, model


def test_four_seeds_of_a_model_of_ones_own_fit_together(monkeypatch):
  """Traced, not compiled: what the layers compute is tested with them."""
  page = (ROOT / 'docs' / 'models.md').read_text()
  section = page.partition('## Layers in a model of your own')[2]
  code = section.split('```')[1].removeprefix('python')
  monkeypatch.setattr(
    jax, 'jit', lambda f: functools.partial(jax.eval_shape, f)
  )
  said = {}
  exec(compile(code, 'docs/models.md', 'exec'), said)
  assert said['losses'].shape == (4, 3)
