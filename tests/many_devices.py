"""Scripts of checks, for a process that is started with several CPU devices."""

import os
import subprocess
import sys


def checks_passed(script, *arguments, devices: int, x64: bool = False) -> int:
  """Runs it in its folder; each check that passes prints 'checked'."""
  done = subprocess.run(
    [sys.executable, '-W', 'error', script.name, *arguments],
    capture_output=True,
    text=True,
    cwd=script.parent,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_ENABLE_X64': str(int(x64)),
      'JAX_NUMPY_RANK_PROMOTION': 'raise',
      'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
      + f' --xla_force_host_platform_device_count={devices}',
    },
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.count('checked')
