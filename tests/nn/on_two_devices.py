"""What `test_shard_map` checks, run by a process that has two CPU devices.

python on_two_devices.py
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.experimental import rnn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fer_jax import models
from fer_jax.benchmark import recurrent_layers
from fer_jax.benchmark.contenders import recurrent_jax
from fer_jax.nn import (
  GRU,
  LSTM,
  AdditiveAttention,
  BatchNorm,
  Bidirectional,
  Dropout,
  Stacked,
  avg_pool,
  conv,
  max_pool,
  separable,
)
from fer_jax.nn.recurrent import layers
from fer_jax.nn.winograd import winograd_conv
from fer_jax.training import sharding

AXIS = 'data'
SHARED, DIVIDED = P(), P(AXIS)
DRAWS = np.random.default_rng(0)
MASK_BT = jnp.arange(5)[None] < jnp.array([[5], [2], [0], [4]])


def over_devices(function, in_specs, out_specs):
  mesh = jax.make_mesh((2,), (AXIS,), (AxisType.Auto,))
  return jax.jit(
    jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
  )


def draw(*shape):
  return jnp.asarray(DRAWS.normal(size=shape), jnp.float32)


def close(found, expected):
  """To 1e-5 of each array's largest element, or of 0.1."""

  def one(x, y):
    largest = max(float(np.max(np.abs(y), initial=0)), 0.1)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * largest)

  jax.tree.map(one, found, expected)


def check(
  function, weights, inputs, given=(), *, specs=(SHARED, DIVIDED), run=True
):
  """Two devices give the value, gradients and state of one.

  Args:
    function: of weights, inputs, what is given and the axis, to outputs and a
      state that is of all examples.
    weights, inputs: to be differentiated for.
    given: not to be; divided.
    specs: how weights and inputs lie on the devices.
    run: whether to compare numbers. Types alone, which take no compilation,
      tell where a sum over devices is missing or one too many.
  """

  def loss(weights, inputs, given, axis):
    outputs, state = function(weights, inputs, given, axis)
    leaves = jax.tree.leaves(outputs)
    for leaf in leaves:
      assert axis is None or axis in jax.typeof(leaf).manual_axis_type.varying
    return sum(jnp.sin(leaf).sum() for leaf in leaves), state

  def of_one(weights, inputs, given, axis=None):
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(
      weights, inputs, given, axis
    )

  def of_two(*arguments):
    (value, state), gradients = of_one(*arguments, axis=AXIS)
    return (lax.psum(value, AXIS), state), gradients

  divided = over_devices(of_two, (*specs, DIVIDED), ((SHARED, SHARED), specs))
  if run:
    found = divided(weights, inputs, given)
    close(found, jax.jit(of_one)(weights, inputs, given))
  else:
    divided.trace(weights, inputs, given)


def stateless(function):
  """For `check`, of a function of weights, inputs and what is given."""
  return lambda weights, inputs, given, axis: (
    function(weights, inputs, *given),
    (),
  )


def check_layer(module, x, given=(), *, run=True):
  graphdef, weights = nnx.split(module)

  def call(weights, x, *given):
    return nnx.merge(graphdef, weights)(x, *given)

  check(stateless(call), weights, x, given, run=run)


def check_recurrent():
  x_btd = draw(4, 5, 3)
  for backend in ('scan', 'fused'):
    options = {'backend': backend, 'rngs': nnx.Rngs(0)}

    def cell(kind, features, options=options, **others):
      return kind(features, 4, **options, **others)

    lstm, before = cell(LSTM, 3), cell(GRU, 3, reset_after=False)
    both = Bidirectional(cell(LSTM, 3), before)
    stacked = Stacked([cell(GRU, 3), cell(LSTM, 4)])
    check_layer(both, x_btd)
    check_layer(stacked, x_btd, (MASK_BT,))
    for layer in (lstm, before, cell(GRU, 3), both):
      for given in ((), (MASK_BT,)):
        check_layer(layer, x_btd, given, run=False)
  print('checked recurrent layers')


def check_cudnn():
  """Its types alone, as they are traced where there is no GPU."""
  rnn.gpu_rnn = types.SimpleNamespace(
    compute_rnn_workspace_reserve_space_sizes=lambda *sizes: (1, 1)
  )
  layers.current_platform = lambda: 'cuda'
  lstm = functools.partial(LSTM, 3, 4, backend='cudnn', rngs=nnx.Rngs(0))
  for layer in (lstm(), Bidirectional(lstm(), lstm())):
    for given in ((), (MASK_BT,)):
      check_layer(layer, draw(4, 5, 3), given, run=False)
  print('checked cuDNN')


def check_own_weights():
  """Each device has its own for what is the same on all."""
  specs = DIVIDED, SHARED
  for backend in ('scan', 'fused'):
    graphdef, state = nnx.split(LSTM(3, 4, backend=backend, rngs=nnx.Rngs(0)))
    members = jax.tree.map(lambda w: jnp.stack([w, -w]), state)

    def run(members, x_btd, graphdef=graphdef):
      return jax.vmap(lambda w: nnx.merge(graphdef, w)(x_btd, MASK_BT))(members)

    check(
      stateless(run),
      members,
      draw(4, 5, 3),
      specs=specs,
      run=backend == 'fused',
    )

  def convolve(kernels, images):
    return jax.vmap(lambda k: conv.conv2d(images, k, form='winograd2'))(kernels)

  kernels, images = draw(2, 3, 3, 8, 8), draw(3, 6, 6, 8)
  check(stateless(convolve), kernels, images, specs=specs)
  print('checked weights of each device')


