"""Every reader of what users and strangers give, with good files to spoil.

A target takes a `random.Random` and an empty folder, makes one bad input in
that folder and gives it to the reader as a command would. It returns whatever
the reader made of it; what it may raise is `UserError`, and where a reader's
contract says so `ValueError` of its own.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import fuzz_mutations as mutations
import jax
import numpy as np
from PIL import Image

from fer_jax import __main__ as command_line
from fer_jax import config as config_lib
from fer_jax import datasets, files, models
from fer_jax.claims import running, table
from fer_jax.commands import data as data_verb
from fer_jax.commands import summary as summary_verb
from fer_jax.data import ledger, twins
from fer_jax.datasets import fer2013, pictures, sources
from fer_jax.datasets.records import Intake, RecordWriter
from fer_jax.datasets.registry import builder_module, class_names_of
from fer_jax.errors import UserError
from fer_jax.evaluation import (
  compare,
  cross_dataset,
  crossval,
  evaluate,
  report,
  runs,
  sweeps,
)
from fer_jax.models import pretrained
from fer_jax.models.pretrained.layers import Variable
from fer_jax.training import checkpoint, loop
from fer_jax.training.state import HPARAMS, TrainState, initial_state
from fer_jax.tuning import space

TESTS = pathlib.Path(__file__).resolve().parents[1]
ARCHIVES = ('zip', 'tar', 'tar.gz', 'tar.bz2', 'tar.xz')
# Few draws: the figures themselves are tested elsewhere.
_DRAWS = 5

Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader under test.

  Attributes:
    share: of all cases, in no unit.
    run: makes a bad input in a folder and reads it.
  """

  share: float
  run: Callable[[random.Random, pathlib.Path], Any]


# Good files in miniature.


def _picture(
  seed: int, size: tuple[int, int], mode: str = 'RGB', form: str = 'PNG'
) -> bytes:
  """A picture file of noise; `size` is (width, height)."""
  draws = np.random.default_rng(seed)
  channels = {'L': (), 'RGB': (3,), 'RGBA': (4,), 'CMYK': (4,)}
  if mode in channels:
    shape = (size[1], size[0], *channels[mode])
    image = Image.fromarray(draws.integers(0, 256, shape, np.uint8), mode)
  else:
    image = Image.fromarray(
      draws.integers(0, 256, (size[1], size[0]), np.uint8)
    ).convert(mode)
  buffer = io.BytesIO()
  image.save(buffer, form)
  return buffer.getvalue()


def _animation(form: str) -> bytes:
  frames = [Image.new('RGB', (6, 5), colour) for colour in ('red', 'blue')]
  buffer = io.BytesIO()
  frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
  return buffer.getvalue()


@functools.cache
def _pictures() -> tuple[tuple[str, bytes], ...]:
  stills = [
    ('PNG', 'L'),
    ('PNG', 'RGB'),
    ('PNG', 'RGBA'),
    ('PNG', 'P'),
    ('PNG', '1'),
    ('JPEG', 'L'),
    ('JPEG', 'RGB'),
    ('JPEG', 'CMYK'),
    ('TIFF', 'L'),
    ('TIFF', 'RGB'),
    ('BMP', 'RGB'),
    ('WEBP', 'RGB'),
    ('PPM', 'L'),
    ('GIF', 'P'),
  ]
  made = [
    (form, _picture(seed, (13, 9), mode, form))
    for seed, (form, mode) in enumerate(stills)
  ]
  packed = io.BytesIO()
  Image.new('RGB', (64, 64)).save(packed, 'TIFF', compression='tiff_lzw')
  return (
    *made,
    ('TIFF', packed.getvalue()),
    ('TIFF', _animation('TIFF')),
    ('WEBP', _animation('WEBP')),
  )


@functools.cache
def _fer2013_csv() -> bytes:
  draws = np.random.default_rng(0)
  rows = ['emotion,pixels,Usage']
  for label, usage in enumerate(
    ('Training', 'Training', 'PublicTest', 'PrivateTest')
  ):
    pixels = ' '.join(map(str, draws.integers(0, 256, 48 * 48)))
    rows.append(f'{label},{pixels},{usage}')
  return ('\n'.join(rows) + '\n').encode()


@functools.cache
def _ferplus_csv() -> bytes:
  return (
    b'Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,'
    b'contempt,unknown,NF\n'
    b'Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n'
    b'Training,fer0000001.png,6,0,1,1,0,0,0,0,2,0\n'
    b'PublicTest,fer0000002.png,0,9,0,0,0,0,0,0,1,0\n'
    b'PrivateTest,fer0000003.png,5,5,0,0,0,0,0,0,0,0\n'
  )


@functools.cache
def _grey(seed: int, side: int, form: str = 'PNG') -> bytes:
  return _picture(seed, (side, side), 'L', form)


