"""Random changes to a batch, on the device.

Legend: B batch, T frames, H rows, W columns, C channels, K classes. What
happens to one example is written for one example, (T, H, W, C), and mapped
over the batch. Frames that only pad a clip to T are masked: they change no
other pixel and no target, so what becomes of a clip does not depend on T.

Geometry (flip, rotation, zoom, shift, crop and resize back) is composed into
one affine map per example and sampled once, bilinearly. Outside the image the
border is mirrored without repeating the edge pixel (scipy's 'mirror'): black
corners would be a clue that the model never meets at test time.

Colour changes follow in float32, clipped to [0, 1]. A model fed with
`standardize.per_image` undoes brightness and contrast but for what they clip.

All draws of example i depend on the batch's key and i alone, not on the
batch's size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

# ITU-R BT.601 luma, what RGB to grey means everywhere in this package.
_LUMA = (0.299, 0.587, 0.114)

# Random erasing (Zhong et al. 2017, arXiv 1708.04896): the share of the
# area that is erased and the ratio of its sides.
_ERASED_AREA = (0.02, 0.4)
_LOG_ROOT_ASPECT = 0.5 * math.log(1.0 / 0.3)

# Loop steps that a batch is cut in on CPU (2, 4 and 8 take the same time).
_CHUNKS = 4

# Of the Beta distribution, denser towards its ends; its mean is right to 1e-6,
# its variance to 1e-3 up to the largest alpha.
_QUANTILES = 1025

# Strengths beyond 1 may not turn the image inside out.
_LEAST_SCALE = 0.05


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What may change and by how much at strength 1. All static.

  Attributes:
    rotation: Largest angle in degrees, either way.
    flip: Probability of a horizontal flip.
    crop: Smallest side of the random crop as a share of the image; 1 is off.
    shift: Largest shift as a share of each side.
    zoom: Largest relative change of size, either way.
    brightness: Largest value added to all pixels, on the [0, 1] scale.
    contrast: Largest relative change of the distance to the image's mean, or
      to that of all frames of a clip.
    saturation: Largest relative change of the distance to grey; RGB only.
    hue: Largest turn of the hue circle, 1 a whole turn; RGB only.
    erasing: Probability that a rectangle is replaced by the image's mean.
    mixup: alpha of the Beta distribution of the shares (arXiv 1710.09412).
    cutmix: alpha of the Beta distribution of the areas (arXiv 1905.04899).
      With both, each example tosses a coin. Clips are mixed in the frames that
      both have, and the target in as large a share of the frames.
  """

  rotation: float = 30.0
  flip: float = 0.5
  crop: float = 0.8
  shift: float = 0.0
  zoom: float = 0.0
  brightness: float = 0.2
  contrast: float = 0.2
  saturation: float = 0.2
  hue: float = 0.05
  erasing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0

  @property
  def moves(self) -> bool:
    """Whether there is any geometry in it."""
    return (
      max(self.rotation, self.flip, self.shift, self.zoom) > 0 or self.crop < 1
    )

  @property
  def recolours(self) -> bool:
    """Whether there is brightness, contrast or saturation in it."""
    return max(self.brightness, self.contrast, self.saturation) > 0

  def __post_init__(self):
    for name, largest in _LARGEST.items():
      value = getattr(self, name)
      if not 0.0 <= value <= largest:
        raise ValueError(
          f'augmentation.{name} is {value}; expected 0 to {largest:g}'
        )
    if self.crop == 0.0:
      raise ValueError(
        f'augmentation.crop is {self.crop}; expected above 0, up to 1'
      )


_LARGEST = {
  'rotation': 180.0,
  'flip': 1.0,
  'crop': 1.0,
  'shift': 1.0,
  'zoom': 0.9,
  'brightness': 1.0,
  'contrast': 1.0,
  'saturation': 1.0,
  'hue': 0.5,
  'erasing': 1.0,
  'mixup': 100.0,
  'cutmix': 100.0,
}

# Columns of the table of uniform draws. New ones go last: a draw keeps its
# column, so adding an operation changes no other.
_DRAWS = (
  'rotation',
  'flip',
  'crop',
  'crop_row',
  'crop_column',
  'shift_row',
  'shift_column',
  'zoom',
  'brightness',
  'contrast',
  'saturation',
  'hue',
  'erasing',
  'erased_area',
  'erased_aspect',
  'erased_row',
  'erased_column',
  'mix_kind',
  'mix_share',
  'cut_row',
  'cut_column',
)


