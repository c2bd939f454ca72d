"""The step: what each setting does, against arithmetic done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_populations as small

from fer_jax.data import augment
from fer_jax.training import optim, step
from fer_jax.training.state import (
  HPARAMS,
  decay_mask,
  initial_state,
  split,
)

SIZE, CLASSES, BATCH = small.SIDE, small.CLASSES, 8
PLAN = step.Plan(jax.random.key(0))
PLAIN_SGD = optim.OptimSettings(name='sgd', momentum=0.0)


def _start(settings, **hparams):
  graphdef, params, model_state = split(small.model(jax.random.key(0)))
  values = {
    **dict.fromkeys(HPARAMS, 0.0),
    'learning_rate': 0.1,
    'augment_strength': 1.0,
    **hparams,
  }
  state = initial_state(
    params,
    model_state,
    optim.direction(settings.optim).init(params),
    values,
    ema=settings.ema_decay > 0,
  )
  return graphdef, state


def _images(count=BATCH, seed=0):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, CLASSES, count)
  image = rng.integers(0, 200, (count, SIZE, SIZE, 1), np.uint8)
  image[:, :4] += (50 * label).astype(np.uint8)[:, None, None, None]
  return {
    'image': jnp.asarray(image),
    'target': jnp.eye(CLASSES)[label],
  }


def _batch(count=BATCH, seed=0):
  return {**_images(count, seed), 'weight': jnp.ones(count)}


_jitted = jax.jit(step.train_step, static_argnames=('graphdef', 'settings'))


def _step(settings, batch, key=0, class_weights=None, **hparams):
  graphdef, state = _start(settings, **hparams)
  return state, *_jitted(
    state,
    batch,
    step.Plan(jax.random.key(key), class_weights=class_weights),
    graphdef=graphdef,
    settings=settings,
  )


def _close(a, b, tolerance=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b
  )


def test_padding_changes_nothing():
  settings = step.StepSettings(batch_size=BATCH, optim=PLAIN_SGD)
  batch = _batch()
  padded = {
    'image': jnp.concatenate([batch['image'], batch['image'][:3] * 3]),
    'target': jnp.concatenate(
      [batch['target'], jnp.full((3, CLASSES), jnp.nan)]
    ),
    'weight': jnp.concatenate([batch['weight'], jnp.zeros(3)]),
  }
  _, state, sums = _step(settings, batch)
  _, padded_state, padded_sums = _step(settings, padded)
  _close(sums, padded_sums)
  _close(state.params, padded_state.params)
  _close(state.model_state, padded_state.model_state)


def test_l2_adds_twice_itself_times_the_kernel_to_the_gradient():
  settings = step.StepSettings(batch_size=BATCH, optim=PLAIN_SGD)
  before, without, _ = _step(settings, _batch())
  _, with_l2, _ = _step(settings, _batch(), l2=0.01)
  expected = jax.tree.map(
    lambda p, moved, decayed: moved - 0.1 * 2 * 0.01 * p if decayed else moved,
    before.params,
    without.params,
    decay_mask(before.params),
  )
  _close(with_l2.params, expected)


def test_weight_decay_is_decoupled_and_acts_on_kernels_alone():
  settings = step.StepSettings(
    batch_size=BATCH, optim=optim.OptimSettings(name='adamw')
  )
  before, without, _ = _step(settings, _batch())
  _, decayed_state, _ = _step(settings, _batch(), weight_decay=0.05)
  expected = jax.tree.map(
    lambda p, moved, decayed: moved - 0.1 * 0.05 * p if decayed else moved,
    before.params,
    without.params,
    decay_mask(before.params),
  )
  _close(decayed_state.params, expected)


def test_class_weights_scale_each_examples_loss():
  batch = _batch()
  settings = step.StepSettings(batch_size=BATCH, optim=PLAIN_SGD)
  _, _, sums = _step(settings, batch, class_weights=jnp.array([0.0, 2.0, 0.0]))
  only = {**batch, 'weight': batch['target'][:, 1]}
  # The same logits (BatchNorm sees all rows), summed by hand.
  graphdef, state = _start(settings)
  from fer_jax import metrics
  from fer_jax.training.state import merge

  images, targets = step.prepare(batch)
  logits = merge(graphdef, state.params, state.model_state)(
    images, train=True, key=jax.random.key(1), dropout=0.0
  )
  expected = 2.0 * metrics.sums(logits, targets, only['weight'])['loss']
  assert float(sums['loss']) == pytest.approx(float(expected), rel=1e-5)


def test_averages_follow_the_parameters():
  settings = step.StepSettings(batch_size=BATCH, optim=PLAIN_SGD, ema_decay=0.5)
  before, after, _ = _step(settings, _batch())
  # The first step keeps (1 + 0) / (10 + 0) of the start.
  expected = jax.tree.map(
    lambda old, new: 0.1 * old + 0.9 * new,
    {'params': before.params, 'model_state': before.model_state},
    {'params': after.params, 'model_state': after.model_state},
  )
  _close(after.ema, expected)


def test_dropout_and_augmentation_draw_by_step_and_key():
  settings = step.StepSettings(
    batch_size=BATCH, optim=PLAIN_SGD, augmentation=augment.Augmentation()
  )
  _, first, _ = _step(settings, _batch(), dropout=0.5)
  _, again, _ = _step(settings, _batch(), dropout=0.5)
  _, other, _ = _step(settings, _batch(), key=1, dropout=0.5)
  jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
  different = jax.tree.leaves(
    jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.params, other.params)
  )
  assert any(different)


def _block_run(settings, ends, **hparams):
  graphdef, state = _start(settings, **hparams)
  block = step.make_block(graphdef, settings)
  images = _images(20)
  order = jnp.concatenate([jnp.arange(20), jnp.zeros(4)]).astype(jnp.int32)
  start, totals = 0, step.zero_sums()
  for stop in ends:
    state, totals = block(state, totals, images, order, 20, start, stop, PLAN)
    start = stop
  return state, totals, block


def test_how_steps_fall_into_blocks_changes_no_bit():
  settings = step.StepSettings(
    batch_size=BATCH, augmentation=augment.Augmentation(erasing=0.5)
  )
  whole, sums, _ = _block_run(settings, [3], dropout=0.3)
  single, single_sums, _ = _block_run(settings, [1, 2, 3], dropout=0.3)
  jax.tree.map(np.testing.assert_array_equal, whole, single)
  assert float(sums['weight']) == 20.0
  assert sums == single_sums


def test_learning_rates_share_one_compilation():
  settings = step.StepSettings(batch_size=BATCH)
  state, _, block = _block_run(settings, [3])
  changed = state._replace(
    hparams={name: jnp.float32(0.01) for name in HPARAMS}
  )
  order = jnp.zeros(24, jnp.int32)
  zero = step.zero_sums()
  block(changed, zero, _images(20), order, 20, 0, 2, PLAN)
  assert block._cache_size() == 1


def test_a_loss_that_is_not_finite_ends_the_block_at_its_step():
  settings = step.StepSettings(batch_size=BATCH, optim=PLAIN_SGD)
  state, _, _ = _block_run(settings, [3], learning_rate=float('inf'))
  assert not bool(state.progress.active)
  assert int(state.step) == 2


def test_a_small_set_is_learnt_by_heart():
  settings = step.StepSettings(batch_size=BATCH)
  graphdef, state = _start(settings, learning_rate=0.02)
  block = step.make_block(graphdef, settings)
  validate = step.make_validation(graphdef, settings)
  images = _images(20)
  order = jnp.concatenate([jnp.arange(20), jnp.zeros(4)]).astype(jnp.int32)
  before = step.means(validate(state, images, order, 20))
  for _ in range(100):
    state, sums = block(state, step.zero_sums(), images, order, 20, 0, 3, PLAN)
  after = step.means(sums)
  assert before['accuracy'] < 0.7
  assert after['accuracy'] == 1.0
  assert after['loss'] < 0.1
