"""The shape of the next turn, by the rule in `tuning.shapes`."""

import pytest

from fer_jax.tuning import shapes
from fer_jax.tuning.shapes import Tried


def test_turns_alternate_and_nothing_is_kept_that_was_not_good():
  tried = [Tried('a', 0.5, 1.0)]
  assert shapes.choose([], free_turns=1, kept_turns=0) is None
  assert shapes.choose(tried, free_turns=1, kept_turns=1) is None
  assert shapes.choose(tried, free_turns=1, kept_turns=0) == 'a'
  failed = [Tried('a', None, 1.0)]
  assert shapes.choose(failed, free_turns=1, kept_turns=0) is None


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


def test_a_shape_is_not_favoured_for_having_been_tried_most():
  """The best of many is higher than that of few, whatever the shape."""
  tried = [
    *(Tried('often', value / 20, 1.0) for value in range(16)),
    *(Tried('seldom', value, 1.0) for value in (0.7, 0.6)),
  ]
  assert max(t.score for t in tried if t.shape == 'often') > 0.7
  assert shapes.choose(tried, free_turns=2, kept_turns=1) == 'seldom'
