"""FER+: the pictures of FER2013 with the votes of ten taggers each.

Barsoum et al., Training deep networks for facial expression recognition with
crowd-sourced label distribution, ICMI 2016 (arXiv 1608.01041). Ten people
chose one of eight emotions, unknown or NF (not a face) for each of the 35,887
pictures. Both files lie in one folder, zip, tar or compressed tar, at any
depth:

  fer2013.csv or icml_face_data.csv   see `fer2013`
  fer2013new.csv                      columns Usage, the eight of CLASS_NAMES,
                                      unknown and NF, in any order; others,
                                      such as Image name, are not looked at

They are joined row by row: 173 rows of fer2013new.csv name no picture and four
names occur twice, but its rows are those of fer2013.csv in the same order.
Usage has to agree on each. Where fer2013.csv has no row at all of a Usage, as
a copy without PrivateTest, the votes on it are passed over, and counted in the
notes.

What an image's votes come to follows the authors' code (microsoft/FERPlus,
src/ferplus.py, `_process_data`), step by step:

1. a category with a single vote loses it (`drop_single_votes`);
2. the votes of some categories count (`labels`):
   majority       the most-voted one;
   probability    the most-voted ones, equals together, until three quarters of
                  all votes are reached or three categories; where unknown or
                  NF come up they end the list, and count only if they head it;
   multi_target   each that has at least 30 % of all votes;
3. the image is left out where these are not more than half of all votes, or
   are of more than three categories (`no_majority`), or where unknown or NF
   have the most of them (`unknown`, `not_a_face`).

`keep='most_voted'` asks for no share: an image is left out only where unknown
or NF have the most votes; the first of equals has more. Under `probability`
all votes for emotions then count; under `multi_target` the most-voted one does
where none has 30 %.

`labels` is for the training split. Validation and test rows are chosen and
labelled by majority under any of them, as the authors' src/train.py has it, so
that results of all three are of the same images. By the defaults 25,060,
3,199 and 3,153 images are left of 28,709, 3,589 and 3,589.

An example's `votes` are those that count, so that their shares are its target
(one-hot under majority); its label is the most-voted class, the first of
equals. The loss that goes with `multi_target` is chosen by the config.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from fer_jax.datasets import fer2013, layout, sources
from fer_jax.errors import UserError

CLASS_NAMES = (
  'neutral',
  'happiness',
  'surprise',
  'sadness',
  'anger',
  'disgust',
  'fear',
  'contempt',
)
VERSION = '1.0.0'
DESCRIPTION = 'FER2013 with the votes of ten taggers each over 8 emotions'
LICENCE = (
  'votes by Microsoft under the MIT licence; the pictures of FER2013 carry no '
  'clear licence: research use only, do not redistribute'
)
OPTIONS: dict[str, Any] = {
  'labels': 'majority',
  'keep': 'authors',
  'drop_single_votes': True,
}
MEANINGS = {
  'labels': 'what the votes on a training image come to: majority, probability '
  'or multi_target',
  'keep': "which images: those of the authors' rule (authors), or all of which "
  'most votes are for an emotion (most_voted)',
  'drop_single_votes': 'whether a category with a single vote loses it',
}
NEEDS_SOURCE = True
NEAR_TWINS_ARE_COPIES = True
LABELS = ('majority', 'probability', 'multi_target')
RULES = ('authors', 'most_voted')
VOTES_NAME = 'fer2013new.csv'

# The categories of the file that are no emotion, and why they leave one out.
_NO_EMOTION = {'unknown': 'unknown', 'NF': 'not_a_face'}
_CATEGORIES = (*CLASS_NAMES, *_NO_EMOTION)
_NO_MAJORITY = 'no_majority'
_TARGET_SHARE = 0.3
# What the authors' rule makes of the files as published.
_TRAIN_COUNTS = {
  'majority': (8740, 7287, 3149, 3014, 2100, 119, 532, 119),
  'probability': (10122, 7503, 3524, 3430, 2407, 169, 641, 160),
  'multi_target': (10071, 7492, 3486, 3399, 2327, 153, 598, 145),
}
_SELECTED_COUNTS = {
  'validation': (1182, 865, 415, 351, 287, 24, 62, 13),
  'test': (1090, 893, 396, 384, 273, 18, 83, 16),
}


def check_options(options: dict[str, Any]) -> None:
  """Raises UserError where an option has none of its values."""
  for option, allowed in (('labels', LABELS), ('keep', RULES)):
    if options[option] not in allowed:
      raise UserError(
        f'option {option!r} of ferplus is {options[option]!r}, expected '
        f'{" or ".join(allowed)}'
      )


def official_counts(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """Images of each class by split; known of the authors' rule alone."""
  if options['keep'] != 'authors' or not options['drop_single_votes']:
    return {}
  return {'train': _TRAIN_COUNTS[options['labels']], **_SELECTED_COUNTS}