@functools.cache
def _sets() -> dict[str, tuple[str, dict[str, Any], Files]]:
  """(data set, options, files) by a name of the layout."""
  colour = {seed: _picture(seed, (7, 5)) for seed in range(4)}
  attributes = b'1.5\t2.5\n' * 5 + b'0\n1\n2\n'
  aligned = _picture(1, (100, 100), form='JPEG')
  rafdb = {
    'basic/EmoLabel/list_patition_label.txt': (
      b'train_00001.jpg 5\ntrain_00002.jpg 1\ntest_0001.jpg 7\n'
    )
  }
  for stem in ('train_00001', 'train_00002', 'test_0001'):
    rafdb[f'basic/Image/aligned/{stem}_aligned.jpg'] = aligned
    rafdb[f'basic/Annotation/manual/{stem}_manu_attri.txt'] = attributes
  ckplus = {}
  for subject, label in (('S005', b'   3.0000000e+00\n'), ('S010', b'7\n')):
    for frame in (1, 2, 3, 4):
      stem = f'{subject}/001/{subject}_001_{frame:08d}'
      ckplus[f'CK/cohn-kanade-images/{stem}.png'] = _grey(frame, 10)
    ckplus[f'CK/Emotion/{subject}/001/{subject}_001_00000004_emotion.txt'] = (
      label
    )
  ck48 = {
    f'{name}/S01{n}_004_0000001{k}.png': _grey(k, 48)
    for n, name in enumerate(('anger', 'happy'))
    for k in (7, 8)
  }
  oahega = {
    f'{name}/{k}.png': colour[k]
    for k, name in enumerate(('Ahegao', 'Angry', 'Happy', 'Neutral'))
  } | {'Sad/s.jpg': colour[0], 'Surprise/t.png': colour[1]}
  table = ''.join(f',{p},{p.split("/")[0]}\n' for p in oahega)
  oahega['data.csv'] = f',path,label\n{table}'.encode()
  folder = {
    'mine/train/angry/a.png': colour[0],
    'mine/train/happy/b.png': colour[1],
    'mine/test/angry/c.png': colour[2],
    'mine/test/happy/d.png': colour[3],
    'mine/people.csv': (
      b'file,subject\ntrain/angry/a.png,one\ntrain/happy/b.png,two\n'
      b'test/angry/c.png,three\ntest/happy/d.png,four\n'
    ),
  }
  csv = {'fer2013.csv': _fer2013_csv()}
  return {
    'fer2013 csv': ('fer2013', {}, csv),
    'fer2013 folders': (
      'fer2013',
      {},
      {
        'x/train/angry/1.png': _grey(1, 48),
        'x/train/happy/2.jpg': _grey(2, 48, 'JPEG'),
        'x/test/sad/PrivateTest_3.png': _grey(3, 48),
      },
    ),
    'ferplus': ('ferplus', {}, {**csv, 'fer2013new.csv': _ferplus_csv()}),
    'rafdb': ('rafdb', {}, rafdb),
    'ckplus': ('ckplus', {}, ckplus),
    'ckplus clips': ('ckplus', {'form': 'clips'}, ckplus),
    'ckplus 48': ('ckplus', {}, ck48),
    'jaffe': (
      'jaffe',
      {},
      {
        f'jaffe/{stem}.tiff': _grey(seed, 256, 'TIFF')
        for seed, stem in enumerate(('KA.AN1.39', 'KM.DI2.4'))
      },
    ),
    'oahega': ('oahega', {}, oahega),
    'image_folder': ('image_folder', {'subjects': 'people.csv'}, folder),
  }


# Data sets.


def _changed_member(rng: random.Random, content: bytes) -> bytes:
  if content.startswith(b'\x89PNG') and rng.random() < 0.4:
    return mutations.changed_png(rng, content)
  if content.isascii():
    return mutations.changed_text(rng, content)
  return mutations.changed_bytes(rng, content)


def _write_folder(
  rng: random.Random, root: pathlib.Path, members: Files
) -> pathlib.Path:
  """The files on disk; one of them changed, gone, renamed or a link."""
  members = dict(members)
  name = rng.choice(list(members))
  what = rng.random()
  if what < 0.7:
    members[name] = _changed_member(rng, members[name])
  elif what < 0.8:
    del members[name]
  elif what < 0.9:
    parts = name.split('/')
    at = rng.randrange(len(parts))
    odd = rng.choice(('İ', 'x' * 200, '\x1b[31m', 'a\nb', '\udcff', '%', ' '))
    parts[at] = rng.choice((odd, odd + parts[at], parts[at].upper()))
    members['/'.join(parts)] = members.pop(name)
  root.mkdir()
  for member, content in members.items():
    path = root / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  if what >= 0.9:
    path = root / name
    path.unlink()
    target = rng.choice(('/dev/zero', '/etc/passwd', '.', '..', 'nowhere'))
    if rng.random() < 0.2:
      os.mkfifo(path)
    else:
      path.symlink_to(target)
  return root


def _write_source(
  rng: random.Random, folder: pathlib.Path, members: Files
) -> pathlib.Path:
  form = rng.choice(('file', 'folder', 'folder', *ARCHIVES))
  name, content = next(iter(members.items()))
  if form == 'file' and len(members) == 1:
    path = folder / name
    path.write_bytes(_changed_member(rng, content))
    return path
  if form in ('file', 'folder'):
    return _write_folder(rng, folder / 'source', members)
  path = folder / f'source.{form}'
  path.write_bytes(
    mutations.changed_archive(rng, form, list(members.items()), _changed_member)
  )
  return path


