"""Cross-validation: every fold is the run that it would be by itself.

Reference: `loop.train` on the fold's own config, and scikit-learn's figures of
the out-of-fold predictions.
"""

import itertools
import json

import jax
import numpy as np
import pytest
import sklearn.metrics

from fer_jax.data import ledger, protocol
from fer_jax.errors import UserError
from fer_jax.evaluation import crossval as scoring
from fer_jax.evaluation import intervals, report
from fer_jax.evaluation.workdir import Evaluation
from fer_jax.training import (
  checkpoint,
  crossval,
  journal,
  loop,
  memory,
  records,
  rollback,
  side_by_side,
  task,
)

pytestmark = pytest.mark.usefixtures('shared_programs')
FOLDS = 3


@pytest.fixture
def config(tiny_config):
  config = tiny_config
  config.data.protocol = 'kfold_subjects'
  config.data.folds = FOLDS
  config.train.batch_size = 16
  config.train.epochs = 2
  config.train.validate_every = 1
  return config


def _members(outcome):
  return [(p.fold, p.seed, p.workdir) for p in outcome.places]


def _states(outcome):
  states = []
  for place in outcome.places:
    sealed = checkpoint.latest_intact(place.workdir)
    target = task.abstract_state(place.config, 7)
    states.append(checkpoint.restore(sealed, target))
  return states


def _assert_near(one, other, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance
    ),
    one.params,
    other.params,
  )


def test_folds_train_as_they_do_alone_and_are_scored(config, tmp_path):
  # Other tests share the set and its ledger.
  dataset = task.load_dataset(config)
  before = len(ledger.read(dataset, ledger.OPENED))
  outcome = crossval.train(config, tmp_path / 'all')
  assert outcome.finished
  assert [p.fold for p in outcome.places] == list(range(FOLDS))
  assert len(ledger.read(dataset, ledger.OPENED)) == before

  # The second fold alone: `train --config=fold_1/config.json`.
  place = outcome.places[1]
  alone = loop.train(place.config, tmp_path / 'alone')
  together = records.read_metrics(place.workdir)
  by_itself = records.read_metrics(tmp_path / 'alone')
  for ours, theirs in zip(together, by_itself, strict=True):
    assert ours['step'] == theirs['step']
    for part in ('train', 'validation'):
      assert ours[part] == pytest.approx(theirs[part], rel=1e-3)
  sealed = checkpoint.latest_intact(tmp_path / 'alone')
  target = task.abstract_state(place.config, 7)
  _assert_near(
    _states(outcome)[1],
    checkpoint.restore(sealed, target),
    rtol=1e-2,
    atol=2e-3,
  )
  assert alone.step == sealed.step

  # Scored: all of the data once, by whoever did not train on it.
  metrics = scoring.score(tmp_path / 'all', _members(outcome))
  with np.load(tmp_path / 'all' / scoring.PREDICTIONS) as kept:
    found = dict(kept)
  np.testing.assert_array_equal(found['id'], np.sort(dataset.table['id']))
  order = np.argsort(dataset.table['id'])
  np.testing.assert_array_equal(found['label'], dataset.table['label'][order])
  for place in outcome.places:
    partition = protocol.resolve(
      dataset, 'kfold_subjects', folds=FOLDS, fold=place.fold
    )
    ids = found['id'][found['fold'] == place.fold]
    assert not set(ids) & {*partition.train_ids, *partition.validation_ids}
  predicted = found['logits'].argmax(-1)
  together = metrics['out_of_fold']
  assert together['mean']['accuracy'] == pytest.approx(
    sklearn.metrics.accuracy_score(found['label'], predicted)
  )
  np.testing.assert_array_equal(
    together['confusion'],
    sklearn.metrics.confusion_matrix(
      found['label'], predicted, labels=range(7)
    ),
  )
  accuracies = [fold['accuracy'] for fold in metrics['folds']]
  assert metrics['mean']['accuracy'] == pytest.approx(np.mean(accuracies))
  assert metrics['deviation']['accuracy'] == pytest.approx(
    np.std(accuracies, ddof=1)
  )
  assert metrics['protocol']['leaks'] is False
  assert len(metrics['protocol']['digests']) == FOLDS
  said = scoring.text(metrics)
  assert 'over folds' in said
  assert 'All folds are reported. Every person is on one side' in said
  # The intervals are of people.
  assert together['unit'] == 'subject'
  np.testing.assert_array_equal(found['unit'], dataset.table['subject'][order])
  assert together['intervals'] == intervals.bootstrap_intervals(
    found['label'], predicted, 7, units=found['unit']
  )
  html = report.write_report([tmp_path / 'all']).read_text()
  assert 'Protocol kfold_subjects. Leaks: no.' in html
  assert html.count('<tr>') >= FOLDS

  # Once scored, nothing is opened or trained again.
  assert len(ledger.read(dataset, ledger.OPENED)) == before + FOLDS
  again = crossval.train(config, tmp_path / 'all')
  assert again.finished
  assert scoring.score(tmp_path / 'all', _members(again)) == metrics
  assert len(ledger.read(dataset, ledger.OPENED)) == before + FOLDS


