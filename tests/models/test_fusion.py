"""The composition: every stage, clips, invariances, and the systems it can
express."""

import dataclasses
import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

from fer_jax import models
from fer_jax.models import FusionModel, fusion, registry
from fer_jax.models import specification as spec
from fer_jax.nn import GRU, Dropout

K = 3
SHAPE = (16, 8, 1)
SMALL = {
  'input_shape': SHAPE,
  'stem_filters': (4,),
  'filters': (5, 6),
  'blocks': (1, 1),
  'units': 6,
  'attention_units': 5,
  'head': (7,),
}


@functools.cache
def small(name='residual_bilstm', seed=0, **overrides):
  """A model whose map is 4 x 2; shared, so nothing may change it."""
  return drawn(nnx.eval_shape(lambda: create(name, **overrides)), seed)


def create(name='residual_bilstm', **overrides):
  return models.create(
    name, num_classes=K, rngs=nnx.Rngs(0), **{**SMALL, **overrides}
  )


def build(backbone, body, head=(), shape=(12, 10, 2), classes=K):
  return FusionModel(
    spec.Specification(shape, tuple(backbone), tuple(body), tuple(head)),
    num_classes=classes,
    rngs=nnx.Rngs(0),
  )


def images(n=4, seed=1, shape=SHAPE):
  draw = np.random.default_rng(seed)
  return jnp.asarray(draw.standard_normal((n, *shape)), jnp.float32)


def split(model):
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


@functools.cache
def _evaluation(model):
  graphdef, *state = split(model)

  @jax.jit
  def call(state, *arguments, **options):
    merged = nnx.merge(graphdef, *state)
    return merged(*arguments, return_features=True, **options)

  return functools.partial(call, state)


def evaluate(model, *arguments, **options):
  """Logits and features of a jitted call in evaluation."""
  return _evaluation(model)(*arguments, **options)


@functools.cache
def train(model):
  """A jitted step: (gradients, (logits, statistics)) of a weighted loss."""
  _, params, _ = split(model)
  forward = _forward(model)

  @jax.jit
  def step(x, weight, frame_mask=None):
    def loss(params):
      logits, statistics = forward(params, x, weight, frame_mask)
      value = jnp.sum(jax.nn.log_softmax(logits)[:, 0] * weight)
      return value, (logits, statistics)

    return jax.grad(loss, has_aux=True)(params)

  return step


def _forward(model, train=True):
  graphdef, _, rest = split(model)

  def forward(params, x, weight, frame_mask):
    merged = nnx.merge(graphdef, params, rest, copy=True)
    logits = merged(x, frame_mask, train=train, weight=weight)
    return logits, nnx.to_pure_dict(nnx.state(merged, nnx.Not(nnx.Param)))

  return forward


@functools.cache
def statistics(model):
  """A jitted function to the running statistics after a batch."""
  _, params, _ = split(model)
  forward = _forward(model)

  @jax.jit
  def call(x, weight, frame_mask=None):
    return forward(params, x, weight, frame_mask)[1]

  return call


def close(found, expected, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ('name', 'attention'),
  [
    ('residual_lstm', True),
    ('residual_gru', False),
    ('residual_bilstm', True),
    ('residual_bilstm', False),
  ],
)
def test_prediction_depends_on_its_own_image_alone(name, attention):
  """Batch of 1, of 5, and turned round; 2e-6."""
  model = small(name, attention=attention)
  x = images(5)
  together, _ = evaluate(model, x)
  assert together.shape == (5, K)
  assert together.dtype == jnp.float32
  alone = [evaluate(model, x[n : n + 1])[0] for n in (0, 4)]
  close(jnp.concatenate(alone), together[jnp.array([0, 4])], 2e-6)
  close(evaluate(model, x[::-1])[0][::-1], together, 2e-6)
  # And it does depend on it.
  assert jnp.abs(together[0] - together[1]).max() > 1e-3


def test_padding_changes_nothing_in_training():
  """Weight 0 on garbage against the batch without it: logits, running
  statistics and gradients; 1e-5."""
  step = train(small())
  x = images(4)
  garbage = jnp.concatenate([x[:2], 50 * images(2, seed=9), x[2:]])
  weight = jnp.array([1.0, 1, 0, 0, 1, 1])
  gradient, (logits, statistics) = step(garbage, weight)
  expected_gradient, (expected, expected_statistics) = step(x, jnp.ones(4))
  close(logits[weight > 0], expected)
  close(statistics, expected_statistics)
  close(gradient, expected_gradient, 1e-4)
  assert np.all(np.isfinite(logits))


