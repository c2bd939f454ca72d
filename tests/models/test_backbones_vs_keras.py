"""Backbones, and the models that P2 builds on them, against keras.applications
and Keras 3 on JAX.

Random weights and running statistics are carried over through a file that
Keras wrote, gradients and new statistics on the same way back: so both the
backbones and the reading of files are tested.
"""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from backbone_parity import (
  CLASSES,
  compare_evaluation,
  compare_training,
  evaluate,
  jit,
  loaded,
  norm_settings,
  use_direct_convolutions,
  whole_model,
)
from keras_weights import randomise, undrawn

from fer_jax.models.backbones import (
  BACKBONES,
  preprocess,
  preprocessing,
)

# Keras converts its variables by a means that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)

REFERENCES = {
  'densenet121': keras.applications.DenseNet121,
  'vgg16': keras.applications.VGG16,
  'xception': keras.applications.Xception,
}


HEADS = {
  'densenet121': lambda kl: [
    kl.Reshape((-1, 1024)),
    kl.GRU(256, return_sequences=True),
    kl.GRU(128),
    kl.Dense(256, activation='relu'),
    kl.Dense(CLASSES),
  ],
  'vgg16': lambda kl: [
    kl.GlobalAveragePooling2D(),
    kl.Reshape((1, 512)),
    kl.GRU(256),
    kl.Dense(CLASSES),
  ],
  'xception': lambda kl: [
    kl.MaxPooling2D(),
    kl.Flatten(),
    kl.Reshape((1, -1)),
    kl.GRU(256),
    kl.Dense(256, activation='relu'),
    kl.Dropout(0.5),
    kl.Dense(CLASSES),
  ],
}
"""P2, section 4: what follows each network, by Keras' layers."""


def reference(name, size):
  """A backbone of Keras with random weights."""
  # Layers without a name are numbered by what was built before.
  keras.utils.clear_session(free_memory=False)
  with undrawn():
    model = REFERENCES[name](
      weights=None, include_top=False, input_shape=(*size, 3)
    )
  randomise(model)
  return model


@pytest.mark.parametrize(
  ('name', 'size'),
  [('vgg16', (50, 37)), ('xception', (72, 79)), ('densenet121', (64, 70))],
  ids=('vgg16', 'xception', 'densenet121'),
)
def test_backbone(name, size, tmp_path, monkeypatch):
  """Logits of the whole model and maps 1e-4 of their largest element, gradients
  of all its parameters 1e-4 of each array's norm, new running statistics of the
  backbone 1e-4."""
  use_direct_convolutions(monkeypatch)
  model = reference(name, size)
  rng = np.random.default_rng(1)
  pixels = rng.uniform(0, 255, (6, *size, 3)).astype(np.float32)
  faces = preprocess(jnp.asarray(pixels), preprocessing(name, 'keras'))
  x = rng.normal(size=faces.shape).astype(np.float32)

  trainable = [v.value for v in model.trainable_variables]
  others = [v.value for v in model.non_trainable_variables]
  path = tmp_path / 'before.weights.h5'
  model.save_weights(path)
  backbone = loaded(BACKBONES[name], 'keras', path)
  assert norm_settings(backbone) == {
    (layer.epsilon, layer.momentum)
    for layer in model.layers
    if isinstance(layer, keras.layers.BatchNormalization)
  }

  with undrawn(), jax.numpy_rank_promotion('allow'):
    head = HEADS[name](keras.layers)
    on_top = keras.Sequential([keras.Input(model.output_shape[1:]), *head])
  randomise(on_top)
  head_trainable = [v.value for v in on_top.trainable_variables]
  head_others = [v.value for v in on_top.non_trainable_variables]

  assert backbone.output_size(*size, 'keras') == model.output_shape[1:3]
  weighing = rng.normal(size=(len(x), CLASSES)).astype(np.float32)

  @jit
  @functools.partial(jax.grad, has_aux=True)
  def gradients_of(both, others, head_others, x, weighing):
    trainable, head_trainable = both
    with jax.numpy_rank_promotion('allow'):
      y = model.stateless_call(trainable, others, x, training=False)[0]
      logits = on_top.stateless_call(head_trainable, head_others, y)[0]
    return (logits * weighing).sum(), (y, logits)

  @jit
  def train(trainable, others, x):
    with jax.numpy_rank_promotion('allow'):
      return model.stateless_call(trainable, others, x, training=True)

  # Gates that a map of random weights saturates, Xception's of size 300, pass
  # little on but rounding.
  (y, _) = gradients_of(
    (trainable, head_trainable), others, head_others, faces[:1], weighing[:1]
  )[1]
  head_trainable[0] /= y.std()

  def carried(parameters, statistics):
    """A file with these values of Keras' variables."""
    values = parameters + statistics
    variables = model.trainable_variables + model.non_trainable_variables
    for variable, value in zip(variables, values, strict=True):
      variable.assign(value)
    path = tmp_path / 'carried.weights.h5'
    model.save_weights(path)
    return path

  def whole(parameters, of_head):
    """Our model with these values of Keras' variables."""
    path = carried(parameters, others)
    return whole_model(name, 'keras', size, path, of_head)

  def expected():
    for n in range(len(faces)):
      gradients, outputs = gradients_of(
        (trainable, head_trainable),
        *(others, head_others, faces[n : n + 1], weighing[n : n + 1]),
      )
      yield *outputs, functools.partial(whole, *gradients)

  ours = evaluate(whole(trainable, head_trainable), pixels, weighing)
  compare_evaluation(ours, expected(), 1e-4)
  if others:
    y, moved = train(trainable, others, x)
    moved = loaded(BACKBONES[name], 'keras', carried(trainable, moved))
    compare_training(backbone, x, y, moved)


@pytest.mark.parametrize('name', sorted(REFERENCES))
def test_preprocessing(name):
  """Reference: preprocess_input of keras.applications; 1e-5 of 255."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)
  module = {
    'densenet121': keras.applications.densenet,
    'vgg16': keras.applications.vgg16,
    'xception': keras.applications.xception,
  }[name]
  facts = preprocessing(name, 'keras')
  expected = module.preprocess_input(pixels.astype(np.float32))
  scale = np.abs(expected).max()
  for given in (pixels, pixels.astype(np.float32)):
    found = preprocess(jnp.asarray(given), facts)
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale)
  grey = pixels[..., :1]
  found = preprocess(jnp.asarray(grey), facts)
  expected = module.preprocess_input(np.repeat(grey, 3, -1).astype(np.float32))
  np.testing.assert_allclose(found, expected, atol=1e-6 * scale)
