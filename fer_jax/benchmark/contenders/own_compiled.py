"""This package's block of train steps, compiled and not run."""

import time
from collections.abc import Callable

import jax

from fer_jax import provenance
from fer_jax.benchmark.contenders import own


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`; its run does nothing.

  What it says of itself are the figures of `benchmark.compilation.measure`.
  """
  block, arguments = own.block_of(case)
  begun = time.perf_counter()
  lowered = block.lower(*arguments)
  traced = time.perf_counter()
  compiled = lowered.compile()
  finished = time.perf_counter()
  memory = compiled.memory_analysis()
  return lambda steps: 0.0, {
    'trace_seconds': traced - begun,
    'compile_seconds': finished - traced,
    'argument_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'device': jax.devices()[0].device_kind,
    'versions': provenance.versions(
      ('fer-jax', 'jax', 'jaxlib', 'flax', 'optax')
    ),
  }
