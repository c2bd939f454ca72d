"""Figures by group, against counts worked by hand and the normal interval."""

import json

import numpy as np
import pytest

from fer_jax.evaluation import groups, wording

NAMES = ('happy', 'sad')


def _predictions(cells):
  """Logits, labels and groups of (group, label, said, how often) cells."""
  rows = [(g, y, p) for g, y, p, count in cells for _ in range(count)]
  value, labels, said = zip(*rows, strict=True)
  logits = 3.0 * np.eye(2)[list(said)]
  return logits, np.array(labels), np.array(value)


# women: 20 happy, all right; 20 sad, 10 right: 30 of 40.
# men: 20 happy, 10 right; 40 sad, 20 right: 30 of 60.
# unsure: 4 happy, none right.
CELLS = (
  ('female', 0, 0, 20),
  ('female', 1, 1, 10),
  ('female', 1, 0, 10),
  ('male', 0, 0, 10),
  ('male', 0, 1, 10),
  ('male', 1, 1, 20),
  ('male', 1, 0, 20),
  ('unsure', 0, 1, 4),
)


@pytest.fixture(scope='module')
def gender():
  logits, labels, values = _predictions(CELLS)
  found = groups.group_scores(
    logits, labels, {'gender': values}, NAMES, n_boot=4000
  )
  assert list(found) == ['gender']
  return found['gender']


def test_figures_of_each_group_by_hand(gender):
  found = gender['groups']
  assert {name: group['n'] for name, group in found.items()} == {
    'female': 40,
    'male': 60,
    'unsure': 4,
  }
  assert found['female']['accuracy'] == 30 / 40
  assert found['male']['accuracy'] == 30 / 60
  # F1 = 2 TP / (true + predicted). Women: happy 40 / (20 + 30), sad
  # 20 / (20 + 10). Men: happy 20 / (20 + 30), sad 40 / (40 + 30).
  assert found['female']['macro_f1'] == pytest.approx((4 / 5 + 2 / 3) / 2)
  assert found['male']['macro_f1'] == pytest.approx((2 / 5 + 4 / 7) / 2)
  # Only happy occurs among the unsure.
  assert found['unsure']['macro_f1'] == 0
  low, high = found['male']['intervals']['accuracy']
  half_width = 1.96 * np.sqrt(0.25 / 60)
  assert (high - low) / 2 == pytest.approx(half_width, abs=0.02)


def test_the_gap_passes_over_small_groups(gender):
  gap = gender['gap']
  assert (gap['best'], gap['worst']) == ('female', 'male')
  assert gap['accuracy'] == pytest.approx(0.25)
  # Two independent shares: variances add.
  half_width = 1.96 * np.sqrt(0.75 * 0.25 / 40 + 0.5 * 0.5 / 60)
  low, high = gap['interval']
  assert low == pytest.approx(0.25 - half_width, abs=0.02)
  assert high == pytest.approx(0.25 + half_width, abs=0.02)


def _counts(n, right):
  """n examples that occur once, the first of them right."""
  return np.stack([np.ones(n), np.arange(n) < right], axis=1)


def test_twenty_examples_are_enough_and_nineteen_are_not():
  def gap(count, copies=1):
    made = {'a': _counts(30, 15), 'b': copies * _counts(count, count)}
    return groups.accuracy_gap(made, n_boot=100)

  assert gap(20)['best'] == 'b'
  assert gap(19) is None
  assert gap(19, copies=2) is None


def test_copies_of_an_example_do_not_narrow_the_gap():
  logits, labels, values = _predictions(CELLS)
  rows = np.repeat(np.arange(len(labels)), 9)
  found = groups.group_scores(
    logits[rows],
    labels[rows],
    {'gender': values[rows]},
    NAMES,
    units=np.array([f'face{n}' for n in rows]),
    n_boot=4000,
  )['gender']
  # That of the examples once, as by hand above.
  half_width = 1.96 * np.sqrt(0.75 * 0.25 / 40 + 0.5 * 0.5 / 60)
  low, high = found['gap']['interval']
  assert found['gap']['accuracy'] == pytest.approx(0.25)
  assert low == pytest.approx(0.25 - half_width, abs=0.02)
  assert high == pytest.approx(0.25 + half_width, abs=0.02)
  low, high = found['groups']['male']['intervals']['accuracy']
  assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / 60), abs=0.02)


def test_equal_groups_have_a_gap_of_chance_alone():
  gap = groups.accuracy_gap({name: _counts(50, 30) for name in 'ab'})
  assert {gap['best'], gap['worst']} == {'a', 'b'}
  assert gap['accuracy'] == 0
  low, high = gap['interval']
  assert low < 0 < high


def test_groups_without_a_mistake_have_a_gap_of_unknown_interval():
  gap = groups.accuracy_gap({name: _counts(50, 50) for name in 'ab'})
  assert (gap['accuracy'], gap['interval']) == (0, None)
  assert wording.gap(gap) == 'Largest gap: 0.0 points, a over b.'


def test_figures_are_json_and_none_without_attributes():
  logits, labels, values = _predictions(CELLS)
  numbered = {'age': values, 'race': np.repeat(['x'], len(values))}
  found = groups.group_scores(logits, labels, numbered, NAMES, n_boot=10)
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert found['race']['gap'] is None
  assert found['race']['groups']['x']['n'] == len(values)
  assert groups.group_scores(logits, labels, {}, NAMES) == {}