def augment(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  weight: jax.Array,
  settings: Augmentation,
  strength: float | jax.Array = 1.0,
  axis: str | None = None,
  frame_mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Changes a batch at random.

  Args:
    key: Key of this batch.
    images: float32 (B, H, W, C) or (B, T, H, W, C) in [0, 1]. The frames of
      a clip share one draw.
    targets: float32 (B, K).
    weight: float32 (B,), 0 on padding; padding is never mixed into examples.
    settings: Static.
    strength: Scalar, may be traced and batched. Scales amplitudes, mixed
      shares, and up to 1 probabilities; 0 gives the input back exactly.
    axis: name of a mapped axis (of `jax.shard_map`) along which the batch is
      divided, padding last; None where this is all of it.
    frame_mask: bool (B, T), false on frames that pad a clip; None where every
      frame is one.

  Returns:
    (images, targets) of the same shapes and dtypes.
  """
  still = images.ndim == 4
  images, targets = jnp.asarray(images), jnp.asarray(targets)
  clips = images[:, None] if still else images
  strength = jnp.asarray(strength, images.dtype)
  real = None if frame_mask is None else frame_mask.astype(images.dtype)
  example = jnp.arange(clips.shape[0])
  if axis is not None:
    example += jax.lax.axis_index(axis) * clips.shape[0]
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(example)
  draws = jax.vmap(_uniform_draws)(keys)

  def stage(change, *batched):
    return _each(lambda *one: change(*one, settings, strength), *batched)

  if settings.moves:
    clips = stage(_move, draws, clips)
  if settings.recolours:
    clips = stage(_recolour, draws, clips, real)
  if settings.hue and clips.shape[-1] == 3:
    clips = stage(_turn_hue, draws, clips)
  if settings.erasing:
    clips = stage(_erase, draws, clips)
  if settings.mixup or settings.cutmix:
    own = clips, targets, real
    if axis is None:
      partner = partners(weight)
      others = jax.tree.map(lambda x: x[partner], own)
    else:
      others = _of_partners(weight, own, axis)
    clips, targets = stage(_mix, draws, own, others)
  return (clips[:, 0] if still else clips), targets


def _each(change: Callable[..., Any], *batched: Any) -> Any:
  """Maps a change of one example over the batch.

  A plain vmap, but on CPU in a loop over chunks: there XLA fuses what it
  can, through optimization barriers too, and would compute the warp of every
  pixel anew for each of its uses (mean, variance, result: 10 times slower).
  What leaves a loop is computed once.
  """

  def whole(*args):
    return jax.vmap(change)(*args)

  def chunked(*args):
    batch = jax.tree.leaves(args)[0].shape[0]
    return jax.lax.map(
      lambda one: change(*one), args, batch_size=-(-batch // _CHUNKS)
    )

  return jax.lax.platform_dependent(*batched, cpu=chunked, default=whole)


def warp(clip: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
  """Samples a clip under one affine map, bilinearly, border mirrored.

  Args:
    clip: (T, H, W, C).
    matrix: (2, 2), offset: (2,). The value at row and column p (both from
      the image's centre, in pixels) comes from matrix @ p + offset.

  Returns:
    (T, H, W, C). Equal to `scipy.ndimage.affine_transform(order=1,
    mode='mirror')` as far as one image's width beyond the border, clamped
    farther out.
  """
  frames, height, width, channels = clip.shape
  middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
  row = (jnp.arange(height, dtype=clip.dtype) - middle_row)[:, None]
  column = (jnp.arange(width, dtype=clip.dtype) - middle_column)[None, :]
  source_row = matrix[0, 0] * row + matrix[0, 1] * column + offset[0]
  source_column = matrix[1, 0] * row + matrix[1, 1] * column + offset[1]
  top, down = _tap(source_row + middle_row, height)
  left, right = _tap(source_column + middle_column, width)
  # In an image one pixel high or wide the second tap is the first.
  below, beside = width * min(height - 1, 1), min(width - 1, 1)
  place = (top * width + left).reshape(-1)
  flat = clip.reshape(frames, height * width, channels)

  def tap(shift):
    taps = flat.at[:, place + shift].get(mode='promise_in_bounds')
    return taps.reshape(frames, height, width, channels)

  down, right = down[None, :, :, None], right[None, :, :, None]
  upper = (1 - right) * tap(0) + right * tap(beside)
  lower = (1 - right) * tap(below) + right * tap(below + beside)
  return (1 - down) * upper + down * lower


def _tap(place: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """First of two neighbouring pixels and the share of the second."""
  last = size - 1
  mirrored = jnp.clip(last - jnp.abs(last - jnp.abs(place)), 0, last)
  first = jnp.clip(jnp.floor(mirrored), 0, max(last - 1, 0))
  return first.astype(jnp.int32), mirrored - first


def _uniform_draws(key: jax.Array) -> dict[str, jax.Array]:
  """One uniform number in [0, 1) for each name in `_DRAWS`."""
  row = jax.random.uniform(key, (len(_DRAWS),))
  return {name: row[n] for n, name in enumerate(_DRAWS)}


def _signed(draw: jax.Array) -> jax.Array:
  return 2.0 * draw - 1.0


def _happens(draw: jax.Array, probability: float, strength: jax.Array):
  return draw < probability * jnp.minimum(strength, 1.0)


def _move(
  draw: dict[str, jax.Array],
  clip: jax.Array,
  settings: Augmentation,
  strength: jax.Array,
) -> jax.Array:
  return warp(clip, *_affine(draw, clip.shape[1:3], settings, strength))


def _affine(
  draw: dict[str, jax.Array],
  shape: tuple[int, ...],
  settings: Augmentation,
  strength: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Matrix (2, 2) and offset (2,) from output to input pixels.

  Read from the output inwards: place in the crop window, then flip,
  rotation and zoom about the image's centre, then shift.
  """
  size = jnp.asarray(shape, jnp.float32)
  side = jnp.maximum(
    1.0 - draw['crop'] * (1.0 - settings.crop) * strength, _LEAST_SCALE
  )
  window = _signed(jnp.stack([draw['crop_row'], draw['crop_column']]))
  window = window * size * (1.0 - side) / 2.0
  angle = _signed(draw['rotation']) * jnp.deg2rad(settings.rotation) * strength
  # Zooming in shrinks what is sampled.
  zoom = 1.0 + _signed(draw['zoom']) * settings.zoom * strength
  scale = 1.0 / jnp.maximum(zoom, _LEAST_SCALE)
  mirror = jnp.where(_happens(draw['flip'], settings.flip, strength), -1.0, 1.0)
  cosine, sine = jnp.cos(angle) * scale, jnp.sin(angle) * scale
  turn = jnp.stack(
    [
      jnp.stack([cosine, sine * mirror]),
      jnp.stack([-sine, cosine * mirror]),
    ]
  )
  shift = _signed(jnp.stack([draw['shift_row'], draw['shift_column']]))
  shift = shift * size * settings.shift * strength
  return turn * side, jnp.sum(turn * window[None, :], -1) + shift


def _amount(
  draw: dict[str, jax.Array],
  name: str,
  settings: Augmentation,
  strength: jax.Array,
) -> jax.Array:
  return _signed(draw[name]) * getattr(settings, name) * strength


def _recolour(
  draw: dict[str, jax.Array],
  clip: jax.Array,
  real: jax.Array | None,
  settings: Augmentation,
  strength: jax.Array,
) -> jax.Array:
  """Brightness, contrast and saturation; `real` (T,), 0 on padding."""
  if settings.brightness:
    clip = clip + _amount(draw, 'brightness', settings, strength)
  # x * f + m * (1 - f) rather than m + (x - m) * f: exact where f is 1.
  if settings.contrast:
    factor = 1.0 + _amount(draw, 'contrast', settings, strength)
    mean = jnp.mean(clip)
    if real is not None:
      frames = jnp.mean(clip, axis=(1, 2, 3))
      mean = jnp.sum(frames * real) / jnp.maximum(jnp.sum(real), 1.0)
    clip = clip * factor + mean * (1.0 - factor)
  if settings.saturation and clip.shape[-1] == 3:
    factor = 1.0 + _amount(draw, 'saturation', settings, strength)
    red, green, blue = (clip[..., n : n + 1] for n in range(3))
    grey = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    clip = clip * factor + grey * (1.0 - factor)
  return jnp.clip(clip, 0.0, 1.0)


def _turn_hue(
  draw: dict[str, jax.Array],
  clip: jax.Array,
  settings: Augmentation,
  strength: jax.Array,
) -> jax.Array:
  return turn_hue(clip, _amount(draw, 'hue', settings, strength))


def turn_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
  """Turns the hue (HSV) of RGB images (..., 3) by a share of the circle.

  `turns` is a scalar; where it is 0 the input comes back exactly.
  """
  red, green, blue = images[..., 0], images[..., 1], images[..., 2]
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  sixths = 6.0 * turns + jnp.where(
    value == red,
    (green - blue) / safe,
    jnp.where(
      value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe
    ),
  )

  # HSV to RGB in one formula: v - c * max(0, min(k, 4 - k, 1)) with
  # k = (n + 6h) mod 6 and n = 5, 3, 1 for red, green, blue.
  def channel(n):
    k = n + sixths
    k = k - 6.0 * jnp.floor(k * (1.0 / 6.0))
    return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

  turned = jnp.stack([channel(5.0), channel(3.0), channel(1.0)], -1)
  return jnp.where(turns == 0.0, images, turned)


def _box(
  row_draw: jax.Array,
  column_draw: jax.Array,
  sides: tuple[jax.Array, jax.Array],
  shape: tuple[int, ...],
) -> jax.Array:
  """bool (H, W), true in a box of whole pixels, anywhere inside the image."""

  def span(draw, side, size):
    side = jnp.clip(jnp.round(side), 0, size)
    first = jnp.floor(draw * (size - side + 1))
    place = jnp.arange(size)
    return (place >= first) & (place < first + side)

  rows = span(row_draw, sides[0], shape[0])
  columns = span(column_draw, sides[1], shape[1])
  return rows[:, None] & columns[None, :]


def _erase(
  draw: dict[str, jax.Array],
  clip: jax.Array,
  settings: Augmentation,
  strength: jax.Array,
) -> jax.Array:
  """Replaces a rectangle by the mean of its frame, channel by channel."""
  height, width = clip.shape[1:3]
  least, most = _ERASED_AREA
  area = least + draw['erased_area'] * (most - least)
  # Root of the ratio of height to width, log-uniform.
  ratio = jnp.exp(_signed(draw['erased_aspect']) * _LOG_ROOT_ASPECT)
  box = _box(
    draw['erased_row'],
    draw['erased_column'],
    (height * jnp.sqrt(area) * ratio, width * jnp.sqrt(area) / ratio),
    (height, width),
  )
  box = box & _happens(draw['erasing'], settings.erasing, strength)
  mean = jnp.mean(clip, axis=(1, 2), keepdims=True)
  return jnp.where(box[None, :, :, None], mean, clip)


def _mix(
  draw: dict[str, jax.Array],
  own: tuple[jax.Array, jax.Array, jax.Array | None],
  other: tuple[jax.Array, jax.Array, jax.Array | None],
  settings: Augmentation,
  strength: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Mixup or cutmix of one example with its partner, image and target.

  Args:
    draw: of the example.
    own: clip (T, H, W, C), target (K,), and (T,), 0 on frames that pad.
    other: the partner's.
    settings: static.
    strength: scalar.

  Returns:
    (clip, target).
  """
  (clip, target, real), (other_clip, other_target, other_real) = own, other
  cut = jnp.asarray(not settings.mixup)
  if settings.mixup and settings.cutmix:
    cut = draw['mix_kind'] < 0.5
  most = jnp.minimum(strength, 1.0)
  share, mixed = jnp.zeros((), clip.dtype), clip
  if settings.mixup:
    share = _beta(draw['mix_share'], settings.mixup)
    share = jnp.where(cut, 0.0, share * most)
    mixed = clip * (1.0 - share) + other_clip * share
  if settings.cutmix:
    area = _beta(draw['mix_share'], settings.cutmix)
    side = jnp.sqrt(jnp.where(cut, area * most, 0.0))
    height, width = clip.shape[1:3]
    box = _box(
      draw['cut_row'],
      draw['cut_column'],
      (height * side, width * side),
      (height, width),
    )
    mixed = jnp.where(box[None, :, :, None], other_clip, mixed)
    # The target's share is that of the pixels which were really replaced.
    share = share + jnp.mean(box, dtype=clip.dtype)
  if real is not None and other_real is not None:
    both = real * other_real
    mixed = jnp.where(both[:, None, None, None] > 0, mixed, clip)
    share = share * jnp.sum(both) / jnp.maximum(jnp.sum(real), 1.0)
  return mixed, target * (1.0 - share) + other_target * share


def _beta(draw: jax.Array, alpha: float) -> jax.Array:
  """A uniform draw to one of Beta(alpha, alpha), by a table of quantiles.

  `jax.random.beta` rejects and repeats, and takes seconds to compile.
  """
  place = (1.0 - np.cos(np.linspace(0.0, np.pi, _QUANTILES))) / 2.0
  quantiles = special.betaincinv(alpha, alpha, place)
  return jnp.interp(
    draw, jnp.asarray(place, draw.dtype), jnp.asarray(quantiles, draw.dtype)
  )


def partners(weight: jax.Array) -> jax.Array:
  """int32 (B,): the next real example, cyclically; padding keeps to itself.

  The order within a batch is random already, so the next is any other.
  """
  real = weight > 0
  count = jnp.sum(real)
  order = jnp.argsort(~real, stable=True)
  following = jnp.mod(jnp.cumsum(real), jnp.maximum(count, 1))
  own = jnp.arange(weight.shape[0])
  return jnp.where(real, order[following], own).astype(jnp.int32)


def _of_partners(weight: jax.Array, batched: Any, axis: str) -> Any:
  """Arrays (B, ...) of the partners in a batch that is divided along an axis.

  Padding is last in the whole batch, so a partner that is not on this device is
  the first example of one: only those travel.
  """
  size = weight.shape[0]
  here = jax.lax.axis_index(axis)
  whole = partners(jax.lax.all_gather(weight, axis, tiled=True))
  partner = jax.lax.dynamic_slice_in_dim(whole, here * size, size)
  device = partner // size
  place = jnp.where(device == here, partner % size, size + device)
  return jax.tree.map(
    lambda x: jnp.concatenate([x, jax.lax.all_gather(x[0], axis)])[place],
    batched,
  )
