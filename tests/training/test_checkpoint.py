"""Checkpoints: what is kept, and that no damaged one is ever loaded."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training import checkpoint
from fer_jax.training.state import HPARAMS, TrainState, initial_state


def _state(step=0, best_step=0) -> TrainState:
  params = {
    'layers': {0: {'kernel': jax.random.normal(jax.random.key(step), (3, 4))}},
    'bias': jnp.full((4,), float(step)),
  }
  state = initial_state(
    params,
    {'mean': jnp.ones(4) * step},
    optax.scale_by_adam().init(params),
    dict.fromkeys(HPARAMS, 0.5),
    ema=True,
  )
  return state._replace(
    step=jnp.asarray(step, jnp.int32),
    progress=state.progress._replace(
      best_step=jnp.asarray(best_step, jnp.int32)
    ),
  )


def _write(workdir, steps_and_best):
  writer = checkpoint.Writer(workdir)
  for epoch, (step, best_step) in enumerate(steps_and_best, 1):
    writer.save(_state(step, best_step), epoch=epoch)
  writer.close()


def _flip_bit(path: pathlib.Path, at: float = 0.5) -> None:
  content = bytearray(path.read_bytes())
  content[int(at * (len(content) - 1))] ^= 1
  path.write_bytes(bytes(content))


@pytest.mark.parametrize('relative', [False, True])
def test_restores_what_was_saved(tmp_path, monkeypatch, relative):
  monkeypatch.chdir(tmp_path)
  workdir = pathlib.Path('run') if relative else tmp_path / 'run'
  _write(workdir, [(7, 7)])
  sealed = checkpoint.latest_intact(workdir)
  restored = checkpoint.restore(sealed, jax.eval_shape(lambda: _state(0)))
  jax.tree.map(np.testing.assert_array_equal, restored, _state(7, 7))
  # As a first state, so that one compiled program serves both.
  assert not any(x.committed for x in jax.tree.leaves(restored))
  assert (sealed.step, sealed.epoch, sealed.best_step) == (7, 1, 7)


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
  writer = checkpoint.Writer(tmp_path)
  state = _state(3)
  expected = jax.tree.map(np.array, state)
  writer.save(state, epoch=1)
  jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(
    state._replace(progress=None)
  )
  writer.close()
  restored = checkpoint.restore(
    checkpoint.latest_intact(tmp_path), jax.eval_shape(lambda: _state(0))
  )
  jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_the_copy_that_is_written_is_one_program_and_no_view(
  tmp_path, monkeypatch
):
  """Neither JAX nor XLA may hand on what it was given as a copy of it."""
  written, copied_alone = [], []
  save = checkpoint.ocp.save_async

  def noted(path, state):
    written.append(state)
    return save(path, state)

  monkeypatch.setattr(checkpoint.ocp, 'save_async', noted)
  with checkpoint.Writer(tmp_path) as writer:
    writer.save(_state(3), epoch=1)
    state = _state(4)
    monkeypatch.setattr(jnp, 'copy', copied_alone.append)
    writer.save(state, epoch=2)
  assert not copied_alone
  there, here = (
    {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
    for tree in (state, written[-1])
  )
  assert len(here) == len(jax.tree.leaves(state))
  assert not here & there
  expected = jax.tree.map(np.array, state)
  jax.tree.map(lambda x: x.delete(), state)
  jax.tree.map(np.testing.assert_array_equal, written[-1], expected)


def test_keeps_the_best_and_the_two_latest(tmp_path):
  _write(tmp_path, [(10, 10), (20, 20), (30, 20), (40, 20), (50, 20)])
  kept = [sealed.step for sealed in checkpoint.checkpoints(tmp_path)]
  assert kept == [20, 40, 50]
  assert checkpoint.best_intact(tmp_path).step == 20
  assert sorted(p.name for p in checkpoint.directory(tmp_path).iterdir()) == [
    '20', '40', '50'
  ]  # fmt: skip


def test_a_damaged_future_does_not_pass_for_the_latest(tmp_path):
  _write(tmp_path, [(10, 10), (70, 10), (80, 10)])
  for sealed in checkpoint.checkpoints(tmp_path)[1:]:
    _flip_bit(_data_files(sealed)[0])
  assert checkpoint.latest_intact(tmp_path).step == 10
  _write(tmp_path, [(20, 10)])
  assert checkpoint.steps(tmp_path) == [10, 20]
  assert checkpoint.latest_intact(tmp_path).step == 20


def _data_files(sealed):
  return sorted(
    p
    for p in sealed.path.rglob('*')
    if p.is_file() and p.name != checkpoint.MANIFEST and p.stat().st_size
  )


def test_a_flipped_bit_in_any_file_is_passed_over_aloud(tmp_path, caplog):
  _write(tmp_path / 'good', [(10, 10), (20, 20)])
  newest = checkpoint.checkpoints(tmp_path / 'good')[-1]
  damaged = 0
  for path in _data_files(newest):
    workdir = tmp_path / f'damaged{damaged}'
    shutil.copytree(tmp_path / 'good', workdir)
    _flip_bit(workdir / path.relative_to(tmp_path / 'good'))
    caplog.clear()
    assert checkpoint.latest_intact(workdir).step == 10
    assert f'checkpoints/20: {path.relative_to(newest.path)}' in caplog.text
    damaged += 1
  assert damaged >= 3


@pytest.mark.parametrize('harm', ['truncate', 'delete', 'manifest', 'unsealed'])
def test_other_damage_is_passed_over_aloud(tmp_path, caplog, harm):
  _write(tmp_path, [(10, 10), (20, 20)])
  newest = checkpoint.checkpoints(tmp_path)[-1]
  victim = max(_data_files(newest), key=lambda p: p.stat().st_size)
  if harm == 'truncate':
    victim.write_bytes(victim.read_bytes()[:-1])
  elif harm == 'delete':
    victim.unlink()
  elif harm == 'manifest':
    (newest.path / checkpoint.MANIFEST).write_text('{"step": 20,')
  else:
    (newest.path / checkpoint.MANIFEST).unlink()
  assert checkpoint.latest_intact(tmp_path).step == 10
  assert 'checkpoints/20' in caplog.text


def test_an_unsealed_checkpoint_is_written_anew(tmp_path):
  _write(tmp_path, [(10, 10), (20, 20)])
  (checkpoint.directory(tmp_path) / '20' / checkpoint.MANIFEST).unlink()
  _write(tmp_path, [(20, 20)])
  assert checkpoint.latest_intact(tmp_path).step == 20


def test_what_was_never_sealed_takes_no_good_ones_place(tmp_path):
  _write(tmp_path, [(10, 10), (13, 10)])
  (checkpoint.directory(tmp_path) / '13' / checkpoint.MANIFEST).unlink()
  _write(tmp_path, [(20, 20)])
  assert checkpoint.steps(tmp_path) == [10, 20]


def test_no_checkpoint_is_one_clear_line(tmp_path):
  assert checkpoint.latest_intact(tmp_path) is None
  with pytest.raises(UserError, match='holds no intact checkpoint'):
    checkpoint.best_intact(tmp_path)


def test_a_damaged_best_is_named(tmp_path):
  _write(tmp_path, [(10, 10), (20, 10), (30, 10)])
  best = checkpoint.checkpoints(tmp_path)[0]
  _flip_bit(_data_files(best)[0])
  with pytest.raises(UserError, match=r'best checkpoint .*10 is damaged'):
    checkpoint.best_intact(tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path):
  _write(tmp_path, [(10, 10)])
  other = _state(0)
  other = other._replace(params={**other.params, 'bias': jnp.zeros(5)})
  with pytest.raises(
    UserError, match=r'params\.bias is float32\[4\] there and float32\[5\]'
  ):
    checkpoint.restore(checkpoint.latest_intact(tmp_path), other)


def _reseal(folder: pathlib.Path, **changes):
  """As someone who means harm would."""
  path = folder / checkpoint.MANIFEST
  manifest = {**json.loads(path.read_text()), **changes}
  del manifest['digest']
  files.write_json(path, {**manifest, 'digest': files.digest(manifest)})


@pytest.mark.parametrize(
  'changes',
  [
    {'files': {'x' * 300: 'ab'}},
    {'step': float('inf')},
    {'step': 3},
    {'best_step': [4]},
    {'partial': {'taken': 3}},
  ],
)
def test_a_manifest_that_makes_no_sense_is_none(tmp_path, changes):
  _write(tmp_path, [(4, 4), (8, 8)])
  _reseal(tmp_path / 'checkpoints' / '8', **changes)
  (tmp_path / 'checkpoints' / '²').mkdir()
  assert checkpoint.latest_intact(tmp_path).step == 4


def test_what_orbax_cannot_read_is_one_line(tmp_path):
  _write(tmp_path, [(4, 4)])
  folder = tmp_path / 'checkpoints' / '4'
  (metadata,) = folder.rglob('_METADATA')
  metadata.write_text('{"tree_metadata": 3}')
  _reseal(folder, files=checkpoint._digests(folder))
  sealed = checkpoint.latest_intact(tmp_path)
  assert sealed.step == 4
  with pytest.raises(
    UserError, match=r'cannot read checkpoint .*4: '
  ) as refused:
    checkpoint.restore(sealed, jax.eval_shape(lambda: _state(0)))
  assert '\n' not in str(refused.value)
