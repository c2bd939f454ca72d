"""The optimiser against Optax's own, and schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax.training import optim
from fer_jax.training.state import decay_mask


def _params():
  key = jax.random.key(0)
  return {
    'dense': {
      'kernel': jax.random.normal(key, (4, 3)),
      'bias': jnp.arange(3.0),
    },
    'cells': {0: {'recurrent_kernel': jnp.ones((2, 8))}},
  }


def _gradients(params, n):
  return jax.tree.map(lambda p: jnp.sin(p * (n + 1.0)) + 0.1 * n, params)


def _ours(settings, rate, weight_decay, steps=4):
  params = _params()
  transform = optim.direction(settings)
  state = transform.init(params)
  for n in range(steps):
    updates, state = transform.update(_gradients(params, n), state, params)
    params = optim.apply_direction(
      params, updates, decay_mask(params), rate, weight_decay
    )
  return params


def _optax(transform, steps=4):
  params = _params()
  state = transform.init(params)
  for n in range(steps):
    updates, state = transform.update(_gradients(params, n), state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize(
  ('settings', 'reference', 'weight_decay'),
  [
    (optim.OptimSettings(name='adam'), optax.adam(0.01, eps=1e-7), 0.0),
    (
      optim.OptimSettings(name='adamw', eps=1e-8),
      optax.adamw(0.01, weight_decay=0.3, mask=decay_mask),
      0.3,
    ),
    (
      optim.OptimSettings(name='sgd'),
      optax.sgd(0.01, momentum=0.9, nesterov=True),
      0.0,
    ),
    (
      optim.OptimSettings(name='sgd', clip_norm=0.5),
      optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.sgd(0.01, momentum=0.9, nesterov=True),
      ),
      0.0,
    ),
  ],
  ids=['adam', 'adamw', 'sgd', 'clipped'],
)
def test_direction_vs_optax(settings, reference, weight_decay):
  ours = _ours(settings, 0.01, weight_decay)
  theirs = _optax(reference)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    ours,
    theirs,
  )


def test_decay_mask_names_kernels_alone():
  assert decay_mask(_params()) == {
    'dense': {'kernel': True, 'bias': False},
    'cells': {0: {'recurrent_kernel': True}},
  }


def test_warmup_and_cosine():
  schedule = optim.schedule(
    optim.OptimSettings(schedule='cosine', final_fraction=0.1),
    optim.Milestones(warmup=4, total=14),
  )
  rising = [float(schedule(n)) for n in range(4)]
  np.testing.assert_allclose(rising, [0.25, 0.5, 0.75, 1.0])
  # Half-way down the cosine: the mean of 1 and the final fraction.
  assert float(schedule(9)) == pytest.approx(0.55, abs=1e-6)
  assert float(schedule(14)) == pytest.approx(0.1, abs=1e-6)


def test_step_schedule_multiplies_at_its_steps():
  schedule = optim.schedule(
    optim.OptimSettings(schedule='step', step_factor=0.1),
    optim.Milestones(drops=(10, 20)),
  )
  values = [float(schedule(n)) for n in (0, 9, 10, 19, 20, 30)]
  np.testing.assert_allclose(
    values, [1.0, 1.0, 0.1, 0.1, 0.01, 0.01], rtol=1e-6
  )


def test_step_schedule_counts_its_steps_from_the_start_under_warmup():
  schedule = optim.schedule(
    optim.OptimSettings(schedule='step', step_factor=0.5),
    optim.Milestones(warmup=2, drops=(10,)),
  )
  assert [float(schedule(n)) for n in (0, 1, 9, 10)] == [0.5, 1.0, 1.0, 0.5]


def test_schedule_takes_traced_steps_and_milestones():
  settings = optim.OptimSettings(schedule='cosine')
  milestones = optim.Milestones(warmup=2, total=8)

  @jax.jit
  def traced(milestones, step):
    return optim.schedule(settings, milestones)(step)

  value = traced(milestones, jnp.asarray(5))
  assert value.dtype == jnp.float32
  assert float(value) == pytest.approx(0.5)
  # Another length is no other program.
  assert float(traced(milestones._replace(total=12), jnp.asarray(7))) == (
    pytest.approx(0.5)
  )
  assert traced._cache_size() == 1
