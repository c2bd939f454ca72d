"""Several devices train to the result of one.

The reference is the single run on one device. The same means, as in the design:
gradients from one state to 1e-5, 20 float32 steps to 1e-4, whole trainings in
float64, to 1e-9. The checks are in `on_devices`, for a process that was started
with eight CPU devices.
"""

import pathlib

import jax
import many_devices
import pytest

from fer_jax.errors import UserError
from fer_jax.training import population, sharding


@pytest.mark.parametrize(
  ('precision', 'checks'), [('float64', 4), ('float32', 7)]
)
def test_devices_train_as_one_does(precision, checks):
  script = pathlib.Path(__file__).with_name('on_devices.py')
  passed = many_devices.checks_passed(
    script, precision, devices=8, x64=precision == 'float64'
  )
  assert passed == checks


def test_one_device_has_no_mesh_and_a_batch_must_divide():
  one = jax.devices()[:1]
  assert sharding.data_mesh(7, one) is None
  assert sharding.divided({'a': 1}, None) == {'a': 1}
  with pytest.raises(UserError, match=r'is 30; allowed .* of 4'):
    sharding.data_mesh(30, one * 4)


def test_devices_left_over_divide_the_batches_of_members():
  assert population.divisions(1, 5, 64) == (1, 1)
  assert population.divisions(8, 10, 64) == (8, 1)
  assert population.divisions(8, 2, 64) == (2, 4)
  assert population.divisions(8, 2, 6) == (2, 3)
  assert population.divisions(7, 2, 7) == (2, 1)
