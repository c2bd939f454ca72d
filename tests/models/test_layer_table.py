"""The layer table against counts made without it."""

import jax
import pytest
from flax import nnx

from fer_jax import nn
from fer_jax.models import FusionModel, layer_table
from fer_jax.models import specification as spec
from fer_jax.nn.recurrent import layers

# Shapes at hand: 12 x 10 x 2, conv to 9 x 4, pool 6 x 5, residual 8, grid 30.
STAGES = spec.Specification(
  (12, 10, 2),
  (spec.Convolution(4), spec.MaxPool(), spec.Residual(8)),
  (
    spec.Grid(),
    spec.Recurrent('lstm', 6, bidirectional=True),
    spec.Recurrent('gru', 5, layers=2),
    spec.Attention(3),
  ),
  (spec.Dense(7), spec.Drop(0.5)),
)


def build():
  return FusionModel(STAGES, num_classes=4, rngs=nnx.Rngs(0))


@pytest.fixture(scope='module')
def model():
  return nnx.eval_shape(build)


@pytest.fixture(scope='module')
def table(model):
  return layer_table.layer_table(model)


def stage(table, name):
  (row,) = [r for r in table['layers'] if r['name'] == name and not r['depth']]
  return row


def test_totals_are_those_of_the_state(model, table):
  """Reference: the leaves of the state; exact."""
  _, params, rest = nnx.split(model, nnx.Param, ...)
  totals = table['totals']
  trainable = sum(p.size for p in jax.tree.leaves(params))
  other = sum(p.size for p in jax.tree.leaves(rest))
  assert totals['trainable'] == trainable
  assert totals['non_trainable'] == other
  assert totals['parameters'] == trainable + other


@pytest.mark.parametrize(
  ('name', 'trainable', 'multiply_adds', 'shape'),
  [
    ('conv1', 9 * 2 * 4 + 4 + 8, 120 * 9 * 2 * 4, [12, 10, 4]),
    ('pool1', 0, 0, [6, 5, 4]),
    (
      'residual1',
      9 * 4 * 8 + 9 * 8 * 8 + 4 * 8 + 6 * 8,
      30 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8),
      [6, 5, 8],
    ),
    ('grid1', 0, 0, [30, 8]),
    # Keras: 4 ((in + units) units + units), twice.
    ('recurrent1', 8 * (14 * 6 + 6), 30 * 8 * 14 * 6, [30, 12]),
    # Keras: 3 ((in + units) units + 2 units), on 12 and on 5.
    (
      'recurrent2',
      3 * (17 * 5 + 10) + 3 * (10 * 5 + 10),
      30 * 3 * (17 + 10) * 5,
      [30, 5],
    ),
    ('attention1', 5 * 3 + 3 + 3, 30 * (5 * 3 + 3), [5]),
    ('dense1', 5 * 7 + 7, 5 * 7, [7]),
    ('dropout1', 0, 0, [7]),
    ('logits', 7 * 4 + 4, 7 * 4, [4]),
  ],
)
def test_stages(table, name, trainable, multiply_adds, shape):
  """Reference: each layer's own formula; exact."""
  row = stage(table, name)
  assert row['trainable'] == trainable
  assert row['multiply_adds'] == multiply_adds
  assert row['output_shape'] == shape


def test_depthwise_convolutions_count_by_their_definition():
  def build_separable():
    model = build()
    model.backbone['conv1'].conv = nn.SeparableConv(2, 4, rngs=nnx.Rngs(0))
    return model

  found = layer_table.layer_table(nnx.eval_shape(build_separable))
  assert stage(found, 'conv1')['multiply_adds'] == 120 * (9 * 2 + 2 * 4)


def test_recurrent_layers_count_by_their_definition(model, table, monkeypatch):
  """As on NVIDIA, where what computes them is no product of JAX's."""
  monkeypatch.setattr(layers, 'current_platform', lambda: 'cuda')
  *_, products = layer_table._trace(model)
  assert sum(products.values()) == table['totals']['multiply_adds']


def test_inner_layers_add_up_to_their_stage(table):
  rows = table['layers']
  start = rows.index(stage(table, 'residual1'))
  inner = rows[start + 1 : start + 7]
  assert [r['name'] for r in inner] == [
    'conv1', 'norm1', 'conv2', 'norm2', 'projection', 'projection_norm',
  ]  # fmt: skip
  assert {r['depth'] for r in inner} == {1}
  for figure in ('trainable', 'non_trainable', 'multiply_adds'):
    assert sum(r[figure] for r in inner) == rows[start][figure]
  assert inner[1]['non_trainable'] == 16


def test_bytes_follow_the_dtype(table):
  half = nnx.eval_shape(
    lambda: FusionModel(
      spec.Specification(
        STAGES.input_shape,
        STAGES.backbone,
        STAGES.body,
        STAGES.head,
        'bfloat16',
      ),
      num_classes=4,
      rngs=nnx.Rngs(0),
    )
  )
  found = layer_table.layer_table(half)
  assert stage(table, 'conv1')['output_bytes'] == 4 * 120 * 4
  assert stage(found, 'conv1')['output_bytes'] == 2 * 120 * 4
  # Logits are float32 whatever the rest is.
  assert stage(found, 'logits')['output_bytes'] == 4 * 4
  assert found['totals']['multiply_adds'] == table['totals']['multiply_adds']


def test_saved_bytes_are_of_the_size_of_the_activations(table):
  """More than the outputs of all layers once, less than thirty times."""
  outputs = table['totals']['output_bytes']
  assert outputs < table['totals']['saved_bytes'] < 30 * outputs


def test_layers_are_as_they_were(model):
  """Interception leaves no trace, not even after an error."""
  classes = (nn.LSTM, nn.Conv, nn.BatchNorm, nnx.Linear, FusionModel)
  before = [c.__dict__.get('__call__') for c in classes]
  layer_table.layer_table(model)
  assert [c.__dict__.get('__call__') for c in classes] == before
  with pytest.raises(KeyError), layer_table._intercepted_calls(model, {}):
    raise KeyError
  assert [c.__dict__.get('__call__') for c in classes] == before


def test_text_holds_the_figures(table):
  text = layer_table.format_table(table)
  assert 'Bidirectional' in text
  assert '6 x 5 x 8' in text
  assert f'{table["totals"]["multiply_adds"]:,} an image' in text
