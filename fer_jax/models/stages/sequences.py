"""Stages that make a sequence (T, D) of a map, and those that take one."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.models import specification as spec
from fer_jax.models.stages.layer import Layer, check_among, check_plain
from fer_jax.nn import (
  GRU,
  LSTM,
  AdditiveAttention,
  Bidirectional,
  Stacked,
  arguments,
)


class RowsLayer(Layer):
  """What `specification.Rows` stands for."""

  kind = 'rows'
  takes = 3

  def build(self, stage, shape, *, dtype, rngs):
    self.grid = (shape[0], 1)
    self.output_shape = (shape[0], shape[1] * shape[2])

  def grid_after(self, grid):
    return self.grid

  def __call__(self, x, run):
    return x.reshape(x.shape[0], *self.output_shape)


class GridLayer(Layer):
  """What `specification.Grid` stands for."""

  kind = 'grid'
  takes = 3

  def build(self, stage, shape, *, dtype, rngs):
    self.grid = shape[:2]
    self.output_shape = (shape[0] * shape[1], shape[2])

  def grid_after(self, grid):
    return self.grid

  def __call__(self, x, run):
    return x.reshape(x.shape[0], *self.output_shape)


class StepsLayer(Layer):
  """What `specification.Steps` stands for."""

  kind = 'steps'

  def build(self, stage: spec.Steps, shape, *, dtype, rngs):
    size = math.prod(shape)
    features = size
    if stage.features is not None:
      features = arguments.positive(f'{stage}: features', stage.features)
    if size % features:
      raise ValueError(f'{stage} does not divide the {size} values of {shape}')
    self.output_shape = (size // features, features)

  def grid_after(self, grid):
    return None

  def __call__(self, x, run):
    return x.reshape(x.shape[0], *self.output_shape)


class SequenceLayer(Layer):
  """A stage over the steps of a sequence (B, T, D)."""

  takes = 2
  over_sequence = True
  in_features: int

  def require_width(self, x: jax.Array) -> None:
    """Raises ValueError where a clip's steps are not those of an image."""
    wanted = self.in_features
    if wanted != x.shape[-1]:
      raise ValueError(
        f'{self.stage} was built for steps of {wanted} features, a frame of a '
        f'clip gives {x.shape[-1]}: for clips build the model with a step that '
        "is as wide as the map, such as grid tokens, or with clip='tokens'"
      )


