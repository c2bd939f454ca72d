"""Whole models against Keras 3 (JAX back end), layer by layer as the papers
describe them, with random weights of Keras' models carried over.

The references are written from the papers, not from the specifications: P4's
are its tables, row by row.
"""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers as kl
from keras_weights import randomise, undrawn

from fer_jax import models, nn

K = 7
OUR_BATCH_NORM = {'momentum': 0.9, 'epsilon': 1e-5}


def hybrid(filters, lstms, dense):
  """P4, tables 2 to 4; dropout stands where the tables have it."""
  stack = [keras.Input((48, 48, 1))]
  last = len(filters) - 1
  for n, width in enumerate(filters):
    stack += [
      kl.Conv2D(width, 3, padding='same' if n in (1, 3) else 'valid'),
      kl.BatchNormalization(axis=3),
      kl.Activation('relu'),
    ]
    if n in (1, 3, last):
      stack.append(kl.MaxPooling2D())
  if lstms:
    for shape, units in lstms:
      stack += [kl.Reshape(shape), kl.LSTM(units)]
  else:
    stack.append(kl.Flatten())
  stack += [kl.Dense(dense, activation='relu'), kl.Dropout(0.6), kl.Dense(K)]
  return keras.Sequential(stack)


def plain(filters, *, normalise, dense, dropout):
  """P3, figures 6 and 7."""
  stack = [keras.Input((48, 48, 1))]
  for width in filters:
    stack.append(kl.Conv2D(width, 3, padding='same'))
    if normalise:
      stack.append(kl.BatchNormalization())
    stack += [kl.ReLU(), kl.MaxPooling2D()]
  stack.append(kl.Flatten())
  stack += [kl.Dense(width, activation='relu') for width in dense]
  return keras.Sequential([*stack, kl.Dropout(dropout), kl.Dense(K)])


def residual(recurrent):
  """P1, section 3.2, with the widths that the preset chooses, made small.

  Layers are named by their place: a functional model sorts them by depth.
  """
  made = []

  def named(layer):
    made.append(layer)
    layer.name = f'{len(made):02}_{layer.name}'
    return layer

  def conv_norm(x, width, size=3):
    x = named(kl.Conv2D(width, size, padding='same', use_bias=False))(x)
    return named(kl.BatchNormalization(**OUR_BATCH_NORM))(x)

  def block(x, width):
    y = kl.ReLU()(conv_norm(x, width))
    y = conv_norm(y, width)
    skip = x if x.shape[-1] == width else conv_norm(x, width, 1)
    return kl.ReLU()(kl.Add()([y, skip]))

  images = keras.Input((24, 24, 1))
  x = kl.MaxPooling2D()(kl.ReLU()(conv_norm(images, 8)))
  x = block(block(x, 8), 8)
  x = block(kl.MaxPooling2D()(x), 16)
  x = named(recurrent)(kl.Reshape((36, 16))(x))
  # Additive attention: v . tanh(W x + b), softmax over steps, weighted sum.
  hidden = named(kl.Dense(6, activation='tanh'))(x)
  alpha = kl.Softmax(axis=1)(named(kl.Dense(1, use_bias=False))(hidden))
  x = kl.Flatten()(kl.Dot(axes=1)([alpha, x]))
  x = kl.Dropout(0.5)(named(kl.Dense(12, activation='relu'))(x))
  return keras.Model(images, named(kl.Dense(K))(x))


SMALL_RESIDUAL = {
  'input_shape': (24, 24, 1),
  'stem_filters': (8,),
  'filters': (8, 16),
  'blocks': (2, 1),
  'units': 5,
  'attention_units': 6,
  'head': (12,),
}

REFERENCES = {
  'cnn_model1': ({}, lambda: hybrid((16, 32, 32), (), 32)),
  'cnn_lstm_model2': (
    {},
    lambda: hybrid(
      (32, 64, 64, 128, 128), (((64, 32), 32), ((1, 32), 32)), 200
    ),
  ),
  'cnn_lstm_model3': (
    {},
    lambda: hybrid(
      (32, 64, 64, 128, 128), (((16, 128), 128), ((2, 64), 64)), 200
    ),
  ),
  'basic_cnn': (
    {},
    lambda: plain((32, 64), normalise=False, dense=(128,), dropout=0),
  ),
  'improved_cnn': (
    {},
    lambda: plain((32, 64, 128, 128), normalise=True, dense=(), dropout=0.2),
  ),
  'residual_lstm': (
    SMALL_RESIDUAL,
    lambda: residual(kl.LSTM(5, return_sequences=True)),
  ),
  'residual_gru': (
    SMALL_RESIDUAL,
    lambda: residual(kl.GRU(5, return_sequences=True)),
  ),
  'residual_bilstm': (
    SMALL_RESIDUAL,
    lambda: residual(kl.Bidirectional(kl.LSTM(5, return_sequences=True))),
  ),
}


INNER = (
  'conv', 'norm', 'layer', 'attention', 'hidden', 'score', 'linear',
)  # fmt: skip


