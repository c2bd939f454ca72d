"""Losses and counts against scikit-learn and plain NumPy (float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from fer_jax import metrics

B, K = 37, 7


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(B, K)).astype(np.float32) * 3
  labels = rng.integers(0, K, B)
  weight = np.ones(B, np.float32)
  return logits, np.eye(K, dtype=np.float32)[labels], weight, labels


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_hard_targets_match_sklearn(batch):
  logits, targets, weight, labels = batch
  figures = metrics.normalise(metrics.sums(logits, targets, weight))
  log_probs = _log_softmax(logits)
  expected = sklearn.metrics.log_loss(
    labels, np.exp(log_probs), labels=range(K)
  )
  np.testing.assert_allclose(figures['loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(
    figures['accuracy'],
    sklearn.metrics.accuracy_score(labels, logits.argmax(-1)),
    rtol=1e-6,
  )


def test_example_weights_match_sklearn(batch):
  logits, targets, _, labels = batch
  weight = np.random.default_rng(1).uniform(0.1, 2, B).astype(np.float32)
  figures = metrics.normalise(metrics.sums(logits, targets, weight))
  expected = sklearn.metrics.log_loss(
    labels, np.exp(_log_softmax(logits)), labels=range(K), sample_weight=weight
  )
  np.testing.assert_allclose(figures['loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(
    figures['accuracy'],
    sklearn.metrics.accuracy_score(
      labels, logits.argmax(-1), sample_weight=weight
    ),
    rtol=1e-6,
  )


def test_soft_targets_and_smoothing_match_numpy(batch):
  logits, _, weight, _ = batch
  targets = np.random.default_rng(2).dirichlet(np.ones(K), B)
  smoothed = 0.9 * targets + 0.1 / K
  expected = -(smoothed * _log_softmax(logits)).sum()
  figures = jax.jit(
    lambda smoothing: metrics.sums(
      logits, targets, weight, label_smoothing=smoothing
    )
  )(0.1)
  np.testing.assert_allclose(figures['loss'], expected, rtol=1e-5)


def test_multi_target_by_hand():
  shares = np.array(
    [[0.3, 0.5, 0.2, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0]], np.float32
  )
  probs = np.array([[0.4, 0.1, 0.3, 0.2]] * 3, np.float32)
  losses = metrics.multi_target(np.log(probs), shares)
  # Row 1: classes 0 and 1 are allowed, 0.4 is the likelier. Row 2: nobody has
  # 30 %, so all four most-voted are. Row 3: one-hot.
  np.testing.assert_allclose(losses, -np.log([0.4, 0.4, 0.3]), rtol=1e-6)


def test_multi_target_is_cross_entropy_on_hard_labels(batch):
  logits, targets, *_ = batch
  np.testing.assert_allclose(
    metrics.multi_target(logits, targets),
    metrics.cross_entropy(logits, targets),
    rtol=1e-6,
  )


def test_smoothing_takes_no_target_from_multi_target():
  # 3 of 10 votes are a target; smoothed by a tenth they would be 29.5 %.
  shares = np.array([[0.7, 0.3, 0.0, 0.0]], np.float32)
  logits = np.log(np.array([[0.2, 0.5, 0.2, 0.1]], np.float32))
  sums = metrics.sums(
    logits, shares, np.ones(1), loss='multi_target', label_smoothing=0.1
  )
  np.testing.assert_allclose(sums['loss'], -np.log(0.5), rtol=1e-6)


def test_masked_losses_and_counts():
  losses = np.array([1.0, np.nan, 3.0], np.float32)
  weight = np.array([2.0, 0.0, 1.0], np.float32)
  np.testing.assert_array_equal(metrics.weighted(losses, weight), [2, 0, 3])
  logits = np.array([[1, 0], [np.nan, 0], [1, 0]], np.float32)
  targets = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
  assert metrics.correct(logits, targets, weight) == 2


def test_class_weights_scale_the_loss_alone(batch):
  logits, targets, weight, labels = batch
  factors = np.linspace(0.5, 2, K).astype(np.float32)
  figures = metrics.sums(logits, targets, weight, class_weights=factors)
  losses = -_log_softmax(logits)[np.arange(B), labels] * factors[labels]
  np.testing.assert_allclose(figures['loss'], losses.sum(), rtol=1e-5)
  plain = metrics.sums(logits, targets, weight)
  assert figures['correct'] == plain['correct']
  assert figures['weight'] == B


def test_balanced_class_weights_match_sklearn(batch):
  *_, labels = batch
  counts = np.bincount(labels, minlength=K)
  np.testing.assert_allclose(
    metrics.balanced_class_weights(counts),
    sklearn.utils.class_weight.compute_class_weight(
      'balanced', classes=np.arange(K), y=labels
    ),
    rtol=1e-6,
  )
  absent = metrics.balanced_class_weights(np.array([6, 0, 2]))
  np.testing.assert_allclose(absent, [4 / 6, 0, 2], rtol=1e-6)


@pytest.mark.parametrize('loss', list(metrics.LOSSES))
def test_padding_changes_no_sum_and_no_gradient(batch, loss):
  logits, targets, weight, _ = batch
  padded = (
    np.concatenate([logits, np.full((5, K), np.nan, np.float32)]),
    np.concatenate([targets, np.full((5, K), np.nan, np.float32)]),
    np.concatenate([weight, np.zeros(5, np.float32)]),
  )

  def mean_loss(logits, targets, weight):
    return metrics.normalise(
      metrics.sums(
        logits,
        targets,
        weight,
        loss=loss,
        label_smoothing=0.1,
        class_weights=jnp.arange(1.0, K + 1),
      )
    )['loss']

  grad_fn = jax.value_and_grad(mean_loss)
  value, gradient = grad_fn(logits, targets, weight)
  padded_value, padded_gradient = grad_fn(*padded)
  np.testing.assert_allclose(padded_value, value, rtol=1e-6)
  np.testing.assert_allclose(padded_gradient[:B], gradient, atol=1e-7)
  assert np.all(np.asarray(padded_gradient[B:]) == 0)


def test_sums_add_over_batches(batch):
  logits, targets, weight, _ = batch
  whole = metrics.sums(logits, targets, weight)
  parts = [
    metrics.sums(logits[part], targets[part], weight[part])
    for part in (slice(0, 20), slice(20, None))
  ]
  added = jax.tree.map(jnp.add, *parts)
  for name in whole:
    np.testing.assert_allclose(added[name], whole[name], rtol=1e-6)


def test_half_precision_logits_are_summed_in_float32(batch):
  logits, targets, weight, _ = batch
  # Strict: a library's user may have it, and JAX then promotes nothing.
  with jax.numpy_dtype_promotion('strict'):
    figures = metrics.sums(logits.astype(jnp.bfloat16), targets, weight)
  assert {value.dtype for value in figures.values()} == {jnp.dtype('float32')}


def test_an_empty_batch_means_zero_not_nan():
  figures = metrics.normalise(
    metrics.sums(jnp.ones((2, K)), jnp.ones((2, K)) / K, jnp.zeros(2))
  )
  assert figures == {'loss': 0, 'accuracy': 0}


def test_weights_may_sum_to_less_than_one():
  sums = {'loss': jnp.ones(()), 'correct': jnp.ones(()) / 4}
  figures = metrics.normalise(sums | {'weight': jnp.ones(()) / 2})
  assert figures == {'loss': 2, 'accuracy': 0.5}


def test_an_unknown_loss_names_the_known_ones(batch):
  logits, targets, weight, _ = batch
  with pytest.raises(ValueError, match=r"'hinge'.*cross_entropy, multi_target"):
    metrics.sums(logits, targets, weight, loss='hinge')
