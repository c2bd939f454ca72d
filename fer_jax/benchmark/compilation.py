"""What a train step costs before it runs: compile time, and peak memory.

Both are of XLA's own making, so neither needs the step to run: the time that
lowering and compiling take in a fresh process without any cache of compiled
programs, and what the compiled program says that it allocates.
"""

from fer_jax.benchmark.worker import Worker

CONTENDER = 'fer_jax.benchmark.contenders.own_compiled'


def measure(case: dict) -> dict:
  """Compiles the block of train steps, with and without rematerialisation.

  Args:
    case: see `fer_jax.benchmark.contenders`.

  Returns:
    For 'kept' and 'remat' (the model's field `remat` False and True) what
    `contenders.own_compiled` says: 'trace_seconds', 'compile_seconds',
    'argument_bytes' (state and the resident set), 'temporary_bytes' (all that
    the step allocates beside them at its peak).

  Raises:
    WorkerError: it could not be compiled.
  """
  result = {}
  for name, remat in (('kept', False), ('remat', True)):
    overrides = {**case['overrides'], 'remat': remat}
    environment = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    with Worker(CONTENDER, environment=environment) as worker:
      result[name] = worker.prepare(
        {**case, 'overrides': overrides, 'what': 'train_step'}
      )
  return result


def lines(result: dict) -> list[str]:
  """The result as text for the terminal."""
  found = []
  for name, what in (('kept', 'train step'), ('remat', 'with remat')):
    row = result[name]
    found.append(
      f'{what:18}tracing {row["trace_seconds"]:.1f} s, compiling '
      f'{row["compile_seconds"]:.1f} s, peak of temporaries '
      f'{row["temporary_bytes"] / 2**20:.1f} MiB, state and set '
      f'{row["argument_bytes"] / 2**20:.1f} MiB'
    )
  return found
