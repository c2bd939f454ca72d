"""Checkpoints: Orbax writes and reads the arrays, a manifest guards them.

Orbax loads a checkpoint with flipped bits without a word, so each checkpoint
is sealed by `manifest.json`: the SHA-256 of every file, written last and
checked first. A directory without a valid manifest is no checkpoint; it is
passed over, aloud, for the one before.

    checkpoints/
      1240/            one directory a checkpoint, named by its step
        ...            Orbax's files
        manifest.json  {"step", "epoch", "best_step", "files": {path: sha256},
                        "arrays": {name: dtype and shape}, "partial": null or
                        {"taken", "seconds", "sums"}, "digest": of all of these}

A checkpoint is of no layout: every device has the whole state, one writes its
copy, and whatever devices there are go on from it. Of several hosts all take
part in what Orbax does, which wants the workdir on a disk that they share; the
first looks for what is intact, seals and removes.
"""

import concurrent.futures
import dataclasses
import hashlib
import logging
import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from fer_jax import files, forms, hosts
from fer_jax.errors import UserError
from fer_jax.training import journal
from fer_jax.training.state import TrainState

MANIFEST = 'manifest.json'
LATEST_KEPT = 2

AMID_SECONDS = 600.0
"""After the last checkpoint one is written amid an epoch: of longer epochs it
is what a kill may cost."""

PARTING_SECONDS = 4.0
"""What a checkpoint under way is waited for where a host is lost."""

log = logging.getLogger(__name__)

# Orbax logs, with a traceback, what `Writer.wait` says in one line.
logging.getLogger('absl').addFilter(
  lambda record: '_SignalingThread' not in record.getMessage()
)


@dataclasses.dataclass(frozen=True)
class Partial:
  """The first part of an epoch that a run left before its end.

  Attributes:
    taken: steps of it.
    seconds: that they took.
    sums: of them, as `step.Sums` has them; a number's JSON keeps its bits.
  """

  taken: int
  seconds: float
  sums: dict[str, float]


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
    partial: of the epoch under way; None at the end of one.
  """

  path: pathlib.Path
  step: int
  epoch: int
  best_step: int
  files: dict[str, str]
  arrays: dict[str, str]
  partial: Partial | None = None


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
    manifest = files.read_json(path / MANIFEST)
  except UserError:
    return None
  if forms.misfit(manifest, _FORM) or str(manifest['step']) != path.name:
    return None
  # Manifests of earlier versions have none.
  digest = manifest.pop('digest', None)
  if digest not in (None, files.digest(manifest)):
    return None
  partial = manifest.get('partial')
  return Sealed(
    path=path,
    step=manifest['step'],
    epoch=manifest['epoch'],
    best_step=manifest['best_step'],
    files=manifest['files'],
    arrays=manifest['arrays'],
    partial=_partial(partial),
  )


def _partial(content: dict[str, Any] | None) -> Partial | None:
  return (
    Partial(*(content[f.name] for f in dataclasses.fields(Partial)))
    if content
    else None
  )


_FORM = {
  'step': forms.count,
  'epoch': forms.count,
  'best_step': forms.count,
  'files': {'*': forms.text},
  'arrays': {'*': forms.text},
  'partial?': forms.optional(
    {'taken': forms.count, 'seconds': forms.number, 'sums': {'*': forms.number}}
  ),
}


def damage(sealed: Sealed) -> str | None:
  """What is wrong with a checkpoint's files; None where all is well."""
  for name, expected in sealed.files.items():
    path = sealed.path / name
    try:
      if not path.is_file():
        return f'{name} is missing'
      if _sha256(path) != expected:
        return f'{name} is not what was written (SHA-256 differs)'
    except OSError as error:
      return f'{name} cannot be read: {error.strerror}'
  return None


def steps(workdir: pathlib.Path) -> list[int]:
  """Steps of all checkpoint folders of a workdir, sealed or not, rising."""
  root = directory(workdir)
  if not root.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in root.iterdir()
    if path.is_dir() and path.name.isdecimal()
  )


