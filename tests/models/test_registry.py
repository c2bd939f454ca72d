"""Models by name: their fields, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax import models
from fer_jax.models import specification as spec

FAMILY = ('residual_bilstm', 'residual_gru', 'residual_lstm')


def test_the_family_is_there():
  assert set(FAMILY) <= set(models.available())


@pytest.mark.parametrize('name', models.available())
def test_fields_are_plain_and_their_sources_marked(name):
  fields = models.fields(name)
  restored = json.loads(json.dumps(fields))
  models.check(name, **restored)
  assert models.specify(name, **restored) == models.specify(name)
  described = models.described_fields(name)
  assert list(described) == list(fields)
  for field in described.values():
    assert field.source in ('stated', 'inferred', 'chosen')
    assert field.note


def test_what_the_paper_states_is_marked_for_its_own_model_alone():
  def sources(name):
    return {k: f.source for k, f in models.described_fields(name).items()}

  stated = {'input_shape', 'kernel_size', 'attention', 'dropout', 'pixels'}
  bilstm = sources('residual_bilstm')
  assert {k for k, v in bilstm.items() if v == 'stated'} == stated
  lstm = sources('residual_lstm')
  assert {k for k, v in lstm.items() if v == 'inferred'} == stated
  assert 'stated' not in lstm.values()
  # P4 gives the rate of two of its three.
  hybrids = ('cnn_model1', 'cnn_lstm_model2', 'cnn_lstm_model3')
  rates = [sources(name)['dropout'] for name in hybrids]
  assert rates == ['stated', 'stated', 'inferred']


def conv(k, c, o):
  return k * k * c * o


def block(k, c, o, strides=1):
  """Two convolutions and norms, and the projection where the shape changes."""
  skip = conv(1, c, o) + 2 * o if c != o or strides != 1 else 0
  return conv(k, c, o) + conv(k, o, o) + 4 * o + skip


@pytest.mark.parametrize(
  ('name', 'recurrent'),
  [
    ('residual_lstm', 4 * ((20 + 6) * 6 + 6)),
    ('residual_gru', 3 * ((20 + 6) * 6 + 2 * 6)),
    ('residual_bilstm', 2 * 4 * ((20 + 6) * 6 + 6)),
  ],
)
@pytest.mark.parametrize('downsample', ['pool', 'stride'])
def test_parameter_counts(name, recurrent, downsample):
  """Reference: the layers' formulas, Keras' for LSTM and GRU; exact."""
  model = nnx.eval_shape(
    lambda: models.create(
      name,
      num_classes=7,
      rngs=nnx.Rngs(0),
      input_shape=(32, 32, 3),
      stem_filters=(4, 5),
      filters=(10, 20),
      blocks=(2, 1),
      kernel_size=5,
      downsample=downsample,
      units=6,
      attention_units=9,
      head=(11, 12),
    )
  )
  width = 12 if name == 'residual_bilstm' else 6
  strides = 2 if downsample == 'stride' else 1
  expected = (
    conv(5, 3, 4) + 2 * 4 + conv(5, 4, 5) + 2 * 5
    + block(5, 5, 10) + block(5, 10, 10) + block(5, 10, 20, strides)
    + recurrent
    + width * 9 + 9 + 9
    + width * 11 + 11 + 11 * 12 + 12
    + 12 * 7 + 7
  )  # fmt: skip
  params = nnx.state(model, nnx.Param)
  assert sum(p.size for p in jax.tree.leaves(params)) == expected
  assert model.token_grid == (8, 8)


def test_overrides_reach_the_specification():
  rows = models.specify(
    'residual_gru',
    tokens='rows',
    attention=False,
    recurrent_layers=2,
    recurrent_dropout=0.25,
    head=[],
    dropout=0.1,
    dtype='bfloat16',
  )
  assert rows.body == (
    spec.Rows(),
    spec.Recurrent('gru', 128, layers=2, returns='last', dropout=0.25),
  )
  assert rows.head == (spec.Drop(0.1),)
  assert rows.dtype == 'bfloat16'
  strided = models.specify(
    'residual_lstm', downsample='stride', blocks=(1, 2, 1)
  )
  assert [
    s.strides for s in strided.backbone if isinstance(s, spec.Residual)
  ] == [1, 2, 1, 2]
  assert sum(isinstance(s, spec.MaxPool) for s in strided.backbone) == 1
  assert models.specify('residual_bilstm').body[1].bidirectional


@pytest.mark.parametrize(
  ('name', 'overrides', 'message'),
  [
    ('residual_bilstn', {}, "did you mean 'residual_bilstm'"),
    ('VGG16_GRU', {}, "did you mean 'vgg16_gru'"),
    ('resnet', {}, 'known are basic_cnn, cnn_lstm_model2'),
    ('residual_lstm', {'filter': (3,)}, "did you mean 'filters'"),
    ('residual_lstm', {'UNITS': 3}, "did you mean 'units'"),
    ('residual_lstm', {'zzz': 1}, "no field 'zzz' .it has input_shape, stem"),
    ('residual_lstm', {'kernel_size': 4}, 'kernel_size must be a positive odd'),
    ('residual_lstm', {'kernel_size': 0}, 'kernel_size must be a positive odd'),
    ('residual_lstm', {'kernel_size': 3.0}, 'kernel_size must be a positive'),
    ('residual_lstm', {'dropout': 1}, r'dropout must be a number in \[0, 1\)'),
    ('residual_lstm', {'dropout': -0.1}, r'dropout must be .* got -0.1'),
    ('residual_lstm', {'dropout': '0.5'}, r"dropout must be .* got '0.5'"),
    ('residual_lstm', {'filters': ()}, 'filters must be a non-empty tuple'),
    ('residual_lstm', {'filters': 64}, 'filters must be a non-empty tuple'),
    ('residual_lstm', {'filters': (0, 1, 2)}, 'filters must be a non-empty'),
    ('residual_lstm', {'blocks': (1, 1)}, 'one number for each of the 3'),
    ('residual_lstm', {'units': True}, 'units must be a positive int'),
    ('residual_lstm', {'units': 2**40}, 'positive int of at most 1000000'),
    ('residual_lstm', {'head': (2**40,)}, 'positive ints of at most 1000000'),
    ('residual_lstm', {'blocks': (1, 1, 10**20)}, 'blocks must be a .* 1000'),
    ('residual_lstm', {'recurrent_layers': 1001}, 'ints? of at most 1000'),
    ('residual_lstm', {'attention': 1}, 'attention must be True or False'),
    ('residual_lstm', {'tokens': 'cells'}, 'tokens must be one of grid, rows'),
    ('residual_lstm', {'dtype': 'float16'}, 'dtype must be one of float32'),
    ('residual_lstm', {'head': (0,)}, 'head must be a tuple of positive ints'),
    ('residual_lstm', {'input_shape': (48, 48)}, 'must be 3 positive ints'),
    ('residual_lstm', {'input_shape': (7, 48, 1)}, 'leaves nothing of 7 x 48'),
  ],
)
def test_what_cannot_be_is_named_before_anything_is_built(
  name, overrides, message
):
  with pytest.raises(ValueError, match=message):
    models.check(name, **overrides)
  with pytest.raises(ValueError, match=message):
    models.create(name, num_classes=7, rngs=nnx.Rngs(0), **overrides)


@pytest.mark.parametrize('classes', [1, 7.0, True, '7'])
def test_a_wrong_number_of_classes_is_refused(classes):
  with pytest.raises(ValueError, match='num_classes must be an int'):
    models.create('residual_lstm', num_classes=classes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('rngs', [0, None, jax.random.key(0)])
def test_what_gives_no_keys_is_refused(rngs):
  with pytest.raises(ValueError, match=r'rngs must be nnx\.Rngs .*, got '):
    models.create('residual_lstm', num_classes=7, rngs=rngs)


@pytest.mark.parametrize('name', [None, ['residual_lstm']])
def test_a_name_that_is_no_word_is_unknown(name):
  with pytest.raises(ValueError, match='unknown model'):
    models.specify(name)


def test_values_of_numpy_and_jax_are_those_of_python():
  given = {
    'filters': np.array([8, 16]),
    'blocks': [np.int64(1), 1],
    'units': np.int32(4),
    'recurrent_layers': np.int64(2),
    'dropout': np.float32(0.25),
    'attention': np.False_,
    'tokens': np.str_('rows'),
    'dtype': jnp.bfloat16,
  }
  plain = {
    'filters': (8, 16),
    'blocks': (1, 1),
    'units': 4,
    'recurrent_layers': 2,
    'dropout': 0.25,
    'attention': False,
    'tokens': 'rows',
    'dtype': 'bfloat16',
  }
  specification = models.specify('residual_lstm', **given)
  assert repr(specification) == repr(models.specify('residual_lstm', **plain))


@pytest.mark.parametrize(
  'dtype', [jnp.bfloat16, jnp.dtype('bfloat16'), 'bfloat16']
)
def test_a_dtype_goes_by_any_of_its_names(dtype):
  named = models.Specification((4, 4, 1), (), (), (), dtype=dtype)
  assert named.dtype == 'bfloat16'
  assert type(named.dtype) is str
