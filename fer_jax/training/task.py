"""What a config stands for: data on the device, a model, a step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax import config as config_lib
from fer_jax import datasets, hosts, metrics, models
from fer_jax.data import protocol, randomness, resident, stream
from fer_jax.errors import UserError
from fer_jax.training import feed as feed_lib
from fer_jax.training import freezing, memory, optim, sharding, warm_start
from fer_jax.training import step as step_lib
from fer_jax.training.progress import SelectionSettings
from fer_jax.training.state import (
  TrainState,
  initial_state,
  merge,
  split,
)


@dataclasses.dataclass(frozen=True)
class Task:
  """Everything the loop needs that does not change while it runs.

  Attributes:
    feed: hands out blocks of steps.
    graphdef: of the model.
    settings: of the step where nothing is frozen.
    selection: how validation steers.
    plan: of the run.
    class_names: in the order of the logits.
    facts: of classes, data set, protocol and steps, as `facts_of` gives them.
    total_steps: of the whole run.
    config: what it was made from.
    devices: over which batches are divided, of all hosts.
  """

  feed: feed_lib.ResidentFeed | feed_lib.StreamFeed
  graphdef: nnx.GraphDef
  settings: step_lib.StepSettings
  selection: SelectionSettings
  plan: step_lib.Plan
  class_names: tuple[str, ...]
  facts: dict[str, Any]
  total_steps: int
  config: config_lib.Config
  devices: Sequence[Any]

  def initial_state(self) -> TrainState:
    """The state before the first step, made in one dispatch.

    Raises:
      UserError: the file of `train.pretrained` cannot be used.
    """
    return first_state(
      self.config, self.graphdef, len(self.class_names), self.plan.key
    )

  def settings_of(self, epoch: int) -> step_lib.StepSettings:
    """The step's settings in an epoch, counted from 0."""
    return settings_of(epoch, self.config, self.settings)

  def learning_rate(self, state: TrainState) -> float:
    """The rate that the last step used; `state` as that step left it."""
    # On the host: arrays of several hosts mix with no others.
    scalars = state._replace(
      params=None, model_state=None, opt_state=None, ema=None
    )
    state = jax.tree.map(np.asarray, scalars)
    return float(
      step_lib.learning_rate(state, self.plan, self.settings, state.step - 1)
    )


def first_state(
  config: config_lib.Config,
  graphdef: nnx.GraphDef,
  num_classes: int,
  key: jax.Array,
  make: Callable[[jax.Array], TrainState] | None = None,
) -> TrainState:
  """The state of a run before its first step, made in one dispatch.

  Args:
    config: of the run.
    graphdef: of the model.
    num_classes: K.
    key: of the run.
    make: of `state_maker`, compiled for a run that differs in scalars alone.

  Raises:
    UserError: the file of `train.pretrained` cannot be used.
  """
  state = (make or state_maker(config, num_classes))(key)
  hparams = config_lib.hparams(config)
  state = state._replace(
    hparams={
      k: jnp.asarray(hparams[k], x.dtype) for k, x in state.hparams.items()
    }
  )
  path = config.train.pretrained
  return warm_start.from_file(state, graphdef, path) if path else state


def state_maker(
  config: config_lib.Config, num_classes: int
) -> Callable[[jax.Array], TrainState]:
  """From a run's key to its first state, without pretrained weights."""
  return jax.jit(
    functools.partial(_initial_state, config, num_classes=num_classes)
  )


def create_model(
  config: config_lib.Config, num_classes: int, key: jax.Array
) -> nnx.Module:
  """The config's model with fresh parameters."""
  return models.create(
    config.model.name,
    num_classes=num_classes,
    rngs=nnx.Rngs(randomness.stream_key(key, randomness.INIT)),
    **config_lib.model_overrides(config),
  )


def pixels(config: config_lib.Config) -> str:
  """What images the config's model takes, a name of `standardize.SCALES`."""
  overrides = config_lib.model_overrides(config)
  return models.specify(config.model.name, **overrides).pixels


def graph_definition(
  config: config_lib.Config, num_classes: int
) -> nnx.GraphDef:
  """The model's static part, without computing a parameter."""
  return _abstract_model(config, num_classes)[0]


def _abstract_model(config: config_lib.Config, num_classes: int):
  """`split` of the model with shapes and dtypes for its arrays."""
  model = nnx.eval_shape(
    lambda: create_model(config, num_classes, jax.random.key(0))
  )
  return split(model)


def _require_clips(config, graphdef, params, model_state) -> None:
  """Raises UserError where the model does not take the data's clips."""
  size = config.data.image_size
  clips = jax.ShapeDtypeStruct(
    (1, 2, size, size, config.data.channels), jnp.float32
  )
  try:
    jax.eval_shape(
      lambda *arrays: merge(graphdef, *arrays[:2])(arrays[2]),  # pyright: ignore
      params,
      model_state,
      clips,
    )
  except ValueError as error:
    raise UserError(
      f'model.name {config.model.name} does not take the clips of data.name '
      f'{config.data.name}: {error}'
    ) from error


