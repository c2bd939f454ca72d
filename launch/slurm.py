#!/usr/bin/env python
"""Submits a training, a cross-validation or the workers of a sweep to Slurm.

  python launch/slurm.py --verb=train --partition=gpu --gpus=1 --minutes=240 \
    -- --config=configs/fer2013_residual_bilstm.py --workdir=/shared/runs/a
  python launch/slurm.py --verb=sweep --workers=8 --gpus=1 --minutes=240 -- \
    --config=configs/sweeps/p0.py --workdir=/shared/sweeps/p0 \
    --storage=postgresql+psycopg://me@db/sweeps

What stands after -- is the verb's own, as `python -m fer_jax VERB` takes it.
Workers of a sweep are one array whose tasks share the storage.

Before its limit a job is told to save, leaves, and is queued again until it is
finished; so is one that Slurm preempts by requeueing, or that an administrator
requeues, and one of several processes where one of them is killed. `scancel`
lets it save and ends it: the same command goes on. Logs are in WORKDIR/slurm.
Needs the extra `slurm`.
"""

import contextlib
import io
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from fer_jax.errors import UserError, nearest

VERB = flags.DEFINE_enum(
  'verb', None, ['train', 'crossval', 'sweep'], 'What to run.'
)
WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Tasks of a sweep, one array.', lower_bound=1
)
PARTITION = flags.DEFINE_string('partition', None, "Slurm's default if unset.")
MINUTES = flags.DEFINE_integer(
  'minutes', 60, 'Limit of a job, which is queued again at it.', lower_bound=1
)
NODES = flags.DEFINE_integer(
  'nodes', 1, 'Nodes of a job, one process each.', lower_bound=1
)
GPUS = flags.DEFINE_integer('gpus', 0, 'GPUs of a node.', lower_bound=0)
CPUS = flags.DEFINE_integer('cpus', 0, "Cores; 0 is Slurm's.", lower_bound=0)
MEM_GB = flags.DEFINE_integer('mem_gb', 0, "0 is Slurm's.", lower_bound=0)
GRACE_SECONDS = flags.DEFINE_integer(
  'grace_seconds', 90, 'Before its limit a job is told to save.', lower_bound=20
)
REQUEUES = flags.DEFINE_integer(
  'requeues',
  100,
  'How often a job is queued again at its limit; and restarts, whatever for, '
  'after which it is not once more where a process is gone.',
  lower_bound=0,
)
SBATCH = flags.DEFINE_multi_string(
  'sbatch', [], 'Further options of sbatch, such as account=NAME. Repeat it.'
)
SETUP = flags.DEFINE_multi_string(
  'setup', [], 'Shell lines before the program, such as "module load cuda".'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print what would be submitted, and leave.'
)

NOT_HERE = {
  'max_seconds': 'the limit is --minutes, and what is left is queued again',
  'workers': 'name --workers before the --; each task is one worker',
}
OWN_DISK = ('/tmp', '/var/tmp', '/dev/shm')
USERS_MISTAKE = 2
"""The exit status of `python -m fer_jax` that another try does not mend."""
TRY_AGAIN = 75
"""The one after which the same command goes on."""
ENDED = (-signal.SIGKILL, -signal.SIGABRT)
"""How one of several processes ends that is out of memory, or that JAX ends
because it misses another; `subprocess.Popen` has it so."""
HEARD_SECONDS = 2.0
"""Until all processes of a job have heard what Slurm tells them."""


