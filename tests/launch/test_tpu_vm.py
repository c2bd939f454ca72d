"""launch/tpu_vm.sh against a gcloud that has two hosts in two folders."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'tpu_vm.sh'
SLICE = ('--tpu=slice', '--zone=us-central2-b')
WORKDIR = '--workdir=/mnt/run'

# `ssh` runs the command in the host's folder, `scp` copies to it. With a file
# `apart`, what is /disk to host 0 is another disk to host 1.
GCLOUD = """#!/bin/bash
set -e
printf '%s\\n' "$*" >>{root}/calls
[ "${{*: -1}}" != '--format=value(state)' ] || {{ cat {root}/state; exit; }}
for argument; do
  case "$argument" in
    --command=*) command="${{argument#*=}}" ;;
    --worker=all) hosts='0 1' ;;
    --worker=*) hosts="${{argument#*=}}" ;;
  esac
done
for host in $hosts; do
  if [ "$4" = scp ]; then
    cp "$5" {root}/host$host/
    continue
  fi
  [ "$host" = 0 ] || [ ! -e {root}/apart ] || command="${{command//disk/other}}"
  (cd {root}/host$host && HOME=$PWD bash -c "$command")
done
"""

# `venv` makes a python that says what it was called with, and stays.
PYTHON = """#!/bin/bash
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
#!/bin/bash
[ "$2" = fer_jax ] || exit 0
printf '%s\\n' "$FLAG $*"
exec sleep 60
END
chmod +x .venv/bin/python
"""


@pytest.fixture
def hosts(tmp_path):
  """Folder with host0, host1, the calls of gcloud, and the slice's state."""
  for name in ('host0', 'host1', 'bin'):
    (tmp_path / name).mkdir()
  (tmp_path / 'state').write_text('READY\n')
  for name, text in (
    ('gcloud', GCLOUD.format(root=tmp_path)),
    ('python3', PYTHON),
  ):
    (tmp_path / 'bin' / name).write_text(text)
    (tmp_path / 'bin' / name).chmod(0o755)
  return tmp_path


def _run(hosts, *arguments):
  return subprocess.run(
    [SCRIPT, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'PATH': f'{hosts / "bin"}:{os.environ["PATH"]}'},
  )


def test_a_run_starts_and_leaves_on_every_host(hosts):
  done = _run(hosts, *SLICE, 'install')
  assert done.returncode == 0, done.stderr
  for host in ('host0', 'host1'):
    assert (hosts / host / 'fer_jax' / 'pyproject.toml').exists()
  workdir = hosts / 'shared disk'
  start = (
    *SLICE, '--env=FLAG=a b', 'start', '--', 'train', '--config=c.py',
    f'--workdir={workdir}',
  )  # fmt: skip
  done = _run(hosts, *start)
  assert done.returncode == 0, done.stderr
  assert list(workdir.iterdir()) == []
  logs = [hosts / host / 'fer_jax' / 'run.log' for host in ('host0', 'host1')]
  said = f'a b -m fer_jax train --config=c.py --workdir={workdir}\n'
  deadline = time.monotonic() + 20
  while [log.read_text() for log in logs] != [said, said]:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  again = _run(hosts, *start)
  assert again.returncode != 0
  assert 'a run is under way' in again.stderr
  assert _run(hosts, *SLICE, 'status').stdout.count(': running') == 2
  assert _run(hosts, *SLICE, 'stop').returncode == 0
  while _run(hosts, *SLICE, 'status').stdout.count('not running') < 2:
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_workdir_that_a_host_does_not_see_starts_nothing(hosts):
  (hosts / 'apart').touch()
  done = _run(
    hosts, *SLICE, 'start', '--', 'train', '--config=c.py',
    f'--workdir={hosts}/disk',
  )  # fmt: skip
  assert done.returncode == 2
  assert 'is not shared by all hosts; nothing was started' in done.stderr
  assert 'fer_jax train' not in (hosts / 'calls').read_text()


def test_a_dry_run_prints_and_calls_nothing(hosts):
  for arguments in (
    ('install',),
    ('start', '--', 'sweep', '--config=c.py', WORKDIR),
    ('status',),
    ('stop',),
  ):
    done = _run(hosts, *SLICE, '--project=p', '--dry_run', *arguments)
    assert done.returncode == 0, done.stderr
    assert '--worker=all' in done.stdout
    assert '--zone=us-central2-b --project=p' in done.stdout
  assert not (hosts / 'calls').exists()


def test_mistakes_are_one_line(hosts):
  for said, arguments in (
    ('no action', SLICE),
    ('unknown action go', (*SLICE, 'go')),
    ('unknown option --tup=a', ('--tup=a',)),
    ('--tpu is missing', ('--zone=z', 'status')),
    ('--zone is missing', ('--tpu=a', 'status')),
    ('expected a plain path', (*SLICE, '--folder=a;b', 'status')),
    ('--env=1=2: expected NAME=VALUE', (*SLICE, '--env=1=2', 'status')),
    ('start needs a verb', (*SLICE, 'start')),
    ('report is not one of', (*SLICE, 'start', '--', 'report')),
    ('--config=FILE is missing', (*SLICE, 'start', '--', 'train', WORKDIR)),
    (
      '--workdir=r is relative',
      (*SLICE, 'start', '--', 'train', '--config=c', '--workdir=r'),
    ),
    ('status takes nothing', (*SLICE, 'status', '--', 'train')),
  ):
    done = _run(hosts, *arguments)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert said in done.stderr
  assert not (hosts / 'calls').exists()
  (hosts / 'state').write_text('PREEMPTED\n')
  done = _run(hosts, *SLICE, 'status')
  assert done.returncode == 2
  assert 'slice is PREEMPTED; expected READY' in done.stderr
  (hosts / 'state').write_text('READY\n')
  start = ('start', '--', 'sweep', '--config=c.py', WORKDIR)
  done = _run(hosts, *SLICE, *start)
  assert done.returncode == 2
  assert 'slice has 2 hosts; sweep uses one machine' in done.stderr
  assert 'fer_jax sweep' not in (hosts / 'calls').read_text()


def test_shellcheck_finds_nothing():
  if shutil.which('shellcheck') is None:
    pytest.skip('needs shellcheck')
  done = subprocess.run(
    ['shellcheck', SCRIPT], capture_output=True, text=True, check=False
  )
  assert done.stdout == ''