def _initial_state(
  config: config_lib.Config, key: jax.Array, *, num_classes: int
) -> TrainState:
  params, model_state = split(create_model(config, num_classes, key))[1:]
  return initial_state(
    params,
    model_state,
    optim.direction(optim_settings(config)).init(params),
    config_lib.hparams(config),
    ema=config.train.ema_decay > 0,
  )


def abstract_state(config: config_lib.Config, num_classes: int) -> TrainState:
  """The shapes and dtypes of a run's state, without data or computation."""
  return jax.eval_shape(
    functools.partial(_initial_state, config, num_classes=num_classes),
    jax.random.key(0),
  )


def optim_settings(config: config_lib.Config) -> optim.OptimSettings:
  """The optimiser's static part."""
  section = config.optim
  return optim.OptimSettings(
    name=section.name,
    momentum=section.momentum,
    beta2=section.beta2,
    eps=section.eps,
    clip_norm=section.clip_norm,
    schedule=section.schedule,
    final_fraction=section.final_fraction,
    step_factor=section.step_factor,
  )


def milestones(
  config: config_lib.Config, steps_per_epoch: int
) -> optim.Milestones:
  """The config's epochs turned into steps."""
  section = config.optim

  def steps(epochs: float) -> int:
    return round(epochs * steps_per_epoch)

  return optim.Milestones(
    warmup=steps(section.warmup_epochs),
    total=steps(config.train.epochs),
    drops=tuple(map(steps, section.step_epochs)),
    thaws=tuple(map(steps, section.unfreeze_epochs)),
  )


def plan_of(
  config: config_lib.Config, dataset: datasets.Dataset, train: np.ndarray
) -> step_lib.Plan:
  """What a run on a training list is given once.

  Args:
    config: of the run.
    dataset: of the list.
    train: int (n,), rows of its table.

  Raises:
    UserError: the run has more steps than can be counted.
  """
  size = config.train.batch_size
  steps_per_epoch = feed_lib.padded_length(len(train), size) // size
  most = config_lib.MOST_COUNTED // steps_per_epoch
  if config.train.epochs > most:
    raise UserError(
      f'train.epochs is {config.train.epochs}; allowed is at most {most}, of '
      f'{steps_per_epoch} steps each: they are counted in 32 bits'
    )
  return step_lib.Plan(
    key=jax.random.key(config.seed),
    milestones=milestones(config, steps_per_epoch),
    class_weights=_class_weights(config, dataset, train),
  )


def settings_of(
  epoch: int, config: config_lib.Config, settings: step_lib.StepSettings
) -> step_lib.StepSettings:
  """The settings of an epoch, counted from 0: with what is frozen in it."""
  section = config.optim
  return dataclasses.replace(
    settings,
    freezing=freezing.at_epoch(section.freeze, section.unfreeze_epochs, epoch),
  )


def step_settings(config: config_lib.Config) -> step_lib.StepSettings:
  """The step's static part where nothing is frozen."""
  return step_lib.StepSettings(
    batch_size=config.train.batch_size,
    loss=config.train.loss,
    augmentation=config_lib.augmentation(config),
    optim=optim_settings(config),
    ema_decay=config.train.ema_decay,
    pixels=pixels(config),
  )


def selection_settings(config: config_lib.Config) -> SelectionSettings:
  """How validation steers, from the config."""
  plateau = config.optim.schedule == 'plateau'
  return SelectionSettings(
    metric=config.train.select,
    patience=config.train.patience,
    plateau_patience=config.optim.plateau_patience if plateau else 0,
    plateau_factor=config.optim.plateau_factor,
  )


def load_dataset(config: config_lib.Config) -> datasets.Dataset:
  """The config's data set, built before (synthetic sets build themselves)."""
  dataset = datasets.load(
    config.data.name,
    data_dir=config.data.data_dir or datasets.default_data_dir(),
    checksum=config.data.checksum or None,
    **config.data.options,
  )
  wanted = config.data.classes
  return dataset.with_classes(wanted) if wanted else dataset


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """What runs that differ in their lists, seeds and scalars have in common.

  Attributes:
    dataset: loaded.
    graphdef: of the model.
    settings: of the step where nothing is frozen.
    selection: how validation steers.
  """

  dataset: datasets.Dataset
  graphdef: nnx.GraphDef
  settings: step_lib.StepSettings
  selection: SelectionSettings


def blueprint(config: config_lib.Config) -> Blueprint:
  """Loads the data set and fixes model and settings; no image is read.

  Raises:
    UserError: the data is not there, the model does not take its clips, or
      `optim.freeze` does not fit the model.
  """
  dataset = load_dataset(config)
  graphdef, params, model_state = _abstract_model(
    config, len(dataset.class_names)
  )
  if 'frame_count' in dataset.table:
    _require_clips(config, graphdef, params, model_state)
  freezing.check(config.optim.freeze, params, model=config.model.name)
  return Blueprint(
    dataset, graphdef, step_settings(config), selection_settings(config)
  )


