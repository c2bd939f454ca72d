"""Comparing runs, against tables worked by hand and exact variances."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from fer_jax.errors import UserError
from fer_jax.evaluation import (
  compare,
  comparison_summary,
  intervals,
  runs,
)
from fer_jax.evaluation import workdir as workdir_lib

N_BOOT = 400


def _ids(n):
  return np.array([f'x{row:04d}' for row in range(n)])


def _logits(labels, right, num_classes=3):
  """Sure of the label where `right`, of the next class elsewhere."""
  classes = np.where(right, labels, (labels + 1) % num_classes)
  return 4.0 * np.eye(num_classes)[classes]


def _discordant(b, c, n=100):
  """(first right, second right): b and c alone, half of the rest both."""
  first, second = np.arange(n) < n // 2, np.arange(n) < n // 2
  first[:c], second[c : b + c] = False, False
  return first, second


@pytest.mark.parametrize(
  ('b', 'c', 'p'),
  [
    (8, 2, 2 * (1 + 10 + 45) / 2**10),
    (1, 10, 2 * (1 + 11) / 2**11),
    (3, 3, 1.0),
    (0, 0, 1.0),
    (6, 0, 2 / 2**6),
  ],
)
def test_mcnemar_by_hand(b, c, p):
  found = compare.mcnemar(_ids(100), *_discordant(b, c))
  assert found == {'b': b, 'c': c, 'p': pytest.approx(p)}


def test_mcnemar_takes_copies_of_an_id_as_one():
  first, second = _discordant(8, 2)
  copies = np.repeat(np.arange(100), np.where(np.arange(100) < 5, 7, 1))
  found = compare.mcnemar(_ids(100)[copies], first[copies], second[copies])
  assert (found['b'], found['c']) == (8, 2)


def test_holm_by_hand():
  # 3 * .01, then 2 * .03, then .04, which may not be less than the one before.
  assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert compare.holm([0.9, 0.6]) == [1.0, 1.0]
  assert compare.holm([0.02]) == [0.02]


def test_kappa_by_hand():
  # Agreement 35 of 50, by chance .5 * .6 + .5 * .4 = .5: (.7 - .5) / .5.
  first = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
  second = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
  assert compare.kappa(first, second) == pytest.approx(0.4)
  assert compare.kappa(first, first) == 1
  assert compare.kappa(np.zeros(4, int), np.zeros(4, int)) is None


def test_bootstrap_variance_of_the_difference_is_the_exact_one():
  # Of n examples b are right in the first alone and c in the second alone: a
  # resampled difference has the variance (b + c - (b - c)**2 / n) / n**2.
  n, b, c = 4000, 600, 400
  labels = np.zeros(n, int)
  first, second = _discordant(b, c, n)
  predicted = np.where([first, second], 0, 1)
  draws = intervals.resampled_figures(_ids(n), labels, predicted, 2)['accuracy']
  difference = draws[:, 0] - draws[:, 1]
  exact = np.sqrt(b + c - (b - c) ** 2 / n) / n
  # 10,000 draws give a deviation to 0.7 %.
  assert difference.std() == pytest.approx(exact, rel=0.03)
  assert difference.mean() == pytest.approx((b - c) / n, abs=4 * exact / 100)
  p = first.mean()
  assert draws[:, 0].std() == pytest.approx(np.sqrt(p * (1 - p) / n), rel=0.03)


def test_bootstrap_matches_resampling_the_ids_with_their_copies():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 150)
  predicted = np.stack(
    [
      np.where(rng.random(150) < 0.6, labels, rng.integers(0, 4, 150))
      for _ in range(2)
    ]
  )
  copies = np.repeat(np.arange(150), rng.integers(1, 4, 150))
  ids, labels, predicted = (
    _ids(150)[copies],
    labels[copies],
    predicted[:, copies],
  )
  draws = intervals.resampled_figures(ids, labels, predicted, 4, n_boot=2000)
  plain = []
  positions = [np.flatnonzero(ids == name) for name in _ids(150)]
  for _ in range(300):
    rows = np.concatenate([positions[k] for k in rng.integers(0, 150, 150)])
    figures = [
      sklearn.metrics.f1_score(labels[rows], classes[rows], average='macro')
      for classes in predicted
    ]
    accuracy = (predicted[:, rows] == labels[rows]).mean(axis=1)
    plain.append([figures[0] - figures[1], accuracy[0] - accuracy[1]])
  for name, expected in zip(
    ('macro_f1', 'accuracy'), np.transpose(plain), strict=True
  ):
    got = draws[name][:, 0] - draws[name][:, 1]
    # 300 draws give a deviation to 4 %, a mean to 6 % of a deviation.
    assert got.std() == pytest.approx(expected.std(), rel=0.15)
    assert got.mean() == pytest.approx(
      expected.mean(), abs=0.25 * expected.std()
    )


def test_an_id_twice_everywhere_changes_no_draw():
  labels = np.arange(60) % 3
  right = np.random.default_rng(1).random((2, 60)) < 0.7
  predicted = np.where(right, labels, (labels + 1) % 3)
  twice = np.tile(np.arange(60), 2)
  once = intervals.resampled_figures(_ids(60), labels, predicted, 3, n_boot=50)
  copied = intervals.resampled_figures(
    _ids(60)[twice], labels[twice], predicted[:, twice], 3, n_boot=50
  )
  for name, values in once.items():
    np.testing.assert_allclose(copied[name], values)


def test_draws_are_seeded_and_do_not_depend_on_how_many_are_made_at_once(
  monkeypatch,
):
  labels = np.arange(60) % 3
  predicted = np.random.default_rng(2).integers(0, 3, (2, 60))

  def draw(seed):
    return intervals.resampled_figures(
      _ids(60), labels, predicted, 3, n_boot=30, seed=seed
    )['accuracy']

  whole = draw(5)
  monkeypatch.setattr(intervals, '_DRAWS_AT_ONCE', 7)
  np.testing.assert_array_equal(draw(5), whole)
  assert not np.array_equal(draw(6), whole)


def test_a_pair_by_hand():
  labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
  first = np.array([0, 0, 1, 0, 2, 2, 2, 0])
  second = np.array([0, 1, 1, 0, 2, 0, 1, 0])
  found = compare.compare_predictions(
    _ids(8),
    labels,
    {'a': 3.0 * np.eye(3)[first], 'b': 3.0 * np.eye(3)[second]},
    n_boot=N_BOOT,
  )
  (pair,) = found['pairs']
  assert (pair['first'], pair['second']) == ('a', 'b')
  assert pair['accuracy']['difference'] == 6 / 8 - 3 / 8
  # F1 is 2 hits / (true + predicted).
  f1 = (4 / 6 + 2 / 3 + 6 / 7) / 3 - (2 / 6 + 2 / 5 + 2 / 5) / 3
  assert pair['macro_f1']['difference'] == pytest.approx(f1)
  assert pair['mcnemar'] == {'b': 3, 'c': 0, 'p': 0.25, 'p_holm': 0.25}
  assert pair['agreement'] == 5 / 8
  assert pair['kappa'] == pytest.approx(
    sklearn.metrics.cohen_kappa_score(first, second)
  )
  assert pair['better'] is None
  assert pair['statement'].startswith('no difference found between a and b')
  assert [run['accuracy'] for run in found['runs']] == [6 / 8, 3 / 8]


def test_a_difference_is_found_and_its_direction():
  labels = np.arange(100) % 3
  # p = 2 * (1 + 10) / 2**10 = .021.
  first, second = _discordant(9, 1)
  logits = {'a': _logits(labels, first), 'b': _logits(labels, second)}
  for names in (('a', 'b'), ('b', 'a')):
    found = compare.compare_predictions(
      _ids(100), labels, {name: logits[name] for name in names}, n_boot=N_BOOT
    )
    (pair,) = found['pairs']
    assert pair['better'] == 'a'
    assert pair['statement'].startswith('a is better than b by 8.00 points')
    low, high = sorted(100 * bound for bound in pair['accuracy']['interval'])
    assert low * high > 0
  # Of three pairs with this p, .064 is left after Holm.
  logits['c'] = logits['b']
  found = compare.compare_predictions(_ids(100), labels, logits, n_boot=N_BOOT)
  assert [pair['better'] for pair in found['pairs']] == [None] * 3
  assert found['pairs'][0]['mcnemar']['p_holm'] == pytest.approx(3 * 22 / 1024)


def test_copies_that_turn_the_accuracy_make_no_run_the_better_one():
  labels = np.zeros(100, int)
  first, second = _discordant(9, 1)
  copies = np.repeat(np.arange(100), np.where(np.arange(100) < 1, 30, 1))
  found = compare.compare_predictions(
    _ids(100)[copies],
    labels[copies],
    {
      'a': _logits(labels, first)[copies],
      'b': _logits(labels, second)[copies],
    },
    n_boot=N_BOOT,
  )
  (pair,) = found['pairs']
  assert pair['mcnemar']['p_holm'] < 0.05
  assert pair['accuracy']['difference'] < 0
  assert pair['better'] is None
  assert pair['statement'].startswith(
    'a and b differ by units (p = 0.021), and'
  )


@pytest.mark.parametrize(
  ('count', 'pairs'),
  [
    (2, [(0, 1)]),
    (3, [(0, 1), (0, 2), (1, 2)]),
    (5, [(0, 1), (0, 2), (0, 3), (0, 4)]),
  ],
)
def test_many_runs_are_compared_with_the_first(count, pairs):
  assert compare.pairs_of(count) == pairs


def test_the_ensemble_is_the_mean_of_probabilities():
  # Mean probabilities (.999 + .2 + .2) / 3 = .466 for class 0, where the mean
  # of the logits would choose it.
  members = np.log([[[0.999, 0.001]], [[0.2, 0.8]], [[0.2, 0.8]]])
  logits = {
    name: values + 7 for name, values in zip('abc', members, strict=True)
  }
  found = compare.compare_predictions(
    _ids(1), np.array([1]), logits, n_boot=N_BOOT
  )['ensemble']
  assert found['accuracy'] == 1
  assert found['loss'] == pytest.approx(-np.log((0.001 + 0.8 + 0.8) / 3))
  assert found['best_member'] == 'b'


def test_the_ensemble_is_compared_with_its_best_member():
  labels = np.arange(90) % 3
  third = np.arange(90) // 30
  logits = {name: _logits(labels, third != k) for k, name in enumerate('abc')}
  logits['b'] = _logits(labels, (third != 1) | (np.arange(90) == 30))
  found = compare.compare_predictions(_ids(90), labels, logits, n_boot=N_BOOT)
  ensemble = found['ensemble']
  assert ensemble['accuracy'] == 1
  assert ensemble['best_member'] == 'b'
  assert ensemble['accuracy_difference']['difference'] == pytest.approx(29 / 90)
  assert ensemble['better'] == 'ensemble'
  assert 'chosen on this very split' in ensemble['statement']
  same = compare.compare_predictions(
    _ids(90), labels, {'a': logits['a'], 'b': logits['a']}, n_boot=N_BOOT
  )['ensemble']
  assert (same['better'], same['best_member']) == (None, 'a')
  assert same['accuracy_difference'] == {'difference': 0, 'interval': None}


def test_two_people_alike_do_not_show_that_an_ensemble_is_better():
  labels, units = np.arange(40) % 2, np.repeat(['anne', 'bob'], 20)
  place = np.arange(40) % 20
  # Each member is wrong on one picture of each person, together on none.
  logits = {n: _logits(labels, place != k) for k, n in enumerate('abc')}
  found = compare.compare_predictions(units, labels, logits, n_boot=N_BOOT)
  ensemble = found['ensemble']
  assert ensemble['accuracy_difference']['difference'] == pytest.approx(0.05)
  assert ensemble['accuracy_difference']['interval'] is None
  assert ensemble['better'] is None


@pytest.fixture(scope='module')
def pair(run_maker, tmp_path_factory):
  root = tmp_path_factory.mktemp('compared')
  return [
    run_maker(root / name, seed=seed) for seed, name in enumerate(('a', 'b'))
  ]


@pytest.fixture
def copied(pair, run_maker, tmp_path):
  """A workdir to break, that can be compared with the first of `pair`."""
  return run_maker(tmp_path / 'copied', seed=3, learning_rate=0.1)


def _rewrite(path, **changes):
  evaluation = runs.read(path).evaluations['test']
  metrics = evaluation.metrics | changes.pop('metrics', {})
  workdir_lib.write_evaluation(
    path, dataclasses.replace(evaluation, metrics=metrics, **changes)
  )


def test_workdirs_are_compared_on_test(pair):
  result = compare.compare(pair, n_boot=2000)
  assert (result['split'], result['n']) == ('test', 240)
  for path, found in zip(pair, result['runs'], strict=True):
    metrics = runs.read(path).evaluations['test'].metrics
    assert found['workdir'] == str(path)
    assert found['protocol']['leaks'] is False
    assert found['accuracy'] == metrics['accuracy']
    assert found['macro_f1'] == pytest.approx(metrics['macro']['f1'])
    assert found['loss'] == pytest.approx(metrics['loss'])
    assert found['expected_calibration_error'] == pytest.approx(
      metrics['expected_calibration_error']
    )
    # Two bootstraps; a step of the accuracy is .004.
    for name, bounds in found['intervals'].items():
      np.testing.assert_allclose(bounds, metrics['intervals'][name], atol=0.015)
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert result['warnings'] == []
  assert result['notes'] == [
    'a, b are of one config but for the seed, and of the same data: a '
    'difference between them is the noise of training'
  ]
  said = comparison_summary.text(result)
  for words in (
    'test split (every run has it), 240 examples, 2 runs',
    'a: residual_bilstm, seed 0, protocol fer2013_dev (does not leak)',
    f'{100 * result["runs"][1]["accuracy"]:.2f} [',
    result['pairs'][0]['statement'],
    result['ensemble']['statement'],
    f'note: {result["notes"][0]}',
  ):
    assert words in said


def test_validation_stands_in_where_a_run_has_no_test(
  pair, run_maker, tmp_path
):
  path = run_maker(tmp_path / 'untested', seed=4, splits=('validation',))
  result = compare.compare([*pair, path], n_boot=N_BOOT)
  assert result['split'] == 'validation'
  assert result['split_taken'] == 'untested has no test predictions'
  assert len(result['pairs']) == 3
  assert any('validation chose' in said for said in result['warnings'])
  with pytest.raises(
    UserError, match=f'evaluate --workdir={path} --split=test'
  ):
    compare.compare([*pair, path], 'test')
  path = run_maker(tmp_path / 'none', seed=4, splits=())
  with pytest.raises(UserError, match=f'--workdir={path} --split=validation'):
    compare.compare([*pair, path])


def test_leaks_protocols_data_and_views_are_said(pair, copied):
  facts = json.loads((copied / 'run.json').read_text())
  facts['protocol'] |= {'name': 'other', 'leaks': True, 'digest': 'ef' * 32}
  facts['dataset']['checksum'] = '12' * 32
  (copied / 'run.json').write_text(json.dumps(facts))
  _rewrite(copied, metrics={'views': ['plain']})
  result = compare.compare([pair[0], copied], n_boot=N_BOOT)
  leak, protocols, data, views = result['warnings']
  assert leak == f'copied: protocol other LEAKS: {facts["protocol"]["reason"]}'
  assert 'a fer2013_dev (digest cdcdcdcdcdcd), copied other' in protocols
  assert data.endswith(f'a {"ab" * 32}, copied {"12" * 32}')
  assert data.startswith('the runs are of different builds')
  assert views.endswith('a plain+flip, copied plain')
  said = comparison_summary.text(result)
  assert 'protocol other (LEAKS)' in said
  assert f'warning: {leak}' in said
  (copied / 'run.json').unlink()
  result = compare.compare([pair[0], copied], n_boot=N_BOOT)
  assert 'copied: whether its protocol leaks is not known' in result['warnings']
  assert 'leaks: unknown' in comparison_summary.text(result)


def test_pictures_of_one_person_are_no_independent_examples(pair, copied):
  result = compare.compare([pair[0], copied], n_boot=2000)
  people = np.array([f'P{n // 24}' for n in range(240)])
  _rewrite(copied, units=people, metrics={'checkpoint': {'step': 7}})
  by_person = compare.compare([pair[0], copied], n_boot=2000)
  assert (result['units'], by_person['units']) == (240, 10)
  assert by_person['pairs'][0]['mcnemar'].items() >= (
    compare.mcnemar(
      people,
      *(
        e.logits.argmax(-1) == e.labels
        for e in (runs.read(p).evaluations['test'] for p in (pair[0], copied))
      ),
    ).items()
  )
  assert any('of 10 people or recordings' in s for s in by_person['notes'])
  assert any('copied: the test figures are' in s for s in by_person['warnings'])
  # One person alone is no sample.
  _rewrite(copied, units=np.full(240, 'P'))
  alone = compare.compare([pair[0], copied], n_boot=20)
  assert alone['pairs'][0]['accuracy']['interval'] is None
  assert alone['ensemble']['better'] is None
  assert alone['ensemble']['statement'] in comparison_summary.text(alone)


def test_repeated_ids_are_said(pair, copied, run_maker, tmp_path):
  twice = np.tile(np.arange(240), 2)
  other = run_maker(tmp_path / 'other', seed=5)
  for path in (copied, other):
    evaluation = runs.read(path).evaluations['test']
    _rewrite(
      path,
      ids=evaluation.ids[twice],
      labels=evaluation.labels[twice],
      logits=evaluation.logits[twice],
    )
  result = compare.compare([copied, other], n_boot=N_BOOT)
  assert (result['n'], result['distinct_ids']) == (480, 240)
  assert any('480 positions hold 240' in said for said in result['notes'])


def test_too_few_workdirs_or_one_twice(pair, tmp_path):
  with pytest.raises(UserError, match='got 0 workdirs; expected at least two'):
    compare.compare([])
  with pytest.raises(UserError, match='got 1 workdir;'):
    compare.compare(pair[:1])
  link = tmp_path / 'link'
  link.symlink_to(pair[0])
  with pytest.raises(UserError, match=f'{link} is the same workdir as'):
    compare.compare([*pair, link])
  with pytest.raises(UserError, match="--split is 'train'; expected one of"):
    compare.compare(pair, 'train')


def test_other_ids_are_counted_and_the_first_is_named(pair, copied):
  evaluation = runs.read(copied).evaluations['test']
  ids = evaluation.ids.copy()
  ids[[7, 9]] = ['test-00999', 'test-00998']
  _rewrite(copied, ids=ids)
  with pytest.raises(
    UserError, match=r'2 of the 240 ids of a .* 2 the other .* test-00007 of a'
  ):
    compare.compare([pair[0], copied])
  _rewrite(
    copied,
    ids=evaluation.ids[:200],
    labels=evaluation.labels[:200],
    logits=evaluation.logits[:200],
  )
  with pytest.raises(
    UserError, match=r'40 of the 240 ids .* the 200 of copied'
  ):
    compare.compare([pair[0], copied])


def test_another_order_of_ids_or_copies_of_them_is_refused(pair, copied):
  evaluation = runs.read(copied).evaluations['test']
  order = np.arange(240)
  order[[4, 5]] = [5, 4]
  for rows, place in ((order, 4), (np.append(np.arange(240), 3), 240)):
    _rewrite(
      copied,
      ids=evaluation.ids[rows],
      labels=evaluation.labels[rows],
      logits=evaluation.logits[rows],
    )
    with pytest.raises(
      UserError, match=f'another order or number .* at position {place};'
    ):
      compare.compare([pair[0], copied])


def test_other_classes_or_labels_are_refused(pair, copied):
  evaluation = runs.read(copied).evaluations['test']
  labels = evaluation.labels.copy()
  labels[[2, 30]] = [5, 1]
  _rewrite(copied, labels=labels)
  with pytest.raises(
    UserError,
    match=r'2 of 240 labels differ .*-00002: fear in a, surprise in copied',
  ):
    compare.compare([pair[0], copied])
  names = evaluation.metrics['class_names']
  _rewrite(copied, metrics={'class_names': [*names[1:], names[0]]})
  with pytest.raises(
    UserError,
    match=r'of a are angry, disgust.* of copied are disgust, .*, angry; exp',
  ):
    compare.compare([pair[0], copied])


def test_nothing_but_files_is_read():
  code = (
    'import sys, fer_jax.evaluation.compare; '
    "sys.exit(any(m in sys.modules for m in ('jax', 'fer_jax.data.ledger')))"
  )
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )
