"""Evaluation's files: what is written is read, and what is torn is noticed."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.evaluation import runs
from fer_jax.evaluation import workdir as workdir_lib


@pytest.fixture
def copied(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / 'run')


def test_what_is_written_is_read(finished):
  evaluation = workdir_lib.read_evaluation(finished, 'test')
  assert evaluation is not None
  again = finished.parent / 'again'
  again.mkdir()
  workdir_lib.write_evaluation(again, evaluation)
  reread = workdir_lib.read_evaluation(again, 'test')
  assert reread is not None
  assert reread.metrics == evaluation.metrics
  np.testing.assert_array_equal(reread.ids, evaluation.ids)
  np.testing.assert_array_equal(reread.logits, evaluation.logits)
  assert reread.examples is not None
  assert reread.examples.token_grid == (3, 3)
  assert reread.examples.mistakes is not None
  assert len(reread.examples.mistakes) == 24
  assert reread.examples.mistakes.images.dtype == np.uint8
  assert reread.examples.attended is not None
  np.testing.assert_allclose(
    reread.examples.attended.attention.sum(-1), 1, rtol=1e-6
  )
  # Temporary files are gone.
  assert sorted(path.name for path in again.iterdir()) == [
    'examples_test.npz',
    'metrics_test.json',
    'predictions_test.npz',
  ]


def test_an_evaluation_may_have_no_mistakes_and_no_attention(
  finished, tmp_path
):
  evaluation = workdir_lib.read_evaluation(finished, 'test')
  bare = workdir_lib.Evaluation(
    'test',
    evaluation.metrics,
    evaluation.ids,
    evaluation.logits,
    evaluation.labels,
    workdir_lib.Examples(None, None, None),
  )
  workdir_lib.write_evaluation(tmp_path, bare)
  assert workdir_lib.read_evaluation(tmp_path, 'test').examples == bare.examples


def test_a_split_that_was_not_evaluated_is_none(copied):
  (copied / 'metrics_test.json').unlink()
  assert workdir_lib.read_evaluation(copied, 'test') is None


def _with(path, **changes):
  with np.load(path) as archive:
    arrays = dict(archive)
  np.savez(path, **(arrays | changes))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path, _: path.unlink(), 'is missing; run evaluate'),
    (lambda path, _: path.write_bytes(b'no archive'), 'is damaged'),
    (
      lambda path, arrays: _with(path, id=arrays['id'][::-1]),
      'holds 240 ids that are not the 240',
    ),
    (
      lambda path, arrays: _with(path, logits=arrays['logits'] + 1),
      'other logits or labels',
    ),
    (
      lambda path, arrays: np.savez(path, id=arrays['id']),
      "no array 'logits'",
    ),
  ],
)
def test_predictions_that_do_not_match_are_refused(copied, damage, message):
  path = copied / 'predictions_test.npz'
  with np.load(path) as archive:
    arrays = dict(archive)
  damage(path, arrays)
  with pytest.raises(UserError, match=message) as caught:
    workdir_lib.read_evaluation(copied, 'test')
  assert '\n' not in str(caught.value)


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  files.write_bytes(path, b'before')

  def fail(_):
    raise OSError('disk full')

  monkeypatch.setattr(files.os, 'fsync', fail)
  with pytest.raises(OSError, match='disk full'):
    files.write_bytes(path, b'after')
  assert path.read_bytes() == b'before'
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('failing', 'step'), [('write_json', 500), ('replace', 900)]
)
def test_a_kill_amid_writing_leaves_one_whole_evaluation(
  copied, monkeypatch, failing, step
):
  before = workdir_lib.read_evaluation(copied, 'test')
  after = dataclasses.replace(
    before,
    metrics=before.metrics | {'checkpoint': {'step': step}},
    logits=before.logits + 1,
    examples=workdir_lib.Examples(None, None, None),
  )

  def kill(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    # Before the metrics are there, or before the others have their names.
    owner = files if failing == 'write_json' else pathlib.Path
    patch.setattr(owner, failing, kill)
    with pytest.raises(KeyboardInterrupt):
      workdir_lib.write_evaluation(copied, after)
  found = workdir_lib.read_evaluation(copied, 'test')
  expected = before if failing == 'write_json' else after
  np.testing.assert_array_equal(found.logits, expected.logits)
  assert (found.examples.mistakes is None) == (expected is after)
  # The next writing leaves nothing of it behind.
  workdir_lib.write_evaluation(copied, before)
  assert not list(copied.glob('.*'))
  assert workdir_lib.read_evaluation(copied, 'test').metrics == before.metrics


def test_the_last_evaluation_counts_whatever_its_views(copied):
  plain = workdir_lib.read_evaluation(copied, 'test')
  units = np.array([f'P{n // 8}' for n in range(240)])
  for views, time in ((('plain', 'flip'), '2026'), (('crops',), '2024')):
    metrics = plain.metrics | {'views': list(views), 'time': time}
    part = workdir_lib.part_of('test', views)
    made = dataclasses.replace(
      plain, split=part, metrics=metrics, logits=plain.logits + 1, units=units
    )
    workdir_lib.write_evaluation(copied, made)
  assert (copied / 'metrics_test_flip.json').exists()
  found = workdir_lib.latest_evaluation(copied, 'test')
  assert (found.split, found.metrics['time']) == ('test', '2026')
  np.testing.assert_array_equal(found.units, units)
  kept = workdir_lib.read_evaluation(copied, 'test')
  np.testing.assert_array_equal(kept.logits, plain.logits)
  # The units are part of what the digest is of.
  _with(copied / 'predictions_test_flip.npz', unit=units[::-1])
  with pytest.raises(UserError, match='--split=test --tta=flip again'):
    workdir_lib.latest_evaluation(copied, 'test')


def test_damage_of_what_was_scored_elsewhere_is_noted_with_its_command(copied):
  for name in (
    'rafdb',
    'rafdb_of_0123abcd_test',
    'image_folder_test',
    'image_folder_test_crops_flip',
  ):
    (copied / f'metrics_on_{name}.json').write_text('{"n": -1}')
  run = runs.read(copied)
  assert run.elsewhere == {}
  folder, flipped, rafdb, chosen = run.notes
  assert '--dataset=rafdb again' in rafdb
  assert '--dataset=rafdb --split=test (with its --option' in chosen
  assert '--dataset=image_folder --split=test again' in folder
  assert '--split=test --tta=crops,flip again' in flipped


def test_metrics_are_strict_json(finished):
  text = (finished / 'metrics_test.json').read_text()

  def refuse(constant):
    raise AssertionError(constant)

  assert json.loads(text, parse_constant=refuse)['looks'] == 3
