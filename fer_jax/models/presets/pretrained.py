"""ImageNet networks and GRU: `densenet121_gru`, `vgg16_gru`, `xception_gru`.

P2  Kumar and Agarwal, Optimizing facial expression recognition with deep hybrid
    neural networks, section 4: each network without its top, then

    densenet121_gru  reshape, GRU 256, GRU 128, dense 256 with ReLU
    vgg16_gru        global average pooling, reshape to a sequence, GRU
    xception_gru     max-pooling, flatten, reshape to three dimensions, GRU,
                     dense with ReLU, dropout

    and the logits. P2 gives no input size, no window of the pooling and no
    other width. The reshape of DenseNet121's map is taken to make each of its
    cells a step. The other two
    have a vector there, of which a sequence of one step is the plain reading:
    on an image their GRU has nothing to recur on.
"""

from typing import Any

from fer_jax.models import backbones, fields
from fer_jax.models import specification as spec
from fer_jax.models.fields import Field
from fer_jax.models.presets import shared

NETWORKS = {
  'densenet121_gru': 'densenet121',
  'vgg16_gru': 'vgg16',
  'xception_gru': 'xception',
}
NAMES = tuple(NETWORKS)

_OWN_UNITS = Field(
  (256,),
  'chosen',
  "P2 gives no width; that of the first GRU it has on DenseNet121's map",
  fields.positives(least=1),
)
_UNITS = {
  'densenet121_gru': Field(
    (256, 128), 'stated', 'P2: two GRU layers', fields.positives(least=1)
  ),
  'vgg16_gru': _OWN_UNITS,
  'xception_gru': _OWN_UNITS,
}
_HEADS = {
  'densenet121_gru': Field((256,), 'stated', 'P2', fields.positives()),
  'vgg16_gru': Field(
    (), 'stated', 'P2: the logits come next', fields.positives()
  ),
  'xception_gru': Field(
    (256,),
    'chosen',
    'P2 gives no width; that of its dense layer after DenseNet121',
    fields.positives(),
  ),
}
_NO_DROPOUT = Field(
  0.0, 'inferred', 'P2 has it after Xception alone', fields.rate
)
_DROPOUTS = {
  'densenet121_gru': _NO_DROPOUT,
  'vgg16_gru': _NO_DROPOUT,
  'xception_gru': Field(
    0.5,
    'chosen',
    'P2 gives no rate; the usual one before logits, which P1 states',
    fields.rate,
  ),
}


def fields_of(name: str) -> dict[str, Field]:
  """The fields of one of `NAMES`."""
  return {
    'input_shape': Field(
      (96, 96, 3),
      'chosen',
      'P2: RGB crops, no size given; twice the 48 x 48 of FER2013, as it '
      'leaves each network a map of 3 x 3',
      fields.positives(length=3),
    ),
    'family': Field(
      'keras',
      'chosen',
      'whose weights the network can take: padding, batch normalisation and '
      'preprocessing follow',
      fields.among(*backbones.FAMILIES),
    ),
    'units': _UNITS[name],
    'head': _HEADS[name],
    'dropout': _DROPOUTS[name],
    'recurrence': shared.RECURRENCE,
    'backend': shared.BACKEND,
    'attention_units': Field(
      64,
      'chosen',
      "width of the attention of recurrence 'attention'; P2 has none",
      fields.positive,
    ),
    'clip': shared.CLIP_TOKENS,
    'dtype': shared.DTYPE,
    'remat': shared.REMAT,
  }


def specify(name: str, values: dict[str, Any]) -> spec.Specification:
  """The specification of one of `NAMES`.

  Args:
    name: the model.
    values: a checked value for each of its fields.

  Raises:
    ValueError: where the image is too small, or neither grey nor RGB.
  """
  height, width, channels = values['input_shape']
  if channels not in (1, 3):
    raise ValueError(
      f'{name}: input_shape {values["input_shape"]} has {channels} channels; '
      'expected 1 (grey) or 3 (RGB)'
    )
  network = NETWORKS[name]
  backbone: list[spec.Stage] = [spec.Backbone(network, values['family'])]
  rows, columns = backbones.BACKBONES[network].output_size(
    height, width, values['family']
  )
  steps: list[spec.Stage] = [spec.Grid()]
  if name == 'vgg16_gru':
    steps = [spec.GlobalAveragePool(), spec.Steps()]
  elif name == 'xception_gru':
    # A map of one row or column has nothing to pool.
    pool: list[spec.Stage] = [spec.MaxPool()] if min(rows, columns) > 1 else []
    steps = [*pool, spec.Flatten(), spec.Steps()]
  units = values['units']
  recurrent = [
    spec.Recurrent(
      'gru',
      n,
      returns='sequence' if n_th < len(units) else 'last',
      backend=values['backend'],
    )
    for n_th, n in enumerate(units, 1)
  ]
  return spec.Specification(
    input_shape=values['input_shape'],
    backbone=tuple(backbone),
    body=shared.with_recurrence(
      (*steps, *recurrent), values['recurrence'], values['attention_units']
    ),
    head=(
      *(spec.Dense(width) for width in values['head']),
      spec.Drop(values['dropout']),
    ),
    dtype=values['dtype'],
    pixels='raw',
    clip=values['clip'],
    remat=values['remat'],
  )
