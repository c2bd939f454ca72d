"""The shape of the next turn, by the rule in `tuning.shapes`."""

import pytest

from fer_jax import files
from fer_jax.training import rollback
from fer_jax.tuning import (
  Space,
  choice,
  log_uniform,
  queue,
  search,
  shapes,
  study,
  worker,
)
from fer_jax.tuning.shapes import Tried


def test_turns_alternate_and_nothing_is_kept_that_was_not_good():
  tried = [Tried('a', 0.5, 1.0)]
  assert shapes.choose([], free_turns=0, kept_turns=0) is None
  assert shapes.choose(tried, free_turns=0, kept_turns=0) == 'a'
  assert shapes.choose(tried, free_turns=0, kept_turns=1) is None
  assert shapes.choose(tried, free_turns=1, kept_turns=1) == 'a'
  failed = [Tried('a', None, 1.0)]
  assert shapes.choose(failed, free_turns=1, kept_turns=1) is None


@pytest.mark.parametrize(
  ('trials', 'population', 'looks'),
  [(18, 2, 5), (64, 4, 8), (16, 1, 8), (16, 16, 1), (1, 1, 1)],
)
def test_half_of_the_trials_look_at_shapes(trials, population, looks):
  assert shapes.first_looks(trials, population) == looks


def test_a_shape_promises_good_trials_a_second():
  # 8 trials: the best two are good, 0.9 and 0.8.
  tried = [
    *(Tried('slow', value, 4.0) for value in (0.9, 0.1, 0.1)),
    *(Tried('fast', value, 1.0) for value in (0.8, 0.7, None, 0.2)),
    Tried('pruned', None, 1.0),
  ]
  promised = shapes.promises(tried)
  assert promised == pytest.approx(
    {
      'slow': (1 + 1) / (3 + 4) / 4.0,
      'fast': (1 + 1) / (4 + 4) / 1.0,
      'pruned': (0 + 1) / (1 + 4) / 1.0,
    }
  )
  assert shapes.choose(tried, free_turns=2, kept_turns=1) == 'fast'


def test_a_shape_that_does_not_fit_promises_nothing():
  tried = [Tried('large', None, 0.0), Tried('small', 0.4, 2.0)]
  assert shapes.promises(tried)['large'] == 0
  assert shapes.choose(tried, free_turns=2, kept_turns=1) == 'small'


def test_a_shape_is_not_cheap_for_being_pruned_soon():
  tried = [
    *(Tried('good', value, 9.0) for value in (0.9, 0.8)),
    *(Tried('pruned', None, 1.0, 1 / 9) for _ in range(2)),
    Tried('rolled back', None, 4.0, 4 / 9),
  ]
  promised = shapes.promises(tried)
  assert promised['good'] == pytest.approx(3 / 6 / 9)
  assert promised['pruned'] == pytest.approx(1 / 6 / 9)
  assert promised['rolled back'] == pytest.approx(1 / 5 / 9)


def test_a_shape_is_not_favoured_for_having_been_tried_most():
  """The best of many is higher than that of few, whatever the shape."""
  tried = [
    *(Tried('often', value / 20, 1.0) for value in range(16)),
    *(Tried('seldom', value, 1.0) for value in (0.7, 0.6)),
  ]
  assert max(t.score for t in tried if t.shape == 'often') > 0.7
  assert shapes.choose(tried, free_turns=2, kept_turns=1) == 'seldom'


TRIALS = 8


@pytest.fixture
def queues(config, tmp_path, monkeypatch):
  """Makes two queues of a study, of six shapes."""
  monkeypatch.setattr(queue, 'device_seconds', lambda workdir: 1.0)
  # A disk may take a while for each.
  monkeypatch.setattr(files, 'write_json', lambda path, value: None)
  space = Space(
    {
      'optim.learning_rate': log_uniform(1e-3, 1e-1),
      'model.units': choice(2, 3, 4),
      'train.batch_size': choice(16, 32),
    },
    config,
  )

  def make(name, looks):
    folder = tmp_path / name
    folder.mkdir()
    held = study.Study(
      study.Storage(f'sqlite:///{folder}/study.db', name),
      space,
      search.Settings(),
      metric='accuracy',
      epochs=1,
      validate_every=1,
    )
    held.enqueue(space.stored_base())
    return [queue.Trials(held, space, folder, TRIALS, looks) for _ in range(2)]

  return make


def _turns(trials, population):
  """(whether it looks, shape) of each turn, the most units being the best."""
  turns = []
  while head := trials.head():
    size = population * (1 if head.looks else worker.TURN)
    runs = [head, *trials.more(head.shape, size - 1)]
    assert {run.shape for run in runs} == {head.shape}
    turns.append((head.looks, head.shape, len(runs)))
    for run in runs:
      value = run.config.model.units + run.config.optim.learning_rate
      trials.end(run, queue.Ending('complete', value))
  return turns


def test_other_shapes_are_looked_at_before_any_is_kept(queues):
  looks = shapes.first_looks(TRIALS, 1)
  trials, _ = queues('one', looks)
  turns = _turns(trials, 1)
  looked = [shape for looks, shape, count in turns if looks and count == 1]
  assert len(looked) == len(set(looked)) == looks == 4
  assert looked[0] == 'model.units=2 train.batch_size=32'  # the config's own
  assert [(looks, count) for looks, _, count in turns[4:]] == [(False, 2)] * 2
  kept = turns[4][1]
  assert kept in looked
  assert kept.startswith(max(shape.split()[0] for shape in looked))
  again, _ = queues('two', looks)
  assert _turns(again, 1) == turns  # the draws are the seed's


def test_epochs_that_came_to_nothing_are_part_of_a_trial(queues, monkeypatch):
  monkeypatch.setattr(queue, 'device_seconds', lambda workdir: 4.0)
  monkeypatch.setattr(rollback, 'undone', lambda workdir: [1.0] * 4)
  tried = []
  monkeypatch.setattr(
    shapes, 'choose', lambda all_of, **_: tried.extend(all_of)
  )
  trials, _ = queues('one', 0)
  trials.end(trials.head(), queue.Ending('failed', reason='not finite'))
  trials.head()
  (one,) = tried
  assert (one.score, one.seconds, one.share) == (None, 4.0, 4 / 2)


def test_workers_do_not_look_at_one_shape(queues):
  one, other = queues('one', 6)
  heads = [trials.head() for trials in (one, other) * 3]
  assert all(head.looks for head in heads)
  assert len({head.shape for head in heads}) == 6
  assert not one.head().looks  # there is no seventh
