"""Evaluation of a small run as training leaves it, its model untrained."""

import dataclasses
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import datasets, files
from fer_jax.data import ledger, protocol, resize
from fer_jax.errors import UserError
from fer_jax.evaluation import evaluate, runs, scores, summary
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.training import task
from fer_jax.training.inference import Predictor

N_BOOT = 200


@pytest.fixture
def copied(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'run')


def _dataset(workdir):
  config = config_lib.load_json(workdir / 'config.json')
  return datasets.load(
    'synthetic_faces', data_dir=config.data.data_dir, **config.data.options
  )


def test_validation_agrees_with_what_training_saw(trained):
  metrics = evaluate.evaluate(trained, 'validation', n_boot=N_BOOT)
  record = json.loads((trained / 'metrics.jsonl').read_text().splitlines()[-1])
  seen = record['validation']
  assert metrics['accuracy'] == pytest.approx(seen['accuracy'], abs=1e-6)
  assert metrics['loss'] == pytest.approx(seen['loss'], rel=1e-5)
  assert metrics['checkpoint'] == {
    'which': 'best',
    'step': record['step'],
    'epoch': 1,
  }
  assert 'looks' not in metrics
  evaluation = workdir_lib.read_evaluation(trained, 'validation')
  partition = protocol.resolve(_dataset(trained), 'official')
  np.testing.assert_array_equal(evaluation.ids, partition.validation_ids)


def test_test_split_is_scored_recorded_and_counted(trained):
  dataset = _dataset(trained)
  before = len(ledger.read(dataset))
  first = evaluate.evaluate(trained, 'test', n_boot=N_BOOT)
  second = evaluate.evaluate(
    trained, 'test', augmentations=('flip', 'crops'), n_boot=N_BOOT
  )
  entries = ledger.read(dataset)[before:]
  assert [entry['run'] for entry in entries] == [str(trained)] * 2
  assert entries[0]['figures']['accuracy'] == first['accuracy']
  assert second['looks'] == first['looks'] + 1
  assert second['views'] == ['crops', 'flip']
  assert second['loss'] != first['loss']

  # Beside the plain one, which cross-validation and claims go on with.
  plain = workdir_lib.read_evaluation(trained, 'test')
  assert plain.metrics['loss'] == first['loss']
  assert evaluate.evaluate_once(trained, 'test').metrics == plain.metrics
  evaluation = workdir_lib.latest_evaluation(trained, 'test')
  table = dataset.table
  np.testing.assert_array_equal(
    evaluation.ids, table['id'][table['official_split'] == 'test']
  )
  np.testing.assert_array_equal(
    evaluation.labels, table['label'][table['official_split'] == 'test']
  )
  again = scores.all_scores(
    evaluation.logits,
    evaluation.labels,
    second['class_names'],
    units=evaluation.units,
    n_boot=N_BOOT,
  )
  assert again['confusion'] == second['confusion']
  assert again['intervals'] == second['intervals']
  # Pictures of one person are drawn together.
  assert second['unit'] == 'subject'
  np.testing.assert_array_equal(
    evaluation.units, table['subject'][table['official_split'] == 'test']
  )
  said = summary.text(second)
  assert f'{100 * second["accuracy"]:.2f} %' in said
  assert f'look {second["looks"]} at exactly these examples of synth' in said


def test_runs_on_other_partitions_look_at_the_same_test(copied):
  first = evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  config = json.loads((copied / 'config.json').read_text())
  facts = json.loads((copied / 'run.json').read_text())
  config['data']['balance'] = 'oversample'
  dataset = _dataset(copied)
  partition = protocol.resolve(dataset, 'official', balance='oversample')
  assert partition.digest != facts['protocol']['digest']
  facts['protocol'] = partition.facts()
  (copied / 'config.json').write_text(json.dumps(config))
  (copied / 'run.json').write_text(json.dumps(facts))
  second = evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  assert second['looks'] == first['looks'] + 1
  # Of looks that were recorded without the test ids, those of this partition
  # are looks at this test.
  for digest in (partition.digest, 'another'):
    ledger.record(
      dataset,
      run='earlier',
      protocol='official',
      split='test',
      figures={},
      digest=digest,
    )
  third = evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  assert third['looks'] == second['looks'] + 2
  assert ledger.read(dataset)[-1]['test_digest'] == (
    workdir_lib.digest_of_ids(
      sorted(workdir_lib.read_evaluation(copied, 'test').ids)
    )
  )


