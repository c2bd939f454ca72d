"""FER+: the rows joined, and what the votes come to.

The expected votes of every rule were worked out by hand from the steps of the
authors' code.
"""

import numpy as np
import pytest
import trees

from fer_jax import datasets
from fer_jax.data import resident
from fer_jax.datasets import ferplus
from fer_jax.errors import UserError

HEADER = (
  'Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,'
  'contempt,unknown,NF'
)
# Usage, image name, ten votes.
ROWS = [
  ('Training', 'fer0000000.png', '4,0,0,1,3,2,0,0,0,0'),  # no majority
  ('Training', 'fer0000001.png', '0,10,0,0,0,0,0,0,0,0'),  # happiness
  ('Training', '', '0,0,0,0,0,0,0,0,0,10'),  # not a face
  ('Training', 'fer0000002.png', '2,0,0,0,8,0,0,0,0,0'),  # anger
  ('PublicTest', 'fer0000002.png', '0,0,0,0,0,0,4,0,6,0'),  # unknown
  ('PublicTest', 'fer0000003.png', '5,0,0,3,1,0,0,0,1,0'),  # neutral, 5 of 8
  ('PrivateTest', 'fer0000004.png', '0,1,0,1,0,0,0,7,1,0'),  # contempt
]
SPLITS = {
  'Training': 'train',
  'PublicTest': 'validation',
  'PrivateTest': 'test',
}
KEPT = {1: 'happiness', 3: 'anger', 5: 'neutral', 6: 'contempt'}


def _image(row: int) -> np.ndarray:
  return trees.pixels(row, (48, 48), 1)


def _pictures(rows=ROWS, header='emotion,pixels,Usage') -> bytes:
  lines = [header]
  for i, (usage, _, _) in enumerate(rows):
    lines.append(f'0,{" ".join(map(str, _image(i).ravel()))},{usage}')
  return '\n'.join([*lines, '']).encode()


def _votes(rows=ROWS, header=HEADER) -> bytes:
  lines = [header, *(','.join(row) for row in rows), '']
  return '\r\n'.join(lines).encode()


def _files(pictures=ROWS, votes=ROWS) -> dict[str, bytes]:
  return {
    'fer/fer2013.csv': _pictures(pictures),
    'plus/fer2013new.csv': _votes(votes),
  }


def _build(tmp_path, files, form='folder', **options):
  source = trees.write(tmp_path / 'in', files, form)
  return datasets.build(
    'ferplus', data_dir=tmp_path / 'data', source=source, **options
  )


@pytest.mark.parametrize('form', ['folder', 'zip', 'tar.gz'])
def test_pictures_and_votes_are_joined_by_row(form, tmp_path):
  dataset = _build(tmp_path, _files(), form)
  rows = list(KEPT)
  assert dataset.class_names == tuple(HEADER.split(',')[2:10])
  assert dataset.table['id'].tolist() == [f'ferplus/{row:05d}' for row in rows]
  assert [dataset.class_names[label] for label in dataset.table['label']] == (
    list(KEPT.values())
  )
  assert dataset.table['official_split'].tolist() == [
    SPLITS[ROWS[row][0]] for row in rows
  ]
  for read in (dataset.read, dataset.read_records):
    for row, image in zip(rows, read(range(len(rows))), strict=True):
      np.testing.assert_array_equal(image, _image(row))
  # Under majority, one-hot: the votes of the winner alone.
  assert dataset.table['votes'].max(-1).tolist() == [10, 8, 5, 7]
  assert (dataset.table['votes'] > 0).sum(-1).tolist() == [1, 1, 1, 1]
  assert dataset.notes == {
    'rule': 'authors',
    'filtered': {'unknown': 1, 'not_a_face': 1, 'no_majority': 1},
    'rows_without_picture': 0,
  }


def test_the_other_name_and_other_columns(tmp_path):
  files = {
    'icml_face_data.csv': _pictures(header='emotion, pixels, Usage'),
    'fer2013new.csv': _votes(header=HEADER.replace('neutral', ' Neutral ')),
  }
  assert len(_build(tmp_path, files)) == len(KEPT)


