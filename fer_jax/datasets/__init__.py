"""Data sets: built once into ArrayRecord, then read by row.

The public functions are `names`, `build`, `load` and `default_data_dir`; they
import a builder module only when its set is asked for.
"""

from fer_jax.datasets.building import build, builds, load
from fer_jax.datasets.dataset import Dataset
from fer_jax.datasets.registry import (
  builder_module,
  chosen_options,
  default_data_dir,
  names,
  option_meanings,
  resolve_options,
)

__all__ = [
  'Dataset',
  'build',
  'builder_module',
  'builds',
  'chosen_options',
  'default_data_dir',
  'load',
  'names',
  'option_meanings',
  'resolve_options',
]
