"""Models by name."""

from typing import Any

from flax import nnx

from fer_jax.errors import nearest
from fer_jax.models.fields import Field, resolve
from fer_jax.models.fusion import FusionModel
from fer_jax.models.presets import hybrid, plain, pretrained, residual
from fer_jax.models.specification import Specification

_PRESETS = {
  name: preset
  for preset in (residual, hybrid, plain, pretrained)
  for name in preset.NAMES
}
"""The module that specifies each model: `fields_of` and `specify`."""


def available() -> tuple[str, ...]:
  """Names of the models there are."""
  return tuple(sorted(_PRESETS))


def described_fields(name: str) -> dict[str, Field]:
  """A model's fields, with source, note and check.

  Raises:
    ValueError: for an unknown name; it names the nearest one.
  """
  if name not in available():
    raise ValueError(
      f'unknown model {name!r}{nearest(name, _PRESETS)} (known are '
      f'{", ".join(available())})'
    )
  return _PRESETS[name].fields_of(name)


def fields(name: str) -> dict[str, Any]:
  """A model's tunable fields and their defaults: plain values for a config.

  Raises:
    ValueError: for an unknown name; it names the nearest one.
  """
  return {k: field.default for k, field in described_fields(name).items()}


def specify(name: str, **overrides: Any) -> Specification:
  """The stages of a model.

  Args:
    name: one of `available()`.
    **overrides: values of `fields(name)`.

  Raises:
    ValueError: for an unknown name or field, which names the nearest one, and
      for a value out of range or of another type.
  """
  values = resolve(name, described_fields(name), overrides)
  return _PRESETS[name].specify(name, values)


def check(name: str, **overrides: Any) -> None:
  """Raises what `create` would raise for these values, and builds nothing."""
  specify(name, **overrides)


def create(
  name: str, *, num_classes: int, rngs: nnx.Rngs, **overrides: Any
) -> FusionModel:
  """Builds a model.

  Example:

    >>> from flax import nnx
    >>> from fer_jax import models
    >>> model = models.create(
    ...   'residual_bilstm', num_classes=7, rngs=nnx.Rngs(0), filters=(8, 16, 8)
    ... )
    >>> model.token_grid
    (6, 6)

  Args:
    name: one of `available()`.
    num_classes: K.
    rngs: the stream `params` draws the parameters.
    **overrides: values of `fields(name)`.

  Raises:
    ValueError: as `specify` and `FusionModel`.
  """
  return FusionModel(
    specify(name, **overrides), num_classes=num_classes, rngs=rngs
  )
