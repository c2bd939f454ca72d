"""The peers' architecture is ours: counts, and outputs with equal weights.

The plain Flax contender is built from nothing but the translated layers. With
our weights carried over it must give our logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax import models
from fer_jax.benchmark import architecture, translation
from fer_jax.benchmark.contenders import flax_nnx
from fer_jax.models import specification as spec

CLASSES = 5
SMALL = {
  'input_shape': (16, 16, 1),
  'stem_filters': (4,),
  'filters': (6, 8),
  'blocks': (1, 1),
  'units': 7,
  'attention_units': 3,
  'head': (9,),
}
CASES = {
  'bilstm, attention': ('residual_bilstm', {'filters': (6,), 'blocks': (1,)}),
  'lstm, stride, identity skip, 5 x 5': (
    'residual_lstm',
    {'attention': False, 'downsample': 'stride', 'blocks': (2, 1),
     'kernel_size': 5},
  ),
  'two layers of gru over rows': (
    'residual_gru',
    {'tokens': 'rows', 'recurrent_layers': 2},
  ),
}  # fmt: skip


def ours_and_layers(name, overrides):
  overrides = {**SMALL, **overrides}
  model = filled(
    nnx.eval_shape(
      lambda: models.create(
        name, num_classes=CLASSES, rngs=nnx.Rngs(0), **overrides
      )
    )
  )
  layers = translation.layers(
    models.specify(name, **overrides), num_classes=CLASSES
  )
  return model, layers


def count(model):
  return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize('name', models.available())
def test_count_of_every_preset(name):
  model = nnx.eval_shape(
    lambda: models.create(name, num_classes=7, rngs=nnx.Rngs(0))
  )
  layers = translation.layers(models.specify(name), num_classes=7)
  assert architecture.parameter_count(layers) == count(model)


def carry_over(model, stack):
  """Puts our weights into the plain Flax stack, layer by layer."""
  for stage, layer in pairs(model, stack):
    carry_layer(stage, layer)


def pairs(model, stack):
  """(our layer, Flax's layer), residual blocks taken apart."""
  theirs = iter(flat(stack))
  for ours in our_layers(model):
    yield ours, next(theirs)
  assert next(theirs, None) is None, 'Flax has a layer more than we have'


def our_layers(model):
  for part in ('backbone', 'body', 'head'):
    for _, layer in model.layers(part):
      yield from opened(layer)
  yield model.logits


def opened(module):
  """A stage's layers with weights, in the order of a forward pass."""
  if hasattr(module, 'conv1'):
    yield from (module.conv1, module.norm1, module.conv2, module.norm2)
    if module.projection is not None:
      yield from (module.projection, module.projection_norm)
  elif hasattr(module, 'conv'):
    yield module.conv
    if module.norm is not None:
      yield module.norm
  elif hasattr(module, 'linear'):
    yield module.linear
  elif hasattr(module, 'layer'):
    yield from opened(module.layer)
  elif hasattr(module, 'attention'):
    yield module.attention
  elif hasattr(module, 'layers'):
    yield from (module.layers[f'layer{n}'] for n in range(1, module.depth + 1))
  elif jax.tree.leaves(nnx.state(module, nnx.Param)):
    yield module


def flat(stack):
  for layer in stack.steps:
    if isinstance(layer, flax_nnx.Residual):
      yield from flat(layer.body)
      yield from flat(layer.skip)
    elif isinstance(layer, nnx.Module) and jax.tree.leaves(
      nnx.state(layer, nnx.Param)
    ):
      yield layer


def carry_layer(ours, theirs):
  if isinstance(theirs, flax_nnx.Recurrent):
    directions = (
      ((ours.forward, theirs.rnn.forward_rnn),
       (ours.backward, theirs.rnn.backward_rnn))
      if theirs.bidirectional
      else ((ours, theirs.rnn),)
    )  # fmt: skip
    for cell, rnn in directions:
      carry_cell(cell, rnn.cell)
  elif isinstance(theirs, flax_nnx.Attention):
    for name in ('hidden', 'score'):
      carry_layer(getattr(ours, name), getattr(theirs, name))
  elif isinstance(theirs, nnx.BatchNorm):
    theirs.scale[...], theirs.bias[...] = ours.scale[...], ours.bias[...]
  else:
    assert theirs.kernel.shape == ours.kernel.shape
    theirs.kernel[...] = ours.kernel[...]
    assert (theirs.bias is None) == (ours.bias is None)
    if ours.bias is not None:
      theirs.bias[...] = ours.bias[...]


def carry_cell(ours, theirs):
  """Gates of an LSTM lie i f g o in both; ours of a GRU z r n, Flax's r z n."""
  if isinstance(theirs, nnx.OptimizedLSTMCell):
    theirs.dense_i.kernel[...] = ours.kernel[...]
    theirs.dense_h.kernel[...] = ours.recurrent_kernel[...]
    theirs.dense_h.bias[...] = ours.bias[...]
    return

  def reordered(gates):
    z, r, n = jnp.split(gates, 3, axis=-1)
    return jnp.concatenate([r, z, n], axis=-1)

  theirs.dense_i.kernel[...] = reordered(ours.kernel[...])
  theirs.dense_h.kernel[...] = reordered(ours.recurrent_kernel[...])
  theirs.dense_i.bias[...] = reordered(ours.bias[0])
  theirs.dense_h.bias[...] = reordered(ours.bias[1])


def filled(abstract):
  """The module with random arrays; none of them all zeros or ones.

  Drawn by NumPy, which compiles nothing, where initialisers would take longer
  than all that is tested here.
  """
  draws = np.random.default_rng(0)

  def values(path, leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return jnp.zeros(leaf.shape, leaf.dtype)
    noise = draws.standard_normal(leaf.shape)
    match path[-1]:
      case 'kernel' | 'recurrent_kernel':
        value = noise / np.sqrt(np.prod(leaf.shape[:-1]))
      case 'var':
        value = np.ones(leaf.shape)
      case 'scale':
        value = 1 + 0.1 * noise
      case _:
        value = 0.1 * noise
    return jnp.asarray(value, leaf.dtype)

  graphdef, state = nnx.split(abstract)
  state = nnx.map_state(
    lambda path, leaf: leaf.replace(values(path, leaf)), state
  )
  return nnx.merge(graphdef, state)


def carried_over(case):
  """Our model, a plain Flax stack with its weights, and images for both."""
  model, layers = ours_and_layers(*CASES[case])
  stack = filled(
    nnx.eval_shape(lambda: flax_nnx.Stack(layers, rngs=nnx.Rngs(0)))
  )
  assert count(stack) == count(model) == architecture.parameter_count(layers)
  carry_over(model, stack)
  # Dropout off in both: ours gets no key, theirs is told so.
  stack.set_attributes(deterministic=True, raise_if_not_found=False)
  return model, stack, jax.random.normal(jax.random.key(3), (6, 16, 16, 1))


@pytest.mark.parametrize('case', list(CASES)[1:])
def test_plain_flax_with_our_weights_gives_our_logits(case):
  model, stack, images = carried_over(case)
  np.testing.assert_allclose(
    nnx.jit(lambda m: m(images))(stack),
    nnx.jit(lambda m: m(images, train=True))(model),
    rtol=1e-4,
    atol=1e-4,
  )


def test_plain_flax_with_our_weights_gives_our_logits_and_gradients():
  model, stack, images = carried_over('bilstm, attention')
  direction = jax.random.normal(jax.random.key(4), (6, CLASSES))

  def logits_and_gradient_norm(module, forward):
    def objective(module):
      logits = forward(module)
      return jnp.sum(logits * direction), logits

    @nnx.jit
    def both(module):
      gradient, logits = nnx.grad(objective, has_aux=True)(module)
      squares = [jnp.sum(g**2) for g in jax.tree.leaves(gradient)]
      return logits, jnp.sqrt(sum(squares))

    return both(module)

  ours, our_norm = logits_and_gradient_norm(
    model, lambda m: m(images, train=True)
  )
  theirs, their_norm = logits_and_gradient_norm(stack, lambda m: m(images))
  np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
  # Gates lie differently in the two trees, so norms are compared.
  assert our_norm > 0.1
  np.testing.assert_allclose(their_norm, our_norm, rtol=1e-3)


def test_what_peers_do_not_have_is_refused():
  specification = spec.Specification(
    input_shape=(8, 8, 1),
    backbone=(),
    body=(spec.Rows(), spec.Recurrent('gru', 3, reset_after=False)),
    head=(),
  )
  with pytest.raises(ValueError, match='reset'):
    translation.layers(specification, num_classes=3)
  model = models.specify('residual_lstm', dtype='bfloat16')
  with pytest.raises(ValueError, match='bfloat16'):
    translation.layers(model, num_classes=3)


OTHER_STAGES = {
  'convolutions': spec.Specification(
    input_shape=(11, 11, 3),
    backbone=(
      spec.Convolution(4, padding='VALID', normalise=False),
      spec.MaxPool(2),
      spec.Convolution(6, strides=2, use_bias=False, relu=False),
      spec.Drop(0.1),
    ),
    body=(spec.GlobalAveragePool(), spec.Reshape((2, 3)), spec.Mean()),
    head=(spec.Dense(5), spec.Drop(0.5), spec.Dense(4, 'linear')),
  ),
  'last state of both directions': spec.Specification(
    input_shape=(3, 4, 2),
    backbone=(),
    body=(
      spec.Rows(),
      spec.Recurrent('gru', 3, bidirectional=True, returns='last'),
      spec.Flatten(),
    ),
    head=(),
  ),
}


@pytest.mark.parametrize('stages', OTHER_STAGES)
def test_stages_that_the_cases_above_have_not(stages):
  specification = OTHER_STAGES[stages]
  model = filled(
    nnx.eval_shape(
      lambda: models.FusionModel(specification, num_classes=4, rngs=nnx.Rngs(0))
    )
  )
  layers = translation.layers(specification, num_classes=4)
  stack = filled(
    nnx.eval_shape(lambda: flax_nnx.Stack(layers, rngs=nnx.Rngs(0)))
  )
  carry_over(model, stack)
  stack.set_attributes(deterministic=True, raise_if_not_found=False)
  shape = (3, *specification.input_shape)
  images = jax.random.normal(jax.random.key(0), shape)
  np.testing.assert_allclose(
    nnx.jit(lambda m: m(images))(stack),
    nnx.jit(lambda m: m(images, train=True))(model),
    rtol=1e-4,
    atol=1e-4,
  )
