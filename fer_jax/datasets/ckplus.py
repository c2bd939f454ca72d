"""CK+: people posing an expression, filmed from a neutral face to its apex.

Lucey et al., The extended Cohn-Kanade dataset (CK+): a complete dataset for
action unit and emotion-specified expression, CVPR Workshops 2010. 593
sequences of 123 people; 327 of them, of 118 people, carry an emotion, the
others are passed over. Accepted in a folder, zip or tar, below any folders:

  cohn-kanade-images/S005/001/S005_001_00000001.png
  Emotion/S005/001/S005_001_00000011_emotion.txt
      as published: the frames of subject S005's sequence 001, some grey, some
      in colour (stored grey), and the label of its last frame, one number:
      1 anger, 2 contempt, 3 disgust, 4 fear, 5 happy, 6 sadness, 7 surprise
  <class>/S010_004_00000017.png
      the 981 grey pictures of 48 x 48 that go around as CK+48: the last three
      frames of each labelled sequence in the folders anger, contempt,
      disgust, fear, happy, sadness, surprise. Subject and sequence are read
      from the names where all have this form; where none has, the set has
      neither, and no split of it can keep people apart

There is no official split. Neighbouring frames are all but copies, so whoever
splits this set keeps each subject on one side.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax.datasets import layout, pictures
from fer_jax.datasets.sources import Source
from fer_jax.errors import UserError

VERSION = '1.0.0'
DESCRIPTION = '327 posed sequences from neutral to apex, 118 people, 7 emotions'
LICENCE = (
  'from the University of Pittsburgh, on signing its agreement: '
  'non-commercial research only, do not redistribute'
)
OPTIONS: dict[str, Any] = {
  'form': 'images',
  'last_frames': 3,
  'neutral': False,
  'frames': 0,
}
MEANINGS = {
  'form': 'images or clips',
  'last_frames': 'images: how many frames of a sequence, from the last one '
  'backwards, show the emotion',
  'neutral': "images: whether each sequence's first frame is one of the class "
  'neutral',
  'frames': 'clips: frames evenly spaced from the first to the last; 0 takes '
  'them all',
}
NEEDS_SOURCE = True

_CLASS_NAMES = (
  'angry',
  'disgust',
  'fear',
  'happy',
  'sad',
  'surprise',
  'contempt',
)
_NEUTRAL = len(_CLASS_NAMES)
_SEQUENCES = (45, 59, 25, 69, 28, 83, 18)
# As the label files number them; 0 is neutral and labels no sequence.
_LABELS = {1: 0, 2: 6, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5}
_CLASS_FOLDERS = {
  **{name: label for label, name in enumerate(_CLASS_NAMES)},
  'anger': 0,
  'happiness': 3,
  'sadness': 4,
}
_SIDE = 48
# Every labelled sequence has this many frames for its emotion, see CK+48.
_ALWAYS_THERE = 3
_OF_FORM = {'last_frames': 'images', 'neutral': 'images', 'frames': 'clips'}

_IMAGES = 'cohn-kanade-images'
_PLACE = r'(S\d{3})/(\d{3})/\1_\2_(\d{1,9})'
_FORM = re.IGNORECASE | re.ASCII
_FRAME = re.compile(rf'{_PLACE}\.\w+', _FORM)
_LABEL = re.compile(rf'{_PLACE}_emotion\.txt', _FORM)
_NAME = re.compile(r'(S\d{3})_(\d{3})_\d{1,9}\.\w+', _FORM)


@dataclasses.dataclass(frozen=True)
class _Sequence:
  """A labelled sequence.

  Attributes:
    subject: such as 'S005'.
    number: such as '001'.
    label: of the class.
    frames: members, from the neutral frame to the apex.
  """

  subject: str
  number: str
  label: int
  frames: tuple[str, ...]

  @property
  def columns(self) -> dict[str, Any]:
    """What every example of the sequence carries."""
    return {
      'official_split': 'none',
      'subject': self.subject,
      'sequence': f'{self.subject}/{self.number}',
    }


def class_names(options: dict[str, Any]) -> tuple[str, ...]:
  """Seven classes, eight where the first frames are neutral."""
  return (*_CLASS_NAMES, 'neutral') if options['neutral'] else _CLASS_NAMES


def official_counts(
  options: dict[str, Any],
) -> dict[str, tuple[int, ...]]:
  """Published counts per class; {} where they depend on sequences' lengths."""
  if options['form'] == 'clips':
    return {'none': _SEQUENCES}
  if options['last_frames'] > _ALWAYS_THERE:
    return {}
  counts = tuple(options['last_frames'] * count for count in _SEQUENCES)
  return {'none': (*counts, sum(_SEQUENCES)) if options['neutral'] else counts}


