"""Mistakes in a config file: one line that names the file and its line."""

import sys

import pytest

# Of ml_collections, which loads config files so.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)


@pytest.mark.parametrize(
  ('mistake', 'line'),
  [
    (
      'config.get_base(model="nope")',
      "config.py line 4: ValueError: unknown model 'nope' (known are ",
    ),
    (
      'config.get_base(nope=3)',
      "line 4: TypeError: get_base() got an unexpected keyword argument 'nope'",
    ),
    (
      'c.optim.update(learning_rate="x")',
      "line 4: TypeError: Could not override field 'learning_rate'",
    ),
    (
      'open("nowhere")',
      'config.py line 4: FileNotFoundError: [Errno 2] No such file or '
      "directory: 'nowhere'\n",
    ),
    (
      'c.optim.learning_rat = 1',
      'line 4: AttributeError: Key "learning_rat" does not exist and cannot be '
      'added since the config is locked. Did you mean "learning_rate" ',
    ),
    (
      'import nowhere',
      "line 4: ModuleNotFoundError: No module named 'nowhere'",
    ),
    (
      'config.load_json("nowhere.json")',
      'fer_jax: config.py line 4: cannot read nowhere.json: ',
    ),
  ],
)
def test_a_mistake_of_get_config_is_told_with_its_line(
  tmp_path, monkeypatch, complaint, mistake, line
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config.py').write_text(
    'from fer_jax import config\ndef get_config():\n'
    f'  c = config.get_base()\n  {mistake}\n  return c\n'
  )
  said = complaint('train', '--config=config.py', '--workdir=w')
  assert line in said
  assert 'Traceback' not in said


@pytest.mark.parametrize(
  ('content', 'line'),
  [
    (
      'def get_config(model):\n  return model\n',
      '--config=c.py: TypeError: get_config() missing 1 required positional '
      "argument: 'model'",
    ),
    (
      'def get_config():\n  return 3\n',
      '--config=c.py: get_config() returned 3; expected the config that ',
    ),
    ('c = 1\n', "module 'config_config' has no attribute 'get_config'\n"),
    ('def get_config(:\n', 'SyntaxError: invalid syntax (c.py, line 1)'),
  ],
)
def test_so_is_one_outside_of_it(
  tmp_path, monkeypatch, complaint, content, line
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'c.py').write_text(content)
  # A file loaded before leaves its names there.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  assert line in complaint('train', '--config=c.py', '--workdir=w')


def test_a_config_json_is_named_alone(tmp_path, monkeypatch, complaint):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'c.json').write_text('{"model": {"name": "nope"}}')
  assert complaint('train', '--config=c.json', '--workdir=w') == (
    'fer_jax: c.json is no config: it names no model and data\n'
  )
