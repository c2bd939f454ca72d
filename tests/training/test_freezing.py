"""What is frozen does not move by a bit, costs nothing, and thaws on time."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_config
from flax import nnx

from fer_jax import models
from fer_jax.errors import UserError
from fer_jax.nn import BatchNorm
from fer_jax.training import checkpoint, freezing, loop, optim, task
from fer_jax.training import step as step_lib
from fer_jax.training.freezing import Freezing
from fer_jax.training.state import HPARAMS, initial_state, split

SIZE, CLASSES, BATCH = 16, 3, 8
BACKBONE = Freezing(('backbone.residual1.norm2', 'backbone'), 1)
"""The backbone but its second normalisation, thawed at the first step."""
PLAN = step_lib.Plan(jax.random.key(0), optim.Milestones(thaws=(0,)))


def _model():
  return models.create(
    'residual_gru',
    num_classes=CLASSES,
    rngs=nnx.Rngs(0),
    input_shape=(SIZE, SIZE, 1),
    **{**small_config.MODEL, 'stem_filters': (8,), 'filters': (8,)},
  )


@functools.cache
def _compiled(optimizer: str, frozen: Freezing):
  """(state, batch, compiled step); every way to move a parameter is on."""
  settings = step_lib.StepSettings(
    batch_size=BATCH,
    optim=optim.OptimSettings(name=optimizer, clip_norm=1.0),
    ema_decay=0.9,
    freezing=frozen,
  )
  graphdef, params, model_state = split(_model())
  values = dict.fromkeys(HPARAMS, 0.0)
  values |= {'learning_rate': 0.1, 'weight_decay': 0.1, 'l2': 0.1}
  opt_state = optim.direction(settings.optim).init(params)
  state = initial_state(params, model_state, opt_state, values, ema=True)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 255, (BATCH, SIZE, SIZE, 1), np.uint8),
    'target': np.eye(CLASSES, dtype=np.float32)[np.arange(BATCH) % CLASSES],
    'weight': np.ones(BATCH, np.float32),
  }
  step = functools.partial(
    step_lib.train_step, graphdef=graphdef, settings=settings
  )
  return state, batch, jax.jit(step).lower(state, batch, PLAN).compile()


def _by_path(tree) -> dict[str, np.ndarray]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _moved(before, after) -> set[str]:
  """Paths of the arrays of which any bit changed."""
  a, b = _by_path(before), _by_path(after)
  assert a.keys() == b.keys()
  return {path for path in a if a[path].tobytes() != b[path].tobytes()}


def _below(paths, *prefixes):
  return {p for p in paths if p.startswith(tuple(f'{x}.' for x in prefixes))}


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_what_is_frozen_does_not_move_by_a_bit(optimizer):
  before, batch, step = _compiled(optimizer, BACKBONE)
  state = before
  for _ in range(3):
    state, _ = step(state, batch, PLAN)
  trains = {
    path
    for path in _by_path(before.params)
    if not path.startswith('backbone') or '.residual1.norm2.' in path
  }
  assert _below(trains, 'backbone')
  assert _below(trains, 'logits')
  assert _moved(before.params, state.params) == trains
  assert _moved(before.ema['params'], state.ema['params']) == trains

  statistics = {f'backbone.residual1.norm2.{x}' for x in ('mean', 'var')}
  assert statistics < set(_by_path(before.model_state))
  assert _moved(before.model_state, state.model_state) == statistics
  assert _moved(before.ema['model_state'], state.ema['model_state']) == (
    statistics
  )

  # The optimiser's buffers: those of what trains, and Adam's count.
  descent = state.opt_state[1]._asdict()
  count = descent.pop('count', None)
  assert count is None or int(count) == 3
  for name, buffers in descent.items():
    assert _moved(getattr(before.opt_state[1], name), buffers) == trains


def test_a_frozen_backbone_costs_no_backward_pass():
  """Against the same step with nothing frozen, by XLA's own count.

  A backward pass is about twice the forward one, but the first layer's, and
  the optimiser's part goes too: a third is left, and what is not backbone.
  """

  def flops(frozen):
    return _compiled('adamw', frozen)[2].cost_analysis()['flops']

  whole = Freezing(('backbone',))
  assert flops(whole) < 0.65 * flops(freezing.NOTHING_FROZEN)
  # What trains at the backbone's end does not ask for its beginning.
  assert flops(whole) < flops(BACKBONE) < flops(freezing.NOTHING_FROZEN)


def test_a_frozen_batch_norm_is_the_one_of_evaluation():
  norm = BatchNorm(3)
  norm.mean[...] = jnp.array([1.0, 2.0, 3.0])
  x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
  expected = norm(x, True)
  norm.frozen = True
  np.testing.assert_array_equal(norm(x, False), expected)
  np.testing.assert_array_equal(norm.mean[...], [1.0, 2.0, 3.0])
  norm.frozen = False
  assert bool(jnp.any(norm(x, False) != expected))


def test_late_parameters_get_what_a_fresh_optimiser_gives_them():
  """Against Optax from the late parameter's first step, relative 1e-6."""
  settings = optim.OptimSettings(name='adam', clip_norm=0.1)
  params = {'early': jnp.arange(3.0), 'late': jnp.ones((2, 2))}
  fresh_of = optim.direction(settings)
  state, fresh = fresh_of.init(params), fresh_of.init(params)
  # Clipping sees what trains: the late gradient would dominate the norm.
  gradients = {'early': jnp.full(3, 0.02), 'late': None}
  for _ in range(4):
    updates, state = optim.update(
      settings, gradients, state, {'early': 0, 'late': None}, ()
    )
  assert updates['late'] is None
  np.testing.assert_allclose(state[1].mu['early'], 0.02 * (1 - 0.9**4), 1e-5)
  gradients = {'early': jnp.zeros(3), 'late': jnp.full((2, 2), 0.01)}
  for _ in range(3):
    updates, state = optim.update(
      settings, gradients, state, {'early': 0, 'late': 1}, (4,)
    )
    expected, fresh = fresh_of.update(gradients, fresh)
    np.testing.assert_allclose(updates['late'], expected['late'], 1e-6)
    assert bool(jnp.all(updates['early'] > 0))  # goes on, not from the start
  assert int(state[1].count) == 7


