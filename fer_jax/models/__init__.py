"""Models by name, and the composition they are all made of."""

from fer_jax.models.fusion import FusionModel
from fer_jax.models.pretrained import load_pretrained
from fer_jax.models.registry import (
  available,
  check,
  create,
  described_fields,
  fields,
  specify,
)
from fer_jax.models.specification import Specification

__all__ = [
  'FusionModel',
  'Specification',
  'available',
  'check',
  'create',
  'described_fields',
  'fields',
  'load_pretrained',
  'specify',
]
