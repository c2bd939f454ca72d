"""The presets: what papers print, the variants, and what holds for all."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

from fer_jax import models
from fer_jax.data import standardize
from fer_jax.models import specification as spec
from fer_jax.models import stages
from fer_jax.models.layer_table import layer_table
from fer_jax.models.presets.shared import RECURRENCES
from fer_jax.models.stages import sequences
from fer_jax.nn import conv

SMALL = {
  'residual_lstm': {'input_shape': (16, 8, 1), 'filters': (4, 6)},
  'residual_gru': {'input_shape': (16, 8, 1), 'filters': (4, 6)},
  'residual_bilstm': {'input_shape': (16, 8, 1), 'filters': (4, 6)},
  'cnn_model1': {'input_shape': (12, 10, 1)},
  'cnn_lstm_model2': {'input_shape': (22, 32, 1)},
  'cnn_lstm_model3': {'input_shape': (32, 22, 1)},
  'basic_cnn': {'input_shape': (8, 12, 1)},
  'improved_cnn': {'input_shape': (16, 20, 1)},
  'densenet121_gru': {'input_shape': (32, 64, 3)},
  'vgg16_gru': {'input_shape': (32, 64, 1)},
  'xception_gru': {'input_shape': (48, 71, 3)},
}
RESIDUAL = tuple(name for name in SMALL if name.startswith('residual'))
PRETRAINED = ('densenet121_gru', 'vgg16_gru', 'xception_gru')
FUSION = tuple(
  name for name in SMALL if 'recurrence' in models.fields(name)
)  # fmt: skip


def overrides(name, **more):
  found = dict(SMALL[name])
  if name in RESIDUAL:
    found |= {'stem_filters': (4,), 'blocks': (1, 1), 'units': 6}
    found |= {'attention_units': 5, 'head': (7,)}
  return found | more


def abstract(name, num_classes=7, **fields):
  return nnx.eval_shape(
    lambda: models.create(
      name, num_classes=num_classes, rngs=nnx.Rngs(0), **fields
    )
  )


@functools.cache
def small(name, **more):
  return drawn(abstract(name, 3, **overrides(name, **more)))


def images_for(name, n, seed=1):
  """In the range that the model takes."""
  draw = np.random.default_rng(seed)
  shape = overrides(name)['input_shape']
  pixels = jnp.asarray(draw.uniform(0, 1, (n, *shape)), jnp.float32)
  return standardize.SCALES[models.specify(name).pixels](pixels)


# P4's tables: the layers of Keras' summary with their parameters in all.
TABLES = {
  'cnn_model1': (
    [
      ((46, 46, 16), 160 + 64),
      ((46, 46, 32), 4_640 + 128),
      ((23, 23, 32), 0),
      ((21, 21, 32), 9_248 + 128),
      ((10, 10, 32), 0),
      ((3200,), 0),
      ((32,), 102_432),
      ((32,), 0),
      ((7,), 231),
    ],
    (117_031, 116_871),
  ),
  'cnn_lstm_model2': (
    [
      ((46, 46, 32), 320 + 128),
      ((46, 46, 64), 18_496 + 256),
      ((23, 23, 64), 0),
      ((21, 21, 64), 36_928 + 256),
      ((21, 21, 128), 73_856 + 512),
      ((10, 10, 128), 0),
      ((8, 8, 128), 147_584 + 512),
      ((4, 4, 128), 0),
      ((64, 32), 0),
      ((32,), 8_320),
      ((1, 32), 0),
      ((32,), 8_320),
      ((200,), 6_600),
      ((200,), 0),
      ((7,), 1_407),
    ],
    (303_495, 302_663),
  ),
}
TABLES['cnn_lstm_model3'] = (
  [
    *TABLES['cnn_lstm_model2'][0][:8],
    ((16, 128), 0),
    ((128,), 131_584),
    ((2, 64), 0),
    ((64,), 33_024),
    ((200,), 13_000),
    ((200,), 0),
    ((7,), 1_407),
  ],
  (457_863, 457_031),
)


@pytest.mark.parametrize('name', TABLES)
def test_published_layer_tables(name):
  """Reference: P4's tables 2, 3 and 4, layer by layer; exact."""
  rows, (total, trainable) = TABLES[name]
  table = layer_table(abstract(name))
  found = [
    (tuple(row['output_shape']), row['trainable'] + row['non_trainable'])
    for row in table['layers']
    if row['depth'] == 0
  ]
  assert found == rows
  assert table['totals']['parameters'] == total
  assert table['totals']['trainable'] == trainable