class Task:
  """Runs a command until it ends, or until Slurm wants the job to leave.

  Slurm's processes start with a copy of this object: it needs nothing of this
  file but the standard library.
  """

  def __init__(self, command: list[str], requeues: int):
    self._command = command
    self._requeues = requeues

  def __call__(self) -> None:
    """Runs it; a job that is to go on later does not return."""
    at_limit = signal.getsignal(signal.SIGUSR2)
    told = []

    def tell(number, frame):
      told.append(number)
      child.send_signal(signal.SIGTERM)

    child = subprocess.Popen(
      self._command,
      # Slurm's warning reaches every process of a job, and ends one that does
      # not expect it.
      preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    )
    signal.signal(signal.SIGUSR2, tell)
    # scancel, preemption, scontrol requeue: whether the job is queued again is
    # Slurm's to say.
    signal.signal(signal.SIGTERM, tell)
    status = child.wait()
    if status == 0:
      return
    several = int(os.environ.get('SLURM_NTASKS', '1')) > 1
    gone = status == TRY_AGAIN or (several and status in ENDED)
    if gone and not told:
      # Another process may have been told before this one, and have left.
      time.sleep(HEARD_SECONDS)
    if signal.SIGUSR2 in told and status != USERS_MISTAKE:
      assert callable(at_limit)  # submitit's, which queues the job again
      at_limit(signal.SIGUSR2, None)
    elif gone and not told:
      self._requeue()
    raise SystemExit(status if status > 0 else 128 - status)

  def _requeue(self) -> None:
    """Queues the job again, which any of its processes may do."""
    restarts = int(os.environ.get('SLURM_RESTART_COUNT', '0'))
    if restarts >= self._requeues:
      print(f'restarted {restarts} times: not queued again', file=sys.stderr)
      return
    job = os.environ['SLURM_JOB_ID']
    if 'SLURM_ARRAY_JOB_ID' in os.environ:
      array, number = (
        os.environ[f'SLURM_ARRAY_{name}'] for name in ('JOB_ID', 'TASK_ID')
      )
      job = f'{array}_{number}'
    print(f'a process is gone: job {job} is queued again', file=sys.stderr)
    # Fails where another process was faster.
    subprocess.run(['scontrol', 'requeue', job], check=False)

  def checkpoint(self):
    """What is queued again: the same; the workdir holds how far it came."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self)


def main(argv: list[str]) -> int:
  """Submits, or says in one line why not."""
  try:
    submit(argv[1:])
  except UserError as error:
    print(f'launch/slurm.py: {error}', file=sys.stderr)
    return USERS_MISTAKE
  return 0


def submit(arguments: list[str]) -> None:
  """Submits what the flags and the verb's arguments say.

  Raises:
    UserError: something is missing, or sbatch refuses.
  """
  workdir = check_arguments(arguments)
  try:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError
    from submitit.slurm import slurm
  except ImportError:
    raise UserError(
      "submitit is not installed; pip install -e '.[slurm]' installs it"
    ) from None
  command = [sys.executable, '-m', 'fer_jax', VERB.value, *arguments]
  folder = workdir / 'slurm'
  options = sbatch_options()
  if DRY_RUN.value:
    script = slurm._make_sbatch_string(
      f'{shlex.quote(sys.executable)} -u -m submitit.core._submit {folder}',
      folder,
      map_count=WORKERS.value if WORKERS.value > 1 else None,
      **options,
    )
    print(f'{script}\n# which runs, in each task\n# {shlex.join(command)}')
    return
  check_cluster(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'cannot write to --workdir {workdir}: {error.strerror}'
    ) from error
  executor = SlurmExecutor(folder, max_num_timeout=REQUEUES.value)
  executor.update_parameters(**options)
  try:
    # submitit prints what sbatch says besides.
    with contextlib.redirect_stderr(io.StringIO()), executor.batch():
      jobs = [
        executor.submit(Task(command, REQUEUES.value))
        for _ in range(WORKERS.value)
      ]
  except FailedJobError as error:
    said = ' '.join(str(error).replace('sbatch: error: ', '').split())
    raise UserError(f'sbatch refuses: {said}') from None
  job = jobs[0].job_id.partition('_')[0]
  tasks = f' of {len(jobs)} tasks' if len(jobs) > 1 else ''
  print(f'submitted job {job}{tasks}: {shlex.join(command)}')
  print(f'logs: {jobs[0].paths.stdout} and beside it')
  print(f'state: squeue --jobs={job}; stop: scancel {job}')


def check_arguments(arguments: list[str]) -> pathlib.Path:
  """The workdir among the verb's arguments.

  Raises:
    UserError: one is missing, or does not suit a cluster.
  """
  if VERB.value is None:
    raise UserError('--verb is missing; expected train, crossval or sweep')
  if WORKERS.value > 1 and VERB.value != 'sweep':
    raise UserError(
      f'--workers={WORKERS.value} is for --verb=sweep; a {VERB.value} is one '
      'job'
    )
  if NODES.value > 1 and VERB.value == 'sweep':
    raise UserError(
      f'--nodes={NODES.value} is for train and crossval; a sweep takes several '
      'nodes by --workers'
    )
  for name, instead in NOT_HERE.items():
    if value_of(arguments, name) is not None:
      raise UserError(f'--{name} after the --: leave it out; {instead}')
  config = value_of(arguments, 'config')
  if not config:
    raise UserError(
      '--config is missing after the --; expected a config file such as '
      'configs/quickstart.py'
    )
  path = config if config.endswith('.json') else config.partition(':')[0]
  if not pathlib.Path(path).is_file():
    raise UserError(f'--config={config}: there is no file {path}')
  named = value_of(arguments, 'workdir')
  if not named:
    raise UserError('--workdir is missing after the --; expected a folder')
  workdir = pathlib.Path(named)
  if not workdir.is_absolute():
    raise UserError(
      f'--workdir={named} is relative; expected an absolute path on a disk '
      f'that the nodes share, such as {workdir.absolute()}'
    )
  if MINUTES.value * 60 < GRACE_SECONDS.value + 60:
    raise UserError(
      f'--minutes={MINUTES.value} leaves no time to work before the last '
      f'--grace_seconds={GRACE_SECONDS.value}; Slurm may warn a minute early'
    )
  return workdir


def value_of(arguments: list[str], name: str) -> str | None:
  """The value of a flag among a verb's arguments, None where it is not."""
  found = None
  for index, argument in enumerate(arguments):
    flag, equals, value = argument.partition('=')
    if flag in (f'--{name}', f'-{name}'):
      following = ''.join(arguments[index + 1 : index + 2])
      found = value if equals else following
  return found


