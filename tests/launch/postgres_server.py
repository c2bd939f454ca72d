"""A PostgreSQL server of one's own, in a temporary folder, on a free port."""

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest


class Server:
  """Started and stopped at will.

  Attributes:
    url: for `--storage`, of an empty database.
  """

  def __init__(self, folder: pathlib.Path, programs: pathlib.Path):
    self._folder, self._programs = folder, programs
    self._port = free_port()
    self.url = f'postgresql+psycopg://sweeper@127.0.0.1:{self._port}/postgres'
    self._run('initdb', '--auth=trust', '--username=sweeper', '--no-sync')

  def start(self) -> None:
    """Returns when it takes connections."""
    options = f'-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1'
    self._run(
      'pg_ctl', '-w', '-t', '60', '-l', self._folder / 'log', '-o', options,
      'start',
    )  # fmt: skip

  def kill(self) -> None:
    """As a crash would: no session is told, nothing is written any more."""
    self._run('pg_ctl', '-m', 'immediate', 'stop')

  def _run(self, program: str, *arguments) -> None:
    data = self._folder / 'data'
    # Not a pipe: the server inherits it, and would keep it open.
    with (self._folder / 'output').open('w') as output:
      done = subprocess.run(
        [self._programs / program, '-D', data, *map(str, arguments)],
        user=owner(),
        cwd=self._folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        check=False,
      )
    assert done.returncode == 0, (self._folder / 'output').read_text()


@contextlib.contextmanager
def running() -> Iterator[Server]:
  """A server that runs; skips the test where there is none to run."""
  programs = _programs()
  if programs is None:
    pytest.skip("needs PostgreSQL's server")
  # Not below pytest's folder, which is closed to the server's own user.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='postgres_'))
  try:
    if owner() is not None:
      shutil.chown(folder, owner())
    server = Server(folder, programs)
    server.start()
    try:
      yield server
    finally:
      with contextlib.suppress(AssertionError):  # a test may have killed it
        server.kill()
  finally:
    shutil.rmtree(folder)


def _programs() -> pathlib.Path | None:
  """Debian keeps them out of PATH."""
  places = [
    *sorted(glob.glob('/usr/lib/postgresql/*/bin'), reverse=True),
    *os.environ.get('PATH', '').split(os.pathsep),
  ]
  for place in map(pathlib.Path, places):
    if (place / 'initdb').exists() and (place / 'pg_ctl').exists():
      return place
  return None


def owner() -> str | None:
  """The server refuses to run as root: who it runs as instead."""
  if os.geteuid() != 0:
    return None
  names = {user.pw_name for user in pwd.getpwall()}
  return 'postgres' if 'postgres' in names else 'nobody'


def free_port() -> int:
  """A port that nobody listens on at the moment."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]
