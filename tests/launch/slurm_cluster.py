"""A Slurm cluster of one node on loopback, in a temporary folder."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
from postgres_server import free_port

PROGRAMS = ('munged', 'mungekey', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')

# pgid and task/none: no cgroups, which a container has no right to.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=1,sched_min_interval=100000
MpiDefault=none
ReturnToService=2
KillWait=15
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A cluster that takes jobs.

  Attributes:
    environment: with which its programs find it.
    folder: of its files.
  """

  environment: dict[str, str]
  folder: pathlib.Path

  def ask(self, *command: str) -> str:
    """What a program of Slurm prints."""
    done = subprocess.run(
      command,
      env=self.environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  def state(self, job: str) -> dict[str, str]:
    """What Slurm knows of a job."""
    return dict(
      re.findall(r'(\w+)=(\S*)', self.ask('scontrol', 'show', 'job', job))
    )

  def wait(self, job: str, state: str, *, seconds: float = 240) -> None:
    """Until a job is in a state; fails if it ends in another."""
    deadline = time.monotonic() + seconds
    while (now := self.state(job)['JobState']) != state:
      ended = now in ('FAILED', 'CANCELLED', 'TIMEOUT', 'COMPLETED')
      if ended or time.monotonic() > deadline:
        pytest.fail(self._story(job, now))
      time.sleep(0.2)

  def _story(self, job: str, state: str) -> str:
    logs = pathlib.Path(self.state(job)['StdOut']).parent.glob('*log.*')
    return '\n'.join([f'job {job} is {state}', *(p.read_text() for p in logs)])


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
  """A cluster that runs; skips the test where none can be started."""
  path = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/usr/bin'])
  absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
  if absent:
    pytest.skip(f'needs a Slurm cluster; not installed: {absent[0]}')
  if os.geteuid() != 0:
    pytest.skip('needs a Slurm cluster, which only root can start here')
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm_'))
  folder.chmod(0o755)
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  (folder / 'slurm.conf').write_text(
    CONF.format(
      folder=folder,
      host=socket.gethostname().partition('.')[0],
      control_port=free_port(),
      node_port=free_port(),
    )
  )
  environment = {
    **os.environ,
    'PATH': path,
    'SLURM_CONF': str(folder / 'slurm.conf'),
  }
  cluster = Cluster(environment, folder)
  with contextlib.ExitStack() as stack:
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    for command in (
      (
        'munged',
        '--foreground',
        '--force',
        f'--key-file={folder}/munge.key',
        f'--socket={folder}/munge.socket',
        f'--pid-file={folder}/munged.pid',
        f'--log-file={folder}/munged.log',
        f'--seed-file={folder}/munged.seed',
      ),
      ('slurmctld', '-D', '-i'),
      ('slurmd', '-D'),
    ):
      if command[0] == 'munged':
        cluster.ask('mungekey', '--create', f'--keyfile={folder}/munge.key')
      stack.enter_context(_daemon(command, cluster))
    _until_idle(cluster)
    yield cluster


@contextlib.contextmanager
def _daemon(command, cluster: Cluster) -> Iterator[None]:
  with (cluster.folder / f'{command[0]}.output').open('w') as output:
    process = subprocess.Popen(
      command,
      env=cluster.environment,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
    )
  try:
    yield
  finally:
    process.terminate()
    try:
      process.wait(20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _until_idle(cluster: Cluster) -> None:
  """Until the node answers; skips with what the daemons say if it does not."""
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    done = subprocess.run(
      ['sinfo', '--noheader', '--format=%t'],
      env=cluster.environment,
      capture_output=True,
      text=True,
      check=False,
    )
    if done.stdout.strip() == 'idle':
      return
    time.sleep(0.2)
  said = [path.read_text() for path in sorted(cluster.folder.glob('*.output'))]
  pytest.skip('needs a Slurm cluster, which does not start: ' + '; '.join(said))