def check_images():
  images, weights = draw(4, 7, 7, 8), (draw(3, 3, 8, 8), draw(8))
  for form in conv.FORMS:
    for strides in (1, 2):

      def convolve(weights, images, form=form, strides=strides):
        return conv.conv2d(images, *weights, strides=strides, form=form)

      run = form in ('lax', 'patches') or (form, strides) == ('winograd2', 1)
      check(stateless(convolve), weights, images, run=run)
  for chunk in (1, 2):  # of images that a loop works on together

    def in_chunks(weights, images, chunk=chunk):
      pads = ((1, 1), (1, 1))
      return winograd_conv(
        images, *weights, pads, stride=1, tile=2, chunk=chunk
      )

    check(stateless(in_chunks), weights, draw(6, 4, 4, 8), run=chunk == 2)
  for form in separable.FORMS:

    def depthwise(kernel, images, form=form):
      return separable.depthwise_conv2d(images, kernel, form=form)

    check(stateless(depthwise), draw(3, 3, 1, 8), images, run=form != 'auto')
  for pool in (
    max_pool,
    functools.partial(max_pool, window=3, strides=2),
    avg_pool,
  ):
    check(stateless(lambda _, images, pool=pool: pool(images)), (), images)
  print('checked images')


def check_vectors():
  attention = AdditiveAttention(3, 4, rngs=nnx.Rngs(0))
  check_layer(attention, draw(4, 5, 3), (MASK_BT,))

  def drop(_, x, given, axis):
    dropout = Dropout(0.5)
    dropout.axis_name = axis
    return dropout(x, key=jax.random.key(0)), ()

  check(drop, (), draw(4, 5))
  graphdef, params, rest = nnx.split(BatchNorm(3), nnx.Param, ...)

  def normalise(params, x, given, axis):
    norm = nnx.merge(graphdef, params, rest, copy=True)
    norm.axis_name = axis
    y = norm(x, mask=given[0])
    return y, nnx.state(norm, nnx.BatchStat)

  mask_b = jnp.array([True, True, True, False])
  check(normalise, params, draw(4, 5, 3), (mask_b,))
  print('checked vectors')


SMALL = {
  'residual_bilstm': {
    'input_shape': (8, 8, 1),
    'stem_filters': (4,),
    'filters': (4,),
    'blocks': (1,),
    'units': 4,
    'attention_units': 4,
    'head': (4,),
  },
  'cnn_lstm_model3': {
    'input_shape': (22, 22, 1),
    'filters': (4, 4, 4, 4, 4),
    'dense': 8,
    'units': (4, 4),
  },
}


def check_model(name, *, run=True, **overrides):
  model = models.create(name, num_classes=3, rngs=nnx.Rngs(0), **overrides)
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def train(params, images, given, axis):
    model = nnx.merge(graphdef, params, rest, copy=True)
    for _, module in nnx.iter_modules(model):
      if isinstance(module, BatchNorm | Dropout):
        module.axis_name = axis
    logits = model(images, train=True, key=jax.random.key(0), weight=given[0])
    return logits, nnx.state(model, nnx.BatchStat)

  images = draw(4, *model.specification.input_shape)
  weight = jnp.array([1.0, 1.0, 1.0, 0.0])
  check(train, params, images, (weight,), run=run)


def check_models():
  for name, overrides in SMALL.items():
    check_model(name, **overrides)
  check_model(name, **overrides, remat=True, run=False)
  print('checked models')


def check_explicit_axes():
  """A layer's gradients, where `auto_axes` says how they lie."""
  graphdef, weights = nnx.split(LSTM(3, 4, backend='fused', rngs=nnx.Rngs(0)))

  def gradients(weights, x_btd):
    def loss(weights):
      return nnx.merge(graphdef, weights)(x_btd)[0].sum()

    return jax.grad(loss)(weights)

  x_btd = draw(4, 5, 3)
  expected = gradients(weights, x_btd)
  mesh = jax.make_mesh((2,), (AXIS,), (AxisType.Explicit,))
  with jax.set_mesh(mesh):
    step = jax.sharding.auto_axes(gradients, out_sharding=SHARED)
    found = jax.jit(step)(weights, jax.device_put(x_btd, DIVIDED))
  close(jax.device_get(found), expected)
  print('checked axes that are explicit')


def check_what_the_benchmark_times():
  layer = Bidirectional(*(GRU(3, 4, rngs=nnx.Rngs(n)) for n in range(2)))
  graphdef, params = nnx.split(layer)
  case = {'batch': 4, 'steps': 5, 'inputs': 3, 'units': 4, 'seed': 0}

  def gradients(mesh):
    step = recurrent_jax.make_step(
      lambda params, x: nnx.merge(graphdef, params)(x)[0], mesh
    )
    return step(params, *recurrent_layers.draws(case))

  close(gradients(sharding.data_mesh(4)), gradients(None))
  print('checked what the benchmark times')


if __name__ == '__main__':
  assert len(jax.devices()) == 2
  check_recurrent()
  check_own_weights()
  check_images()
  check_vectors()
  check_models()
  check_explicit_axes()
  check_cudnn()
  check_what_the_benchmark_times()
