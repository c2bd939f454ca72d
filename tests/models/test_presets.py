"""The presets: what papers print, the variants, and what holds for all."""

import contextlib
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
from fer_jax.models.backbones import densenet, xception
from fer_jax.models.layer_table import layer_table
from fer_jax.models.presets.shared import RECURRENCES
from fer_jax.models.stages import sequences
from fer_jax.nn import GRU, LSTM, conv
from fer_jax.training import probe

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


@contextlib.contextmanager
def shallow():
  """Of deep backbones two layers a block, and one block of many alike."""
  kept = {n: w for n, w in xception.BLOCKS.items() if n not in range(6, 13)}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(densenet, 'BLOCKS', (2, 2, 2, 2))
    patch.setattr(xception, 'BLOCKS', kept)
    yield


@functools.cache
def small(name, **more):
  with shallow():
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


def test_readings_of_the_dense_layer_of_model_1():
  """P4's table 2 prints no activation."""
  assert models.specify('cnn_model1').head == (
    spec.Dense(32, 'relu'),
    spec.Drop(0.6),
  )
  linear = models.specify('cnn_model1', dense_activation='linear')
  assert linear.head == (spec.Dense(32, 'linear'), spec.Drop(0.6))
  with pytest.raises(ValueError, match='one of relu, linear'):
    models.specify('cnn_model1', dense_activation='tanh')


@pytest.mark.parametrize(
  ('name', 'convolution'),
  [
    ('cnn_lstm_model3', 'backbone.conv2.conv'),
    ('improved_cnn', 'backbone.conv2.conv'),
    ('vgg16_gru', 'backbone.network1.network.block2.conv1'),
    ('densenet121_gru', 'backbone.network1.network.denseblock1.layer1.conv2'),
    ('xception_gru', 'backbone.network1.network.block4.sepconv2.depthwise'),
    ('xception_gru', 'backbone.network1.network.block4.sepconv2.pointwise'),
  ],
)
def test_initial_values_are_those_of_keras(name, convolution):
  """Glorot-uniform kernels, orthogonal recurrent ones, biases 0, of the forget
  gate 1."""
  kernels = (convolution, 'body.recurrent1.layer', 'logits')

  @jax.jit
  def initial():
    model = models.create(name, num_classes=7, rngs=nnx.Rngs(0))
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    # What is left out is not drawn: of the networks most of the time.
    return {
      path: variable[...]
      for path, variable in state
      if path[-1] in ('bias', 'recurrent_kernel')
      or '.'.join(map(str, path[:-1])) in kernels
    }

  with shallow():
    found = {path: np.asarray(value) for path, value in initial().items()}
  for path, value in found.items():
    if path[-1] == 'recurrent_kernel':
      square = value @ value.T
      np.testing.assert_allclose(square, np.eye(len(square)), atol=1e-5)
    elif path[-1] == 'kernel':
      *window, inputs, outputs = value.shape
      limit = math.sqrt(6 / math.prod(window) / (inputs + outputs))
      assert 0.99 * limit < np.abs(value).max() <= limit
      # Uniform: its deviation is the limit over the square root of three.
      np.testing.assert_allclose(value.std(), limit / math.sqrt(3), rtol=0.03)
    elif 'lstm' in name and 'layer' in path:
      gates = np.repeat([0.0, 1, 0, 0], value.size // 4)
      np.testing.assert_array_equal(value, gates)
    else:
      assert not value.any()
  count = sum(path[-1] == 'kernel' for path in found)
  assert count == (2 if name == 'improved_cnn' else 3)


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
  close(evaluation(name)(x[2:3])[0], together[2])
  assert jnp.abs(together[0] - together[1]).max() > 1e-3 * scale


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('improved_cnn', {}),
    ('cnn_lstm_model2', {}),
    ('residual_bilstm', {'filters': (8, 10)}),
  ],
)
def test_a_batch_of_no_size_yet_is_exported(name, fields):
  """Of every form of convolution on CPU. Reference: the model; 1e-5."""
  graphdef, state = nnx.split(
    drawn(abstract(name, **overrides(name, **fields)))
  )
  arrays = nnx.to_pure_dict(state)
  call = jax.jit(lambda arrays, x: nnx.merge(graphdef, arrays)(x))
  x = images_for(name, 3)
  (batch,) = jax.export.symbolic_shape('b')
  abstract_x = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
  exported = jax.export.export(call)(arrays, abstract_x)
  expected = call(arrays, x)
  scale = jnp.abs(expected).max()
  for n in (1, 3):
    found = exported.call(arrays, x[:n])
    np.testing.assert_allclose(found / scale, expected[:n] / scale, atol=1e-5)


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
  with shallow():
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


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    *((name, (16, 16, 1)) for name in RESIDUAL),
    ('cnn_lstm_model2', (40, 40, 1)),
    ('cnn_lstm_model3', (40, 40, 1)),
    ('densenet121_gru', (64, 96, 3)),
  ],
)
@pytest.mark.parametrize('how', RECURRENCES)
def test_which_variants_see_the_order_of_steps(name, shape, how):
  """Steps of the map turned round: only recurrence tells; 1e-5."""
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


