"""Fields that the presets share, and the variants without recurrence."""

import dataclasses

from fer_jax.models import fields
from fer_jax.models import specification as spec
from fer_jax.models.fields import Field

RECURRENCES = ('recurrent', 'shuffled', 'pointwise', 'attention')

RECURRENCE = Field(
  'recurrent',
  'chosen',
  'what stands where the recurrent layers are: they themselves, the same on '
  'steps in a fixed random order, dense layers of as many parameters at each '
  'step by itself, or additive attention alone',
  fields.among(*RECURRENCES),
)

BACKEND = Field(
  'auto',
  'chosen',
  "what computes the recurrent layers: 'scan', which jax.jvp needs, 'fused', "
  "faster and in reverse mode only, or 'auto', the fastest here: 'fused', and "
  'for LSTM in float32 without a mask on an NVIDIA GPU cuDNN, which no other '
  'device has',
  fields.among('auto', 'scan', 'fused'),
)

DTYPE = Field(
  'float32',
  'chosen',
  'what to compute in; parameters and logits are float32',
  fields.among(*spec.DTYPES),
)

REMAT = Field(
  False,
  'chosen',
  'whether the backward pass computes the backbone again, stage by stage, '
  'for less memory',
  fields.boolean,
)

CLIP_FRAMES = Field(
  'frames',
  'chosen',
  "how a clip becomes steps: 'frames', the mean of each frame's map, or "
  "'tokens', the steps of all frames, one frame after the other",
  fields.among(*spec.CLIPS),
)

CLIP_TOKENS = dataclasses.replace(CLIP_FRAMES, default='tokens')


def pixels(default: str, source: str, note: str) -> Field:
  """What images the model takes."""
  return Field(default, source, note, fields.among(*spec.PIXELS))


def with_recurrence(
  body: tuple[spec.Stage, ...], how: str, attention_units: int
) -> tuple[spec.Stage, ...]:
  """A body with its recurrent stages as they are, or replaced.

  Args:
    body: with at least one `specification.Recurrent`.
    how: one of `RECURRENCES`.
    attention_units: width of the attention that stands alone.
  """
  first = next(
    n for n, stage in enumerate(body) if isinstance(stage, spec.Recurrent)
  )
  if how == 'shuffled':
    return (*body[:first], spec.Shuffle(), *body[first:])
  if how == 'pointwise':
    return tuple(
      spec.Pointwise(stage) if isinstance(stage, spec.Recurrent) else stage
      for stage in body
    )
  if how == 'attention':
    return (*body[:first], spec.Attention(attention_units))
  return body
