"""The benchmark verb: its flags, its record, its mistakes."""

import importlib
import json
import os

import forked
import pytest

from fer_jax.benchmark import (
  compilation,
  contest,
  population,
  startup,
  train_step,
)
from fer_jax.benchmark.worker import Worker, WorkerError
from fer_jax.commands import benchmark
from fer_jax.errors import UserError
from fer_jax.training import cores

TINY = [
  '--set=input_shape=8,8,1',
  '--set=stem_filters=2,',
  '--set=filters=4,',
  '--set=blocks=1,',
  '--set=units=3',
  '--set=attention=false',
  '--set=head=()',
]


def test_record_of_a_whole_run(tmp_path):
  target = tmp_path / 'record.json'
  status, said, complaints = forked.Command(
    *['benchmark', *TINY],
    *['--model=residual_lstm', '--batch_size=32', '--peers=flax'],
    *['--what=train_step,population', '--members=3'],
    *['--rounds=2', '--warm_up=1', '--turn_seconds=0'],
    '--steps_per_dispatch=3',
    *[f'--json={target}', f'--compile_cache={tmp_path / "programs"}'],
    environ={'JAX_PLATFORMS': 'cpu'},
  ).result()
  assert status == 0, complaints
  assert any((tmp_path / 'programs').iterdir())
  record = json.loads(target.read_text())
  assert record['settings']['overrides']['units'] == 3
  assert record['settings']['overrides']['filters'] == [4]
  assert record['machine']['cores'] == len(os.sched_getaffinity(0))
  step = record['train_step']
  # As `train` divides them.
  divided = step['contenders']['fer_jax']['devices']
  assert divided == cores.parts_of_batch(32)
  assert {
    name: row['steps_per_dispatch'] for name, row in step['contenders'].items()
  } == {'fer_jax': 3, 'flax': 1}
  for row in step['contenders'].values():
    assert row['parameters'] == step['parameters']
    assert row['versions']['jax']
    assert len(row['rounds']) == 2
    assert row['images_per_second']['min'] > 0
  runs = record['population']
  assert set(runs['contenders']) == {
    'population',
    'fer_jax in a row',
    'flax in a row',
  }
  share = runs['share_of_in_a_row']
  assert share['min'] <= share['median'] <= share['max']
  row = runs['contenders']['population']
  assert row['steps_per_dispatch'] == 3
  assert row['images_per_second']['max'] == pytest.approx(
    3 * 32 / row['seconds_per_step']['min']
  )
  assert 'images/s' in said
  assert f'record: {target}' in said


class _Here(Worker):
  """A contender in this process: to start one takes seconds."""

  def __init__(self, contender, *, environment=None):
    del environment
    self.contender, self.info, self.steps = contender, {}, 1

  def _ask(self, **message):
    if message['do'] == 'prepare':
      module = importlib.import_module(self.contender)
      self._run, answer = module.prepare(message['case'])
    elif message['do'] == 'run':
      answer = {'seconds': self._run(message['steps'])}
    else:
      answer = {'bytes': None}
    return json.loads(json.dumps(answer))

  def close(self):
    pass


def test_the_input_is_a_part_of_a_step(tmp_path, command_line, monkeypatch):
  monkeypatch.setattr(contest, 'Worker', _Here)
  monkeypatch.setattr(contest, 'PAUSE_SECONDS', 0.0)
  target = tmp_path / 'record.json'
  status, *_ = command_line(
    *['benchmark', *TINY, '--model=residual_lstm', '--batch_size=2'],
    *['--what=input', '--rounds=2', '--warm_up=1', '--turn_seconds=0'],
    f'--json={target}',
  )
  assert status == 0
  record = json.loads(target.read_text())['input']
  rows = record['contenders']
  assert set(rows) == {'whole', 'without_augmentation', 'input_path'}
  for row in rows.values():
    assert len(row['rounds']) == 2
  # On any machine.
  assert record['input_share']['min'] > 0


@pytest.mark.parametrize('kind', [WorkerError, UserError])
def test_what_fails_takes_nothing_else_with_it(
  kind, tmp_path, command_line, monkeypatch
):
  def fails(*_):
    raise kind('flax: its process ended: out of memory\nlast words')

  monkeypatch.setattr(train_step, 'measure', fails)
  spread = {'median': 2.0, 'min': 1.0, 'max': 3.0}
  started = {'config': 'c', 'seconds_to_first_step': spread, 'cold': 9.0}
  monkeypatch.setattr(startup, 'measure', lambda *_, **__: started)
  target = tmp_path / 'record.json'
  status, said, complaints = command_line(
    *['benchmark', *TINY, '--model=residual_lstm', '--batch_size=2'],
    *['--what=train_step,startup', f'--json={target}'],
  )
  assert status == 2
  assert json.loads(target.read_text())['startup'] == started
  assert 'start-up of c' in said
  assert 'last words' in complaints
  assert complaints.splitlines()[-1].endswith(
    '--what=train_step: flax: its process ended: out of memory'
  )


