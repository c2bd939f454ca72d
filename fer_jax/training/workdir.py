"""Whose a workdir is, and what it says of its run.

A workdir is one config's and, while it trains, one process's: of several hosts
the first one's. Processes that divide the runs of a workdir have a lock each.
"""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

from fer_jax import config as config_lib
from fer_jax import files, forms, hosts, provenance
from fer_jax.errors import UserError
from fer_jax.training import checkpoint
from fer_jax.training.state import TrainState, parameter_count


def _classes(value: Any) -> bool:
  """At least two names."""
  return not forms.misfit(value, [forms.text]) and len(value) > 1


# What is relied on of run.json.
_RUN = {
  'class_names': _classes,
  'dataset?': {},
  'protocol?': {},
  'rollbacks?': [{'to_step': forms.count, 'device_seconds?': forms.number}],
  'diverged?': {'device_seconds': forms.number},
}


class TakenError(UserError):
  """Another process trains in a workdir."""


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: config_lib.Config, number: int = 0):
  """The workdir, this config's and this process's alone while it trains.

  Args:
    workdir: made where it is missing.
    config: of the run.
    number: of this process, where several have a part in what is in there: the
      first one writes.

  Raises:
    TakenError: another process of this number trains in it.
    UserError: it is another config's (naming the fields that differ), or it
      cannot be written.
  """
  with contextlib.ExitStack() as claim:
    hosts.on_first(
      lambda: claim.enter_context(_claimed(workdir, config, number))
    )
    yield


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, config: config_lib.Config, number: int):
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir {workdir} is a file; expected a folder')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / (f'.lock_{number}' if number else '.lock')).open('w')
  except OSError as error:
    raise UserError(
      f'cannot write to --workdir {workdir}: {error.strerror}'
    ) from error
  with lock:  # the kernel frees it however the process ends
    if not files.taken(lock):
      raise TakenError(
        f'another process trains in --workdir {workdir}; wait for it, or '
        'choose another'
      )
    _require_same_config(workdir, config)
    if not number:  # what another one is writing is not left over
      files.remove_temporaries(workdir)
      _write_config(workdir, config)
    yield


def _require_same_config(
  workdir: pathlib.Path, config: config_lib.Config
) -> None:
  """Raises UserError where a run of another config has left its mark."""
  differ = _differences(workdir, config)
  # Of a cross-validation its folds are what was trained.
  trained = [workdir, *workdir.glob('fold_*')]
  if differ and any(map(_has_left_a_mark, trained)):
    raise UserError(
      f'{workdir} was made by another config: {"; ".join(differ)}; '
      'choose another --workdir or the same config'
    )


def _has_left_a_mark(workdir: pathlib.Path) -> bool:
  """Whether a run has checkpoints, or figures that outlived them: those would
  pass for figures of the next run."""
  return bool(checkpoint.steps(workdir)) or any(workdir.glob('metrics_*.json'))


def _differences(workdir: pathlib.Path, config: config_lib.Config) -> list[str]:
  """From the config that a workdir holds, if it does."""
  path = workdir / 'config.json'
  if not path.exists():
    return []
  return config_lib.differences(config_lib.load_json(path), config)


def _write_config(workdir: pathlib.Path, config: config_lib.Config) -> None:
  path = workdir / 'config.json'
  content = config_lib.to_json(config)
  if path.exists() and files.read_json(path) == content:
    return
  # Nothing was trained yet: whatever was wrong is being put right.
  if _differences(workdir, config):
    (workdir / 'run.json').unlink(missing_ok=True)
  files.write_json(path, content)


def require_same_data(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
  """Checks that a run is resumed on the examples that it began with.

  Raises:
    UserError: the data set or the partition is another one.
  """
  hosts.on_first(lambda: _require_same_data(workdir, facts))


def _require_same_data(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
  earlier = read_run(workdir)
  for what, there, here in (
    ('checksum', earlier.get('dataset', {}), facts['dataset']),
    ('version', earlier.get('dataset', {}), facts['dataset']),
    ('digest', earlier.get('protocol', {}), facts['protocol']),
  ):
    if there.get(what) != here[what]:
      raise UserError(
        f'{workdir} was trained on {here["name"]} with {what} '
        f'{there.get(what)}, but the one found here has {here[what]}: '
        'examples may have changed sides; build that source, or choose '
        'another --workdir'
      )


def write_run_json(
  workdir: pathlib.Path,
  config: config_lib.Config,
  facts: dict[str, Any],
  state: TrainState,
  origin: dict[str, Any],
  devices: Sequence[Any] | None = None,
) -> None:
  """Writes where, on what, from what and under which protocol the run is made.

  Args:
    workdir: of the run.
    config: of the run.
    facts: of `task.facts_of`.
    state: of any step.
    origin: what the first state came from, where this process made it.
    devices: that it is trained on; None for all.
  """
  note(
    workdir,
    {
      'model': config.model.name,
      'parameters': parameter_count(state.params),
      'frozen': list(config.optim.freeze),
      **origin,
      **facts,
      'environment': provenance.environment(devices),
    },
  )


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
  """The content of run.json.

  Raises:
    UserError: naming the file, where it is missing or damaged.
  """
  path = workdir / 'run.json'
  content = files.read_json(path)
  wrong = forms.misfit(content, _RUN)
  if wrong:
    raise UserError(f'{path}: {wrong}')
  return content


def note(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
  """Adds to run.json, in the place of what was said of the same before."""
  path = workdir / 'run.json'

  def write():
    earlier = read_run(workdir) if path.exists() else {}
    files.write_json(path, {**earlier, **facts})

  hosts.on_first(write)
