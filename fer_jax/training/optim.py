"""Optimisers and schedules.

Optax gives a direction that no learning rate has touched; the step multiplies
it by `hparams.learning_rate * schedule(step) * progress.lr_factor`. So the
learning rate stays a traced scalar, and runs that differ only in it share one
compilation.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fer_jax.training.freezing import combine


@dataclasses.dataclass(frozen=True)
class OptimSettings:
  """What of the optimiser is fixed at compilation.

  Attributes:
    name: one of `config.OPTIMIZERS`. Adam and AdamW differ only in what their
      users expect: decoupled weight decay belongs to `adamw` and `sgd`.
    momentum: SGD's momentum (Nesterov) and Adam's first moment decay.
    beta2: Adam's second moment decay.
    eps: Adam's epsilon.
    clip_norm: global gradient norm above which gradients are scaled down; 0
      leaves them alone.
    schedule: one of `config.SCHEDULES`.
    warmup_steps: steps of linear warm-up, under every schedule.
    total_steps: steps of the whole run (cosine).
    final_fraction: the fraction of the learning rate that cosine ends at.
    step_boundaries: steps at which the step schedule multiplies.
    step_factor: what it multiplies by.
  """

  name: str = 'adam'
  momentum: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-7
  clip_norm: float = 0.0
  schedule: str = 'constant'
  warmup_steps: int = 0
  total_steps: int = 1
  final_fraction: float = 0.0
  step_boundaries: tuple[int, ...] = ()
  step_factor: float = 0.1


def direction(settings: OptimSettings) -> optax.GradientTransformation:
  """Turns gradients into an unscaled descent direction: a chain of two,
  clipping and descent."""
  return optax.chain(*_clip_and_descent(settings))


def _clip_and_descent(settings):
  clip = (
    optax.clip_by_global_norm(settings.clip_norm)
    if settings.clip_norm > 0
    else optax.identity()
  )
  if settings.name == 'sgd':
    descent = optax.trace(decay=settings.momentum, nesterov=True)
  else:
    descent = optax.scale_by_adam(
      b1=settings.momentum, b2=settings.beta2, eps=settings.eps
    )
  return clip, descent


def update(settings: OptimSettings, gradients, opt_state, since):
  """The direction for the parameters that train, and the state after it.

  A buffer of a parameter that is frozen stays as it is. Adam's correction of
  young moments counts from the step at which a parameter began to train:
  counted from the run's first step, the early updates of one that begins late
  would be up to six times too large.

  Args:
    settings: static.
    gradients: of the parameters that train, None in the place of the others.
    opt_state: of `direction`, with buffers for all parameters.
    since: like `gradients`, plain ints: the step at which each began to train.

  Returns:
    (updates like `gradients`, optimiser state of the same structure).
  """
  clip, descent = _clip_and_descent(settings)
  clip_state, state = opt_state
  gradients, clip_state = clip.update(gradients, clip_state)
  updates = jax.tree.map(lambda _: None, gradients)
  new_state = state
  for start in sorted(set(jax.tree.leaves(since))):
    group = jax.tree.map(
      lambda g, s, start=start: g if s == start else None, gradients, since
    )
    group_updates, group_state = descent.update(
      group, _of_group(state, group, start)
    )
    updates = combine(group_updates, updates)
    new_state = _with_group(new_state, group_state, start)
  return updates, (clip_state, new_state)


def _of_group(state, group, start):
  """A descent's state with the buffers of a group alone, counting from its
  start."""

  def chosen(buffers):
    return jax.tree.map(
      lambda g, b: None if g is None else b,
      group,
      buffers,
      is_leaf=lambda x: x is None,
    )

  return state._replace(
    **{
      name: value - start if name == 'count' else chosen(value)
      for name, value in state._asdict().items()
    }
  )


def _with_group(state, group_state, start):
  """A descent's state with a group's new buffers, and its count."""
  new = group_state._asdict()
  return state._replace(
    **{
      name: (new[name] + start).astype(value.dtype)
      if name == 'count'
      else combine(new[name], value)
      for name, value in state._asdict().items()
    }
  )


def schedule(settings: OptimSettings) -> Callable[[jax.Array], jax.Array]:
  """The factor on the learning rate at a step, one at its peak.

  Plateau is constant here: its reductions live in `Progress.lr_factor`,
  since they depend on validation.
  """
  after_warmup = max(settings.total_steps - settings.warmup_steps, 1)
  if settings.schedule == 'cosine':
    body = optax.cosine_decay_schedule(
      1.0, after_warmup, alpha=settings.final_fraction
    )
  elif settings.schedule == 'step':
    body = optax.piecewise_constant_schedule(
      1.0,
      {
        max(boundary - settings.warmup_steps, 0): settings.step_factor
        for boundary in settings.step_boundaries
      },
    )
  else:
    body = optax.constant_schedule(1.0)
  if not settings.warmup_steps:
    return lambda step: jnp.asarray(body(step), jnp.float32)

  def warmed(step):
    # The first step already moves: (step + 1) / warmup, not step / warmup.
    rising = (step + 1) / settings.warmup_steps
    falling = body(jnp.maximum(step - settings.warmup_steps, 0))
    return jnp.where(step < settings.warmup_steps, rising, falling).astype(
      jnp.float32
    )

  return warmed


def apply_direction(params, updates, mask, rate, weight_decay):
  """`p - rate * (direction + weight_decay * p)`, the decay on kernels only.

  This is decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101),
  scaled by the learning rate as in Optax and PyTorch.

  Args:
    params: parameters.
    updates: the direction of `direction`.
    mask: of `state.decay_mask`.
    rate: scalar learning rate of this step.
    weight_decay: scalar, traced.
  """

  def moved(p, u, decayed):
    step = u + weight_decay * p if decayed else u
    return p - (rate * step).astype(p.dtype)

  return jax.tree.map(moved, params, updates, mask)