def test_a_population_for_each_mapping(monkeypatch):
  held = []

  def hold(contenders, *_, **__):
    held.extend((c.name, c.case.get('mapping')) for c in contenders)
    rounds = {'population': [1.0, 1.0], 'fer_jax in a row': [2.0, 4.0]}
    return {
      'contenders': {c.name: {'rounds': rounds.get(c.name)} for c in contenders}
    }

  monkeypatch.setattr(contest, 'hold', hold)
  case = {'batch_size': 2, 'layers': []}
  result = population.measure(
    case, [], contest.Effort(), members=3, mappings=['vmap', 'in_turn']
  )
  assert held == [
    ('population', 'vmap'),
    ('population in_turn', 'in_turn'),
    ('fer_jax in a row', None),
  ]
  # Of the rounds' own shares, not the inverse of the median of their inverses.
  share = {'median': 0.375, 'min': 0.25, 'max': 0.5}
  assert result['share_of_in_a_row'] == share


def test_another_network_is_not_compared():
  layers = [{'layer': 'dense', 'inputs': 8, 'units': 7}]
  case = {
    'model': 'residual_lstm',
    'overrides': {'filters': [2], 'blocks': [1], 'units': 2},
    'layers': layers,
    'input_shape': [48, 48, 1],
    'num_classes': 7,
    'batch_size': 2,
    'steps_per_dispatch': 1,
    'learning_rate': 1e-3,
    'dropout': 0.0,
    'seed': 0,
  }
  with pytest.raises(UserError, match=r'fer_jax has \d+ .* has 63'):
    train_step.measure(case, [], contest.Effort(rounds=1))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--model=residual_bilstn'], "did you mean 'residual_bilstm'"),
    (['--what=train_steps'], "did you mean 'train_step'"),
    (['--peers=toch'], "did you mean 'torch'"),
    (
      ['--what=train_step,recurrent', '--peers=keras_torch'],
      'keras_torch has no part in --what=recurrent',
    ),
    (['--what=startup', '--startup_config=none.py'], 'none.py is no file'),
    (['--what=sweep'], '--what=sweep needs --config'),
    (['--mappings=scan'], '--mappings scan is not one of auto, vmap, in_turn'),
    (['--backends='], '--backends is empty: expected some of auto, scan'),
    (['--json=/no/such/folder/x.json'], 'no such folder'),
    (['--what=train_step', '--set=dtype=bfloat16'], 'float32'),
    (['--set=unit=3'], "did you mean 'units'"),
    (['--set=units'], 'expected FIELD=VALUE'),
    (['surplus'], "not 'surplus'"),
  ],
)
def test_mistakes_are_one_line(arguments, message, complaint):
  assert message in complaint('benchmark', *arguments)


def test_rendering():
  spread = {'median': 2.0, 'min': 1.0, 'max': 3.0}
  row = {'images_per_second': spread, 'speedup_of_reference': spread}
  text = benchmark.render(
    {
      'machine': {'cpu': 'A CPU', 'cores': 2, 'load_average_before': 0.1},
      'settings': {'model': 'm', 'batch_size': 4, 'rounds': 5},
      'train_step': {
        'parameters': 1234,
        'reference': 'fer_jax',
        'contenders': {'fer_jax': row, 'flax': row},
        'absent': {'torch': 'torch is not installed'},
      },
      'startup': {
        'config': 'quickstart.py',
        'seconds_to_first_step': spread,
        'cold': 9.0,
      },
    }
  ).splitlines()
  assert text == [
    'm, batch 4, 5 rounds, medians (smallest to largest)',
    'A CPU, 2 cores, load before 0.10',
    '',
    'train step, 1,234 parameters each',
    '                                  images/s          speed of fer_jax',
    'fer_jax                   2.0 (1.0 to 3.0)',
    'flax                      2.0 (1.0 to 3.0)     2.00 (1.00 to 3.00) x',
    'torch             absent: torch is not installed',
    '',
    'start-up of quickstart.py: first training step after '
    '2.0 (1.0 to 3.0) s, 9.0 s the first time',
  ]


def test_what_a_step_costs_before_it_runs(tmp_path, command_line, monkeypatch):
  """Memory grows with the batch, parameters do not; nothing is cached."""
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'programs'))
  records = {}
  for size, worker in ((16, Worker), (2, _Here)):
    monkeypatch.setattr(compilation, 'Worker', worker)
    target = tmp_path / f'{size}.json'
    status, said, _ = command_line(
      *['benchmark', *TINY, '--model=residual_lstm', f'--batch_size={size}'],
      *['--what=compilation', f'--json={target}'],
    )
    assert status == 0
    assert 'compiling' in said
    records[size] = json.loads(target.read_text())['compilation']
  assert not (tmp_path / 'programs').exists()
  small, large = (records[size]['kept'] for size in (2, 16))
  assert small['compile_seconds'] > 0
  assert large['temporary_bytes'] > small['temporary_bytes']
  assert set(records[2]) == {'kept', 'remat'}