def test_training_moves_the_running_statistics_and_evaluation_does_not():
  model = small()
  before = split(model)[2]
  after = statistics(model)(images(), jnp.ones(4))
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after, before)
  assert all(jax.tree.leaves(moved))
  forward = jax.jit(_forward(model, train=False))
  _, after = forward(split(model)[1], images(), jnp.ones(4), None)
  close(after, before, 0)


def test_masked_frames_change_nothing():
  """Clips of unequal lengths, garbage behind the mask, against each clip cut
  to its length; 1e-5."""
  model = small()
  lengths = (4, 2)
  clips = images(8).reshape(2, 4, *SHAPE)
  mask = jnp.arange(4)[None] < jnp.array(lengths)[:, None]
  filled = jnp.where(mask[..., None, None, None], clips, 50.0)
  logits, features = evaluate(model, filled, mask)
  for n, length in enumerate(lengths):
    cut, cut_features = evaluate(model, clips[n : n + 1, :length])
    close(logits[n], cut[0])
    close(features['attention'][n, :length], cut_features['attention'][0])
  assert not np.any(features['attention'][~mask])


def test_masked_frames_stay_out_of_the_running_statistics():
  """Reference: the backbone alone on the frames that there are; 1e-5."""
  model = small()
  clips = images(4).reshape(2, 2, *SHAPE)
  mask = jnp.array([[True, True], [True, False]])
  filled = jnp.where(mask[..., None, None, None], clips, 50.0)
  stages = model.specification.backbone
  frames = drawn(
    nnx.eval_shape(
      lambda: build(stages, [spec.GlobalAveragePool()], shape=SHAPE)
    )
  )
  nnx.update(frames.backbone, nnx.state(model.backbone))

  def backbone_statistics(x):
    return statistics(frames)(x, jnp.ones(len(x)))

  found = statistics(model)(filled, jnp.ones(2), mask)
  close(found, backbone_statistics(clips.reshape(4, *SHAPE)[:3]))
  found = statistics(model)(filled, jnp.array([1.0, 0]), mask)
  close(found, backbone_statistics(clips[0]))


@pytest.mark.parametrize('attention', [True, False])
def test_a_clip_of_padding_has_finite_gradients(attention):
  clips = images(4).reshape(2, 2, *SHAPE).at[1].set(jnp.nan)
  mask = jnp.array([[True, True], [False, False]])
  gradient, (logits, _) = train(small(attention=attention))(
    clips, jnp.array([1.0, 0]), mask
  )
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
  assert np.all(np.isfinite(logits))


@pytest.mark.parametrize('clip', spec.CLIPS)
@pytest.mark.parametrize('frames', [(0, 2), (2, 0)])
def test_no_clip_and_no_frame_have_logits_of_their_number(clip, frames):
  clips = jnp.zeros((*frames, *SHAPE))
  logits, features = jax.eval_shape(
    functools.partial(small(clip=clip), return_features=True), clips
  )
  assert logits.shape == (frames[0], K)
  assert features['conv1'].shape[:2] == frames


@pytest.mark.parametrize('dtype', spec.DTYPES)
def test_strict_promotion_of_dtypes(dtype):
  """Forward and backward of a clip with all that a call can bring."""
  graphdef, params, rest = split(small(dtype=dtype, recurrent_layers=2))

  def loss(params, clips, mask, weight, key):
    model = nnx.merge(graphdef, params, rest, copy=True)
    logits = model(clips, mask, train=True, weight=weight, key=key, dropout=0.1)
    return logits.sum()

  clips, mask = jnp.zeros((2, 2, *SHAPE)), jnp.ones((2, 2), bool)
  with jax.numpy_dtype_promotion('strict'):
    gradients = jax.eval_shape(
      jax.grad(loss), params, clips, mask, mask[0], jax.random.key(0)
    )
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))


