"""Hybrid CNN and LSTM: `cnn_model1`, `cnn_lstm_model2`, `cnn_lstm_model3`.

P4  Bagga and Makwana, Facial expression recognition system using a hybrid CNN
    and LSTM model (2026), tables 2 to 4, which give every width; the text
    describes model 1 with other widths than table 2, whose 117,031 parameters
    add up.

The output shapes say which convolutions are padded: the first, third and fifth
are not. Model 2 cuts its 4 x 4 x 128 map into 64 steps of 32 values, so a step
is a quarter of a cell's channels; its second LSTM runs over a single step.
Model 3's steps are the 16 cells, and its second LSTM runs over the two halves
of the first one's hidden state.
"""

from typing import Any

from fer_jax.models import fields
from fer_jax.models import specification as spec
from fer_jax.models.fields import Field
from fer_jax.models.presets import shared

FILTERS = {
  'cnn_model1': (16, 32, 32),
  'cnn_lstm_model2': (32, 64, 64, 128, 128),
  'cnn_lstm_model3': (32, 64, 64, 128, 128),
}
UNITS = {'cnn_lstm_model2': (32, 32), 'cnn_lstm_model3': (128, 64)}
DENSE = {'cnn_model1': 32, 'cnn_lstm_model2': 200, 'cnn_lstm_model3': 200}
DROPOUT = {
  'cnn_model1': ('stated', 'P4, in a text that has 200 units there'),
  'cnn_lstm_model2': ('stated', 'P4'),
  'cnn_lstm_model3': ('inferred', 'P4 states it of models 1 and 2'),
}
NAMES = tuple(FILTERS)


def fields_of(name: str) -> dict[str, Field]:
  """The fields of one of `NAMES`."""
  found = {
    'input_shape': Field(
      (48, 48, 1), 'stated', 'P4: 48 x 48 grey', fields.positives(length=3)
    ),
    'filters': Field(
      FILTERS[name],
      'stated',
      'P4, tables 2 to 4',
      fields.positives(length=len(FILTERS[name])),
    ),
    'kernel_size': Field(3, 'stated', 'P4: 3 x 3', fields.odd),
    'dense': Field(DENSE[name], 'stated', 'P4, tables 2 to 4', fields.positive),
    'dropout': Field(0.6, *DROPOUT[name], fields.rate),
    'pixels': shared.pixels(
      'unit', 'inferred', 'P4 scales pixels to one range and names none'
    ),
    'dtype': shared.DTYPE,
    'remat': shared.REMAT,
  }
  if name == 'cnn_model1':
    found['dense_activation'] = Field(
      'relu',
      'inferred',
      'P4, in a text that has 200 units there; table 2, which has 32, prints '
      "none. Rectified, all 32 are dead within 100 steps; 'linear' trains",
      fields.among(*spec.ACTIVATIONS),
    )
  else:
    found |= {
      'units': Field(
        UNITS[name],
        'stated',
        'P4, tables 3 and 4: of the two LSTMs',
        fields.positives(length=2),
      ),
      'recurrence': shared.RECURRENCE,
      'backend': shared.BACKEND,
      'attention_units': Field(
        64,
        'chosen',
        "width of the attention of recurrence 'attention'; P4 has none",
        fields.positive,
      ),
      'clip': shared.CLIP_TOKENS,
    }
  return found


def specify(name: str, values: dict[str, Any]) -> spec.Specification:
  """The specification of one of `NAMES`.

  Args:
    name: the model.
    values: a checked value for each of its fields.

  Raises:
    ValueError: where values do not go together.
  """

  def conv(n, padding):
    return spec.Convolution(
      values['filters'][n],
      values['kernel_size'],
      padding=padding,
      # Keras' defaults, as P4 is written in it.
      initializer='glorot_uniform',
      momentum=0.99,
      epsilon=1e-3,
    )

  backbone = [conv(0, 'VALID'), conv(1, 'SAME'), spec.MaxPool()]
  backbone.append(conv(2, 'VALID'))
  if name != 'cnn_model1':
    backbone += [conv(3, 'SAME'), spec.MaxPool(), conv(4, 'VALID')]
  backbone.append(spec.MaxPool())
  _require_size(name, values)
  body: tuple[spec.Stage, ...] = (spec.Flatten(),)
  if name in UNITS:
    body = shared.with_recurrence(
      _lstms(name, values), values['recurrence'], values['attention_units']
    )
  return spec.Specification(
    input_shape=values['input_shape'],
    backbone=tuple(backbone),
    body=body,
    head=(
      spec.Dense(values['dense'], values.get('dense_activation', 'relu')),
      spec.Drop(values['dropout']),
    ),
    dtype=values['dtype'],
    pixels=values['pixels'],
    clip=values.get('clip', 'frames'),
    remat=values['remat'],
  )


def _lstms(name: str, values: dict[str, Any]) -> tuple[spec.Stage, ...]:
  first, second = values['units']
  if name == 'cnn_lstm_model2':
    if values['filters'][-1] % first:
      raise ValueError(
        f'{name}: units {values["units"]} cut the {values["filters"][-1]} '
        f'channels of a cell into steps of {first}, which does not divide them'
      )
    steps, between = spec.Steps(first), spec.Steps()
  else:
    if first % second:
      raise ValueError(
        f'{name}: units {values["units"]} cut the first hidden state into '
        f'steps of {second}, which does not divide its {first}'
      )
    steps, between = spec.Grid(), spec.Steps(second)
  return (
    steps,
    spec.Recurrent('lstm', first, returns='last', backend=values['backend']),
    between,
    spec.Recurrent('lstm', second, returns='last', backend=values['backend']),
  )


def _require_size(name: str, values: dict[str, Any]) -> None:
  """Every unpadded convolution takes a kernel less one, every pool half."""
  lost = values['kernel_size'] - 1
  least = 1
  for _ in range(2 if name == 'cnn_model1' else 3):
    least = 2 * least + lost
  height, width, _ = values['input_shape']
  if min(height, width) < least:
    raise ValueError(
      f'{name}: input_shape {values["input_shape"]} leaves nothing; expected '
      f'at least {least} x {least}'
    )