@pytest.mark.parametrize('how', RECURRENCES)
@pytest.mark.parametrize('name', FUSION)
def test_padding_changes_no_clip(name, how):
  """Body and head on maps, what a mask hides being no number and behind the
  frames or between them. Reference: the clip as long as it is; 1e-5 of the
  largest."""
  with shallow():
    like = abstract(name, **overrides(name, recurrence=how))
  on_maps = probe.on_maps(like.specification, like.map_shape)
  graphdef, state = nnx.split(
    drawn(
      nnx.eval_shape(
        lambda: models.FusionModel(on_maps, num_classes=3, rngs=nnx.Rngs(0))
      )
    )
  )
  call = jax.jit(lambda *inputs: nnx.merge(graphdef, state)(*inputs))
  draw = np.random.default_rng(1)
  clip = jnp.asarray(draw.uniform(0, 1, (1, 2, *like.map_shape)), jnp.float32)
  expected = call(clip)
  nothing = jnp.full_like(clip[:, :1], jnp.nan)
  for frames, mask in (
    ((clip, nothing), [[True, True, False]]),
    ((clip[:, :1], nothing, clip[:, 1:]), [[True, False, True]]),
  ):
    found = call(jnp.concatenate(frames, 1), jnp.array(mask))
    scale = jnp.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)
  assert jnp.abs(call(clip.at[:, 1].set(0)) - expected).max() > 1e-3


def shuffled(clip):
  """A model of four steps an image."""
  specification = spec.Specification(
    input_shape=(4, 4, 1),
    backbone=(spec.Convolution(3), spec.MaxPool()),
    body=(
      spec.Grid(),
      spec.Shuffle(),
      spec.Recurrent('gru', 4),
      spec.Attention(3),
    ),
    head=(),
    clip=clip,
  )
  return drawn(
    nnx.eval_shape(
      lambda: models.FusionModel(specification, num_classes=3, rngs=nnx.Rngs(0))
    )
  )


@pytest.mark.parametrize('clip', spec.CLIPS)
def test_padding_changes_no_clip_of_shuffled_steps(clip):
  """Reference: each clip as long as it is; garbage behind it, and between its
  frames; 1e-5."""
  graphdef, state = nnx.split(shuffled(clip))
  call = jax.jit(lambda *inputs: nnx.merge(graphdef, state)(*inputs))
  draw = np.random.default_rng(1)
  frames = jnp.asarray(draw.standard_normal((3, 4, 4, 1)), jnp.float32)
  alone = {n: call(frames[None, :n])[0] for n in (2, 3)}
  for places in ((0, 1, 2, 3), (0, 1, 3, 4)):
    clips = jnp.full((2, places[-1] + 1, 4, 4, 1), 50.0)
    mask = jnp.zeros(clips.shape[:2], bool)
    for row, length in enumerate(alone):
      there = jnp.array(places[:length])
      clips = clips.at[row, there].set(frames[:length])
      mask = mask.at[row, there].set(True)
    found = call(clips, mask)
    np.testing.assert_allclose(found, jnp.stack([*alone.values()]), atol=1e-5)
  assert jnp.abs(alone[2] - alone[3]).max() > 1e-3