def _read_set(layout: str, rng: random.Random, folder: pathlib.Path) -> int:
  """What `data build` does, all but the last part, TFDS' own writing."""
  name, options, members = _sets()[layout]
  path = _write_source(rng, folder, members)
  options = datasets.resolve_options(name, options)
  module = builder_module(name)
  build = folder / 'build'
  build.mkdir()
  with sources.Source(path, spool_dir=build) as source:
    source.checksum()
    classes = class_names_of(module, options, source)
    intake = Intake()
    writer = RecordWriter(name, build, classes, intake, rng.random() < 0.7)
    try:
      examples = module.examples(source, options, intake)
      for _ in writer._records(examples):
        pass
      writer.cache.finish()
    finally:
      writer.cache.close()
    json.dumps([intake.notes, intake.first_rejected])
    return len(writer.table.arrays().get('id', ()))


def _build_set(rng: random.Random, folder: pathlib.Path) -> int:
  """`data build` in full, and every row read back."""
  layout = rng.choice(list(_sets()))
  name, options, members = _sets()[layout]
  path = _write_source(rng, folder, members)
  with contextlib.redirect_stderr(io.StringIO()):
    dataset = datasets.build(
      name, data_dir=folder / 'data', source=path, skip_bad_rows=True, **options
    )
  return len(dataset.read(range(len(dataset))))


@functools.cache
def _built() -> Files:
  """The files of a small build, made elsewhere: its writer has threads, which
  a worker that is forked later would lack."""
  with tempfile.TemporaryDirectory() as root:
    path = pathlib.Path(root, 'fer2013.csv')
    path.write_bytes(_fer2013_csv())
    arguments = ['data', 'build', '--dataset=fer2013', f'--source={path}']
    subprocess.run(
      [sys.executable, '-m', 'fer_jax', *arguments, f'--data_dir={root}'],
      check=True,
      capture_output=True,
      cwd=TESTS.parent,
    )
    parent = path.with_name('fer2013')
    return {
      str(file.relative_to(parent)): file.read_bytes()
      for file in sorted(parent.glob('[0-9]*/**/*'))
      if file.is_file()
    }


def _open_build(rng: random.Random, folder: pathlib.Path) -> int:
  """A build of which one file was changed."""
  members = dict(_built())
  name = rng.choice(list(members))
  if name.endswith('dataset.json'):
    members[name] = mutations.changed_json(rng, members[name])
  else:
    members[name] = mutations.changed_bytes(rng, members[name])
  return _read_build(folder, members)


def _read_build(folder: pathlib.Path, members: Files) -> int:
  for member, content in members.items():
    file = folder / 'fer2013' / member
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  with contextlib.redirect_stderr(io.StringIO()):
    dataset = datasets.load('fer2013', data_dir=folder)
    dataset.read(range(len(dataset)))
    return len(dataset.read_records(range(len(dataset))))


def warm_up(folder: pathlib.Path) -> None:
  """Lets TFDS import what it imports late, which is a great deal."""
  _read_build(folder, _built())
  path = folder / 'fer2013.csv'
  path.write_bytes(_fer2013_csv())
  with contextlib.redirect_stderr(io.StringIO()):
    datasets.build('fer2013', data_dir=folder / 'again', source=path)


def _archive(rng: random.Random, folder: pathlib.Path) -> int:
  """Any archive, listed and read in full."""
  members = [
    ('a/one.txt', b'first\nsecond\n' * 20),
    ('a/two.bin', bytes(range(256)) * 4),
    ('b.txt', b''),
  ]
  form = rng.choice(ARCHIVES)
  path = folder / f'source.{form}'
  path.write_bytes(
    mutations.changed_archive(rng, form, members, mutations.changed_bytes)
  )
  with sources.Source(path, spool_dir=folder) as source:
    source.checksum()
    return sum(len(source.read(name)) for name in source.members)


def _decode(rng: random.Random, folder: pathlib.Path) -> tuple[int, ...]:
  """A picture's bytes, whose errors are the reader's own ValueError."""
  del folder
  form, content = rng.choice(_pictures())
  if form == 'PNG' and rng.random() < 0.6:
    content = mutations.changed_png(rng, content)
  else:
    content = mutations.changed_bytes(rng, content)
  try:
    return pictures.decode(content).shape
  except ValueError as error:
    raise UserError(str(error)) from error


def _pixels(rng: random.Random, folder: pathlib.Path) -> int:
  """The pixels of one row of FER2013."""
  del folder
  field = b' '.join(b'%d' % (k % 256) for k in range(48 * 48))
  try:
    return len(fer2013.parse_pixels(mutations.changed_bytes(rng, field)))
  except ValueError as error:
    raise UserError(str(error)) from error


# Runs.


@functools.cache
def _module(name: str) -> Any:
  """A module of the tests, which makes good files for us too."""
  path = TESTS / name
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  spec = importlib.util.spec_from_file_location(f'fuzz_{path.stem}', path)
  assert spec is not None
  assert spec.loader is not None
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