def checkpoints(workdir: pathlib.Path) -> list[Sealed]:
  """The sealed checkpoints of a workdir, oldest first, unverified."""
  found = [_read_manifest(_folder(workdir, step)) for step in steps(workdir)]
  return [sealed for sealed in found if sealed]


def _folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return directory(workdir) / str(step)


def latest_intact(
  workdir: pathlib.Path, *, whole: bool = False, noted: bool = False
) -> Sealed | None:
  """The newest checkpoint whose files are what was written.

  Each newer one that is not is named in a warning. To be asked by all hosts.

  Args:
    workdir: of a run.
    whole: whether only those at the end of an epoch are wanted.
    noted: whether events.jsonl names them too, of who trains in the workdir.
  """
  return _of_first_host(lambda: _latest_intact(workdir, whole, noted))


def _of_first_host(find: Callable[[], Sealed | None]) -> Sealed | None:
  """What the first host finds, for all of them."""

  def as_json():
    sealed = find()
    return sealed and {**dataclasses.asdict(sealed), 'path': str(sealed.path)}

  found = hosts.on_first(as_json)
  if found is None:
    return None
  path, partial = pathlib.Path(found['path']), _partial(found['partial'])
  return Sealed(**{**found, 'path': path, 'partial': partial})


def _latest_intact(
  workdir: pathlib.Path, whole: bool = False, noted: bool = False
) -> Sealed | None:
  def pass_over(path: pathlib.Path, why: str) -> None:
    log.warning('passing over checkpoint %s: %s', path, why)
    if noted:
      journal.note(workdir, 'passed_over', checkpoint=path.name, why=why)

  for step in steps(workdir):
    if not _read_manifest(_folder(workdir, step)):
      pass_over(_folder(workdir, step), f'{MANIFEST} is missing or unreadable')
  for sealed in reversed(checkpoints(workdir)):
    if whole and sealed.partial:
      continue
    wrong = damage(sealed)
    if wrong is None:
      return sealed
    pass_over(sealed.path, wrong)
  return None


def remove_after(workdir: pathlib.Path, step: int) -> None:
  """Removes the checkpoints of later steps, which a run gives up."""
  for later in steps(workdir):
    if later > step:
      _remove(_folder(workdir, later))


def _remove(path: pathlib.Path) -> None:
  # Unsealed first: a half-removed checkpoint must not look whole.
  (path / MANIFEST).unlink(missing_ok=True)
  shutil.rmtree(path)


def best_intact(workdir: pathlib.Path) -> Sealed:
  """The best checkpoint by validation, as the newest intact one names it.

  Raises:
    UserError: when there is no intact checkpoint, or the best is damaged.
  """
  best = _of_first_host(lambda: _best_intact(workdir))
  assert best is not None
  return best


def _best_intact(workdir: pathlib.Path) -> Sealed:
  newest = _latest_intact(workdir)
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


def restore(sealed: Sealed, target: TrainState) -> TrainState:
  """Reads a checkpoint's state.

  Args:
    sealed: an intact checkpoint.
    target: a state of the same structure, arrays or shapes and dtypes.

  Raises:
    UserError: when the checkpoint's structure is another model's, or Orbax
      makes nothing of it.
  """
  expected = _arrays(target)
  for name in sorted(expected.keys() | sealed.arrays.keys()):
    here, there = expected.get(name), sealed.arrays.get(name)
    if here != there:
      raise UserError(
        f'checkpoint {sealed.path} is of another model: {name} is '
        f'{there or "absent"} there and {here or "absent"} here'
      )
  # As NumPy's, of which each host has a copy of its own.
  copies = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
  state = _load(str(sealed.path.absolute()), copies)  # Orbax refuses others
  # Not committed to its device, as a first state is not: what is compiled for
  # one of them serves the other.
  return jax.tree.map(jnp.array, state)


def _load(path: str, target: TrainState) -> TrainState:
  """What Orbax reads, of the target's structure.

  Raises:
    UserError: it does not.
  """
  try:
    return ocp.load(path, target)
  except Exception as error:  # what is raised depends on the damage
    # Orbax leaves coroutines behind, which would complain when they are freed.
    warnings.filterwarnings(
      'ignore', 'coroutine .* was never awaited', RuntimeWarning
    )
    lines = str(error).splitlines() or [type(error).__name__]
    raise UserError(f'cannot read checkpoint {path}: {lines[0]}') from error


