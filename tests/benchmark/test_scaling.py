"""What is read of compiled programs, in every form that XLA writes it in."""

import pytest

from fer_jax.benchmark import scaling

SUM = (
  '%%sum = f32[64]{0} all-reduce(%%p), channel_id=1, replica_groups=%s, to=%%a'
)


@pytest.mark.parametrize(
  ('groups', 'size'),
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[1,8]<=[8]', 8),
    ("mesh['member'=1,'data'=8] {'data'}", 8),
    ("mesh['member'=2,'data'=4] {'member','data'}", 8),
    ("mesh['member'=2,'data'=4] {'member'}", 2),
  ],
)
def test_how_many_devices_take_part(groups, size):
  assert scaling.group_sizes(SUM % groups) == {size}


def test_groups_of_another_form_are_told():
  with pytest.raises(ValueError, match='no groups in'):
    scaling.group_sizes(SUM % 'all of them')
