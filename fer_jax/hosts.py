"""The processes that train one run together: how they start and agree.

On Slurm, TPU pods and under Open MPI the environment says how many processes
there are, and JAX finds the rest; elsewhere JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID do. Each process is called a host here,
also where a machine runs one for each of its accelerators.

Every host runs the same program. The first one alone reads and writes the
workdir; what it finds there, and whether it failed, the others hear from it.
So all hosts must come to each of these calls, in the same order.

A host that cannot come any more ends the run of all: those that wait for it
hear that its connections are closed, or, where its machine fell silent, that
JAX has missed its heartbeats. Each leaves at once, for nobody can go on.

Processes that have runs to divide, of which none needs another, stay `apart`:
to each it is as if it were alone, and whoever is lost takes nobody along.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fer_jax.errors import UserError

T = TypeVar('T')

HEARTBEAT_SECONDS = 60
"""After which a host that has fallen silent is taken for lost."""

PARTING_SECONDS = 60
"""What a host that is done waits for the others to be."""

LINGER_SECONDS = 5.0
"""What the first host that failed waits for the others to say why they did: as
soon as it is gone, JAX ends them without a word of ours."""

ALL_DEVICES = {'local_device_ids': []}
"""Of a process alone on its machine: an empty list restricts JAX to none, while
left to itself it takes one device a process under Slurm and Open MPI."""

_joined = threading.Event()  # set as long as there are others

_LOST = re.compile('Gloo|NCCL|peer|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED')


class LostError(UserError):
  """Another process of this run is gone; the run can be gone on with."""

  status = 75  # of what a scheduler should start again, as after SIGTERM


def launch(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """What `jax.distributed.initialize` is to be called with; None for no call.

  Args:
    environ: of a process that has imported JAX, which marks TPU machines.

  Raises:
    UserError: JAX_NUM_PROCESSES or JAX_PROCESS_ID is missing or no number.
  """
  if 'JAX_NUM_PROCESSES' in environ:
    processes = _number(environ, 'JAX_NUM_PROCESSES')
    if processes < 2:
      return None
    return {
      'coordinator_address': environ.get('JAX_COORDINATOR_ADDRESS'),
      'num_processes': processes,
      'process_id': _number(environ, 'JAX_PROCESS_ID'),
    }
  starter = _starter(environ)
  if starter is _SLURM:
    tasks = _number(environ, 'SLURM_NTASKS', 1)
    if tasks == 1:
      return None
    if tasks == _number(environ, 'SLURM_STEP_NUM_NODES', 0):
      return ALL_DEVICES
    # Bound by Slurm to one GPU, a task sees it as its first; JAX would take
    # the one of its own number on the machine.
    seen = environ.get('CUDA_VISIBLE_DEVICES', '')
    return {'local_device_ids': [0]} if seen and ',' not in seen else {}
  if starter is _OPEN_MPI:
    if _number(environ, 'OMPI_COMM_WORLD_SIZE', 1) == 1:
      return None
    alone = _number(environ, 'OMPI_COMM_WORLD_LOCAL_SIZE', 0) == 1
    return ALL_DEVICES if alone else {}
  if 'JAX_COORDINATOR_ADDRESS' in environ:
    _number(environ, 'JAX_NUM_PROCESSES')  # missing, and nothing else tells
  if environ.get('TPU_ML_PLATFORM') != 'JAX':
    return None
  if _number(environ, 'MEGASCALE_NUM_SLICES', 1) > 1:
    return {}
  workers = next((environ[n] for n in _TPU_HOSTS if n in environ), None)
  if workers is not None:
    return {} if ',' in workers else None
  # Without those the machine's metadata tells, which JAX asks for.
  return None if 'TPU_SKIP_MDS_QUERY' in environ else {}


class _Starter(NamedTuple):
  """Variables of the environment by which a process is told its place.

  Attributes:
    number: of this process, from 0.
    total: how many there are.
    local: number among those of its machine.
  """

  number: str
  total: str
  local: str


_TPU_HOSTS = ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES')
_SLURM = _Starter('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')
_OPEN_MPI = _Starter(
  'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'
)


def _starter(environ: Mapping[str, str]) -> _Starter | None:
  # In a batch script, outside of srun, there is one process whatever is asked.
  if 'SLURM_STEP_NODELIST' in environ and _SLURM.number in environ:
    return _SLURM
  return _OPEN_MPI if 'OMPI_MCA_orte_hnp_uri' in environ else None


def placed(environ: Mapping[str, str]) -> tuple[int, int, str]:
  """Where a process is among those that it stays apart from.

  Returns:
    (its number, from 0; how many there are; the devices of its machine that are
    its own, as CUDA_VISIBLE_DEVICES lists them, '' for all).

  Raises:
    UserError: the environment makes no sense, or is of a TPU slice, whose hosts
      cannot stay apart.
  """
  arguments = launch(environ)
  if arguments is None:
    return 0, 1, ''
  starter = _starter(environ)
  if 'num_processes' in arguments:
    number, count = arguments['process_id'], arguments['num_processes']
    devices = environ.get('JAX_LOCAL_DEVICE_IDS', '')
    name = 'JAX_PROCESS_ID'
  elif starter is None:
    if not any(name in environ for name in _TPU_HOSTS):
      return 0, 1, ''  # the machine's metadata may know of others, JAX will
    raise UserError(
      'this is one of several hosts of a TPU slice, which train one run '
      'together; populations need a slice of one host'
    )
  else:
    number, count, local = (_number(environ, name) for name in starter)
    own = arguments.get('local_device_ids', [local])
    devices = ','.join(map(str, own))
    name = starter.number
  if number >= count:
    raise UserError(f'{name} is {number}; allowed is 0 to {count - 1}')
  return number, count, devices


def apart() -> tuple[int, int]:
  """Takes the devices that a process of several would have if it joined them.

  To be called before anything is computed.

  Returns:
    (number of this process, from 0; how many there are).

  Raises:
    UserError: as `placed`.
  """
  number, count, devices = placed(os.environ)
  if devices:
    for platform in ('cuda', 'rocm'):
      jax.config.update(f'jax_{platform}_visible_devices', devices)
  return number, count


def _number(
  environ: Mapping[str, str], name: str, default: int | None = None
) -> int:
  text = environ.get(name, '' if default is None else str(default))
  if not text.isdecimal():
    raise UserError(
      f'the environment has {name}={text!r}; expected a whole number'
    )
  return int(text)


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the other processes, where the environment says that there are any.

  To be opened before anything is computed. Only the first host prints to
  stdout. What ends well ends together: those that are done wait for the others.

  Raises:
    UserError: they cannot be reached.
    LostError: one of them is gone.
  """
  _start()
  try:
    yield
  except UserError:
    raise
  except (RuntimeError, ValueError) as error:  # as the call that failed has it
    if count() == 1 or not _LOST.search(str(error)):
      raise
    raise LostError(
      'another process of this run is gone, and says why if it could; start '
      f'all of them again, and they go on from the last checkpoint ({error})'
    ) from error
  # Not at the exit of Python, when nobody listens to signals any more.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()
    _joined.clear()