def examples(
  source: sources.Source, options: dict[str, Any], intake: Any
) -> Iterator[dict[str, Any]]:
  """Rows of fer2013.csv whose votes come to an emotion.

  See `registry` for the contract.

  Raises:
    UserError: a file is missing, or the two do not belong together.
  """
  pictures = ' or '.join(fer2013.CSV_NAMES)
  if source.kind == 'file':
    raise UserError(
      f'{source.path}: a folder or archive with {pictures} and {VOTES_NAME} '
      'is expected, not one file'
    )
  votes_file = layout.require(source, VOTES_NAME, 'the votes of FER+')
  table = fer2013.find_csv(source)
  if table is None:
    raise UserError(f'{source.path}: no {pictures} in it, the pictures of FER+')
  rows = _join(source, votes_file, table, intake)
  intake.notes['rule'] = options['keep']
  filtered = dict.fromkeys((*_NO_EMOTION.values(), _NO_MAJORITY), 0)
  intake.notes['filtered'] = filtered
  for row in fer2013.csv_rows(source, table, intake):
    where, fields = rows[row.number]
    try:
      votes = [_vote(fields, category) for category in _CATEGORIES]
    except ValueError as error:
      intake.reject(where, str(error))
      continue
    labels = options['labels'] if row.split == 'train' else 'majority'
    counted, reason = count_votes(
      votes,
      labels=labels,
      keep=options['keep'],
      drop_single_votes=options['drop_single_votes'],
    )
    if reason:
      filtered[reason] += 1
      continue
    yield {
      'id': f'ferplus/{row.number:05d}',
      'label': counted.index(max(counted)),
      'official_split': row.split,
      'votes': counted,
      'image': row.image,
    }


def _join(
  source: sources.Source, votes_file: str, table: str, intake: Any
) -> list[tuple[str, dict[str, str]]]:
  """(where, fields) of the votes on each row of the table, in its order.

  Raises:
    UserError: they are not of the same rows.
  """
  splits = fer2013.csv_splits(source, table)
  present = set(splits)
  rows, passed_over = [], 0
  for where, fields in layout.csv_rows(
    source, votes_file, ('Usage', *_CATEGORIES)
  ):
    split = fer2013.USAGES.get(fields['usage'].encode())
    if split is None:
      known = ', '.join(usage.decode() for usage in fer2013.USAGES)
      raise UserError(
        f'{where}: unknown usage {fields["usage"]!r}; {known} are expected'
      )
    # One too many is enough to refuse it: a hostile file has millions.
    if split not in present:
      passed_over += 1
    elif len(rows) <= len(splits):
      rows.append((where, split, fields))
  counts = (
    f'{votes_file} has {len(rows):,} rows'
    + (f' ({passed_over:,} of other usages aside)' if passed_over else '')
    + f', {table} {len(splits):,}; the same rows in the same order are expected'
  )
  for number, (split, row) in enumerate(itertools.zip_longest(splits, rows), 1):
    if row is None:
      raise UserError(f'{table}: no votes on data row {number:,}; {counts}')
    where, expected, fields = row
    if split is None:
      raise UserError(f'{where}: no row of {table} is left for it; {counts}')
    # A row without a usage is a bad row, of which `csv_rows` says more.
    if split not in ('', expected):
      usage = {name: key.decode() for key, name in fer2013.USAGES.items()}
      raise UserError(
        f'{where}: usage {fields["usage"]} where data row {number:,} of '
        f'{table} has {usage[split]}; {counts}'
      )
  intake.notes['rows_without_picture'] = passed_over
  return [(where, fields) for where, _, fields in rows]


def _vote(fields: dict[str, str], category: str) -> float:
  text = fields[category.lower()]
  if not (text.isascii() and text.isdigit()):
    raise ValueError(f'{category} {text!r} is not a number of votes')
  return float(text)


def count_votes(
  votes: list[float], *, labels: str, keep: str, drop_single_votes: bool
) -> tuple[list[float], str]:
  """What the votes on one image come to; see the module for the rules.

  Args:
    votes: (10,) votes for CLASS_NAMES, unknown and NF.
    labels: of LABELS.
    keep: of RULES.
    drop_single_votes: a single vote for a category does not count.

  Returns:
    (8,) votes for CLASS_NAMES that count, and ''; or why the image is left
    out.
  """
  if drop_single_votes:
    votes = [vote if vote > 1 else 0.0 for vote in votes]
  rule = {'authors': _authors_choice, 'most_voted': _most_voted_choice}[keep]
  chosen = rule(votes, labels)
  counted = [vote if i in chosen else 0.0 for i, vote in enumerate(votes)]
  first = counted.index(max(counted))
  emotions = counted[: len(CLASS_NAMES)]
  if not any(counted):
    return emotions, _NO_MAJORITY
  return emotions, _NO_EMOTION.get(_CATEGORIES[first], '')


def _with_target_share(votes: list[float]) -> list[int]:
  least = _TARGET_SHARE * sum(votes)
  return [i for i, vote in enumerate(votes) if vote >= least]


def _authors_choice(votes: list[float], labels: str) -> list[int]:
  """Which of the categories count; none where the image is left out."""
  if labels == 'majority':
    chosen = [votes.index(max(votes))]
  elif labels == 'multi_target':
    chosen = _with_target_share(votes)
  else:
    chosen = _most_probable(votes)
  enough = sum(votes[i] for i in chosen) > sum(votes) / 2
  return chosen if enough and len(chosen) <= 3 else []


def _most_probable(votes: list[float]) -> list[int]:
  chosen: list[int] = []
  for level in sorted({vote for vote in votes if vote}, reverse=True):
    reached = sum(votes[i] for i in chosen)
    if reached >= 0.75 * sum(votes) or len(chosen) >= 3:
      break
    equals = [i for i, vote in enumerate(votes) if vote == level]
    emotions = [i for i in equals if i < len(CLASS_NAMES)]
    chosen += emotions
    if len(emotions) < len(equals):
      return chosen or equals[:1]
  return chosen


def _most_voted_choice(votes: list[float], labels: str) -> list[int]:
  """Which of the categories count, whatever share of the votes they have."""
  first = votes.index(max(votes))
  if labels == 'probability':
    return list(range(len(votes)))
  if labels == 'multi_target':
    return _with_target_share(votes) or [first]
  return [first]
