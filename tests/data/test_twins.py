"""Twins against np.corrcoef of every pair, and on the real rows."""

import numpy as np
import pytest

from fer_jax.data import twins


def _smooth(count, seed=0):
  """Blurred noise (count, 24, 24), which correlates as faces do."""
  rng = np.random.default_rng(seed)
  coarse = rng.normal(size=(count, 4, 4))
  return np.kron(coarse, np.ones((6, 6)))


def _to_uint8(images):
  images = images - images.min((-2, -1), keepdims=True)
  images = images / images.max((-2, -1), keepdims=True) * 200 + 20
  return images.astype(np.uint8)


def _planted(count=60):
  """Images of which 20 to 39 are those of 0 to 19 with rising noise."""
  images = _smooth(count)
  noise = np.random.default_rng(5).normal(size=(20, 24, 24))
  images[20:40] = images[:20] + noise * np.linspace(0, 1, 20)[:, None, None]
  return _to_uint8(images)


def _brute_force(images, threshold):
  table = np.corrcoef(images.reshape(len(images), -1).astype(np.float64))
  first, second = np.nonzero(np.triu(table >= threshold, 1))
  return np.stack([first, second], -1), table[first, second]


@pytest.mark.parametrize('threshold', [0.5, 0.9, 0.95])
def test_pairs_are_all_those_of_corrcoef(threshold, monkeypatch):
  # Blocks that do not divide the number of images.
  monkeypatch.setattr(twins, '_BLOCK', 17)
  images = _planted()
  pairs, correlation = twins.near_pairs(
    images.reshape(len(images), -1), threshold
  )
  expected, values = _brute_force(images, threshold)
  assert 5 < len(expected) < 1000
  np.testing.assert_array_equal(pairs, expected)
  np.testing.assert_allclose(correlation, values, atol=1e-6)


def test_pairs_of_large_images_are_computed_again_a_few_at_a_time(monkeypatch):
  images = _planted().reshape(60, -1)
  expected = twins.near_pairs(images, 0.5)
  monkeypatch.setattr(twins, '_PIXELS_AT_ONCE', 10 * 24 * 24)
  exactly, counts = twins._exact_correlation, []
  monkeypatch.setattr(
    twins,
    '_exact_correlation',
    lambda *given: counts.append(len(given[-1])) or exactly(*given),
  )
  found = twins.near_pairs(images, 0.5)
  assert max(counts) == 10
  assert sum(counts) >= len(found[0]) > 40
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


