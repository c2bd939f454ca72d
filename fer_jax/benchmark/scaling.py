"""What a step on many devices costs, by formula and as XLA compiles it.

    python -m fer_jax.benchmark.scaling configs/fer2013_residual_bilstm.py \
      --json=docs/records/scaling.json

Every formula of docs/scaling.md is a function here. The step of a config is
compiled, not run, for eight CPU devices, with the convolutions and recurrent
layers of an accelerator, and its operations are counted beside the formulas;
so is the block of steps of populations, in the manner of an accelerator.
The times are predictions from data sheets: no accelerator is asked.

Legend: B batch, n devices, P parameters, C channels of a BatchNorm, K classes,
M members of a population, whose members n devices divide, and where there are
more devices than members, each member's batches.
"""

import argparse
import collections
import dataclasses
import functools
import math
import os
import re
import runpy
from collections.abc import Sequence
from typing import Any

FLOAT = 4
"""Bytes of a float32, in which devices send everything."""

DEVICES = (8, 16, 32, 64, 128, 256)

MEMBERS = (4, 8, 16)
"""Of the populations that are compiled: on eight devices each member has two,
one, and half of one."""

EXAMPLES, STEPS = 1024, 100
"""Of the resident set of those, and steps of an epoch."""

_OPERATION = re.compile(
  r'= (?P<shape>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|'
  r'collective-permute|all-to-all)(?:-start)?\('
)
_GROUPS = re.compile(
  r'replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]<=|'
  r'mesh\[(?P<mesh>[^\]]*)\] \{(?P<axes>[^}]*)\})'  # from jax 0.12 on
)
_ARRAY = re.compile(r'(?:pred|[a-z]+\d+)\[([\d,]*)\]')


def elements(shape: str) -> int:
  """Of an array as HLO writes it, such as 'f32[3,3,64]'."""
  found = _ARRAY.fullmatch(shape)
  if found is None:
    raise ValueError(f'{shape!r} is no array of HLO')
  return math.prod(int(n) for n in found[1].split(',') if n)


def messages(text: str) -> dict[str, list[str]]:
  """The arrays that the collective operations of a program give.

  Args:
    text: of compiled HLO.

  Returns:
    For each kind, as 'all-reduce', the arrays, as 'f32[3,3,64]'.
  """
  found = collections.defaultdict(list)
  for line in text.splitlines():
    operation = _OPERATION.search(line)
    if operation:
      found[operation['kind']] += [
        array[0] for array in _ARRAY.finditer(operation['shape'])
      ]
  return found


def group_sizes(text: str) -> set[int]:
  """How many devices take part in each collective operation of a program.

  Args:
    text: of compiled HLO.
  """
  sizes = set()
  for line in text.splitlines():
    if _OPERATION.search(line):
      groups = _GROUPS.search(line)
      if groups is None:
        raise ValueError(f'no groups in {line.strip()!r}')
      if groups['mesh']:
        along = dict(re.findall(r"'(\w+)'=(\d+)", groups['mesh']))
        axes = re.findall(r"'(\w+)'", groups['axes'])
        sizes.add(math.prod(int(along[axis]) for axis in axes))
      else:
        sizes.add(int(groups['size'] or 1 + groups['first'].count(',')))
  return sizes


@dataclasses.dataclass(frozen=True)
class Work:
  """What a training step of a model is made of.

  Attributes:
    parameters: P, trainable ones.
    norms: C of each BatchNorm.
    projections: those of them, and so C, that stand beside another one: what
      both give is added up, so that the two go with one message and have one
      gradient of their biases.
    multiply_adds: of one image, forward.
    image: elements of one image.
    classes: K.
    batch: B.
    mixes: whether images are mixed across the batch.
  """

  parameters: int
  norms: tuple[int, ...]
  projections: tuple[int, ...]
  multiply_adds: int
  image: int
  classes: int
  batch: int
  mixes: bool


