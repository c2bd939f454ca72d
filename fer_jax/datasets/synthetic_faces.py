"""Synthetic faces: an embedded data set of drawn expressions.

Nobody's face: `face_renderer` draws cartoon people, and what they show is set
by facial action units (AU) of the Facial Action Coding System. An emotion is
its prototype of AUs at a random intensity, each AU jittered on its own, with
now and then a weak AU that does not belong to it. Who is shown, pose, light,
blur, noise and occlusion vary.

Prototypes: Ekman and Friesen, Facial Action Coding System (Consulting
Psychologists Press, 1978; Ekman, Friesen and Hager, 2nd edition, 2002,
Investigator's Guide, table of emotion predictions); Friesen and Ekman,
EMFACS-7 (unpublished manual, University of California, 1983); contempt, the
one expression of one side: Ekman and Friesen, A new pan-cultural facial
expression of emotion, Motivation and Emotion 10 (1986) 159-168. They are
conventions of that literature, not a claim that people who feel an emotion
look like this.

Legend: N samples, T frames, S sides of a face, A action units, H = W = size,
C channels.

A sample is one image or, as a clip, T frames from neutral to apex. It is a
function of (seed, index) and the options of its look alone: not of how many
samples there are, nor of which are drawn with it. Every draw comes from a
Philox counter keyed by the seed and by what is drawn (Salmon et al., Parallel
random numbers: as easy as 1, 2, 3, SC 2011). Size and channels change the
pixels only: the same face in the same pose, finer or in colour.

Samples come subject after subject, `per_subject` of each, a subject's labels
running through all classes in random order before one comes again. Subjects
belong to one split: of eight, six to train, one to validation, one to test.

The temporal variant asks onset or offset: does the expression build up or
fade? A clip from neutral to apex played in a loop is shown for one length of
the loop from a random start, forwards (onset) or backwards (offset). At every
position of the clip each intensity is as likely in one class as in the other,
so no single frame tells, nor does the set of frames without their order.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax.datasets import face_renderer
from fer_jax.datasets.face_renderer import ACTION_UNITS, CONDITIONS, IDENTITY
from fer_jax.errors import UserError

# FER2013's classes in FER2013's order; contempt is the eighth of FER+.
CLASS_NAMES = (
  'angry',
  'disgust',
  'fear',
  'happy',
  'sad',
  'surprise',
  'neutral',
)
CONTEMPT = 'contempt'
TEMPORAL_CLASS_NAMES = ('onset', 'offset')

VERSION = '1.0.0'
DESCRIPTION = (
  'Drawn faces showing action-unit prototypes of 7 or 8 expressions, as '
  'images or clips; made by the package, nobody is depicted'
)
LICENCE = 'made by fer_jax itself (Apache-2.0); no real person is depicted'
NEEDS_SOURCE = False
IDS_ARE_PLACES = True
OPTIONS = {
  'images': 8000,
  'size': 48,
  'channels': 1,
  'seed': 0,
  'classes': 7,
  'clips': False,
  'frames': 8,
  'min_frames': 0,
  'variant': 'emotion',
  'per_subject': 8,
}
MEANINGS = {
  'images': 'samples, be they images or clips',
  'size': 'side in pixels',
  'channels': '1 grey, 3 RGB',
  'seed': 'draws everything; a sample is a function of it and of its index',
  'classes': '7, or 8 with contempt',
  'clips': 'whether a sample is a clip from neutral to apex',
  'frames': 'length of a clip; the greatest where min_frames is not 0',
  'min_frames': 'the least length of a clip; 0 where all are of one',
  'variant': 'what is asked: emotion, or temporal (onset or offset, clips all)',
  'per_subject': 'samples of each person',
}
VARIANTS = ('emotion', 'temporal')
_RANGES = {
  'size': (48, 112),
  'seed': (0, 2**63 - 1),
  'per_subject': (1, 1000),
}
_MOST_IMAGES = 10_000_000

PROTOTYPES = {
  'angry': (4, 5, 7, 23),
  'disgust': (9, 15, 16),
  'fear': (1, 2, 4, 5, 7, 20, 26),
  'happy': (6, 12),
  'sad': (1, 4, 15),
  'surprise': (1, 2, 5, 26),
  'neutral': (),
  'contempt': (12, 14),  # on one side only
}

# Intensity at the apex, then what each AU's own strength is multiplied by.
INTENSITY = (0.65, 1.00)
JITTER = (0.80, 1.10)
# How much the weaker side of a face lags behind, at most.
ASYMMETRY = 0.15
# An AU that does not belong: how often each is there, how strong at most.
STRAY_SHARE = 0.10
STRAY_STRENGTH = 0.20
# The pose drifts over a clip by at most this, in the units of CONDITIONS.
DRIFT = {
  'shift_x': 0.03,
  'shift_y': 0.02,
  'scale': 0.02,
  'roll': 0.06,
  'yaw': 0.05,
  'pitch': 0.03,
}

# What a Philox key is for: no two draws share one.
_SUBJECT, _ORDER, _SAMPLE = 1, 2, 3
# Faces rendered in one go, at most: bounds the memory for their noise.
_BATCH_FRAMES = 512


def check_options(options: dict[str, Any]) -> None:
  """Raises UserError where an option's value is out of its range."""

  def refuse(option: str, allowed: str):
    raise UserError(
      f'option {option!r} of synthetic_faces is {options[option]!r}, '
      f'expected {allowed}'
    )

  for option, (low, high) in _RANGES.items():
    if not low <= options[option] <= high:
      refuse(option, f'{low} to {high}')
  for option, choices in (
    ('channels', (1, 3)),
    ('classes', (7, 8)),
    ('variant', VARIANTS),
  ):
    if options[option] not in choices:
      refuse(option, ' or '.join(map(str, choices)))
  # Eight subjects are the fewest that reach every split.
  least = 8 * options['per_subject']
  if not least <= options['images'] <= _MOST_IMAGES:
    refuse(
      'images', f'{least} (8 subjects of per_subject images) to {_MOST_IMAGES}'
    )
  # Two frames of a loop look the same forwards and backwards.
  fewest = 3 if options['variant'] == 'temporal' else 2
  if not fewest <= options['frames'] <= 64:
    refuse('frames', f'{fewest} to 64')
  if options['min_frames'] and not (
    fewest <= options['min_frames'] <= options['frames']
  ):
    refuse('min_frames', f'0 (all clips of one length) or {fewest} to frames')


