"""Whole trainings of members on one device and on eight, beside each alone.

Run by `test_population` with eight CPU devices and float64.
"""

import jax
import numpy as np
import small_populations as small

from fer_jax.models import specification

OF_MODEL, EPOCHS = (2, 'float64'), 2


def wide(member):
  wider = {np.dtype('float32'): np.float64}
  state = member.state
  cast = {
    name: jax.tree.map(
      lambda x: x.astype(wider.get(x.dtype, x.dtype)), getattr(state, name)
    )
    for name in ('params', 'model_state', 'opt_state', 'ema')
  }
  return member._replace(state=state._replace(**cast))


def check(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def check_population(members, alone, mapping, devices):
  made = small.population_of(
    members, mapping, *OF_MODEL, devices=jax.devices()[:devices], epochs=EPOCHS
  )
  kernel = made._own.state.params['logits']['kernel']
  assert len(kernel.sharding.device_set) == devices
  assert kernel.shape[0] == (16 if devices == 8 else 9)
  records = []
  while made.training.any():
    for _ in made.blocks():
      pass
    records.append(made.finish_epoch())
  for m, (state, figures) in alone.items():
    jax.tree.map(check, made.member_state(m), state)
    for epoch, (training, validation) in enumerate(figures):
      record = records[epoch][m]
      jax.tree.map(check, record['train'], training)
      jax.tree.map(check, record['validation'], validation)
      assert record['step'] == (epoch + 1) * made.steps_per_epoch[m]
  print('checked', mapping, devices)


if __name__ == '__main__':
  assert len(jax.devices()) == 8
  specification.DTYPES += ('float64',)
  members = [wide(small.member(n, *OF_MODEL)) for n in range(9)]
  alone = {
    m: small.single_run(members[m], EPOCHS, *OF_MODEL) for m in (0, 1, 2, 8)
  }
  accuracy = [figures[-1][1]['accuracy'] for _, figures in alone.values()]
  assert min(accuracy) > 0.6, accuracy  # there was something to learn
  assert alone[8][0].params['logits']['kernel'].dtype == np.float64
  check_population(members, alone, 'in_turn', devices=1)
  check_population(members, alone, 'vmap', devices=8)