@functools.cache
def _run_files() -> Files:
  """The files of an evaluated run, in miniature."""
  made = _module('evaluation/conftest.py')
  made.N_BOOT = _DRAWS
  labels = np.arange(28) % 7
  images = np.zeros((28, 4, 4, 1), np.uint8)
  with tempfile.TemporaryDirectory() as root:
    run = made.make_run(
      pathlib.Path(root, 'run'), epochs=2, images=images, labels=labels
    )
    return {file.name: file.read_bytes() for file in run.iterdir()}


def _changed_run_file(rng: random.Random, name: str, content: bytes) -> bytes:
  if name.endswith('.json'):
    return mutations.changed_json(rng, content)
  if name.endswith('.jsonl'):
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = mutations.changed_json(rng, lines[at])
    return b'\n'.join(lines) + b'\n'
  return changed_npz(rng, content)


def changed_npz(rng: random.Random, content: bytes) -> bytes:
  """An npz with an array that is no longer what it was."""
  what = rng.random()
  if what < 0.6:
    return mutations.changed_zip(rng, content)
  with np.load(io.BytesIO(content)) as archive:
    arrays = dict(archive)
  name = rng.choice(list(arrays))
  array = arrays[name]
  arrays[name] = rng.choice(
    (
      np.atleast_1d(array)[:0],
      array[..., None],
      array.reshape(-1)[:1],
      np.asarray(None),
      np.full(3, 'x' * 100),
      np.zeros(array.shape, [('a', 'i4')]),
      np.zeros(array.shape, complex),
      np.full(array.shape, np.nan),
      np.full(array.shape, np.iinfo(np.int64).min),
      np.zeros(array.shape, 'M8[s]'),
    )
  )
  buffer = io.BytesIO()
  if what < 0.7:
    # As an attacker would: what is unpickled when it is loaded carelessly.
    arrays[name] = np.array([_Trap()], object)
  np.savez(buffer, **arrays)
  return buffer.getvalue()


class _Trap:
  """Runs a command when it is unpickled."""

  def __reduce__(self):
    return os.system, ('touch /tmp/fuzz-was-here',)


def _write_run(rng: random.Random, folder: pathlib.Path) -> pathlib.Path:
  members = dict(_run_files())
  name = rng.choice(list(members))
  members[name] = _changed_run_file(rng, name, members[name])
  if name.startswith(('predictions', 'metrics_')) and rng.random() < 0.5:
    _make_consistent(members, name.partition('_')[2].partition('.')[0])
  path = folder / 'run'
  path.mkdir()
  for member, content in members.items():
    (path / member).write_bytes(content)
  return path


def _make_consistent(members: Files, split: str) -> None:
  """Makes the digests fit, as someone who means harm would."""
  from fer_jax.evaluation import workdir as workdir_lib

  with contextlib.suppress(Exception):
    content = io.BytesIO(members[f'predictions_{split}.npz'])
    with np.load(content, allow_pickle=False) as arrays:
      ids, logits, labels = (arrays[n] for n in ('id', 'logits', 'label'))
    metrics = json.loads(members[f'metrics_{split}.json'])
    metrics['ids_sha256'] = workdir_lib.digest_of_ids(ids)
    metrics['predictions_sha256'] = workdir_lib.digest_of_predictions(
      ids, logits, labels
    )
    members[f'metrics_{split}.json'] = json.dumps(metrics).encode()


def _read_run(rng: random.Random, folder: pathlib.Path) -> Any:
  run = runs.read(_write_run(rng, folder))
  runs.training_seconds(run), runs.images_per_second(run)
  return runs.best_validation(run), runs.group([run, run])


def _compare(rng: random.Random, folder: pathlib.Path) -> Any:
  changed = _write_run(rng, folder)
  good = folder / 'good'
  good.mkdir()
  for member, content in _run_files().items():
    (good / member).write_bytes(content)
  return compare.compare([good, changed], n_boot=_DRAWS)


def _report(rng: random.Random, folder: pathlib.Path) -> Any:
  return report.write_report([_write_run(rng, folder)])


def _read_crossval(rng: random.Random, folder: pathlib.Path) -> Any:
  return crossval.text(crossval.read(_write_crossval(rng, folder))[0])


def _report_crossval(rng: random.Random, folder: pathlib.Path) -> Any:
  return report.write_report([_write_crossval(rng, folder)])


def _write_crossval(rng: random.Random, folder: pathlib.Path) -> pathlib.Path:
  """A cross-validation of which a file was changed, mostly its figures."""
  members = dict(_crossval_files())
  name = crossval.METRICS
  if rng.random() < 0.2:
    name = rng.choice([n for n in members if '/' in n])
  members[name] = _changed_run_file(rng, name, members[name])
  for member, content in members.items():
    path = folder / 'folds' / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder / 'folds'


