"""The synthetic faces: determinism, anatomy, splits, difficulty, direction."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from fer_jax import datasets
from fer_jax.datasets import face_renderer, synthetic_faces
from fer_jax.datasets.face_renderer import ACTION_UNITS, CONDITIONS, IDENTITY
from fer_jax.datasets.synthetic_faces import Look
from fer_jax.errors import UserError


def _pixels(look: Look, index) -> list[np.ndarray]:
  return synthetic_faces.render(look, synthetic_faces.draw(look, index))


# ---------------------------------------------------------------------------
# Determinism: bit for bit


@pytest.mark.parametrize(
  'look',
  [
    Look(),
    Look(size=64, channels=3, classes=8),
    Look(variant='temporal', frames=5, min_frames=3),
  ],
  ids=['grey', 'colour', 'temporal'],
)
def test_sample_does_not_depend_on_its_batch(look):
  index = np.array([3, 71, 4, 3, 150])
  together = _pixels(look, index)
  many = _pixels(look, np.arange(160))
  for i, image in zip(index, together, strict=True):
    (alone,) = _pixels(look, [i])
    np.testing.assert_array_equal(image, alone)
    np.testing.assert_array_equal(image, many[i])
  labels = synthetic_faces.draw(look, index).label
  all_labels = synthetic_faces.draw(look, np.arange(160)).label
  np.testing.assert_array_equal(labels, all_labels[index])


def test_large_batch_is_drawn_in_chunks_without_a_trace():
  # More faces than one chunk of the renderer holds.
  count = face_renderer._CHUNK_PIXELS // 48**2 + 3
  many = _pixels(Look(), np.arange(count))
  np.testing.assert_array_equal(many[-4:], _pixels(Look(), range(count)[-4:]))


def test_seed_changes_everything_and_no_two_samples_are_alike():
  first = np.stack(_pixels(Look(seed=0), np.arange(64)))
  second = np.stack(_pixels(Look(seed=1), np.arange(64)))
  assert not (first == second).all(axis=(1, 2, 3)).any()
  assert len(np.unique(first.reshape(64, -1), axis=0)) == 64


# ---------------------------------------------------------------------------
# One face in several sizes and colours


def test_grey_is_the_luminance_of_colour():
  index = np.arange(24)
  grey = np.stack(_pixels(Look(), index))[..., 0]
  colour = np.stack(_pixels(Look(channels=3), index)).astype(np.float32)
  luminance = colour @ face_renderer.LUMINANCE
  # Where clipping cut nothing; each side rounds once: 1 level apart at most.
  whole = ((colour > 0) & (colour < 255)).all(-1)
  assert whole.mean() > 0.5
  assert np.abs(luminance - grey)[whole].max() <= 1.01


def test_sizes_show_the_same_face():
  index = np.arange(24)
  small = np.stack(_pixels(Look(size=48), index))[..., 0]
  large = np.stack(_pixels(Look(size=96), index))[..., 0]
  halved = large.reshape(24, 48, 2, 48, 2).mean((2, 4))
  for a, b in zip(small, halved, strict=True):
    # Noise is drawn per pixel, so it differs: not 1. Another face is below
    # 0.8 nearly always.
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.93


# ---------------------------------------------------------------------------
# Anatomy: what each action unit moves, on one plain face at 112 pixels

_SIZE = 112
_SCALE = 0.46


def _face(**strengths: float | tuple[float, float]) -> np.ndarray:
  """Float (H, W) of an average, noiseless face; au12=1 or au12=(0, 1)."""
  identity = {k: np.array([sum(v) / 2]) for k, v in IDENTITY.items()}
  conditions = {k: np.array([sum(v) / 2]) for k, v in CONDITIONS.items()}
  identity |= {'skin_tone': np.zeros(1), 'hair_kind': np.zeros(1)}
  # All lines of age away, nothing worn, no blur: the geometry alone.
  identity |= {'age': np.zeros(1), 'glasses': np.ones(1), 'beard': np.ones(1)}
  conditions |= {'blur': np.zeros(1), 'occluded': np.ones(1)}
  conditions |= {'scale': np.full(1, _SCALE), 'light_x': np.zeros(1)}
  conditions |= {'gaze_x': np.zeros(1), 'pitch': np.zeros(1)}
  action_units = np.zeros((1, 2, len(ACTION_UNITS)), np.float32)
  for name, strength in strengths.items():
    action_units[0, :, ACTION_UNITS.index(int(name[2:]))] = strength
  image = face_renderer.render(
    identity, conditions, action_units, size=_SIZE, channels=1
  )
  return image[0, :, :, 0].astype(np.float32)


def _box(image, left, right, top, bottom):
  """The part of a picture between face coordinates."""
  shift = sum(CONDITIONS['shift_y']) / 2

  def column(x):
    return round((0.5 + x * _SCALE) * _SIZE)

  def row(y):
    return round((0.5 + shift + y * _SCALE) * _SIZE)

  return image[row(top) : row(bottom), column(left) : column(right)]


def _dark_row(image, *box, level=110) -> float:
  """Mean row of what is dark in a box, in face units."""
  part = _box(image, *box)
  dark = np.maximum(level - part, 0)
  rows = np.arange(len(part))[:, None]
  return float((dark * rows).sum() / dark.sum()) / (_SCALE * _SIZE)


_INNER_BROW = (0.14, 0.30, -0.62, -0.22)
_OUTER_BROW = (0.40, 0.50, -0.56, -0.22)
_PUPIL = (0.32, 0.40, -0.30, 0.10)
_MOUTH = (-0.45, 0.45, 0.36, 0.92)
_LIPS = (-0.15, 0.15, 0.42, 0.68)


@pytest.mark.parametrize(
  ('units', 'box', 'least'),
  [
    # Rows grow downward: a negative shift is up. In face units.
    ({'au1': 1}, _INNER_BROW, -0.10),
    ({'au2': 1}, _OUTER_BROW, -0.06),
    ({'au4': 1}, _INNER_BROW, 0.08),
    ({'au9': 1}, _INNER_BROW, 0.04),
    ({'au1': 1, 'au4': 1}, _INNER_BROW, -0.05),
  ],
  ids=lambda value: '+'.join(value) if isinstance(value, dict) else None,
)
def test_brow_moves_up_or_down(units, box, least):
  moved = _dark_row(_face(**units), *box) - _dark_row(_face(), *box)
  assert moved * np.sign(least) > abs(least), moved


def test_inner_and_outer_brow_move_apart():
  for unit, near, far in (
    ('au1', _INNER_BROW, _OUTER_BROW),
    ('au2', _OUTER_BROW, _INNER_BROW),
  ):
    up = [
      _dark_row(_face(), *b) - _dark_row(_face(**{unit: 1}), *b)
      for b in (near, far)
    ]
    assert up[0] > 1.5 * up[1], (unit, up)


def test_mouth_corners_rise_and_fall():
  def slope(image):
    corner = _dark_row(image, 0.19, 0.24, 0.40, 0.80, level=165)
    middle = _dark_row(image, -0.06, 0.06, 0.40, 0.80, level=165)
    return corner - middle

  rest = slope(_face())
  assert abs(rest) < 0.03
  assert slope(_face(au12=1)) < rest - 0.05
  assert slope(_face(au15=1)) > rest + 0.06


def _opening(image):
  """Dark pixels of iris, pupil and lashes: more where the eye is open."""
  return int((_box(image, *_PUPIL) < 110).sum())


def test_lids_open_and_close():
  rest = _opening(_face())
  assert _opening(_face(au5=1)) > 1.15 * rest
  for unit in ('au6', 'au7', 'au9'):
    assert _opening(_face(**{unit: 1})) < 0.9 * rest, unit


def _dark_area(image):
  return int((_box(image, *_MOUTH) < 80).sum())


def _dark_width(image):
  return int((_box(image, *_MOUTH) < 110).any(0).sum())


def test_mouth_opens_stretches_and_tightens():
  rest = _face()
  assert _dark_area(_face(au26=1)) > _dark_area(rest) + 100
  assert _dark_width(_face(au20=1)) > 1.15 * _dark_width(rest)
  assert _dark_width(_face(au12=1)) > 1.15 * _dark_width(rest)
  assert _dark_width(_face(au23=1)) < 0.9 * _dark_width(rest)
  # AU 23 thins the lips, AU 16 bares the lower teeth.
  lips = [(_box(f, *_LIPS) < 180).sum() for f in (_face(au23=1), rest)]
  assert lips[0] < 0.9 * lips[1]
  teeth = (-0.08, 0.08, 0.57, 0.62)
  assert _box(_face(au16=1), *teeth).mean() > _box(rest, *teeth).mean() + 15


def test_dimpler_darkens_the_corners():
  corners = [
    _box(_face(au14=strength), 0.26, 0.36, 0.46, 0.62).min()
    for strength in (0, 1)
  ]
  assert corners[1] < 0.7 * corners[0]


@pytest.mark.parametrize('unit', ACTION_UNITS)
def test_action_unit_changes_its_part_of_the_face_alone(unit):
  upper = (-0.75, 0.75, -0.85, 0.30)
  lower = (-0.75, 0.75, -0.10, 1.20)
  boxes = dict.fromkeys((1, 2, 4, 5, 7), upper)
  boxes |= dict.fromkeys((12, 14, 15, 16, 20, 23, 26), lower)
  change = np.abs(_face(**{f'au{unit}': 1}) - _face())
  assert (change > 12).sum() > 25
  if unit in boxes:
    assert _box(change, *boxes[unit]).sum() > 0.999 * change.sum()


def test_one_sided_unit_leaves_the_other_side():
  change = np.abs(_face(au12=(0, 1), au14=(0, 1)) - _face())
  left, right = change[:, : _SIZE // 2 - 14], change[:, _SIZE // 2 + 14 :]
  assert right.sum() > 20 * left.sum()


# ---------------------------------------------------------------------------
# What is drawn: labels, subjects, splits, prototypes


@pytest.mark.parametrize('classes', [7, 8])
def test_labels_are_balanced_and_names_in_order(classes):
  look = Look(classes=classes)
  options = synthetic_faces.OPTIONS | {'classes': classes}
  names = synthetic_faces.class_names(options)
  expected = 'angry disgust fear happy sad surprise neutral contempt'
  assert names == tuple(expected.split())[:classes]
  assert len(names) == classes
  label = synthetic_faces.draw(look, np.arange(1600)).label
  counts = np.bincount(label, minlength=classes)
  assert len(counts) == classes
  assert counts.max() - counts.min() < 0.1 * counts.mean()


def test_splits_are_by_subject_and_subjects_keep_their_identity():
  samples = synthetic_faces.draw(Look(), np.arange(640))
  shares = {s: (samples.split == s).mean() for s in set(samples.split)}
  assert shares == {'train': 0.75, 'validation': 0.125, 'test': 0.125}
  for subject in np.unique(samples.subject):
    rows = samples.subject == subject
    assert rows.sum() == Look().per_subject
    assert len(set(samples.split[rows])) == 1
    for column in samples.identity.values():
      assert len(np.unique(column[rows])) == 1
    assert len(np.unique(samples.conditions['roll'][rows])) == rows.sum()
  assert len(np.unique(samples.identity['skin_tone'])) == 80


def test_prototypes_are_those_of_the_facs_literature():
  assert synthetic_faces.PROTOTYPES == {
    'happy': (6, 12),
    'sad': (1, 4, 15),
    'surprise': (1, 2, 5, 26),
    'fear': (1, 2, 4, 5, 7, 20, 26),
    'angry': (4, 5, 7, 23),
    'disgust': (9, 15, 16),
    'contempt': (12, 14),
    'neutral': (),
  }


def test_apex_shows_the_prototype_of_its_label():
  samples = synthetic_faces.draw(Look(classes=8), np.arange(800))
  names = (*synthetic_faces.CLASS_NAMES, 'contempt')
  low = synthetic_faces.INTENSITY[0] * synthetic_faces.JITTER[0]
  for label, name in enumerate(names):
    prototype = np.isin(ACTION_UNITS, synthetic_faces.PROTOTYPES[name])
    strength = samples.action_units[samples.label == label]
    assert strength.shape[0] > 50
    peak = strength.max(1)
    assert (peak[:, prototype] >= low - 1e-6).all()
    assert peak[:, ~prototype].max() <= synthetic_faces.STRAY_STRENGTH
    assert strength.min() >= 0
    assert strength.max() <= 1
    sides = np.abs(strength[:, 0] - strength[:, 1])[:, prototype]
    if name == 'contempt':
      assert sides.min() > 0.9 * low
      right = strength[:, 1][:, prototype] > strength[:, 0][:, prototype]
      assert 0.3 < right.mean() < 0.7
    elif prototype.any():
      assert sides.max() <= synthetic_faces.ASYMMETRY + 1e-6


def test_emotion_clips_run_from_neutral_to_apex():
  look = Look(clips=True, frames=7, min_frames=4)
  samples = synthetic_faces.draw(look, np.arange(64))
  clips = synthetic_faces.render(look, samples)
  assert {len(c) for c in clips} == {4, 5, 6, 7}
  for clip, level in zip(clips, samples.intensity, strict=True):
    assert clip.shape == (len(level), 48, 48, 1)
    assert (level[0], level[-1]) == (0, 1)
    assert (np.diff(level) > 0).all()
  # The first frame is neutral: it is drawn alike whatever the expression.
  still = dataclasses.replace(
    samples, action_units=np.zeros_like(samples.action_units)
  )
  fresh = synthetic_faces.draw(look, np.arange(64)).generators
  neutral = synthetic_faces.render(
    look, dataclasses.replace(still, generators=fresh)
  )
  for clip, rest in zip(clips, neutral, strict=True):
    np.testing.assert_array_equal(clip[0], rest[0])


# ---------------------------------------------------------------------------
# Difficulty


def test_pixels_are_hard_for_a_linear_model_and_action_units_are_not():
  # 1,500 images; trained on 6,000 it reaches 42 % (test), 44 % (validation).
  samples = synthetic_faces.draw(Look(), np.arange(2000))
  pixels = np.stack(synthetic_faces.render(Look(), samples))
  pixels = pixels.reshape(2000, -1).astype(np.float32)
  train, rest = samples.split == 'train', samples.split != 'train'
  strengths = samples.action_units.reshape(2000, -1)
  scores = []
  for inputs in (pixels, strengths):
    scaler = StandardScaler().fit(inputs[train])
    model = LogisticRegression(C=1e-3 if inputs is pixels else 1.0, tol=0.05)
    model.fit(scaler.transform(inputs[train]), samples.label[train])
    scores.append(
      model.score(scaler.transform(inputs[rest]), samples.label[rest])
    )
  assert 0.25 < scores[0] < 0.60
  assert scores[1] > 0.97


# ---------------------------------------------------------------------------
# The temporal variant


def test_levels_of_both_directions_are_the_same_at_every_position():
  frames = 6
  look = Look(variant='temporal', frames=frames)
  samples = synthetic_faces.draw(look, np.arange(6000))
  assert abs(samples.label.mean() - 0.5) < 0.01
  level = np.rint(np.stack(samples.intensity) * (frames - 1)).astype(int)
  for position in range(frames):
    for label in (0, 1):
      counts = np.bincount(
        level[samples.label == label, position], minlength=frames
      )
      # 3,000 draws over 6 levels: 500 each, standard deviation 20.4.
      assert np.abs(counts - 500).max() < 90, (position, label, counts)
  # A clip shows every level once: its frames without order tell nothing.
  assert (np.sort(level, 1) == np.arange(frames)).all()
  # Emotions are shared evenly too.
  for label in (0, 1):
    counts = np.bincount(samples.emotion[samples.label == label])[:6]
    assert np.abs(counts - 500).max() < 10
  steps = np.median(np.diff(level, axis=1), axis=1)
  np.testing.assert_array_equal(steps, np.where(samples.label == 0, 1, -1))


@pytest.fixture(scope='module')
def temporal():
  look = Look(variant='temporal', frames=6)
  samples = synthetic_faces.draw(look, np.arange(800))
  clips = np.stack(synthetic_faces.render(look, samples))
  small = clips.reshape(800, 6, 24, 2, 24, 2).mean((3, 5))
  return samples, small.reshape(800, 6, -1).astype(np.float32)


def _linear_accuracy(inputs, labels, train):
  scaler = StandardScaler().fit(inputs[train])
  model = LogisticRegression(C=1e-3, tol=1e-2)
  model.fit(scaler.transform(inputs[train]), labels[train])
  return model.score(scaler.transform(inputs[~train]), labels[~train])


def test_no_single_frame_tells_the_direction(temporal):
  samples, pixels = temporal
  train = samples.split == 'train'
  # 200 held-out clips: chance is 0.5 with a standard deviation of 0.035.
  for position in range(6):
    accuracy = _linear_accuracy(pixels[:, position], samples.label, train)
    assert 0.36 < accuracy < 0.64, position
  # All frames at once do not help a linear model: class means are equal.
  flat = pixels.reshape(len(pixels), -1)
  assert 0.36 < _linear_accuracy(flat, samples.label, train) < 0.64


def test_no_single_frame_tells_even_one_who_sees_the_action_units():
  samples = synthetic_faces.draw(
    Look(variant='temporal', frames=6), np.arange(4000)
  )
  train = samples.split == 'train'
  level = np.stack(samples.intensity)
  # All that a frame's pixels may depend on and that could tell: the strength
  # of its expression, the expression, and the drifting pose.
  known = np.column_stack(
    [samples.action_units.max(1), samples.emotion, *samples.drift.values()]
  )

  def accuracy(extra):
    model = DecisionTreeClassifier(max_depth=6, random_state=0)
    inputs = np.column_stack([known, extra])
    model.fit(inputs[train], samples.label[train])
    return model.score(inputs[~train], samples.label[~train])

  # 1,000 held-out clips: chance is 0.5 with a standard deviation of 0.016.
  for position in range(6):
    assert 0.44 < accuracy(level[:, position]) < 0.56, position
  # Control: two frames do tell, but for the 1 in 6 where the loop jumps,
  # and there the size of the jump does.
  assert accuracy(level[:, 1] - level[:, 0]) > 0.97


def test_the_order_of_frames_tells_the_direction(temporal):
  samples, pixels = temporal
  train = samples.split == 'train'
  level = np.stack(samples.intensity) - 0.5
  change = pixels - pixels.mean(1, keepdims=True)
  size = change.shape[-1]
  ridge = Ridge(3e4).fit(change[train].reshape(-1, size), level[train].ravel())
  seen = ridge.predict(change[~train].reshape(-1, size)).reshape(-1, 6)
  ramp = np.linspace(-0.5, 0.5, 6)
  onsets = np.stack([np.roll(ramp, shift) for shift in range(6)])
  scores = [(seen @ loop.T).max(1) for loop in (onsets, onsets[:, ::-1])]
  accuracy = ((scores[1] > scores[0]) == samples.label[~train]).mean()
  assert accuracy > 0.75


# ---------------------------------------------------------------------------
# Options and the build


@pytest.mark.parametrize(
  ('options', 'part'),
  [
    ({'images': 63}, "'images' of synthetic_faces is 63, expected 64"),
    ({'size': 47}, "'size' of synthetic_faces is 47, expected 48 to 112"),
    ({'size': 113}, 'expected 48 to 112'),
    ({'channels': 2}, 'expected 1 or 3'),
    ({'classes': 6}, 'expected 7 or 8'),
    ({'seed': -1}, "'seed' of synthetic_faces is -1"),
    ({'variant': 'apex'}, "is 'apex', expected emotion or temporal"),
    ({'frames': 1}, "'frames' of synthetic_faces is 1, expected 2 to 64"),
    ({'frames': 2, 'variant': 'temporal'}, 'expected 3 to 64'),
    ({'frames': 4, 'min_frames': 5}, "'min_frames' of synthetic_faces is 5"),
    ({'per_subject': 0}, "'per_subject' of synthetic_faces is 0"),
  ],
)
def test_bad_options_are_refused_in_one_line(options, part):
  with pytest.raises(UserError) as error:
    synthetic_faces.check_options(synthetic_faces.OPTIONS | options)
  assert part in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'options',
  [
    {'images': 24, 'per_subject': 3},
    {'images': 16, 'per_subject': 2, 'channels': 3, 'size': 56},
    {
      'images': 16,
      'per_subject': 2,
      'clips': True,
      'frames': 4,
      'min_frames': 2,
      'classes': 8,
    },
    {'images': 16, 'per_subject': 2, 'variant': 'temporal', 'frames': 3},
  ],
  ids=['grey', 'colour', 'clips', 'temporal'],
)
def test_built_set_holds_what_is_rendered(options, tmp_path):
  dataset = datasets.load('synthetic_faces', data_dir=tmp_path, **options)
  look = synthetic_faces._look(synthetic_faces.OPTIONS | options)
  index = np.arange(options['images'])
  samples = synthetic_faces.draw(look, index)
  expected = synthetic_faces.render(look, samples)
  assert len(dataset) == len(index)
  assert dataset.is_clips == look.is_clip
  for row, pixels in enumerate(dataset.read(index)):
    np.testing.assert_array_equal(pixels, expected[row])
  np.testing.assert_array_equal(dataset.table['label'], samples.label)
  np.testing.assert_array_equal(dataset.table['official_split'], samples.split)
  assert len(np.unique(dataset.table['id'])) == len(index)
  assert len(np.unique(dataset.table['subject'])) == 8
  if look.is_clip:
    assert len(np.unique(dataset.table['sequence'])) == len(index)
