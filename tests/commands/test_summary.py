"""The summary verb."""

import json
import subprocess
import sys

import jax
import pytest

from fer_jax.commands import summary
from fer_jax.errors import UserError

SMALL = {'input_shape': (16, 16, 1), 'filters': (4, 8), 'blocks': (1, 1)}


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('units=64', ('units', 64)),
    ('filters=32,64', ('filters', (32, 64))),
    ('filters=(32,)', ('filters', (32,))),
    ('head=[8, 4]', ('head', [8, 4])),
    ('dropout = 0.25', ('dropout', 0.25)),
    ('attention=false', ('attention', False)),
    ('attention=True', ('attention', True)),
    ('tokens=rows', ('tokens', 'rows')),
    ('head={[]: 1}', ('head', '{[]: 1}')),  # no literal, but a TypeError
  ],
)
def test_assignments(text, expected):
  assert summary.parse_assignment(text) == expected


@pytest.mark.parametrize('text', ['units', '=3'])
def test_no_assignment(text):
  with pytest.raises(UserError, match='expected FIELD=VALUE'):
    summary.parse_assignment(text)


def test_fields_say_where_they_come_from():
  result = summary.summarise('residual_gru', 5, SMALL)
  assert result['fields']['filters']['value'] == (4, 8)
  assert result['fields']['filters']['default'] == (64, 128, 256)
  assert result['fields']['units']['source'] == 'chosen'
  text = summary.format_summary(result)
  assert 'residual_gru: images 16 x 16 x 1 to 5 classes' in text
  assert 'GRU' in text


def test_unknown_model_and_field_are_user_errors():
  with pytest.raises(UserError, match="did you mean 'residual_gru'"):
    summary.summarise('residual_gruu', 5, {})
  with pytest.raises(UserError, match="did you mean 'units'"):
    summary.summarise('residual_gru', 5, {'unit': 3})


def test_command_line(tmp_path, complaint):
  path = tmp_path / 'summary.json'
  arguments = [
    'summary', '--model=residual_lstm', '--set=filters=4,8', '--set',
    'blocks=1,1', '--num_classes=3', f'--json={path}',
  ]  # fmt: skip
  command = [sys.executable, '-m', 'fer_jax', *arguments]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 'multiply-adds' in result.stdout
  record = json.loads(path.read_text())
  assert record['fields']['blocks']['value'] == [1, 1]
  assert record['layers'][-1]['output_shape'] == [3]

  assert 'no such folder' in complaint(*arguments, f'--json={tmp_path}/a/b')
  assert (
    'kernel_size must be a positive odd int of at most 1000000, got 2'
    in complaint(*arguments, '--set=kernel_size=2')
  )


def test_too_little_memory_of_a_device_is_one_line(monkeypatch, complaint):
  def exhausted(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 7 bytes\nand more')

  monkeypatch.setattr(summary, 'summarise', exhausted)
  said = complaint('summary')
  assert 'a smaller train.batch_size' in said
  assert 'too little memory (RESOURCE_EXHAUSTED: 7 bytes); ' in said
