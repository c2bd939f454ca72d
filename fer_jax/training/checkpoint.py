"""Checkpoints: Orbax writes and reads the arrays, a manifest guards them.

Orbax loads a checkpoint with flipped bits without a word, so each checkpoint
is sealed by `manifest.json`: the SHA-256 of every file, written last and
checked first. A directory without a valid manifest is no checkpoint; it is
passed over, aloud, for the one before.

    checkpoints/
      1240/            one directory a checkpoint, named by its step
        ...            Orbax's files
        manifest.json  {"step", "epoch", "best_step", "files": {path: sha256},
                        "arrays": {name: dtype and shape}}
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training.state import TrainState

MANIFEST = 'manifest.json'
LATEST_KEPT = 2

log = logging.getLogger(__name__)

State = TypeVar('State')
"""A pytree of arrays: of one run a `TrainState`."""


@dataclasses.dataclass(frozen=True)
class Sealed:
  """A checkpoint whose manifest was read (its files not yet compared).

  Attributes:
    path: the directory.
    step: steps taken.
    epoch: epochs completed.
    best_step: step of the best checkpoint when this one was written.
    files: SHA-256 by relative path.
    arrays: dtype and shape by name, such as 'float32[3,3,1,32]'.
  """

  path: pathlib.Path
  step: int
  epoch: int
  best_step: int
  files: dict[str, str]
  arrays: dict[str, str]


def directory(workdir: pathlib.Path) -> pathlib.Path:
  """Where a workdir's checkpoints lie."""
  return pathlib.Path(workdir) / 'checkpoints'


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _digests(path: pathlib.Path) -> dict[str, str]:
  return {
    str(p.relative_to(path)): _sha256(p)
    for p in sorted(path.rglob('*'))
    if p.is_file() and p.name != MANIFEST
  }


def _read_manifest(path: pathlib.Path) -> Sealed | None:
  """The manifest of a checkpoint directory, None where there is none."""
  try:
    manifest = json.loads((path / MANIFEST).read_text())
    return Sealed(
      path=path,
      step=int(manifest['step']),
      epoch=int(manifest['epoch']),
      best_step=int(manifest['best_step']),
      files=dict(manifest['files']),
      arrays=dict(manifest['arrays']),
    )
  except (OSError, ValueError, KeyError, TypeError):
    return None


def damage(sealed: Sealed) -> str | None:
  """What is wrong with a checkpoint's files; None where all is well."""
  for name, expected in sealed.files.items():
    path = sealed.path / name
    if not path.is_file():
      return f'{name} is missing'
    if _sha256(path) != expected:
      return f'{name} is not what was written (SHA-256 differs)'
  return None


def steps(workdir: pathlib.Path) -> list[int]:
  """Steps of all checkpoint folders of a workdir, sealed or not, rising."""
  root = directory(workdir)
  if not root.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in root.iterdir()
    if path.is_dir() and path.name.isdigit()
  )


def checkpoints(workdir: pathlib.Path) -> list[Sealed]:
  """The sealed checkpoints of a workdir, oldest first, unverified."""
  found = [_read_manifest(_folder(workdir, step)) for step in steps(workdir)]
  return [sealed for sealed in found if sealed]


def _folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return directory(workdir) / str(step)


def latest_intact(workdir: pathlib.Path) -> Sealed | None:
  """The newest checkpoint whose files are what was written.

  Each newer one that is not is named in a warning.
  """
  for step in steps(workdir):
    if not _read_manifest(_folder(workdir, step)):
      log.warning(
        'passing over checkpoint %s: %s is missing or unreadable',
        _folder(workdir, step),
        MANIFEST,
      )
  for sealed in reversed(checkpoints(workdir)):
    wrong = damage(sealed)
    if wrong is None:
      return sealed
    log.warning('passing over damaged checkpoint %s: %s', sealed.path, wrong)
  return None