def gradient_bytes(work: Work) -> int:
  """Of the parameters' gradients, each once: 4 P, less 4 C a projection."""
  return FLOAT * (work.parameters - sum(work.projections))


def norm_bytes(work: Work) -> int:
  """Of each BatchNorm's sums, squares and count, forward and backward:
  8 (2 C + 1)."""
  return 2 * FLOAT * sum(2 * c + 1 for c in work.norms)


def sums_bytes() -> int:
  """Of loss, correct predictions and weight: 12."""
  return 3 * FLOAT


def reduced_bytes(work: Work) -> int:
  """All that is summed over devices in a step."""
  return gradient_bytes(work) + norm_bytes(work) + sums_bytes()


def gathered_bytes(work: Work, devices: int) -> int:
  """What mixing collects: weights, and each device's first example with its
  target, 4 (B + n (image + K))."""
  if not work.mixes:
    return 0
  return FLOAT * (work.batch + devices * (work.image + work.classes))


def step_flops(work: Work, devices: int) -> float:
  """On each device: two for a multiply-add; the backward pass is twice the
  forward one."""
  return 3 * 2 * work.multiply_adds * work.batch / devices


def sent_bytes(reduced: float, devices: int) -> float:
  """By each device in a ring: every byte but its own part, twice."""
  return 2 * reduced * (devices - 1) / devices


def message_count(work: Work) -> int:
  """Waits for all devices in a step: two a BatchNorm but for projections, one
  for gradients and sums, which XLA puts together, and three for mixing."""
  return 2 * (len(work.norms) - len(work.projections)) + 1 + 3 * work.mixes


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A device as its data sheet has it.

  Attributes:
    name: with the sheet's figures in words.
    flops: a second, of the precision that a float32 model computes in.
    near: bytes a second and direction to the devices of one machine or slice.
    far: the same to those of other machines.
    group: how many devices are near each other.
  """

  name: str
  flops: float
  near: float
  far: float
  group: int


ACCELERATORS = (
  Accelerator(
    'NVIDIA H100 SXM: TF32 494.7 TFLOP/s without sparsity, NVLink 900 GB/s '
    '(450 each way) among 8, InfiniBand NDR 400 Gb/s each beyond',
    494.7e12, 450e9, 50e9, 8,
  ),
  Accelerator(
    'Google TPU v5e: bfloat16 197 TFLOP/s, interconnect 1,600 Gb/s a chip '
    'among 256',
    197e12, 200e9, 200e9, 256,
  ),
)  # fmt: skip

UTILISATION = 0.3
"""Assumed share of the peak that a step reaches."""

LATENCY = 20e-6
"""Assumed seconds that a message takes beside its bytes."""


def compute_seconds(
  work: Work, devices: int, accelerator: Accelerator
) -> float:
  """Of a step on each device."""
  peak = accelerator.flops * UTILISATION
  return step_flops(work, devices) / peak


def message_seconds(
  work: Work, devices: int, accelerator: Accelerator
) -> float:
  """Of what devices say to each other, none of it while they compute."""
  if devices == 1:
    return 0.0
  bandwidth = (
    accelerator.near if devices <= accelerator.group else accelerator.far
  )
  total = sent_bytes(reduced_bytes(work), devices)
  total += gathered_bytes(work, devices)
  return total / bandwidth + LATENCY * message_count(work)


def efficiency(work: Work, devices: int, accelerator: Accelerator) -> float:
  """Of a step: the share of it that is not messages."""
  seconds = compute_seconds(work, devices, accelerator)
  return seconds / (seconds + message_seconds(work, devices, accelerator))


def population_efficiency(members: int, devices: int) -> float:
  """Of members of one length each on one device: they say nothing, but the
  device with the most of them is waited for: M / (n ceil(M / n))."""
  return members / (devices * each_device(members, devices))


def each_device(members: int, devices: int) -> int:
  """Members that it has at most, ceil(M / n)."""
  return math.ceil(members / devices)


def population_by_formula(
  work: Work, members: int, devices: int, shared: int, member: int
) -> dict[str, Any]:
  """What `compile_population` counts, where members train all at once.

  They say nothing to each other. Where batches are divided, it is what is said
  in as many single runs, in one run's number of messages.

  Args:
    work: of one.
    members: M.
    devices: n.
    shared: bytes of the resident set.
    member: bytes of one member's state, lists and plan.
  """
  from fer_jax.training import population

  rows, columns = population.divisions(devices, members, work.batch)
  each = each_device(members, rows)
  divided = columns > 1
  return {
    'messages': message_count(work) if divided else 0,
    'reduced_bytes': each * reduced_bytes(work) if divided else 0,
    'gathered_bytes': each * gathered_bytes(work, columns) if divided else 0,
    'argument_bytes': shared + each * member,
  }


def accelerator_model(config: Any, num_classes: int) -> Any:
  """The config's model, shapes alone, in the forms of accelerators."""
  import jax
  from flax import nnx

  from fer_jax.nn import Conv, DepthwiseConv
  from fer_jax.training import task

  model = nnx.eval_shape(
    lambda: task.create_model(config, num_classes, jax.random.key(0))
  )
  for _, module in nnx.iter_modules(model):
    if isinstance(module, Conv | DepthwiseConv):
      module.form = 'lax'
  return model


