"""`audit`: what a data set repeats, and what a protocol lets through."""

import dataclasses
import pathlib
import sys
import time
from typing import Any

from absl import flags

from fer_jax import datasets
from fer_jax.commands.data import assignments, builder_options
from fer_jax.errors import UserError, nearest

SUMMARY = 'Copies in a data set, and what of the test a protocol trains on.'

LEAK_FOUND = 1
"""Exit status where a protocol that does not say so lets something through."""


def define_flags() -> None:
  """Defines the verb's flags."""
  from fer_jax.data import protocol

  flags.DEFINE_string(
    'dataset', None, f'Which data set: {", ".join(datasets.names())}.'
  )
  flags.DEFINE_string('data_dir', None, 'Folder of all builds.')
  flags.DEFINE_multi_string(
    'option', [], "NAME=VALUE of the data set's builder; may be repeated."
  )
  flags.DEFINE_string(
    'checksum', None, 'First characters of the source SHA-256.'
  )
  flags.DEFINE_list('classes', [], 'These classes alone, in this order.')
  flags.DEFINE_string(
    'protocol',
    None,
    f'One of {", ".join(protocol.names())}; the honest one of the set by '
    'default.',
  )
  flags.DEFINE_integer('protocol_seed', 0, 'What seeds the protocol.')
  flags.DEFINE_multi_string(
    'protocol_option',
    [],
    'NAME=VALUE of the protocol, such as folds=5; may be repeated.',
  )
  flags.DEFINE_string(
    'against', None, 'Another data set, built in the same folder.'
  )
  flags.DEFINE_multi_string(
    'against_option', [], "NAME=VALUE of that set's builder; may be repeated."
  )
  flags.DEFINE_string(
    'against_checksum', None, "First characters of that set's source SHA-256."
  )
  flags.DEFINE_string(
    'output',
    None,
    'Folder for audit.html, with the pairs side by side, and manifest.json, '
    'with the id lists of the protocol.',
  )
  flags.DEFINE_string('json', None, 'File for the result as JSON.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f'audit takes no argument {argv[1]!r}; see audit --help')
  if not values.dataset:
    raise UserError(
      f'--dataset is missing; there are {", ".join(datasets.names())}'
    )
  from fer_jax import files, provenance
  from fer_jax.data import audit, protocol
  from fer_jax.evaluation import audit_page

  begun = time.monotonic()
  # Before minutes of work: the result must have a place.
  files.require_writable(values.json)
  folder = pathlib.Path(values.output) if values.output else None
  if folder:
    with files.writing(f'--output {folder}'):
      folder.mkdir(parents=True, exist_ok=True)
      files.probe(folder / 'audit.html')
  dataset = _load(values.dataset, 'option', values.option, values.checksum)
  if values.classes:
    dataset = dataset.with_classes(values.classes)
  other = _other(dataset)
  settings = _settings(dataset)
  figures, pairs = audit.of_dataset(dataset)
  result: dict[str, Any] = {
    'dataset': {
      **dataset.facts(),
      'class_names': list(dataset.class_names),
    },
    'dataset_figures': figures,
    'protocols': [],
  }
  leak, lists = False, {}
  for name, options in settings:
    print(f'{dataset.name}: auditing protocol {name}', file=sys.stderr)
    folds, refused = protocol.open_folds(dataset, name, run='audit', **options)
    partition, opened = next(iter(folds.values()))
    found, crossing = audit.of_folds(
      dataset, {fold: of_fold for fold, (_, of_fold) in folds.items()}
    )
    coverage = protocol.fold_coverage(dataset, name, **options)
    found['folds'] = coverage and {
      **coverage,
      'audited': list(folds),
      'refused': refused,
    }
    if not result['protocols']:
      lists = protocol.manifest(dataset, partition, opened)
      pairs = [*crossing, *pairs]
      leak = found['leak_found'] and not partition.leaks
    facts = partition.facts()
    if coverage is not None:
      each = [of_fold.facts() for of_fold, _ in folds.values()]
      together = protocol.facts_of_folds(each, coverage['folds'])
      facts['reason'] = together['reason']
    result['protocols'].append({'protocol': facts, 'figures': found})
  result['verdict'] = _verdict(result['protocols'], leak)
  if other is not None:
    result['overlap'], shared = audit.overlap(dataset, other)
    pairs += shared
  result['seconds'] = time.monotonic() - begun
  peak = provenance.peak_memory()
  result['peak_memory_mib'] = None if peak is None else peak / 2**20
  print(_text(dataset, result))
  if folder:
    html = audit_page.render(result, dataset, pairs, other)
    files.write_text(folder / 'audit.html', html)
    files.write_json(folder / 'manifest.json', lists)
    print(f'\npage with the pairs: {folder / "audit.html"}')
  files.write_result(values.json, result)
  return LEAK_FOUND if leak else 0


def _load(
  name: str, flag: str, options: list[str], checksum: str | None
) -> datasets.Dataset:
  data_dir = flags.FLAGS.data_dir or datasets.default_data_dir()
  given = builder_options(name, flag, options)
  return datasets.load(name, data_dir=data_dir, checksum=checksum, **given)


def _other(dataset: datasets.Dataset) -> datasets.Dataset | None:
  """The set that --against names, if any."""
  from fer_jax.data import audit

  values = flags.FLAGS
  options, checksum = values.against_option, values.against_checksum
  if not values.against:
    if options or checksum:
      flag = 'against_option' if options else 'against_checksum'
      raise UserError(f'--{flag} needs --against')
    return None
  other = _load(values.against, 'against_option', options, checksum)
  audit.require_comparable(dataset, other)
  return other


def _settings(dataset: datasets.Dataset) -> list[tuple[str, dict[str, Any]]]:
  """The protocol asked for, and the honest one to set beside it."""
  from fer_jax.data import audit, protocol

  values = flags.FLAGS
  if values.protocol is None:
    if values.protocol_option:
      raise UserError('--protocol_option needs --protocol')
    chosen = audit.protocols(dataset)
  else:
    given = _typed(assignments('protocol_option', values.protocol_option))
    protocol.configure(values.protocol, **given)
    chosen = [(values.protocol, given)]
    try:
      honest = audit.honest_counterpart(dataset)
      chosen += [honest] if honest[0] != values.protocol else []
    except UserError as error:
      print(f'no honest protocol to set beside it: {error}', file=sys.stderr)
  return [
    (name, {'seed': values.protocol_seed, **options})
    for name, options in chosen
  ]


def _typed(given: dict[str, str]) -> dict[str, Any]:
  """Options in the types of their defaults."""
  from fer_jax.data import protocol

  defaults = dataclasses.asdict(protocol.Settings())
  known = [name for name in defaults if name not in ('name', 'seed')]
  typed = {}
  for name, text in given.items():
    if name not in known:
      raise UserError(
        f'--protocol_option={name}: no such option; there are '
        f'{", ".join(known)}{nearest(name, known)}'
      )
    kind = type(defaults.get(name, ''))
    try:
      typed[name] = kind(text)
    except ValueError:
      raise UserError(
        f'--protocol_option={name}={text}: {text!r} is no {kind.__name__}'
      ) from None
  return typed


def _verdict(protocols: list[dict[str, Any]], leak: bool) -> str:
  from fer_jax.evaluation import audit_page, wording

  facts, figures = protocols[0]['protocol'], protocols[0]['figures']
  if leak:
    seen = figures['share_of_test_seen']
    which = ', '.join(
      f'{what} {wording.percent(seen[key])}'
      for key, what in audit_page.SEEN.items()
      if seen[key]
    )
    claims = 'does not say that it leaks'
    if facts['leaks'] is False:
      claims = 'says that it does not leak'
    said = (
      f'LEAK: protocol {facts["name"]} {claims}, and part of its test was seen '
      f'in training ({which})'
    )
    if seen['itself'] or seen['subject'] or seen['sequence']:
      return said
    return (
      f'{said}: the data set repeats photographs across the lists; protocol '
      'option twins=drop_from_test or drop_from_train leaves those out'
    )
  if facts['leaks'] and figures['leak_found']:
    return f'protocol {facts["name"]} says that it leaks, and it does'
  if facts['leaks']:
    return (
      f'protocol {facts["name"]} says that it leaks; nothing of its test was '
      'found in training'
    )
  if facts['leaks'] is None:
    return (
      f'protocol {facts["name"]}: nothing of its test was found in training, '
      'and who is in the images is not known, so the rest cannot be told'
    )
  return f'protocol {facts["name"]}: nothing of its test was found in training'


def _notes(entry: dict[str, Any]) -> list[str]:
  """Classes that a list lacks, and folds that cannot be made."""
  name, figures = entry['protocol']['name'], entry['figures']
  notes = []
  for one in figures.get('each', [figures]):
    where = f'{name}, fold {one["fold"]}' if 'fold' in one else name
    for side, absent in one['absent_classes'].items():
      if absent:
        notes.append(f'{where}: no {", ".join(absent)} in {side}')
  for fold, why in (figures['folds'] or {}).get('refused', {}).items():
    notes.append(f'{name}, fold {fold}: not audited: {why}')
  return notes


def _text(dataset: datasets.Dataset, result: dict[str, Any]) -> str:
  from fer_jax.evaluation import audit_page, wording

  figures = result['dataset_figures']
  lines = [
    f'{dataset.name}: {figures["examples"]:,} examples, '
    f'{figures["different_images"]:,} different images',
    f'  exact copies       {figures["exact_copies"]:,} in '
    f'{figures["exact_groups"]:,} groups, '
    f'{figures["contradicting_groups"]:,} of them with labels that differ',
    f'  constant images    {figures["constant_images"]:,} with '
    f'{figures["constant_labels"]:,} labels',
  ]
  if figures['near_pairs'] is None:
    lines.append(
      '  near twins         not counted: nobody says that these are '
      'photographs from the web, and of aligned or posed faces strangers look '
      'as near'
    )
  else:
    lines.append(
      f'  near twins         {figures["near_pairs"]:,} pairs, '
      f'{figures["near_contradicting_pairs"]:,} with labels that differ'
    )
  if figures['mirrored_pairs'] is not None:
    lines.append(f'  mirrored twins     {figures["mirrored_pairs"]:,} pairs')
  entries = result['protocols']
  names = [entry['protocol']['name'] for entry in entries]
  width = max(12, *(len(name) + 2 for name in names))

  def row(said: str, cells: list[str]) -> str:
    return f'  {said:<50}' + ''.join(f'{cell:>{width}}' for cell in cells)

  lines += ['', row('protocol', names)]
  lines.append(
    row(
      'says of itself',
      [audit_page.SAID[e['protocol']['leaks']] for e in entries],
    )
  )
  for side in ('train', 'validation', 'test'):
    cells = [audit_page.examples(e['figures'], side) for e in entries]
    lines.append(row(f'examples in {side}', cells))
  audited = audit_page.audited(entries)
  if audited:
    lines.append(row('folds audited, whose tests count together', audited))
  for key, said in audit_page.SEEN.items():
    shares = [e['figures']['share_of_test_seen'][key] for e in entries]
    if any(share is not None for share in shares):
      cells = [wording.percent(share) for share in shares]
      lines.append(row(f'of the test, seen: {said}', cells))
  for key, said in audit_page.COVERAGE.items():
    cells = audit_page.covered(entries, key)
    if cells:
      lines.append(row(said, cells))
  lines += [row(said, cells) for said, cells in audit_page.baselines(entries)]
  lines += [f'  {note}' for entry in entries for note in _notes(entry)]
  if result.get('overlap'):
    shared = audit_page.shared_photographs(result['overlap'])
    lines += ['', 'photographs in both sets']
    lines += [f'  {name}: {counted}' for name, counted in shared]
  lines += ['', result['verdict'], f'{result["seconds"]:.0f} s']
  return '\n'.join(lines)
