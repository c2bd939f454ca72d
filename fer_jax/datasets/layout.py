"""Reading the layouts that data sets are published in.

Users unpack, move and rename the outermost folders of what they download, so
a layout is known by the ends of its members' paths, never by their beginning.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fer_jax.datasets import pictures
from fer_jax.datasets.sources import Source, composed
from fer_jax.errors import UserError

PICTURE_SUFFIXES = (
  '.jpg',
  '.jpeg',
  '.jfif',
  '.png',
  '.bmp',
  '.tif',
  '.tiff',
  '.webp',
  '.pgm',
  '.ppm',
)
# Pictures as well, which are named rather than passed over.
_UNREAD_SUFFIXES = ('.gif', '.heic', '.heif', '.avif', '.jp2')
# No picture of a face set and no list of its labels is near these sizes.
LONGEST_PICTURE_FILE = 1 << 24
LONGEST_TEXT_FILE = 1 << 26


def is_picture(name: str) -> bool:
  """Whether a member's name is that of a picture, which may be unreadable."""
  return name.lower().endswith((*PICTURE_SUFFIXES, *_UNREAD_SUFFIXES))


def find(source: Source, tail: str) -> str | None:
  """The member whose path ends in `tail`, part by part, in any case.

  Args:
    source: what the user gave.
    tail: such as 'EmoLabel/list_patition_label.txt'.

  Returns:
    Its name, or None where there is no such member.

  Raises:
    UserError: there are several.
  """
  wanted = composed(tail).lower().split('/')
  found = [
    name
    for name in source.members
    if name.lower().split('/')[-len(wanted) :] == wanted
  ]
  if len(found) > 1:
    raise UserError(f'{source.path}: several {tail}: {", ".join(found)}')
  return found[0] if found else None


def require(source: Source, tail: str, purpose: str) -> str:
  """As `find`; a member that is not there is an error that says its purpose.

  Raises:
    UserError: there is none, or several.
  """
  found = find(source, tail)
  if found is None:
    raise UserError(f'{source.path}: no {tail} in it, {purpose}')
  return found


def folder(source: Source, tail: str) -> dict[str, str]:
  """What lies directly in the folder whose path ends in `tail`, in any case.

  Args:
    source: what the user gave.
    tail: such as 'Image/aligned', part by part as in `find`.

  Returns:
    Members by their file names; none where there is no such folder.

  Raises:
    UserError: there are several.
  """
  wanted = tail.lower().split('/')
  found: dict[str, dict[str, str]] = {}
  for name in source.members:
    parent, _, file = name.rpartition('/')
    if parent.lower().split('/')[-len(wanted) :] == wanted:
      found.setdefault(parent, {})[file] = name
  if len(found) > 1:
    raise UserError(
      f'{source.path}: several folders {tail}: {", ".join(found)}'
    )
  return next(iter(found.values()), {})


def lines(source: Source, name: str) -> Iterator[tuple[str, str]]:
  """Lines of a text file that are not blank.

  Yields:
    (where, text): where is as 'labels.txt line 3', text without blanks at
    its ends, `composed` as names of members are.

  Raises:
    UserError: not a text file in UTF-8, or one of absurd size.
  """
  label = source.label(name)
  if source.member_size(name) > LONGEST_TEXT_FILE:
    raise UserError(
      f'{label}: {source.member_size(name):,} bytes; a text file of at most '
      f'{LONGEST_TEXT_FILE:,} is expected'
    )
  try:
    text = source.read(name).decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{label}: not a text file in UTF-8 (byte {error.start:,})'
    ) from None
  if '\x00' in text:
    raise UserError(f'{label}: not a text file (it holds null bytes)')
  text = io.StringIO(composed(text), newline=None)
  for number, line in enumerate(text, 1):
    if line.strip():
      yield f'{label} line {number:,}', line.strip()


def csv_rows(
  source: Source, name: str, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of a csv file with a header line.

  Args:
    source: what the user gave.
    name: the member.
    columns: those the file must have, in any order and case; others are
      passed on too, in lower case.

  Yields:
    (where, fields by the names in lower case).

  Raises:
    UserError: no header, a column missing or twice, or a row with another
      number of fields.
  """
  header: list[str] = []
  for where, text in lines(source, name):
    try:
      fields = [f.strip() for f in next(csv.reader([text], strict=True))]
    except csv.Error as error:
      raise UserError(f'{where}: not a csv row ({error})') from None
    if not header:
      header = [field.lower() for field in fields]
      for column in (c.lower() for c in columns):
        if header.count(column) != 1:
          how = 'occurs twice' if column in header else 'is missing'
          raise UserError(
            f'{where}: column {column!r} {how}; a header line with '
            f'{", ".join(columns)}, parted by commas, is expected'
          )
      continue
    if len(fields) != len(header):
      raise UserError(
        f'{where}: {len(fields)} fields where the header has {len(header)}'
      )
    yield where, dict(zip(header, fields, strict=True))
  if not header:
    raise UserError(f'{source.label(name)}: an empty file')


def examples(
  source: Source,
  names: Iterable[str],
  describe: Callable[[str], dict[str, Any]],
  intake: Any,
  **how: Any,
) -> Iterator[dict[str, Any]]:
  """Examples of one picture each; bad ones go to `intake`.

  Args:
    source: what the user gave.
    names: members, in the order of the examples.
    describe: gives all of a member's example but the image; raises ValueError
      where there is none.
    intake: see `registry`.
    **how: as for `read_picture`.
  """
  seen: set[str] = set()
  for name in names:
    try:
      example = describe(name)
      if example['id'] in seen:
        raise ValueError('a second copy of this picture')
      seen.add(example['id'])
      example['image'] = read_picture(source, name, **how)
    except ValueError as error:
      intake.reject(source.label(name), str(error))
      continue
    yield example


def read_picture(
  source: Source,
  name: str,
  *,
  size: tuple[int, int] | None = None,
  channels: int | None = None,
  to_grey: Callable[[np.ndarray], np.ndarray] = pictures.to_grey,
  upright: bool = False,
) -> np.ndarray | bytes:
  """A picture as an example holds it: its own bytes where they can be kept.

  Args:
    source: what the user gave.
    name: the member.
    size: (height, width) in pixels that it must have; None for any.
    channels: 1 or 3, what the set has; a picture of the other kind is
      converted. None keeps the picture's own.
    to_grey: makes RGB (H, W, 3) grey (H, W, 1), by its luma unless told
      otherwise; raises ValueError where it should not be.
    upright: turns it as its camera noted, and gives an array then.

  Raises:
    ValueError: not a picture, one of a kind that is not read, or of another
      size.
  """
  if name.lower().endswith(_UNREAD_SUFFIXES):
    raise ValueError(
      f'pictures of this kind are not read; {", ".join(PICTURE_SUFFIXES)} are'
    )
  encoded = picture_bytes(source, name)
  decode = pictures.decode_upright if upright else pictures.decode_with_format
  image, form = decode(encoded)
  height, width, found = image.shape
  if size is not None and (height, width) != size:
    raise ValueError(
      f'{width}x{height} pixels where {size[1]}x{size[0]} are expected'
    )
  if channels is None or found == channels:
    return encoded if form in pictures.STORED_FORMATS else image
  return to_grey(image) if channels == 1 else np.repeat(image, 3, -1)


def picture_bytes(source: Source, name: str) -> bytes:
  """A picture file's bytes.

  Raises:
    ValueError: far more than a picture has.
  """
  if source.member_size(name) > LONGEST_PICTURE_FILE:
    raise ValueError(f'a picture file of {source.member_size(name):,} bytes')
  return source.read(name)
