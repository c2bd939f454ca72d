"""Plain Flax: the parts of `flax.nnx` as its documentation puts them together.

Nothing of `fer_jax.nn` is used. Of Flax's two LSTM cells this takes
`OptimizedLSTMCell`, the faster one.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fer_jax import provenance
from fer_jax.benchmark.architecture import Layer


class Attention(nnx.Module):
  """Additive attention over steps: (B, T, D) -> (B, D)."""

  def __init__(self, features: int, units: int, *, rngs: nnx.Rngs):
    self.hidden = nnx.Linear(features, units, rngs=rngs)
    self.score = nnx.Linear(units, 1, use_bias=False, rngs=rngs)

  def __call__(self, x_btd: jax.Array) -> jax.Array:
    weights = nnx.softmax(self.score(nnx.tanh(self.hidden(x_btd))), axis=1)
    return jnp.sum(weights * x_btd, axis=1)


class Recurrent(nnx.Module):
  """`nnx.RNN`, in one direction or both."""

  def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
    def direction(reverse: bool) -> nnx.RNN:
      if layer['cell'] == 'lstm':
        cell = nnx.OptimizedLSTMCell(layer['inputs'], layer['units'], rngs=rngs)
      else:
        cell = nnx.GRUCell(layer['inputs'], layer['units'], rngs=rngs)
        # Flax's cell lacks the bias of the recurrent product that Keras,
        # PyTorch and we have; with it the parameters are the same.
        cell.dense_h = nnx.Linear(
          layer['units'],
          3 * layer['units'],
          kernel_init=nnx.initializers.orthogonal(),
          rngs=rngs,
        )
      return nnx.RNN(cell, reverse=reverse, keep_order=reverse, rngs=rngs)

    self.returns = layer['returns']
    self.units = layer['units']
    self.bidirectional = layer['bidirectional']
    self.rnn = (
      nnx.Bidirectional(direction(False), direction(True), rngs=rngs)
      if layer['bidirectional']
      else direction(False)
    )

  def __call__(self, x_btd: jax.Array) -> jax.Array:
    y_bth: Any = self.rnn(x_btd)  # without carries, as none were asked for
    if self.returns == 'sequence':
      return y_bth
    if not self.bidirectional:
      return y_bth[:, -1]
    forward, backward = y_bth[:, -1, : self.units], y_bth[:, 0, self.units :]
    return jnp.concatenate([forward, backward], axis=-1)


class Residual(nnx.Module):
  """body(x) + skip(x)."""

  def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
    self.body = Stack(layer['body'], rngs=rngs)
    self.skip = Stack(layer['skip'], rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.body(x) + self.skip(x)


class Concatenate(nnx.Module):
  """x and body(x), beside each other."""

  def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
    self.body = Stack(layer['body'], rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, self.body(x)], axis=-1)


class Stack(nnx.Module):
  """The layers one after another."""

  def __init__(self, layers: list[Layer], *, rngs: nnx.Rngs):
    self.steps = nnx.List([_build(layer, rngs) for layer in layers])

  def __call__(self, x: jax.Array) -> jax.Array:
    for step in self.steps:
      x = step(x)
    return x


def _build(layer: Layer, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
  match layer['layer']:
    case 'conv':
      return nnx.Conv(
        layer['inputs'],
        layer['filters'],
        (layer['kernel'], layer['kernel']),
        strides=layer['strides'],
        padding=layer['padding'],
        feature_group_count=layer.get('groups', 1),
        use_bias=layer['bias'],
        rngs=rngs,
      )
    case 'batch_norm':
      return nnx.BatchNorm(
        layer['features'],
        momentum=layer['momentum'],
        epsilon=layer['epsilon'],
        rngs=rngs,
      )
    case 'relu':
      return nnx.relu
    case 'max_pool':
      window = (layer['window'], layer['window'])
      strides = (layer.get('strides', layer['window']),) * 2
      padding = layer.get('padding', 'VALID')
      return lambda x: nnx.max_pool(x, window, strides, padding)
    case 'avg_pool':
      size = (layer['window'], layer['window'])
      return lambda x: nnx.avg_pool(x, size, strides=size)
    case 'repeat':
      return lambda x: jnp.repeat(x, 3, -1)
    case 'concatenate':
      return Concatenate(layer, rngs=rngs)
    case 'residual':
      return Residual(layer, rngs=rngs)
    case 'gap':
      return lambda x: jnp.mean(x, axis=(1, 2))
    case 'mean':
      return lambda x: jnp.mean(x, axis=1)
    case 'reshape':
      return lambda x: x.reshape(x.shape[0], *layer['shape'])
    case 'recurrent':
      return Recurrent(layer, rngs=rngs)
    case 'attention':
      return Attention(layer['features'], layer['units'], rngs=rngs)
    case 'dense':
      return nnx.Linear(layer['inputs'], layer['units'], rngs=rngs)
    case 'dropout':
      return nnx.Dropout(layer['rate'], rngs=rngs)
  raise ValueError(f'no layer {layer["layer"]!r} in plain Flax')


@nnx.jit
def train_step(
  model: Stack, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
  """One step of cross-entropy, as in Flax's own examples."""

  def objective(model):
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
    )

  loss, gradients = nnx.value_and_grad(objective)(model)
  optimizer.update(model, gradients)
  return loss


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  model = Stack(case['layers'], rngs=nnx.Rngs(case['seed']))
  optimizer = nnx.Optimizer(
    model, optax.adam(case['learning_rate']), wrt=nnx.Param
  )
  draws = np.random.default_rng(case['seed'])
  shape = (case['batch_size'], *case['input_shape'])
  images = jnp.asarray(draws.standard_normal(shape, np.float32))
  labels = jnp.asarray(
    draws.integers(case['num_classes'], size=case['batch_size'])
  )

  # What both are made of is looked up once, not in each call.
  step = nnx.cached_partial(train_step, model, optimizer)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    loss = None
    for _ in range(steps):
      loss = step(images, labels)
    jax.block_until_ready(loss)
    return time.perf_counter() - begun

  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  return run, {
    'steps_per_dispatch': 1,
    'parameters': sum(p.size for p in parameters),
    'device': jax.devices()[0].device_kind,
    'threads': provenance.cores(),
    'versions': provenance.versions(('jax', 'jaxlib', 'flax', 'optax')),
  }
