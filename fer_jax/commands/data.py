"""`data`: builds, lists, describes and exports data sets."""

import csv
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags

from fer_jax import datasets, files
from fer_jax.errors import UserError, nearest

SUMMARY = 'Data sets: data build|list|describe|export.'

_ACTIONS = ('build', 'list', 'describe', 'export')
_EXPORTS = ('.csv', '.json', '.npz')
_COLUMNS = ('id', 'official_split', 'label', 'class', 'sha256')
# Which actions a flag is for; --data_dir and --json are for all.
_ACTIONS_OF = {
  'dataset': ('build', 'describe', 'export'),
  'source': ('build',),
  'option': ('build', 'describe', 'export'),
  'skip_bad_rows': ('build',),
  'checksum': ('describe', 'export'),
  'output': ('describe', 'export'),
}


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string(
    'dataset', None, f'Which data set: {", ".join(datasets.names())}.'
  )
  flags.DEFINE_string(
    'source', None, 'build: what you downloaded; a file, folder or archive.'
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    'Folder of all builds; FER_JAX_DATA or ~/fer_jax_data by default.',
  )
  flags.DEFINE_multi_string(
    'option', [], "NAME=VALUE of the data set's builder; may be repeated."
  )
  flags.DEFINE_bool(
    'skip_bad_rows', False, 'build: leave bad rows out, and count them.'
  )
  flags.DEFINE_string(
    'checksum',
    None,
    'describe, export: first characters of the source SHA-256, where builds '
    'of several sources stand side by side.',
  )
  flags.DEFINE_string(
    'output',
    None,
    'describe: folder for contact sheets and the class balance plot. export: '
    'file to write; .csv or .json for a manifest with the SHA-256 of every '
    "image's pixels, .npz for the images themselves.",
  )
  flags.DEFINE_string('json', None, 'File for the result as JSON.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  known = f'expected one of {", ".join(_ACTIONS)}'
  if len(argv) < 2:
    raise UserError(f'data needs an action; {known}')
  if len(argv) > 2:
    raise UserError(f'data takes one action, not {" ".join(argv[1:])!r}')
  action = argv[1]
  if action not in _ACTIONS:
    raise UserError(
      f'data has no action {action!r}; {known}{nearest(action, _ACTIONS)}'
    )
  values = flags.FLAGS
  for flag, actions in _ACTIONS_OF.items():
    if values[flag].value and action not in actions:
      raise UserError(f'--{flag} is for {", ".join(actions)}, not for {action}')
  files.require_writable(values.json)
  data_dir = pathlib.Path(values.data_dir or datasets.default_data_dir())
  if action == 'list':
    result = _list(data_dir.expanduser())
  else:
    if not values.dataset:
      names = ', '.join(datasets.names())
      raise UserError(f'--dataset is missing; there are {names}')
    act = {'build': _build, 'describe': _describe, 'export': _export}[action]
    options = builder_options(values.dataset, 'option', values.option)
    result = act(data_dir.expanduser(), options)
  files.write_result(values.json, result)
  return 0


def assignments(flag: str, given: list[str]) -> dict[str, str]:
  """The NAME=VALUE texts of a flag that may be repeated.

  Raises:
    UserError: one of them has no such form, or a name comes twice.
  """
  options: dict[str, str] = {}
  for text in given:
    name, equals, value = text.partition('=')
    if not equals or not name:
      raise UserError(f'--{flag}={text}: NAME=VALUE is expected')
    if name in options:
      raise UserError(f'--{flag}={text}: {name} is given twice')
    options[name] = value
  return options


def builder_options(
  dataset: str, flag: str, given: list[str]
) -> dict[str, str]:
  """As `assignments`, of a flag that sets options of a data set's builder.

  Raises:
    UserError: as `assignments`, or the builder does not take one: none has the
      name of an argument of `datasets.load` or `datasets.build`.
  """
  options = assignments(flag, given)
  datasets.resolve_options(dataset, options)
  return options


def _list(data_dir: pathlib.Path) -> list[dict[str, Any]]:
  result = []
  print(f'data sets, builds in {data_dir}')
  for name in datasets.names():
    module = datasets.builder_module(name)
    print(f'\n{name}: {module.DESCRIPTION}')
    entry = {'name': name, 'description': module.DESCRIPTION, 'builds': []}
    result.append(entry)
    try:
      found = datasets.builds(name, data_dir=data_dir)
    except UserError as error:
      print(f'  damaged: {error}')
      entry['damaged'] = str(error)
      continue
    for root, metadata in found:
      source = metadata['source']
      origin = f' from {source["name"]}' if source else ''
      options = metadata['options']
      chosen = ''.join(
        f' {option}={value}'
        for option, value in datasets.chosen_options(name, options).items()
      )
      print(
        f'  {metadata["rows"]:,} examples{origin}, checksum '
        f'{metadata["checksum"][:12]}, built {metadata["built"][:10]}{chosen}'
        f'\n    {root}'
      )
      entry['builds'].append(
        {
          'root': str(root),
          'version': metadata['version'],
          'rows': metadata['rows'],
          'checksum': metadata['checksum'],
          'built': metadata['built'],
          'options': options,
        }
      )
    if not found:
      if module.NEEDS_SOURCE:
        print(
          '  not built; python -m fer_jax data build '
          f'--dataset={name} --source=PATH --data_dir={data_dir}'
        )
      else:
        print('  not built; builds itself on first use')
  return result


def _build(data_dir: pathlib.Path, options: dict[str, str]) -> dict[str, Any]:
  values = flags.FLAGS
  dataset = datasets.build(
    values.dataset,
    data_dir=data_dir,
    source=values.source,
    skip_bad_rows=values.skip_bad_rows,
    **options,
  )
  return _summarise(dataset)


def _load(data_dir: pathlib.Path, options: dict[str, str]) -> datasets.Dataset:
  values = flags.FLAGS
  return datasets.load(
    values.dataset, data_dir=data_dir, checksum=values.checksum, **options
  )


def _verdict(dataset: datasets.Dataset) -> tuple[dict[str, str], bool | None]:
  """A word on each split's counts, and whether all are the published ones."""
  counts, published = dataset.counts(), dataset.official_counts()
  if not published:
    return dict.fromkeys(counts, ''), None
  words = {}
  for split in [
    *published,
    *(split for split in counts if split not in published),
  ]:
    if split not in counts:
      words[split] = f'absent (officially {published[split].sum():,})'
    elif split not in published:
      words[split] = 'NOT an official split'
    elif np.array_equal(counts[split], published[split]):
      words[split] = 'the official counts'
    else:
      words[split] = (
        f'NOT the official counts ({", ".join(map(str, published[split]))}; '
        f'{published[split].sum():,} in all)'
      )
  return words, set(words.values()) == {'the official counts'}


def _conclusion(words: dict[str, str]) -> str:
  """One line on all splits' counts."""
  differing = [name for name, word in words.items() if 'NOT' in word]
  absent = [name for name, word in words.items() if 'absent' in word]
  if differing:
    return f'NOT the official ones in {", ".join(differing)}'
  if absent:
    return f'the official ones, but {", ".join(absent)} is absent'
  return 'the official ones in every split'


def _summarise(dataset: datasets.Dataset) -> dict[str, Any]:
  """Prints what a set is, and gives the same for JSON."""
  module = datasets.builder_module(dataset.name)
  metadata = dataset.metadata
  counts = dataset.counts()
  words, official = _verdict(dataset)
  disk = sum(file['bytes'] for file in metadata['files'].values())
  source = metadata['source']
  origin = 'itself'
  if source:
    origin = f'{source["name"]} ({source["kind"]}, {source["bytes"]:,} bytes)'
  shape = (
    ' x '.join(map(str, dataset.shape)) if dataset.shape else 'different shapes'
  )
  kind = 'clips' if dataset.is_clips else 'images'
  print(f'{dataset.name} {dataset.version}: {module.DESCRIPTION}')
  print(f'  made from  {origin}')
  print(f'  checksum   {dataset.checksum}')
  print(f'  build      {dataset.root} ({disk / 1e6:,.1f} MB)')
  print(f'  licence    {module.LICENCE}')
  print(f'  {len(dataset):,} {kind}, {shape}')
  if dataset.options:
    chosen = ' '.join(
      f'{key}={value}' for key, value in dataset.options.items()
    )
    print(f'  options    {chosen}')
  if 'subject' in dataset.table:
    print(f'  subjects   {len(np.unique(dataset.table["subject"])):,}')
  for name, value in dataset.notes.items():
    said = value if isinstance(value, str) else json.dumps(value)
    print(f'  note       {name.replace("_", " ")}: {said}')
  if metadata['skipped_rows']:
    print(
      f'  {metadata["skipped_rows"]:,} bad rows were left out; the first: '
      f'{metadata["first_skipped"]}'
    )
  wide = max(len(split) for split in [*words, 'split'])
  heads = [*dataset.class_names, 'total']
  widths = [max(len(head), 7) for head in heads]
  print()
  print(
    f'  {"split":<{wide}}',
    *(f'{head:>{width}}' for head, width in zip(heads, widths, strict=True)),
  )
  for split, word in words.items():
    figures = [*counts[split], counts[split].sum()] if split in counts else []
    cells = [
      f'{figure:>{width},}'
      for figure, width in zip(figures, widths, strict=False)
    ]
    print(' '.join([f'  {split:<{wide}}', *cells, f' {word}']).rstrip())
  print()
  if official is not None:
    print(f'class counts: {_conclusion(words)}')
  if dataset.test_is_unsplit:
    print(
      'test_unsplit: the file names do not tell PublicTest from PrivateTest. '
      'This build cannot be the source of a validation set from them: half of '
      'them are the test.'
    )
  return {
    'name': dataset.name,
    'version': dataset.version,
    'root': str(dataset.root),
    'checksum': dataset.checksum,
    'content': metadata['content'],
    'source': source,
    'options': dataset.options,
    'rows': len(dataset),
    'shape': list(dataset.shape) if dataset.shape else None,
    'bytes': disk,
    'class_names': list(dataset.class_names),
    'counts': {split: values.tolist() for split, values in counts.items()},
    'splits': words,
    'official': official,
    'test_is_unsplit': dataset.test_is_unsplit,
    'skipped_rows': metadata['skipped_rows'],
    'first_skipped': metadata['first_skipped'],
    'licence': module.LICENCE,
    'notes': dataset.notes,
  }


def _describe(
  data_dir: pathlib.Path, options: dict[str, str]
) -> dict[str, Any]:
  from fer_jax.datasets import overview

  dataset = _load(data_dir, options)
  dataset.verify()
  result = _summarise(dataset)
  print('files: every SHA-256 is as recorded')
  if flags.FLAGS.output:
    folder = pathlib.Path(flags.FLAGS.output)
    written = []
    with files.writing(f'pictures to --output {folder}'):
      folder.mkdir(parents=True, exist_ok=True)
      for label, name in enumerate(dataset.class_names):
        path = folder / f'{dataset.name}_{label}_{name}.png'
        if overview.write_contact_sheet(dataset, label, path):
          written.append(path)
      written.append(folder / f'{dataset.name}_class_balance.png')
      overview.write_class_balance(dataset, written[-1])
    print(f'wrote {len(written)} pictures to {folder}')
    result['pictures'] = [str(path) for path in written]
  return result


def _digests(dataset: datasets.Dataset) -> list[str]:
  """SHA-256 over each row's uint8 pixels in C order (frames in turn)."""
  return [
    hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    for pixels in dataset.each()
  ]


def _export(data_dir: pathlib.Path, options: dict[str, str]) -> dict[str, Any]:
  output = flags.FLAGS.output
  if not output:
    raise UserError(
      f'--output is missing; expected a file ending in {", ".join(_EXPORTS)}'
    )
  path = pathlib.Path(output)
  if path.suffix not in _EXPORTS:
    raise UserError(
      f'--output={output}: a file ending in {", ".join(_EXPORTS)} is expected'
    )
  dataset = _load(data_dir, options)
  if path.suffix == '.npz' and dataset.shape is None:
    raise UserError(
      f'{dataset.name} has images of different shapes, which no .npz of one '
      'array holds; export a .csv or .json manifest'
    )
  with files.writing(f'--output {path}'):
    path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.npz':
    arrays = _arrays(dataset)
    with files.writing(f'--output {path}'):
      np.savez(path, allow_pickle=False, **arrays)
  else:
    manifest = _manifest(dataset, path.suffix)
    with files.writing(f'--output {path}'):
      files.write_text(path, manifest)
  print(f'wrote {len(dataset):,} rows to {path}')
  return {
    'file': str(path),
    'rows': len(dataset),
    'checksum': dataset.checksum,
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
  }


def _arrays(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
  """The table with all pixels, 'image' or 'frames'."""
  column = 'frames' if dataset.is_clips else 'image'
  return {
    **dataset.table,
    column: np.stack(dataset.read(np.arange(len(dataset)))),
    'class_names': np.array(dataset.class_names),
  }


def _manifest(dataset: datasets.Dataset, suffix: str) -> str:
  """Every row with the digest of its pixels, as csv or JSON."""
  table = dataset.table
  rows = list(
    zip(
      table['id'].tolist(),
      table['official_split'].tolist(),
      table['label'].tolist(),
      [dataset.class_names[label] for label in table['label']],
      _digests(dataset),
      strict=True,
    )
  )
  if suffix == '.csv':
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
  manifest = {
    'dataset': dataset.name,
    'version': dataset.version,
    'checksum': dataset.checksum,
    'options': dataset.options,
    'class_names': list(dataset.class_names),
    'rows': [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
  }
  return json.dumps(manifest, indent=1) + '\n'
