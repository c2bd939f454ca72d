"""Augmentation against SciPy, colorsys and plain arithmetic."""

import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fer_jax.data import augment as augment_lib
from fer_jax.data.augment import Augmentation
from fer_jax.training import step

KEY = jax.random.key(5)
NOTHING = Augmentation(
  rotation=0,
  flip=0,
  crop=1,
  brightness=0,
  contrast=0,
  saturation=0,
  hue=0,
)
EVERYTHING = Augmentation(
  shift=0.1, zoom=0.1, erasing=0.5, mixup=0.4, cutmix=1.0
)


def _only(**settings):
  return dataclasses.replace(NOTHING, **settings)


def _images(*shape, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


@functools.partial(jax.jit, static_argnums=4)
def _augment(key, images, targets, weight, settings, strength=1.0):
  return augment_lib.augment(key, images, targets, weight, settings, strength)


def _apply(images, settings, *, key=KEY, weight=None, strength=1.0):
  batch = len(images)
  weight = np.ones(batch, np.float32) if weight is None else weight
  targets = np.eye(batch, dtype=np.float32)
  images, targets = _augment(key, images, targets, weight, settings, strength)
  return np.asarray(images), np.asarray(targets)


# Geometry.


@pytest.mark.parametrize('shape', [(2, 24, 24, 1), (1, 15, 22, 3)])
@pytest.mark.parametrize('seed', range(4))
def test_warp_is_scipys_affine_transform(shape, seed):
  rng = np.random.default_rng(seed)
  clip = _images(*shape, seed=seed)
  matrix = np.eye(2) + rng.uniform(-0.6, 0.6, (2, 2))
  offset = rng.uniform(-5, 5, 2)
  middle = (np.array(shape[1:3]) - 1) / 2
  expected = np.empty_like(clip)
  for t in range(shape[0]):
    for c in range(shape[3]):
      expected[t, :, :, c] = ndimage.affine_transform(
        clip[t, :, :, c],
        matrix,
        offset=offset + middle - matrix @ middle,
        order=1,
        mode='mirror',
      )
  result = jax.jit(augment_lib.warp)(
    clip, matrix.astype('f4'), offset.astype('f4')
  )
  np.testing.assert_allclose(result, expected, atol=2e-5)


def test_warp_of_one_row_and_one_column():
  for shape in [(1, 1, 5, 1), (1, 5, 1, 1)]:
    clip = _images(*shape)
    result = jax.jit(augment_lib.warp)(clip, jnp.eye(2), jnp.zeros(2))
    np.testing.assert_array_equal(result, clip)


def test_certain_flip_is_a_reversal():
  images = _images(5, 12, 9, 3)
  result, _ = _apply(images, _only(flip=1.0))
  np.testing.assert_array_equal(result, images[:, :, ::-1])


def test_flips_are_as_frequent_as_asked():
  ramp = np.tile(np.linspace(0, 1, 8, dtype='f4')[None, :, None], (8, 1, 1))
  images = np.repeat(ramp[None], 1000, 0)
  for strength, expected in [(1.0, 0.3), (0.5, 0.15)]:
    result, _ = _apply(images, _only(flip=0.3), strength=strength)
    flipped = (result[:, 0, 0, 0] > 0.5).mean()
    # Standard deviation at most 0.0145.
    assert flipped == pytest.approx(expected, abs=0.06)


def _planes(count, size=33):
  """Two channels that hold their own row and column, from the centre."""
  place = np.arange(size, dtype=np.float32) - (size - 1) / 2
  row, column = np.meshgrid(place, place, indexing='ij')
  planes = np.stack([row, column], -1)
  return np.repeat(planes[None], count, 0), (size - 1) // 2


def _geometry(settings, strength=1.0, count=200):
  """Matrix (n, 2, 2) and offset (n, 2) read off the middle of warped planes.

  The planes are no colours in [0, 1]: settings must have geometry only.
  """
  planes, middle = _planes(count)
  moved, _ = _apply(planes, settings, strength=strength)
  here = moved[:, middle, middle]
  by_row = moved[:, middle + 1, middle] - here
  by_column = moved[:, middle, middle + 1] - here
  return np.stack([by_row, by_column], -1), here


def test_rotation_turns_about_the_centre_up_to_its_angle():
  matrix, offset = _geometry(_only(rotation=30.0))
  np.testing.assert_allclose(offset, 0, atol=1e-4)
  np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-4)
  angle = np.rad2deg(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
  assert -30.01 < angle.min() < -25
  assert 25 < angle.max() < 30.01
  halved, _ = _geometry(_only(rotation=30.0), strength=0.5)
  half = np.rad2deg(np.arctan2(halved[:, 0, 1], halved[:, 0, 0]))
  np.testing.assert_allclose(half, angle / 2, atol=0.01)


def test_flipped_and_rotated_faces_keep_their_form():
  matrix, _ = _geometry(_only(rotation=40.0, flip=0.5))
  product = matrix @ np.swapaxes(matrix, 1, 2)
  np.testing.assert_allclose(product, np.eye(2)[None].repeat(200, 0), atol=1e-4)
  assert set(np.round(np.linalg.det(matrix))) == {-1.0, 1.0}


def test_crop_is_a_window_inside_the_image():
  matrix, offset = _geometry(_only(crop=0.6))
  side = matrix[:, 0, 0]
  assert 0.6 <= side.min() < 0.65
  assert 0.95 < side.max() <= 1.0
  np.testing.assert_allclose(matrix, side[:, None, None] * np.eye(2), atol=1e-4)
  room = (1 - side)[:, None] / 2 * 33
  assert (np.abs(offset) <= room + 1e-4).all()
  # It lies anywhere in its room, in rows apart from columns.
  place = offset / room
  assert (place.min(0) < -0.9).all()
  assert (place.max(0) > 0.9).all()
  assert abs(np.corrcoef(place.T)[0, 1]) < 0.25


def test_zoom_and_shift():
  matrix, offset = _geometry(_only(zoom=0.2))
  np.testing.assert_allclose(offset, 0, atol=1e-4)
  size = 1 / matrix[:, 0, 0]
  assert 0.8 - 1e-4 <= size.min() < 0.83
  assert 1.17 < size.max() <= 1.2 + 1e-4
  matrix, offset = _geometry(_only(shift=0.1))
  np.testing.assert_allclose(matrix, np.eye(2)[None].repeat(200, 0), atol=1e-4)
  assert (np.abs(offset).max(0) <= 3.3 + 1e-4).all()
  assert (np.abs(offset).max(0) > 3.1).all()


def test_all_geometry_is_one_interpolation():
  # The map composed from its parts, applied once.
  settings = _only(rotation=30.0, flip=0.5, crop=0.8, zoom=0.1, shift=0.05)
  matrix, offset = _geometry(settings, count=6)
  images = _images(6, 33, 33, 1)
  moved, _ = _apply(images, settings)
  for n in range(6):
    middle = np.array([16, 16])
    expected = ndimage.affine_transform(
      images[n, :, :, 0],
      matrix[n],
      offset=offset[n] + middle - matrix[n] @ middle,
      order=1,
      mode='mirror',
    )
    np.testing.assert_allclose(moved[n, :, :, 0], expected, atol=1e-3)


# Colour.


def test_brightness_adds_one_value():
  images = 0.4 + 0.2 * _images(200, 6, 6, 1)
  result, _ = _apply(images, _only(brightness=0.2))
  change = (result - images).reshape(200, -1)
  np.testing.assert_allclose(np.ptp(change, -1), 0, atol=1e-6)
  assert -0.2 <= change.min() < -0.18
  assert 0.18 < change.max() <= 0.2 + 1e-6


def test_contrast_scales_about_the_mean():
  images = 0.4 + 0.2 * _images(200, 6, 6, 1)
  result, _ = _apply(images, _only(contrast=0.3))
  axes = (1, 2, 3)
  mean = images.mean(axes, keepdims=True)
  np.testing.assert_allclose(result.mean(axes, keepdims=True), mean, atol=1e-6)
  factor = result.std(axes) / images.std(axes)
  np.testing.assert_allclose(
    result, mean + (images - mean) * factor[:, None, None, None], atol=1e-5
  )
  assert 0.7 <= factor.min() < 0.73
  assert 1.27 < factor.max() <= 1.3


def test_saturation_scales_about_the_luma():
  images = 0.4 + 0.2 * _images(50, 6, 6, 3)
  result, _ = _apply(images, _only(saturation=0.5))
  luma = np.array([0.299, 0.587, 0.114], np.float32)
  grey, same = images @ luma, result @ luma
  np.testing.assert_allclose(same, grey, atol=1e-6)
  before = images - grey[..., None]
  factor = ((result - grey[..., None]) * before).sum((1, 2, 3))
  factor /= np.square(before).sum((1, 2, 3))
  assert 0.5 <= factor.min() < 0.6
  assert 1.4 < factor.max() <= 1.5
  np.testing.assert_allclose(
    result - grey[..., None],
    before * factor[:, None, None, None],
    atol=1e-5,
  )


@pytest.mark.parametrize('turn', [-0.9, -0.05, 0.2, 0.5])
def test_hue_is_that_of_colorsys(turn):
  images = _images(7, 5, 3)
  images[0] = 0.3  # Grey has no hue.
  images[1, :, 1] = images[1, :, 0]  # Two channels tie.
  images[2] = [0, 0, 1]

  def turned(rgb):
    h, s, v = colorsys.rgb_to_hsv(*rgb.tolist())
    return colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)

  expected = np.apply_along_axis(turned, -1, images)
  result = augment_lib.turn_hue(jnp.asarray(images), jnp.float32(turn))
  np.testing.assert_allclose(result, expected, atol=3e-6)


