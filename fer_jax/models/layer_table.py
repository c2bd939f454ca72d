"""What a model consists of and costs, read off the model itself.

Shapes come from tracing a call with every layer's call intercepted,
multiply-adds from the traced computation, parameters from the state. No layer
has a formula here, so a new one needs none.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models.fusion import FusionModel
from fer_jax.nn import GRU, LSTM, Conv, DepthwiseConv

_SCOPE = re.compile(r'layer:([\w.]+)')

Row = dict[str, Any]


def layer_table(model: FusionModel) -> dict[str, Any]:
  """The layers of a model and its totals, for one image.

  Args:
    model: any; nothing of it is computed or changed.

  Returns:
    `layers`, a list of dicts in the order of computation: `name`; `kind`;
    `depth`, 0 for a stage and 1 or more for layers inside the one above,
    whose figures that one includes; `output_shape` without the batch axis;
    `trainable` and `non_trainable` parameters; `multiply_adds` of
    convolutions and recurrent layers (by their definition, whatever form or
    backend computes them) and matrix products; `output_bytes`. And
    `totals`: the sums over stages, and `saved_bytes`, what differentiation
    keeps of one image for the backward pass, with the model's `backend`
    and the forms of this platform, before XLA fuses any of it away.
  """
  outputs, features, products = _trace(model)
  rows: list[Row] = []
  for part, name in _stages(model):
    prefix = f'{part}.{name}' if name else part
    inner = [
      _row(path, outputs[path], model, products)
      for path in outputs
      if path.startswith(f'{prefix}.')
    ]
    # A stage without state is a function and has no class.
    kind, output = outputs.get(prefix, (name.rstrip('0123456789'), None))
    output = features.get(name, output)
    stage = _row(prefix, (kind, output), model, products)
    rows += [stage, *inner]
  stages = [row for row in rows if row['depth'] == 0]
  totals = {
    name: sum(row[name] for row in stages)
    for name in ('trainable', 'non_trainable', 'multiply_adds', 'output_bytes')
  }
  totals['parameters'] = totals['trainable'] + totals['non_trainable']
  totals['saved_bytes'] = _saved_bytes(model)
  return {'layers': rows, 'totals': totals}


def format_table(table: dict[str, Any]) -> str:
  """The table as text, layers inside a stage indented."""
  heads = ('layer', 'kind', 'output', 'parameters', 'multiply-adds', 'output')
  lines: list[tuple[str, ...]] = [heads]
  for row in table['layers']:
    parameters = f'{row["trainable"]:,}'
    if row['non_trainable']:
      parameters += f' + {row["non_trainable"]:,}'
    lines.append(
      (
        '  ' * row['depth'] + row['name'],
        row['kind'],
        ' x '.join(map(str, row['output_shape'])),
        parameters,
        f'{row["multiply_adds"]:,}',
        _readable(row['output_bytes']),
      )
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '  '.join(
      # Words to the left, figures to the right.
      cell.ljust(width) if n < 3 else cell.rjust(width)
      for n, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  ]
  text.insert(1, '-' * (sum(widths) + 2 * (len(widths) - 1)))
  totals = table['totals']
  text += [
    '',
    f'parameters         {totals["parameters"]:,} (trainable '
    f'{totals["trainable"]:,}, running statistics '
    f'{totals["non_trainable"]:,})',
    f'multiply-adds      {totals["multiply_adds"]:,} an image',
    f'activation memory  {_readable(totals["saved_bytes"])} an image kept for '
    f'the backward pass; outputs of stages {_readable(totals["output_bytes"])}',
  ]
  return '\n'.join(text)


def _readable(count: int) -> str:
  for unit, size in (('MiB', 2**20), ('KiB', 2**10)):
    if count >= size:
      return f'{count / size:.1f} {unit}'
  return f'{count} B'


def _stages(model: FusionModel) -> Iterator[tuple[str, str]]:
  for part in ('backbone', 'body', 'head'):
    for name in getattr(model, f'{part}_names'):
      yield part, name
  yield 'logits', ''


def _row(
  path: str,
  output: tuple[str, Any],
  model: FusionModel,
  products: dict[str, int],
) -> Row:
  kind, shaped = output
  trainable, other = _parameters(model, path.split('.'))
  # Parts (backbone, body, head) are no level of the table.
  parts = path.split('.') if path == 'logits' else path.split('.')[1:]
  return {
    'name': parts[-1],
    'kind': kind,
    'depth': len(parts) - 1,
    'output_shape': list(shaped.shape[1:]),
    'trainable': trainable,
    'non_trainable': other,
    'multiply_adds': sum(
      n for p, n in products.items() if p == path or p.startswith(f'{path}.')
    ),
    'output_bytes': math.prod(shaped.shape[1:]) * shaped.dtype.itemsize,
  }


def _parameters(model: FusionModel, path: list[str]) -> tuple[int, int]:
  module: Any = model
  for name in path:
    if isinstance(module, nnx.Dict):
      if name not in module:
        return 0, 0
      module = module[name]
    elif isinstance(module, nnx.List):
      module = module[int(name)]
    else:
      module = getattr(module, name)
  state = nnx.to_flat_state(nnx.state(module))
  sizes = [(isinstance(v, nnx.Param), v.size) for _, v in state]
  trainable = sum(size for is_param, size in sizes if is_param)
  return trainable, sum(size for _, size in sizes) - trainable


def _images(model: FusionModel, batch: int) -> jax.ShapeDtypeStruct:
  shape = (batch, *model.specification.input_shape)
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _trace(model: FusionModel):
  """Output (kind, shape) of each called layer by path, features of stages, and
  multiply-adds by the path of the innermost layer that computes them."""
  graphdef, state = nnx.split(model)
  outputs: dict[str, tuple[str, Any]] = {}
  features: dict[str, Any] = {}

  def call(state, images):
    traced = nnx.merge(graphdef, state)
    for _, module in nnx.iter_graph(traced):
      # The definition, not the form that is fast here.
      if isinstance(module, Conv | DepthwiseConv):
        module.form = 'lax'
      elif isinstance(module, LSTM | GRU):
        module.backend = 'scan'
    with _intercepted_calls(traced, outputs):
      _, found = traced(images, return_features=True)
    features.update(found)
    return found

  jaxpr = jax.make_jaxpr(call)(state, _images(model, 1))
  return outputs, features, _multiply_adds(jaxpr.jaxpr)


@contextlib.contextmanager
def _intercepted_calls(
  model: nnx.Module, outputs: dict[str, tuple[str, Any]]
) -> Iterator[None]:
  """Records what the layers of `model` return, and names their scopes."""
  paths = {
    id(module): '.'.join(map(str, path))
    for path, module in nnx.iter_graph(model)
    if isinstance(module, nnx.Module) and path
  }
  kinds = {
    type(module)
    for _, module in nnx.iter_graph(model)
    if isinstance(module, nnx.Module) and callable(module)
  }

  def recorder(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self, *arguments, **options):
      path = paths.get(id(self))
      if path is None:
        return original(self, *arguments, **options)
      # The place in the order is that of the call, not of the return.
      outputs[path] = (type(self).__name__, None)
      with jax.named_scope(f'layer:{path}'):
        result = original(self, *arguments, **options)
      main = result[0] if isinstance(result, tuple) else result
      outputs[path] = (type(self).__name__, main)
      return result

    return call

  own = {kind: kind.__dict__.get('__call__') for kind in kinds}
  for kind in kinds:
    kind.__call__ = recorder(kind.__call__)
  try:
    yield
  finally:
    for kind, original in own.items():
      if original is None:
        del kind.__call__
      else:
        kind.__call__ = original


def _multiply_adds(jaxpr, scope: str = '', times: int = 1) -> dict[str, int]:
  """Multiply-adds of products and convolutions, by innermost layer."""
  counts: dict[str, int] = {}
  for equation in jaxpr.eqns:
    where = f'{scope}/{equation.source_info.name_stack}'
    name = equation.primitive.name
    if name in ('dot_general', 'conv_general_dilated'):
      layers = _SCOPE.findall(where)
      path = layers[-1] if layers else ''
      counts[path] = counts.get(path, 0) + times * _product(equation, name)
    repeats = equation.params['length'] if name == 'scan' else 1
    for inner in _inner_jaxprs(equation):
      found = _multiply_adds(inner, where, times * repeats)
      for path, n in found.items():
        counts[path] = counts.get(path, 0) + n
  return counts


def _inner_jaxprs(equation) -> Iterator[Any]:
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      jaxpr = getattr(item, 'jaxpr', item)
      if hasattr(jaxpr, 'eqns'):
        yield jaxpr


def _product(equation, name: str) -> int:
  left, right = (variable.aval.shape for variable in equation.invars[:2])
  out = math.prod(equation.outvars[0].aval.shape)
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return out * math.prod(left[axis] for axis in contracted)
  features = right[equation.params['dimension_numbers'].rhs_spec[0]]
  return out * math.prod(right) // features


def _saved_bytes(model: FusionModel) -> int:
  """Bytes an image that reverse-mode differentiation keeps.

  The difference between two batch sizes, so that what does not grow with the
  batch, the parameters above all, is left out.
  """
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def residuals(params, rest, images):
    def loss(params):
      merged = nnx.merge(graphdef, params, rest, copy=True)
      return merged(images, train=True, key=jax.random.key(0)).sum()

    return jax.vjp(loss, params)[1]

  sizes = [
    sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(
        jax.eval_shape(residuals, params, rest, _images(model, batch))
      )
    )
    # Batches of one chunk of the convolutions and of two.
    for batch in (8, 16)
  ]
  return (sizes[1] - sizes[0]) // 8