def test_what_selects_is_a_look_where_another_protocol_reports_it(
  copied, monkeypatch
):
  monkeypatch.setattr(protocol.published, 'CHALLENGE', ('synthetic_faces',))
  looks = len(ledger.read(_dataset(copied)))
  metrics = evaluate.evaluate(copied, 'validation', n_boot=N_BOOT)
  assert metrics['looks'] == 1
  assert ledger.read(_dataset(copied))[looks]['split'] == 'validation'


def test_looks_do_not_depend_on_order_and_copies(trained):
  dataset = _dataset(trained)
  metrics = evaluate.evaluate(trained, 'validation', n_boot=N_BOOT)
  ids = np.array(['b', 'a', 'c'])
  looks = [
    evaluate.record_look(trained, dataset, metrics, ids[list(rows)])
    for rows in ((0, 1, 2), (2, 0, 1, 1), (0, 1))
  ]
  assert looks == [1, 2, 1]


@pytest.mark.parametrize(
  ('name', 'counted'),
  [
    ('synthetic_faces', [1, 1, 2]),
    ('image_folder', [1, 1, 2]),
    # A row's number or a published file name is one picture, however it came.
    ('fer2013', [1, 2, 3]),
    ('ferplus', [1, 2, 3]),
  ],
)
def test_equal_ids_of_other_builds_are_the_same_where_they_say_so(
  trained, tmp_path, name, counted
):
  metrics = evaluate.evaluate_once(trained, 'test').metrics
  one, other = (
    dataclasses.replace(
      _dataset(trained), name=name, checksum=checksum, root=tmp_path / 'build'
    )
    for checksum in ('c0', 'ff')
  )
  ids = np.array(['a', 'b'])
  looks = [
    evaluate.record_look(trained, build, metrics, ids)
    for build in (one, other, other)
  ]
  assert looks == counted


