"""Deep residual recurrent fusion: `residual_lstm`, `_gru` and `_bilstm`.

Sources, by the names that the notes use:

P1  Munsarif and Ku-Mahamud, Deep residual bidirectional long short-term memory
    fusion (2025), section 3.2: `residual_bilstm`.
P0  the same, Hyperparameter optimization of deep residual recurrent fusion
    models for facial emotion recognition (2026), of which the abstract alone
    was at hand: all three.

P1 states several convolutional layers with BN and ReLU, residual blocks of two
3 x 3 convolutions, BiLSTM layers, additive attention, several fully connected
layers and dropout 0.5; it gives no width and no number of layers or blocks, and
does not say what the steps of a single image are. Here there is one
convolution before the blocks and one BiLSTM layer, and each cell of the last
map is a step.

A stage halves the map by max-pooling before a stride-1 block, not by stride 2:
the two cost the same products, and 3 x 3 convolutions of stride 1 have the
faster form on CPU (`fer_jax.nn.winograd`). Blocks at 24 x 24, 12 x 12 and 6 x 6
with twice the filters each cost the same.
"""

import dataclasses
from typing import Any

from fer_jax.models import fields
from fer_jax.models import specification as spec
from fer_jax.models.fields import Field
from fer_jax.models.presets import shared

LAYERS = {
  'residual_lstm': ('lstm', False),
  'residual_gru': ('gru', False),
  'residual_bilstm': ('lstm', True),
}
"""Cell, and whether it runs in both directions."""

NAMES = tuple(LAYERS)

_TUNED = 'P0 tunes it and gives no value'

_SHARED = {
  'input_shape': Field(
    (48, 48, 1),
    'stated',
    'P1: 48 x 48 for CK+ (100 x 100 for RAF-DB and FERPlus); FER2013 is 48 x '
    '48 grey',
    fields.positives(length=3),
  ),
  'stem_filters': Field(
    (32,),
    'chosen',
    'P1 says several convolutional layers; one, then a 2 x 2 max-pool, keeps '
    'the 48 x 48 map cheap',
    fields.positives(least=1),
  ),
  'filters': Field(
    (64, 128, 256),
    'chosen',
    f'{_TUNED}; doubling while the map halves keeps the cost even',
    fields.positives(least=1),
  ),
  'blocks': Field(
    (1, 1, 1),
    'chosen',
    'P1 gives no number; one a stage trains on a CPU',
    fields.all_layers,
  ),
  'kernel_size': Field(
    3, 'stated', 'P1: 3 x 3 in its residual blocks; P0 tunes it', fields.odd
  ),
  'downsample': Field(
    'pool',
    'chosen',
    'how a stage halves the map: max-pool, or stride 2 in its first block',
    fields.among('pool', 'stride'),
  ),
  'tokens': Field(
    'grid',
    'chosen',
    'P1 does not say what the steps of an image are: each cell of the last '
    'map, or each of its rows',
    fields.among('grid', 'rows'),
  ),
  'units': Field(
    128,
    'chosen',
    f'{_TUNED}; both directions together are as wide as the map',
    fields.positive,
  ),
  'recurrent_layers': Field(
    1, 'chosen', 'P1 says layers and gives no number', fields.layers
  ),
  'recurrent_dropout': Field(
    0.0, 'chosen', 'between recurrent layers; no paper has it', fields.rate
  ),
  'attention': Field(
    True, 'stated', 'P1, eqs. 8-10', fields.boolean
  ),
  'attention_units': Field(
    64,
    'chosen',
    'P1 gives no width; half the units, few parameters beside theirs',
    fields.positive,
  ),
  'head': Field(
    (128,),
    'chosen',
    'P1 says several fully connected layers: one with ReLU, then the logits',
    fields.positives(),
  ),
  'dropout': Field(0.5, 'stated', 'P1; P0 tunes it', fields.rate),
  'pixels': shared.pixels(
    'standardised',
    'stated',
    'P1: zero mean and unit variance; that of each image is the plain reading',
  ),
  'recurrence': shared.RECURRENCE,
  'backend': shared.BACKEND,
  'clip': shared.CLIP_FRAMES,
  'dtype': shared.DTYPE,
  'remat': shared.REMAT,
}  # fmt: skip


def fields_of(name: str) -> dict[str, Field]:
  """The fields of one of `LAYERS`."""
  found = dict(_SHARED)
  if name == 'residual_bilstm':
    return found
  # What P1 states of its BiLSTM is inferred for the two that P0 adds to it.
  for field, about in found.items():
    if about.source == 'stated':
      found[field] = dataclasses.replace(about, source='inferred')
  return found


def specify(name: str, values: dict[str, Any]) -> spec.Specification:
  """The specification of one of `LAYERS`.

  Args:
    name: the model.
    values: a checked value for each of its fields.

  Raises:
    ValueError: where values do not go together.
  """
  filters, blocks = values['filters'], values['blocks']
  if len(filters) != len(blocks):
    raise ValueError(
      f'{name}: blocks must have one number for each of the {len(filters)} '
      f'filters, got {blocks!r}'
    )
  height, width, _ = values['input_shape']
  halvings = len(filters)
  if min(height, width) < 2**halvings:
    raise ValueError(
      f'{name}: filters {filters!r} halve the image {halvings} times, '
      f'which leaves nothing of {height} x {width}; expected at least '
      f'{2**halvings} x {2**halvings}'
    )
  kernel_size = values['kernel_size']
  backbone: list[spec.Stage] = [
    spec.Convolution(n, kernel_size, use_bias=False)
    for n in values['stem_filters']
  ]
  backbone.append(spec.MaxPool())
  for stage, (n, repeats) in enumerate(zip(filters, blocks, strict=True)):
    strides = 1
    if stage and values['downsample'] == 'pool':
      backbone.append(spec.MaxPool())
    elif stage:
      strides = 2
    backbone.append(spec.Residual(n, kernel_size, strides))
    backbone += [spec.Residual(n, kernel_size)] * (repeats - 1)

  cell, bidirectional = LAYERS[name]
  body: list[spec.Stage] = [
    spec.Grid() if values['tokens'] == 'grid' else spec.Rows(),
    spec.Recurrent(
      cell,
      values['units'],
      layers=values['recurrent_layers'],
      bidirectional=bidirectional,
      returns='sequence' if values['attention'] else 'last',
      dropout=values['recurrent_dropout'],
      backend=values['backend'],
    ),
  ]
  if values['attention']:
    body.append(spec.Attention(values['attention_units']))
  variant = shared.with_recurrence(
    tuple(body), values['recurrence'], values['attention_units']
  )

  head: list[spec.Stage] = []
  for width in values['head']:
    head += [spec.Dense(width), spec.Drop(values['dropout'])]
  return spec.Specification(
    input_shape=values['input_shape'],
    backbone=tuple(backbone),
    body=variant,
    head=tuple(head) or (spec.Drop(values['dropout']),),
    dtype=values['dtype'],
    pixels=values['pixels'],
    clip=values['clip'],
    remat=values['remat'],
  )