def work_of(config: Any, num_classes: int) -> Work:
  """The work of a config's step."""
  import jax

  from fer_jax.models.layer_table import layer_table
  from fer_jax.training import task

  totals = layer_table(accelerator_model(config, num_classes))['totals']
  state = task.abstract_state(config, num_classes)
  names = [
    ([str(key.key) for key in path], x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(state.model_state)
  ]
  norms = {
    '.'.join(path): shape[0] for path, shape in names if path[-1] == 'mean'
  }
  augment = config.augment
  return Work(
    parameters=totals['trainable'],
    norms=tuple(norms.values()),
    projections=tuple(c for name, c in norms.items() if 'projection' in name),
    multiply_adds=totals['multiply_adds'],
    image=config.data.image_size**2 * config.data.channels,
    classes=num_classes,
    batch=config.train.batch_size,
    mixes=bool(augment.enabled and (augment.mixup or augment.cutmix)),
  )


def compile_step(config: Any, num_classes: int) -> dict[str, Any]:
  """Compiles a config's step for all devices there are; runs nothing.

  Returns:
    'devices'; on each of them 'flops', by XLA's account, which goes through a
    loop once and leaves out products with padding, and 'temporary_bytes'; and
    what they send: 'messages', arrays that travel together counted as one,
    'group_sizes', how many devices take part in one, 'reduced_bytes' and
    'gathered_bytes'.
  """
  import jax
  import jax.numpy as jnp

  from fer_jax.training import optim, sharding, task
  from fer_jax.training import state as state_lib
  from fer_jax.training import step as step_lib

  size, batch = config.data.image_size, config.train.batch_size
  graphdef, _, _ = state_lib.split(accelerator_model(config, num_classes))
  settings = task.step_settings(config)
  mesh = sharding.data_mesh(batch)
  step = functools.partial(
    step_lib.train_step, graphdef=graphdef, settings=settings.over(mesh)
  )
  everywhere, divided = sharding.EVERYWHERE, sharding.DIVIDED
  program = jax.jit(
    sharding.over_devices(step, mesh, (everywhere, divided, everywhere)),
    donate_argnums=0,
  )
  arrays = {
    'image': jax.ShapeDtypeStruct(
      (batch, size, size, config.data.channels), jnp.uint8
    ),
    'target': jax.ShapeDtypeStruct((batch, num_classes), jnp.float32),
    'weight': jax.ShapeDtypeStruct((batch,), jnp.float32),
  }
  plan = step_lib.Plan(jax.random.key(0), optim.Milestones(total=1))
  compiled = program.lower(
    task.abstract_state(config, num_classes), arrays, plan
  ).compile()
  cost: Any = compiled.cost_analysis()
  memory: Any = compiled.memory_analysis()
  return {
    'devices': jax.device_count(),
    'flops': cost['flops'],
    'temporary_bytes': memory.temp_size_in_bytes,
    **_sent(compiled.as_text() or ''),
  }


def compile_population(
  config: Any, num_classes: int, members: int, mapping: str = 'vmap'
) -> dict[str, Any]:
  """Compiles the block of steps of a population for all devices there are.

  Args:
    config: of its members.
    num_classes: K.
    members: M.
    mapping: how those of one device share it.

  Returns:
    'members'; 'divided', how many parts members and batches have; on each
    device 'argument_bytes' and 'temporary_bytes'; 'shared_bytes' and
    'member_bytes', of the set and of a member; and what devices send in a step
    as of `compile_step`, with 'group_sizes', how many take part in a message.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from fer_jax.training import memory, optim, population, task
  from fer_jax.training import state as state_lib
  from fer_jax.training import step as step_lib

  size, batch = config.data.image_size, config.train.batch_size
  graphdef, _, _ = state_lib.split(accelerator_model(config, num_classes))
  images = {
    'image': jax.ShapeDtypeStruct(
      (EXAMPLES, size, size, config.data.channels), jnp.uint8
    ),
    'target': jax.ShapeDtypeStruct((EXAMPLES, num_classes), jnp.float32),
  }
  rows = np.zeros(STEPS * batch, np.int32)
  member = population.Member(
    task.abstract_state(config, num_classes),
    step_lib.Plan(jax.random.key(0), optim.Milestones(total=1)),
    rows,
    rows[:0],
  )
  devices = jax.devices()
  compiled = population.lower_block(
    images,
    member,
    members,
    graphdef=graphdef,
    settings=task.step_settings(config),
    selection=task.selection_settings(config),
    mapping=mapping,
    devices=devices,
  ).compile()
  needed: Any = compiled.memory_analysis()
  return {
    'members': members,
    'mapping': mapping,
    'divided': population.divisions(len(devices), members, batch),
    'shared_bytes': memory.bytes_of(images),
    # The order of an epoch's examples is what is large beside the state.
    'member_bytes': memory.bytes_of((member.state, rows)),
    'argument_bytes': needed.argument_size_in_bytes,
    'temporary_bytes': needed.temp_size_in_bytes,
    **_sent(compiled.as_text() or ''),
  }


def _sent(text: str) -> dict[str, Any]:
  """What devices send, of compiled HLO; arrays that travel together are one
  message."""
  sent = messages(text)
  return {
    'messages': len(_OPERATION.findall(text)),
    'group_sizes': sorted(group_sizes(text)),
    'reduced_bytes': FLOAT * sum(map(elements, sent['all-reduce'])),
    'gathered_bytes': FLOAT * sum(map(elements, sent['all-gather'])),
  }


def by_formula(work: Work, devices: int) -> dict[str, Any]:
  """What `compile_step` counts, by the formulas."""
  return {
    'messages': message_count(work),
    'flops': step_flops(work, devices),
    'reduced_bytes': reduced_bytes(work),
    'gathered_bytes': gathered_bytes(work, devices),
  }


def predict(work: Work, accelerator: Accelerator) -> list[dict[str, Any]]:
  """For each of `DEVICES` the predicted step and efficiency, with the batch
  divided among them ('divided') and with a whole one for each ('each')."""
  rows = []
  for devices in DEVICES:
    row: dict[str, Any] = {'devices': devices}
    many = dataclasses.replace(work, batch=work.batch * devices)
    for name, case in (('divided', work), ('each', many)):
      if case.batch % devices == 0:
        row[name] = {
          'compute_seconds': compute_seconds(case, devices, accelerator),
          'message_seconds': message_seconds(case, devices, accelerator),
          'efficiency': efficiency(case, devices, accelerator),
        }
    rows.append(row)
  return rows


def measure(config: Any, num_classes: int, members: Sequence[int]) -> dict:
  """The record: what is compiled beside the formulas, and the predictions.

  Args:
    config: whose step is compiled.
    num_classes: K.
    members: sizes of populations.
  """
  from fer_jax import provenance

  work = work_of(config, num_classes)
  compiled = compile_step(config, num_classes)
  populations = [compile_population(config, num_classes, m) for m in MEMBERS]
  return {
    'environment': provenance.environment(),
    'model': config.model.name,
    'work': dataclasses.asdict(work),
    'compiled': compiled,
    'formula': by_formula(work, compiled['devices']),
    'populations': [
      {
        'compiled': found,
        'formula': population_by_formula(
          work,
          found['members'],
          compiled['devices'],
          found['shared_bytes'],
          found['member_bytes'],
        ),
      }
      for found in populations
    ],
    'assumed': {'utilisation': UTILISATION, 'latency_seconds': LATENCY},
    'predicted': {a.name: predict(work, a) for a in ACCELERATORS},
    'predicted_population': {
      count: {n: population_efficiency(count, n) for n in DEVICES}
      for count in members
    },
  }


def lines(record: dict) -> list[str]:
  """The record as text."""
  compiled, formula = record['compiled'], record['formula']
  found = [
    f'{record["model"]}, batch {record["work"]["batch"]}, a step on each of '
    f'{compiled["devices"]} devices',
    f'{"":18}{"formula":>18}{"compiled":>18}',
    *(
      f'{name:18}{formula[name]:>18,.0f}{compiled[name]:>18,.0f}'
      for name in formula
    ),
  ]
  for each in record['populations']:
    compiled, formula = each['compiled'], each['formula']
    rows, columns = compiled['divided']
    found += [
      '',
      f'{compiled["members"]} members, {compiled["mapping"]}, on {rows} x '
      f'{columns} devices: a step on each',
      *(
        f'{name:18}{formula[name]:>18,.0f}{compiled[name]:>18,.0f}'
        for name in formula
      ),
      f'{"temporary_bytes":36}{compiled["temporary_bytes"]:>18,.0f}',
    ]
  for name, rows in record['predicted'].items():
    found += [
      '',
      f'predicted efficiency: {name}',
      f'{"devices":>8}{"batch divided":>16}{"a batch each":>16}',
    ]
    for row in rows:
      cells = [
        f'{row[case]["efficiency"]:.0%}' if case in row else ''
        for case in ('divided', 'each')
      ]
      found.append(f'{row["devices"]:>8}{cells[0]:>16}{cells[1]:>16}'.rstrip())
  found += ['', 'predicted efficiency: populations']
  found.append(
    f'{"members":>8}' + ''.join(f'{n:>8}' for n in DEVICES) + ' devices'
  )
  for count, row in record['predicted_population'].items():
    found.append(f'{count:>8}' + ''.join(f'{x:>8.0%}' for x in row.values()))
  return found


def main() -> None:
  """Compiles, predicts, prints, and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m fer_jax.benchmark.scaling',
    description='Formulas beside what XLA compiles, and predictions.',
  )
  parser.add_argument('config', help='config file in Python')
  parser.add_argument('--classes', type=int, default=7)
  parser.add_argument('--members', type=int, nargs='*', default=[10, 100, 256])
  parser.add_argument('--json', help='file to write the record to')
  values = parser.parse_args()
  flag = '--xla_force_host_platform_device_count=8'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from fer_jax import files
  from fer_jax.errors import UserError

  try:
    files.require_writable(values.json)
  except UserError as error:
    parser.error(str(error))
  config = runpy.run_path(values.config)['get_config']()
  record = measure(config, values.classes, values.members)
  print('\n'.join(lines(record)))
  files.write_result(values.json, record)


if __name__ == '__main__':
  main()
