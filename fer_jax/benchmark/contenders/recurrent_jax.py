"""What the recurrent contenders on JAX share: gradients, timed."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding

from fer_jax import provenance
from fer_jax.benchmark.recurrent_layers import draws
from fer_jax.training import sharding

Layer = Callable[[Any, jax.Array], jax.Array]
"""Maps params and x (B, T, D) to (B, T, 2H)."""

# Of params, and of x and the loss's weights.
_SPECS = (sharding.EVERYWHERE, sharding.DIVIDED, sharding.DIVIDED)


def prepare(
  layer: Layer,
  params: Any,
  case: dict,
  versions: dict,
  mesh: Mesh | None = None,
) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`.

  Args:
    layer: see there.
    params: of it, on one device.
    case: of `recurrent_layers`.
    versions: of what it is made with.
    mesh: that the batch is divided over, None for one device.
  """
  operands = (params, *map(jnp.asarray, draws(case)))
  if mesh is not None:
    operands = tuple(
      jax.device_put(operand, NamedSharding(mesh, spec))
      for operand, spec in zip(operands, _SPECS, strict=True)
    )
  step = make_step(layer, mesh)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    results = None
    for _ in range(steps):
      results = step(*operands)
      if mesh is not None:
        # Devices of two steps under way can wait for each other for ever.
        jax.block_until_ready(results)
    jax.block_until_ready(results)
    return time.perf_counter() - begun

  return run, {
    'steps_per_dispatch': 1,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'device': jax.devices()[0].device_kind,
    'devices': sharding.parts(mesh),
    'threads': provenance.cores(),
    'versions': versions,
  }


def make_step(layer: Layer, mesh: Mesh | None) -> Callable[..., Any]:
  """(params, x, weights) -> loss and its gradients of params and x; jitted."""

  def step(params, x_btd, weights_bty):
    def loss(params, x_btd):
      return jnp.sum(layer(params, x_btd) * weights_bty)

    value, gradients = jax.value_and_grad(loss, (0, 1))(params, x_btd)
    # `shard_map` sums the gradients of what all devices have.
    return value if mesh is None else lax.psum(value, sharding.DATA), gradients

  if mesh is not None:
    everywhere, along, _ = _SPECS
    step = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=_SPECS,
      out_specs=(everywhere, (everywhere, along)),
    )
  return jax.jit(step)