def test_labels_shape_the_training_rows_alone(tmp_path):
  rows = [
    ('Training', 'a', '5,0,0,3,0,0,0,0,2,0'),
    ('Training', 'b', '1,0,0,4,0,0,5,0,0,0'),
    ('PublicTest', 'c', '5,0,0,3,0,0,0,0,2,0'),
    ('PublicTest', 'd', '1,0,0,6,0,0,3,0,0,0'),
  ]
  files = _files(rows, rows)
  dataset = _build(tmp_path, files, labels='probability')
  # The third has no majority (5 of 10), and a validation row needs one.
  ids = dataset.table['id'].tolist()
  assert ids == ['ferplus/00000', 'ferplus/00001', 'ferplus/00003']
  targets = resident.soft_targets(dataset, np.arange(3))
  np.testing.assert_allclose(targets[0], [5 / 8, 0, 0, 3 / 8, 0, 0, 0, 0])
  np.testing.assert_allclose(
    targets[1], [0, 0, 0, 4 / 9, 0, 0, 5 / 9, 0], rtol=1e-6
  )
  np.testing.assert_allclose(targets[2], [0, 0, 0, 1, 0, 0, 0, 0])
  assert dataset.table['label'].tolist() == [0, 6, 3]
  one = _build(tmp_path, files)
  assert one.table['id'].tolist() == ['ferplus/00001', 'ferplus/00003']
  assert one.table['votes'].max(-1).tolist() == [5, 6]
  assert one.root != dataset.root


# Ten votes; what counts under majority, probability and multi_target: the
# eight votes, or why the image is left out.
UNKNOWN, NO_FACE, NONE = 'unknown', 'not_a_face', 'no_majority'
AUTHORS = [
  # Single votes are lost first: 6 of 6 is a majority.
  ([6, 1, 1, 1, 1, 0, 0, 0, 0, 0], {0: 6}, {0: 6}, {0: 6}),
  # Half is no majority, and no share of votes large enough for the second.
  ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], NONE, {0: 5, 1: 5}, {0: 5, 1: 5}),
  # 4 of 9, then 7 of 9 reach three quarters; 30 % of 9 are 2.7.
  ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], NONE, {0: 4, 4: 3}, {0: 4, 4: 3}),
  # Equals come together: 3, 3, 2 and 2 are more than three categories.
  ([3, 3, 0, 0, 0, 0, 2, 2, 0, 0], NONE, NONE, {0: 3, 1: 3}),
  # Three of nine each: a third is not more than half, all three are.
  (
    [3, 3, 3, 0, 0, 0, 0, 0, 1, 0],
    NONE,
    {0: 3, 1: 3, 2: 3},
    {0: 3, 1: 3, 2: 3},
  ),
  # Four of five categories have two: four at once are too many.
  ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], NONE, NONE, NONE),
  # Unknown ends the list: 5 of 10 are not more than half.
  ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], NONE, NONE, {0: 5}),
  # It does not count behind an emotion: 5 of 8 are.
  ([5, 0, 1, 0, 0, 0, 0, 1, 3, 0], {0: 5}, {0: 5}, {0: 5}),
  ([0, 0, 0, 2, 0, 0, 0, 0, 8, 0], UNKNOWN, UNKNOWN, UNKNOWN),
  ([3, 0, 0, 0, 0, 0, 0, 0, 4, 3], NONE, NONE, UNKNOWN),
  ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], NO_FACE, NO_FACE, NO_FACE),
  # Nothing is left of single votes.
  ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], NONE, NONE, NONE),
  ([1, 1, 1, 1, 0, 1, 2, 1, 1, 1], {6: 2}, {6: 2}, {6: 2}),
]


def _emotions(expected):
  return [float(expected.get(i, 0)) for i in range(8)]


@pytest.mark.parametrize('case', AUTHORS, ids=lambda case: str(case[0]))
def test_the_authors_rule(case):
  votes, *expected = case
  for labels, wanted in zip(ferplus.LABELS, expected, strict=True):
    counted, reason = ferplus.count_votes(
      list(map(float, votes)),
      labels=labels,
      keep='authors',
      drop_single_votes=True,
    )
    if isinstance(wanted, str):
      assert reason == wanted, labels
    else:
      assert (counted, reason) == (_emotions(wanted), ''), labels