@functools.cache
def _crossval_files() -> Files:
  """The files of two seeds of one fold, which is all that is reckoned with."""
  made = _module('evaluation/conftest.py')
  made.N_BOOT = _DRAWS
  labels = np.arange(14) % 7
  with tempfile.TemporaryDirectory() as root:
    workdir = pathlib.Path(root)
    members = []
    for seed in range(2):
      run = made.make_run(
        workdir / f'seed{seed}',
        epochs=1,
        images=np.zeros((14, 4, 4, 1), np.uint8),
        labels=labels,
        splits=('test',),
      )
      members.append((0, seed, run))
    folds = crossval.read_folds(members)
    facts = json.loads((members[0][-1] / 'run.json').read_bytes())
    metrics = {
      **{name: facts[name] for name in ('model', 'dataset', 'environment')},
      'protocol': facts['protocol'] | {'options': {}, 'digests': []},
      **crossval.figures(folds, n_boot=_DRAWS),
      'members': [
        {'fold': fold, 'seed': seed, 'workdir': run.name}
        for fold, seed, run in members
      ],
    }
    crossval.write(workdir, folds, metrics)
    return {
      str(file.relative_to(workdir)): file.read_bytes()
      for file in sorted(workdir.rglob('*'))
      if file.is_file()
    }


def _audit(rng: random.Random, folder: pathlib.Path) -> Any:
  """The audit that a claim's run has kept, pooled and shown."""
  shares = {'itself': 0.0, 'exact_copy': 0.25, 'twin': None, 'subject': 1}
  kept = {
    'digest': 'ab',
    'figures': {
      'share_of_test_seen': shares,
      'nearest_neighbour': {'accuracy': 0.5},
    },
  }
  path = folder / 'audit.json'
  path.write_bytes(mutations.changed_json(rng, json.dumps(kept).encode()))
  figures = running._read_audit(path)['figures']
  pooled = running._pooled_audit([{'labels': [0, 1], 'audit': figures}] * 2)
  return table._copy_seen(pooled)


# What is kept beside a data set, and checkpoints.


_MEMORY_SETS = 'data/memory_sets.py'


def _small_set(folder: pathlib.Path) -> Any:
  """Six images in memory, of which some are twins."""
  draws = np.random.default_rng(0)
  images = list(draws.integers(0, 200, (4, 6, 6, 1), np.uint8))
  images += [images[0], images[1] + 9]
  root = folder / 'set' / 'build'
  root.mkdir(parents=True)
  return _module(_MEMORY_SETS).MemorySet(images, {}, root)


def _ledger(rng: random.Random, folder: pathlib.Path) -> Any:
  """A ledger of which a line was changed, read, added to and read again."""
  dataset = _small_set(folder)

  def look(run: str, event: str) -> None:
    ledger.record(
      dataset,
      run=run,
      protocol='official',
      split='test',
      figures={'accuracy': 0.5},
      test_digest='ab',
      event=event,
    )

  events = (ledger.LOOK, ledger.OPENED, ledger.AUDITED)
  for event in events:
    look('before', event)
  path = ledger.path(dataset)
  path.write_bytes(_changed_run_file(rng, 'ledger.jsonl', path.read_bytes()))
  with contextlib.redirect_stderr(io.StringIO()):
    for event in events:
      before = ledger.read(dataset, event)
      look('after', event)
      assert ledger.read(dataset, event)[: len(before)] == before
    return evaluate.looks(dataset, 'official', 'test', 'cd', 'ab')


def _twins(rng: random.Random, folder: pathlib.Path) -> Any:
  """Twins that were kept, changed; what does not fit is made anew."""
  dataset = _small_set(folder)
  with contextlib.redirect_stderr(io.StringIO()):
    expected = twins.find(dataset)
    path = twins.cache_path(dataset, twins.THRESHOLD)
    path.write_bytes(changed_npz(rng, path.read_bytes()))
    found = twins.find(dataset)
  rows = np.arange(len(dataset))
  found.groups(rows), found.of_rows(rows[::2])
  found.exact_among(rows[:3], rows[3:]), found.any_among(rows[:3], rows[3:])
  return np.array_equal(found.image, expected.image)


def _state() -> TrainState:
  draws = np.random.default_rng(0)
  params = {'kernel': draws.random((5, 3), np.float32)}
  state = initial_state(params, {}, (), dict.fromkeys(HPARAMS, 0.5), ema=False)
  return jax.tree.map(np.asarray, state._replace(step=np.int32(4)))


_WRITES_A_CHECKPOINT = """
import pathlib, sys
import jax.numpy as jnp, jax
import fuzz_targets
from fer_jax.training import checkpoint

writer = checkpoint.Writer(pathlib.Path(sys.argv[1]))
state = jax.tree.map(jnp.asarray, fuzz_targets._state())
writer.save(state, epoch=1)
writer.close()
"""


@functools.cache
def _checkpoint_files() -> Files:
  """A checkpoint, made elsewhere as `_built`."""
  with tempfile.TemporaryDirectory() as root:
    subprocess.run(
      [sys.executable, '-c', _WRITES_A_CHECKPOINT, root],
      check=True,
      capture_output=True,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS / 'fuzz')]),
      },
    )
    return {
      str(file.relative_to(root)): file.read_bytes()
      for file in sorted(pathlib.Path(root).rglob('*'))
      if file.is_file()
    }


