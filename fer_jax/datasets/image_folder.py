"""Anyone's pictures, sorted into folders by class and, if need be, by split.

Accepted, as a folder, zip, tar or compressed tar, with any folders around it:

  <split>/<class>/<file>   split is train or training, val, valid or
                           validation, test or testing, in any case
  <class>/<file>           official split `none`

Pictures are of any size, and turned upright where their camera noted how it was
held. A .gif or .heic is a bad row, and so is a picture that can be seen
through; files that are no pictures are counted in the notes. The classes are
the folders' names in alphabetical order, or those of the option `classes`, in
its order; it has to name them all. The option `channels` says whether grey
pictures (1) or RGB (3) are stored.

The option `subjects` names a csv in the source with the columns file and
subject, so that no person need be on two sides of a split: file is the path
from the folder that holds the splits or classes, as 'train/angry/1.png'. Every
picture has to be in it exactly once.

The option `from_web` says that the pictures are photographs gathered from the
web: then two that are all but equal are taken for copies of one, which nobody
should train on and be tested on.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from fer_jax.datasets import layout, sources
from fer_jax.errors import UserError

VERSION = '1.4.0'
DESCRIPTION = 'Your own pictures, as <split>/<class>/<file> or <class>/<file>'
LICENCE = 'as whoever made the pictures gives them to you'
OPTIONS: dict[str, Any] = {
  'classes': (),
  'channels': 3,
  'subjects': '',
  'from_web': False,
}
MEANINGS = {
  'classes': "the folders' names in label order; () for that of the alphabet",
  'channels': 'stored: 1 grey, 3 RGB',
  'subjects': "csv in the source with columns file and subject; '' for none",
  'from_web': 'whether these are photographs gathered from the web, of which '
  'two that are all but equal are copies',
}
NEEDS_SOURCE = True
IDS_ARE_PLACES = True

SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}


def near_twins_are_copies(options: dict[str, Any]) -> bool:
  """Of photographs from the web they are."""
  return options['from_web']


@dataclasses.dataclass(frozen=True)
class _Picture:
  """A picture's member, and the parts of its path that mean something."""

  name: str
  base: str  # the folders around the layout
  split: str  # as the folder is called, or ''
  class_name: str
  file: str

  @property
  def place(self) -> str:
    """The path from the folder that holds the splits or classes."""
    parts = (self.split, self.class_name, self.file)
    return '/'.join(part for part in parts if part)


def check_options(options: dict[str, Any]) -> None:
  """Raises UserError where an option's value is not allowed."""
  if options['channels'] not in (1, 3):
    raise UserError(
      f"option 'channels' of image_folder is {options['channels']}, expected "
      '1 or 3'
    )
  classes = options['classes']
  if len(set(classes)) < len(classes) or len(classes) == 1:
    raise UserError(
      f"option 'classes' of image_folder is {','.join(classes)}, expected at "
      'least two names, each once'
    )


def class_names_in(
  source: sources.Source, options: dict[str, Any]
) -> tuple[str, ...]:
  """Names of the classes: the option's, or the folders'.

  Raises:
    UserError: the source is no such layout, has other classes than the
      option, or two that differ in capitals alone.
  """
  found = sorted({picture.class_name for picture in _pictures(source)})
  if len(found) < 2:
    raise UserError(
      f'{source.path}: pictures of one class alone, {found[0]}; at least two '
      'class folders are expected'
    )
  for one, other in itertools.combinations(found, 2):
    if one.casefold() == other.casefold():
      raise UserError(
        f'{source.path}: class folders {one!r} and {other!r} differ in '
        'capitals alone; one name for a class is expected'
      )
  wanted = tuple(map(sources.composed, options['classes']))
  if not wanted:
    return tuple(found)
  for name in wanted:
    if name not in found:
      raise UserError(
        f"{source.path}: no pictures of class {name!r} of the option 'classes';"
        f' there are {", ".join(found)}'
      )
  for name in found:
    if name not in wanted:
      raise UserError(
        f"{source.path}: the option 'classes' lacks the class folder {name!r}; "
        f'it is {",".join(wanted)}'
      )
  return wanted


def examples(
  source: sources.Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Pictures in the order of their paths.

  See `registry` for the contract.

  Raises:
    UserError: the source is no such layout, or the csv of subjects is not of
      its pictures.
  """
  pictures = _pictures(source)
  labels = {name: i for i, name in enumerate(class_names_in(source, options))}
  subjects = _read_subjects(source, options['subjects'], pictures)
  intake.notes['other_files'] = len(source.members) - len(pictures)
  intake.expect(len(pictures))
  by_name = {picture.name: picture for picture in pictures}

  def describe(name: str) -> dict[str, Any]:
    picture = by_name[name]
    example = {
      'id': f'image_folder/{picture.place}',
      'label': labels[picture.class_name],
      'official_split': SPLITS.get(picture.split.lower(), 'none'),
    }
    if subjects:
      example['subject'] = subjects[picture.place]
    return example

  yield from layout.examples(
    source,
    by_name,
    describe,
    intake,
    channels=options['channels'],
    upright=True,
  )


def _locate(source: sources.Source, name: str) -> _Picture:
  *folders, file = name.split('/')
  if not folders or folders[-1].lower() in SPLITS:
    raise UserError(
      f'{source.label(name)}: a picture in no class folder; <split>/<class>/'
      '<file> or <class>/<file> are expected'
    )
  *outer, class_name = folders
  split = outer.pop() if outer and outer[-1].lower() in SPLITS else ''
  return _Picture(name, '/'.join(outer), split, class_name, file)


def _pictures(source: sources.Source) -> list[_Picture]:
  """All pictures, of one layout and in one place."""
  pictures = [
    _locate(source, name) for name in source.members if layout.is_picture(name)
  ]
  if not pictures:
    raise UserError(
      f'{source.path}: no pictures in it; folders <split>/<class> or <class> '
      f'with {", ".join(layout.PICTURE_SUFFIXES)} files are expected'
    )
  forms = collections.Counter((p.base, bool(p.split)) for p in pictures)
  if len(forms) > 1:
    usual, rare = forms.most_common()[0][0], forms.most_common()[-1][0]
    one, other = (
      next(p.name for p in pictures if (p.base, bool(p.split)) == form)
      for form in (rare, usual)
    )
    raise UserError(
      f'{source.path}: {one} is in another layout or another folder than '
      f'{other}; one of <split>/<class>/<file> and <class>/<file>, '
      'in one place, is expected'
    )
  return pictures


def _read_subjects(
  source: sources.Source, table: str, pictures: list[_Picture]
) -> dict[str, str]:
  """The subject of every picture by its place; none without a csv."""
  if not table:
    return {}
  name = layout.require(source, table, "the csv of the option 'subjects'")
  places = {picture.place for picture in pictures}
  subjects: dict[str, str] = {}
  for where, fields in layout.csv_rows(source, name, ('file', 'subject')):
    place = fields['file'].replace('\\', '/').removeprefix('./')
    if place not in places:
      raise UserError(
        f'{where}: no picture {place!r}; a path as {pictures[0].place!r} is '
        'expected'
      )
    if place in subjects:
      raise UserError(f'{where}: {place!r} occurs twice')
    if not fields['subject']:
      raise UserError(f'{where}: no subject of {place!r}')
    subjects[place] = fields['subject']
  for picture in pictures:
    if picture.place not in subjects:
      raise UserError(
        f'{source.label(name)}: no row for the picture {picture.place!r}; '
        f'{len(places) - len(subjects):,} pictures are without one'
      )
  return subjects
