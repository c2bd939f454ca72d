"""Reading and grouping runs, against figures worked by hand."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.evaluation import runs


def _run(name, config, accuracies=(), losses=()):
  history = [
    {
      'epoch': epoch,
      'step': 10 * epoch,
      'validation': {'accuracy': accuracy, 'loss': loss},
      'seconds': 2.0,
      'images_per_second': 100.0 * epoch,
    }
    for epoch, (accuracy, loss) in enumerate(
      zip(accuracies, losses or accuracies, strict=True), start=1
    )
  ]
  return runs.Run(pathlib.Path(name), name, config, {}, history, {}, {}, ())


def _config(seed, rate=0.1, **train):
  return {
    'seed': seed,
    'optim': {'learning_rate': rate},
    'train': train,
    'model': {'name': 'm'},
  }


def test_seeds_are_grouped_and_labelled_by_what_differs():
  members = [
    _run('a', _config(0)),
    _run('b', _config(0, rate=0.2)),
    _run('c', _config(1)),
  ]
  groups = runs.group(members)
  assert [[run.name for run in group.runs] for group in groups] == [
    ['a', 'c'],
    ['b'],
  ]
  assert [group.label for group in groups] == [
    'optim.learning_rate=0.1',
    'optim.learning_rate=0.2',
  ]


def test_runs_of_other_builds_or_partitions_are_no_seeds_of_one_another():
  members = []
  for name, checksum, digest in (
    ('a', 'ab', 'x'), ('b', 'cd', 'x'), ('c', 'ab', 'y'), ('d', 'ab', 'x')
  ):  # fmt: skip
    run = _run(name, _config(len(members)))
    run.facts['dataset'] = {'checksum': checksum * 32}
    run.facts['protocol'] = {'digest': digest * 64}
    members.append(run)
  groups = runs.group(members)
  assert [[run.name for run in group.runs] for group in groups] == [
    ['a', 'd'],
    ['b'],
    ['c'],
  ]
  assert groups[1].label == 'build cdcdcdcdcdcd, partition xxxxxxxxxxxx'


def test_a_protocol_seed_is_not_a_run_seed():
  configs = [_config(0), _config(1)]
  configs[1]['data'] = {'protocol_seed': 1}
  configs[0]['data'] = {'protocol_seed': 0}
  members = [_run(str(i), config) for i, config in enumerate(configs)]
  assert len(runs.group(members)) == 2


def _real_config(seed, **data):
  config = config_lib.get_base(model='residual_gru')
  config.seed = seed
  config.data.update(data)
  return config_lib.to_json(config)


def test_a_field_that_an_earlier_run_lacks_is_at_its_default():
  earlier = _real_config(0)
  del earlier['data']['balance']
  del earlier['data']['options']['size']
  del earlier['model']['dropout']
  members = [
    _run('earlier', earlier),
    _run('now', _real_config(1)),
    _run('balanced', _real_config(2, balance='oversample')),
  ]
  groups = runs.group(members)
  assert [[run.name for run in group.runs] for group in groups] == [
    ['earlier', 'now'],
    ['balanced'],
  ]
  assert [group.label for group in groups] == [
    'data.balance=none',
    'data.balance=oversample',
  ]


def test_a_field_that_nobody_knows_still_parts_runs():
  earlier = _real_config(0)
  earlier['data']['gone'] = 1
  members = [_run('earlier', earlier), _run('now', _real_config(1))]
  assert len(runs.group(members)) == 2


def test_runs_of_equal_fields_are_grouped_without_jax():
  code = (
    'import pathlib, sys; from fer_jax.evaluation import runs;'
    'made = [runs.Run(pathlib.Path(n), n, {"seed": i, "model": {"name": m, n: '
    '1} if i else {"name": m}}, {}, [], {}, {}, ()) for i, (n, m) in enumerate('
    '[("a", "m"), ("b", "n"), ("c", "o")])];'
    'sys.exit(len(runs.group(made)) != 3 or "jax" in sys.modules)'
  )
  done = subprocess.run([sys.executable, '-c', code], check=False)
  assert done.returncode == 0


def test_one_group_is_labelled_by_its_model():
  groups = runs.group([_run('a', _config(0)), _run('b', _config(5))])
  assert [group.label for group in groups] == ['m']


def test_groups_that_differ_in_many_fields_are_labelled_by_their_runs():
  other = _config(0, rate=0.2, a=1, b=2, c=3, d=4)
  groups = runs.group([_run('a', _config(0)), _run('b', other)])
  assert [group.label for group in groups] == ['a', 'b']


def test_fields_that_change_no_result_do_not_part_runs():
  assert {'seed', *config_lib.FREE_ON_RESUME} == runs.NOT_COMPARED


def test_curves_of_a_group_by_hand():
  group = runs.Group(
    'g', (_run('a', {}, (0.1, 0.3, 0.5)), _run('b', {}, (0.3, 0.5)))
  )
  epochs, mean, deviation = runs.mean_curve(group, 'validation', 'accuracy')
  np.testing.assert_array_equal(epochs, [1, 2])
  np.testing.assert_allclose(mean, [0.2, 0.4])
  # Two values 0.2 apart: the sample deviation is 0.2 / sqrt(2).
  np.testing.assert_allclose(deviation, [0.2 / 2**0.5] * 2)
  assert runs.mean_curve(group, 'train', 'loss')[0].size == 0


def test_spread_by_hand():
  found = runs.spread([1.0, None, 3.0])
  assert (found.mean, found.count) == (2.0, 2)
  assert found.deviation == pytest.approx(2**0.5)
  assert runs.spread([4.0]) == runs.Spread(4.0, None, 1)
  assert runs.spread([None]) is None


@pytest.mark.parametrize(('select', 'epoch'), [('accuracy', 2), ('loss', 3)])
def test_the_best_epoch_is_the_selected_metrics(select, epoch):
  run = _run('a', _config(0, select=select), (0.5, 0.7, 0.6), (0.9, 0.8, 0.7))
  assert runs.best_validation(run)['epoch'] == epoch


def test_figures_of_another_checkpoint_than_the_chosen_are_noted():
  run = _run('a', _config(0), (0.5, 0.7, 0.6))
  at = {'checkpoint': {'step': 20, 'epoch': 2}}
  assert runs.stale(run, 'test', at) is None
  at = {'checkpoint': {'step': 10, 'epoch': 1}}
  assert runs.stale(run, 'test', at) == (
    'the test figures are of epoch 1, step 10, and training chooses epoch 2, '
    'step 20, by now: evaluate again'
  )
  last = _run('a', _config(0, select='last'), (0.5, 0.7, 0.6))
  assert 'chooses epoch 3' in runs.stale(last, 'test', at)
  assert runs.stale(last, 'test', {}) is None


def test_curves_leave_out_epochs_without_a_finite_value():
  run = _run('a', {}, (0.1, float('nan'), 0.5))
  del run.history[0]['validation']
  epochs, values = runs.curve(run, 'validation', 'accuracy')
  assert (list(epochs), list(values)) == ([3], [0.5])


def test_time_and_rate(finished):
  run = runs.read(finished)
  assert runs.training_seconds(run) == 6 * 150
  assert runs.images_per_second(run) == pytest.approx(180, abs=3)


def test_names_tell_runs_apart(run_maker, tmp_path):
  first = run_maker(tmp_path / 'x' / 'seed0', splits=())
  second = run_maker(tmp_path / 'y' / 'seed0', splits=())
  members = runs.read_all([first, second, first])
  assert [run.name for run in members] == ['x/seed0', 'y/seed0']


def test_a_line_cut_off_at_the_end_is_left_out_and_said(run_maker, tmp_path):
  path = run_maker(tmp_path / 'run', splits=())
  with (path / 'metrics.jsonl').open('a') as f:
    f.write('{"epoch": 7, "tr')
  run = runs.read(path)
  assert len(run.history) == 6
  assert any('cut off' in note for note in run.notes)


def test_a_bad_line_in_the_middle_is_named(run_maker, tmp_path):
  path = run_maker(tmp_path / 'run', splits=())
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  lines[2] = 'nonsense'
  (path / 'metrics.jsonl').write_text('\n'.join(lines))
  with pytest.raises(UserError, match=r'metrics\.jsonl, line 3'):
    runs.read(path)


@pytest.mark.parametrize('inner', ['fold_0', 'trials/0000'])
def test_a_workdir_of_several_runs_is_no_run(inner, run_maker, tmp_path):
  run_maker(tmp_path / inner, splits=(), epochs=0)
  if inner == 'fold_0':
    (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=f'of several runs.* as .*/{inner}$'):
    runs.read(tmp_path)


def test_what_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(UserError, match='is no folder'):
    runs.read(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'has no config\.json'):
    runs.read(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps([1]))
  with pytest.raises(UserError, match='expected an object'):
    runs.read(tmp_path)
