"""What importing the layers pulls in."""

import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy, flax.nnx
before = {m.partition('.')[0] for m in sys.modules}
import fer_jax.nn
after = {m.partition('.')[0] for m in sys.modules}
ours = sorted(m for m in sys.modules if m.startswith('fer_jax.'))
print(sorted(after - before))
print(sorted({'.'.join(m.split('.')[:2]) for m in ours}))
"""


def test_layers_import_jax_and_flax_only():
  """Packages loaded by `fer_jax.nn` beyond those of JAX and Flax: none, and of
  ours nothing but `fer_jax.nn`."""
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM], capture_output=True, text=True, check=True
  )
  packages, ours = result.stdout.splitlines()
  assert packages == "['fer_jax']"
  assert ours == "['fer_jax.nn']"