def _start() -> None:
  arguments = launch(os.environ)
  if arguments is None or jax.distributed.is_initialized():
    return
  # It would hear SIGTERM in the place of `training.preemption`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **arguments,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=PARTING_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f'cannot join the other processes of this run: {error}'
    ) from error
  _joined.set()
  if not first():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
  print(f'{count()} processes with {jax.device_count()} devices together')


def leave(status: int) -> None:
  """Ends a process that is still joined to others, for it failed.

  At once: an orderly end would wait for them, and they for it. Returns where
  there are none.
  """
  if not _joined.is_set():
    return
  if first():
    time.sleep(LINGER_SECONDS)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def count() -> int:
  """How many there are."""
  # Asking JAX for it starts its backends, for which it may be too early.
  return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
  """Whether this host is the one that writes."""
  return count() == 1 or jax.process_index() == 0


def part() -> tuple[int, int]:
  """(number of this host, from 0; how many there are)."""
  return (0, 1) if count() == 1 else (jax.process_index(), count())


def on_first(function: Callable[[], T]) -> T:
  """Calls a function on the first host alone; all get what it returns.

  Args:
    function: returns something that JSON holds.

  Raises:
    UserError: it raised an exception, which the first host raises itself.
  """
  if count() == 1:
    return function()
  result, failure = None, None
  if first():
    try:
      result = function()
      json.dumps(result)
    except Exception as error:
      result = None
      failure = error
  answer = _told({'failed': failure is not None, 'result': result})
  if failure is not None:
    raise failure
  if answer['failed']:
    raise UserError('the first process of this run failed, and says why')
  return answer['result']


def on_all(function: Callable[[], T]) -> T:
  """Calls a function on every host; where it fails on one, it does on all.

  Raises:
    UserError: it raised an exception on another host, which that one raises
      itself.
  """
  if count() == 1:
    return function()
  results, failure = [], None
  try:
    results.append(function())
  except Exception as error:
    failure = error
  if any_host(failure is not None):
    raise failure or UserError(
      'another process of this run failed, and says why'
    )
  return results[0]


def _told(value: Any) -> Any:
  """The first host's value, by way of JSON."""
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(from_first(np.int32(len(text))))
  # Others send nothing, but as much of it.
  content = from_first(np.resize(text, length))
  return json.loads(content.tobytes())


def from_first(tree: Any) -> Any:
  """The first host's arrays, on the host.

  Args:
    tree: of arrays, on the other hosts of others of the same shapes and dtypes.
  """
  return multihost_utils.broadcast_one_to_all(tree)


def any_host(flag: bool) -> bool:
  """Whether it is true on any host; the same answer on all."""
  if count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def share(rows: np.ndarray) -> np.ndarray:
  """This host's part of a list, (n,) to (ceil(n / hosts),), for `gathered`.

  The last row again where the parts are not even.
  """
  number, parts = part()
  size = -(-len(rows) // parts)
  padded = np.pad(rows, (0, size * parts - len(rows)), 'edge')
  return padded[number * size :][:size]


def gathered(own: np.ndarray, length: int) -> np.ndarray:
  """What hosts made of their parts of a list, in its order.

  Args:
    own: (ceil(n / hosts), ...), of its rows of `share`.
    length: n.

  Returns:
    (n, ...), on every host.
  """
  if count() == 1:
    return own
  return multihost_utils.process_allgather(own, tiled=True)[:length]
