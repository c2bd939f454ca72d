"""Optimisers and schedules.

Optax gives a direction that no learning rate has touched; the step multiplies
it by `hparams.learning_rate * schedule(step) * progress.lr_factor`. So the
learning rate stays a traced scalar, and runs that differ only in it share one
compilation.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

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
    final_fraction: the fraction of the learning rate that cosine ends at.
    step_factor: what the step schedule multiplies by.
  """

  name: str = 'adam'
  momentum: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-7
  clip_norm: float = 0.0
  schedule: str = 'constant'
  final_fraction: float = 0.0
  step_factor: float = 0.1


Step = int | jax.Array
"""The number of a step; a scalar that may be traced."""


class Milestones(NamedTuple):
  """Steps of a run at which something changes.

  They follow from how many steps an epoch has, in which runs that share a
  compilation may differ, so they are traced.

  Attributes:
    warmup: steps of linear warm-up, under every schedule.
    total: steps of the whole run (cosine).
    drops: steps at which the step schedule multiplies.
    thaws: for each of the first patterns of `optim.freeze` the step since
      which its parameters train.
  """

  warmup: Step = 0
  total: Step = 1
  drops: tuple[Step, ...] = ()
  thaws: tuple[Step, ...] = ()


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


def update(
  settings: OptimSettings, gradients, opt_state, group, thaws: tuple[Step, ...]
):
  """The direction for the parameters that train, and the state after it.

  A buffer of a parameter that is frozen stays as it is. Adam's correction of
  young moments counts from the step at which a parameter began to train:
  counted from the run's first step, the early updates of one that begins late
  would be up to six times too large.

  Args:
    settings: static.
    gradients: of the parameters that train, None in the place of the others.
    opt_state: of `direction`, with buffers for all parameters.
    group: like `gradients`, plain ints: 0 for what trains from the first step
      on, n for what trains since the n-th of `thaws`.
    thaws: of `Milestones`.

  Returns:
    (updates like `gradients`, optimiser state of the same structure).
  """
  clip, descent = _clip_and_descent(settings)
  clip_state, state = opt_state
  gradients, clip_state = clip.update(gradients, clip_state)
  updates = jax.tree.map(lambda _: None, gradients)
  new_state = state
  for n in sorted(set(jax.tree.leaves(group))):
    start = thaws[n - 1] if n else 0
    of_group = jax.tree.map(
      lambda g, own, n=n: g if own == n else None, gradients, group
    )
    group_updates, group_state = descent.update(
      of_group, _of_group(state, of_group, start)
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
      # A rehearsal takes its first steps with what trains in the last epoch.
      name: jnp.maximum(value - start, 0) if name == 'count' else chosen(value)
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


def schedule(
  settings: OptimSettings, milestones: Milestones
) -> Callable[[Step], jax.Array]:
  """The factor on the learning rate at a step, one at its peak.

  Plateau is constant here: its reductions live in `Progress.lr_factor`,
  since they depend on validation.

  Not Optax's schedules: those want Python numbers for their lengths.
  """
  warmup, total, drops, _ = milestones

  def body(step):
    if settings.schedule == 'cosine':
      done = (step - warmup) / jnp.maximum(total - warmup, 1)
      fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
      return fall + (1.0 - fall) * settings.final_fraction
    factor = jnp.ones(())
    if settings.schedule == 'step':
      for drop in drops:
        factor *= jnp.where(step >= drop, settings.step_factor, 1.0)
    return factor

  def factor(step):
    # The first step already moves: (step + 1) / warmup, not step / warmup.
    rising = (step + 1) / jnp.maximum(warmup, 1)
    return jnp.where(step < warmup, rising, body(step)).astype(jnp.float32)

  return factor


def apply_direction(params, updates, mask, rate, weight_decay):
  """`p - rate * (direction + weight_decay * p)`, the decay on kernels only.

  This is decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101),
  scaled by the learning rate as AdamW's is in Optax and PyTorch. Their SGD has
  it in the gradient instead, where momentum m adds it up to 1 / (1 - m) times.

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
