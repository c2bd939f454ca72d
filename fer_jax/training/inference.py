"""Predictions of a trained run, from its workdir.

Legend: n images, K classes, T tokens, V views.
"""

import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import config as config_lib
from fer_jax import files, hosts
from fer_jax.data import standardize
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, sharding, task
from fer_jax.training.state import evaluated_arrays, merge
from fer_jax.training.workdir import read_run

VIEWS = ('plain', 'flip', 'crops')

CROP_SIDE = 0.9
"""Side of the five test-time crops, as a fraction of the image's."""


class Predictor:
  """A trained model with its preprocessing.

  Attributes:
    config: the run's config.
    class_names: in the order of the logits.
    step: steps the checkpoint had taken.
    epoch: epochs it had completed.
  """

  def __init__(
    self,
    config: config_lib.Config,
    class_names: tuple[str, ...],
    params: Any,
    model_state: Any,
    *,
    step: int,
    epoch: int,
  ):
    self.config = config
    self.class_names = class_names
    self.step = step
    self.epoch = epoch
    self._graphdef = task.graph_definition(config, len(class_names))
    # On all devices of this host, each with its part of a batch.
    devices = jax.local_devices()
    self._mesh = sharding.make_mesh(devices) if len(devices) > 1 else None
    self._arrays = sharding.replicated((params, model_state), self._mesh)
    wanted = max(config.train.batch_size, 64)
    self._batch_size = -(-wanted // len(devices)) * len(devices)

  @classmethod
  def from_workdir(
    cls, workdir: str | pathlib.Path, which: str = 'best'
  ) -> 'Predictor':
    """Loads a run.

    Args:
      workdir: of `train`.
      which: 'best' by validation, or 'latest'.

    Raises:
      UserError: the folder is no workdir or holds no intact checkpoint, or
        another one is asked for.
    """
    find = {
      'best': checkpoint.best_intact,
      'latest': checkpoint.latest_intact,
    }
    if which not in find:
      raise UserError(f'which is {which!r}; expected one of {", ".join(find)}')
    workdir = pathlib.Path(workdir)
    found = hosts.on_first(lambda: _files_of(workdir))
    config = config_lib.from_json(
      found['config'], source=str(workdir / 'config.json')
    )
    class_names = tuple(found['class_names'])
    sealed = find[which](workdir)
    if sealed is None:
      raise UserError(f'{workdir} holds no intact checkpoint')
    state = checkpoint.restore(
      sealed, task.abstract_state(config, len(class_names))
    )
    params, model_state = evaluated_arrays(state)
    return cls(
      config,
      class_names,
      params,
      model_state,
      step=sealed.step,
      epoch=sealed.epoch,
    )

  def model(self) -> Any:
    """The trained `fer_jax.models.FusionModel`, for one's own JAX code."""
    return merge(self._graphdef, *self._arrays)

  def predict(
    self,
    images: np.ndarray,
    frame_mask: np.ndarray | None = None,
    *,
    views: tuple[str, ...] = ('plain',),
  ) -> np.ndarray:
    """Logits of images.

    Args:
      images: uint8 (n, H, W, C), or (n, T, H, W, C) for clips.
      frame_mask: bool (n, T) of clips.
      views: of `VIEWS`. 'flip' adds the mirrored image; 'crops' takes the four
        corners and the centre, resized back, in the place of the whole image.

    Returns:
      float32 (n, K): the logits of one view, or the logarithm of the mean
      probability over several.

    Raises:
      UserError: no images, others or another mask than those, or an unknown
        view.
    """
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
      raise UserError(
        f'unknown view {unknown[0]!r}; expected of {", ".join(VIEWS)}'
      )
    self._require_images(images, frame_mask)
    outputs = self._run(images, frame_mask, _logits_of_views, tuple(views))
    return np.concatenate(outputs)

  def attention(
    self, images: np.ndarray, frame_mask: np.ndarray | None = None
  ) -> tuple[np.ndarray, tuple[int, int] | None] | None:
    """Attention weights (n, T) and the token grid they lie on.

    Returns:
      None for a model without attention.

    Raises:
      UserError: as `predict`.
    """
    self._require_images(images, frame_mask)
    if not self._has_attention(images, frame_mask):
      return None
    weights = np.concatenate(self._run(images, frame_mask, _attention, ()))
    return weights, self.model().token_grid

  def _require_images(
    self, images: np.ndarray, frame_mask: np.ndarray | None
  ) -> None:
    """Raises UserError where these are not images as the run was given."""
    size, channels = self.config.data.image_size, self.config.data.channels
    shape = np.shape(images)
    dtype = getattr(images, 'dtype', type(images).__name__)
    if (
      dtype != np.uint8
      or len(shape) not in (4, 5)
      or shape[-3:] != (size, size, channels)
    ):
      raise UserError(
        f'the run takes grey levels uint8 of 0 to 255, (n, {size}, {size}, '
        f'{channels}) or (n, frames, {size}, {size}, {channels}) of clips; got '
        f'{dtype} {shape}'
      )
    if not len(images):
      raise UserError('there are no images to predict')
    if frame_mask is not None and (
      len(shape) != 5 or np.shape(frame_mask) != shape[:2]
    ):
      raise UserError(
        'a frame_mask is bool (n, frames), of clips (n, frames, ...); got '
        f'{np.shape(frame_mask)} with images {shape}'
      )

  def _has_attention(self, images, frame_mask) -> bool:
    batch = self._batch(images, frame_mask, 0)
    _, features = jax.eval_shape(
      lambda b: _forward(self._graphdef, self._arrays, b, return_features=True),
      batch,
    )
    return 'attention' in features

  def _batch(self, images, frame_mask, start) -> dict[str, np.ndarray]:
    """Images from `start` on, padded to the batch size with the first one."""
    rows = np.arange(start, start + self._batch_size)
    rows[rows >= len(images)] = start
    batch = {'image': images[rows]}
    if frame_mask is not None:
      batch['frame_mask'] = np.asarray(frame_mask, bool)[rows]
    return batch

  def _run(self, images, frame_mask, function, views) -> list[np.ndarray]:
    compiled = _compiled(function, self._graphdef, views, self._mesh)
    outputs = []
    for start in range(0, len(images), self._batch_size):
      output = compiled(self._arrays, self._batch(images, frame_mask, start))
      outputs.append(np.asarray(output)[: len(images) - start])
    return outputs


def _files_of(workdir: pathlib.Path) -> dict[str, Any]:
  """What a run's files say of its model."""
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(f'{workdir} is no workdir of a run: it has no config.json')
  if not (workdir / 'run.json').exists():
    raise UserError(
      f'{workdir} is no workdir of a run: it has no run.json; of a '
      'cross-validation or a sweep name one of its runs, as fold_0'
    )
  return {
    'config': files.read_json(path),
    'class_names': read_run(workdir)['class_names'],
  }


@functools.lru_cache(maxsize=16)
def _compiled(function, graphdef, views, mesh):
  return jax.jit(
    sharding.over_devices(
      functools.partial(function, graphdef, views),
      mesh,
      in_specs=(sharding.EVERYWHERE, sharding.DIVIDED),
      out_specs=sharding.DIVIDED,
    )
  )


def _forward(graphdef, arrays, batch, **options):
  model: Any = merge(graphdef, *arrays)
  scale = standardize.SCALES[model.specification.pixels]
  images = scale(standardize.from_grey_levels(batch['image']))
  return model(images, batch.get('frame_mask'), train=False, **options)


def _logits_of_views(graphdef, views, arrays, batch):
  seen = [
    _forward(graphdef, arrays, {**batch, 'image': image})
    for image in _views(batch['image'], views)
  ]
  if len(seen) == 1:
    return seen[0]
  log_probs = jax.nn.log_softmax(jnp.stack(seen))
  return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(float(len(seen)))


def _attention(graphdef, views, arrays, batch):
  del views
  _, features = _forward(graphdef, arrays, batch, return_features=True)
  return features['attention']


def _views(image, views):
  """The views of images (..., H, W, C) in [0, 255]."""
  seen = _crops(image) if 'crops' in views else [image]
  if 'flip' in views:
    seen = [*seen, *(view[..., :, ::-1, :] for view in seen)]
  return seen


def _crops(image):
  """Four corners and the centre, resized back bilinearly."""
  height, width = image.shape[-3:-1]
  rows, columns = round(height * CROP_SIDE), round(width * CROP_SIDE)
  bottom, right = height - rows, width - columns
  corners = [*itertools.product((0, bottom), (0, right))]
  corners.append((bottom // 2, right // 2))
  return [
    jax.image.resize(
      image[..., top : top + rows, left : left + columns, :].astype(
        jnp.float32
      ),
      image.shape,
      'bilinear',
    )
    for top, left in corners
  ]