class ShuffleLayer(SequenceLayer):
  """What `specification.Shuffle` stands for."""

  kind = 'shuffle'

  def build(self, stage: spec.Shuffle, shape, *, dtype, rngs):
    if not arguments.is_int(stage.seed) or stage.seed < 0:
      arguments.refuse(f'{stage}: seed', 'an int of at least 0', stage.seed)
    self.seed = stage.seed

  def grid_after(self, grid):
    return None

  def order(self, steps: int) -> np.ndarray:
    """That of so many steps, whatever length the model was built for."""
    return np.random.default_rng([self.seed, steps]).permutation(steps)

  def __call__(self, x, run):
    steps = x.shape[1]
    if run.frame_mask is None:
      return x[:, self.order(steps)]
    # Of the steps there are, whose number is that of a row's frames: of all,
    # padding would change it. The others come last.
    orders = np.tile(np.arange(steps), (steps // run.steps_a_frame + 1, 1))
    for frames, order in enumerate(orders):
      there = frames * run.steps_a_frame
      order[:there] = self.order(there)
    mask_bt = run.frame_mask
    there_first_bt = jnp.argsort(~mask_bt, axis=1, stable=True)
    frames_b = mask_bt.sum(1) // run.steps_a_frame
    order_bt = jnp.take_along_axis(
      there_first_bt, jnp.asarray(orders)[frames_b], 1
    )
    run.frame_mask = jnp.take_along_axis(mask_bt, order_bt, 1)
    return jnp.take_along_axis(x, order_bt[..., None], 1)


class RecurrentLayer(SequenceLayer):
  """What `specification.Recurrent` stands for."""

  kind = 'recurrent'

  def build(self, stage: spec.Recurrent, shape, *, dtype, rngs):
    check_recurrent(stage)
    self.in_features = shape[1]
    self.layer: Any = recurrent_layer(stage, shape[1], dtype=dtype, rngs=rngs)
    self.output_shape = (self.layer.out_features,)
    if stage.returns == 'sequence':
      self.output_shape = (shape[0], *self.output_shape)

  def __call__(self, x, run):
    self.require_width(x)
    options: dict[str, Any] = {}
    key = run.next_key()
    if isinstance(self.layer, Stacked):
      # The rate between recurrent layers is their own: a rate for all other
      # dropouts neither starts it nor changes it.
      options = {'key': key if self.stage.dropout else None}
    y, carry = self.layer(x, run.frame_mask, **options)
    if self.stage.returns == 'sequence':
      return y
    # What comes after the last hidden state has steps of another kind, if any.
    run.frame_mask = None
    return self.layer.final_hidden(carry).astype(y.dtype)


def check_recurrent(stage: spec.Recurrent) -> None:
  """Raises ValueError where a field that has a list or a range is not in it."""
  check_among(stage, 'cell', spec.CELLS)
  check_among(stage, 'returns', spec.RETURNS)
  arguments.share(f'{stage}: dropout', stage.dropout)


def recurrent_layer(
  stage: spec.Recurrent, in_features: int, *, dtype, rngs: nnx.Rngs
) -> LSTM | GRU | Bidirectional | Stacked:
  """The layer of `fer_jax.nn` that `specification.Recurrent` stands for."""

  def cell(features):
    options: Any = {'dtype': dtype, 'backend': stage.backend, 'rngs': rngs}
    if stage.cell == 'lstm':
      return LSTM(features, stage.units, **options)
    return GRU(features, stage.units, reset_after=stage.reset_after, **options)

  layers = []
  for _ in range(stage.layers):
    if stage.bidirectional:
      layers.append(Bidirectional(cell(in_features), cell(in_features)))
    else:
      layers.append(cell(in_features))
    in_features = layers[-1].out_features
  if len(layers) == 1:
    return layers[0]
  return Stacked(layers, dropout=stage.dropout)


class PointwiseLayer(SequenceLayer):
  """What `specification.Pointwise` stands for."""

  kind = 'pointwise'

  def build(self, stage: spec.Pointwise, shape, *, dtype, rngs):
    self.in_features = shape[1]
    like = stage.matches
    if not isinstance(like, spec.Recurrent):
      arguments.refuse(f'{stage}: matches', 'a Recurrent', like)
    check_plain(like)
    check_recurrent(like)
    width = like.units * (2 if like.bidirectional else 1)
    hidden = matched_width(recurrent_size(like, shape[1]), shape[1], width)

    def dense(inputs, outputs):
      return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.glorot_uniform(),
        dtype=dtype,
        rngs=rngs,
      )

    self.first = dense(shape[1], hidden)
    self.second = dense(hidden, width)
    self.output_shape = (width,)
    if like.returns == 'sequence':
      self.output_shape = (shape[0], width)

  def __call__(self, x, run):
    self.require_width(x)
    y = self.second(jax.nn.relu(self.first(x)))
    if self.stage.matches.returns == 'sequence':
      return y
    y, run.frame_mask = _masked_mean(y, run.frame_mask), None
    return y


def recurrent_size(stage: spec.Recurrent, in_features: int) -> int:
  """Number of parameters of a recurrent stage."""
  layers = nnx.eval_shape(
    lambda: recurrent_layer(
      stage, in_features, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
  )
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layers)))


def matched_width(parameters: int, inputs: int, outputs: int) -> int:
  """Width between two dense layers that together have most nearly
  `parameters`."""
  return max(1, round((parameters - outputs) / (inputs + 1 + outputs)))


class AttentionLayer(SequenceLayer):
  """What `specification.Attention` stands for."""

  kind = 'attention'

  def build(self, stage: spec.Attention, shape, *, dtype, rngs):
    self.in_features = shape[1]
    self.attention = AdditiveAttention(
      shape[1], stage.units, dtype=dtype, rngs=rngs
    )
    self.output_shape = shape[1:]

  def __call__(self, x, run):
    self.require_width(x)
    y, run.features['attention'] = self.attention(x, run.frame_mask)
    return y


class MeanLayer(SequenceLayer):
  """What `specification.Mean` stands for."""

  kind = 'mean'

  def build(self, stage, shape, *, dtype, rngs):
    self.output_shape = shape[1:]

  def __call__(self, x, run):
    return _masked_mean(x, run.frame_mask)


def _masked_mean(x_btd, mask_bt):
  if mask_bt is None:
    return x_btd.mean(1)
  count_b1 = jnp.maximum(mask_bt.sum(1, keepdims=True), 1)
  total_bd = jnp.where(mask_bt[..., None], x_btd, 0).sum(1)
  return total_bd / count_b1.astype(x_btd.dtype)
