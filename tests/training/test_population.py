"""A member is the same run done alone.

The reference is the single run on its feed. The same means, as in the design:
gradients from one state to 1e-5, 20 float32 steps to 1e-4, whole trainings in
float64, to 1e-9.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib

import jax
import many_devices
import numpy as np
import pytest
import small_populations as small

from fer_jax.data import randomness
from fer_jax.training import checkpoint, feed, population
from fer_jax.training import mapping as mapping_lib
from fer_jax.training import step as step_lib
from fer_jax.training.freezing import Freezing


@pytest.fixture(scope='module', autouse=True)
def _compiled_once():
  """Populations of this file share their programs."""
  with pytest.MonkeyPatch.context() as patch:
    shared = functools.cache(population._Programs)
    patch.setattr(population, '_Programs', shared)
    yield


@pytest.fixture(params=['in_turn', 'vmap'])
def mapping(request):
  return request.param


@functools.cache
def _member(number, **options):
  return small.member(number, **options)


def _population(mapping, numbers=(0, 1, 2), **options):
  return small.population_of([*map(_member, numbers)], mapping, **options)


def _take(population, blocks):
  for _ in itertools.islice(population.blocks(), blocks):
    pass


def _epoch(population):
  _take(population, None)
  return population.finish_epoch()


def _arrays(state):
  return jax.tree.map(np.array, state)


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _close(a, b, tolerance):
  """To a share of each array's largest element."""

  def close(x, y):
    largest = max(np.max(np.abs(y), initial=0), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)

  jax.tree.map(close, a, b)


@functools.cache
def _alone(number, **options):
  """State after the first step, and after the 20 steps that follow it."""
  member = _member(number, **options)
  first = jax.tree.map(jax.numpy.asarray, member.state)
  states = []
  for state, *_ in small.single_feed(member).train_epoch(first, 0):
    states.append(_arrays(state))
  assert int(states[1].step) == 21
  return states[:2]


def test_gradients_and_twenty_steps_are_those_of_single_runs(mapping):
  members = _population(mapping, block_steps=1)
  _take(members, 1)
  firsts = [_arrays(members.member_state(m)) for m in range(3)]
  _take(members, 20)
  for m, first in enumerate(firsts):
    alone = _alone(m)
    assert int(first.step) == 1
    # Adam's first moment is a tenth of the first gradient.
    _close(first.opt_state[1].mu, alone[0].opt_state[1].mu, 1e-5)
    state = _arrays(members.member_state(m))
    assert int(state.step) == 21
    _close(state, alone[1], 1e-4)


def test_a_member_can_go_on_alone(mapping):
  members = _population(mapping)
  _epoch(members)
  state = members.member_state(2)
  _take(members, 1)
  alone = small.single_feed(_member(2))
  alone._dispatched = True  # no first block of one step
  state, sums, taken = next(alone.train_epoch(state, 1))
  assert taken == 20
  assert float(sums['weight']) == 20 * small.BATCH
  _close(_arrays(members.member_state(2)), _arrays(state), 1e-4)


def test_one_that_diverges_disturbs_no_other(mapping):
  undisturbed = _population(mapping)
  bad = _member(1)._replace(state=_member(1, learning_rate=float('inf')).state)
  members = small.population_of([_member(0), bad, _member(2)], mapping)
  _take(members, 1)
  frozen = _arrays(members.member_state(1))
  assert int(frozen.step) == 2
  assert not frozen.progress.active
  records = _epoch(members)
  assert members.diverged.tolist() == [False, True, False]
  assert members.training.tolist() == [True, False, True]
  assert records[1]['step'] == 2
  assert 'validation' not in records[1]
  assert _epoch(members)[1] is None
  _equal(_arrays(members.member_state(1)), frozen)
  expected = _epoch(undisturbed)
  assert records[0] == expected[0]
  _epoch(undisturbed)
  for m in (0, 2):
    _equal(
      _arrays(members.member_state(m)), _arrays(undisturbed.member_state(m))
    )


def test_parameters_that_are_not_finite_at_the_end_are_divergence():
  """The last step's loss is of the parameters before it."""
  members = _population('in_turn')
  _take(members, None)
  state = members._own.state
  broken = jax.tree.map(lambda x: x.at[1].set(np.nan), state.params)
  members._own = members._own._replace(state=state._replace(params=broken))
  records = members.finish_epoch()
  assert members.diverged.tolist() == [False, True, False]
  assert [record and 'validation' in record for record in records] == [
    *(True, False, True)
  ]


def test_one_that_has_stopped_keeps_its_bits_while_others_train(mapping):
  first = _member(1).state
  beaten = first._replace(
    progress=first.progress._replace(best_metric=np.float32(2.0))
  )
  members = small.population_of(
    [_member(0), _member(1)._replace(state=beaten), _member(2)], mapping
  )
  for _ in range(2):
    assert members.active.all()
    _epoch(members)
  # Patience of 2 ended for the second; the third is pruned.
  assert members.active.tolist() == [True, False, True]
  assert not members.diverged.any()
  members.stop(2)
  stopped = [_arrays(members.member_state(m)) for m in (1, 2)]
  assert int(stopped[0].progress.waited) == 2
  records = _epoch(members)
  assert [record is None for record in records] == [False, True, True]
  assert records[0]['epoch'] == 3
  for m, before in zip((1, 2), stopped, strict=True):
    assert not before.progress.active
    _equal(_arrays(members.member_state(m)), before)
  _epoch(members)
  assert not members.training.any()
  assert members.epoch.tolist() == [4, 2, 2]
  assert bool(members.member_state(0).progress.active)


