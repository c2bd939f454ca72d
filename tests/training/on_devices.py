"""What `test_devices` checks, run by a process that has eight CPU devices.

python on_devices.py float64|float32
"""

import itertools
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_populations as small
from jax.sharding import PartitionSpec

from fer_jax import config as config_lib
from fer_jax.benchmark import scaling
from fer_jax.data import augment, randomness, resident
from fer_jax.models import specification
from fer_jax.training import checkpoint, feed, population, rehearsal, sharding
from fer_jax.training import step as step_lib

MIXED = augment.Augmentation(
  rotation=10.0, crop=0.9, erasing=0.5, mixup=0.4, cutmix=1.0
)


def devices(count):
  return jax.devices()[:count]


def mesh(count):
  return sharding.data_mesh(small.BATCH, devices(count))


def close(a, b, tolerance):
  """To a share of each array's largest element."""

  def one(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    largest = max(np.max(np.abs(y), initial=0), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)

  jax.tree.map(one, a, b)


def host(state):
  return jax.tree.map(np.array, state)


def wide(member):
  """The member in float64."""
  state = member.state
  cast = {
    name: jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
      getattr(state, name),
    )
    for name in ('params', 'model_state', 'opt_state', 'ema')
  }
  return member._replace(state=state._replace(**cast))


def resident_feed(member, count, *of_model):
  return feed.ResidentFeed(
    small.images(),
    train_rows=member.train_rows,
    validation_rows=member.validation_rows,
    plan=member.plan,
    graphdef=small.graph_definition(*of_model),
    settings_of=lambda epoch: SETTINGS,
    block_steps=20,
    mesh=mesh(count),
  )


def epoch(source, state, number, blocks=None):
  """(state after it, sums), or after its first blocks."""
  state = jax.tree.map(jnp.array, state)
  sums = None
  for n, block in enumerate(source.train_epoch(state, number), 1):
    state, sums, _ = block
    if n == blocks:
      break
  return state, sums


SETTINGS = step_lib.StepSettings(
  batch_size=small.BATCH,
  augmentation=MIXED,
  optim=small.SETTINGS.optim,
  ema_decay=0.9,
)


class Memory:
  """Batches of a list as `stream.Stream` gives them."""

  def __init__(self, rows, key):
    self._rows, self._key = rows, key
    self._padded = feed.padded_length(len(rows), small.BATCH)
    self.steps_per_epoch = self._padded // small.BATCH

  def epoch(self, number, start=0):
    count = len(self._rows)
    order = np.arange(self._padded)
    if self._key is not None:
      order = randomness.epoch_order(self._key, number, count, self._padded)
    rows = self._rows[np.minimum(order, count - 1)]
    held = {k: v for k, v in small.images().items() if k != 'label'}
    for n in range(start, self.steps_per_epoch):
      here = np.arange(n * small.BATCH, (n + 1) * small.BATCH)
      weight = (here < count).astype(np.float32)
      batch = resident.gather(held, rows[here], weight)
      yield jax.tree.map(np.asarray, batch)


def check_whole_trainings():
  """Three epochs with everything that looks across a batch, in float64."""
  specification.DTYPES += ('float64',)
  of_model = 2, 'float64'  # the second convolution is by Winograd's algorithm
  member = wide(small.member(1, *of_model))  # dropout, l2, class weights
  feeds = {n: resident_feed(member, n, *of_model) for n in (1, 2, 4, 8)}
  first, sums = epoch(feeds[1], member.state, 0)
  assert first.params['logits']['kernel'].dtype == np.float64
  figures = [step_lib.means(sums), step_lib.means(feeds[1].validate(first))]
  first = host(first)
  last = host(epoch(feeds[1], epoch(feeds[1], first, 1)[0], 2)[0])

  for count in (2, 4, 8):
    state, sums = epoch(feeds[count], member.state, 0)
    kernel = state.params['logits']['kernel']
    assert len(kernel.sharding.device_set) == count
    assert kernel.sharding.is_fully_replicated
    assert float(sums['weight']) == len(member.train_rows)
    validation = step_lib.means(feeds[count].validate(state))
    close(host(state), first, 1e-9)
    close([step_lib.means(sums), validation], figures, 1e-9)
    print('checked', count, 'devices')

  # From 1 device to 4 to 2.
  state, target = first, jax.eval_shape(lambda: member.state)
  with tempfile.TemporaryDirectory() as workdir:
    for number, count in ((1, 4), (2, 2)):
      writer = checkpoint.Writer(pathlib.Path(workdir))
      writer.save(jax.tree.map(jnp.asarray, state), epoch=number)
      writer.close()
      sealed = checkpoint.latest_intact(pathlib.Path(workdir))
      state = checkpoint.restore(sealed, target)
      state, _ = epoch(feeds[count], state, number)
  close(host(state), last, 1e-9)
  print('checked checkpoints')


