"""OAHEGA: colour crops of faces from social networks, six classes.

Kovenko and Shevchuk, OAHEGA: emotion recognition dataset, Mendeley Data 2021
(doi 10.17632/5ck5zz6f2c). Gathered from social networks, frames of YouTube
videos, IMDB and AffectNet; about 17,000 crops of any size by the paper that
uses it, no official split. Accepted, as a folder, zip, tar or compressed tar,
with any folders around it:

  Ahegao|Angry|Happy|Neutral|Sad|Surprise/<file>   RGB, any size
  data.csv                                         optional: columns path and
                                                   label, others are not
                                                   looked at

A path of data.csv is known by its end, <class>/<file> or the file alone; where
there is a data.csv, it has to list every picture once, under its own class.
"""

from collections.abc import Iterator
from typing import Any

from fer_jax.datasets import layout, sources
from fer_jax.errors import UserError

CLASS_NAMES = ('Ahegao', 'Angry', 'Happy', 'Neutral', 'Sad', 'Surprise')
VERSION = '1.1.0'
DESCRIPTION = 'About 17,000 colour crops of faces from the web, 6 classes'
LICENCE = (
  'from Mendeley Data (doi 10.17632/5ck5zz6f2c) under the terms stated there; '
  'the pictures are of social networks and others: research use only'
)
OPTIONS: dict[str, Any] = {}
NEEDS_SOURCE = True
# As of FER2013's; not measured on this set.
NEAR_TWINS_ARE_COPIES = True


def examples(
  source: sources.Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Pictures, class by class, in the order of their names.

  See `registry` for the contract.

  Raises:
    UserError: a class is missing, or data.csv is of other pictures.
  """
  del options
  pictures = {
    f'{class_name}/{file}': name
    for class_name in CLASS_NAMES
    for file, name in _class_folder(source, class_name).items()
  }
  table = layout.find(source, 'data.csv')
  if table is not None:
    _check_table(source, table, pictures)
  places = {name: place for place, name in pictures.items()}
  outside = [
    name
    for name in source.members
    if layout.is_picture(name) and name not in places
  ]
  intake.notes['data_csv'] = table is not None
  intake.expect(len(pictures))
  for name in outside:
    intake.reject(
      source.label(name),
      f'a picture outside the folders {", ".join(CLASS_NAMES)}',
    )

  def describe(name: str) -> dict[str, Any]:
    return {
      'id': f'oahega/{places[name]}',
      'label': CLASS_NAMES.index(places[name].partition('/')[0]),
      'official_split': 'none',
    }

  yield from layout.examples(source, places, describe, intake, channels=3)


def _class_folder(source: sources.Source, class_name: str) -> dict[str, str]:
  """Pictures of a class by their file names."""
  files = {
    file: name
    for file, name in layout.folder(source, class_name).items()
    if layout.is_picture(file)
  }
  if not files:
    raise UserError(
      f'{source.path}: no folder {class_name} with pictures in it; the folders '
      f'{", ".join(CLASS_NAMES)} are expected (a part of the set can be built '
      'as an image_folder)'
    )
  return files


def _check_table(
  source: sources.Source, table: str, pictures: dict[str, str]
) -> None:
  """Raises UserError at the first difference of data.csv and the folders."""
  seen: set[str] = set()
  for where, fields in layout.csv_rows(source, table, ('path', 'label')):
    path, label = fields['path'].replace('\\', '/'), fields['label']
    if label not in CLASS_NAMES:
      raise UserError(
        f'{where}: unknown label {label!r}; {", ".join(CLASS_NAMES)} are '
        'expected'
      )
    *folders, file = path.split('/')
    place = f'{label}/{file}'
    if folders and folders[-1].lower() != label.lower():
      raise UserError(
        f'{where}: label {label} of {path!r}, which is in another folder'
      )
    if place not in pictures:
      raise UserError(
        f'{where}: no picture {place}; was the set extracted in part?'
      )
    if place in seen:
      raise UserError(f'{where}: {place} occurs twice')
    seen.add(place)
  for place in pictures:
    if place not in seen:
      raise UserError(
        f'{source.label(table)}: no row for the picture {place}; '
        f'{len(pictures) - len(seen):,} pictures are without one'
      )
