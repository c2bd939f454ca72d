"""Keras 3 through `fit`, on the back end that the process was given.

`KERAS_BACKEND` is read when Keras is imported, so each back end has a process
of its own; without it Keras takes its default, TensorFlow.
"""

# Of the extra `bench`, which a type check must do without.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import time
from collections.abc import Callable

import keras
import numpy as np

from fer_jax import provenance
from fer_jax.benchmark.architecture import Layer

BACKEND_PACKAGES = {
  'tensorflow': ('tensorflow', 'tensorflow-cpu'),
  'jax': ('jax', 'jaxlib'),
  'torch': ('torch',),
}


def apply(layers: list[Layer], x):
  """The layers one after another, on symbolic tensors."""
  for layer in layers:
    x = _apply(layer, x)
  return x


def _apply(layer: Layer, x):
  kl = keras.layers
  match layer['layer']:
    case 'conv' if layer.get('groups', 1) == layer['inputs'] > 1:
      return kl.DepthwiseConv2D(
        layer['kernel'],
        strides=layer['strides'],
        padding=layer['padding'].lower(),
        use_bias=layer['bias'],
      )(x)
    case 'conv':
      return kl.Conv2D(
        layer['filters'],
        layer['kernel'],
        strides=layer['strides'],
        padding=layer['padding'].lower(),
        use_bias=layer['bias'],
      )(x)
    case 'batch_norm':
      return kl.BatchNormalization(
        momentum=layer['momentum'], epsilon=layer['epsilon']
      )(x)
    case 'relu':
      return kl.ReLU()(x)
    case 'max_pool':
      return kl.MaxPooling2D(
        layer['window'],
        layer.get('strides'),
        layer.get('padding', 'valid').lower(),
      )(x)
    case 'avg_pool':
      return kl.AveragePooling2D(layer['window'])(x)
    case 'repeat':
      return kl.Concatenate()([x, x, x])
    case 'concatenate':
      return kl.Concatenate()([x, apply(layer['body'], x)])
    case 'residual':
      return kl.Add()([apply(layer['body'], x), apply(layer['skip'], x)])
    case 'gap':
      return kl.GlobalAveragePooling2D()(x)
    case 'mean':
      return kl.GlobalAveragePooling1D()(x)
    case 'reshape':
      return kl.Reshape(layer['shape'])(x)
    case 'recurrent':
      kind = {'lstm': kl.LSTM, 'gru': kl.GRU}[layer['cell']]
      recurrent = kind(
        layer['units'], return_sequences=layer['returns'] == 'sequence'
      )
      if layer['bidirectional']:
        recurrent = kl.Bidirectional(recurrent)
      return recurrent(x)
    case 'attention':
      hidden = kl.Dense(layer['units'], activation='tanh')(x)
      weights = kl.Softmax(axis=1)(kl.Dense(1, use_bias=False)(hidden))
      context = kl.Dot(axes=1)([weights, x])
      return kl.Flatten()(context)
    case 'dense':
      return kl.Dense(layer['units'])(x)
    case 'dropout':
      return kl.Dropout(layer['rate'])(x)
  raise ValueError(f'no layer {layer["layer"]!r} in Keras')


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  threads = provenance.cores()
  backend = keras.backend.backend()
  device = 'cpu'
  if backend == 'tensorflow':
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
      device = tf.config.experimental.get_device_details(gpus[0])['device_name']
  elif backend == 'jax':
    import jax

    device = jax.devices()[0].device_kind
  elif backend == 'torch':
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
      device = torch.cuda.get_device_name()
  keras.utils.set_random_seed(case['seed'])
  inputs = keras.Input(tuple(case['input_shape']))
  model = keras.Model(inputs, apply(case['layers'], inputs))
  model.compile(
    optimizer=keras.optimizers.Adam(case['learning_rate']),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  draws = np.random.default_rng(case['seed'])
  # `fit` has a cost a call and an epoch; the steps of an epoch share it.
  epoch = case['steps_per_epoch']
  count = epoch * case['batch_size']
  images = draws.standard_normal((count, *case['input_shape']), np.float32)
  labels = draws.integers(case['num_classes'], size=count)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    model.fit(
      images,
      labels,
      batch_size=case['batch_size'],
      epochs=steps // epoch,
      shuffle=False,
      verbose=0,  # pyright: ignore[reportArgumentType]
    )
    return time.perf_counter() - begun

  return run, {
    'steps_per_dispatch': epoch,
    'parameters': sum(int(np.prod(w.shape)) for w in model.trainable_weights),
    'device': device,
    'backend': backend,
    'threads': threads,
    'versions': provenance.versions(
      ('keras', *BACKEND_PACKAGES.get(backend, ()))
    ),
  }