def test_features_of_images_and_clips():
  model = small()
  x = images(4)
  _, features = evaluate(model, x)
  assert model.token_grid == (4, 2)
  assert features['map'].shape == (4, 4, 2, 6)
  # Token 2 r + c is the map's cell (r, c): what attention maps rely on.
  np.testing.assert_array_equal(
    features['tokens'][:, 5], features['map'][:, 2, 1]
  )
  assert features['attention'].shape == (4, 8)
  assert features['embedding'].shape == (4, 12)
  assert features['residual2'].shape == (4, 4, 2, 6)
  assert features['dense1'].shape == (4, 7)
  _, of_clips = evaluate(model, x.reshape(2, 2, *SHAPE))
  assert of_clips['residual2'].shape == (2, 2, 4, 2, 6)
  assert of_clips['attention'].shape == (2, 2)
  # A frame is one step: its map's mean.
  means = features['map'].mean((1, 2)).reshape(2, 2, 6)
  close(of_clips['tokens'], means)


def test_bfloat16_computes_low_and_stores_high():
  """Against float32: 0.05 on logits of size 1."""
  half = small(dtype='bfloat16')
  x = images()
  logits, features = evaluate(half, x)
  assert logits.dtype == jnp.float32
  stages = ('conv1', 'residual2', 'recurrent1', 'attention1', 'dense1')
  assert {features[name].dtype for name in stages} == {jnp.dtype('bfloat16')}
  assert features['attention'].dtype == jnp.float32
  close(logits, evaluate(small(), x)[0], 0.05)
  stored = (split(half)[1:], jax.eval_shape(train(half), x, jnp.ones(4)))
  assert {a.dtype for a in jax.tree.leaves(stored)} == {jnp.dtype('float32')}


def test_dropout_needs_a_key_and_takes_a_traced_rate():
  model = small(dropout=0.5)
  x, key = images(), jax.random.key(3)
  plain, _ = evaluate(model, x)
  dropped, _ = evaluate(model, x, key=key)
  assert jnp.abs(dropped - plain).max() > 1e-3
  close(evaluate(model, x, key=key, dropout=0.0)[0], plain, 1e-6)
  close(evaluate(model, x, key=key, dropout=0.5)[0], dropped, 1e-6)
  other, _ = evaluate(model, x, key=jax.random.key(4), dropout=0.5)
  assert jnp.abs(dropped - other).max() > 1e-3


@pytest.mark.parametrize('rate', [0.5, 0.0])
def test_dropout_between_recurrent_layers_has_a_rate_of_its_own(rate):
  """The rate of all others neither starts nor changes it; exact."""
  model = small(recurrent_layers=2, recurrent_dropout=rate)

  def outputs(**options):
    return evaluate(model, images(), **options)[1]['recurrent1']

  key = jax.random.key(3)
  dropped = outputs(key=key, dropout=0.3)
  np.testing.assert_array_equal(outputs(key=key, dropout=0.6), dropped)
  assert (jnp.abs(dropped - outputs()).max() > 1e-3) == (rate > 0)


def test_every_dropout_of_a_model_draws_by_a_key_of_its_own(monkeypatch):
  keys = []

  def recorded(self, x, *, key, rate=None):
    keys.append(tuple(jax.random.key_data(key).tolist()))
    return x

  monkeypatch.setattr(Dropout, '__call__', recorded)
  model = build(
    [],
    [spec.Grid(), spec.Recurrent('gru', 2, layers=3, dropout=0.5), spec.Mean()],
    [spec.Drop(0.5), spec.Drop(0.5)],
    shape=(1, 2, 1),
  )
  model(jnp.ones((1, 1, 2, 1)), key=jax.random.key(0))
  assert len(set(keys)) == len(keys) == 4


def test_vmap_over_members_equals_each_alone():
  """Stacked parameters, statistics and images; 1e-5."""
  members = [small('residual_lstm', seed) for seed in (0, 1)]
  graphdef = nnx.split(members[0])[0]
  states = [split(m)[1:] for m in members]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *states)
  x = images(10).reshape(2, 5, *SHAPE)
  logits = jax.jit(jax.vmap(lambda s, x: nnx.merge(graphdef, *s)(x)))(
    stacked, x
  )
  for n, member in enumerate(members):
    close(logits[n], evaluate(member, x[n])[0])


