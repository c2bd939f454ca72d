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
  """Turns gradients into an unscaled descent direction."""
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
  return optax.chain(clip, descent)


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