def _restore(rng: random.Random, folder: pathlib.Path) -> Any:
  """A checkpoint of which one file was changed; at times sealed anew, as by
  someone who means harm."""
  members = dict(_checkpoint_files())
  seal = next(name for name in members if name.endswith(checkpoint.MANIFEST))
  name = rng.choice(list(members))
  if rng.random() < 0.3:
    name = seal
  if name == seal or members[name].startswith(b'{'):
    members[name] = mutations.changed_json(rng, members[name])
  else:
    members[name] = mutations.changed_bytes(rng, members[name])
  for member, content in members.items():
    path = folder / 'run' / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  if rng.random() < 0.7:
    with contextlib.suppress(UserError, TypeError, AttributeError):
      path = folder / 'run' / seal
      manifest = files.read_json(path)
      if name != seal:
        manifest['files'] = checkpoint._digests(path.parent)
      manifest.pop('digest', None)
      manifest['digest'] = files.digest(manifest)
      path.write_text(json.dumps(manifest))
  best = checkpoint.best_intact(folder / 'run')
  state = checkpoint.restore(best, _state())
  assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, _state())
  return state


# Configs.


@functools.cache
def _configs() -> tuple[bytes, ...]:
  pairs = [(name, 'fer2013') for name in models.available()]
  pairs += [('residual_bilstm', name) for name in datasets.names()]
  return tuple(
    json.dumps(
      config_lib.to_json(config_lib.get_base(model=model, dataset=dataset))
    ).encode()
    for model, dataset in pairs
  )


def _config_json(rng: random.Random, folder: pathlib.Path) -> Any:
  path = folder / 'config.json'
  path.write_bytes(mutations.changed_json(rng, rng.choice(_configs())))
  config = config_lib.load_json(path)
  config_lib.validate(config)
  return config_lib.to_json(config)


# Outside all cases, for what it holds is code.
CONFIG_FILE = pathlib.Path(__file__).with_name('fuzz_config.py')


@functools.cache
def _field_values() -> tuple[tuple[str, Any], ...]:
  return tuple(config_lib.flatten(config_lib.get_base()))


def _good_text(rng: random.Random, value: Any) -> str:
  """A text for a field that has a value: the same, or one like it."""
  if isinstance(value, bool):
    return rng.choice(('true', 'false'))
  if isinstance(value, int | float) and rng.random() < 0.5:
    value = rng.choice((2 * value, value / 2, value + 1, 1, 0))
    return str(int(value) if rng.random() < 0.5 else value)
  return str(value)


def _value_text(rng: random.Random) -> str:
  if rng.random() < 0.5:
    return rng.choice(mutations.TEXTS)
  value = mutations.changed_value(rng, rng.choice(([1, 2], {'a': 1}, 0, 'x')))
  with contextlib.suppress(ValueError):
    return rng.choice((repr, json.dumps))(value)
  return '1'


def _overrides(rng: random.Random, folder: pathlib.Path) -> Any:
  """`train --config=... --config.a.b=...` up to where it would begin.

  In a child: flags are global, and overrides of one case would be there in
  the next.
  """
  arguments = []
  for _ in range(rng.choice((1, 1, 2))):
    name, value = rng.choice(_field_values())
    good = rng.random() < 0.5
    text = _good_text(rng, value) if good else _value_text(rng)
    if rng.random() < 0.1:
      name = mutations.changed_bytes(rng, name.encode()).decode('latin-1')
    arguments.append(f'--config.{name[:500]}={text}')
  config = str(CONFIG_FILE)
  if rng.random() < 0.2:
    config += ':' + rng.choice((*models.available(), *mutations.TEXTS))
  arguments = [
    a.replace('\x00', '')
    for a in (f'--config={config}', f'--workdir={folder}/w', *arguments)
  ]
  return in_child(lambda: _train(arguments))


def _train(arguments: list[str]) -> int:
  def validate(config, workdir, **_):
    config_lib.validate(config)
    raise SystemExit(0)  # it would begin

  loop.train = validate
  return command_line.main(['fer_jax', 'train', *arguments])


def in_child(function: Callable[[], int]) -> str:
  """What a command says in a process of its own.

  Raises:
    AssertionError: it ends neither in status 0 nor in 2 with one line.
  """
  reading, writing = os.pipe()
  child = os.fork()
  if not child:
    status = 99
    try:
      os.close(reading)
      os.dup2(writing, 2)
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115
      sys.stderr = open(2, 'w', closefd=False)  # noqa: SIM115
      status = function()
    except SystemExit as error:
      status = error.code if isinstance(error.code, int) else 98
    except BaseException as error:
      with contextlib.suppress(BaseException):
        import traceback

        os.write(2, ''.join(traceback.format_exception(error))[-3000:].encode())
    finally:
      with contextlib.suppress(BaseException):
        sys.stderr.flush()
      os._exit(status)
  os.close(writing)
  try:
    with open(reading, 'rb') as stream:
      said = stream.read()
  finally:
    _, ended = os.waitpid(child, 0)
  text = said.decode()
  status = os.waitstatus_to_exitcode(ended)
  if status == 2 and len(text.splitlines()) == 1:
    raise UserError(text.strip())
  assert status == 0, f'status {status}: {text[-3000:]}'
  return text