def check_options(options: dict[str, Any]) -> None:
  """Raises UserError on a value that does not fit."""
  form = options['form']
  if form not in ('images', 'clips'):
    raise UserError(
      f"option 'form' of ckplus is {form!r}, expected images or clips"
    )
  for option, needed in _OF_FORM.items():
    if form != needed and options[option] != OPTIONS[option]:
      raise UserError(
        f'option {option!r} of ckplus is {options[option]!r}; it is for form '
        f'{needed}, and the form is {form}'
      )
  if options['last_frames'] < 1:
    raise UserError(
      f"option 'last_frames' of ckplus is {options['last_frames']}, expected "
      'at least 1'
    )
  if options['frames'] < 0 or options['frames'] == 1:
    raise UserError(
      f"option 'frames' of ckplus is {options['frames']}, expected 0 for all, "
      'or at least 2: the first and the last'
    )


def examples(
  source: Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Sequences, or frames of them, in the order of their names.

  See `registry` for the contract.

  Raises:
    UserError: the source is no form of CK+, or is damaged as a whole.
  """
  frames = [
    name
    for name in source.members
    if layout.is_picture(name) and _IMAGES in name.lower().split('/')[:-1]
  ]
  labels = [name for name in source.members if _is_label(name)]
  if not frames and not labels:
    yield from _folder_examples(source, options, intake)
    return
  intake.notes['layout'] = 'official'
  sequences = _sequences(source, frames, labels, intake)
  if options['form'] == 'clips':
    intake.expect(len(sequences))
    for sequence in sequences:
      yield from _clip(source, sequence, options['frames'], intake)
    return
  last, neutral = options['last_frames'], options['neutral']
  intake.expect(len(sequences) * (last + neutral))
  # The first frame is neutral: it never stands for the emotion.
  intake.notes['short_sequences'] = sum(
    len(sequence.frames) <= last for sequence in sequences
  )
  for sequence in sequences:
    first, rest = sequence.frames[:1], sequence.frames[1:]
    if neutral:
      yield from _images(source, sequence, first, _NEUTRAL, intake)
    yield from _images(source, sequence, rest[-last:], sequence.label, intake)


def _is_label(name: str) -> bool:
  parts = name.lower().split('/')
  in_place = parts[-4:-3] == ['emotion'] and parts[-1].endswith('.txt')
  return in_place or parts[-1].endswith('_emotion.txt')


def _place(
  form: re.Pattern[str], source: Source, name: str, expected: str
) -> tuple[tuple[str, str], int]:
  """((subject, sequence), frame) from the end of a member's path.

  Raises:
    UserError: it does not have the form, such as `expected`.
  """
  found = form.fullmatch('/'.join(name.split('/')[-3:]))
  if found is None:
    raise UserError(
      f'{source.label(name)}: no subject and sequence can be read from this '
      f'path; one such as {expected} is expected'
    )
  return (found[1].upper(), found[2]), int(found[3])


def _sequences(
  source: Source, frames: list[str], labels: list[str], intake: Any
) -> list[_Sequence]:
  """The labelled sequences in the order of their names.

  One that is not whole, or has a label that is none, goes to `intake`.

  Raises:
    UserError: half of the layout is missing, a path is of no sequence, or one
      has two labels.
  """
  for members, folder in ((frames, _IMAGES), (labels, 'Emotion')):
    if not members:
      packed = [n for n in source.members if n.lower().endswith('.zip')]
      unpack = f'; unpack {", ".join(packed)}' if packed else ''
      raise UserError(
        f'{source.path}: no folder {folder} in it; CK+ is expected as the '
        f'folders {_IMAGES} and Emotion side by side{unpack}'
      )
  filmed: dict[tuple[str, str], list[tuple[int, str]]] = {}
  for name in frames:
    key, frame = _place(
      _FRAME, source, name, f'{_IMAGES}/S005/001/S005_001_00000001.png'
    )
    filmed.setdefault(key, []).append((frame, name))
  labelled: dict[tuple[str, str], tuple[str, int]] = {}
  for name in labels:
    key, apex = _place(
      _LABEL, source, name, 'Emotion/S005/001/S005_001_00000011_emotion.txt'
    )
    if key in labelled:
      raise UserError(
        f'{source.label(name)}: a second label of sequence {"/".join(key)}, '
        f'beside {source.label(labelled[key][0])}; one is expected'
      )
    labelled[key] = (name, apex)
  sequences = []
  for key, (name, apex) in sorted(labelled.items()):
    try:
      label = _label(source, name)
      whole = _whole(source, key, filmed.get(key, []), name, apex)
    except UserError as error:
      where, _, why = str(error).partition(': ')
      intake.reject(where, why)
      continue
    sequences.append(_Sequence(*key, label=label, frames=whole))
  intake.notes['unlabelled_sequences'] = len(filmed.keys() - labelled.keys())
  return sequences


def _label(source: Source, name: str) -> int:
  """The class that a label file names.

  Raises:
    UserError: it does not hold one number of 1 to 7.
  """
  found = list(layout.lines(source, name))
  if len(found) != 1:
    raise UserError(
      f'{source.label(name)}: {len(found)} lines where one number of 0 to 7 '
      'is expected'
    )
  where, text = found[0]
  try:
    number = float(text)
  except ValueError:
    number = -1.0
  if number == 0:
    raise UserError(
      f'{where}: the label is 0 (neutral), but a sequence ends at the apex of '
      'an emotion; 1 to 7 is expected'
    )
  if number not in _LABELS:
    raise UserError(
      f'{where}: {text[:40]!r} is no emotion; a whole number of 0 to 7 is '
      'expected'
    )
  return _LABELS[int(number)]


def _whole(
  source: Source,
  key: tuple[str, str],
  found: list[tuple[int, str]],
  label: str,
  apex: int,
) -> tuple[str, ...]:
  """Frames 1 to `apex` of a labelled sequence.

  Raises:
    UserError: one is missing or there twice, or there are others.
  """
  sequence = '/'.join(key)
  if not found:
    raise UserError(
      f'{source.label(label)}: a label without frames; '
      f'{_IMAGES}/{sequence} with pictures is expected (partly unpacked?)'
    )
  frames = sorted(found)
  for expected, (frame, name) in enumerate(frames, 1):
    if frame != expected:
      if frame > expected:
        fault = f'frame {expected} is missing before it (partly unpacked?)'
      elif expected > 1:
        fault = f'frame {frame} is {source.label(frames[expected - 2][1])} too'
      else:
        fault = 'frames are counted from 1'
      raise UserError(
        f'{source.label(name)}: sequence {sequence}: {fault}; numbers that '
        'rise by 1 are expected'
      )
  if len(frames) != apex or apex < 2:
    raise UserError(
      f'{source.label(label)}: the label of frame {apex}, but the last frame '
      f'of sequence {sequence} is {len(frames)}; a label of the last of at '
      'least 2 frames is expected (partly unpacked?)'
    )
  return tuple(name for _, name in frames)


def _images(
  source: Source,
  sequence: _Sequence,
  frames: tuple[str, ...],
  label: int,
  intake: Any,
) -> Iterator[dict[str, Any]]:
  def describe(name: str) -> dict[str, Any]:
    stem = name.rsplit('/', 1)[-1].rsplit('.', 1)[0]
    return {'id': f'ckplus/{stem}', 'label': label, **sequence.columns}

  yield from layout.examples(source, frames, describe, intake, channels=1)


def _clip(
  source: Source, sequence: _Sequence, count: int, intake: Any
) -> Iterator[dict[str, Any]]:
  """The clip of a sequence; none where one of its frames is bad."""
  names = sequence.frames
  if 0 < count < len(names):
    chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
    names = tuple(names[frame] for frame in chosen)
  frames: list[np.ndarray | bytes] = []
  size = None
  for name in names:
    try:
      frame = layout.read_picture(source, name, size=size, channels=1)
    except ValueError as error:
      intake.reject(source.label(name), f'{error}; the clip is left out')
      return
    if size is None:
      pixels = pictures.decode(frame) if isinstance(frame, bytes) else frame
      size = (pixels.shape[0], pixels.shape[1])
    frames.append(frame)
  yield {
    'id': f'ckplus/{sequence.subject}_{sequence.number}',
    'label': sequence.label,
    'frames': frames,
    **sequence.columns,
  }


def _folder_examples(
  source: Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Pictures of class folders, in the order of their names."""
  shown = [name for name in source.members if layout.is_picture(name)]
  known = [name for name in shown if _folder(name) in _CLASS_FOLDERS]
  if not known:
    raise UserError(
      f'{source.path}: neither the folders {_IMAGES} and Emotion nor class '
      'folders with pictures in it'
    )
  _check_folder_options(source, options)
  places = _places(source, known)
  intake.notes['layout'] = 'folders'
  intake.notes['other_files'] = len(source.members) - len(shown)
  intake.notes['subjects_known'] = places is not None
  intake.expect(len(shown))

  def describe(name: str) -> dict[str, Any]:
    folder, file = _folder(name), name.rsplit('/', 1)[-1]
    if folder not in _CLASS_FOLDERS:
      raise ValueError(
        f'unknown class folder {folder!r}; known are '
        f'{", ".join(_CLASS_FOLDERS)}'
      )
    example = {'label': _CLASS_FOLDERS[folder], 'official_split': 'none'}
    if places is None:
      return {'id': f'ckplus/{folder}/{file}', **example}
    subject, number = places[name]
    return {
      'id': f'ckplus/{file.rsplit(".", 1)[0]}',
      **example,
      'subject': subject,
      'sequence': f'{subject}/{number}',
    }

  yield from layout.examples(
    source, shown, describe, intake, size=(_SIDE, _SIDE), channels=1
  )


def _folder(name: str) -> str:
  """The folder a member is in, in lower case; '' for none."""
  return ''.join(name.lower().split('/')[-2:-1])


def _check_folder_options(source: Source, options: dict[str, Any]) -> None:
  """Raises UserError on what single frames in class folders cannot give."""
  for name in ('form', 'last_frames', 'neutral'):
    if options[name] != OPTIONS[name]:
      raise UserError(
        f'{source.path}: option {name!r} of ckplus is {options[name]!r}, but '
        'class folders hold the last three frames of each sequence and no '
        f'others; the folders {_IMAGES} and Emotion are expected for it'
      )


def _places(
  source: Source, names: list[str]
) -> dict[str, tuple[str, str]] | None:
  """(subject, sequence) of each picture; None where no name tells.

  Raises:
    UserError: some names tell and others do not, or a sequence lies in the
      folders of two classes.
  """
  found = {name: _NAME.fullmatch(name.rsplit('/', 1)[-1]) for name in names}
  silent = [name for name in names if found[name] is None]
  if len(silent) == len(names):
    return None
  if silent:
    raise UserError(
      f'{source.label(silent[0])}: no subject in this name, while others have '
      'one; names such as S010_004_00000017.png are expected of all or none'
    )
  places = {}
  first: dict[tuple[str, str], str] = {}
  for name, match in found.items():
    assert match is not None
    key = (match[1].upper(), match[2])
    earlier = first.setdefault(key, name)
    if _CLASS_FOLDERS[_folder(earlier)] != _CLASS_FOLDERS[_folder(name)]:
      raise UserError(
        f'{source.label(name)}: sequence {"/".join(key)} has a second label, '
        f'beside {source.label(earlier)}; one is expected'
      )
    places[name] = key
  return places