def test_shuffled_steps_keep_the_order_of_their_length():
  """That of the records and of trained models; exact."""
  layer = stages.build(
    spec.Shuffle(), (3, 1), dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  run = stages.Run(train=False, mask=None, key=None, rate=None)
  for order in ([2, 1, 0], [0, 3, 4, 1, 2], [1, 2, 0, 5, 3, 4]):
    steps = jnp.arange(len(order), dtype=jnp.float32)[None, :, None]
    np.testing.assert_array_equal(layer(steps, run)[0, :, 0], order)


@pytest.mark.parametrize('name', FUSION)
def test_the_backend_reaches_every_recurrent_stage(name):
  def backends(**named):
    body = models.specify(name, **overrides(name, **named)).body
    return {s.backend for s in body if isinstance(s, spec.Recurrent)}

  assert backends() == {'auto'}
  assert backends(backend='scan') == {'scan'}


@pytest.mark.parametrize('name', ['residual_gru', 'residual_bilstm'])
def test_the_backend_reaches_the_layers(name):
  model = abstract(name, **overrides(name, backend='fused', recurrent_layers=2))
  modules = [module for _, module in nnx.iter_modules(model)]
  layers = [m for m in modules if isinstance(m, GRU | LSTM)]
  assert len(layers) == (4 if name == 'residual_bilstm' else 2)
  assert {layer.backend for layer in layers} == {'fused'}


def test_forward_mode_goes_through_body_and_head_by_the_scan():
  """Reference: reverse mode on the default backend, along one direction; 1e-4
  of it."""
  name = 'residual_bilstm'
  x = images_for(name, 2)

  def split_loss(model):
    graphdef, body, rest = nnx.split(model, nnx.PathContains('body'), ...)

    def loss(body, rest, x):
      return jnp.sin(nnx.merge(graphdef, body, rest)(x)).sum()

    return loss, body, rest

  @jax.jit
  def forward(body, rest, x):
    return jax.jvp(lambda body: loss(body, rest, x), (body,), (direction,))[1]

  loss, body, rest = split_loss(small(name, backend='scan'))
  direction = jax.tree.map(
    lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), body
  )
  found = forward(body, rest, x)
  loss, body, rest = split_loss(small(name))
  gradients = jax.jit(jax.grad(loss))(body, rest, x)
  expected = sum(
    jnp.vdot(*pair)
    for pair in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)


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
  """Gradients against those without, dropout on, 1e-6 of the largest; running
  statistics, 1e-6. And fewer bytes are kept for the backward pass."""

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

  expected = step(remat=False)
  # A bias before a normalisation has no gradient but rounding.
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[0]))
  for found, known, scale in zip(
    step(remat=True), expected, (largest, 1.0), strict=True
  ):
    close = functools.partial(
      np.testing.assert_allclose, rtol=1e-5, atol=1e-6 * scale
    )
    jax.tree.map(close, found, known)
  kept = saved_bytes(name)
  assert kept[True] < 0.8 * kept[False]


def saved_bytes(name):
  return {
    remat: layer_table(abstract(name, **overrides(name, remat=remat)))[
      'totals'
    ]['saved_bytes']
    for remat in (True, False)
  }


def test_a_rematerialised_network_is_the_same(monkeypatch):
  """Gradients and running statistics of DenseNet121 with a layer a block,
  against those without; 1e-6 of the largest."""
  monkeypatch.setattr(densenet, 'BLOCKS', (1, 1, 1, 1))
  monkeypatch.setattr(conv, 'choose_form', lambda *args, **kwargs: 'lax')
  network = nnx.eval_shape(lambda: densenet.DenseNet121(rngs=nnx.Rngs(0)))
  graphdef, params, rest = nnx.split(drawn(network), nnx.Param, ...)
  draw = np.random.default_rng(1)
  x = jnp.asarray(draw.standard_normal((4, 64, 64, 3)), jnp.float32)

  def step(remat):
    def loss(params):
      merged = nnx.merge(graphdef, params, rest, copy=True)
      mask = jnp.array([True, False, True, True])
      y = merged(x, train=True, mask=mask, remat=remat)
      return jnp.sin(y).sum(), nnx.state(merged, nnx.BatchStat)

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  for found, expected in zip(step(True), step(False), strict=True):
    scale = max(float(jnp.abs(v).max()) for v in jax.tree.leaves(expected))
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6 * scale),
      found,
      expected,
    )


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
    ('residual_gru', {'backend': 'cudnn'}, 'one of auto, scan, fused, got'),
  ],
)
def test_what_cannot_be_is_named(name, fields, message):
  with pytest.raises(ValueError, match=message):
    models.check(name, **fields)


LEAST = {
  'basic_cnn': 4,
  'cnn_lstm_model2': 22,
  'cnn_lstm_model3': 22,
  'cnn_model1': 10,
  'densenet121_gru': 29,
  'improved_cnn': 16,
  'residual_bilstm': 8,
  'residual_gru': 8,
  'residual_lstm': 8,
  'vgg16_gru': 32,
  'xception_gru': 7,
}


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', models.available())
def test_the_least_size_is_enough(name, channels):
  """Grey or RGB; of a pixel less in either direction nothing is left."""
  size = LEAST[name]
  with shallow():
    model = abstract(name, input_shape=(size, size, channels))
  assert model.map_shape[:2] == (1, 1)
  graphdef, state = nnx.split(model)
  logits = jax.eval_shape(
    lambda state, x: nnx.merge(graphdef, state)(x),
    *(state, jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)),
  )
  assert logits.shape == (2, 7)
  for smaller in ((size - 1, size, channels), (size, size - 1, channels)):
    with pytest.raises(ValueError, match=rf'at least {size} ?x ?{size}'):
      models.check(name, input_shape=smaller)


def test_the_scales_of_pixels_are_those_of_specifications():
  assert set(standardize.SCALES) == set(spec.PIXELS)