@pytest.mark.parametrize(
  ('name', 'parameters', 'map_shape', 'tokens'),
  [
    ('densenet121_gru', 7_037_504, (7, 7, 1024), (49, 1024)),
    ('vgg16_gru', 14_714_688, (7, 7, 512), (1, 512)),
    ('xception_gru', 20_861_480, (7, 7, 2048), (1, 9 * 2048)),
  ],
)
@pytest.mark.parametrize('family', ['keras', 'torch'])
def test_published_backbones(name, parameters, map_shape, tokens, family):
  """Reference: Keras' networks without top on 224 x 224; exact."""
  model = abstract(name, input_shape=(224, 224, 3), family=family)
  backbone = nnx.state(model.backbone)
  assert sum(v.size for v in jax.tree.leaves(backbone)) == parameters
  assert model.map_shape == map_shape
  first = next(
    n for n, (_, s) in enumerate(model.layers('body')) if s.over_sequence
  )
  assert model.layers('body')[first - 1][1].output_shape == tokens


def test_heads_of_the_pretrained_networks():
  """P2, section 4: two GRUs and a dense layer; a GRU; a GRU, a dense layer and
  dropout."""
  densenet = models.specify('densenet121_gru')
  assert densenet.body == (
    spec.Grid(),
    spec.Recurrent('gru', 256),
    spec.Recurrent('gru', 128, returns='last'),
  )
  assert densenet.head == (spec.Dense(256), spec.Drop(0.0))
  vgg = models.specify('vgg16_gru')
  assert vgg.body[:2] == (spec.GlobalAveragePool(), spec.Steps())
  assert vgg.head == (spec.Drop(0.0),)
  xception = models.specify('xception_gru')
  assert xception.body[:3] == (spec.MaxPool(), spec.Flatten(), spec.Steps())
  assert [type(s) for s in xception.head] == [spec.Dense, spec.Drop]
  assert {s.pixels for s in (densenet, vgg, xception)} == {'raw'}


@pytest.mark.parametrize('name', ['cnn_lstm_model3', 'improved_cnn'])
def test_initial_values_are_those_of_keras(name):
  """Glorot-uniform kernels, orthogonal recurrent ones, forget bias 1."""
  model = models.create(name, num_classes=7, rngs=nnx.Rngs(0))
  kernel = np.asarray(model.backbone['conv2'].conv.kernel[...])
  fans = kernel.shape[0] * kernel.shape[1] * (kernel.shape[2] + kernel.shape[3])
  limit = math.sqrt(6 / fans)
  assert 0.99 * limit < np.abs(kernel).max() <= limit
  # Uniform: its deviation is the limit over the square root of three.
  np.testing.assert_allclose(kernel.std(), limit / math.sqrt(3), rtol=0.03)
  assert not np.any(model.backbone['conv2'].conv.bias[...])
  if name == 'cnn_lstm_model3':
    lstm = model.body['recurrent1'].layer
    recurrent = np.asarray(lstm.recurrent_kernel[...])
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(128), atol=1e-5)
    np.testing.assert_array_equal(
      lstm.bias[...], np.repeat([0.0, 1, 0, 0], 128)
    )


@functools.cache
def evaluation(name):
  graphdef, state = nnx.split(small(name))
  # As constants of the program, millions of weights would be compiled.
  call = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
  return functools.partial(call, state)


@pytest.fixture
def short_programs(request, monkeypatch):
  """XLA's own convolutions in the pretrained networks.

  The 58 Winograd convolutions of DenseNet121 are 50 000 operations to compile;
  the other presets show that they keep images apart.
  """
  if request.getfixturevalue('name') in PRETRAINED:
    monkeypatch.setattr(conv, 'choose_form', lambda *args, **kwargs: 'lax')


