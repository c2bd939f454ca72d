"""Plain CNNs: `basic_cnn` and `improved_cnn`.

P3  Fatimatuzzahra, Lindawati and Soim, Development of convolutional neural
    network models to improve facial expression recognition accuracy (2024),
    section 2.4 and table 1: a basic CNN, and an improved one with two more
    convolutional layers, batch normalisation and dropout, each convolution
    followed by ReLU and pooling. No width is printed. Filters double while the
    map halves, up to 128, which is the habit of the field. Table 1's one dense
    layer is taken to be the one of the logits; the basic CNN's fully connected
    layers are one of 128 and that.

The text does not say after which convolutions the normalisation comes, nor how
many dropout layers there are and where, nor what pools. Here every convolution
of the improved CNN is normalised before its ReLU, dropout comes once, before
the logits, and the largest of 2 x 2 is taken.
"""

from typing import Any

from fer_jax.models import fields
from fer_jax.models import specification as spec
from fer_jax.models.fields import Field
from fer_jax.models.presets import shared

NAMES = ('basic_cnn', 'improved_cnn')


def fields_of(name: str) -> dict[str, Field]:
  """The fields of one of `NAMES`."""
  improved = name == 'improved_cnn'
  return {
    'input_shape': Field(
      (48, 48, 1),
      'inferred',
      "FER2013's, on which P3 trains",
      fields.positives(length=3),
    ),
    'filters': Field(
      (32, 64, 128, 128) if improved else (32, 64),
      'chosen',
      'P3 states '
      + ('four' if improved else 'two fewer than four')
      + ' layers and no width',
      fields.positives(least=1),
    ),
    'kernel_size': Field(
      3, 'chosen', 'P3 gives none; the usual one', fields.odd
    ),
    'normalise': Field(
      improved,
      'stated' if improved else 'inferred',
      'P3 adds batch normalisation to the improved CNN; that every convolution '
      'has it is chosen'
      if improved
      else 'P3 adds batch normalisation to the improved CNN',
      fields.boolean,
    ),
    'head': Field(
      () if improved else (128,),
      'inferred' if improved else 'chosen',
      'P3, table 1: one dense layer, the logits'
      if improved
      else 'P3 says fully connected layers and gives no number',
      fields.positives(),
    ),
    'dropout': Field(
      0.2 if improved else 0.0,
      'stated' if improved else 'inferred',
      'P3, table 1; its place, before the logits, is chosen'
      if improved
      else 'P3 adds dropout to the improved CNN',
      fields.rate,
    ),
    'pixels': shared.pixels('unit', 'chosen', 'P3 names no scale'),
    'dtype': shared.DTYPE,
    'remat': shared.REMAT,
  }


def specify(name: str, values: dict[str, Any]) -> spec.Specification:
  """The specification of one of `NAMES`.

  Args:
    name: the model.
    values: a checked value for each of its fields.

  Raises:
    ValueError: where values do not go together.
  """
  filters = values['filters']
  height, width, _ = values['input_shape']
  if min(height, width) < 2 ** len(filters):
    raise ValueError(
      f'{name}: filters {filters!r} halve the image {len(filters)} times, '
      f'which leaves nothing of {height} x {width}; expected at least '
      f'{2 ** len(filters)} x {2 ** len(filters)}'
    )
  backbone: list[spec.Stage] = []
  for n in filters:
    backbone += [
      spec.Convolution(
        n,
        values['kernel_size'],
        normalise=values['normalise'],
        initializer='glorot_uniform',
        momentum=0.99,
        epsilon=1e-3,
      ),
      spec.MaxPool(),
    ]
  head: list[spec.Stage] = [spec.Dense(width) for width in values['head']]
  return spec.Specification(
    input_shape=values['input_shape'],
    backbone=tuple(backbone),
    body=(spec.Flatten(),),
    head=(*head, spec.Drop(values['dropout'])),
    dtype=values['dtype'],
    pixels=values['pixels'],
    remat=values['remat'],
  )