def test_grey_images_have_no_saturation_or_hue():
  images = _images(4, 6, 6, 1)
  result, _ = _apply(images, _only(saturation=0.5, hue=0.2))
  np.testing.assert_array_equal(result, images)


def test_colours_stay_in_range():
  settings = _only(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
  result, _ = _apply(_images(64, 6, 6, 3), settings)
  assert result.min() == 0.0
  assert result.max() == 1.0


# Erasing and mixing.


def test_erasing_puts_the_mean_in_a_rectangle():
  images = _images(300, 20, 20, 3)
  result, targets = _apply(images, _only(erasing=0.5))
  np.testing.assert_array_equal(targets, np.eye(300))
  changed = (result != images).any(-1)
  hit = changed.any((1, 2))
  # Standard deviation 0.029.
  assert hit.mean() == pytest.approx(0.5, abs=0.13)
  area = changed[hit].mean((1, 2))
  # 2 to 40 %, rounded to whole pixels, clipped to the image.
  assert 0.01 < area.min() < 0.06
  assert 0.33 < area.max() < 0.43
  for n in np.flatnonzero(hit)[:20]:
    rows, columns = changed[n].any(1), changed[n].any(0)
    np.testing.assert_array_equal(changed[n], np.outer(rows, columns))
    assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1
    mean = images[n].mean((0, 1))
    np.testing.assert_allclose(result[n][changed[n]] - mean, 0, atol=1e-5)


def test_mixup_mixes_images_and_targets_alike():
  images = _images(64, 6, 6, 1)
  result, targets = _apply(images, _only(mixup=0.3))
  following = (np.arange(64) + 1) % 64
  share = targets[np.arange(64), following]
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(np.diag(targets), 1 - share, atol=1e-6)
  spread = share[:, None, None, None]
  expected = images * (1 - spread) + images[following] * spread
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_mixup_shares_are_of_the_beta_distribution():
  alpha = 0.4
  images = np.zeros((2000, 1, 1, 1), np.float32)
  _, targets = _apply(images, _only(mixup=alpha))
  share = 1 - np.diag(targets)
  variance = 1 / (4 * (2 * alpha + 1))
  assert share.mean() == pytest.approx(0.5, abs=0.05)
  assert share.var() == pytest.approx(variance, rel=0.1)


def test_cutmix_mixes_targets_by_the_pixels_it_replaced():
  images = _images(64, 12, 12, 1)
  result, targets = _apply(images, _only(cutmix=1.0))
  following = (np.arange(64) + 1) % 64
  replaced = (result != images)[..., 0]
  expected = np.where(replaced[..., None], images[following], images)
  np.testing.assert_array_equal(result, expected)
  share = replaced.mean((1, 2))
  np.testing.assert_allclose(
    targets[np.arange(64), following], share, atol=1e-6
  )
  np.testing.assert_allclose(np.diag(targets), 1 - share, atol=1e-6)
  assert share.min() < 0.1
  assert share.max() > 0.8
  for one in replaced:
    np.testing.assert_array_equal(one, np.outer(one.any(1), one.any(0)))


def test_mixup_and_cutmix_take_turns():
  images = _images(200, 12, 12, 1)
  result, _ = _apply(images, _only(mixup=1.0, cutmix=1.0))
  following = (np.arange(200) + 1) % 200
  whole = (result == images) | (result == images[following])
  cut = whole.all((1, 2, 3))
  # Standard deviation 0.035.
  assert cut.mean() == pytest.approx(0.5, abs=0.16)


@pytest.mark.parametrize('settings', [_only(mixup=1.0), _only(cutmix=1.0)])
@pytest.mark.parametrize('real', [0, 1, 2, 5])
def test_padding_is_never_mixed_in(settings, real):
  weight = np.zeros(8, np.float32)
  weight[np.array([4, 0, 3, 1, 5])[:real]] = 1.0
  images = _images(8, 8, 8, 1)
  images[weight == 0] = np.nan
  result, targets = _apply(images, settings, weight=weight)
  assert np.isfinite(result[weight > 0]).all()
  padding = np.flatnonzero(weight == 0)
  np.testing.assert_array_equal(targets[padding], np.eye(8)[padding])
  assert not targets[np.ix_(weight > 0, weight == 0)].any()
  if real > 1:
    assert (np.diag(targets)[weight > 0] < 1).any()


def test_partners_go_round_the_real_examples():
  weight = jnp.asarray([1.0, 0.0, 0.5, 2.0, 0.0])
  np.testing.assert_array_equal(augment_lib.partners(weight), [2, 1, 3, 0, 4])


# All together.


@pytest.mark.parametrize('channels', [1, 3])
def test_strength_0_gives_the_input_back_exactly(channels):
  images = _images(8, 13, 12, channels)
  result, targets = _apply(images, EVERYTHING, strength=0.0)
  np.testing.assert_array_equal(result, images)
  np.testing.assert_array_equal(targets, np.eye(8))


def test_draws_do_not_depend_on_the_size_of_the_batch():
  settings = dataclasses.replace(EVERYTHING, mixup=0, cutmix=0)
  images = _images(8, 12, 12, 1)
  whole, _ = _apply(images, settings)
  part, _ = _apply(images[:4], settings)
  np.testing.assert_allclose(part, whole[:4], atol=1e-6)
  other, _ = _apply(images, settings, key=jax.random.key(6))
  assert not np.allclose(other, whole, atol=0.01)


def test_examples_have_draws_of_their_own():
  images = np.repeat(_images(1, 12, 12, 1), 8, 0)
  result, _ = _apply(images, Augmentation())
  for n in range(7):
    assert not np.allclose(result[n], result[n + 1], atol=0.01)


def test_frames_of_a_clip_share_one_draw():
  settings = dataclasses.replace(EVERYTHING, erasing=1.0)
  still = _images(4, 12, 12, 3)
  clips = np.repeat(still[:, None], 4, 1)
  result, _ = _apply(clips, settings)
  assert result.shape == clips.shape
  for t in range(1, 4):
    np.testing.assert_array_equal(result[:, t], result[:, 0])
  alone, _ = _apply(still, settings)
  np.testing.assert_allclose(result[:, 0], alone, atol=1e-6)


def _of_lengths(lengths, frames, padding):
  """Clips of whole grey levels, each another, padded with `padding`."""
  mask = np.arange(frames) < np.asarray(lengths)[:, None]
  levels = 0.2 + 0.05 * np.arange(len(lengths), dtype=np.float32)
  clips = np.where(mask, levels[:, None], np.float32(padding))
  shape = (len(lengths), frames, 8, 8, 1)
  return np.broadcast_to(clips[..., None, None, None], shape), mask


def test_frames_that_pad_a_clip_change_nothing_else():
  # Half of the clips are mixed, half of them cut, as each one draws.
  settings = _only(contrast=0.9, mixup=1.0, cutmix=1.0)
  lengths = (5, 2, 4, 3, 1, 5)

  def prepared(frames, padding):
    clips, mask = _of_lengths(lengths, frames, padding)
    batch = {
      'image': np.round(255 * clips).astype(np.uint8),
      'target': np.eye(6, dtype=np.float32),
      'weight': np.ones(6, np.float32),
      'frame_mask': mask,
    }
    prepare = functools.partial(
      step.prepare, augmentation=settings, key=KEY, pixels='unit'
    )
    result, mixed = jax.jit(prepare)(batch)
    return np.asarray(result), np.asarray(mixed), mask

  result, mixed, mask = prepared(5, 0.0)
  longer, alike, _ = prepared(8, 1.0)
  np.testing.assert_allclose(alike, mixed, atol=1e-6)
  np.testing.assert_allclose(longer[:, :5][mask], result[mask], atol=1e-6)
  # A grey level is its own mean, so only the partner changes it: in the frames
  # that both have, in as much of the target as of the clip.
  own, _ = _of_lengths(lengths, 5, 0.0)
  own = np.round(255 * own) / 255
  for n in range(6):
    other = (n + 1) % 6
    both = min(lengths[n], lengths[other])
    np.testing.assert_allclose(
      result[n, both : lengths[n]], own[n, both : lengths[n]], atol=1e-6
    )
    change = result[n, : lengths[n]].mean() - own[n, 0, 0, 0, 0]
    share = change / (own[other, 0, 0, 0, 0] - own[n, 0, 0, 0, 0])
    assert mixed[n, other] == pytest.approx(share, abs=1e-4)
    assert mixed[n].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('alpha', [0.1, 1.0, 8.0, 100.0])
def test_the_table_of_quantiles_has_the_betas_mean_and_variance(alpha):
  draws = (np.arange(1 << 16, dtype=np.float32) + 0.5) / (1 << 16)
  shares = np.asarray(augment_lib._beta(jnp.asarray(draws), alpha), float)
  assert shares.mean() == pytest.approx(0.5, abs=1e-5)
  assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


def test_members_have_keys_and_strengths_of_their_own():
  images, targets = _images(4, 12, 12, 1), np.eye(4, dtype=np.float32)
  weight = np.array([1, 1, 1, 0], np.float32)
  keys = jax.random.split(KEY, 3)
  strengths = jnp.asarray([0.0, 0.5, 1.0])
  mapped = jax.jit(
    jax.vmap(
      lambda k, s: augment_lib.augment(
        k, images, targets, weight, EVERYTHING, s
      )
    )
  )(keys, strengths)
  for n in range(3):
    one = _augment(keys[n], images, targets, weight, EVERYTHING, strengths[n])
    for got, expected in zip(mapped, one, strict=True):
      np.testing.assert_allclose(got[n], expected, atol=1e-5)


def test_chunks_on_cpu_change_nothing(monkeypatch):
  images, targets = _images(7, 12, 12, 1), np.eye(7, dtype=np.float32)
  results = []
  for chunks in (1, 3):
    monkeypatch.setattr(augment_lib, '_CHUNKS', chunks)
    run = jax.jit(
      lambda: augment_lib.augment(
        KEY, images, targets, np.ones(7, 'f4'), EVERYTHING
      )[0]
    )
    results.append(np.asarray(run()))
  np.testing.assert_allclose(results[1], results[0], atol=1e-6)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('rotation', -1.0), ('flip', 1.5), ('crop', 0.0), ('zoom', 0.95)],
)
def test_settings_out_of_range_are_named(field, value):
  with pytest.raises(ValueError, match=f'augmentation.{field} is {value}'):
    Augmentation(**{field: value})
