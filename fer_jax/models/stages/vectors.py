"""Stages that take a vector, and those that take anything."""

import math

import jax
from flax import nnx

from fer_jax.models import specification as spec
from fer_jax.models.stages.layer import Layer
from fer_jax.nn import Dropout, arguments


class DropoutLayer(Layer):
  """What `specification.Drop` stands for."""

  kind = 'dropout'

  def build(self, stage: spec.Drop, shape, *, dtype, rngs):
    self.dropout = Dropout(stage.rate)

  def __call__(self, x, run):
    return self.dropout(x, key=run.next_key(), rate=run.rate)


class ReshapeLayer(Layer):
  """What `specification.Reshape` stands for."""

  kind = 'reshape'

  def build(self, stage: spec.Reshape, shape, *, dtype, rngs):
    held = arguments.positives(f'{stage}: shape', stage.shape)
    if math.prod(held) != math.prod(shape):
      raise ValueError(f'{stage} does not hold what it gets, {shape}')
    self.output_shape = held

  def grid_after(self, grid):
    return None

  def __call__(self, x, run):
    return x.reshape(x.shape[0], *self.output_shape)


class FlattenLayer(Layer):
  """What `specification.Flatten` stands for."""

  kind = 'flatten'

  def build(self, stage, shape, *, dtype, rngs):
    self.output_shape = (math.prod(shape),)

  def grid_after(self, grid):
    return None

  def __call__(self, x, run):
    return x.reshape(x.shape[0], *self.output_shape)


class DenseLayer(Layer):
  """What `specification.Dense` stands for."""

  kind = 'dense'
  takes = 1

  def build(self, stage: spec.Dense, shape, *, dtype, rngs):
    self.require_among('activation', spec.ACTIVATIONS)
    self.linear = nnx.Linear(
      shape[0],
      stage.width,
      kernel_init=nnx.initializers.glorot_uniform(),
      dtype=dtype,
      rngs=rngs,
    )
    self.output_shape = (stage.width,)

  def __call__(self, x, run):
    x = self.linear(x)
    return jax.nn.relu(x) if self.stage.activation == 'relu' else x
