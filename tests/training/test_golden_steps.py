"""Steps on this machine against those that another one recorded.

The same means, as in the design: gradients from one state to 1e-5 of each
array's largest element, the losses of 20 float32 steps to 1e-4. It holds
whatever the processor, the version of XLA and its flags, and the number of
devices.
"""

import golden_steps
import pytest


def test_steps_are_those_recorded_on_another_machine():
  expected, found = golden_steps.recorded(), golden_steps.taken()
  assert found['gradients'].keys() == expected['gradients'].keys()
  for name, there in expected['gradients'].items():
    here = found['gradients'][name]
    # Below, a gradient is rounding: of what batch normalisation takes out.
    slack = 1e-5 * max(there['largest'], 1e-3)
    for fact in ('largest', 'elements'):
      assert here[fact] == pytest.approx(there[fact], rel=0, abs=slack), name
    norm = max(there['norm'], 1e-3)
    assert here['norm'] == pytest.approx(there['norm'], rel=0, abs=1e-5 * norm)
  assert found['losses'] == pytest.approx(expected['losses'], rel=1e-4)
  assert len(found['losses']) == golden_steps.STEPS
  # They have learnt something, so that an error has had time to grow.
  assert found['losses'][-1] < 0.8 * found['losses'][0]