def leaves_of(module):
  """Our layers with weights, in the order of a forward pass."""
  if isinstance(module, nn.ResidualBlock):
    # Keras builds the block's layers in this order too.
    yield from (module.conv1, module.norm1, module.conv2, module.norm2)
    if module.projection is not None:
      yield from (module.projection, module.projection_norm)
  elif isinstance(
    module, nn.Conv | nn.BatchNorm | nn.LSTM | nn.GRU | nnx.Linear
  ):
    yield module
  elif isinstance(module, nn.Bidirectional):
    yield from (module.forward, module.backward)
  else:
    for name in (
      'conv',
      'norm',
      'layer',
      'attention',
      'hidden',
      'score',
      'linear',
    ):
      inner = getattr(module, name, None)
      if isinstance(inner, nnx.Module):
        yield from leaves_of(inner)


def our_leaves(model):
  for part in ('backbone', 'body', 'head'):
    for _, layer in model.layers(part):
      yield from leaves_of(layer)
  yield model.logits


def variables_of(leaf):
  """Our variables, in the order in which Keras keeps its own."""
  if isinstance(leaf, nn.BatchNorm):
    return [leaf.scale, leaf.bias, leaf.mean, leaf.var]
  if isinstance(leaf, nn.LSTM | nn.GRU):
    return [leaf.kernel, leaf.recurrent_kernel, leaf.bias]
  return [v for v in (leaf.kernel, leaf.bias) if v is not None]


@functools.cache
def pair(name):
  """(our model, Keras' model, path of our variable by Keras' path)."""
  overrides, build = REFERENCES[name]
  with undrawn(), jax.numpy_rank_promotion('allow'):
    reference = build()
  randomise(reference)
  model = nnx.eval_shape(
    lambda: models.create(name, num_classes=K, rngs=nnx.Rngs(0), **overrides)
  )
  ours = [v for leaf in our_leaves(model) for v in variables_of(leaf)]
  by_layer = [layer for layer in reference.layers if layer.weights]
  if not isinstance(reference, keras.Sequential):
    by_layer.sort(key=lambda layer: layer.name)
  theirs = [weight for layer in by_layer for weight in layer.weights]
  paths = {
    id(node): path
    for path, node in nnx.iter_graph(model)
    if isinstance(node, nnx.Variable)
  }
  assert len(ours) == len(theirs) == len(paths)
  path_of = {}
  for mine, weight in zip(ours, theirs, strict=True):
    assert mine.shape == weight.shape, weight.path
    mine.set_value(jnp.asarray(weight.value))
    path_of[weight.path] = paths[id(mine)]
  return model, reference, path_of


def images_for(name, n=3):
  draw = np.random.default_rng(2)
  shape = pair(name)[0].specification.input_shape
  return jnp.asarray(draw.standard_normal((n, *shape)), jnp.float32)


def call_keras(reference, trainable, other, images, *, training):
  with jax.numpy_rank_promotion('allow'):
    return reference.stateless_call(trainable, other, images, training=training)


def loss_of(logits):
  return -jax.nn.log_softmax(logits)[:, 0].mean()


@pytest.mark.parametrize('name', REFERENCES)
def test_logits(name):
  """Reference: the model in Keras, random weights, evaluation; 1e-4."""
  model, reference, _ = pair(name)
  trainable = [v.value for v in reference.trainable_variables]
  other = [v.value for v in reference.non_trainable_variables]
  images = images_for(name)

  @jax.jit
  def theirs(trainable, other, images):
    return call_keras(reference, trainable, other, images, training=False)[0]

  graphdef, state = nnx.split(model)
  ours = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))
  found = ours(state, images)
  expected = theirs(trainable, other, images)
  assert jnp.std(expected) > 0.05
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', REFERENCES)
def test_gradients_and_statistics_of_a_training_step(name):
  """Reference: the model in Keras with batch statistics and without dropout;
  gradients to 1e-3 of the largest of each parameter, running statistics to
  1e-4."""
  model, reference, path_of = pair(name)
  for layer in reference.layers:
    if isinstance(layer, kl.Dropout):
      layer.rate = 0
  other = [v.value for v in reference.non_trainable_variables]
  images = images_for(name)

  @jax.jit
  def theirs(trainable, other, images):
    def loss(trainable):
      logits, moved = call_keras(
        reference, trainable, other, images, training=True
      )
      return loss_of(logits), moved

    return jax.grad(loss, has_aux=True)(trainable)

  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  @jax.jit
  def ours(params, rest, images):
    def loss(params):
      merged = nnx.merge(graphdef, params, rest, copy=True)
      logits = merged(images, train=True)
      return loss_of(logits), nnx.state(merged, nnx.Not(nnx.Param))

    return jax.grad(loss, has_aux=True)(params)

  trainable = [v.value for v in reference.trainable_variables]
  expected, moved = theirs(trainable, other, images)
  gradients, statistics = ours(params, rest, images)
  gradients = dict(nnx.to_flat_state(gradients))
  statistics = dict(nnx.to_flat_state(statistics))
  largest = max(float(jnp.abs(g).max()) for g in expected)
  for variable, gradient in zip(
    reference.trainable_variables, expected, strict=True
  ):
    found = gradients[path_of[variable.path]][...]
    scale = max(float(jnp.abs(gradient).max()), 1e-3 * largest)
    np.testing.assert_allclose(
      found / scale, gradient / scale, atol=1e-3, err_msg=variable.path
    )
  for variable, value in zip(
    reference.non_trainable_variables, moved, strict=True
  ):
    # Keras counts its dropouts' seeds among these.
    if variable.path in path_of:
      found = statistics[path_of[variable.path]][...]
      np.testing.assert_allclose(
        found, value, rtol=1e-4, atol=1e-4, err_msg=variable.path
      )