def sbatch_options() -> dict:
  """Options of a job, as submitit names them.

  Raises:
    UserError: one of --sbatch is not NAME=VALUE.
  """
  further: dict[str, str | bool] = {'requeue': True}
  for option in SBATCH.value:
    name, equals, value = option.lstrip('-').partition('=')
    if not name:
      raise UserError(f'--sbatch={option}: expected NAME=VALUE')
    further[name] = value if equals else True
  options = {
    'job_name': f'fer_jax_{VERB.value}',
    'partition': PARTITION.value,
    'time': MINUTES.value,
    'nodes': NODES.value,
    'ntasks_per_node': 1,
    'gpus_per_node': GPUS.value or None,
    'cpus_per_task': CPUS.value or None,
    'mem': f'{MEM_GB.value}GB' if MEM_GB.value else None,
    'signal_delay_s': GRACE_SECONDS.value,
    'array_parallelism': WORKERS.value,
    'setup': SETUP.value or None,
    'additional_parameters': further,
  }
  return {k: v for k, v in options.items() if v is not None}


def check_cluster(workdir: pathlib.Path) -> None:
  """That there is a cluster, with this partition, which can see the workdir.

  Raises:
    UserError: there is not.
  """
  for program in ('sbatch', 'srun', 'sinfo'):
    if shutil.which(program) is None:
      raise UserError(
        f'{program} is not found: launch/slurm.py runs where jobs are '
        'submitted, on a login node of a Slurm cluster'
      )
  partitions = sinfo('%R')
  if PARTITION.value:
    for name in PARTITION.value.split(','):
      if name not in partitions:
        raise UserError(
          f'there is no partition {name!r}; there are '
          f'{", ".join(partitions)}{nearest(name, partitions)}'
        )
  own = {*OWN_DISK, tempfile.gettempdir()}
  if not any(workdir.is_relative_to(place) for place in own):
    return
  nodes = sinfo(
    '%n', *([f'--partition={PARTITION.value}'] * bool(PARTITION.value))
  )
  if set(nodes) - {
    socket.gethostname(),
    socket.gethostname().partition('.')[0],
  }:
    raise UserError(
      f'--workdir={workdir} is on a disk of this machine alone, and jobs may '
      f'run on {", ".join(nodes[:4])}; choose a folder that all nodes share'
    )


def sinfo(column: str, *options: str) -> list[str]:
  """A column of sinfo, each value once.

  Raises:
    UserError: Slurm does not answer.
  """
  done = subprocess.run(
    ['sinfo', '--noheader', f'--format={column}', *options],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    said = ' '.join(done.stderr.split()) or f'exit status {done.returncode}'
    raise UserError(f'Slurm does not answer: {said}')
  return list(dict.fromkeys(done.stdout.split()))


if __name__ == '__main__':
  app.run(main)