@pytest.mark.usefixtures('short_programs')
@pytest.mark.parametrize('name', models.available())
def test_prediction_depends_on_its_own_image_alone(name):
  """Beside other images, in another place, alone; 1e-5 of the largest."""
  x = images_for(name, 4)
  together = evaluation(name)(x)
  scale = jnp.abs(together).max()

  def close(found, expected):
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)

  beside_others = evaluation(name)(x.at[jnp.array([0, 1, 3])].multiply(0.5))
  close(beside_others[2], together[2])
  close(evaluation(name)(x[::-1])[::-1], together)
  if name not in PRETRAINED:
    # Another batch size is another compilation.
    close(evaluation(name)(x[2:3])[0], together[2])
  assert jnp.abs(together[0] - together[1]).max() > 1e-3 * scale


@pytest.mark.usefixtures('short_programs')
@pytest.mark.parametrize('name', models.available())
def test_padding_changes_nothing_in_training(name):
  """Weight 0 on garbage against other garbage: logits of the real images and
  the running statistics; 1e-5."""
  graphdef, state = nnx.split(small(name))

  @jax.jit
  def train(state, x):
    merged = nnx.merge(graphdef, state, copy=True)
    logits = merged(x, train=True, weight=jnp.array([1.0, 0, 1, 1]))
    return logits, nnx.state(merged, nnx.BatchStat)

  x = images_for(name, 4)
  logits, statistics = train(state, x)
  other, other_statistics = train(state, x.at[1].set(3 * x[1][::-1] + 1))
  real = jnp.array([0, 2, 3])
  scale = jnp.abs(logits[real]).max()
  np.testing.assert_allclose(
    logits[real] / scale, other[real] / scale, atol=1e-5
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    statistics,
    other_statistics,
  )


def size_of_body(model):
  return sum(v.size for v in jax.tree.leaves(nnx.state(model.body)))


@pytest.mark.parametrize('name', FUSION)
def test_the_variant_without_recurrence_has_as_many_parameters(name):
  """Within half a hidden unit of each replaced stage; one is at most the
  width of its inputs and outputs and a bias."""
  models_of = {
    how: abstract(name, **overrides(name, recurrence=how))
    for how in RECURRENCES
  }
  allowed = sum(
    (layer.in_features + 1 + layer.layer.out_features) / 2
    for _, layer in models_of['recurrent'].layers('body')
    if isinstance(layer, sequences.RecurrentLayer)
  )
  sizes = {how: size_of_body(model) for how, model in models_of.items()}
  assert abs(sizes['recurrent'] - sizes['pointwise']) <= allowed
  assert sizes['shuffled'] == sizes['recurrent']
  assert sizes['attention'] < sizes['recurrent']


@pytest.mark.parametrize('name', ['residual_bilstm', 'cnn_lstm_model3'])
@pytest.mark.parametrize('how', RECURRENCES)
def test_which_variants_see_the_order_of_steps(name, how):
  """Steps of the map turned round: only recurrence tells; 1e-5."""
  shape = (16, 16, 1) if name in RESIDUAL else (40, 40, 1)
  model = small(name, recurrence=how, input_shape=shape)
  draw = np.random.default_rng(1)
  feature_map = draw.uniform(0, 1, (2, *model.map_shape))
  graphdef, state = nnx.split(model)
  tokens = model.layers('body')[0][1](jnp.float32(feature_map), None)

  @jax.jit
  def logits_of(state, tokens):
    merged = nnx.merge(graphdef, state)
    run = stages.Run(train=False, mask=None, key=None, rate=None)
    y = tokens
    for _, layer in merged.layers('body')[1:]:
      y = layer(y, run)
    for _, layer in merged.layers('head'):
      y = layer(y, run)
    return merged.logits(y)

  assert tokens.shape[1] > 4
  turned = logits_of(state, tokens[:, ::-1])
  moved = jnp.abs(logits_of(state, tokens) - turned).max()
  if how in ('recurrent', 'shuffled'):
    assert moved > 1e-4
  else:
    assert moved < 1e-5