def check_single_precision():
  """One step's gradients, and the 20 that follow; and what streams."""
  member = small.member(1)
  first = member.state

  def two_looks(source):
    blocks = source.train_epoch(jax.tree.map(jnp.array, first), 0)
    return [host(state) for state, *_ in itertools.islice(blocks, 2)]

  expected = two_looks(resident_feed(member, 1))
  assert [int(state.step) for state in expected] == [1, 21]
  streamed = feed.StreamFeed(
    Memory(member.train_rows, member.plan.key),
    Memory(member.validation_rows, None),
    plan=member.plan,
    graphdef=small.graph_definition(),
    settings_of=lambda epoch: SETTINGS,
    block_steps=1,
    mesh=mesh(4),
  )
  held = resident_feed(member, 8)
  found = two_looks(held)
  # Adam's first moment is a tenth of the first gradient.
  close(found[0].opt_state[1].mu, expected[0].opt_state[1].mu, 1e-5)
  close(found[1], expected[1], 1e-4)
  state, sums = epoch(streamed, first, 0, blocks=21)
  close(host(state), expected[1], 1e-4)
  assert float(sums['weight']) == 21 * small.BATCH
  close(streamed.validate(state), held.validate(state), 1e-5)
  print('checked streaming')
  check_messages(held, expected[0])


def check_messages(held, state):
  """What devices say to each other, as the compiled block has it."""
  text = (
    held._block(SETTINGS)
    .lower(
      sharding.replicated(state, held._mesh), step_lib.zero_sums(),
      held._images, jnp.zeros(feed.padded_length(2250, small.BATCH), jnp.int32),
      2250, 0, 1, held._plan,
    )
    .compile()
    .as_text()
  )  # fmt: skip
  largest = max(
    (scaling.elements(shape) for shape in scaling.messages(text)['all-gather']),
    default=0,
  )
  # Of the examples no more than the first of each device travels, for mixup.
  assert largest <= 8 * small.SIDE**2, largest
  print('checked messages')


def check_formulas():
  """docs/scaling.md's formulas count what the compiled step has."""
  config = config_lib.get_base(model='residual_bilstm')
  config.data.image_size = 8
  config.model.stem_filters = (4,)
  config.model.filters = (8,)
  config.model.blocks = (1,)
  config.model.units = 4
  config.model.head = (4,)
  config.augment.mixup = 0.2
  work = scaling.work_of(config, 7)
  assert len(work.norms) == 4
  assert work.projections == (8,)
  compiled = scaling.compile_step(config, 7)
  formula = scaling.by_formula(work, 8)
  for name in ('messages', 'reduced_bytes', 'gathered_bytes'):
    assert compiled[name] == formula[name], name
  # XLA leaves out products with padding, a fifth of them at this size, and
  # counts what is no product.
  assert 0.5 < compiled['flops'] / formula['flops'] < 2
  assert compiled['group_sizes'] == [8]
  print('checked formulas')
  check_formulas_of_populations(config, work)