def test_copies_in_a_list_do_not_narrow_the_intervals(trained):
  predictor, dataset = Predictor.from_workdir(trained), _dataset(trained)
  dataset.table['attribute.all'] = np.full(len(dataset), 'one')
  del dataset.table['subject']
  index = np.repeat(np.arange(60), 9)
  logits, labels = evaluate.predict_rows(
    predictor, dataset, np.arange(60), ('plain',)
  )
  logits, labels = np.repeat(logits, 9, axis=0), np.repeat(labels, 9)
  rows = evaluate.SplitRows(
    index, dataset.table['id'][index], {'part': index < 40}, {}
  )
  found = evaluate.figures(
    predictor, dataset, rows, logits, labels, n_boot=N_BOOT
  )
  given = {'class_names': predictor.class_names, 'n_boot': N_BOOT}
  expected = scores.all_scores(logits, labels, units=rows.ids, **given)
  apart = scores.all_scores(logits, labels, **given)
  assert found['intervals'] == expected['intervals'] != apart['intervals']
  (group,) = found['groups']['all']['groups'].values()
  assert group['intervals'] == expected['intervals']
  part = rows.slices['part']
  expected = scores.all_scores(
    logits[part], labels[part], units=rows.ids[part], **given
  )
  assert found['slices']['part']['intervals'] == expected['intervals']
  # Where the set names recordings alone, those are the units.
  dataset.table['sequence'] = np.arange(len(dataset)) // 8
  unit, units = evaluate.units_of(dataset, index)
  assert (unit, units.tolist()) == ('sequence', (index // 8).tolist())


def test_examples_are_the_worst_mistakes_with_their_images(trained):
  evaluate.evaluate(trained, 'validation', n_boot=N_BOOT)
  evaluation = workdir_lib.read_evaluation(trained, 'validation')
  mistakes = evaluation.examples.mistakes
  wrong = evaluation.logits.argmax(-1) != evaluation.labels
  assert len(mistakes) == min(wrong.sum(), evaluate.MISTAKES)
  losses = -np.log(mistakes.probs[np.arange(len(mistakes)), mistakes.labels])
  assert np.all(np.diff(losses) <= 1e-6)
  assert not np.any(mistakes.probs.argmax(-1) == mistakes.labels)
  dataset = _dataset(trained)
  row = int(np.flatnonzero(dataset.table['id'] == mistakes.ids[0])[0])
  (stored,) = dataset.read(np.array([row]))
  size = mistakes.images.shape[1:3]
  np.testing.assert_array_equal(
    mistakes.images[0], resize.convert(stored, size=size, channels=1)
  )
  attended = evaluation.examples.attended
  np.testing.assert_array_equal(attended.labels, np.unique(evaluation.labels))
  rows, columns = evaluation.examples.token_grid
  assert attended.attention.shape == (len(attended), rows * columns)
  np.testing.assert_allclose(attended.attention.sum(-1), 1, rtol=1e-5)


def test_figures_by_group_where_the_data_set_has_attributes(
  copied, monkeypatch
):
  assert evaluate.evaluate(copied, 'validation', n_boot=N_BOOT)['groups'] == {}
  load = task.load_dataset

  def with_attribute(config):
    dataset = load(config)
    gender = np.where(np.arange(len(dataset)) % 4, 'female', 'male')
    dataset.table['attribute.gender'] = gender
    return dataset

  monkeypatch.setattr(task, 'load_dataset', with_attribute)
  metrics = evaluate.evaluate(copied, 'validation', n_boot=N_BOOT)
  evaluation = workdir_lib.read_evaluation(copied, 'validation')
  table = _dataset(copied).table
  right = evaluation.logits.argmax(-1) == evaluation.labels
  rows = np.flatnonzero(np.isin(table['id'], evaluation.ids))
  female = rows % 4 > 0
  found = metrics['groups']['gender']['groups']
  assert found['female']['n'] == female.sum()
  assert found['female']['accuracy'] == pytest.approx(right[female].mean())
  assert found['male']['accuracy'] == pytest.approx(right[~female].mean())
  assert metrics['groups']['gender']['gap'] is None
  assert 'gap' in metrics['definitions']
  said = summary.text(metrics)
  assert '20 examples, or people or recordings where these are known' in said
  assert (
    f'female      {female.sum()}  {100 * right[female].mean():6.2f} [' in said
  )


def test_predictions_do_not_depend_on_how_many_are_read(trained, monkeypatch):
  predictor, dataset = Predictor.from_workdir(trained), _dataset(trained)
  index = np.arange(20)
  whole, labels = evaluate.predict_rows(predictor, dataset, index, ('plain',))
  monkeypatch.setattr(evaluate, 'ROWS_A_READ', 7)
  parts, _ = evaluate.predict_rows(predictor, dataset, index, ('plain',))
  np.testing.assert_allclose(parts, whole, atol=1e-6)
  np.testing.assert_array_equal(labels, dataset.table['label'][:20])


def test_a_run_on_other_data_or_another_partition_is_refused(copied):
  facts = json.loads((copied / 'run.json').read_text())
  changed = {**facts, 'dataset': {**facts['dataset'], 'checksum': 'other'}}
  (copied / 'run.json').write_text(json.dumps(changed))
  with pytest.raises(UserError, match='with checksum other'):
    evaluate.evaluate(copied, 'validation')
  changed = {**facts, 'dataset': {**facts['dataset'], 'version': '0.0.1'}}
  (copied / 'run.json').write_text(json.dumps(changed))
  with pytest.raises(UserError, match=r'trained on version 0\.0\.1 of'):
    evaluate.evaluate(copied, 'validation')
  changed = {**facts, 'protocol': {**facts['protocol'], 'digest': 'other'}}
  (copied / 'run.json').write_text(json.dumps(changed))
  looks = len(ledger.read(_dataset(copied), ledger.OPENED))
  with pytest.raises(UserError, match='digest other'):
    evaluate.evaluate(copied, 'test')
  # Refused before the test split was opened.
  assert len(ledger.read(_dataset(copied), ledger.OPENED)) == looks


def test_bad_input_is_one_clear_line(copied, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="--split is 'train'"):
    evaluate.evaluate(copied, 'train')
  with pytest.raises(UserError, match="--tta names 'mirror'"):
    evaluate.evaluate(copied, 'test', augmentations=('mirror',))
  with pytest.raises(UserError, match='no workdir'):
    evaluate.evaluate(tmp_path, 'test')

  def overflown(predictor, images, *_, **__):
    return np.where(np.arange(len(images))[:, None] == 3, np.inf, np.zeros(7))

  with monkeypatch.context() as context:
    context.setattr(Predictor, 'predict', overflown)
    ids = protocol.resolve(_dataset(copied), 'official').validation_ids
    with pytest.raises(
      UserError, match=rf'not finite on 1 of {len(ids)} .* first {ids[3]}'
    ):
      evaluate.evaluate(copied, 'validation')
  shutil.rmtree(copied / 'checkpoints')
  with pytest.raises(UserError, match='no intact checkpoint'):
    evaluate.evaluate(copied, 'validation')


def test_no_split_is_opened_whose_figures_have_no_room(copied, monkeypatch):
  dataset = _dataset(copied)
  before = ledger.read(dataset, ledger.OPENED)
  there = sorted(copied.iterdir())
  probed, fsync = [], os.fsync

  def refuse(file):
    size = os.fstat(file).st_size
    if size < 50_000:  # the disk is not yet full
      return fsync(file)
    probed.append(size)
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(files.os, 'fsync', refuse)
    for split in ('test', 'validation'):
      with pytest.raises(UserError, match=r'cannot write the fig.*No space'):
        evaluate.evaluate(copied, split, n_boot=N_BOOT)
  assert ledger.read(dataset, ledger.OPENED) == before
  assert sorted(copied.iterdir()) == there
  # As much as the files are, if nothing can be compressed, and not far more.
  evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  taken = (copied / 'metrics_test.json').stat().st_size
  for name in ('predictions', 'examples'):
    with zipfile.ZipFile(copied / f'{name}_test.npz') as archive:
      taken += sum(entry.file_size for entry in archive.infolist())
  assert taken < probed[0] < taken + 2 * evaluate._METRICS_BYTES


def test_figures_that_cannot_be_saved_after_all_are_shown(
  copied, monkeypatch, capsys, tmp_path
):
  """The disk fills up between the opening and the last file."""
  looks = len(ledger.read(_dataset(copied)))

  def fail(path, _):
    raise OSError(28, 'No space left on device', str(path))

  beside = tmp_path / 'beside.json'
  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', fail)
    with (
      pytest.raises(workdir_lib.UnsavedError, match=r'run: No space') as caught,
      summary.shown_if_unsaved(),
    ):
      evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  metrics = caught.value.metrics
  assert summary.text(metrics) in capsys.readouterr().out
  assert (
    ledger.read(_dataset(copied))[looks]['figures']['accuracy']
    == (metrics['accuracy'])
  )
  with pytest.raises(UserError), summary.shown_if_unsaved(str(beside)):
    raise caught.value
  assert json.loads(beside.read_text())['accuracy'] == metrics['accuracy']


def test_what_fails_before_the_figures_are_whole_is_no_look(
  copied, monkeypatch
):
  looks = len(ledger.read(_dataset(copied)))

  def fail(*_):
    raise UserError('damaged')

  monkeypatch.setattr(Predictor, 'attention', fail)
  with pytest.raises(UserError, match='damaged'):
    evaluate.evaluate(copied, 'test', n_boot=N_BOOT)
  assert len(ledger.read(_dataset(copied))) == looks


def test_an_empty_split_is_refused(copied, monkeypatch):
  resolve = protocol.resolve

  def without_validation(*args, **options):
    partition = resolve(*args, **options)
    object.__setattr__(partition, 'validation', np.zeros(0, np.int64))
    return partition

  monkeypatch.setattr(evaluate.protocol, 'resolve', without_validation)
  with pytest.raises(UserError, match='has no examples'):
    evaluate.evaluate(copied, 'validation')


@pytest.mark.parametrize(
  ('augmentations', 'views'),
  [
    ((), ('plain',)),
    (('flip',), ('plain', 'flip')),
    (('crops',), ('crops',)),
    (('crops', 'flip'), ('crops', 'flip')),
  ],
)
def test_views(augmentations, views):
  assert evaluate.checked_views(augmentations) == views


def test_the_report_of_a_real_run_reads_its_files(trained):
  evaluate.evaluate(trained, 'validation', n_boot=N_BOOT)
  run = runs.read(trained)
  assert 'validation' in run.evaluations
  assert runs.best_validation(run)['epoch'] == 1
  assert run.facts['protocol']['leaks'] is False
