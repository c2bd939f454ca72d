"""Which data sets there are, and the contract of their builder modules.

Each data set is one module of this package, entered in `_MODULES` below. The
module holds no input or output of its own: it turns a source into examples.
It must not import TensorFlow Datasets, and it offers

  CLASS_NAMES: tuple[str, ...]   in label order; or a function
                                 `class_names(options) -> tuple[str, ...]`
                                 where the options decide, or
                                 `class_names_in(source, options)` where the
                                 source does
  VERSION: str                   'MAJOR.MINOR.PATCH'; raised whenever the same
                                 source and options would give other examples
  DESCRIPTION: str               one line
  LICENCE: str                   one line: where it comes from, what it allows
  OPTIONS: dict[str, default]    all options with their defaults; a default is
                                 a number, string, bool or a tuple of them and
                                 fixes the option's type
  MEANINGS: dict[str, str]       what each option means, where there are any
  NEEDS_SOURCE: bool             False: the module makes its own examples
  NEAR_TWINS_ARE_COPIES: bool    optional; True for photographs gathered from
                                 the web, where images that correlate at 0.90
                                 or more are copies of one photograph; or a
                                 function `near_twins_are_copies(options)`
                                 where the options decide
  IDS_ARE_PLACES: bool           optional; True where an id is a place that
                                 another source or other options may give to
                                 another picture; else equal ids are the same
                                 photograph, whatever it was built from
  check_options(options)         optional; raises UserError on a bad value
  OFFICIAL_COUNTS                optional; {split: (images per class, ...)};
                                 or a function `official_counts(options)`
                                 where the options decide

  examples(source, options, intake) -> iterator of example dicts

`source` is a `sources.Source`, or None where NEEDS_SOURCE is False. `options`
holds every option. `intake` takes what the module has to say beside the
examples: `intake.reject(where, why)` for a bad row (the row is simply not
yielded; whether that ends the build is not the module's business),
`intake.expect(count)`
for the progress line, and `intake.notes`, a JSON-able dict kept as
`Dataset.notes`.

An example is a dict. All examples of a set have the same keys:

  id              str, stable and unique in the set, e.g. 'fer2013/00012'
  label           int, an index of the class names
  official_split  str: 'train', 'validation', 'test', 'test_unsplit' (a test
                  part that mixes validation and test rows), or 'none'
  image           uint8 array (H, W, C), C 1 or 3; or bytes of a PNG or JPEG
                  file, which are then stored as they came
  frames          instead of `image`, for a clip: uint8 array (T, H, W, C) or
                  a list of T frames, each as `image`; T may differ
  subject         optional str; the person
  sequence        optional str; the recording
  votes           optional float sequence (V,): annotators per category; where
                  V is the number of classes, their shares are the target
  attributes      optional dict of texts, the same names in every example:
                  what is known of the person or the photograph, as
                  {'gender': 'female'}; results are broken down by them

Arrays are stored as PNG. Options and the source's checksum are in the path of
a build, so a build is never mistaken for another one.
"""

import contextlib
import importlib
import json
import os
import pathlib
import types
from typing import Any

import numpy as np

from fer_jax.errors import UserError, nearest

_MODULES = {
  'ckplus': 'fer_jax.datasets.ckplus',
  'fer2013': 'fer_jax.datasets.fer2013',
  'ferplus': 'fer_jax.datasets.ferplus',
  'image_folder': 'fer_jax.datasets.image_folder',
  'jaffe': 'fer_jax.datasets.jaffe',
  'oahega': 'fer_jax.datasets.oahega',
  'rafdb': 'fer_jax.datasets.rafdb',
  'synthetic_faces': 'fer_jax.datasets.synthetic_faces',
}


def names() -> tuple[str, ...]:
  """Names of all data sets."""
  return tuple(_MODULES)