def test_module_holds_parameters_and_statistics_only():
  """No random state; the same graph definition from an abstract build."""
  model = nnx.eval_shape(
    lambda: create(recurrent_layers=2, recurrent_dropout=0.3)
  )
  state = nnx.state(model)
  kinds = {type(v) for _, v in nnx.to_flat_state(state)}
  assert kinds == {nnx.Param, nnx.BatchStat}
  abstract = nnx.eval_shape(create)
  assert nnx.split(abstract)[0] == nnx.split(create())[0]
  # Keys of checkpoints are strings all the way.
  paths = [p for p, _ in nnx.to_flat_state(state)]
  assert all(isinstance(key, str) for path in paths for key in path)


def test_kernels_alone_have_the_names_that_decay():
  params = split(small(recurrent_layers=2))[1]
  for path, array in jax.tree_util.tree_leaves_with_path(params):
    decayed = path[-1].key in ('kernel', 'recurrent_kernel')
    assert decayed == (array.ndim >= 2 and path[-1].key != 'bias'), path


# Systems of the papers, as far as they are layers: what the stages must say.


@pytest.mark.parametrize(
  ('body', 'grid', 'steps'),
  [
    # P2: globally pooled to a single step; two GRUs in a row.
    (
      [
        spec.GlobalAveragePool(),
        spec.Reshape((1, 4)),
        spec.Recurrent('gru', 5),
        spec.Recurrent('gru', 3, returns='last'),
      ],
      None,
      (1, 4),
    ),
    # P2: pooled, flattened, cut into steps.
    (
      [
        spec.MaxPool(),
        spec.Flatten(),
        spec.Reshape((3, 8)),
        spec.Recurrent('gru', 5, reset_after=False, bidirectional=True),
        spec.Mean(),
      ],
      None,
      (3, 8),
    ),
    ([spec.Rows(), spec.Attention(4)], (6, 1), (6, 20)),
    (
      [spec.Grid(), spec.Recurrent('lstm', 3, layers=2), spec.Attention(4)],
      (6, 5),
      (30, 4),
    ),
    ([spec.Grid(), spec.Reshape((5, 24)), spec.Attention(4)], None, (5, 24)),
  ],
)
def test_stages_of_other_systems(body, grid, steps):
  # Without a backbone the image is the map.
  stages = [*body, spec.Drop(0.2)]
  model = drawn(nnx.eval_shape(lambda: build([], stages, shape=(6, 5, 4))))
  x = images(2, shape=(6, 5, 4))
  logits, features = evaluate(model, x)
  assert logits.shape == (2, K)
  assert model.token_grid == grid
  assert features['tokens'].shape == (2, *steps)
  assert jax.eval_shape(model, x[:0]).shape == (0, K)
  if features['tokens'].size == x.size:
    np.testing.assert_array_equal(
      features['tokens'].reshape(2, -1), x.reshape(2, -1)
    )


@pytest.mark.parametrize(
  ('reset_after', 'bias'), [(True, (2, 9)), (False, (9,))]
)
def test_a_stage_has_the_form_of_gru_that_it_names(reset_after, bias):
  """Of Keras' two forms one has a bias for each product."""
  stage = spec.Recurrent(
    'gru', 3, layers=2, bidirectional=True, reset_after=reset_after
  )
  model = nnx.eval_shape(
    lambda: build([], [spec.Rows(), stage, spec.Mean()], shape=(6, 5, 4))
  )
  cells = [m for _, m in nnx.iter_modules(model) if isinstance(m, GRU)]
  assert [cell.reset_after for cell in cells] == 4 * [reset_after]
  assert {cell.bias.shape for cell in cells} == {bias}


@pytest.mark.parametrize(
  ('stride', 'padding'),
  [
    *((stride, name) for stride in (1, 2, 3) for name in ('SAME', 'VALID')),
    (2, 'same'),
    (1, 2),
  ],
)
def test_sizes_are_known_before_the_call(stride, padding):
  stages = [
    spec.Convolution(3, strides=stride, padding=padding),
    spec.Residual(4, strides=stride),
  ]
  model = nnx.eval_shape(
    lambda: build(stages, [spec.Flatten()], shape=(13, 11, 2))
  )
  graphdef, state = nnx.split(model)
  _, features = jax.eval_shape(
    lambda s, x: nnx.merge(graphdef, s)(x, return_features=True),
    state,
    jax.ShapeDtypeStruct((1, 13, 11, 2), jnp.float32),
  )
  assert features['map'].shape[1:] == model.map_shape