def test_shuffled_steps_take_their_masks_along():
  """Reference: the clip cut to its length, since a fixed order of the steps
  there are is not that of all: masked steps do not reach the result; 1e-5."""
  name = 'cnn_lstm_model3'
  model = small(name, recurrence='shuffled')
  x = images_for(name, 6)
  clips = x.reshape(2, 3, *x.shape[1:])
  mask = jnp.array([[True, True, False], [True, True, True]])
  graphdef, state = nnx.split(model)
  call = jax.jit(lambda x: nnx.merge(graphdef, state)(x, mask))
  found = call(clips)
  other = call(clips.at[0, 2].set(0.7))
  np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)
  assert jnp.abs(call(clips.at[0, 1].set(0.7)) - found)[0].max() > 1e-5


def test_steps_of_all_frames_follow_each_other():
  """Reference: the steps of each frame as an image; exact."""
  name = 'cnn_lstm_model2'
  model = small(name)
  x = images_for(name, 4)
  graphdef, state = nnx.split(model)
  call = jax.jit(
    lambda x: nnx.merge(graphdef, state)(x, return_features=True)[1]
  )
  of_clips = call(x.reshape(2, 2, *x.shape[1:]))
  of_images = call(x)
  np.testing.assert_allclose(
    of_clips['tokens'],
    of_images['tokens'].reshape(2, -1, 32),
    rtol=1e-6,
    atol=1e-6,
  )


@pytest.mark.parametrize('name', ['residual_gru', 'improved_cnn'])
def test_rematerialisation_changes_nothing_but_memory(name):
  """Gradients and running statistics against those without, dropout on; 1e-6.
  And fewer bytes are kept for the backward pass."""

  def step(remat):
    model = small(name, remat=remat, dropout=0.5)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
      merged = nnx.merge(graphdef, params, rest, copy=True)
      logits = merged(images_for(name, 4), train=True, key=jax.random.key(3))
      moved = nnx.state(merged, nnx.BatchStat)
      return jnp.square(logits).sum(), nnx.to_pure_dict(moved)

    gradients, moved = jax.jit(jax.grad(loss, has_aux=True))(params)
    return nnx.to_pure_dict(gradients), moved

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    step(remat=True),
    step(remat=False),
  )
  kept = saved_bytes(name)
  assert kept[True] < 0.8 * kept[False]


def saved_bytes(name):
  return {
    remat: layer_table(abstract(name, **overrides(name, remat=remat)))[
      'totals'
    ]['saved_bytes']
    for remat in (True, False)
  }


def test_a_network_is_rematerialised_block_by_block():
  kept = saved_bytes('vgg16_gru')
  assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('cnn_lstm_model3', {'input_shape': (21, 48, 1)}, 'at least 22 x 22'),
    ('cnn_model1', {'input_shape': (9, 48, 1)}, 'at least 10 x 10'),
    ('cnn_lstm_model2', {'units': (48, 32)}, 'does not divide'),
    ('cnn_lstm_model3', {'units': (128, 48)}, 'does not divide its 128'),
    ('cnn_lstm_model3', {'filters': (8, 8)}, 'filters must be 5 positive'),
    ('improved_cnn', {'input_shape': (15, 48, 1)}, 'at least 16 x 16'),
    ('vgg16_gru', {'input_shape': (48, 48, 2)}, '2 channels; expected 1'),
    ('vgg16_gru', {'input_shape': (31, 48, 3)}, 'at least 32x32, got 31x48'),
    ('xception_gru', {'family': 'timm'}, 'family must be one of keras, torch'),
    ('vgg16_gru', {'recurrence': 'none'}, 'recurrence must be one of'),
  ],
)
def test_what_cannot_be_is_named(name, fields, message):
  with pytest.raises(ValueError, match=message):
    models.check(name, **fields)


@pytest.mark.parametrize(
  ('name', 'size'), [('cnn_lstm_model3', 22), ('cnn_model1', 10)]
)
def test_the_least_size_is_enough(name, size):
  assert min(abstract(name, input_shape=(size, size, 1)).map_shape) == 1


def test_the_scales_of_pixels_are_those_of_specifications():
  assert set(standardize.SCALES) == set(spec.PIXELS)
