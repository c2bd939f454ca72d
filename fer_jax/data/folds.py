"""Dividing examples into parts: by class, with groups kept whole.

Every draw is the order of a hash of a seed and an id. It depends on no
library's random numbers, on no machine, and not on the order of the rows.
"""

import hashlib
import heapq
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


def draw_order(ids: np.ndarray, seed: int | str) -> np.ndarray:
  """int64 (n,): the places of `ids`, str (n,), in random order.

  Equal ids, copies of one example, stay in the order they have.
  """
  rank = [hashlib.sha256(f'{seed} {name}'.encode()).digest() for name in ids]
  order = sorted(range(len(ids)), key=lambda n: (rank[n], n))
  return np.array(order, np.int64)


def linked(*groupings: np.ndarray) -> np.ndarray:
  """int (n,): rows with one number are linked by some of the groupings.

  Args:
    *groupings: (n,) each; rows of equal value belong together.
  """
  count = len(groupings[0])
  firsts, seconds = [], []
  for grouping in groupings:
    _, group = np.unique(grouping, return_inverse=True)
    order = np.argsort(group, kind='stable')
    same = group[order[1:]] == group[order[:-1]]
    firsts.append(order[:-1][same])
    seconds.append(order[1:][same])
  first, second = np.concatenate(firsts), np.concatenate(seconds)
  graph = sparse.coo_matrix(
    (np.ones(len(first), np.int8), (first, second)), shape=(count, count)
  )
  return csgraph.connected_components(graph, directed=False)[1]


def stratified_parts(
  ids: np.ndarray,
  label: np.ndarray,
  group: np.ndarray,
  *,
  shares: Sequence[float],
  seed: int | str,
) -> np.ndarray:
  """Divides rows into parts of given sizes, class by class, groups whole.

  Groups of several rows come first, the largest first, each to the part that
  then is nearest to its share of every class; single rows fill what is left.
  So every part has its share of every class to within a row where all groups
  are single, and as nearly as the groups allow elsewhere.

  Args:
    ids: str (n,), which order the draw; equal ids are copies of one example.
    label: int (n,).
    group: int (n,); rows with one number stay together.
    shares: of the parts, summing to 1.
    seed: anything, as text.

  Returns:
    int (n,), the part of each row.
  """
  wanted = np.asarray(shares, float)
  classes, label = np.unique(label, return_inverse=True)
  total = np.bincount(label, minlength=len(classes))
  target = _whole_shares(total, wanted)
  have = np.zeros_like(target)
  part = np.full(len(ids), -1)

  order = draw_order(ids, seed)
  _, group = np.unique(group, return_inverse=True)
  size = np.bincount(group)
  members: dict[int, list[int]] = {}
  for row in order:
    members.setdefault(int(group[row]), []).append(int(row))
  large = [g for g in members if size[g] > 1]
  for g in sorted(large, key=lambda g: -size[g]):
    rows = members[g]
    gained = np.bincount(label[rows], minlength=len(classes))
    chosen = _best_part(have, target, gained, total)
    have[chosen] += gained
    part[rows] = chosen
  singles = order[size[group[order]] == 1]
  for k in range(len(classes)):
    rows = singles[label[singles] == k]
    part[rows] = _fill(target[:, k] - have[:, k], len(rows))
  _leave_none_empty(part, group, order, len(wanted))
  return part


def _leave_none_empty(
  part: np.ndarray, group: np.ndarray, order: np.ndarray, count: int
) -> None:
  """Gives a part that no group fitted the smallest of the largest part's.

  The largest of those that have several.

  Args:
    part: int (n,), changed in place.
    group: int (n,).
    order: int (n,), rows in the order of the draw.
    count: of parts.
  """
  for empty in np.setdiff1d(np.arange(count), part):
    held = np.bincount(part, minlength=count)
    groups = [len(np.unique(group[part == one])) for one in range(count)]
    can_give = np.greater(groups, 1)
    if not can_give.any():
      return
    inside = order[part[order] == np.where(can_give, held, 0).argmax()]
    names, first, sizes = np.unique(
      group[inside], return_index=True, return_counts=True
    )
    part[group == names[np.lexsort((first, sizes))[0]]] = empty


def _whole_shares(total: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """int (parts, classes): shares of every class, rounded so that they add up.

  Rows that rounding leaves over go to the largest remainders, and between
  equal ones to the part that has fewest rows so far, so that parts of equal
  share differ by as little as possible in all.
  """
  exact = shares[:, None] * total[None]
  target = np.floor(exact + 1e-9).astype(np.int64)
  for k in range(len(total)):
    while target[:, k].sum() < total[k]:
      remainder = np.round(exact[:, k] - target[:, k], 9)
      behind = target.sum(1) / shares
      target[np.lexsort((behind, -remainder))[0], k] += 1
  return target


def _best_part(
  have: np.ndarray, target: np.ndarray, gained: np.ndarray, total: np.ndarray
) -> int:
  """The part whose distance from its target grows least, of the total's share.

  The total of rows counts as one more class, so that parts of one size stay
  so even where a group holds classes that are rare.
  """
  weight = 1.0 / np.maximum(total, 1)

  def cost(counts):
    over = (counts - target) * weight
    size = (counts.sum(1) - target.sum(1)) / total.sum()
    return (over**2).sum(1) + size**2

  return int(np.argmin(cost(have + gained) - cost(have)))


def _fill(room: np.ndarray, count: int) -> np.ndarray:
  """int (count,): parts for single rows, the one with most room each time."""
  heap = [(-int(free), part) for part, free in enumerate(room)]
  heapq.heapify(heap)
  chosen = np.empty(count, np.int64)
  for n in range(count):
    free, part = heap[0]
    chosen[n] = part
    heapq.heapreplace(heap, (free + 1, part))
  return chosen


def stratified_share(
  ids: np.ndarray,
  label: np.ndarray,
  group: np.ndarray,
  *,
  share: float,
  seed: int,
) -> np.ndarray:
  """Draws a share of every class, taking groups whole.

  Groups come in the order of a hash of the seed and their least id, and are
  taken while each of their classes has room.

  Args:
    ids: str (n,).
    label: int (n,).
    group: int (n,); rows with one number stay together.
    share: of every class, rounded to whole rows.
    seed: any whole number.

  Returns:
    bool (n,), the rows drawn: the rounded share of every class exactly, as
    long as single rows are left to fill it.
  """
  classes, label = np.unique(label, return_inverse=True)
  room = np.round(share * np.bincount(label, minlength=len(classes)))
  by_group = np.lexsort((ids, group))
  starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
  members = np.split(by_group, starts)[1:]
  rank = [
    hashlib.sha256(f'{seed} {ids[rows[0]]}'.encode()).digest()
    for rows in members
  ]
  drawn = np.zeros(len(ids), bool)
  for n in sorted(range(len(members)), key=rank.__getitem__):
    taken = np.bincount(label[members[n]], minlength=len(classes))
    if np.all(taken <= room):
      room -= taken
      drawn[members[n]] = True
  return drawn