def test_mean_over_the_frames_there_are():
  model = build([], [spec.Grid(), spec.Mean()])
  clips = images(6, shape=(12, 10, 2)).reshape(2, 3, 12, 10, 2)
  mask = jnp.array([[True, True, False], [True, True, True]])
  _, features = model(clips, mask, return_features=True)
  tokens = features['tokens']
  close(features['embedding'][0], tokens[0, :2].mean(0), 1e-6)
  close(features['embedding'][1], tokens[1].mean(0), 1e-6)


@pytest.mark.parametrize(
  ('backbone', 'body', 'message'),
  [
    ([], [spec.Grid()], 'logits take a vector'),
    ([], [spec.Recurrent('lstm', 3)], 'takes a sequence'),
    ([], [spec.Flatten(), spec.Grid()], 'takes a map'),
    ([], [spec.Reshape((7, 7))], 'does not hold what it gets'),
    ([spec.MaxPool(64)], [spec.Flatten()], 'leaves nothing of a map'),
    ([], [spec.Grid(), spec.Recurrent('rnn', 3)], 'cell must be one of'),
    (
      [],
      [spec.Grid(), spec.Recurrent('gru', 3, returns='all')],
      'returns must',
    ),
    ([], ['grid'], 'no stage of a model'),
    ([spec.MaxPool(2.0)], [], 'window must be a positive int, got 2.0'),
    ([spec.MaxPool(0)], [], 'window must be a positive int, got 0'),
    ([spec.Convolution(3.0)], [], 'filters must be a positive int, got 3.0'),
    ([spec.Residual(3, strides=(2, 2))], [], r'strides must .* got \(2, 2\)'),
    ([], [spec.Grid(), spec.Attention(0)], 'units must be .* got 0'),
    ([], [spec.Grid(), spec.Pointwise('gru')], "a Recurrent, got 'gru'"),
    ([], [spec.Steps(2.0)], 'features must be a positive int, got 2.0'),
    ([], [spec.Reshape((-1,))], r'of positive ints, got \(-1,\)'),
    ([], [spec.Grid(), spec.Shuffle(-1)], 'seed must be .* got -1'),
    (
      [],
      [spec.Grid(), spec.Recurrent('gru', 3, layers=0)],
      'layers must be a positive int, got 0',
    ),
    (
      [],
      [spec.Grid(), spec.Recurrent('gru', 3, reset_after='no')],
      "reset_after must be True or False, got 'no'",
    ),
    (
      [],
      [spec.Flatten(), spec.Dense(3, activation='tanh')],
      r"activation must be one of \('relu', 'linear'\)",
    ),
    (
      [],
      [spec.Grid(), spec.Recurrent('gru', 3, dropout=2.0)],
      r'dropout must be a number in \[0, 1\), got 2.0',
    ),
  ],
)
def test_stages_that_do_not_fit_are_named(backbone, body, message):
  with pytest.raises(ValueError, match=message):
    build(backbone, body)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'input_shape': (12, 10)}, r'must be \(H, W, C\), got \(12, 10\)'),
    ({'input_shape': (12.0, 10, 2)}, r'input_shape must .* got \(12.0, 10'),
    ({'body': spec.Flatten()}, r'body must be a tuple of stages, got Flatten'),
    ({'dtype': jnp.float16}, "dtype must be one of .* got 'float16'"),
    ({'pixels': 'Raw'}, "pixels must be one of .* got 'Raw'"),
    ({'remat': 'no'}, "remat must be True or False, got 'no'"),
  ],
)
def test_what_a_specification_cannot_say_is_named(changes, message):
  sound = spec.Specification((12, 10, 2), (), (spec.Flatten(),), ())
  with pytest.raises(ValueError, match=message):
    FusionModel(
      dataclasses.replace(sound, **changes), num_classes=K, rngs=nnx.Rngs(0)
    )
  with pytest.raises(ValueError, match=r"a Specification, .* got 'cnn_model1'"):
    FusionModel('cnn_model1', num_classes=K, rngs=nnx.Rngs(0))


