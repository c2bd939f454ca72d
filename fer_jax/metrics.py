"""Losses and counts of logits, targets and weights: pure, and adding up.

B examples, K classes. Everything here is a sum over the batch, so that sums
of several batches, devices or hosts add up to those of the whole set;
`normalise` divides once, by the one normaliser there is: the sum of weights.

An example of weight 0 is padding. It stays out of every sum and every gradient
whatever its logits and targets hold, NaN included.

Arithmetic is float32 for half-precision logits, else that of the logits.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

MULTI_TARGET_SHARE = 0.3
"""Share of the votes from which FER+ counts a label as one of the targets."""


def smooth(targets: jax.Array, smoothing: jax.Array | float) -> jax.Array:
  """Label smoothing: a share of a uniform distribution mixed into the targets.

  Source: Szegedy et al. 2016, arXiv 1512.00567, section 7.

  Args:
    targets: (B, K) distributions over the classes.
    smoothing: that share, in [0, 1), may be traced.

  Returns:
    (B, K) distributions.
  """
  return (1 - smoothing) * targets + smoothing / targets.shape[-1]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross-entropy of soft targets, one value an example.

  Args:
    logits: (B, K).
    targets: (B, K) distributions over the classes: hard, smoothed, voted or
      mixed labels.

  Returns:
    (B,) in nats.
  """
  return -jnp.sum(targets * jax.nn.log_softmax(_at_least_single(logits)), -1)


def multi_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """FER+'s multi-target loss: any label that enough voters chose is right.

  Every class with at least 30 % of the votes is a target, all alike, and the
  likeliest of them under the model counts: -log max_k q_k. Where no class
  reaches that share the most-voted one is the target, so for one-hot targets
  this is cross-entropy. Label smoothing has no part in it: votes as they are
  decide what reaches the share.

  Source: Barsoum et al. 2016, "Training deep networks for facial expression
  recognition with crowd-sourced label distribution", arXiv 1608.01041, eq. 4,
  with the threshold of the authors' code.

  Args:
    logits: (B, K).
    targets: (B, K) shares of the votes.

  Returns:
    (B,) in nats.
  """
  log_probs = jax.nn.log_softmax(_at_least_single(logits))
  # 3 of 10 votes must pass in float32 however the share was computed.
  enough = targets >= MULTI_TARGET_SHARE - 1e-6
  most_voted = targets >= jnp.max(targets, axis=-1, keepdims=True)
  return -jnp.max(
    log_probs, axis=-1, where=enough | most_voted, initial=-jnp.inf
  )


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'cross_entropy': cross_entropy,
  'multi_target': multi_target,
}
"""The losses a config can name: (logits, targets) -> (B,)."""


def weighted(losses: jax.Array, weight: jax.Array) -> jax.Array:
  """(B,) weight * loss, and 0 under weight 0 even where the loss is NaN."""
  return jnp.where(weight > 0, weight * losses, 0)


def correct(
  logits: jax.Array, targets: jax.Array, weight: jax.Array
) -> jax.Array:
  """Sum of the weights of the examples that are right.

  Right means that the largest logit is at the largest target, the first of
  equals in both.

  Args:
    logits: (B, K).
    targets: (B, K).
    weight: (B,), 0 on padding.

  Returns:
    Scalar.
  """
  right = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
  return jnp.sum(jnp.where(right, weight, 0))


def sums(
  logits: jax.Array,
  targets: jax.Array,
  weight: jax.Array,
  *,
  loss: str = 'cross_entropy',
  label_smoothing: jax.Array | float = 0.0,
  class_weights: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """The batch's sums: add them over batches, then `normalise`.

  Args:
    logits: (B, K).
    targets: (B, K) distributions over the classes.
    weight: (B,) example weights, 0 on padding.
    loss: a key of `LOSSES`.
    label_smoothing: see `smooth`; may be traced. Of no account to
      'multi_target'.
    class_weights: (K,) factors on the loss by class; a soft target takes the
      mean of its classes'. They scale the loss and leave the normaliser alone,
      so factors that average 1 over the examples keep the loss's scale.

  Returns:
    Scalars `loss` (weighted sum of losses), `correct` (see `correct`; class
    weights play no part) and `weight` (sum of weights).

  Raises:
    ValueError: no such loss.
  """
  if loss not in LOSSES:
    raise ValueError(f'loss={loss!r}: expected one of {", ".join(LOSSES)}')
  # Zeroed before the loss and not only after it: the gradient of a NaN that
  # is masked afterwards is 0 * NaN.
  real = (weight > 0)[:, None]
  logits = _at_least_single(jnp.where(real, logits, 0))
  targets = jnp.where(real, targets, 0).astype(logits.dtype)
  weight = jnp.asarray(weight, logits.dtype)
  wanted = targets
  if loss != 'multi_target':
    wanted = smooth(targets, label_smoothing)
  losses = LOSSES[loss](logits, wanted)
  if class_weights is not None:
    losses *= targets @ jnp.asarray(class_weights, logits.dtype)
  return {
    'loss': jnp.sum(weighted(losses, weight)),
    'correct': correct(logits, targets, weight),
    'weight': jnp.sum(weight),
  }


def normalise(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Means `loss` and `accuracy` of added-up sums; 0 where nothing weighs."""
  total = sums['weight']
  safe = jnp.where(total > 0, total, 1)
  return {
    'loss': sums['loss'] / safe,
    'accuracy': sums['correct'] / safe,
  }


def balanced_class_weights(counts: jax.Array) -> jax.Array:
  """Class weights inverse to class frequency that average 1 over the examples.

  Args:
    counts: (K,) examples a class.

  Returns:
    (K,) float32: N / (present classes * count); 0 for a class without examples.
  """
  counts = jnp.asarray(counts, jnp.float32)
  present = counts > 0
  share = jnp.sum(counts) / jnp.maximum(jnp.sum(present), 1)
  return jnp.where(present, share / jnp.where(present, counts, 1), 0)


def _at_least_single(logits: jax.Array) -> jax.Array:
  """Half-precision logits as float32: a log-softmax needs the digits."""
  logits = jnp.asarray(logits)
  is_float = jnp.issubdtype(logits.dtype, jnp.floating)
  if is_float and logits.dtype.itemsize >= 4:
    return logits
  return logits.astype(jnp.float32)
