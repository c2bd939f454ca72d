"""The base config: every field, what it means and what it may be.

`FIELDS` is the one list of fields. It makes the base config, documents it
(`python -m fer_jax train --fields`) and validates a user's config before
anything compiles. The sections `model` and `data.options` take their fields
from the model's preset and the data set's builder.

A config file is Python:

    from fer_jax import config as base

    def get_config():
      config = base.get_base(model='residual_bilstm', dataset='fer2013')
      config.optim.learning_rate = 3e-3
      return config
"""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections

from fer_jax import datasets, files, metrics, models
from fer_jax.data import augment, protocol, sampling
from fer_jax.errors import UserError, nearest

Config = Any
"""A `ml_collections.ConfigDict` made by `get_base`. Any, because that class
types its sections as unions that no access to a field gets through."""

OPTIMIZERS = ('adam', 'adamw', 'sgd')
SCHEDULES = ('constant', 'cosine', 'step', 'plateau')
SELECTION_METRICS = ('accuracy', 'loss', 'last')

MOST_COUNTED = 2**31 - 1
"""What the training state counts, it counts in 32 bits."""

Check = Callable[[Any], str | None]
"""Takes a value, returns what is allowed where the value is not, else None."""


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of the config: default, meaning, and what is allowed."""

  default: Any
  meaning: str
  check: Check


def _number(
  low: float = -math.inf,
  high: float = math.inf,
  *,
  above: bool = False,
  below: bool = False,
) -> Check:
  """A finite number in [low, high]; `above` and `below` exclude the ends."""
  left = (
    f'{"above" if above else "at least"} {low:g}' if low > -math.inf else ''
  )
  right = (
    f'{"below" if below else "at most"} {high:g}' if high < math.inf else ''
  )
  allowed = ' and '.join(filter(None, ['a number', left, right])).replace(
    'a number and', 'a number'
  )

  def check(value):
    if isinstance(value, bool) or not isinstance(value, int | float):
      return allowed
    try:
      finite = math.isfinite(value)
    except OverflowError:
      return allowed
    low_ok = value > low if above else value >= low
    high_ok = value < high if below else value <= high
    return None if finite and low_ok and high_ok else allowed

  return check


def _whole(low: int, high: int | None = None) -> Check:
  """A whole number in [low, high]."""
  upper = f' and at most {high}' if high is not None else ''
  allowed = f'a whole number of at least {low}{upper}'

  def check(value):
    if isinstance(value, bool) or not isinstance(value, int):
      return allowed
    return None if value >= low and (high is None or value <= high) else allowed

  return check


def _one_of(*names: Any) -> Check:
  allowed = 'one of ' + ', '.join(str(n) for n in names)

  def check(value):
    known = any(value == n and type(value) is type(n) for n in names)
    return None if known else allowed

  return check


def _text(value: Any) -> str | None:
  return None if isinstance(value, str) else 'a text'


def _text_or_none(value: Any) -> str | None:
  """'None', as the command line hands on None, would be a name like others."""
  fine = isinstance(value, str) and value != 'None'
  return None if fine else "a text, '' for none"


def _flag(value: Any) -> str | None:
  return None if isinstance(value, bool) else 'True or False'


def _path(value: Any) -> str | None:
  fine = isinstance(value, str) and all(value.split('.'))
  return None if fine else 'a path of a parameter'


def _each(check: Check, allowed: str) -> Check:
  """A tuple each member of which passes a check."""

  def of_tuple(value):
    fine = isinstance(value, tuple) and all(check(v) is None for v in value)
    return None if fine else allowed

  return of_tuple


FIELDS: dict[str, Field] = {
  # A key has 32 bits of it: a larger one would be another's or none.
  'seed': Field(
    0, 'seeds every random stream of the run', _whole(0, 2**32 - 1)
  ),
  # What is learnt from.
  'data.name': Field(
    'synthetic_faces', 'the data set', lambda v: _one_of(*datasets.names())(v)
  ),
  'data.data_dir': Field(
    '',
    "where data sets are built; '' is $FER_JAX_DATA or the default",
    _text_or_none,
  ),
  'data.checksum': Field(
    '',
    "first characters of the source's SHA-256, where builds of several "
    'sources stand side by side',
    _text_or_none,
  ),
  'data.protocol': Field(
    'official',
    'who trains, who selects, who is reported',
    lambda v: _one_of(*protocol.names())(v),
  ),
  'data.protocol_seed': Field(
    0, 'seeds the protocol, apart from the run', _whole(0)
  ),
  'data.classes': Field(
    (),
    "the classes kept, in this order, as ('happy', 'sad'); () for all",
    _each(_text, "names, as ('happy', 'sad')"),
  ),
  'data.folds': Field(10, 'parts of a k-fold protocol', _whole(2)),
  'data.fold': Field(
    0,
    'the part that is test, from 0; the subject, under leave_one_subject_out',
    _whole(0),
  ),
  'data.test_share': Field(
    0.2,
    'share that a hold-out reports',
    _number(0, 1, above=True, below=True),
  ),
  'data.validation_share': Field(
    0.1,
    'share of what is not test that selects, where none is published; 0 for '
    "none, with train.select 'last'",
    _number(0, 1, below=True),
  ),
  'data.inner_folds': Field(
    0,
    'of nested cross-validation: parts of what is not test, one of which '
    'selects; 0 for a share',
    _whole(0),
  ),
  'data.inner_fold': Field(0, 'which of them, from 0', _whole(0)),
  'data.train_share': Field(
    1.0,
    'share of the training list, class by class, that trains',
    _number(0, 1, above=True),
  ),
  'data.balance': Field(
    'none',
    'how the training list, and it alone, is given as many of every class',
    _one_of(*sampling.BALANCES),
  ),
  'data.twins': Field(
    'keep',
    'which rows with a copy on the other side are left out',
    _one_of(*protocol.TWIN_RULES),
  ),
  'data.image_size': Field(
    48, 'side in pixels that images are resized to', _whole(8, 512)
  ),
  'data.channels': Field(1, '1 grey, 3 RGB', _one_of(1, 3)),
  'data.residence': Field(
    'auto',
    "'device' keeps the set in device memory, 'stream' reads it through "
    "Grain, 'auto' streams what exceeds data.resident_gib or the device",
    _one_of('auto', 'device', 'stream'),
  ),
  'data.resident_gib': Field(
    8.0, 'the largest set kept on the device, GiB', _number(0)
  ),
  'data.workers': Field(
    0,
    "Grain's reading processes when streaming; 0 reads in this one",
    _whole(0),
  ),
  # Augmentation, on the device. Amplitudes are multiplied by strength.
  'augment.enabled': Field(True, 'whether training images are changed', _flag),
  'augment.strength': Field(
    1.0, 'scales all amplitudes; 0 is identity', _number(0, 2)
  ),
  'augment.rotation': Field(
    30.0, 'largest rotation either way, degrees', _number(0, 180)
  ),
  'augment.flip': Field(0.5, 'probability of a horizontal flip', _number(0, 1)),
  'augment.crop': Field(
    0.8,
    'smallest side of a random crop that is resized back, as a fraction',
    _number(0, 1, above=True),
  ),
  'augment.shift': Field(
    0.0, 'largest shift, as a fraction of the side', _number(0, 1)
  ),
  'augment.zoom': Field(
    0.0, 'largest zoom in or out, as a fraction', _number(0, 0.9)
  ),
  'augment.brightness': Field(
    0.2, 'largest change, as a fraction of the full scale', _number(0, 1)
  ),
  'augment.contrast': Field(0.2, 'largest relative change', _number(0, 1)),
  'augment.saturation': Field(
    0.2, 'largest relative change; RGB only', _number(0, 1)
  ),
  'augment.hue': Field(
    0.05, 'largest turn of the colour circle; RGB only', _number(0, 0.5)
  ),
  'augment.erasing': Field(0.0, 'probability of random erasing', _number(0, 1)),
  'augment.mixup': Field(0.0, "mixup's alpha, 0 is off", _number(0, 100)),
  'augment.cutmix': Field(0.0, "cutmix's alpha, 0 is off", _number(0, 100)),
  # The optimiser.
  'optim.name': Field('adam', 'the optimiser', _one_of(*OPTIMIZERS)),
  'optim.learning_rate': Field(1e-3, 'at its peak', _number(0, above=True)),
  'optim.momentum': Field(
    0.9, "SGD's momentum, Adam's first moment", _number(0, 1, below=True)
  ),
  'optim.beta2': Field(
    0.999, "Adam's second moment", _number(0, 1, below=True)
  ),
  'optim.eps': Field(1e-7, "Adam's epsilon", _number(0, above=True)),
  'optim.weight_decay': Field(
    0.0,
    'decoupled, on kernels; needs adamw or sgd. Where others add it to the '
    'gradient of sgd, it acts 1 / (1 - momentum) times as strongly as here',
    _number(0),
  ),
  'optim.l2': Field(
    0.0, "penalty on the kernels' squares, added to the loss", _number(0)
  ),
  'optim.clip_norm': Field(
    0.0, 'largest global gradient norm, 0 is off', _number(0)
  ),
  'optim.schedule': Field(
    'constant', 'of the learning rate', _one_of(*SCHEDULES)
  ),
  'optim.warmup_epochs': Field(0.0, 'epochs of linear warm-up', _number(0)),
  'optim.final_fraction': Field(
    0.0, 'cosine ends at this fraction', _number(0, 1)
  ),
  'optim.step_epochs': Field(
    (),
    'epochs at which the step schedule multiplies',
    _each(_number(0, above=True), 'epochs above 0, as (60, 120)'),
  ),
  'optim.step_factor': Field(
    0.1, 'what the step schedule multiplies by', _number(0, 1, above=True)
  ),
  'optim.plateau_patience': Field(
    10,
    'validations without improvement before a reduction',
    _whole(1, MOST_COUNTED),
  ),
  'optim.plateau_factor': Field(
    0.5, 'what the plateau schedule multiplies by', _number(0, 1, above=True)
  ),
  'optim.freeze': Field(
    (),
    'paths of what does not train, BatchNorm statistics included, as '
    "('backbone',); wildcards stand for parts of a name, and a parameter is "
    "the first path's that matches it",
    _each(_path, "paths of parameters, as ('backbone',)"),
  ),
  'optim.unfreeze_epochs': Field(
    (),
    'for each of the first paths of optim.freeze the epochs after which it '
    'trains; the other paths stay frozen',
    _each(_whole(1), 'whole epochs above 0, as (5, 10)'),
  ),
  # Training.
  'train.batch_size': Field(64, 'images a step', _whole(1)),
  'train.epochs': Field(100, 'passes over the training list', _whole(1)),
  'train.block_steps': Field(
    100, 'steps a dispatch; changes no result', _whole(1)
  ),
  'train.loss': Field(
    'cross_entropy', 'the loss', lambda v: _one_of(*metrics.LOSSES)(v)
  ),
  'train.label_smoothing': Field(
    0.0,
    "share of the target spread over all classes; no part of 'multi_target'",
    _number(0, 1),
  ),
  'train.class_weights': Field(
    'none',
    "'balanced' weighs examples by the inverse frequency of their class",
    _one_of('none', 'balanced'),
  ),
  'train.sampling': Field(
    'shuffle',
    "'shuffle' shows every example once an epoch; 'class_balanced' draws a "
    'class and then an example of it for each place, so that all classes are '
    'shown equally often',
    _one_of('shuffle', 'class_balanced'),
  ),
  'train.ema_decay': Field(
    0.0,
    'decay of the moving averages that evaluation then uses, 0 is off',
    _number(0, 1, below=True),
  ),
  'train.select': Field(
    'accuracy',
    "the validation metric that names the best checkpoint; 'last' takes the "
    'last epoch and needs no validation examples',
    _one_of(*SELECTION_METRICS),
  ),
  'train.patience': Field(
    0,
    'validations without improvement before stopping, 0 never',
    _whole(0, MOST_COUNTED),
  ),
  'train.on_divergence': Field(
    'stop',
    "what follows a loss that is not finite: 'stop', or 'rollback' to the last "
    'good checkpoint with half the learning rate, three times at most',
    _one_of('stop', 'rollback'),
  ),
  'train.pretrained': Field(
    '',
    "file of published weights that the model's backbone starts from, '' for "
    'none; read once, when the run begins',
    _text_or_none,
  ),
  'train.validate_every': Field(1, 'epochs between validations', _whole(1)),
}

DERIVED_MODEL_FIELDS = frozenset({'input_shape'})
"""Model fields that follow from the data section and are not set twice."""

FREE_ON_RESUME = frozenset(
  {
    'data.data_dir',
    'data.checksum',
    'data.residence',
    'data.resident_gib',
    'data.workers',
    'train.block_steps',
    'train.on_divergence',
  }
)
"""Fields that change nothing of what is trained already, so a resumed run may
change them."""


def get_base(
  *, model: str = 'residual_bilstm', dataset: str = 'synthetic_faces'
) -> Config:
  """The base config for a model and a data set, locked against new fields.

  Args:
    model: a name of `models.available()`; its fields make `config.model`.
    dataset: a name of `datasets.names()`; its options make
      `config.data.options`.
  """
  config: Config = ml_collections.ConfigDict()
  for name, field in FIELDS.items():
    set_field(config, name, field.default)
  config.data.name = dataset
  config.data.options = ml_collections.ConfigDict(
    datasets.resolve_options(dataset, {})
  )
  config.model = ml_collections.ConfigDict({'name': model})
  for name, default in models.fields(model).items():
    if name not in DERIVED_MODEL_FIELDS:
      config.model[name] = default
  return config.lock()


def set_field(config: Config, name: str, value: Any) -> None:
  """Sets the field of a dotted name."""
  *sections, leaf = name.split('.')
  for section in sections:
    if section not in config:
      config[section] = ml_collections.ConfigDict()
    config = config[section]
  config[leaf] = value


def flatten(config: Config, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of every leaf."""
  for name in config:
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict):
      yield from flatten(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def validate(config: Config) -> None:
  """Checks every field before anything compiles.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  values = dict(flatten(config))
  name = _known(values, 'model.name', models.available())
  dataset = _known(values, 'data.name', datasets.names())
  expected = dict(flatten(get_base(model=name, dataset=dataset)))
  for field in values:
    if field not in expected:
      raise UserError(
        f'unknown config field {field}'
        + (_of_another(field, name, dataset) or nearest(field, expected))
      )
  for field in expected:
    if field not in values:
      raise UserError(f'config field {field} is missing')
  for field, spec in FIELDS.items():
    allowed = spec.check(values[field])
    if allowed:
      raise UserError(f'{field} is {values[field]!r}; allowed is {allowed}')
  _validate_together(values)
  try:
    models.check(name, **model_overrides(config))
  except ValueError as error:
    raise UserError(f'config.model: {error}') from error
  datasets.resolve_options(dataset, dict(config.data.options))
  protocol.configure(config.data.protocol, **protocol_options(config))


def _of_another(field: str, model: str, dataset: str) -> str:
  """What is amiss where a config's model or data set was renamed alone."""
  for section, kind, name, known, fields in (
    ('model.', 'model', model, models.available(), models.fields),
    (
      'data.options.',
      'dataset',
      dataset,
      datasets.names(),
      lambda each: datasets.builder_module(each).OPTIONS,
    ),
  ):
    leaf = field.removeprefix(section)
    if leaf != field and any(leaf in fields(each) for each in known):
      return (
        f', which {name} does not have; a config takes its fields from '
        f'get_base({kind}={name!r})'
      )
  return ''


def _known(values: dict[str, Any], field: str, names: Sequence[str]) -> str:
  """A field's value, one of `names`."""
  name: Any = values.get(field)
  if name not in names:
    raise UserError(
      f'{field} is {name!r}; allowed is one of '
      f'{", ".join(names)}{nearest(name, names)}'
    )
  return name


def _validate_together(values: dict[str, Any]) -> None:
  """What no single field can tell."""
  if values['optim.weight_decay'] > 0 and values['optim.name'] == 'adam':
    raise UserError(
      'optim.weight_decay is decoupled and optim.name adam has none: use '
      'optim.name adamw, or optim.l2 for a penalty in the loss'
    )
  if (
    values['train.sampling'] == 'class_balanced'
    and values['train.class_weights'] == 'balanced'
  ):
    raise UserError(
      "train.sampling is 'class_balanced' and train.class_weights 'balanced', "
      'which would favour rare classes twice; allowed is one of them'
    )
  if values['optim.warmup_epochs'] >= values['train.epochs']:
    raise UserError(
      f'optim.warmup_epochs is {values["optim.warmup_epochs"]}; allowed is '
      f'fewer than train.epochs, {values["train.epochs"]}'
    )
  if values['optim.schedule'] == 'step':
    begin, end = values['optim.warmup_epochs'], values['train.epochs']
    epochs = (begin, *values['optim.step_epochs'], end)
    rising = all(a < b for a, b in itertools.pairwise(epochs))
    if len(epochs) == 2 or not rising:
      raise UserError(
        f'optim.step_epochs is {values["optim.step_epochs"]}; allowed is at '
        f'least one epoch, rising, between optim.warmup_epochs, {begin}, and '
        f'train.epochs, {end}'
      )
  if values['train.select'] == 'last' and (
    values['train.patience'] or values['optim.schedule'] == 'plateau'
  ):
    raise UserError(
      "train.select is 'last', which looks at no validation; allowed is no "
      'train.patience and another optim.schedule than plateau'
    )
  frozen, thawing = values['optim.freeze'], values['optim.unfreeze_epochs']
  if len(thawing) > len(frozen):
    raise UserError(
      f'optim.unfreeze_epochs is {thawing}; allowed is at most one epoch for '
      f'each of the {len(frozen)} paths of optim.freeze'
    )
  if list(thawing) != sorted(thawing) or any(
    epoch >= values['train.epochs'] for epoch in thawing
  ):
    raise UserError(
      f'optim.unfreeze_epochs is {thawing}; allowed are epochs that rise or '
      f'stay, below train.epochs, {values["train.epochs"]}'
    )
  if values['train.epochs'] < values['train.validate_every']:
    raise UserError(
      f'train.validate_every is {values["train.validate_every"]}; allowed is '
      f'at most train.epochs, {values["train.epochs"]}'
    )


def model_overrides(config: Config) -> dict[str, Any]:
  """The keyword arguments of `models.create` that the config stands for."""
  fields = {k: v for k, v in config.model.items() if k != 'name'}
  size = config.data.image_size
  if 'input_shape' in models.fields(config.model.name):
    fields['input_shape'] = (size, size, config.data.channels)
  return fields


def protocol_options(config: Config) -> dict[str, Any]:
  """The keyword arguments of `protocol.resolve` that the config stands for."""
  fields = dataclasses.fields(protocol.Settings)
  options = {
    f.name: config.data[f.name]
    for f in fields
    if f.name not in ('name', 'seed')
  }
  return {'seed': config.data.protocol_seed, **options}


def to_json(config: Config) -> dict[str, Any]:
  """Nested plain values, as config.json holds them."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(value: dict[str, Any], *, source: str) -> Config:
  """A config from the content of a config.json.

  Raises:
    UserError: naming `source` and the field that does not fit.
  """
  try:
    model, dataset = value['model']['name'], value['data']['name']
  except (KeyError, TypeError):
    raise UserError(
      f'{source} is no config: it names no model and data'
    ) from None
  if model not in models.available() or dataset not in datasets.names():
    raise UserError(
      f'{source} names model {model!r} and data set {dataset!r}; '
      'at least one is not known here'
    )
  config = get_base(model=model, dataset=dataset)
  known = dict(flatten(config))
  for name, leaf in _leaves(value):
    if name not in known:
      raise UserError(
        f'{source}: unknown config field {name}{nearest(name, known)}'
      )
    if isinstance(known[name], tuple) and isinstance(leaf, list):
      leaf = _as_tuple(leaf)
    try:
      with config.unlocked():
        set_field(config, name, leaf)
    # OverflowError: a whole number that no float can hold.
    except (TypeError, OverflowError) as error:
      raise UserError(f'{source}: {name} is {leaf!r}: {error}') from error
  return config


def _as_tuple(value: Any) -> Any:
  return (
    tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value
  )


def _leaves(value: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, leaf in value.items():
    if isinstance(leaf, dict):
      yield from _leaves(leaf, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', leaf


def load_json(path: str | pathlib.Path) -> Config:
  """Reads a config.json.

  Raises:
    UserError: naming the file and what is wrong with it.
  """
  value = files.read_json(pathlib.Path(path))
  return from_json(value, source=str(path))


def differences(there: Config, here: Config) -> list[str]:
  """'field is X there and Y here' for each that changes results."""
  a, b = dict(flatten(there)), dict(flatten(here))
  return [
    f'{name} is {a.get(name)!r} there and {b.get(name)!r} here'
    for name in sorted(a.keys() | b.keys())
    if name not in FREE_ON_RESUME and a.get(name) != b.get(name)
  ]


def augmentation(config: Config) -> Any:
  """The static settings of augmentation, None where it is off."""
  if not config.augment.enabled:
    return None
  fields = {
    k: v for k, v in config.augment.items() if k not in ('enabled', 'strength')
  }
  return augment.Augmentation(**fields)


def hparams(config: Config) -> dict[str, float]:
  """The traced scalars of the training state."""
  return {
    'learning_rate': config.optim.learning_rate,
    'weight_decay': config.optim.weight_decay,
    'l2': config.optim.l2,
    'dropout': config.model.get('dropout', 0.0),
    'label_smoothing': config.train.label_smoothing,
    'augment_strength': config.augment.strength,
  }


def describe_fields(config: Config | None = None) -> str:
  """One line a field: name, meaning, value.

  Args:
    config: whose fields and values; the base config's by default.

  Raises:
    UserError: it names no model or data set that there is.
  """
  values = dict(flatten(get_base() if config is None else config))
  model = _known(values, 'model.name', models.available())
  dataset = _known(values, 'data.name', datasets.names())
  known = ', '.join(models.available())
  meanings = {'model.name': f'the model; one of {known}'}
  for name, field in FIELDS.items():
    allowed = field.check(None) or ''
    choices = f'; {allowed}' if allowed.startswith('one of') else ''
    meanings[name] = f'{field.meaning}{choices}'
  for name, field in models.described_fields(model).items():
    meanings[f'model.{name}'] = f'{field.source}: {field.note}'
  for name, meaning in datasets.option_meanings(dataset).items():
    meanings[f'data.options.{name}'] = meaning
  width = max(map(len, values))
  return '\n'.join(
    f'{name:<{width}}  {meanings[name]}  [{value!r}]'
    for name, value in sorted(values.items())
  )