def test_a_dense_layer_is_rectified_unless_it_is_to_be_linear():
  for activation, negative in (('relu', False), ('linear', True)):
    model = build([], [spec.Flatten()], [spec.Dense(9, activation)])
    x = images(shape=(12, 10, 2))
    _, features = model(x, return_features=True)
    kernel = model.layers('head')[0][1].linear.kernel[...]
    plain = x.reshape(len(x), -1) @ kernel
    assert (features['dense1'] < 0).any() == negative
    np.testing.assert_allclose(
      features['dense1'],
      plain if negative else jnp.maximum(plain, 0),
      rtol=1e-5,
      atol=1e-5,
    )


def test_lists_and_numbers_of_numpy_do_in_a_specification():
  model = FusionModel(
    spec.Specification(
      [np.int64(12), 10, 2],
      [spec.Convolution(np.int64(4), strides=np.int32(2))],
      [spec.Flatten()],
      [spec.Dense(np.int64(3))],
      dtype=jnp.bfloat16,
    ),
    num_classes=np.int64(K),
    rngs=nnx.Rngs(0),
  )
  assert model.map_shape == (6, 5, 4)
  assert type(model.num_classes) is int
  # As what `nnx.jit` looks up it is hashed.
  hash(nnx.graphdef(model))
  with pytest.raises(ValueError, match=r"part must be one of .* got 'neck'"):
    model.layers('neck')


@pytest.mark.parametrize(
  ('x', 'options', 'message'),
  [
    (jnp.zeros((16, 8, 1)), {}, r'takes float images \(B, 16, 8, 1\) or'),
    (jnp.zeros((2, 16, 9, 1)), {}, r'got \(2, 16, 9, 1\)'),
    (jnp.zeros((2, 16, 8, 3)), {}, r'got \(2, 16, 8, 3\)'),
    (jnp.zeros((2, 16, 8, 1), jnp.uint8), {}, 'got uint8'),
    (
      jnp.zeros((2, 16, 8, 1)),
      {'frame_mask': jnp.ones((2, 1), bool)},
      'frame_mask is',
    ),
    (
      jnp.zeros((2, 3, 16, 8, 1)),
      {'frame_mask': jnp.ones((3, 2), bool)},
      r'frame_mask is .* got \(3, 2\)',
    ),
    (jnp.zeros((2, 16, 8, 1)), {'weight': jnp.ones(3)}, r'must be \(2,\)'),
    (jnp.zeros((2, 16, 8, 1)), {'weight': [1.0]}, 'got a list of 1'),
    (jnp.zeros((2, 16, 8, 1)), {'frame_mask': True}, 'got True with images'),
    (jnp.zeros((2, 16, 8, 1)), {'key': 0}, 'key must be a PRNG key.* got 0'),
    ([[0.0]], {}, 'takes float images .* got a list of 1'),
  ],
)
def test_wrong_inputs_are_told_what_the_model_takes(x, options, message):
  with pytest.raises(ValueError, match=message):
    small()(x, **options)


def test_clips_need_steps_as_wide_as_the_map():
  clips = jnp.zeros((1, 2, 16, 8, 1))
  with pytest.raises(ValueError, match='built for steps of 12 features'):
    nnx.eval_shape(lambda: create(tokens='rows')(clips))
  no_sequence = build([], [spec.Flatten()], shape=SHAPE)
  with pytest.raises(ValueError, match=r'images \(B, 16, 8, 1\); got'):
    no_sequence(clips)


@pytest.mark.parametrize('module', [fusion, registry])
def test_examples_run(module):
  results = doctest.testmod(module)
  assert results.attempted > 3
  assert results.failed == 0


def test_train_and_eval_of_nnx_set_what_a_call_takes():
  model = create()
  images = jax.random.uniform(jax.random.key(1), (4, *SHAPE))
  evaluated = model(images)
  model.train()
  statistics = nnx.clone(nnx.state(model, nnx.BatchStat))
  trained = model(images)
  moved = nnx.state(model, nnx.BatchStat)
  assert not np.allclose(trained, evaluated, atol=1e-3)
  assert any(
    not np.array_equal(old, new)
    for old, new in zip(
      jax.tree.leaves(statistics), jax.tree.leaves(moved), strict=True
    )
  )
  # What a call says holds before that.
  told = create()
  np.testing.assert_array_equal(told(images, train=True), trained)
  model.eval()
  told.train()
  np.testing.assert_array_equal(model(images), told(images, train=False))
  viewed = nnx.view(told, use_running_average=True)
  np.testing.assert_array_equal(viewed(images), model(images))
