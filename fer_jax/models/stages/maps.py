"""Stages that take a map (h, w, D)."""

import math

import jax
from flax import nnx

from fer_jax.models import backbones
from fer_jax.models import specification as spec
from fer_jax.models.stages.layer import Layer
from fer_jax.nn import BatchNorm, Conv, ResidualBlock, max_pool
from fer_jax.nn.conv import geometry
from fer_jax.nn.initializers import glorot_uniform, he_normal

KERNEL_INITS = {'he_normal': he_normal, 'glorot_uniform': glorot_uniform}


class ConvolutionLayer(Layer):
  """What `specification.Convolution` stands for."""

  kind = 'conv'
  takes = 3

  def build(self, stage: spec.Convolution, shape, *, dtype, rngs):
    self.require_among('initializer', spec.INITIALIZERS)
    self.conv = Conv(
      shape[2],
      stage.filters,
      stage.kernel_size,
      strides=stage.strides,
      padding=stage.padding,
      use_bias=stage.use_bias,
      dtype=dtype,
      kernel_init=KERNEL_INITS[stage.initializer],
      rngs=rngs,
    )
    self.norm = nnx.data(None)
    if stage.normalise:
      self.norm = BatchNorm(
        stage.filters, momentum=stage.momentum, epsilon=stage.epsilon
      )
    _, size = geometry(
      shape[:2],
      (stage.kernel_size, stage.kernel_size),
      self.conv.strides,
      stage.padding,
    )
    self.output_shape = (*size, stage.filters)

  def __call__(self, x, run):
    y = self.conv(x)
    if self.norm is not None:
      y = self.norm(y, not run.train, mask=run.mask)
    return jax.nn.relu(y) if self.stage.relu else y


class MaxPoolLayer(Layer):
  """What `specification.MaxPool` stands for."""

  kind = 'pool'
  takes = 3

  def build(self, stage: spec.MaxPool, shape, *, dtype, rngs):
    self.output_shape = (*(n // stage.window for n in shape[:2]), shape[2])
    self.require_room(shape)

  def __call__(self, x, run):
    return max_pool(x, self.stage.window)


class ResidualLayer(Layer, ResidualBlock):
  """What `specification.Residual` stands for."""

  kind = 'residual'
  takes = 3

  def build(self, stage: spec.Residual, shape, *, dtype, rngs):
    ResidualBlock.__init__(
      self,
      shape[2],
      stage.filters,
      kernel_size=stage.kernel_size,
      strides=stage.strides,
      dtype=dtype,
      rngs=rngs,
    )
    size = (math.ceil(n / stage.strides) for n in shape[:2])
    self.output_shape = (*size, stage.filters)

  def __call__(self, x, run):
    return ResidualBlock.__call__(self, x, train=run.train, mask=run.mask)


class BackboneLayer(Layer):
  """What `specification.Backbone` stands for."""

  kind = 'network'
  takes = 3

  def build(self, stage: spec.Backbone, shape, *, dtype, rngs):
    if shape[2] not in (1, 3):
      raise ValueError(
        f'{stage} takes grey or RGB images, got {shape[2]} channels'
      )
    self.require_among('name', tuple(backbones.BACKBONES))
    self.require_among('family', backbones.FAMILIES)
    network = backbones.BACKBONES[stage.name]
    self.network = network(family=stage.family, dtype=dtype, rngs=rngs)
    size = network.output_size(*shape[:2], stage.family)
    self.output_shape = (*size, self.network.out_features)
    self.facts = backbones.preprocessing(stage.name, stage.family)

  def __call__(self, x, run):
    y = backbones.preprocess(x, self.facts).astype(x.dtype)
    return self.network(y, train=run.train, mask=run.mask, remat=run.remat)


class GlobalAveragePoolLayer(Layer):
  """What `specification.GlobalAveragePool` stands for."""

  kind = 'gap'
  takes = 3

  def build(self, stage, shape, *, dtype, rngs):
    self.output_shape = shape[2:]

  def __call__(self, x, run):
    return x.mean((1, 2))
