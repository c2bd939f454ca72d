"""The modules that the stages of a specification stand for."""

from typing import Any

from fer_jax.models import specification as spec
from fer_jax.models.stages import maps, sequences, vectors
from fer_jax.models.stages.layer import Layer, Run, check_plain

__all__ = ['Layer', 'Run', 'build']

LAYERS: dict[type, type[Layer]] = {
  spec.Convolution: maps.ConvolutionLayer,
  spec.MaxPool: maps.MaxPoolLayer,
  spec.Residual: maps.ResidualLayer,
  spec.Backbone: maps.BackboneLayer,
  spec.GlobalAveragePool: maps.GlobalAveragePoolLayer,
  spec.Rows: sequences.RowsLayer,
  spec.Grid: sequences.GridLayer,
  spec.Steps: sequences.StepsLayer,
  spec.Shuffle: sequences.ShuffleLayer,
  spec.Recurrent: sequences.RecurrentLayer,
  spec.Pointwise: sequences.PointwiseLayer,
  spec.Attention: sequences.AttentionLayer,
  spec.Mean: sequences.MeanLayer,
  spec.Drop: vectors.DropoutLayer,
  spec.Reshape: vectors.ReshapeLayer,
  spec.Flatten: vectors.FlattenLayer,
  spec.Dense: vectors.DenseLayer,
}


def build(stage: spec.Stage, shape: tuple[int, ...], **options: Any) -> Layer:
  """The layer of a stage that gets arrays of `shape`, without the batch axis.

  Args:
    stage: one of `specification.Stage`.
    shape: of what the stage before gives.
    **options: `dtype` and `rngs`, as `Layer` takes them.

  Raises:
    ValueError: where the stage does not take `shape`.
  """
  if type(stage) not in LAYERS:
    raise ValueError(f'no stage of a model: {stage!r}')
  check_plain(stage)
  return LAYERS[type(stage)](stage, shape, **options)
