"""The page of an audit: its figures, and the pairs side by side."""

from typing import Any

import numpy as np

from fer_jax.data import audit, resize
from fer_jax.datasets.dataset import Dataset
from fer_jax.evaluation import page, pictures, wording
from fer_jax.evaluation.page import Html

SEEN = {
  'itself': 'itself',
  'exact_copy': 'an exact copy',
  'twin': 'a near twin (copies included)',
  'mirrored': 'only a mirrored twin',
  'subject': 'its person',
  'sequence': 'its recording',
}
"""What of a test example may be in training, as a reader is told."""

COVERAGE = {
  'several': 'examples in the test of several folds',
  'none': 'examples in the test of no fold',
}
"""What the tests of all folds together hold, as a reader is told."""

LARGEST = 256
"""Pixels a side: a page holds its pictures, and photographs have megabytes."""

SAID = {True: 'leaks', False: 'honest', None: 'cannot be told'}
"""What a protocol says of itself."""


def render(
  result: dict[str, Any],
  dataset: Dataset,
  pairs: list[audit.Pairs],
  other: Dataset | None = None,
) -> str:
  """The page.

  Args:
    result: of the verb `audit`.
    dataset: what was audited.
    pairs: to show; those of `overlap` name rows of `other` second.
    other: the set that it was compared with.
  """
  title = f'Audit of {dataset.name}'
  content: list[object] = [
    page.tag('h1', title),
    page.tag(
      'p',
      f'{len(dataset):,} examples, checksum ',
      page.code(dataset.checksum[:12]),
      class_='lead',
    ),
  ]
  if result['protocols']:
    content += [_verdict(result), _protocols(result['protocols'])]
  content.append(_set(result['dataset_figures']))
  if result.get('overlap'):
    content.append(_overlap(result['overlap']))
  for kind in pairs:
    second = (
      other if other is not None and kind.title == audit.IN_BOTH else None
    )
    content.append(_pairs(dataset, second or dataset, kind))
  return page.document(title, *content)


def _verdict(result: dict[str, Any]) -> Html:
  first = result['protocols'][0]
  clean = first['protocol']['leaks'] is False and (
    not first['figures']['leak_found']
  )
  return page.tag(
    'div',
    page.tag('p', page.tag('strong', result['verdict'])),
    page.tag('p', first['protocol']['reason']),
    class_=f'notice {"clean" if clean else "leaks"}',
  )


def _protocols(protocols: list[dict[str, Any]]) -> Html:
  headers = ['Of the test, in training or validation']
  headers += [entry['protocol']['name'] for entry in protocols]
  shares = [entry['figures']['share_of_test_seen'] for entry in protocols]
  rows = [
    [said, *(wording.percent(share[key]) for share in shares)]
    for key, said in SEEN.items()
    if any(share[key] is not None for share in shares)
  ]
  for key, said in COVERAGE.items():
    cells = covered(protocols, key)
    if cells:
      rows.append([said, *cells])
  rows += [[said, *cells] for said, cells in baselines(protocols)]
  for side in ('train', 'validation', 'test'):
    counts = (examples(entry['figures'], side) for entry in protocols)
    rows.append([f'examples in {side}', *counts])
  if audited(protocols):
    rows.append(['folds audited together', *audited(protocols)])
  rows.append(
    [
      'says of itself',
      *(SAID[e['protocol']['leaks']] for e in protocols),
    ]
  )
  return page.section(
    'Protocols',
    page.table('What each protocol lets through', headers, rows),
  )