def best_intact(workdir: pathlib.Path) -> Sealed:
  """The best checkpoint by validation, as the newest intact one names it.

  Raises:
    UserError: when there is no intact checkpoint, or the best is damaged.
  """
  newest = latest_intact(workdir)
  if newest is None:
    raise UserError(f'{workdir} holds no intact checkpoint; run `train` first')
  for sealed in checkpoints(workdir):
    if sealed.step != newest.best_step:
      continue
    wrong = damage(sealed)
    if wrong is None:
      return sealed
    raise UserError(
      f'the best checkpoint {sealed.path} is damaged: {wrong}; train again in '
      'another workdir'
    )
  raise UserError(
    f'the best checkpoint {directory(workdir) / str(newest.best_step)} is '
    'gone; `train` on this workdir goes on from the newest intact one'
  )


def restore(sealed: Sealed, target: State, *, device: Any = None) -> State:
  """Reads a checkpoint's state.

  Args:
    sealed: an intact checkpoint.
    target: a state of the same structure, arrays or shapes and dtypes.
    device: where to put it; None for the first one.

  Raises:
    UserError: when the checkpoint's structure is another model's.
  """
  expected = _arrays(target)
  for name in sorted(expected.keys() | sealed.arrays.keys()):
    here, there = expected.get(name), sealed.arrays.get(name)
    if here != there:
      raise UserError(
        f'checkpoint {sealed.path} is of another model: {name} is '
        f'{there or "absent"} there and {here or "absent"} here'
      )
  place = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), target
  )
  return ocp.load(str(sealed.path), abstract)


def _arrays(tree: Any) -> dict[str, str]:
  """Dtype and shape of each array by its name in the tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): (
      f'{x.dtype}[{",".join(map(str, x.shape))}]'
    )
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


class Writer:
  """Writes checkpoints in the background, one at a time."""

  def __init__(self, workdir: pathlib.Path):
    self._root = directory(workdir).resolve()
    self._root.mkdir(parents=True, exist_ok=True)
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix='checkpoint'
    )
    self._pending: concurrent.futures.Future | None = None

  def save(self, state: TrainState, *, epoch: int) -> None:
    """Begins to write a run's checkpoint; waits for the one before it.

    Args:
      state: to be written; may be donated as soon as this returns.
      epoch: epochs completed.
    """
    self.wait()
    step = int(state.step)
    self.write(
      jax.tree.map(jnp.copy, state),  # the next step donates it
      step=step,
      epoch=epoch,
      best_step=int(state.progress.best_step) or step,
    )

  def write(self, state: Any, *, step: int, epoch: int, best_step: int) -> None:
    """Begins to write a checkpoint; waits for the one before it.

    Args:
      state: a pytree of arrays, to be left alone until `wait`.
      step: names the checkpoint; rises.
      epoch: epochs completed.
      best_step: name of the checkpoint that is kept beside the latest.
    """
    self.wait()
    path = self._root / str(step)
    if path.exists():  # unsealed or damaged, else it would have been resumed
      shutil.rmtree(path)
    response = ocp.save_async(str(path), state)
    self._pending = self._thread.submit(
      self._seal, response, path, step, epoch, best_step, _arrays(state)
    )

  def _seal(
    self,
    response: Any,
    path: pathlib.Path,
    step: int,
    epoch: int,
    best_step: int,
    arrays: dict[str, str],
  ) -> None:
    """Waits for Orbax, writes the manifest, removes what is not kept."""
    response.result()
    manifest = {
      'step': step,
      'epoch': epoch,
      'best_step': best_step,
      'files': _digests(path),
      'arrays': arrays,
    }
    files.write_json(path / MANIFEST, manifest)
    self._remove_old(step, best_step)

  def _remove_old(self, newest: int, best_step: int) -> None:
    """Removes what is not kept.

    Later steps than the newest are a damaged future that a resumed run gave
    up; they would otherwise pass for the latest.
    """
    there = steps(self._root.parent)
    kept = [step for step in there if step <= newest][-LATEST_KEPT:]
    for step in there:
      if step in kept or (step == best_step and step <= newest):
        continue
      path = self._root / str(step)
      # Unsealed first: a half-removed checkpoint must not look whole.
      (path / MANIFEST).unlink(missing_ok=True)
      shutil.rmtree(path)

  def wait(self) -> None:
    """Returns when the checkpoint begun last is sealed.

    Raises:
      UserError: when it could not be written.
    """
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    try:
      pending.result()
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
      reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
      raise UserError(
        f'cannot write a checkpoint under {self._root}: {reason}'
      ) from error

  def close(self) -> None:
    """Waits for the last checkpoint and stops the thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
