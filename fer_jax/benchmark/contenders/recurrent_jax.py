"""What the recurrent contenders on JAX share: gradients, timed."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fer_jax import provenance
from fer_jax.benchmark.recurrent_layers import draws


def prepare(
  layer: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  case: dict,
  versions: dict,
) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`; `layer` maps params and x (B, T, D)."""
  x_btd, weights_bty = map(jnp.asarray, draws(case))

  @jax.jit
  def step(params, x_btd):
    def loss(params, x_btd):
      return jnp.sum(layer(params, x_btd) * weights_bty)

    return jax.value_and_grad(loss, (0, 1))(params, x_btd)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    results = None
    for _ in range(steps):
      results = step(params, x_btd)
    jax.block_until_ready(results)
    return time.perf_counter() - begun

  return run, {
    'steps_per_dispatch': 1,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'device': jax.devices()[0].device_kind,
    'threads': provenance.cores(),
    'versions': versions,
  }