def class_names(options: dict[str, Any]) -> tuple[str, ...]:
  """Names of the labels under these options, in label order."""
  if options['variant'] == 'temporal':
    return TEMPORAL_CLASS_NAMES
  return _look(options).emotions


def examples(source, options: dict[str, Any], intake) -> Iterator[dict]:
  """Yields the data set's examples; the contract is in `registry`."""
  del source
  look = _look(options)
  intake.expect(options['images'])
  step = max(1, _BATCH_FRAMES // (look.frames if look.is_clip else 1))
  for start in range(0, options['images'], step):
    index = np.arange(start, min(start + step, options['images']))
    samples = draw(look, index)
    for i, pixels in enumerate(render(look, samples)):
      subject = f'{samples.subject[i]:07d}'
      example = {
        'id': f'synthetic_faces/{index[i]:08d}',
        'label': int(samples.label[i]),
        'official_split': str(samples.split[i]),
        'subject': subject,
      }
      if look.is_clip:
        place = index[i] % look.per_subject
        example |= {'sequence': f'{subject}/{place:04d}', 'frames': pixels}
      else:
        example['image'] = pixels
      yield example


@dataclasses.dataclass(frozen=True)
class Look:
  """What a sample is a function of, besides its index: see OPTIONS."""

  size: int = 48
  channels: int = 1
  seed: int = 0
  classes: int = 7
  clips: bool = False
  frames: int = 8
  min_frames: int = 0
  variant: str = 'emotion'
  per_subject: int = 8

  @property
  def is_clip(self) -> bool:
    """The temporal variant is always made of clips."""
    return self.clips or self.variant == 'temporal'

  @property
  def emotions(self) -> tuple[str, ...]:
    return CLASS_NAMES + ((CONTEMPT,) if self.classes == 8 else ())


def _look(options: dict[str, Any]) -> Look:
  return Look(**{k: v for k, v in options.items() if k != 'images'})


@dataclasses.dataclass(frozen=True)
class Samples:
  """N samples as parameters, not yet drawn.

  Attributes:
    label: int32 (N,).
    emotion: int32 (N,), index into CLASS_NAMES + (CONTEMPT,).
    subject: int64 (N,).
    split: str (N,), the official split.
    intensity: one float32 (T,) a sample, from 0 (neutral) to 1 (its apex).
    identity, conditions: the renderer's columns, (N,).
    drift: the columns of DRIFT, (N,).
    action_units: float32 (N, S, A) at the apex.
    generators: one a sample, where its noise comes from.
  """

  label: np.ndarray
  emotion: np.ndarray
  subject: np.ndarray
  split: np.ndarray
  intensity: list[np.ndarray]
  identity: dict[str, np.ndarray]
  conditions: dict[str, np.ndarray]
  drift: dict[str, np.ndarray]
  action_units: np.ndarray
  generators: list[np.random.Generator]


def _generator(seed: int, purpose: int, index: int) -> np.random.Generator:
  """A stream of its own for (seed, purpose, index)."""
  key = np.array([seed, (purpose << 56) | index], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


def _spread(
  uniform: np.ndarray, ranges: dict[str, tuple[float, float]]
) -> dict[str, np.ndarray]:
  """Columns (N,) of uniform draws (N, len(ranges)) stretched to ranges."""
  return {
    name: (low + (high - low) * uniform[:, i]).astype(np.float32)
    for i, (name, (low, high)) in enumerate(ranges.items())
  }


def split_of(subject: np.ndarray) -> np.ndarray:
  """The official split of each subject: str, the shape of `subject`."""
  names = np.array(['train'] * 6 + ['validation', 'test'])
  return names[np.asarray(subject) % 8]


def _turn(look: Look, subject: int, turn: int) -> np.random.Generator:
  """Decides in which order a subject goes through the classes once more."""
  return _generator(look.seed, _ORDER, (subject << 16) | turn)


def _show(look: Look, subject: int, place: int) -> tuple[int, int]:
  """(label, emotion) of a subject's sample number `place`."""
  if look.variant == 'emotion':
    turn, step = divmod(place, look.classes)
    label = int(_turn(look, subject, turn).permutation(look.classes)[step])
    return label, label
  # Every expression is shown as onset and as offset, one after the other.
  expressions = [i for i, n in enumerate(look.emotions) if PROTOTYPES[n]]
  pair, second = divmod(place, 2)
  turn, step = divmod(pair, len(expressions))
  generator = _turn(look, subject, turn)
  order = generator.permutation(len(expressions))
  first = generator.integers(0, 2, len(expressions))
  return int(first[step]) ^ second, expressions[order[step]]


def draw(look: Look, index: np.ndarray) -> Samples:
  """Draws the parameters of the samples numbered `index`, (N,) int."""
  index = np.asarray(index, np.int64)
  subject = index // look.per_subject
  shown = [
    _show(look, int(i) // look.per_subject, int(i) % look.per_subject)
    for i in index
  ]
  label, emotion = np.array(shown, np.int32).reshape(-1, 2).T

  people, person = np.unique(subject, return_inverse=True)
  faces = np.stack(
    [
      _generator(look.seed, _SUBJECT, int(s)).random(len(IDENTITY))
      for s in people
    ]
  )
  identity = _spread(faces[person], IDENTITY)

  units = len(ACTION_UNITS)
  # Fixed places in each sample's stream; the noise is drawn after them.
  sizes = (len(CONDITIONS), units, units, units, len(DRIFT), 4)
  generators = [_generator(look.seed, _SAMPLE, int(i)) for i in index]
  uniform = np.stack([g.random(sum(sizes)) for g in generators])
  circumstance, jitter, stray, weak, drifting, rest = np.split(
    uniform, np.cumsum(sizes)[:-1], axis=1
  )
  conditions = _spread(circumstance, CONDITIONS)
  drift = _spread(drifting, {k: (-v, v) for k, v in DRIFT.items()})
  action_units = _action_units(emotion, jitter, stray, weak, rest)

  intensity = []
  for i in range(len(index)):
    if not look.is_clip:
      intensity.append(np.ones(1, np.float32))
      continue
    spare = look.frames - (look.min_frames or look.frames)
    length = look.frames - int(rest[i, 2] * (spare + 1))
    level = np.linspace(0, 1, length, dtype=np.float32)
    if look.variant == 'temporal':
      if label[i] == TEMPORAL_CLASS_NAMES.index('offset'):
        level = level[::-1]
      level = np.roll(level, int(rest[i, 3] * length))
    intensity.append(level)
  return Samples(
    label,
    emotion,
    subject,
    split_of(subject),
    intensity,
    identity,
    conditions,
    drift,
    action_units,
    generators,
  )


def _action_units(emotion, jitter, stray, weak, rest) -> np.ndarray:
  """AU strengths at the apex, float32 (N, S, A), from uniform draws."""
  names = (*CLASS_NAMES, CONTEMPT)
  prototype = np.array(
    [[u in PROTOTYPES[name] for u in ACTION_UNITS] for name in names]
  )[emotion]
  intensity = INTENSITY[0] + (INTENSITY[1] - INTENSITY[0]) * rest[:, :1]
  strength = JITTER[0] + (JITTER[1] - JITTER[0]) * jitter
  strength = np.minimum(intensity * strength, 1)
  noise = np.where(stray < STRAY_SHARE, weak * STRAY_STRENGTH, 0)
  both = np.where(prototype, strength, noise)
  # One side is the stronger one; contempt is on that side alone.
  lean = rest[:, 1, None] * 2 - 1
  left = both * (1 - ASYMMETRY * np.maximum(lean, 0))
  right = both * (1 - ASYMMETRY * np.maximum(-lean, 0))
  one_sided = (emotion == names.index(CONTEMPT))[:, None] & prototype
  left = np.where(one_sided & (lean > 0), 0.05 * both, left)
  right = np.where(one_sided & (lean <= 0), 0.05 * both, right)
  return np.stack([left, right], 1).astype(np.float32)


def render(look: Look, samples: Samples) -> list[np.ndarray]:
  """Draws each sample: uint8 (H, W, C), or (T, H, W, C) where it is a clip."""
  lengths = np.array([len(level) for level in samples.intensity])
  row = np.repeat(np.arange(len(lengths)), lengths)
  level = np.concatenate(samples.intensity)
  identity = {k: v[row] for k, v in samples.identity.items()}
  conditions = {k: v[row] for k, v in samples.conditions.items()}
  if look.is_clip:
    # From -1/2 on the first frame to 1/2 on the last, whatever is shown.
    time = np.concatenate(
      [np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in lengths]
    )
    for name, amount in samples.drift.items():
      conditions[name] = conditions[name] + amount[row] * time
  noise = np.concatenate(
    [
      g.standard_normal((n, look.size, look.size), np.float32)
      for g, n in zip(samples.generators, lengths, strict=True)
    ]
  )
  frames = face_renderer.render(
    identity,
    conditions,
    samples.action_units[row] * level[:, None, None],
    noise,
    size=look.size,
    channels=look.channels,
  )
  ends = np.cumsum(lengths)
  clips = [frames[e - n : e] for e, n in zip(ends, lengths, strict=True)]
  return clips if look.is_clip else [clip[0] for clip in clips]