@pytest.mark.parametrize(
  ('pattern', 'path', 'said'),
  [
    ('backbone', 'backbone.conv1.conv.kernel', True),
    ('backbone', 'backbonex.kernel', False),
    ('backbone.conv', 'backbone.conv1.conv.kernel', False),
    ('backbone.conv?', 'backbone.conv1.conv.kernel', True),
    ('*.kernel', 'backbone.conv1.conv.kernel', False),
    ('backbone.*.norm*', 'backbone.residual1.norm2.scale', True),
    ('logits.kernel.value', 'logits.kernel', False),
  ],
)
def test_patterns_match_whole_names_from_the_left(pattern, path, said):
  assert freezing.matches(pattern, path) is said


def test_the_first_pattern_that_matches_owns_a_parameter():
  at_epoch = functools.partial(
    freezing.at_epoch, ('a.top', 'a.middle', 'a'), (2, 5)
  )
  paths = ('a.top.kernel', 'a.middle.kernel', 'a.kernel', 'b.kernel')
  for epochs, expected in (
    ((0, 1), (None, None, None, 0)),
    ((2, 4), (1, None, None, 0)),
    ((5, 99), (1, 2, None, 0)),
  ):
    for epoch in epochs:
      assert tuple(map(at_epoch(epoch=epoch).group, paths)) == expected
  assert at_epoch(epoch=2) == at_epoch(epoch=4)


@pytest.mark.parametrize(
  ('patterns', 'said'),
  [
    (('backbone.residual2',), r'did you mean .backbone\.residual1.\?'),
    (('head', 'nothing'), "names 'nothing', .* paths below backbone, body"),
    (('backbone', 'backbone.conv1'), 'put the narrower pattern first'),
    (('backbone', '*'), 'is all of tiny; allowed is what leaves'),
  ],
)
def test_patterns_that_do_not_fit_the_model_are_refused(patterns, said):
  params = split(nnx.eval_shape(_model))[1]
  freezing.check(('backbone.residual1', 'backbone'), params, model='tiny')
  with pytest.raises(UserError, match=said) as caught:
    freezing.check(patterns, params, model='tiny')
  assert '\n' not in str(caught.value)


def _gradual(config):
  config.optim.name = 'adamw'
  config.optim.weight_decay = 0.1
  config.optim.freeze = ('backbone.residual1', 'backbone')
  config.optim.unfreeze_epochs = (1,)
  config.train.epochs = 3
  config.train.ema_decay = 0.9
  return config


def _epoch(prepared, state, epoch):
  *_, (state, sums, _) = prepared.feed.train_epoch(state, epoch)
  return state, step_lib.means(sums)


def test_a_run_resumed_where_a_phase_begins_equals_one_that_went_through(
  tiny_config, tmp_path
):
  """Bit for bit, from a checkpoint, in programs compiled anew."""
  config = _gradual(tiny_config)
  prepared = task.prepare(config)
  state, _ = _epoch(prepared, prepared.initial_state(), 0)
  with contextlib.closing(checkpoint.Writer(tmp_path)) as writer:
    writer.save(state, epoch=1)
  state, _ = _epoch(prepared, state, 1)
  whole = _epoch(prepared, state, 2)

  sealed = checkpoint.latest_intact(tmp_path)
  before = checkpoint.restore(sealed, task.abstract_state(config, 7))
  frozen = jax.tree.map(np.asarray, (before.params, before.model_state))
  prepared = task.prepare(config)
  state, _ = _epoch(prepared, before, 1)
  resumed = _epoch(prepared, state, 2)
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  state, _ = resumed
  _only_the_block_thawed(_moved(frozen, (state.params, state.model_state)))


def _only_the_block_thawed(moved):
  names = {path.partition('backbone.')[2] for path in moved}
  assert {name.split('.')[0] for name in names} == {'', 'residual1'}
  assert {name.split('.')[-1] for name in names} >= {
    *('kernel', 'scale', 'bias', 'mean', 'var')
  }


def test_a_streamed_phase_begins_with_its_epoch(tiny_config):
  config = _gradual(tiny_config)
  config.data.residence = 'stream'
  prepared = task.prepare(config)
  state = prepared.initial_state()
  moved = []
  for epoch in (0, 1):
    before = jax.tree.map(np.asarray, (state.params, state.model_state))
    state, _ = _epoch(prepared, state, epoch)
    moved.append(_moved(before, (state.params, state.model_state)))
  assert moved[0]
  assert not any('backbone' in path for path in moved[0])
  _only_the_block_thawed(moved[1])


def test_a_pattern_is_refused_before_anything_is_compiled(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.optim.freeze = ('backbone.residual9',)
  monkeypatch.setattr(jax, 'jit', None)
  with pytest.raises(UserError, match=r'did you mean .backbone\.residual1'):
    loop.train(tiny_config, tmp_path)


def test_settings_of_equal_phases_are_equal(tiny_config):
  config = _gradual(tiny_config)
  settings = step_lib.StepSettings(batch_size=1)
  of = functools.partial(task.settings_of, config=config, settings=settings)
  assert of(0) != of(1) == of(2)
  assert of(1) == dataclasses.replace(
    settings, freezing=Freezing(('backbone.residual1', 'backbone'), 1)
  )