def test_an_interrupted_one_goes_on_to_the_same_end(config, tmp_path):
  whole = crossval.train(config, tmp_path / 'whole')
  parts = crossval.train(config, tmp_path / 'parts', max_seconds=1e-6)
  assert not parts.finished
  # A fold whose last checkpoint is lost begins anew; the others go on.
  first = parts.places[0].workdir
  (sealed,) = checkpoint.checkpoints(first)
  (sealed.path / checkpoint.MANIFEST).unlink()
  parts = crossval.train(config, tmp_path / 'parts')
  assert parts.finished
  for one, other in zip(_states(whole), _states(parts), strict=True):
    assert int(one.step) == int(other.step)
    _assert_near(one, other, rtol=1e-6, atol=1e-7)
  epochs = [r['epoch'] for r in records.read_metrics(first)]
  assert epochs == [1, 2]

  written = (tmp_path / 'parts' / 'config.json').read_text()
  config.optim.learning_rate = 0.5
  with pytest.raises(UserError, match='made by another config: optim'):
    crossval.train(config, tmp_path / 'parts')
  assert (tmp_path / 'parts' / 'config.json').read_text() == written


@pytest.mark.parametrize('part', [(0, 1), (1, 2)], ids=['waves', 'taken over'])
def test_what_is_over_is_no_epoch_under_a_time_limit(
  config, tmp_path, monkeypatch, part
):
  """Each call trains a fold, though the limit is over before it begins."""
  config.train.epochs = 1
  monkeypatch.setattr(
    side_by_side, 'waves', lambda *given: memory.split(range(given[-1]), 1)
  )

  def trained():
    return len(list(tmp_path.glob('fold_*/metrics.jsonl')))

  for call in range(FOLDS):
    assert trained() == call
    outcome = crossval.train(config, tmp_path, max_seconds=1e-6, part=part)
  assert trained() == FOLDS
  assert outcome.finished


def test_seeds_repeat_every_fold(config, tmp_path):
  outcome = crossval.train(config, tmp_path, seeds=2)
  assert [(p.fold, p.seed) for p in outcome.places] == [
    (fold, seed) for seed in (0, 1) for fold in range(FOLDS)
  ]
  written = json.loads((outcome.places[4].workdir / 'config.json').read_text())
  assert (written['seed'], written['data']['fold']) == (1, 1)
  metrics = scoring.score(tmp_path, _members(outcome))
  assert len(metrics['seeds']) == 2
  assert len(metrics['folds']) == 2 * FOLDS
  mean = np.mean([seed['accuracy'] for seed in metrics['seeds']])
  assert metrics['out_of_fold']['mean']['accuracy'] == pytest.approx(mean)
  assert 'over 2 seeds' in scoring.text(metrics)


def test_without_inner_validation_the_last_epoch_is_taken(config, tmp_path):
  config.data.protocol = 'kfold_images'
  config.data.validation_share = 0.0
  config.train.select = 'last'
  config.train.validate_every = 2
  # Left after the first epoch, which nothing validates.
  for state in _states(crossval.train(config, tmp_path, max_seconds=1e-6)):
    assert int(state.progress.best_step) == int(state.step) > 0
  outcome = crossval.train(config, tmp_path)
  metrics = scoring.score(tmp_path, _members(outcome))
  assert [fold['epoch'] for fold in metrics['folds']] == [2] * FOLDS
  assert metrics['protocol']['leaks'] is True


def test_mistakes(config, tmp_path):
  config.seed = 2**32 - 1
  with pytest.raises(UserError, match='seed is 4294967296; allowed is'):
    crossval.train(config, tmp_path, seeds=2)
  config.data.fold = 1
  with pytest.raises(UserError, match=r'data\.fold is 1; a cross-validation'):
    crossval.train(config, tmp_path)
  config.data.fold = 0
  config.seed = 0
  config.data.residence = 'stream'
  with pytest.raises(UserError, match=r"data\.residence is 'stream'; runs th"):
    crossval.train(config, tmp_path)
  config.data.residence = 'auto'
  config.data.protocol = 'official'
  config.data.folds = 10
  with pytest.raises(UserError, match='protocol official has no folds; those'):
    crossval.train(config, tmp_path)