def test_pairs_at_the_threshold_do_not_depend_on_float32(monkeypatch):
  images = _planted().reshape(60, -1)
  _, values = _brute_force(images.reshape(60, 24, 24), 0.5)
  exact = float(np.sort(values)[len(values) // 2])
  # Just below the value of one pair, and just above it.
  below = len(twins.near_pairs(images, exact - 1e-9)[0])
  above = len(twins.near_pairs(images, exact + 1e-9)[0])
  assert below == above + 1


def test_brightness_does_not_part_twins_and_a_negative_does(memory_set):
  image = _planted(60)[0][..., None]
  found = twins.find(memory_set([image, image // 2 + 40, 255 - image]))
  np.testing.assert_array_equal(found.pairs, [[0, 1]])


def test_exact_and_constant_images(memory_set):
  image = _planted()[3][..., None]
  black, grey = np.zeros_like(image), np.full_like(image, 9)
  found = twins.find(memory_set([image, black, grey, image.copy(), black]))
  np.testing.assert_array_equal(found.image, [0, 1, 2, 0, 1])
  assert not len(found.pairs)
  rows = np.arange(5)
  np.testing.assert_array_equal(found.groups(rows), [0, 1, 2, 0, 1])


def test_same_pixels_in_another_shape_are_not_exact_twins(memory_set):
  image = _planted()[0]
  wide = image.reshape(12, 48, 1)
  found = twins.find(memory_set([image[..., None], wide]))
  np.testing.assert_array_equal(found.image, [0, 1])


def test_groups_link_only_through_rows_that_are_asked_for():
  # 0 - 1 - 2 is a chain; 3 stands alone; row 4 is image 2 again.
  found = twins.Twins(
    image=np.array([0, 1, 2, 3, 2], np.int32),
    pairs=np.array([[0, 1], [1, 2]], np.int32),
    correlation=np.array([0.95, 0.95], np.float32),
    mirrored=np.zeros((0, 2), np.int32),
    mirrored_correlation=np.zeros(0, np.float32),
  )
  whole = found.groups(np.arange(5))
  assert whole[0] == whole[1] == whole[2] == whole[4] != whole[3]
  parted = found.groups(np.array([0, 2, 3, 4]))
  assert len(set(parted[:3])) == 3
  assert parted[1] == parted[3]


def test_twins_among_other_rows():
  found = twins.Twins(
    image=np.array([0, 1, 2, 3, 0], np.int32),
    pairs=np.array([[0, 1], [1, 2]], np.int32),
    correlation=np.array([0.95, 0.95], np.float32),
    mirrored=np.array([[0, 3]], np.int32),
    mirrored_correlation=np.array([0.95], np.float32),
  )
  rows, among = np.array([1, 2, 3, 4]), np.array([0])
  np.testing.assert_array_equal(found.exact_among(rows, among), [0, 0, 0, 1])
  # Image 2 is a twin of 1 alone: one step, not a chain.
  np.testing.assert_array_equal(found.near_among(rows, among), [1, 0, 0, 1])
  np.testing.assert_array_equal(found.any_among(rows, among), [1, 0, 1, 1])
  of_some = found.of_rows(np.array([3, 2, 0]))
  np.testing.assert_array_equal(of_some.image, [2, 1, 0])
  np.testing.assert_array_equal(of_some.mirrored, [[0, 2]])
  assert len(of_some.pairs) == 0


def test_images_of_unequal_sizes_are_compared_at_one(memory_set):
  image = np.kron(_planted()[0], np.ones((2, 2), np.uint8))
  half = image[::2, ::2]
  found = twins.find(memory_set([image[..., None], half[..., None]]))
  np.testing.assert_array_equal(found.pairs, [[0, 1]])


def test_clips_are_compared_by_their_mean(memory_set):
  images = _planted()[..., None]
  clips = [images[[0, 1]], images[[1, 0]], images[[2, 3, 4]]]
  found = twins.find(memory_set(clips, frame_count=[2, 2, 3]))
  np.testing.assert_array_equal(found.image, [0, 1, 2])
  np.testing.assert_array_equal(found.pairs, [[0, 1]])


def test_result_is_kept_beside_the_build(memory_set, capsys):
  data = memory_set(_planted()[..., None])
  first = twins.find(data)
  assert twins.cache_path(data, 0.9).parent == data.root.parent
  assert 'comparing' in capsys.readouterr().err
  again = twins.find(data)
  assert not capsys.readouterr().err
  np.testing.assert_array_equal(again.pairs, first.pairs)
  np.testing.assert_array_equal(again.image, first.image)
  data.checksum = 'other'
  twins.find(data)
  assert 'comparing' in capsys.readouterr().err


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 half a file', b'x' * 99])
def test_damaged_file_is_made_anew(memory_set, capsys, content):
  data = memory_set(_planted()[..., None])
  expected = twins.find(data).pairs
  twins.cache_path(data, 0.9).write_bytes(content)
  capsys.readouterr()
  np.testing.assert_array_equal(twins.find(data).pairs, expected)
  assert 'damaged' in capsys.readouterr().err
  twins.find(data)
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  'changes',
  [
    {'image': np.arange(59, dtype=np.int32)},
    {'image': np.arange(60.0)},
    {'image': np.arange(1, 61, dtype=np.int32)},
    {'pairs': np.array([[0, 60]], np.int32), 'correlation': np.ones(1, 'f4')},
    {'pairs': np.zeros((0, 3), np.int32), 'correlation': np.ones(0, 'f4')},
    {'mirrored_correlation': np.ones(7, np.float32)},
    {'correlation': np.ones((), np.float32)},
  ],
)
def test_what_cannot_be_twins_of_the_set_is_made_anew(
  memory_set, capsys, changes
):
  data = memory_set(_planted()[..., None])
  expected = twins.find(data)
  path = twins.cache_path(data, twins.THRESHOLD)
  with np.load(path) as kept:
    np.savez(path, **{**kept, **changes})
  found = twins.find(data)
  assert 'damaged; comparing the images anew' in capsys.readouterr().err
  np.testing.assert_array_equal(found.image, expected.image)
  np.testing.assert_array_equal(found.pairs, expected.pairs)


def test_mirrored_twins_are_found_and_people_who_look_ahead_are_not(memory_set):
  rng = np.random.default_rng(0)
  faces = rng.integers(0, 256, (4, 16, 16, 1)).astype(np.uint8)
  even = ((faces[3].astype(int) + faces[3, :, ::-1]) // 2).astype(np.uint8)
  images = [*faces, faces[0, :, ::-1], even, (even * 0.9 + 5).astype(np.uint8)]
  found = twins.find(memory_set(images))
  np.testing.assert_array_equal(found.mirrored, [[0, 4]])
  # One who is like her own mirror image is a near twin as she stands.
  np.testing.assert_array_equal(found.pairs, [[5, 6]])
  again = twins.find(memory_set(images))
  np.testing.assert_array_equal(again.mirrored, found.mirrored)


def test_others_may_read_what_is_kept(memory_set):
  data = memory_set(_to_uint8(_smooth(6))[..., None])
  twins.find(data)
  path = twins.cache_path(data, twins.THRESHOLD)
  new = path.with_name('new')
  new.touch()
  assert path.stat().st_mode == new.stat().st_mode


def test_exact_twins_are_kept_beside_the_build(memory_set, monkeypatch):
  image = np.full((8, 8, 1), 7, np.uint8)
  data = memory_set([image, image + 1, image], name='synthetic_faces')
  assert twins.known(data).image.tolist() == [0, 1, 0]
  monkeypatch.setattr(twins, 'image_numbers', None)
  assert twins.known(data).image.tolist() == [0, 1, 0]
