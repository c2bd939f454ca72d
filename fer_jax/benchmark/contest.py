"""Contenders started, checked, warmed up, and timed in turns."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from fer_jax.benchmark import rounds as rounds_lib
from fer_jax.benchmark.worker import Worker, WorkerError

OWN = 'fer_jax'
CONTENDERS = 'fer_jax.benchmark.contenders'
"""Our name in records, and the package of all contenders."""

Peers = Mapping[str, tuple[str, dict[str, str]]]
"""For each peer its module and the environment of its process."""

PAUSE_SECONDS = 0.2
"""Before each turn: threads of the contender before may still be spinning."""


@dataclasses.dataclass(frozen=True)
class Contender:
  """Who is timed.

  Attributes:
    name: in records.
    module: with its package, see `fer_jax.benchmark.contenders`.
    case: what it is asked to build, see there.
    environment: variables of its process besides the usual ones.
  """

  name: str
  module: str
  case: dict
  environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Effort:
  """How long is measured.

  Attributes:
    rounds: turns of each contender.
    warm_up: steps that each runs first and that are forgotten.
    turn_seconds: what a turn lasts at least.
  """

  rounds: int = 10
  warm_up: int = 8
  turn_seconds: float = 2.0


def variants(
  name: str, module: str, case: dict, field: str, values: Sequence[str]
) -> list[Contender]:
  """A contender for each value of a field of the case.

  The first has the name, the others their value with it.
  """
  return [
    Contender(f'{name} {value}' if n else name, module, {**case, field: value})
    for n, value in enumerate(values)
  ]


def peers_of(known: Peers, names: Sequence[str], case: dict) -> list[Contender]:
  """A contender for each of some peers."""
  modules = [(name, *known[name]) for name in names]
  return [
    Contender(name, module, case, environment)
    for name, module, environment in modules
  ]


def hold(
  contenders: Sequence[Contender],
  effort: Effort,
  *,
  images: int,
  check: Callable[[dict[str, dict]], None] = lambda infos: None,
  say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict:
  """Times the contenders, interleaved; the first is the reference.

  Args:
    contenders: who takes part. One whose framework is not installed, or finds
      no accelerator where the reference has one, is left out and named, except
      the reference.
    effort: how long is measured.
    images: images in a step.
    check: called with what the contenders say of themselves before anything
      compiles; raises where they must not be compared.
    say: takes lines of progress.

  Returns:
    'reference', its name; 'contenders', for each one what it says of itself,
    the steps of its turns, the peak of its process' memory on the host (None
    where the system does not tell) and `rounds.summarise`; 'absent', for each
    one left out the reason.

  Raises:
    WorkerError: a contender failed for another reason.
  """
  absent: dict[str, str] = {}
  workers: dict[str, Worker] = {}
  reference = contenders[0].name
  with contextlib.ExitStack() as stack:
    for contender in contenders:
      say(f'{contender.name}: building')
      worker = stack.enter_context(
        Worker(contender.module, environment=contender.environment)
      )
      info = worker.prepare(contender.case)
      reason = info.get('absent') or _elsewhere(info, workers.get(reference))
      if reason:
        if contender.name == reference:
          raise WorkerError(f'{contender.name}: {reason}')
        absent[contender.name] = reason
        worker.close()
      else:
        workers[contender.name] = worker
    check({name: worker.info for name, worker in workers.items()})
    for name, worker in workers.items():
      say(f'{name}: compiling and warming up')
      worker.calibrate(warm_up=effort.warm_up, turn_seconds=effort.turn_seconds)

    def turn_of(worker: Worker) -> Callable[[], float]:
      def turn() -> float:
        time.sleep(PAUSE_SECONDS)
        return worker.turn()

      return turn

    seconds = rounds_lib.interleave(
      {name: turn_of(worker) for name, worker in workers.items()},
      effort.rounds,
      after_round=lambda n: say(f'round {n + 1}/{effort.rounds}'),
    )
    peaks = {name: worker.peak_memory() for name, worker in workers.items()}
  summary = rounds_lib.summarise(seconds, images=images, reference=reference)
  return {
    'reference': reference,
    'contenders': {
      name: {
        **worker.info,
        'steps_per_turn': worker.steps,
        'peak_memory_bytes': peaks[name],
        **summary[name],
      }
      for name, worker in workers.items()
    },
    'absent': absent,
  }


def _elsewhere(info: dict, reference: Worker | None) -> str | None:
  """Why one that computes on the CPU is not beside one that does not."""
  if reference is None or info.get('device') != 'cpu':
    return None
  device = reference.info.get('device', 'cpu')
  return None if device == 'cpu' else f'computes on the CPU, not on {device}'
