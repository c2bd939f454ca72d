"""Who trains, who selects and who is reported.

A protocol turns a data set into lists of rows. It says of itself whether it
leaks: whether what is reported, or a copy, a person or a recording of it, can
by the protocol's own making have been trained or selected on. That a source
carries the same photograph on both sides of its official split is not the
protocol's doing; it is said in `reason`, shown by reporting the test split
without its twins as well, and measured by an audit.

Every protocol is one composition: a pool of rows, divided by a unit (images,
or whatever belongs together: the twins of a photograph, the pictures of a
person), then twins left out where that is asked for, then the training list
balanced. Nothing that an option can say makes a protocol leak; only another
protocol's name can.

Whether people are kept apart can be told only where a set says who is in its
images, or gathers photographs from the web, where people hardly recur. Of other
sets `leaks` is None: it cannot be told. Published splits are looked at in the
same way: where the set names people or recordings, its own table decides.

Test rows come from `open_test` and, for audits, from `open_all`. Both write to
the ledger before they hand them out.
"""

from fer_jax.data.protocol.all_folds import (
  facts_of_folds,
  fold_count,
  fold_coverage,
  open_folds,
  parts_apart,
)
from fer_jax.data.protocol.lists import Lists, Partition, TestSplit
from fer_jax.data.protocol.published import CHALLENGE, of_public_test
from fer_jax.data.protocol.registry import (
  configure,
  divides_into_folds,
  names,
)
from fer_jax.data.protocol.resolving import (
  manifest,
  open_all,
  open_test,
  resolve,
)
from fer_jax.data.protocol.settings import TWIN_RULES, Settings

__all__ = [
  'CHALLENGE',
  'TWIN_RULES',
  'Lists',
  'Partition',
  'Settings',
  'TestSplit',
  'configure',
  'divides_into_folds',
  'facts_of_folds',
  'fold_count',
  'fold_coverage',
  'manifest',
  'names',
  'of_public_test',
  'open_all',
  'open_folds',
  'open_test',
  'parts_apart',
  'resolve',
]
