"""Trains runs of a queue, a population of one shape at a time.

The first run of a turn fixes the shape; the others of its population are drawn
within it. A place whose run has ended is given to another run of the shape, and
nothing is compiled anew: the next turn too, where its shape is the same, takes
over the places of the one before.
"""

import math
import time
from typing import Any

import jax

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.training import memory, population, side_by_side, task
from fer_jax.training.observer import Observer
from fer_jax.tuning.queue import Ending, Run
from fer_jax.tuning.seats import Bench, Manner, Queue, Seats

TURN = 2
"""Runs that a turn asks for, in populations: where shapes can differ, one must
end for the next to begin. A first look at a shape asks for one population."""

LARGEST_AUTO = 16
"""Members of a population whose size is not given, on an accelerator."""

ROUNDS = 8
"""That a search is given at least to learn from, where it chooses."""

WAIT_SECONDS = 1.0
"""Between looks for runs of a worker that died, when there is nothing else."""


def population_size(given: int, trials: int) -> int:
  """Members that are asked for, before memory has its say.

  A smaller population learns from more trials before it draws the next. On CPU
  members take turns on a device, as long as single runs take, so there is one
  for each device; those are cores, see `training.cores`. On an
  accelerator there are as many as 16. Either way an eighth of all trials at
  most, so that the search has eight rounds to learn from.

  Args:
    given: by the user; 0 for automatic.
    trials: of the sweep.
  """
  on_cpu = jax.default_backend() == 'cpu'
  most = jax.local_device_count() if on_cpu else LARGEST_AUTO
  return given or max(1, min(most, trials // ROUNDS))


def members_on_cores(given: int, trials: int, cores: int) -> int:
  """As `population_size` on CPU, before there are devices."""
  return given or max(1, min(cores, trials // ROUNDS))


class Worker:
  """One process's part of a sweep."""

  def __init__(self, manner: Manner, observer: Observer) -> None:
    """Makes a worker that has compiled nothing yet."""
    self._manner = manner
    self._observer = observer
    self._bench: Bench | None = None
    self._images: tuple[Any, Any] = (None, None)
    self._sizes: dict[str, int] = {}  # of shapes that did not fit larger

  def work(self, queue: Queue) -> bool:
    """Trains all that a queue hands out; False where it stopped before.

    Raises:
      UserError: the storage has gone away, or a workdir cannot be written.
    """
    while True:
      head = queue.head()
      if head is not None:
        self._turn(queue, head)
      elif not queue.left():
        return True
      else:
        # Held by other workers, who may yet die.
        self._observer.idle()
        time.sleep(WAIT_SECONDS)
      if self._manner.leaves():
        return not queue.left()

  def _turn(self, queue: Queue, head: Run) -> None:
    # Nothing is unsaved before the first block, which may be minutes away.
    self._manner.notice.starting = True
    if head.alone:
      self._bench = None  # one of a single place, and after it as well
    try:
      with memory.exhaustion_told():
        bench = self._bench_of(head)
    except UserError as error:
      try:
        task.load_dataset(head.config)
      except UserError:  # gone by now: no trial is to blame
        queue.release(head)
        raise
      print(f'{head.name} cannot be trained: {error}', flush=True)
      queue.end(head, Ending('failed', reason=str(error)))
      return
    limit = (1 if head.looks else TURN) * self._manner.size
    if head.alone:
      limit = 1
    elif not head.shape:
      limit = math.inf
    with Seats(queue, bench, self._manner, self._observer) as seats:
      try:
        with memory.exhaustion_told():
          others = min(bench.size, limit) - 1
          seats.fill([head, *queue.more(head.shape, int(others))])
          while seats.taken and seats.epoch():
            wanted = min(seats.free, limit - seats.given)
            seats.fill(queue.more(head.shape, int(wanted)))
      except memory.ExhaustedError as error:
        self._sizes[head.shape] = seats.give_up(error)
        self._bench = None
    if head.alone:
      self._bench = None

  def _bench_of(self, run: Run) -> Bench:
    """Where runs of a shape train: the one at hand, or another.

    Raises:
      UserError: the data is not there or does not fit.
    """
    if self._bench is None or self._bench.shape != run.shape:
      self._bench = None  # its members' memory, before the next is measured
      self._bench = self._new_bench(run)
    return self._bench

  def _new_bench(self, run: Run) -> Bench:
    config = run.config
    blueprint = task.blueprint(config)
    partition = task.partition_of(config, blueprint.dataset)
    # What decides which examples there are, and how they look.
    key = tuple(config_lib.flatten(config.data))
    if self._images[0] != key:
      self._images = (None, None)  # not both at once
      images = side_by_side.resident_set(config, blueprint.dataset, [partition])
      self._images = (key, images)
    shared = side_by_side.Shared(
      config, blueprint, *self._images[1], how=self._manner.how
    )
    bench = Bench(run.shape, shared, partition)
    size = self._sizes.get(run.shape, self._manner.size)
    example = side_by_side.example(shared, partition)
    bench.size = _places(shared, example, size)
    return bench


def _places(
  shared: side_by_side.Shared, member: population.Member, size: int
) -> int:
  """How many such members train together: `size`, or what fits into memory.

  Raises:
    UserError: not even one does.
  """
  return len(side_by_side.waves(shared, [member], size)[0])
