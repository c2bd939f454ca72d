"""`summary`: a model's layers, parameters and cost."""

import ast
from typing import Any

from absl import flags

from fer_jax.errors import UserError

SUMMARY = "A model's layers, shapes, parameters and cost."


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string('model', 'residual_bilstm', 'Name of the model.')
  flags.DEFINE_multi_string(
    'set', [], 'FIELD=VALUE of the model, such as filters=32,64; may repeat.'
  )
  flags.DEFINE_integer('num_classes', 7, 'Number of classes.', lower_bound=2)
  flags.DEFINE_string('json', None, 'File to write the result to.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  if len(argv) > 1:
    raise UserError(
      f'summary takes no argument {argv[1]!r}; see summary --help'
    )
  from fer_jax import files

  values = flags.FLAGS
  files.require_writable(values.json)
  overrides = dict(map(parse_assignment, values.set))
  result = summarise(values.model, values.num_classes, overrides)
  print(format_summary(result))
  files.write_result(values.json, result)
  return 0


def parse_assignment(text: str) -> tuple[str, Any]:
  """'filters=32,64' to ('filters', (32, 64)); what is no literal is a string.

  Raises:
    UserError: without an equals sign or a name.
  """
  name, equals, value = text.partition('=')
  if not equals or not name.strip():
    raise UserError(f'--set={text}: expected FIELD=VALUE')
  value = value.strip()
  words = {'true': True, 'false': False}
  if value.lower() in words:
    return name.strip(), words[value.lower()]
  try:
    return name.strip(), ast.literal_eval(value)
  # The last three: what cannot be hashed, and what is nested too deeply.
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    return name.strip(), value


def summarise(
  name: str, num_classes: int, overrides: dict[str, Any]
) -> dict[str, Any]:
  """The result as `--json` writes it.

  Returns:
    `model`, `num_classes`, `fields` (for each its value, default, source and
    note), and `layers` and `totals` of `layer_table`.

  Raises:
    UserError: for a model or fields that there are not, or values out of range.
  """
  from flax import nnx

  from fer_jax import models
  from fer_jax.models.layer_table import layer_table

  try:
    described = models.described_fields(name)
    model = nnx.eval_shape(
      lambda: models.create(
        name, num_classes=num_classes, rngs=nnx.Rngs(0), **overrides
      )
    )
  except ValueError as error:
    raise UserError(str(error)) from error
  fields = {
    field: {
      'value': overrides.get(field, about.default),
      'default': about.default,
      'source': about.source,
      'note': about.note,
    }
    for field, about in described.items()
  }
  return {
    'model': name,
    'num_classes': num_classes,
    'fields': fields,
    **layer_table(model),
  }


def format_summary(result: dict[str, Any]) -> str:
  """The result as text."""
  from fer_jax.models.layer_table import format_table

  shape = result['fields']['input_shape']['value']
  lines = [
    f'{result["model"]}: images {" x ".join(map(str, shape))} to '
    f'{result["num_classes"]} classes',
    '',
    format_table(result),
    '',
    'fields (stated in the paper, inferred from it, or chosen here)',
  ]
  width = max(map(len, result['fields']))
  values = {
    name: str(field['value']).replace(' ', '')
    for name, field in result['fields'].items()
  }
  value_width = max(map(len, values.values()))
  for name, field in result['fields'].items():
    source = field['source']
    if field['value'] != field['default']:
      source = 'set'
    lines.append(
      f'  {name:<{width}}  {values[name]:<{value_width}}  {source:<8}  '
      f'{field["note"]}'
    )
  return '\n'.join(lines)
