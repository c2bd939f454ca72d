"""RAF-DB, basic emotions: faces from the internet, with who is shown.

Li, Deng and Du, Reliable crowdsourcing and deep locality-preserving learning
for expression recognition in the wild, CVPR 2017. 15,339 pictures with one of
seven labels, the majority of some forty annotators: 12,271 to train, 3,068 to
test, no validation split. Obtained from its authors on request
(http://www.whdeng.cn/RAF/model1.html). Accepted, as a folder, zip, tar or
compressed tar, with any folders around it:

  EmoLabel/list_patition_label.txt    a line a picture, 'train_00001.jpg 5';
                                      labels 1 to 7 in the order of
                                      CLASS_NAMES, split from the name's prefix
  Image/aligned/train_00001_aligned.jpg
                                      100 x 100 RGB, from Image/aligned.zip
  Image/original/train_00001.jpg      any size, from Image/original.zip
  Annotation/manual/train_00001_manu_attri.txt
                                      five lines of landmarks, then gender,
                                      race and age as in ATTRIBUTES

The option `images` says which pictures are taken; the other ones need not be
there. Annotation/manual is optional: where it is, all pictures have
attributes.
"""

import re
from collections.abc import Iterator
from typing import Any

from fer_jax.datasets import layout, pictures, sources
from fer_jax.errors import UserError

CLASS_NAMES = (
  'surprise',
  'fear',
  'disgust',
  'happiness',
  'sadness',
  'anger',
  'neutral',
)
VERSION = '1.0.0'
DESCRIPTION = '15,339 faces from the internet, 7 emotions, gender, race and age'
LICENCE = (
  'from its authors on request: non-commercial research only, do not '
  'redistribute'
)
OPTIONS: dict[str, Any] = {'images': 'aligned'}
MEANINGS = {'images': 'which pictures: aligned or original'}
NEEDS_SOURCE = True
OFFICIAL_COUNTS = {
  'train': (1290, 281, 717, 4772, 1982, 705, 2524),
  'test': (329, 74, 160, 1185, 478, 162, 680),
}
IMAGES = ('aligned', 'original')
ATTRIBUTES = {
  'gender': ('male', 'female', 'unsure'),
  'race': ('Caucasian', 'African-American', 'Asian'),
  'age': ('0-3', '4-19', '20-39', '40-69', '70+'),
}

_LABELS = 'EmoLabel/list_patition_label.txt'
_ANNOTATIONS = 'Annotation/manual'
_NAME = re.compile(r'((train|test)_\d+)\.jpg', re.ASCII)
_ENDS = {'aligned': '_aligned.jpg', 'original': '.jpg'}
_SIDE = 100
_LANDMARKS = 5


def near_twins_are_copies(options: dict[str, Any]) -> bool:
  """Of the photographs as they were; aligned faces look alike anyway."""
  return options['images'] == 'original'


def check_options(options: dict[str, Any]) -> None:
  """Raises UserError where an option has none of its values."""
  if options['images'] not in IMAGES:
    raise UserError(
      f"option 'images' of rafdb is {options['images']!r}, expected "
      f'{" or ".join(IMAGES)}'
    )


