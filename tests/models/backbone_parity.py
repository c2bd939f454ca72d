"""Runs backbones and P2's models on them, for comparison with the origin of
their weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax import models
from fer_jax.models.pretrained import load_pretrained
from fer_jax.nn import BatchNorm, conv

CLASSES = 7

# What takes the time here is XLA's compiler: for all gradients of DenseNet121
# 10 s without the old emitters, 3 s with them. At level 0 those give gradients
# that are percents off (jaxlib 0.10.2).
_OPTIONS = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': 1,
}


def _known(options):
  """Those that this XLA has."""

  def is_known(name, value):
    try:
      jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      return False
    return True

  return {
    name: value for name, value in options.items() if is_known(name, value)
  }


jit = functools.partial(jax.jit, compiler_options=_known(_OPTIONS))


def use_direct_convolutions(monkeypatch):
  """Takes XLA's own form of a convolution for that of CPU.

  DenseNet121's 58 Winograd convolutions are 50 000 operations to compile, and
  their rounding is larger; what they compute is compared with this form in the
  tests of `fer_jax.nn`.
  """
  monkeypatch.setattr(conv, 'choose_form', lambda *args, **kwargs: 'lax')


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


def whole_model(name, family, size, path, head):
  """P2's model on a backbone.

  Args:
    name: of the backbone.
    family: whose weights it takes.
    size: height and width of its images.
    path: of the file with the backbone's weights.
    head: arrays of what follows, layer by layer: of a GRU kernel, recurrent
      kernel and bias, of a dense layer kernel and bias.
  """
  model = nnx.eval_shape(
    lambda: models.create(
      f'{name}_gru',
      num_classes=CLASSES,
      rngs=nnx.Rngs(0),
      input_shape=(*size, 3),
      family=family,
    )
  )
  load_pretrained(model, path)
  variables = []
  for part in ('body', 'head'):
    for _, stage in model.layers(part):
      inner = getattr(stage, 'layer', getattr(stage, 'linear', None))
      if inner is not None:
        names = ('kernel', 'recurrent_kernel', 'bias')
        variables += [getattr(inner, n) for n in names if hasattr(inner, n)]
  variables += [model.logits.kernel, model.logits.bias]
  for variable, value in zip(variables, head, strict=True):
    assert variable.shape == value.shape
    variable.set_value(jnp.asarray(value))
  return model


def evaluate(model, x, weighing):
  """Outputs by running statistics, and gradients of the weighed logits.

  Args:
    model: of `whole_model`.
    x: images.
    weighing: of the logits, whose weighed sum is differentiated.

  Yields:
    Of one image after the other: the map, the logits, and the gradients of all
    parameters, by path.
  """
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  @jit
  @functools.partial(jax.grad, has_aux=True)
  def gradients_of(params, rest, x, weighing):
    model = nnx.merge(graphdef, params, rest)
    logits, features = model(x, return_features=True)
    return (logits * weighing).sum(), (features['map'], logits)

  for n in range(len(x)):
    gradients, (y, logits) = gradients_of(
      params, rest, x[n : n + 1], weighing[n : n + 1]
    )
    yield y, logits, flat(gradients)


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


def worst_in_norm(found, expected):
  """(error, name) of the array that is the furthest off, of its norm.

  What is 0 by right, such as the recurrent kernel's gradient over one step, is
  to be so.
  """
  assert found.keys() == expected.keys()
  assert found
  names = list(found)
  errors = [
    np.linalg.norm(np.ravel(found[name] - expected[name]))
    / (np.linalg.norm(np.ravel(expected[name])) or 1.0)
    for name in names
  ]
  # Takes NaN for the largest, which `max` does not.
  worst = np.argmax(errors)
  return errors[worst], names[worst]


def compare_evaluation(found, expected, tolerance):
  """Maps and logits of every image, and gradients, against a reference's.

  Where rounding takes a unit across the kink of its ReLU, or of a maximum,
  gradients of that image differ by up to a fiftieth. So it goes with one image
  in about five, while a mistake shows in every image: the first whose gradients
  agree is the last whose gradients are compared.

  Args:
    found: what `evaluate` gives.
    expected: of one image after the other the map, the logits, and a function
      that gives a `whole_model` which holds the gradients as parameters.
    tolerance: of the gradients, of each array's norm.
  """
  errors = [(math.inf, 'none')]
  for ours, theirs in zip(found, expected, strict=True):
    for name, a, b in zip(('map', 'logits'), ours, theirs, strict=False):
      assert a.shape == b.shape
      close({name: a}, {name: b}, 1e-4)
    if errors[-1][0] > tolerance:
      gradients = flat(nnx.state(theirs[2](), nnx.Param))
      errors.append(worst_in_norm(ours[2], gradients))
  assert errors[-1][0] <= tolerance, f'gradients differ everywhere: {errors}'


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