def _arrays(tree: Any) -> dict[str, str]:
  """Dtype and shape of each array by its name in the tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): (
      f'{x.dtype}[{",".join(map(str, x.shape))}]'
    )
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _copy(state: TrainState) -> TrainState:
  """A copy of what one device has, which is the whole; of several hosts arrays
  of all of them, as Orbax wants them."""
  if hosts.count() == 1:
    state = jax.tree.map(lambda x: x.addressable_data(0), state)
  return _copy_tree(state)


@jax.jit
def _copy_tree(tree: TrainState) -> TrainState:
  # What is returned unchanged JAX may hand on; a copy it has to make.
  return jax.tree.map(jnp.copy, tree)


class Writer:
  """Writes checkpoints in the background, one at a time; on the first host.

  A context that closes it. Where several hosts leave it by an error, one may be
  gone: the first does not wait long for its checkpoint, the others not at all.
  """

  def __init__(self, workdir: pathlib.Path):
    self._root = directory(workdir).resolve()
    hosts.on_first(self._open)
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix='checkpoint'
    )
    self._pending: concurrent.futures.Future | None = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind, error, trace) -> None:
    if error is None or hosts.count() == 1:
      self.close()
      return
    if self._pending is not None and hosts.first():
      concurrent.futures.wait([self._pending], PARTING_SECONDS)
    self._thread.shutdown(wait=False)

  def _open(self) -> None:
    self._root.mkdir(parents=True, exist_ok=True)
    for left in self._root.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(left)  # by a process that was killed while it wrote

  def save(
    self, state: TrainState, *, epoch: int, partial: Partial | None = None
  ) -> None:
    """Begins to write a run's checkpoint; waits for the one before it.

    Args:
      state: to be written, whole on every device that it is on; may be donated
        as soon as this returns.
      epoch: epochs completed.
      partial: of the epoch under way, where it is left before its end.
    """
    self.wait_everywhere()
    step = int(state.step)
    path = self._root / str(step)

    def clear():
      if path.exists():  # unsealed or damaged, else it would have been resumed
        shutil.rmtree(path)

    hosts.on_first(clear)
    best_step = int(state.progress.best_step) or step
    state = _copy(state)  # the next step donates it
    response = ocp.save_async(str(path), state)
    manifest = {
      'step': step,
      'epoch': epoch,
      'best_step': best_step,
      'arrays': _arrays(state),
      'partial': dataclasses.asdict(partial) if partial else None,
    }
    self._pending = self._thread.submit(self._seal, response, path, manifest)

  def _seal(
    self, response: Any, path: pathlib.Path, manifest: dict[str, Any]
  ) -> None:
    """Waits for Orbax, writes the manifest, removes what is not kept."""
    response.result()
    if not hosts.first():
      return
    manifest = {**manifest, 'files': _digests(path)}
    files.write_json(
      path / MANIFEST, {**manifest, 'digest': files.digest(manifest)}
    )
    self._remove_old(manifest['step'], manifest['best_step'])

  def _remove_old(self, newest: int, best_step: int) -> None:
    """Removes what is not kept.

    Later steps than the newest are a damaged future that a resumed run gave
    up; they would otherwise pass for the latest. What was never sealed is no
    checkpoint. One amid an epoch is
    kept while it is the newest, and takes no other's place.
    """
    workdir = self._root.parent
    whole = [
      s.step for s in checkpoints(workdir) if not s.partial and s.step <= newest
    ]
    kept = {newest, *whole[-LATEST_KEPT:]}
    for step in steps(workdir):
      if step in kept or (step == best_step and step <= newest):
        continue
      _remove(self._root / str(step))

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

  def wait_everywhere(self) -> None:
    """As `wait`, of all hosts; where it fails on one, it does on all."""
    # The first writes; where it could not, the others would wait for it.
    hosts.on_first(self.wait)
    hosts.on_all(self.wait)

  def close(self) -> None:
    """Waits for the last checkpoint and stops the thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