def test_single_votes_may_stay():
  votes = [6.0, 1, 1, 1, 1, 0, 0, 0, 0, 0]
  counted, reason = ferplus.count_votes(
    votes, labels='majority', keep='authors', drop_single_votes=False
  )
  assert (counted, reason) == (_emotions({0: 6}), '')
  # 4 of 10 with them, 4 of 7 without.
  votes = [4.0, 1, 1, 1, 0, 0, 0, 0, 3, 0]
  for drop, expected in ((True, ''), (False, 'no_majority')):
    _, reason = ferplus.count_votes(
      votes, labels='majority', keep='authors', drop_single_votes=drop
    )
    assert reason == expected


def test_three_categories_are_enough():
  # 6 of 10 votes are short of three quarters, and four more would be many.
  votes = [2.0, 2, 2, 1, 1, 1, 1, 0, 0, 0]
  counted, reason = ferplus.count_votes(
    votes, labels='probability', keep='authors', drop_single_votes=False
  )
  assert (counted, reason) == (_emotions({0: 2, 1: 2, 2: 2}), '')


@pytest.mark.parametrize(
  ('votes', 'labels', 'expected'),
  [
    ([3, 3, 2, 0, 0, 0, 0, 0, 2, 0], 'majority', {0: 3}),
    ([3, 3, 2, 0, 0, 0, 0, 0, 2, 0], 'probability', {0: 3, 1: 3, 2: 2}),
    ([3, 3, 2, 0, 0, 0, 0, 0, 2, 0], 'multi_target', {0: 3, 1: 3}),
    ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], 'multi_target', {0: 2}),
    ([0, 0, 4, 0, 0, 0, 0, 0, 4, 2], 'probability', {2: 4}),
    ([0, 0, 3, 0, 0, 0, 0, 0, 4, 3], 'probability', 'unknown'),
    ([0, 0, 3, 0, 0, 0, 0, 0, 3, 4], 'multi_target', 'not_a_face'),
    ([1] * 10, 'majority', 'no_majority'),
  ],
)
def test_the_most_voted_rule(votes, labels, expected):
  counted, reason = ferplus.count_votes(
    list(map(float, votes)),
    labels=labels,
    keep='most_voted',
    drop_single_votes=True,
  )
  if isinstance(expected, str):
    assert reason == expected
  else:
    assert (counted, reason) == (_emotions(expected), '')


def test_pictures_without_a_usage_leave_its_votes_out(tmp_path):
  dataset = _build(tmp_path, _files(pictures=ROWS[:6]))
  assert dataset.notes['rows_without_picture'] == 1
  assert dataset.table['id'].tolist() == [
    'ferplus/00001',
    'ferplus/00003',
    'ferplus/00005',
  ]
  assert dataset.notes['filtered']['unknown'] == 1


def test_the_official_counts_are_those_of_the_rule(tmp_path):
  dataset = _build(tmp_path, _files())
  counts = {k: v.sum() for k, v in dataset.official_counts().items()}
  assert counts == {'train': 25_060, 'validation': 3_199, 'test': 3_153}
  dataset = _build(tmp_path, _files(), labels='multi_target')
  counts = {k: v.sum() for k, v in dataset.official_counts().items()}
  assert counts == {'train': 27_671, 'validation': 3_199, 'test': 3_153}
  dataset = _build(tmp_path, _files(), keep='most_voted')
  assert dataset.official_counts() == {}


