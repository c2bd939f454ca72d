"""A run that begins with published weights in its backbone."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.errors import UserError
from fer_jax.models import pretrained
from fer_jax.training.state import TrainState, merge, split


def from_file(
  state: TrainState, graphdef: nnx.GraphDef, path: str
) -> TrainState:
  """A state before its first step with the backbone's arrays from a file.

  Args:
    state: before the first step.
    graphdef: of the model.
    path: of `train.pretrained`.

  Raises:
    UserError: naming the field and the file, where it cannot be read or does
      not fit the model.
  """
  model = merge(graphdef, state.params, state.model_state)
  try:
    pretrained.load_pretrained(model, _expanded(path))
  except (ValueError, ImportError, OSError) as error:
    raise UserError(f'train.pretrained is {path!r}: {error}') from error
  _, params, model_state = split(model)
  averages = {'params': params, 'model_state': model_state}
  # Copies, because the step donates its state and no buffer may be in it twice.
  return state._replace(
    params=params,
    model_state=model_state,
    ema=None if state.ema is None else jax.tree.map(jnp.copy, averages),
  )


def facts(path: str) -> dict[str, str] | None:
  """{'path', 'sha256'} of a weights file, as run.json tells; None for ''."""
  if not path:
    return None
  with _expanded(path).open('rb') as f:
    return {
      'path': path,
      'sha256': hashlib.file_digest(f, 'sha256').hexdigest(),
    }


def _expanded(path: str) -> pathlib.Path:
  return pathlib.Path(path).expanduser()
