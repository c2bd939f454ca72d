"""Workers of one machine: their devices, their ends, the command line."""

import json
import os
import sys

import forked
import pytest

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.commands import sweep as verb
from fer_jax.errors import UserError
from fer_jax.evaluation import report
from fer_jax.tuning import crew


def test_each_worker_has_a_device_where_there_are_several(monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  assert crew.environments('gpu', 2, 2) == [
    {'CUDA_VISIBLE_DEVICES': '0'},
    {'CUDA_VISIBLE_DEVICES': '1'},
  ]
  shared = crew.environments('gpu', 2, 3)
  assert [e['CUDA_VISIBLE_DEVICES'] for e in shared] == ['0', '1', '0']
  assert {e['XLA_PYTHON_CLIENT_MEM_FRACTION'] for e in shared} == {'0.45'}
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
  assert crew.environments('gpu', 2, 2)[1] == {'CUDA_VISIBLE_DEVICES': '6'}
  with pytest.raises(UserError, match='on TPU allowed is 1'):
    crew.environments('tpu', 4, 2)


def test_workers_share_the_cores(monkeypatch):
  monkeypatch.setattr(crew.provenance, 'cores', lambda: 8)
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=b')
  (first, *_) = crew.environments('cpu', 1, 3)
  flags = '--xla_a=b --xla_force_host_platform_device_count=2'
  assert first == {'XLA_FLAGS': flags}
  monkeypatch.setenv('XLA_FLAGS', flags)
  assert crew.environments('cpu', 2, 2) == [{}, {}]


def test_all_are_waited_for_and_their_ends_are_told(monkeypatch):
  monkeypatch.setattr(crew, 'devices', lambda: ('gpu', 2))
  program = (
    'import os, signal; '
    'os.environ["CUDA_VISIBLE_DEVICES"] == "0" or os.kill(os.getpid(), 9)'
  )
  assert crew.run([sys.executable, '-S', '-c', program], 2) == [0, -9]


def test_a_signal_is_passed_on(monkeypatch, tmp_path):
  monkeypatch.setattr(crew, 'devices', lambda: ('gpu', 1))
  # The first of them asks who started it to leave, as a scheduler would.
  program = (
    'import os, signal, time\n'
    'def leave(*_): os._exit(75)\n'
    'signal.signal(signal.SIGTERM, leave)\n'
    f'open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()\n'
    f'while len(os.listdir({str(tmp_path)!r})) < 2: time.sleep(0.01)\n'
    'os.kill(os.getppid(), signal.SIGTERM)\n'
    'time.sleep(60)\n'
  )
  assert crew.run([sys.executable, '-S', '-c', program], 2) == [75, 75]


@pytest.mark.parametrize(
  ('statuses', 'status', 'says'),
  [
    ([0, 0], 0, 'best: trial 1'),
    ([-9, 0], 0, 'worker 0 was ended by signal 9'),
    ([75, 75], 75, ''),
    ([2, 2], 2, ''),
    ([-9, -9], 1, 'worker 1 was ended by signal 9'),
  ],
)
def test_the_end_of_all(monkeypatch, tmp_path, capsys, statuses, status, says):
  trials = [
    {'state': 'complete', 'value': value, 'params': {}, 'failure': None}
    for value in (0.5, 0.6)
  ]
  content = {
    'metric': 'accuracy',
    'search': {'trials': 2},
    'trials': trials,
    'finalists': [],
    'best': {'trial': 1, 'value': 0.6, 'config': 'best.json'},
    'cost': {'device_minutes': 1.0, 'compilations': 1, 'shapes': 1},
  }
  (tmp_path / 'sweep.json').write_text(json.dumps(content))

  class Values:
    workdir = str(tmp_path)
    json = str(tmp_path / 'copy.json')

  monkeypatch.setattr(verb.flags, 'FLAGS', Values)
  monkeypatch.setattr(report, 'write_report', lambda _: 'report.html')
  assert verb._after(statuses) == status
  assert says in capsys.readouterr().out
  assert os.path.exists(Values.json) == (status == 0)


def test_without_optuna_the_extra_is_named(monkeypatch):
  class Values:
    config = object()
    workdir = 'w'

  monkeypatch.setattr(verb.flags, 'FLAGS', Values)
  monkeypatch.setattr(verb.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=r"needs optuna.*'\.\[tune\]'"):
    verb.main(['sweep'])


def test_a_config_json_is_named_as_it_was_given(monkeypatch):
  loader = 'fer_jax/config_json.py'
  for given, file in (('a/p.py:residual_gru', 'a/p.py'), ('a/p.py', 'a/p.py')):
    monkeypatch.setattr(
      verb.config_flags, 'get_config_filename', lambda _, given=given: given
    )
    monkeypatch.setattr(verb.flags, 'FLAGS', {'config': None})
    assert str(verb.sweep_file()) == file
  monkeypatch.setattr(
    verb.config_flags, 'get_config_filename', lambda _: f'{loader}:b/c.json'
  )
  assert str(verb.sweep_file()) == 'b/c.json'


def test_names_in_the_help_are_those_there_are():
  """Which imports nothing of JAX or Optuna."""
  from fer_jax.training import mapping
  from fer_jax.tuning import search

  assert verb.SEARCHES == search.SEARCHES
  assert verb.PRUNERS == search.PRUNERS
  assert set(verb.MAPPINGS) == {'auto', *mapping.MAPPINGS}


SWEEP = """
from fer_jax import config as base
from fer_jax.tuning import log_uniform

def get_config():
  return base.load_json({config!r})

def get_space():
  return {{'optim.learning_rate': log_uniform(1e-3, 1e-1)}}
"""


def test_processes_that_were_started_together_are_workers(config, tmp_path):
  path, workdir = tmp_path / 'config.json', tmp_path / 'sweep'
  config.train.epochs = 1
  files.write_json(path, config_lib.to_json(config))
  space = tmp_path / 'space.py'
  space.write_text(SWEEP.format(config=str(path)))
  processes = [
    forked.Command(
      *('sweep', f'--config={space}', f'--workdir={workdir}'),
      *('--trials=3', '--population=1', '--seeds=0', *flags),
      environ={'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(number)},
      options={'jax_platforms': 'cpu', 'jax_num_cpu_devices': 1},
    )
    for number, flags in ((0, ()), (1, ()), (1, ('--workers=2',)))
  ]
  first, second, refused = (process.result() for process in processes)
  assert (first[0], second[0]) == (0, 0), (first, second)
  assert 'report: ' in first[1]
  assert 'report: ' not in second[1]
  content = json.loads((workdir / 'sweep.json').read_text())
  assert [t['state'] for t in content['trials']] == ['complete'] * 3
  assert refused[0] == 2
  assert '--workers is 2 in each of 2 processes' in refused[2]
