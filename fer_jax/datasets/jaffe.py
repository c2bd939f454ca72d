"""JAFFE: 213 posed faces of ten Japanese women.

Lyons et al., Coding facial expressions with Gabor wavelets, FG 1998; from
Zenodo (doi 10.5281/zenodo.3451524). Grey pictures of 256 x 256, three or four
of each person and expression. Accepted in a folder, zip or tar, below any
folders:

  KA.AN1.39.tiff    person KA, expression AN (angry), DI (disgust), FE (fear),
                    HA (happy), NE (neutral), SA (sad) or SU (surprise) with
                    its take, and the picture's number

Files that are no pictures are passed over. There is no official split; whoever
splits this set keeps each person on one side.
"""

import re
from collections.abc import Iterator
from typing import Any

from fer_jax.datasets import layout
from fer_jax.datasets.sources import Source
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
DESCRIPTION = '213 grey 256x256 posed faces, 10 women, 7 expressions'
LICENCE = (
  'from Zenodo, on request: non-commercial research with its source cited, do '
  'not redistribute'
)
OPTIONS: dict[str, Any] = {}
NEEDS_SOURCE = True
OFFICIAL_COUNTS = {'none': (30, 29, 32, 31, 31, 30, 30)}

_SIDE = 256
_LABELS = {'AN': 0, 'DI': 1, 'FE': 2, 'HA': 3, 'SA': 4, 'SU': 5, 'NE': 6}
_NAME = re.compile(
  rf'(?P<subject>[A-Z]{{2}})\.(?P<expression>{"|".join(_LABELS)})\d+\.\d+\.\w+',
  # Of ASCII: a dotted capital I is no I once it is in upper case.
  re.IGNORECASE | re.ASCII,
)


def examples(
  source: Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Pictures in the order of their names.

  See `registry` for the contract.

  Raises:
    UserError: there is no picture in the source.
  """
  del options
  shown = [name for name in source.members if layout.is_picture(name)]
  if not shown:
    raise UserError(
      f'{source.path}: no picture in it; files such as KA.AN1.39.tiff are '
      'expected'
    )
  intake.notes['other_files'] = len(source.members) - len(shown)
  intake.expect(len(shown))
  yield from layout.examples(
    source, shown, _describe, intake, size=(_SIDE, _SIDE), channels=1
  )


def _describe(name: str) -> dict[str, Any]:
  """What a picture's name says.

  Raises:
    ValueError: it has another form.
  """
  file = name.rsplit('/', 1)[-1]
  found = _NAME.fullmatch(file)
  if found is None:
    raise ValueError(
      'a name such as KA.AN1.39.tiff is expected: person, expression '
      f'({", ".join(_LABELS)}) with its take, number'
    )
  return {
    'id': f'jaffe/{file.rsplit(".", 1)[0].upper()}',
    'label': _LABELS[found['expression'].upper()],
    'official_split': 'none',
    'subject': found['subject'].upper(),
  }