def test_a_diverging_fold_is_named_and_the_others_are_kept(
  config, tmp_path, monkeypatch
):
  config.optim.learning_rate = 1e30
  with pytest.raises(UserError, match=r'fold_0, .*fold_2; a smaller optim'):
    crossval.train(config, tmp_path)
  # As of a run by itself, nothing of that epoch is recorded.
  assert (tmp_path / 'fold_0' / records.METRICS).read_text() == ''
  (undone,) = rollback.undone(tmp_path / 'fold_0')
  assert undone > 0

  monkeypatch.setattr(
    crossval._Work, '_train_wave', lambda _, wave, members: {*wave[:1]}
  )
  with pytest.raises(UserError, match='fold_0; the other folds are trained; a'):
    crossval.train(config, tmp_path / 'others')


def test_folds_that_do_not_fit_together_are_trained_one_after_another(
  config, tmp_path, monkeypatch, capsys
):
  """They take more than was predicted, and go on as their workdirs are then."""
  waves, seen, fits = [range(2), range(2, FOLDS)], [], 1

  def train_wave(_, wave, members):
    seen.append(members)
    if len(wave) > fits:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return set()

  read = itertools.count()
  monkeypatch.setattr(side_by_side, 'member', lambda *_, number: next(read))
  monkeypatch.setattr(side_by_side, 'waves', lambda *_: [*waves])
  monkeypatch.setattr(crossval._Work, '_train_wave', train_wave)
  outcome = crossval.train(config, tmp_path)
  assert outcome.finished
  assert outcome.waves == 3
  assert seen == [[0, 1], [3], [4], [2]]
  said = (
    '2 runs side by side are too many: the device has too little memory (RE'
  )
  assert said in capsys.readouterr().out
  fits = 0
  with pytest.raises(UserError, match=r'too little memory .* a smaller train'):
    crossval.train(config, tmp_path)


def test_folds_that_a_cpu_does_not_hold_together(
  config, tmp_path, monkeypatch, capsys
):
  """The compiled block tells, before a step is taken."""
  config.train.epochs = 1
  require, looks = memory.require, []

  def look(*given):
    looks.append(given)
    require(*given)

  monkeypatch.setattr(memory, 'require', look)
  whole = crossval.train(config, tmp_path / 'whole')
  assert whole.waves == 1
  _, need, count, how, _ = looks[-1]
  assert (count, how) == (FOLDS, 'in_turn')
  # More than what is told without compiling.
  assert need.working > 3 * memory.bytes_of(_states(whole)[0])
  enough = memory.predicted_bytes(need, 1, how)
  capsys.readouterr()

  monkeypatch.setattr(memory, 'limit_bytes', lambda device: enough)
  parted = crossval.train(config, tmp_path / 'parted')
  assert parted.waves == FOLDS
  (exhausted,) = [
    event
    for event in journal.read(tmp_path / 'parted')
    if event['event'] == 'exhausted'
  ]
  assert (exhausted['runs'], exhausted['fewer']) == (FOLDS, 1)
  assert exhausted['why'].startswith(f'{FOLDS} runs need')
  assert f'{FOLDS} runs side by side are too many: {FOLDS} runs need' in (
    capsys.readouterr().out
  )
  for one, other in zip(_states(whole), _states(parted), strict=True):
    _assert_near(one, other, rtol=1e-6, atol=1e-7)

  monkeypatch.setattr(memory, 'limit_bytes', lambda device: enough - 1)
  with pytest.raises(UserError, match=r'^one run needs 2 MiB of memory, 0 of'):
    crossval.train(config, tmp_path / 'refused')
  assert not records.read_metrics(tmp_path / 'refused' / 'fold_0')


def test_figures_that_are_not_ours_are_named(tmp_path):
  (tmp_path / scoring.METRICS).write_text('{}')
  with pytest.raises(UserError, match=r'crossval\.json: model is missing; cro'):
    report.write_report([tmp_path])


def test_folds_of_one_class_have_no_curve():
  evaluation = Evaluation(
    'test', {'class_names': ['a', 'b']}, np.array(['x']), np.eye(2)[:1],
    np.array([1]), None,
  )  # fmt: skip
  assert scoring.mean_roc([scoring.Fold(0, 0, evaluation)]) is None


def test_leaving_one_subject_out_has_as_many_folds_as_people(config):
  config.data.protocol = 'leave_one_subject_out'
  config.data.folds = 10
  dataset = task.load_dataset(config)
  people = len(np.unique(dataset.table['subject']))
  assert protocol.fold_count(dataset, 'leave_one_subject_out') == people
  assert protocol.fold_count(dataset, 'kfold_images', folds=4) == 4
