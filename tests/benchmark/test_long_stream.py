"""The long stream reads every image once, under its own label."""

import numpy as np
import pytest

from fer_jax.benchmark import long_stream


def test_every_image_comes_once(tmp_path, monkeypatch):
  folder = tmp_path / 'set'
  long_stream.write(folder, 300)
  looks = long_stream.stream(folder, 300, batch_size=32, looks=3)
  # Ten batches, the last of 12 images.
  assert [look.images for look in looks] == [96, 192, 288, 300]
  assert all(look.resident_bytes > 2**20 for look in looks)

  wrong = long_stream.opened(folder, 300)
  wrong.table['label'] = np.roll(wrong.table['label'], 1)
  monkeypatch.setattr(long_stream, 'opened', lambda *_: wrong)
  with pytest.raises(RuntimeError, match='images of other labels'):
    long_stream.stream(folder, 300, batch_size=32, looks=3)