def test_a_place_is_given_away_between_blocks(mapping):
  members, undisturbed = _population(mapping), _population(mapping)
  _take(members, 1)
  newcomer = _member(5, fold=1)
  programs = members._programs
  compiled = [
    programs.block(small.SETTINGS), programs.validation, programs.order,
    programs.look, programs.advance,
  ]  # fmt: skip
  _epoch(undisturbed)  # so that all of them are compiled
  before = [program._cache_size() for program in compiled]
  members.replace(0, newcomer)
  assert members.number.tolist() == [5, 1, 2]
  assert members.steps_per_epoch.tolist() == [36, 36, 33]
  members.block_steps = 21
  _take(members, 1)
  state = _arrays(members.member_state(0))
  _close(state, _alone(5, fold=1)[1], 1e-4)
  records = _epoch(members)
  assert [record['step'] for record in records] == [36, 36, 33]
  assert [program._cache_size() for program in compiled] == before
  for m in (1, 2):
    _equal(
      _arrays(members.member_state(m)), _arrays(undisturbed.member_state(m))
    )
  with pytest.raises(ValueError, match='2304, or a larger capacity'):
    members.replace(0, newcomer._replace(train_rows=np.zeros(2305, int)))


def test_an_interrupted_population_resumes_to_the_same_bits(mapping, tmp_path):
  """Each from a checkpoint of its own, in the place of another."""
  members = _population(mapping)
  _epoch(members)
  members.stop(2)
  _take(members, 1)
  resumed = _population(mapping, (3, 4, 5))
  _take(resumed, 2)
  for m in range(3):
    state = members.member_state(m)
    with contextlib.closing(checkpoint.Writer(tmp_path / str(m))) as writer:
      writer.save(state, epoch=1, partial=members.partial(m, 0.0))
    sealed = checkpoint.latest_intact(tmp_path / str(m))
    restored = jax.device_get(checkpoint.restore(sealed, state))
    again = _member(m)._replace(state=restored, partial=sealed.partial)
    resumed.replace(m, again._replace(epoch=sealed.epoch))
  assert resumed.number.tolist() == [0, 1, 2]
  assert resumed.epoch.tolist() == [1, 1, 1]
  assert resumed.taken.tolist() == members.taken.tolist() == [20, 20, 0]
  while members.training.any():
    expected = _epoch(members)
  while resumed.training.any():
    records = _epoch(resumed)
  assert records == expected
  for name in ('epoch', 'steps_per_epoch', 'taken', 'active', 'diverged'):
    _equal(getattr(resumed, name), getattr(members, name))
  for m in range(3):
    _equal(_arrays(resumed.member_state(m)), _arrays(members.member_state(m)))


def test_balanced_draws_are_those_of_single_runs():
  members = _population('in_turn', sampling='class_balanced')
  epochs = np.array([1, 2, 3], np.int32)
  given = members._given
  orders = members._programs.order(
    given.train_rows,
    (given.plan.key, given.train_count, epochs),
    members._images,
  )
  member, count = _member(2), small.FOLDS[2][0]
  padded = feed.padded_length(count, small.BATCH)
  labels = small.images()['label'][member.train_rows]

  @jax.jit
  def alone(rows, key):
    order = functools.partial(
      randomness.balanced_order,
      labels=np.pad(labels, (0, padded - count)),
      num_classes=small.CLASSES,
    )
    return feed._rows_in_order(order, rows, key, 3, count, padded)

  expected = alone(member.train_rows, member.plan.key)
  np.testing.assert_array_equal(orders[2, :padded], expected)
  assert len(np.unique(orders[2, :count])) < 0.8 * count  # with replacement


def test_members_in_other_epochs_are_in_their_own_phase(monkeypatch):
  """With a block that takes no steps but says which settings it was given."""

  def run_block(state, sums, images, order, count, start, stop, plan, **static):
    thawed = static['settings'].freezing.thawed
    taken = (stop - start).astype(np.float32)
    return state, {**sums, 'loss': sums['loss'] + (1 + 999 * thawed) * taken}

  monkeypatch.setattr(step_lib, 'run_block', run_block)
  monkeypatch.setattr(population, '_order', lambda rows, *_, sampling: rows)
  frozen, thawed = (
    dataclasses.replace(small.SETTINGS, freezing=Freezing(('backbone',), n))
    for n in (0, 1)
  )
  members = _population(
    'in_turn',
    settings_of=lambda epoch: thawed if epoch else frozen,
    epochs=9,
    validate_every=9,
  )
  _epoch(members)
  _take(members, 1)
  members.replace(1, _member(4))
  _take(members, 1)
  losses = np.asarray(members._own.sums['loss'])
  assert losses.tolist() == [33000.0, 20.0, 33000.0]
  _take(members, None)
  losses = np.asarray(members._own.sums['loss'])
  assert losses.tolist() == [33000.0, 36.0, 33000.0]


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="mapping is 'scan'; allowed is 'auto'"):
    _population('scan')
  with pytest.raises(ValueError, match="sampling is 'all'"):
    _population('auto', sampling='all')
  assert mapping_lib.choose('auto', 'cpu') == 'in_turn'
  assert mapping_lib.choose('auto', 'gpu') == 'vmap'
  assert mapping_lib.choose('in_turn', 'gpu') == 'in_turn'


def test_whole_trainings_in_float64_on_one_device_and_on_eight():
  """Two epochs of nine members, validation and selection included."""
  script = pathlib.Path(__file__).with_name('members_on_devices.py')
  assert many_devices.checks_passed(script, devices=8, x64=True) == 2