def examples(
  source: sources.Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Pictures in the order of the list of labels.

  See `registry` for the contract.

  Raises:
    UserError: labels, pictures and annotations are not of the same set.
  """
  images = options['images']
  labels = _read_labels(source)
  files = _match_pictures(source, images, labels)
  annotations = _match_annotations(source, labels)
  if images == 'aligned':
    _check_not_swapped(source, next(iter(files.values())))
  intake.expect(len(labels))
  for stem, label in labels.items():
    place = files[stem]
    try:
      example = {
        'id': f'rafdb/{stem}',
        'label': label,
        'official_split': stem.partition('_')[0],
        'image': layout.read_picture(
          source,
          place,
          size=(_SIDE, _SIDE) if images == 'aligned' else None,
          channels=3,
        ),
      }
      if annotations:
        place = annotations[stem]
        example['attributes'] = _read_attributes(source, place)
    except ValueError as error:
      intake.reject(source.label(place), str(error))
      continue
    yield example


def _read_labels(source: sources.Source) -> dict[str, int]:
  """Labels from 0 by the stems of names, as 'train_00001'."""
  name = layout.require(source, _LABELS, 'the labels of RAF-DB')
  labels: dict[str, int] = {}
  for where, text in layout.lines(source, name):
    fields = text.split()
    found = _NAME.fullmatch(fields[0])
    if len(fields) != 2 or not found:
      raise UserError(
        f'{where}: {text[:60]!r}; a name and a label are expected, as '
        "'train_00001.jpg 5'"
      )
    if fields[1] not in map(str, range(1, len(CLASS_NAMES) + 1)):
      raise UserError(
        f'{where}: label {fields[1]!r}; 1 to {len(CLASS_NAMES)} are expected'
      )
    if found[1] in labels:
      raise UserError(f'{where}: {fields[0]} occurs twice')
    labels[found[1]] = int(fields[1]) - 1
  if not labels:
    raise UserError(f'{source.label(name)}: no labels in it')
  return labels


def _files(source: sources.Source, tail: str) -> dict[str, str]:
  files = layout.folder(source, tail)
  if not files and layout.find(source, f'{tail}.zip'):
    raise UserError(
      f'{source.path}: {tail}.zip must be unpacked first, into a folder {tail}'
    )
  return files


def _match_pictures(
  source: sources.Source, images: str, labels: dict[str, int]
) -> dict[str, str]:
  """The picture of each label, which has to be all pictures there are."""
  tail, end = f'Image/{images}', _ENDS[images]
  files = _files(source, tail)
  missing = [stem for stem in labels if stem + end not in files]
  if missing:
    first = missing[0]
    others = [kind for kind in IMAGES if first + _ENDS[kind] in files]
    if others:
      raise UserError(
        f'{source.path}: {tail} holds {first}{_ENDS[others[0]]}, a name of '
        f'{others[0]} pictures; are Image/aligned and Image/original swapped?'
      )
    raise UserError(
      f'{source.path}: no {tail}/{first}{end}; {len(missing):,} of '
      f'{len(labels):,} labelled pictures are missing: was the set extracted '
      'in part?'
    )
  found = {stem: files[stem + end] for stem in labels}
  known = set(found.values())
  extra = [
    name
    for name in files.values()
    if layout.is_picture(name) and name not in known
  ]
  if extra:
    raise UserError(
      f'{extra[0]}: no label in {_LABELS}, nor for {len(extra) - 1:,} others '
      f'of {tail}; every picture needs one'
    )
  return found


def _match_annotations(
  source: sources.Source, labels: dict[str, int]
) -> dict[str, str]:
  """The annotation of each label, or none where the set is without."""
  files = _files(source, _ANNOTATIONS)
  if not files:
    return {}
  missing = [stem for stem in labels if f'{stem}_manu_attri.txt' not in files]
  if missing:
    raise UserError(
      f'{source.path}: no {_ANNOTATIONS}/{missing[0]}_manu_attri.txt, nor for '
      f'{len(missing) - 1:,} other pictures; annotations of all pictures, or '
      'no such folder, are expected'
    )
  return {stem: files[f'{stem}_manu_attri.txt'] for stem in labels}


def _check_not_swapped(source: sources.Source, name: str) -> None:
  try:
    encoded = layout.picture_bytes(source, name)
    height, width, _ = pictures.decode(encoded).shape
  except ValueError:
    return  # a bad row, and rejected as one
  if (height, width) != (_SIDE, _SIDE):
    raise UserError(
      f'{source.label(name)}: {width}x{height} pixels where aligned pictures '
      f'have {_SIDE}x{_SIDE}; are Image/aligned and Image/original swapped?'
    )


def _read_attributes(source: sources.Source, name: str) -> dict[str, str]:
  """What an annotation says.

  Raises:
    ValueError: it does not have its lines.
  """
  texts = [text for _, text in layout.lines(source, name)]
  expected = _LANDMARKS + len(ATTRIBUTES)
  if len(texts) != expected:
    raise ValueError(
      f'{len(texts)} lines where {expected} are expected: {_LANDMARKS} '
      f'landmarks, {", ".join(ATTRIBUTES)}'
    )
  attributes = {}
  for (attribute, values), text in zip(
    ATTRIBUTES.items(), texts[_LANDMARKS:], strict=True
  ):
    if text not in map(str, range(len(values))):
      raise ValueError(
        f'{attribute} {text[:40]!r}; 0 to {len(values) - 1} are expected'
      )
    attributes[attribute] = values[int(text)]
  return attributes