def default_data_dir() -> pathlib.Path:
  """Where builds live: FER_JAX_DATA, or fer_jax_data in the home folder."""
  named = os.environ.get('FER_JAX_DATA')
  return pathlib.Path(named) if named else pathlib.Path.home() / 'fer_jax_data'


def builder_module(name: str) -> types.ModuleType:
  """The module that makes the examples of a data set.

  Raises:
    UserError: no such data set.
  """
  if name not in _MODULES:
    raise UserError(
      f'no data set {name!r}; there are {", ".join(_MODULES)}'
      f'{nearest(name, _MODULES)}'
    )
  return importlib.import_module(_MODULES[name])


def _coerce(name: str, option: str, default: Any, value: Any) -> Any:
  """An option's value in the type of its default."""
  where = f'option {option!r} of {name}'
  if isinstance(default, tuple):
    if isinstance(value, str):
      value = [part for part in value.split(',') if part]
    if not isinstance(value, (list, tuple)):
      raise UserError(f'{where}: {value!r} is not a list')
    kind = default[0] if default else ''
    return tuple(_coerce(name, option, kind, part) for part in value)
  if isinstance(default, bool):
    words = {'true': True, 'false': False, '1': True, '0': False}
    found = words.get(str(value).lower())
    if found is None:
      raise UserError(f'{where}: {value!r} is neither true nor false')
    return found
  if isinstance(default, (int, float)):
    what = 'a whole number' if isinstance(default, int) else 'a number'
    try:
      return _number(value, type(default))
    except (TypeError, ValueError, OverflowError):
      raise UserError(f'{where}: {value!r} is not {what}') from None
  if not isinstance(value, str):
    raise UserError(f'{where}: {value!r} is not text')
  return value


def _number(value: Any, kind: type) -> Any:
  """A value as int or float.

  Raises:
    TypeError, ValueError, OverflowError: it is none.
  """
  number = float(value)
  if isinstance(value, bool) or not np.isfinite(number):
    raise ValueError
  if kind is int:
    if number != int(number):
      raise ValueError
    # A float holds no whole number above 2**53 exactly.
    with contextlib.suppress(ValueError):  # of '1e3'
      return int(value)
  return kind(number)


def resolve_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
  """All options of a data set: the given ones, typed, over the defaults.

  Args:
    name: data set.
    given: values as such or as text from a command line.

  Raises:
    UserError: unknown option or a value that it does not take.
  """
  module = builder_module(name)
  allowed = module.OPTIONS
  options = dict(allowed)
  for option, value in given.items():
    if option not in allowed:
      offer = f'it takes {", ".join(allowed)}' if allowed else 'it takes none'
      raise UserError(
        f'{name} has no option {option!r}; {offer}{nearest(option, allowed)}'
      )
    options[option] = _coerce(name, option, allowed[option], value)
  if hasattr(module, 'check_options'):
    module.check_options(options)
  return options


def option_meanings(name: str) -> dict[str, str]:
  """What the options of a data set mean, by their names.

  Raises:
    UserError: no such data set.
  """
  return dict(getattr(builder_module(name), 'MEANINGS', {}))


def chosen_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
  """Those of a build's options that are not at their defaults."""
  defaults = builder_module(name).OPTIONS
  return {
    option: value
    for option, value in options.items()
    # A build has its options as JSON keeps them.
    if json.dumps(value) != json.dumps(defaults.get(option))
  }


def class_names_of(
  module: types.ModuleType, options: dict, source: Any
) -> tuple[str, ...]:
  if hasattr(module, 'class_names_in'):
    return tuple(module.class_names_in(source, options))
  if hasattr(module, 'class_names'):
    return tuple(module.class_names(options))
  return tuple(module.CLASS_NAMES)


def official_counts_of(
  module: types.ModuleType, options: dict
) -> dict[str, tuple[int, ...]]:
  if hasattr(module, 'official_counts'):
    return module.official_counts(options)
  return getattr(module, 'OFFICIAL_COUNTS', {})
