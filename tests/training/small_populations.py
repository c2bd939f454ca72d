"""Members small enough to train in a second, for tests and their processes."""

import functools

import jax
import numpy as np
from flax import nnx

from fer_jax.data import augment, randomness
from fer_jax.models import FusionModel, Specification
from fer_jax.models import specification as spec
from fer_jax.training import feed, optim, population, progress
from fer_jax.training import step as step_lib
from fer_jax.training.state import HPARAMS, initial_state, split

SIDE, CLASSES, BATCH, EPOCHS = 8, 3, 64, 4
FOLDS = ((2100, 310), (2250, 290), (2049, 300))
"""Training and validation rows: 33, 36 and 33 steps an epoch."""

SETTINGS = step_lib.StepSettings(
  batch_size=BATCH,
  augmentation=augment.Augmentation(
    *(0.0, 0.0, 1.0), brightness=0.3, contrast=0.0, saturation=0.0, hue=0.0
  ),
  optim=optim.OptimSettings(name='adamw', schedule='cosine'),
  ema_decay=0.9,
)
SELECTION = progress.SelectionSettings(patience=2)


@functools.cache
def images():
  """2,600 noisy images whose brightest rows tell their class."""
  draws = np.random.default_rng(0)
  label = draws.integers(0, CLASSES, 2600).astype(np.int32)
  image = draws.integers(0, 150, (len(label), SIDE, SIDE, 1), np.uint8)
  for k in range(CLASSES):
    image[label == k, 2 * k : 2 * k + 2] += 60
  target = np.eye(CLASSES, dtype=np.float32)[label]
  return {'image': image, 'target': target, 'label': label}


def model(key, convolutions=1, dtype='float32'):
  """Of two convolutions the second is by Winograd's algorithm."""
  # No bias: batch normalisation takes it out, so its gradient is rounding.
  convolution = spec.Convolution(8, use_bias=False)
  specification = Specification(
    input_shape=(SIDE, SIDE, 1),
    backbone=(spec.MaxPool(), *(convolution,) * convolutions),
    body=(spec.Rows(), spec.Recurrent('gru', 4, returns='last')),
    head=(spec.Drop(0.1),),
    dtype=dtype,
  )
  return FusionModel(
    specification, num_classes=CLASSES, rngs=nnx.Rngs(params=key)
  )


@functools.cache
def graph_definition(*of_model):
  made = nnx.eval_shape(lambda: model(jax.random.key(0), *of_model))
  return split(made)[0]


@functools.cache
def _first_state(*of_model):
  def first(key, hparams):
    _, params, model_state = split(model(key, *of_model))
    opt_state = optim.direction(SETTINGS.optim).init(params)
    return initial_state(params, model_state, opt_state, hparams, ema=True)

  return jax.jit(first)


def member(number, *of_model, fold=None, **hparams):
  """A member that differs in all that members may differ in."""
  train, validation = FOLDS[number % len(FOLDS) if fold is None else fold]
  rows = np.random.default_rng(number).permutation(len(images()['image']))
  steps = -(-train // BATCH)
  key = jax.random.key(number)
  values = {
    **dict.fromkeys(HPARAMS, 0.0),
    'learning_rate': 0.003 * (number % 3 + 1),
    'weight_decay': 0.01 * (number % 3),
    'l2': 1e-4 * (number % 3),
    'dropout': 0.1 * (number % 3),
    'label_smoothing': 0.05 * (number % 3),
    'augment_strength': 1.0 / (number % 3 + 1),
    **hparams,
  }
  return population.Member(
    jax.tree.map(np.asarray, _first_state(*of_model)(key, values)),
    step_lib.Plan(
      key,
      optim.Milestones(warmup=steps // 2, total=EPOCHS * steps),
      np.linspace(0.8, 1.2, CLASSES, dtype=np.float32) ** (number % 3),
    ),
    rows[:train],
    rows[train : train + validation],
    number,
  )


def population_of(members, mapping, *of_model, **options):
  """On one device, blocks of 20 steps, unless the options say otherwise."""
  return population.Population(
    **{
      'images': images(),
      'members': members,
      'graphdef': graph_definition(*of_model),
      'settings_of': lambda epoch: SETTINGS,
      'selection': SELECTION,
      'epochs': EPOCHS,
      'block_steps': 20,
      'mapping': mapping,
      'devices': jax.devices()[:1],
      **options,
    },
  )


@functools.cache
def _compiled(*of_model):
  graphdef = graph_definition(*of_model)
  return (
    step_lib.make_block(graphdef, SETTINGS),
    step_lib.make_validation(graphdef, SETTINGS),
    jax.jit(
      functools.partial(feed._rows_in_order, randomness.epoch_order),
      static_argnums=4,
    ),
  )


def single_feed(member, *of_model):
  """What the same run by itself trains and validates with.

  Its programs are shared: each feed would compile its own.
  """
  made = feed.ResidentFeed(
    images(),
    train_rows=member.train_rows,
    validation_rows=member.validation_rows,
    plan=member.plan,
    graphdef=graph_definition(*of_model),
    settings_of=lambda epoch: SETTINGS,
    block_steps=20,
  )
  block, made._validation, made._order = _compiled(*of_model)
  made._block = lambda settings: block
  return made


def single_run(member, epochs, *of_model):
  """(state, [means of training and of validation] of each epoch), done alone
  and steered as `loop` does."""
  alone = single_feed(member, *of_model)
  state = jax.tree.map(jax.numpy.asarray, member.state)
  figures = []
  for epoch in range(epochs):
    sums = {}
    for block in alone.train_epoch(state, epoch):
      state, sums, _ = block
    validation = step_lib.means(alone.validate(state))
    state = state._replace(
      progress=progress.update(
        state.progress, SELECTION, validation, state.step
      )
    )
    figures.append([step_lib.means(sums), validation])
  return state, figures