def check_formulas_of_populations(config, work):
  """Members on devices of their own say nothing; what a device holds grows with
  the most that one has."""

  def of(members, mapping):
    found = scaling.compile_population(config, 7, members, mapping)
    expected = scaling.population_by_formula(
      work, members, 8, found['shared_bytes'], found['member_bytes']
    )
    for name in ('messages', 'reduced_bytes', 'gathered_bytes'):
      assert found[name] == expected[name], (members, mapping, name)
    # But for counters, key and sums.
    assert found['argument_bytes'] == pytest.approx(
      expected['argument_bytes'], rel=1e-3
    )
    return found

  # Of vmap a member alone on its device is another program than several.
  one, three = (of(members, 'in_turn') for members in (8, 24))
  assert three['temporary_bytes'] == pytest.approx(
    one['temporary_bytes'], rel=0.1
  )
  two, three = (of(members, 'vmap') for members in (16, 24))
  assert three['temporary_bytes'] == pytest.approx(
    1.5 * two['temporary_bytes'], rel=0.05
  )
  assert one['group_sizes'] == three['group_sizes'] == []
  divided = of(4, 'vmap')
  assert divided['divided'] == (4, 2)
  assert divided['group_sizes'] == [2]
  print('checked formulas of populations')


def check_parts_of_a_batch():
  """Augmentation of a divided batch is that of the whole, partners included."""
  draws = np.random.default_rng(0)
  images = draws.random((16, 8, 8, 1), np.float32)
  targets = np.eye(16, dtype=np.float32)
  key = jax.random.key(3)

  def change(images, targets, weight, axis=None):
    return augment.augment(key, images, targets, weight, MIXED, 1.0, axis)

  along = PartitionSpec(sharding.DATA)
  divided = jax.jit(
    sharding.over_devices(
      lambda *batch: change(*batch, sharding.DATA),
      sharding.make_mesh(devices(4)),
      in_specs=along,
      out_specs=along,
    )
  )
  whole = jax.jit(change)
  for real in (16, 13, 5, 4, 1):  # of 4 on each device
    weight = (np.arange(16) < real).astype(np.float32)
    got = divided(images, targets, weight)
    close(got, whole(images, targets, weight), 1e-6)
  print('checked augmentation')


def pointers(x):
  """Where each device's piece of an array lies."""
  return {piece.data.unsafe_buffer_pointer() for piece in x.addressable_shards}


def check_one_copy():
  """Devices of a CPU read one copy of a set, wherever it begins, and have a
  state each; a dry run counts so. A set as it is read is that copy."""
  everything = np.arange(100_001, dtype=np.uint8)
  for begin in (0, 1):
    before = rehearsal._array_bytes()
    images = everything[begin : begin + 100_000].reshape(100, -1)
    held = sharding.replicated({'image': images}, mesh(8))['image']
    assert len(held.sharding.device_set) == 8
    np.testing.assert_array_equal(held, images)
    assert rehearsal._array_bytes() - before == images.nbytes
    state = sharding.replicated(jnp.zeros(10_000), mesh(8))
    assert rehearsal._array_bytes() - before == images.nbytes + 8 * 40_000
    together = small.population_of(
      [small.member(number) for number in range(3)],
      'in_turn',
      images={**small.images(), 'image': images},
      devices=devices(8),
    )
    assert len(together._images['image'].sharding.device_set) == 6
    for x in together._images.values():
      assert len(pointers(x)) == 1
    del held, state, together
  read = resident.empty_images(100, (20, 20), 3, 2)
  for x in sharding.replicated(read, mesh(8)), jax.device_put(read):
    for name, array in read.items():
      assert pointers(x[name]) == {array.ctypes.data}
  print('checked copies')


def check_populations():
  """Three members on six devices, two for the batches of each."""
  members = [small.member(number) for number in range(3)]
  assert population.divisions(8, 3, small.BATCH) == (3, 2)
  together = small.population_of(members, 'vmap', devices=jax.devices())
  kernel = together._own.state.params['logits']['kernel']
  assert len(kernel.sharding.device_set) == 6
  for _ in together.blocks():
    break
  alone = small.single_feed(members[1])
  alone._dispatched = True  # no first block of one step
  state = jax.tree.map(jnp.array, members[1].state)
  state, *_ = next(alone.train_epoch(state, 0))
  assert int(state.step) == 20
  close(host(together.member_state(1)), host(state), 1e-4)
  print('checked populations')


if __name__ == '__main__':
  assert len(jax.devices()) == 8
  if sys.argv[1] == 'float64':
    check_whole_trainings()
  else:
    check_parts_of_a_batch()
    check_formulas()
    check_single_precision()
    check_populations()
    check_one_copy()
