"""Runs a backbone on a file's weights, for comparison with their origin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.models.backbones import BACKBONES
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


def backbone_path(model):
  """Names down to the backbone; none if the model is one."""
  backbones = tuple(BACKBONES.values())
  (path,) = (
    path
    for path, module in nnx.iter_modules(model)
    if isinstance(module, backbones)
  )
  return path


def is_in(parts, where=()):
  """Filter of the parameters of the named parts; of all for none."""
  depth = len(where)

  def chosen(path, variable):
    del variable
    return path[:depth] == where and (not parts or path[depth] in parts)

  return nnx.All(nnx.Param, chosen)


def evaluate(model, x, weighing, parts=()):
  """Outputs by running statistics, and gradients of the weighed map.

  Args:
    model: a backbone, or a model with features in it.
    x: images.
    weighing: of the map, whose weighed sum is differentiated.
    parts: of the backbone whose gradients to take; all for none.

  Returns:
    The map, the logits (None of a backbone alone), and the gradients, flat, by
    their path in the backbone.
  """
  graphdef, state = nnx.split(model)
  where = backbone_path(model)
  chosen, rest = nnx.split_state(state, is_in(parts, where), ...)

  def loss(chosen, rest, x):
    model = nnx.merge(graphdef, chosen, rest)
    if where:
      logits, features = model(x, return_features=True)
      y = features['map']
    else:
      logits, y = None, model(x)
    return (y * weighing).sum(), (y, logits)

  gradients, (y, logits) = jit(jax.grad(loss, has_aux=True))(chosen, rest, x)
  for name in where:
    gradients = gradients[name]
  return y, logits, flat(gradients)


def train(backbone, x):
  """The map by the statistics of `x`, and the new running ones, by path."""
  graphdef, state = nnx.split(backbone)

  @jit
  def forward(state, x):
    model = nnx.merge(graphdef, state, copy=True)
    y = model(x, train=True)
    return y, nnx.state(model, nnx.BatchStat)

  y, statistics = forward(state, x)
  return y, flat(statistics)


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


def compare_evaluation(found, expected_map, carried, parts, tolerance):
  """What `evaluate` gives, against a reference.

  Args:
    found: the map and the gradients.
    expected_map: the reference's.
    carried: a backbone that holds the reference's gradients as parameters.
    parts: whose gradients to compare; all for none.
    tolerance: of the gradients, of each array's norm.
  """
  y, gradients = found
  close({'map': y}, {'map': expected_map}, 1e-4)
  close_in_norm(gradients, flat(nnx.state(carried, is_in(parts))), tolerance)


def compare_training(backbone, x, expected_map, carried):
  """One training pass against a reference's.

  Args:
    backbone: before the pass.
    x: images.
    expected_map: the reference's output.
    carried: a backbone that holds the reference's new statistics.
  """
  y, statistics = train(backbone, x)
  close({'map': y}, {'map': expected_map}, 1e-4)
  close(statistics, flat(nnx.state(carried, nnx.BatchStat)), 1e-4)
  before = flat(nnx.state(backbone, nnx.BatchStat))
  moved = [jnp.abs(statistics[name] - before[name]).max() for name in before]
  assert min(moved) > 1e-4