def _options(rng: random.Random, folder: pathlib.Path) -> Any:
  """Options of builders, fields of models and class maps, as texts."""
  del folder
  kind = rng.randrange(3)
  if kind == 0:
    name = rng.choice(datasets.names())
    known = list(builder_module(name).OPTIONS) or ['x']
    option = rng.choice((*known, rng.choice(mutations.TEXTS)))
    given = data_verb.assignments('option', [f'{option}={_value_text(rng)}'])
    return datasets.resolve_options(name, given)
  if kind == 1:
    name = rng.choice(models.available())
    field = rng.choice((*models.fields(name), rng.choice(mutations.TEXTS)))
    given = summary_verb.parse_assignment(f'{field}={_value_text(rng)}')
    try:
      return models.check(name, **dict([given]))
    except ValueError as error:
      raise UserError(str(error)) from error
  pairs = [
    rng.choice(
      (
        'happiness:happy',
        'contempt:-',
        f'{rng.choice(mutations.TEXTS)}:happy',
        f'fear:{rng.choice(mutations.TEXTS)}',
        rng.choice(mutations.TEXTS),
      )
    )
    for _ in range(rng.randrange(4))
  ]
  return cross_dataset.run_classes(
    ('happiness', 'fear', 'contempt'),
    ('happy', 'fear'),
    cross_dataset.parse_class_map(pairs),
  )


def _space(rng: random.Random, folder: pathlib.Path) -> Any:
  """A sweep's ranges, as its file would give them."""
  del folder
  known = dict(config_lib.flatten(config_lib.get_base()))
  fields = [rng.choice(list(known)) for _ in range(rng.randrange(3))]
  fields.append(
    rng.choice(('optim.learning_rate', *known, *mutations.TEXTS[:30]))
  )

  def value(field: str) -> Any:
    like = known.get(field, 0.1)
    return rng.choice((like, like, 0.1, 3, mutations.changed_value(rng, like)))

  domains = {}
  for field in fields:
    kind = rng.choice((space.uniform, space.log_uniform, space.integer))
    when = rng.choice(({}, {}, {rng.choice(fields): value(fields[0])}))
    domains[field] = (
      kind(value(field), value(field), when=when)
      if rng.random() < 0.5
      else space.choice(value(field), value(field), when=when)
    )
  made = space.Space(domains, config_lib.get_base())
  return made.stored_base(), made.grid()


@functools.cache
def _sweep_json() -> bytes:
  made = _module('evaluation/test_sweep_page.py')
  return json.dumps(made.make_sweep(4)).encode()


def _sweep(rng: random.Random, folder: pathlib.Path) -> Any:
  """What a report reads of a sweep."""
  path = folder / sweeps.FILE
  path.write_bytes(mutations.changed_json(rng, _sweep_json()))
  return sweeps.read(folder)


# Weights.


class _Array:
  """A variable that a file's tensor is set to."""

  def __init__(self, shape: tuple[int, ...]):
    self.shape = shape
    self.dtype = np.float32

  def set_value(self, value: Any) -> None:
    assert value.shape == self.shape


class _Backbone:
  """Two layers: enough for every path of the readers."""

  in_features = 3

  def __init__(self, family: str):
    self.family = family

  def variables(self) -> dict[str, Variable]:
    rows = (
      ('conv.kernel', 'conv', 'block1_conv1', 0, (3, 3, 3, 2), 'f.0.weight'),
      ('conv.bias', 'conv', 'block1_conv1', 1, (2,), 'f.0.bias'),
      ('norm.scale', 'norm', 'bn', 0, (2,), 'f.1.weight'),
      ('norm.bias', 'norm', 'bn', 1, (2,), 'f.1.bias'),
      ('norm.mean', 'norm', 'bn', 2, (2,), 'f.1.running_mean'),
      ('norm.var', 'norm', 'bn', 3, (2,), 'f.1.running_var'),
    )
    return {
      path: Variable(
        _Array(shape), path.split('.')[0], kind, keras, index, torch
      )
      for path, kind, keras, index, shape, torch in rows
    }


def _tensors(family: str) -> dict[str, tuple[Variable, np.ndarray]]:
  draws = np.random.default_rng(0)
  return {
    path: (v, draws.normal(size=v.file_shape(family)).astype(np.float32))
    for path, v in _Backbone(family).variables().items()
  }


