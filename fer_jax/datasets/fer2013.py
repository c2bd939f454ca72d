"""FER2013: 48 x 48 grey faces of the ICML 2013 representation challenge.

Goodfellow et al., Challenges in representation learning: a report on three
machine learning contests, ICONIP 2013 (arXiv 1307.0414). 35,887 pictures
gathered by image search, seven labels. Accepted, as such or in a zip, tar or
compressed tar:

  fer2013.csv, icml_face_data.csv   columns emotion, pixels and Usage in any
                                    order, spaces around names allowed
  train|test/<class>/<file>         pictures of 48 x 48; what is in test is
                                    told apart by the file names' prefixes
                                    PublicTest_ and PrivateTest_, where they
                                    have one

Usage becomes the official split: Training is `train`, PublicTest `validation`,
PrivateTest `test`. Pictures of a test folder without prefixes get the split
`test_unsplit`: nothing can be selected on them, for half of them are the test.
"""

import csv
import functools
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fer_jax.datasets import layout, sources
from fer_jax.errors import UserError

CLASS_NAMES = (
  'angry',
  'disgust',
  'fear',
  'happy',
  'sad',
  'surprise',
  'neutral',
)
VERSION = '1.0.0'
DESCRIPTION = '35,887 grey 48x48 faces from image search, 7 emotions'
LICENCE = (
  'from the ICML 2013 challenge; the pictures carry no clear licence: research '
  'use only, do not redistribute'
)
OPTIONS: dict[str, Any] = {}
NEEDS_SOURCE = True
NEAR_TWINS_ARE_COPIES = True
CSV_NAMES = ('fer2013.csv', 'icml_face_data.csv')
OFFICIAL_COUNTS = {
  'train': (3995, 436, 4097, 7215, 4830, 3171, 4965),
  'validation': (467, 56, 496, 895, 653, 415, 607),
  'test': (491, 55, 528, 879, 594, 416, 626),
}

SIDE = 48
_PIXELS = SIDE * SIDE
USAGES = {
  b'Training': 'train',
  b'PublicTest': 'validation',
  b'PrivateTest': 'test',
}
_COLUMNS = ('emotion', 'pixels', 'usage')
_LABELS = {str(label).encode(): label for label in range(len(CLASS_NAMES))}
_DIGITS_AND_BLANKS = b'0123456789 '
# Four characters a pixel are 9,216; a longer line is not a row.
_LONGEST_LINE = 1 << 17

_CLASS_FOLDERS = {
  **{name: label for label, name in enumerate(CLASS_NAMES)},
  **{str(label): label for label in range(len(CLASS_NAMES))},
  'anger': 0,
  'disgusted': 1,
  'fearful': 2,
  'happiness': 3,
  'sadness': 4,
  'surprised': 5,
}
_SPLIT_FOLDERS = {
  'train': 'train',
  'training': 'train',
  'test': 'test_unsplit',
  'testing': 'test_unsplit',
  'publictest': 'validation',
  'privatetest': 'test',
}
_PREFIXES = {
  'training_': 'train',
  'publictest_': 'validation',
  'privatetest_': 'test',
}
# Saving a grey picture as colour JPEG moves its channels apart by a few.
_GREY_TOLERANCE = 16