SWAPPED = [*ROWS[:3], ROWS[4], ROWS[3], *ROWS[5:]]
BROKEN = {
  'no votes': (
    {'fer2013.csv': _pictures()}, 'no fer2013new.csv in it, the votes'),
  'no pictures': (
    {'fer2013new.csv': _votes()}, 'no fer2013.csv or icml_face_data.csv in it'),
  'two tables': (
    {**_files(), 'b/fer2013new.csv': _votes()}, 'several fer2013new.csv'),
  'a row less': (
    _files(votes=ROWS[:5] + ROWS[6:]),
    r'fer2013new.csv line 7: usage PrivateTest where data row 6 of '
    r'fer/fer2013.csv has PublicTest; .* has 6 rows, fer/fer2013.csv 7; the '
    'same rows'),
  'the last row less': (
    _files(votes=[*ROWS[:6]]), r'fer2013.csv: no votes on data row 7; .*'
    '6 rows, fer/fer2013.csv 7'),
  'a row more': (
    _files(votes=[*ROWS, ROWS[-1]]),
    r'fer2013new.csv line 9: no row of fer/fer2013.csv is left for it; .*'
    '8 rows, fer/fer2013.csv 7'),
  'another order': (
    _files(votes=SWAPPED),
    'line 5: usage PublicTest where data row 4 of fer/fer2013.csv has Train'),
  'missing usage and a row less': (
    _files(pictures=ROWS[:6], votes=ROWS[1:]),
    r'line 5: usage PublicTest where data row 4 .*5 rows \(1 of other usages'),
  'unknown usage': (
    _files(votes=[('Test', *ROWS[0][1:]), *ROWS[1:]]),
    r"line 2: unknown usage 'Test'; Training, PublicTest, PrivateTest"),
  'no column': (
    {**_files(), 'plus/fer2013new.csv': _votes(
      header=HEADER.replace('NF', 'nobody'))},
    "column 'nf' is missing"),
}  # fmt: skip


@pytest.mark.parametrize('what', BROKEN)
def test_files_that_do_not_belong_together(what, tmp_path):
  files, reason = BROKEN[what]
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, files)


def test_one_file_is_not_enough(tmp_path):
  path = tmp_path / 'fer2013new.csv'
  path.write_bytes(_votes())
  with pytest.raises(UserError, match='is expected, not one file'):
    datasets.build('ferplus', data_dir=tmp_path / 'data', source=path)


def test_a_bad_row_is_named_and_may_be_skipped(tmp_path):
  votes = [*ROWS]
  votes[3] = ('Training', '', '2,0,0,0,x,0,0,0,0,0')
  files = _files(votes=votes)
  # A picture cut short does not shift the votes of those below it.
  lines = files['fer/fer2013.csv'].split(b'\n')
  lines[2] = lines[2].replace(b' ', b'', 1)
  files['fer/fer2013.csv'] = b'\n'.join(lines)
  with pytest.raises(UserError, match=r'line 3 \(data row 2\): .*; 2 bad rows'):
    _build(tmp_path, files)
  dataset = _build(tmp_path, files, skip_bad_rows=True)
  assert dataset.table['id'].tolist() == ['ferplus/00005', 'ferplus/00006']
  assert dataset.table['label'].tolist() == [0, 7]
  assert dataset.metadata['skipped_rows'] == 2


def test_a_row_without_a_usage_is_a_bad_row(tmp_path):
  files = _files()
  pictures = files['fer/fer2013.csv'].split(b'\n')
  pictures[4] = pictures[4].replace(b'Training', b'Trainin')
  files['fer/fer2013.csv'] = b'\n'.join(pictures)
  with pytest.raises(UserError, match=r"line 5 .*unknown usage 'Trainin'"):
    _build(tmp_path, files)
  dataset = _build(tmp_path, files, skip_bad_rows=True)
  assert dataset.table['label'].tolist() == [1, 0, 7]


def test_a_bad_vote_is_named(tmp_path):
  votes = [('Training', '', '2,0,0,0,1.5,0,0,0,0,0'), *ROWS[1:]]
  reason = r"fer2013new.csv line 2: anger '1.5' is not a number of votes; "
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, _files(votes=votes))


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'labels': 'soft'}, "'labels' of ferplus is 'soft', expected majority or"),
    ({'keep': 'all'}, "'keep' of ferplus is 'all', expected authors or most_"),
    ({'drop_single_votes': 'no'}, 'neither true nor false'),
  ],
)
def test_options_are_checked(options, reason):
  with pytest.raises(UserError, match=reason):
    datasets.resolve_options('ferplus', options)