def partition_of(
  config: config_lib.Config, dataset: datasets.Dataset
) -> protocol.Partition:
  """Who trains and who selects.

  Raises:
    UserError: the protocol does not fit the data set, nothing is left to
      select on, or the batch is larger than the training list.
  """
  partition = protocol.resolve(
    dataset, config.data.protocol, **config_lib.protocol_options(config)
  )
  if not len(partition.validation) and config.train.select != 'last':
    raise UserError(
      f'protocol {partition.protocol} leaves no validation examples of '
      f"{dataset.name} and train.select is {config.train.select!r}; 'last' "
      'needs none, or data.validation_share sets some apart'
    )
  if config.train.batch_size > len(partition.train):
    raise UserError(
      f'train.batch_size is {config.train.batch_size}; allowed is at most the '
      f'{len(partition.train)} training examples of {dataset.name} under '
      f'protocol {partition.protocol}'
    )
  return partition


def facts_of(
  config: config_lib.Config,
  dataset: datasets.Dataset,
  partition: protocol.Partition,
) -> dict[str, Any]:
  """What run.json says of classes, data set, protocol and steps."""
  count, size = len(partition.train), config.train.batch_size
  return {
    'class_names': list(dataset.class_names),
    'dataset': dataset.facts(),
    'protocol': {
      **partition.facts(),
      'train': count,
      'validation': len(partition.validation),
    },
    'steps_per_epoch': feed_lib.padded_length(count, size) // size,
  }


def prepare(
  config: config_lib.Config, devices: Sequence[Any] | None = None
) -> Task:
  """Loads the data, puts it on the device and fixes all settings.

  Args:
    config: of the run.
    devices: over which batches are divided; None for all of all hosts.

  Raises:
    UserError: as `blueprint` and `partition_of`; or the batch does not divide
      among the devices.
  """
  devices = jax.devices() if devices is None else devices
  mesh = sharding.data_mesh(config.train.batch_size, devices)
  shared = blueprint(config)
  dataset, settings = shared.dataset, shared.settings
  partition = partition_of(config, dataset)
  plan = plan_of(config, dataset, partition.train)
  make_feed = (
    _stream_feed if streams(config, dataset, partition) else _resident_feed
  )
  feed = make_feed(
    config,
    dataset,
    partition,
    plan=plan,
    graphdef=shared.graphdef,
    settings_of=functools.partial(
      settings_of, config=config, settings=settings
    ),
    block_steps=config.train.block_steps,
    order=_order(config, dataset, partition.train),
    mesh=mesh,
  )
  return Task(
    feed=feed,
    graphdef=shared.graphdef,
    settings=settings,
    selection=shared.selection,
    plan=plan,
    class_names=tuple(dataset.class_names),
    facts=facts_of(config, dataset, partition),
    total_steps=feed.steps_per_epoch * config.train.epochs,
    config=config,
    devices=devices,
  )


def streams(config, dataset, partition) -> bool:
  """Whether the examples are streamed rather than kept on the device."""
  if config.data.residence != 'auto':
    return config.data.residence == 'stream'
  size = config.data.image_size
  needed = resident.resident_bytes(
    len(np.union1d(partition.train, partition.validation)),
    image_size=(size, size),
    channels=config.data.channels,
    num_classes=len(dataset.class_names),
    frames=resident.longest_clip(dataset),
  )
  room = min(
    config.data.resident_gib * 2**30,
    memory.limit_bytes(jax.local_devices()[0]),
  )
  return hosts.any_host(needed > room)


def _resident_feed(config, dataset, partition, **options):
  size = config.data.image_size
  used, rows = np.unique(
    np.concatenate([partition.train, partition.validation]),
    return_inverse=True,
  )
  images = resident.load_resident(
    dataset,
    used,
    image_size=(size, size),
    channels=config.data.channels,
  )
  train_count = len(partition.train)
  return feed_lib.ResidentFeed(
    images,
    train_rows=rows[:train_count],
    validation_rows=rows[train_count:],
    **options,
  )


def _stream_feed(config, dataset, partition, *, plan, order, mesh, **options):
  size = config.data.image_size

  def batches(index, key):
    return stream.Stream(
      dataset,
      index,
      batch_size=config.train.batch_size,
      image_size=(size, size),
      channels=config.data.channels,
      key=key,
      order=order,
      workers=config.data.workers,
      part=hosts.part(),
    )

  return feed_lib.StreamFeed(
    batches(partition.train, plan.key),
    batches(partition.validation, None) if len(partition.validation) else None,
    plan=plan,
    mesh=mesh,
    **options,
  )


def _order(config, dataset, train) -> randomness.Order:
  if config.train.sampling == 'shuffle':
    return randomness.epoch_order
  padded = feed_lib.padded_length(len(train), config.train.batch_size)
  return functools.partial(
    randomness.balanced_order,
    labels=np.pad(dataset.table['label'][train], (0, padded - len(train))),
    num_classes=len(dataset.class_names),
  )


def _class_weights(config, dataset, train) -> jax.Array | None:
  if config.train.class_weights == 'none':
    return None
  counts = np.bincount(
    dataset.table['label'][train], minlength=len(dataset.class_names)
  )
  return metrics.balanced_class_weights(jnp.asarray(counts))