def examples(
  source: sources.Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Rows of the csv, or pictures of the folders in the order of their names.

  See `registry` for the contract.

  Raises:
    UserError: the source is no form of FER2013.
  """
  del options
  table = find_csv(source)
  if table is not None:
    intake.notes['layout'] = 'csv'
    for row in csv_rows(source, table, intake):
      yield {
        'id': f'fer2013/{row.number:05d}',
        'label': row.label,
        'official_split': row.split,
        'image': row.image,
      }
  else:
    intake.notes['layout'] = 'folders'
    yield from _folder_examples(source, intake)


def find_csv(source: sources.Source) -> str | None:
  """The member that is the challenge's table, or None for folders."""
  if source.kind == 'file':
    return source.members[0]
  for wanted in CSV_NAMES:
    found = [
      name
      for name in source.members
      if name.rsplit('/', 1)[-1].lower() == wanted
    ]
    if len(found) > 1:
      raise UserError(f'{source.path}: several {wanted}: {", ".join(found)}')
    if found:
      return found[0]
  return None


def _show(field: bytes) -> str:
  """A field for a message, kept to one short line."""
  text = field.decode('utf-8', 'replace')
  return repr(text if len(text) <= 40 else f'{text[:37]}...')


def _fields(line: bytes) -> list[bytes]:
  """The fields of one line.

  Raises:
    ValueError: quotes that do not match.
  """
  line = line.rstrip(b'\r\n')
  if b'"' not in line:
    return line.split(b',')
  try:
    row = next(csv.reader([line.decode('utf-8', 'replace')], strict=True))
  except csv.Error as error:
    raise ValueError(f'not a csv row ({error})') from None
  return [field.encode() for field in row]


def _read_header(stream: BinaryIO, label: str) -> tuple[list[int], int, bytes]:
  """Positions of emotion, pixels and usage; number of columns; the line."""
  line = stream.readline(_LONGEST_LINE)
  text = line.removeprefix(b'\xef\xbb\xbf')
  expected = 'a header line with emotion, pixels and Usage is expected'
  if b'\x00' in text:
    raise UserError(f'{label} line 1: not a UTF-8 text file; {expected}')
  try:
    columns = [field.decode().strip().lower() for field in _fields(text)]
  except ValueError:
    raise UserError(f'{label} line 1: not a csv header; {expected}') from None
  for column in _COLUMNS:
    if columns.count(column) > 1:
      raise UserError(f'{label} line 1: column {column!r} occurs twice')
    if column not in columns:
      raise UserError(
        f'{label} line 1: no column {column!r} in {_show(text.rstrip())}; '
        f'{expected}'
      )
  return [columns.index(column) for column in _COLUMNS], len(columns), text


def parse_pixels(field: bytes) -> np.ndarray:
  """uint8 (2304,) pixels of a row from text such as b'70 80 82'.

  Raises:
    ValueError: too few or too many, not a whole number, outside 0 to 255.
  """
  # Digits and blanks alone are safe to leave to NumPy, four times faster than
  # a loop; anything else is looked at token by token, to name it.
  if field.translate(None, _DIGITS_AND_BLANKS):
    values = np.array([_parse_pixel(token) for token in field.split()])
  else:
    values = np.fromstring(field, np.int64, sep=' ')
  if values.size != _PIXELS:
    raise ValueError(
      f'{values.size:,} pixels where {_PIXELS:,} ({SIDE}x{SIDE}) are expected'
    )
  if values.max() > 255:
    raise ValueError(f'pixel {values.max()} is outside 0 to 255')
  return values.astype(np.uint8)


def _parse_pixel(token: bytes) -> int:
  digits = token.removeprefix(b'-')
  if not digits.isdigit():
    raise ValueError(f'pixel {_show(token)} is not a whole number')
  if len(digits) > 9 or not 0 <= int(token) <= 255:
    raise ValueError(f'pixel {_show(token)} is outside 0 to 255')
  return int(token)


def _parse_row(
  line: bytes, columns: list[int], count: int
) -> tuple[int, np.ndarray, str]:
  """Label, pixels and split of one line.

  Raises:
    ValueError: what is wrong with it.
  """
  fields = _fields(line)
  if len(fields) != count:
    raise ValueError(f'{len(fields)} fields where {count} are expected')
  emotion, pixels, usage = (fields[column].strip() for column in columns)
  label = _LABELS.get(emotion)
  if label is None:
    raise ValueError(f'unknown label {_show(emotion)}; 0 to 6 are expected')
  split = USAGES.get(usage)
  if split is None:
    known = ', '.join(name.decode() for name in USAGES)
    raise ValueError(f'unknown usage {_show(usage)}; {known} are expected')
  return label, parse_pixels(pixels), split


class _Line(NamedTuple):
  """A line of the table, below its header, that is not blank."""

  row: int  # from 0
  where: str
  content: bytes
  fault: str  # why it is no row at all, or ''
  cut: str  # what any complaint of it ends with, or ''
  consumed: int  # bytes of the file up to its end


def _data_lines(stream: BinaryIO, label: str, header: bytes) -> Iterator[_Line]:
  header = header.strip()
  consumed, number, row = len(header), 1, -1
  next_line = functools.partial(stream.readline, _LONGEST_LINE)
  for content in iter(next_line, b''):
    number += 1
    consumed += len(content)
    if not content.strip():
      continue
    row += 1
    fault = ''
    whole = content.endswith(b'\n')
    if not whole and len(content) == _LONGEST_LINE:
      # The rest of it is passed over in pieces, never held at once.
      for piece in iter(next_line, b''):
        if piece.endswith(b'\n'):
          break
      fault = f'a line of over {_LONGEST_LINE:,} bytes'
    elif content.strip() == header:
      fault = 'a second header line'
    yield _Line(
      row,
      f'{label} line {number:,} (data row {row + 1:,})',
      content,
      fault,
      '' if whole else ' (the last line: is the file cut?)',
      consumed,
    )


class CsvRow(NamedTuple):
  """A good row of the table."""

  number: int  # from 0, bad rows counted too
  label: int
  split: str
  image: np.ndarray  # uint8 (48, 48, 1)


def csv_rows(
  source: sources.Source, member: str, intake: Any
) -> Iterator[CsvRow]:
  """Good rows of the challenge's table; bad ones go to `intake`.

  Raises:
    UserError: a header that is none, or no rows.
  """
  label_of_file = source.label(member)
  size = source.member_size(member)
  row = -1
  with source.open(member) as stream:
    columns, count, header = _read_header(stream, label_of_file)
    for line in _data_lines(stream, label_of_file, header):
      row = line.row
      try:
        if line.fault:
          raise ValueError(line.fault)
        label, pixels, split = _parse_row(line.content, columns, count)
      except ValueError as error:
        intake.reject(line.where, f'{error}{line.cut}')
        continue
      if row == 100:
        intake.expect(round(size / line.consumed * (row + 1)))
      yield CsvRow(row, label, split, pixels.reshape(SIDE, SIDE, 1))
  if row < 0:
    raise UserError(f'{label_of_file}: a header and no rows')


def csv_splits(source: sources.Source, member: str) -> list[str]:
  """Official split of every row of the table, '' of one without a usage.

  Raises:
    UserError: a header that is none.
  """
  label = source.label(member)
  with source.open(member) as stream:
    columns, _, header = _read_header(stream, label)
    return [
      _split_of(line.content, columns[-1])
      for line in _data_lines(stream, label, header)
    ]


def _split_of(line: bytes, column: int) -> str:
  try:
    return USAGES.get(_fields(line)[column].strip(), '')
  except (ValueError, IndexError):
    return ''


def _grey(image: np.ndarray) -> np.ndarray:
  """uint8 (H, W, 1) of a grey picture that was saved in colour (H, W, 3).

  Raises:
    ValueError: it has colours.
  """
  if np.ptp(image, axis=-1).max() > _GREY_TOLERANCE:
    raise ValueError('a colour picture where a grey one is expected')
  return image[..., 1:2]


def _folder_place(name: str) -> tuple[int, str]:
  """Label and official split from a member's path.

  Raises:
    ValueError: it is in no known folder.
  """
  parts = name.split('/')
  if len(parts) < 3 or parts[-3].lower() not in _SPLIT_FOLDERS:
    raise ValueError('a picture outside train|test/<class>/')
  label = _CLASS_FOLDERS.get(parts[-2].lower())
  if label is None:
    known = ', '.join(CLASS_NAMES)
    raise ValueError(f'unknown class folder {parts[-2]!r}; known are {known}')
  split = _SPLIT_FOLDERS[parts[-3].lower()]
  told = [
    usage
    for prefix, usage in _PREFIXES.items()
    if parts[-1].lower().startswith(prefix)
  ]
  if not told:
    return label, split
  if split == told[0] or (split == 'test_unsplit' and told[0] != 'train'):
    return label, told[0]
  raise ValueError(f'a {told[0]} file name in the folder {parts[-3]!r}')


def _folder_examples(
  source: sources.Source, intake: Any
) -> Iterator[dict[str, Any]]:
  inside = [
    name
    for name in source.members
    if layout.is_picture(name)
    or (
      name.split('/')[-3:-2] and name.split('/')[-3].lower() in _SPLIT_FOLDERS
    )
  ]
  if not any(name.split('/')[-3:-2] for name in inside):
    raise UserError(
      f'{source.path}: neither {" nor ".join(CSV_NAMES)} nor folders '
      'train|test/<class>/ with pictures in it'
    )
  intake.notes['other_files'] = len(source.members) - len(inside)
  intake.notes['test_unsplit'] = False
  intake.expect(len(inside))

  def describe(name: str) -> dict[str, Any]:
    label, split = _folder_place(name)
    return {
      'id': f'fer2013/{"/".join(name.split("/")[-3:])}',
      'label': label,
      'official_split': split,
    }

  for example in layout.examples(
    source,
    inside,
    describe,
    intake,
    size=(SIDE, SIDE),
    channels=1,
    to_grey=_grey,
  ):
    if example['official_split'] == 'test_unsplit':
      intake.notes['test_unsplit'] = True
    yield example
