"""Bodies and heads trained on the maps of a frozen backbone.

What a recurrent stage is worth is asked of the same maps with and without it:
the backbone runs once over the data, and every variant trains on what it gave.

Legend: N clips, T frames, h x w map, D channels, K classes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fer_jax.data import randomness, standardize
from fer_jax.models import FusionModel, Specification
from fer_jax.training.state import merge, model_state_of, split

FRAMES_A_CALL = 512


def maps_of(model: Any, images: np.ndarray) -> np.ndarray:
  """The maps float32 (N, T, h, w, D) that a model's backbone gives of clips.

  Args:
    model: a `FusionModel`.
    images: uint8 (N, T, H, W, C).
  """
  graphdef, params, model_state = split(model)
  scale = standardize.SCALES[model.specification.pixels]

  @jax.jit
  def call(params, model_state, images):
    merged: Any = merge(graphdef, params, model_state)
    pixels = scale(standardize.from_grey_levels(images))
    _, features = merged(pixels, return_features=True)
    return features['map']

  frames = images.reshape(-1, *images.shape[2:])
  maps = []
  for start in range(0, len(frames), FRAMES_A_CALL):
    rows = np.arange(start, start + FRAMES_A_CALL)
    found = call(params, model_state, frames[np.minimum(rows, len(frames) - 1)])
    maps.append(np.asarray(found)[: len(frames) - start])
  joined = np.concatenate(maps)
  return joined.reshape(*images.shape[:2], *joined.shape[1:])


def standardised(maps: np.ndarray, like: np.ndarray) -> np.ndarray:
  """Maps with each channel shifted and scaled as makes those of `like` (...,
  D) of zero mean and unit variance."""
  axes = tuple(range(like.ndim - 1))
  mean, deviation = like.mean(axes), like.std(axes)
  return (maps - mean) / np.maximum(deviation, 1e-6)


def on_maps(
  specification: Specification, map_shape: tuple[int, int, int]
) -> Specification:
  """The same body and head for maps in the place of images."""
  return dataclasses.replace(
    specification,
    input_shape=map_shape,
    backbone=(),
    pixels='standardised',
    remat=False,
  )


def train(
  specification: Specification,
  maps: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  seed: int,
  epochs: int,
  batch_size: int = 64,
  learning_rate: float = 3e-3,
) -> Any:
  """Trains body and head with Adam, its rate falling by a cosine to 0.

  Args:
    specification: of `on_maps`.
    maps: float32 (N, T, h, w, D).
    labels: int (N,).
    num_classes: K.
    seed: of initial values, order and dropout.
    epochs, batch_size, learning_rate: of the training; examples that do not
      fill a batch wait for the next epoch's order.

  Returns:
    The trained `FusionModel`.

  Raises:
    ValueError: where there is no whole batch.
  """
  if len(maps) < batch_size:
    raise ValueError(
      f'batch_size is {batch_size}; allowed is at most the {len(maps)} examples'
    )
  key = jax.random.key(seed)
  model = FusionModel(
    specification,
    num_classes=num_classes,
    rngs=nnx.Rngs(randomness.stream_key(key, randomness.INIT)),
  )
  graphdef, params, model_state = split(model)
  steps = len(maps) // batch_size
  optimizer = optax.adam(
    optax.cosine_decay_schedule(learning_rate, epochs * steps)
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def epoch(state, maps, labels, order, first):
    def step(state, numbered):
      rows, number = numbered
      params, model_state, moments = state

      def objective(params):
        merged: Any = merge(graphdef, params, model_state)
        logits = merged(
          maps[rows],
          train=True,
          key=randomness.stream_key(key, randomness.DROPOUT, number),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
          logits, labels[rows]
        )
        return losses.mean(), model_state_of(merged)

      gradients, model_state = jax.grad(objective, has_aux=True)(params)
      updates, moments = optimizer.update(gradients, moments)
      return (optax.apply_updates(params, updates), model_state, moments), None

    numbers = first + jnp.arange(order.shape[0])
    return jax.lax.scan(step, state, (order, numbers))[0]

  state = (params, model_state, optimizer.init(params))
  on_device = jax.device_put((maps, labels.astype(np.int32)))
  for n in range(epochs):
    order = randomness.epoch_order(key, n, len(maps), len(maps))
    order = order[: steps * batch_size].reshape(steps, -1)
    state = epoch(state, *on_device, order, n * steps)
  return merge(graphdef, *state[:2])


def accuracy(model: Any, maps: np.ndarray, labels: np.ndarray) -> float:
  """Share of clips whose greatest logit is the label's."""
  graphdef, params, model_state = split(model)

  @jax.jit
  def call(params, model_state, maps):
    merged: Any = merge(graphdef, params, model_state)
    return merged(maps).argmax(-1)

  found = np.concatenate(
    [
      np.asarray(call(params, model_state, maps[start : start + FRAMES_A_CALL]))
      for start in range(0, len(maps), FRAMES_A_CALL)
    ]
  )
  return float(np.mean(found == labels))