def baselines(protocols: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
  """What learns nothing: what is measured, and its figure of each protocol."""
  shares = [entry['figures']['share_of_test_seen'] for entry in protocols]
  compared = any(share['twin'] is not None for share in shares)
  left_out = 'copies and near twins' if compared else 'copies'
  neighbours = [entry['figures']['nearest_neighbour'] for entry in protocols]
  return [
    (said, [wording.percent(n[key]) for n in neighbours])
    for key, said in (
      ('accuracy', 'accuracy of 1-nearest-neighbour on raw pixels'),
      ('accuracy_without_seen', f'the same, without {left_out}'),
      ('majority_class', 'accuracy of always naming the largest class'),
    )
  ]


def examples(figures: dict[str, Any], side: str) -> str:
  """How many are on a side: from the least to the most of all folds."""
  counts = [one['sizes'][side] for one in figures.get('each', [figures])]
  least, most = min(counts), max(counts)
  return f'{least:,}' if least == most else f'{least:,}–{most:,}'


def audited(protocols: list[dict[str, Any]]) -> list[str]:
  """How many folds of each protocol; [] where none has folds."""
  folds = [entry['figures']['folds'] for entry in protocols]
  if not any(folds):
    return []
  return [
    f'{len(f["audited"])} of {f["folds"]}' if f else wording.MISSING
    for f in folds
  ]


def covered(protocols: list[dict[str, Any]], key: str) -> list[str]:
  """How many examples, of `COVERAGE`, of each protocol; [] where none has
  folds."""
  folds = [entry['figures']['folds'] for entry in protocols]
  if not any(folds):
    return []
  return [wording.MISSING if f is None else f'{f[key]:,}' for f in folds]


def _set(figures: dict[str, Any]) -> Html:
  rows = [
    (name.replace('_', ' '), 'not compared' if value is None else f'{value:,}')
    for name, value in figures.items()
  ]
  return page.section('The data set alone', page.facts(rows))


def _overlap(figures: dict[str, Any]) -> Html:
  return page.section(
    'Photographs in both sets', page.facts(shared_photographs(figures))
  )


def shared_photographs(figures: dict[str, Any]) -> list[tuple[str, str]]:
  """(data set, how many of its examples are in the other one) of each."""
  rows = []
  for side in (figures['first'], figures['second']):
    near = side['twins']
    counted = '' if near is None else f', {near:,} with a near or mirrored twin'
    rows.append(
      (
        side['name'],
        f'{side["exact_copies"]:,} of {side["examples"]:,} with an exact copy '
        f'in the other{counted}',
      )
    )
  return rows


def _pairs(first: Dataset, second: Dataset, pairs: audit.Pairs) -> Html:
  faces = []
  ours, theirs = first.each(pairs.rows[:, 0]), second.each(pairs.rows[:, 1])
  for (a, b), one, other, correlation in zip(
    pairs.rows, ours, theirs, pairs.correlation, strict=True
  ):
    image = side_by_side(one, other)
    names = [
      f'{dataset.table["id"][row]} '
      f'({dataset.class_names[dataset.table["label"][row]]})'
      for dataset, row in ((first, a), (second, b))
    ]
    faces.append(
      page.figure(
        pictures.png(image),
        f'{names[0]} beside {names[1]}',
        *(page.line(page.code(name)) for name in names),
        page.line(f'correlation {correlation:.3f}'),
      )
    )
  return page.section(pairs.title, page.tag('div', *faces, class_='faces wide'))


def side_by_side(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """uint8 (H, W, 3): two images, or the middle frames of two clips.

  Each of at most `LARGEST` pixels a side.
  """
  still = [
    pictures.rgb(_shrunk(image[len(image) // 2] if image.ndim == 4 else image))
    for image in (one, other)
  ]
  height = max(image.shape[0] for image in still)
  gap = np.full((height, 2, 3), 255, np.uint8)
  padded = [
    np.pad(
      image,
      ((0, height - image.shape[0]), (0, 0), (0, 0)),
      constant_values=255,
    )
    for image in still
  ]
  return np.concatenate([padded[0], gap, padded[1]], axis=1)


def _shrunk(image: np.ndarray) -> np.ndarray:
  height, width, channels = image.shape
  scale = min(LARGEST / max(height, width), 1)
  size = (max(round(scale * height), 1), max(round(scale * width), 1))
  return resize.convert(image, size=size, channels=channels)
