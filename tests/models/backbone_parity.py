"""Runs a backbone on a file's weights, for comparison with their origin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.models.pretrained import load_pretrained
from fer_jax.nn import BatchNorm

# What takes the time here is XLA's compiler.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def loaded(cls, family, path):
  """A backbone that holds what is in the file, and never drew anything."""
  backbone = nnx.eval_shape(lambda: cls(family=family, rngs=nnx.Rngs(0)))
  load_pretrained(backbone, path)
  return backbone


def norm_settings(backbone):
  """Epsilons and momenta: too small a difference for outputs to show."""
  return {
    (module.epsilon, module.momentum)
    for _, module in nnx.iter_modules(backbone)
    if isinstance(module, BatchNorm)
  }


def is_in(parts):
  """Filter of the parameters below the named parts; of all for none."""

  def chosen(path, variable):
    del variable
    return not parts or path[0] in parts

  return nnx.All(nnx.Param, chosen)


def evaluate(model, x, **options):
  graphdef, state = nnx.split(model)
  call = jit(lambda state, x: nnx.merge(graphdef, state)(x, **options))
  return call(state, x)


def train(backbone, x, weighing, parts=()):
  """The map, gradients of its weighed sum, and the new statistics.

  Gradients and statistics are flat, by path.
  """
  graphdef, chosen, rest = nnx.split(backbone, is_in(parts), ...)

  def loss(chosen, rest, x):
    model = nnx.merge(graphdef, chosen, rest, copy=True)
    y = model(x, train=True)
    return (y * weighing).sum(), (y, nnx.state(model, nnx.BatchStat))

  gradients, (y, statistics) = jit(jax.grad(loss, has_aux=True))(
    chosen, rest, x
  )
  return y, flat(gradients), flat(statistics)


def flat(state):
  return {
    '.'.join(path): variable[...] for path, variable in nnx.to_flat_state(state)
  }


def close(found, expected, tolerance):
  """Every array to `tolerance` of its largest element."""
  assert found.keys() == expected.keys()
  assert found
  for name, value in found.items():
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(
      value,
      expected[name],
      rtol=0,
      atol=tolerance * scale,
      err_msg=name,
    )


def close_in_norm(found, expected, tolerance):
  """The error's norm to `tolerance` of each array's.

  Where rounding takes a unit across the kink of its ReLU, a few elements of a
  gradient change by more than rounding.
  """
  assert found.keys() == expected.keys()
  assert found
  errors = {
    name: np.linalg.norm(np.ravel(value - expected[name]))
    / np.linalg.norm(np.ravel(expected[name]))
    for name, value in found.items()
  }
  worst = max(errors, key=errors.__getitem__)
  assert errors[worst] <= tolerance, (worst, errors[worst])


def compare_step(
  backbone, x, expected_map, weighing, carried, parts, tolerance
):
  """One training step against a reference's.

  Args:
    backbone: before the step.
    x: images.
    expected_map: the reference's output.
    weighing: of the output, in the loss.
    carried: a backbone that holds the reference's gradients as parameters,
      and its new statistics as statistics.
    parts: whose gradients to compare; all for none.
    tolerance: of the gradients, of each array's norm.
  """
  y, gradients, statistics = train(backbone, x, weighing, parts)
  close({'map': y}, {'map': expected_map}, 1e-4)
  expected = flat(nnx.state(carried, is_in(parts)))
  close_in_norm(gradients, expected, tolerance)
  expected = flat(nnx.state(carried, nnx.BatchStat))
  if not expected:
    return
  close(statistics, expected, 1e-4)
  before = flat(nnx.state(backbone, nnx.BatchStat))
  moved = [jnp.abs(statistics[name] - before[name]).max() for name in before]
  assert min(moved) > 1e-4