@functools.cache
def _weights() -> Files:
  """Good files of weights by a name of their layout."""
  import h5py
  import safetensors.numpy

  torch = {v.torch_name: value for v, value in _tensors('torch').values()}
  made = {'x.safetensors': safetensors.numpy.save(torch)}
  layers: dict[str, list[np.ndarray]] = {}
  for variable, value in _tensors('keras').values():
    layers.setdefault(str(variable.keras_layer), []).append(value)
  layers['predictions'] = [np.zeros((2, 3), np.float32)]
  buffer = io.BytesIO()
  with h5py.File(buffer, 'w') as file:
    file.attrs['layer_names'] = [name.encode() for name in layers]
    for name, values in layers.items():
      group = file.create_group(name)
      weights = [f'{name}/w_{n}:0' for n in range(len(values))]
      group.attrs['weight_names'] = [w.encode() for w in weights]
      for weight, value in zip(weights, values, strict=True):
        group.create_dataset(weight, data=value, compression='gzip')
  made['legacy.h5'] = buffer.getvalue()
  buffer = io.BytesIO()
  with h5py.File(buffer, 'w') as file:
    for name, values in layers.items():
      group = file.create_group(f'layers/{name}/vars')
      group.attrs['name'] = name
      for n, value in enumerate(values):
        group.create_dataset(str(n), data=value)
  made['x.weights.h5'] = buffer.getvalue()
  archive = [('config.json', b'{}'), ('model.weights.h5', buffer.getvalue())]
  made['x.keras'] = mutations.zip_of(random.Random(5), archive)
  return made


def _load_weights(names: tuple[str, ...]):
  def run(rng: random.Random, folder: pathlib.Path) -> Any:
    name = rng.choice(names)
    content = _weights()[name]
    if name.endswith('.safetensors') and rng.random() < 0.6:
      size = int.from_bytes(content[:8], 'little')
      header = mutations.changed_json(rng, content[8 : 8 + size])
      length = len(header).to_bytes(8, 'little')
      content = length + header + content[8 + size :]
    elif name.endswith('.keras'):
      content = mutations.changed_zip(rng, content)
    else:
      content = mutations.changed_bytes(rng, content)
    path = folder / name
    path.write_bytes(content)
    family = 'torch' if name.endswith('.safetensors') else 'keras'
    with _two_layers(family):
      return pretrained.load_pretrained(None, path)  # pyright: ignore

  return run


@contextlib.contextmanager
def _two_layers(family: str) -> Iterator[None]:
  """Lets `load_pretrained` find two layers where a whole network would be."""
  before = pretrained._only_backbone, pretrained.backbone_variables
  pretrained._only_backbone = lambda _: _Backbone(family)
  pretrained.backbone_variables = lambda backbone: backbone.variables()
  try:
    yield
  finally:
    pretrained._only_backbone, pretrained.backbone_variables = before


def _json_file(rng: random.Random, folder: pathlib.Path) -> Any:
  path = folder / 'x.json'
  path.write_bytes(mutations.changed_json(rng, b'{"a": [1, {"b": "c"}]}'))
  return files.read_json(path)


def targets() -> dict[str, Target]:
  """All of them by name. Their good files are made here, on the first call."""
  made = {
    'archive': Target(12, _archive),
    'picture': Target(20, _decode),
    'pixels': Target(4, _pixels),
    'json': Target(2, _json_file),
    'options': Target(8, _options),
    'overrides': Target(2, _overrides),
    'config json': Target(6, _config_json),
    'space': Target(4, _space),
    'sweep': Target(3, _sweep),
    'run': Target(8, _read_run),
    'compare': Target(3, _compare),
    'report': Target(0.05, _report),
    'crossval': Target(3, _read_crossval),
    'crossval report': Target(0.03, _report_crossval),
    'audit': Target(1, _audit),
    'ledger': Target(2, _ledger),
    'twins': Target(2, _twins),
    'checkpoint': Target(1, _restore),
    'safetensors': Target(6, _load_weights(('x.safetensors',))),
    'hdf5': Target(0.4, _load_weights(('legacy.h5', 'x.weights.h5'))),
    'keras': Target(0.2, _load_weights(('x.keras',))),
    'build': Target(0.3, _build_set),
    'built': Target(2, _open_build),
  }
  for layout in _sets():
    made[layout] = Target(2, functools.partial(_read_set, layout))
  for good in (
    _pictures,
    _run_files,
    _crossval_files,
    _configs,
    _weights,
    _built,
    _sweep_json,
    _checkpoint_files,
    functools.partial(_module, _MEMORY_SETS),
  ):
    good()
  return made


def misdeeds() -> dict[str, Target]:
  """What no reader may do, by name: each has to be a finding."""

  def say_nothing() -> None:
    raise UserError(' ')

  deeds: dict[str, Callable[[pathlib.Path], Any]] = {
    'writes elsewhere': lambda folder: (folder.parent / 'x').write_text('x'),
    'executes': lambda _: exec('1'),
    'unpickles': lambda _: pickle.loads(pickle.dumps(random.Random)),
    'starts a process': lambda _: subprocess.run(['true'], check=True),
    'crashes': lambda _: os.abort(),
    'raises': lambda _: {}['x'],
    'takes memory': lambda _: bytearray(4 << 30),
    'has a child take it': lambda _: in_child(
      lambda: min(0, len(b'x' * (1200 << 20)))
    ),
    'waits': lambda _: time.sleep(1.2),
    'says nothing': lambda _: say_nothing(),
  }
  return {
    name: Target(1, lambda _, folder, deed=deed: deed(folder))
    for name, deed in deeds.items()
  }
