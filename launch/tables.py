#!/usr/bin/env python
"""Tables of README.md, docs/speed.md and docs/models.md, from the records.

  python launch/tables.py speed | speed_other_batches |
                          speed_xeon | speed_epyc |
                          recurrent | recurrent_xeon | recurrent_epyc |
                          population | sweep | data | compilation |
                          recurrence_temporal | recurrence_fer2013 | claims

prints one, to be pasted; a test compares the pages with what this prints.
"""

import functools
import json
import math
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from fer_jax.benchmark import recurrent_layers
from fer_jax.claims import table as claims_table

RECORDS = pathlib.Path(__file__).parents[1] / 'docs' / 'records'

MODELS = (
  'residual_bilstm',
  'residual_lstm',
  'residual_gru',
  'cnn_lstm_model2',
  'cnn_lstm_model3',
  'cnn_model1',
  'basic_cnn',
  'improved_cnn',
  'densenet121_gru',
  'vgg16_gru',
  'xception_gru',
)
BATCHES = (256, 64, 32, 4)
PEERS = {
  'torch': 'PyTorch',
  'keras_tensorflow': 'Keras, TensorFlow',
  'keras_jax': 'Keras, JAX',
  'flax': 'plain Flax NNX',
}

VARIANTS = ('recurrent', 'shuffled', 'pointwise', 'attention')
"""Of a recurrent stage."""

P1_POPULATION = ('residual_bilstm', 4, 10)
"""Model, batch and folds of P1, which trains each fold for so many epochs."""

P1_EPOCHS = 200
FER2013_TRAINING = 28_709
WIDTH = 88
"""Of a line of prose."""


def speed(
  folder: str = 'models', batches: Sequence[int] = BATCHES
) -> list[str]:
  """Images a second of a train step, of each model and batch recorded."""
  records = [one for one in _records(folder) if one[1] in batches]
  measured = {
    peer
    for _, _, record in records
    for peer in record['train_step']['contenders']
  }
  peers = {peer: name for peer, name in PEERS.items() if peer in measured}
  rows = []
  for model, batch, record in records:
    contenders = record['train_step']['contenders']
    own = contenders['fer_jax']['images_per_second']['median']
    rows.append(
      [
        _with_input(model, record),
        f'{batch}',
        f'{own:,.0f}',
        *(_rate(contenders.get(peer)) for peer in peers),
      ]
    )
  return _table(['model', 'batch', 'fer_jax', *peers.values()], rows)


def _with_input(model: str, record: dict) -> str:
  """A model's name, and its input where that is not of FER2013's form."""
  height, width, channels = record['settings']['input_shape']
  colour = {1: 'grey', 3: 'RGB'}[channels]
  size = f'{height} × {width} {colour}'
  return f'`{model}`' + ('' if size == '48 × 48 grey' else f', {size}')


def _rate(contender: dict | None) -> str:
  if contender is None:
    return ''
  rate = contender['images_per_second']['median']
  ratio = contender['speedup_of_reference']['median']
  return f'{rate:,.0f} ({ratio:.2f} ×)'


def recurrent(name: str) -> list[str]:
  """Milliseconds of recurrent layers alone.

  Args:
    name: of the record.
  """
  record = json.loads((RECORDS / name).read_text())
  cases = record['recurrent']['cases']
  peers = {'flax': 'Flax `nnx.RNN`', 'keras': 'Keras, JAX', 'torch': 'PyTorch'}
  own = {recurrent_layers.OWN: 'fer_jax', recurrent_layers.DIVIDED: 'divided'}
  seen = {name for case in cases for name in case['contenders']}
  own = {name: title for name, title in own.items() if name in seen}
  rows = []
  for case in cases:
    size, contenders = case['size'], case['contenders']
    rows.append(
      [
        case['cell'].upper(),
        f'{size["batch"]}, {size["steps"]}, {size["inputs"]} → {size["units"]}',
        *(
          f'{_milliseconds(contenders[name]):.1f}' if name in contenders else ''
          for name in own
        ),
        *(
          f'{_milliseconds(contenders[peer]):.1f} '
          f'({contenders[peer]["speedup_of_reference"]["median"]:.2f} ×)'
          for peer in peers
        ),
      ]
    )
  header = ['layer', 'batch, steps, inputs → units']
  return _table([*header, *own.values(), *peers.values()], rows)


def population() -> list[str]:
  """Milliseconds of a step of every member, side by side and in a row.

  With what P1's recipe would take, extrapolated.
  """
  rows, p1 = [], []
  for model, batch, record in _records('populations'):
    result = record['population']
    contenders, share = result['contenders'], result['share_of_in_a_row']
    rows.append(
      [
        f'`{model}`',
        f'{batch}',
        f'{result["members"]}',
        f'{_milliseconds(contenders["population"]):,.0f}',
        f'{_milliseconds(contenders["fer_jax in a row"]):,.0f}',
        f'{share["median"]:.2f} ({share["min"]:.2f}–{share["max"]:.2f})',
        f'{_milliseconds(contenders["torch in a row"]):,.0f}',
      ]
    )
    if (model, batch, result['members']) == P1_POPULATION:
      p1 = ['', *_p1(contenders)]
  header = ['model', 'batch', 'members', 'population', 'in a row']
  table = _table([*header, 'time of in a row', 'PyTorch, in a row'], rows)
  return [*table, *p1]


def _p1(contenders: dict) -> list[str]:
  """P1's recipe from the milliseconds of a step, as lines of prose."""
  _, batch, folds = P1_POPULATION
  train = FER2013_TRAINING * (folds - 1) // folds
  steps = P1_EPOCHS * math.ceil(train / batch)

  def hours(name: str) -> str:
    return f'{steps * _milliseconds(contenders[name]) / 3.6e6:,.0f} h'

  return textwrap.wrap(
    f"P1's recipe on FER2013's {FER2013_TRAINING:,} Training rows, {folds} "
    f'folds of {train:,} images at batch {batch} for {P1_EPOCHS} epochs, is '
    f'{steps:,} population steps: at the '
    f'{_milliseconds(contenders["population"]):,.0f} ms above '
    f'{hours("population")}, in a row {hours("fer_jax in a row")}, in PyTorch '
    f'{hours("torch in a row")}. Extrapolated from steps alone, not run.',
    WIDTH,
  )


def sweep() -> list[str]:
  """Trials an hour of a small search, of each contender recorded."""
  record = json.loads((RECORDS / 'benchmark_sweep.json').read_text())['sweep']
  rows = []
  for name, row in record['contenders'].items():
    first = row['rounds'][0]
    rows.append(
      [
        name if row['population'] is None else f'`sweep`, {name}',
        f'{row["trials_per_hour"]["median"]:,.0f}',
        f'{row["speed_of_reference"]["median"]:.2f} ×',
        f'{first["shapes"]}',
        f'{first["programs"]}',
        f'{first["multiply_adds_per_trial"] / 1e9:,.0f}',
        f'{first["best"]:.1%}',
      ]
    )
  header = ['search', 'trials an hour', 'speed', 'shapes', 'programs compiled']
  return _table([*header, 'GMAdd a trial', 'best validation'], rows)


def data() -> list[str]:
  """Building and reading of each data set, beside the step that it feeds."""
  record = json.loads((RECORDS / 'benchmark_data.json').read_text())['data']
  rows = []
  for name, of_set in record['sets'].items():
    build, contenders = of_set['build'], of_set['reading']['contenders']
    streams = [
      contenders.get(f'stream_{source}') for source in ('cache', 'records')
    ]
    peaks = [build, max(filter(None, streams), key=_peak)]
    rows.append(
      [
        f'`{name}`',
        ' × '.join(map(str, of_set['shape'] or ['various'])),
        f'{build["images_per_second"]["median"]:,.0f}',
        f'{1e3 * of_set["opening"]["seconds_per_step"]["median"]:.1f}',
        *(_share_of_step(stream) for stream in streams),
        f'{contenders["train_step"]["images_per_second"]["median"]:,.0f}',
        ' / '.join(f'{_peak(row) / 2**20:,.0f}' for row in peaks),
      ]
    )
  header = ['data set', 'stored as', 'build', 'opening, ms', 'from the cache']
  return _table([*header, 'from records', 'train step', 'memory, MiB'], rows)


def _share_of_step(stream: dict | None) -> str:
  if stream is None:
    return 'none'
  rate = stream['images_per_second']['median']
  return f'{rate:,.0f} ({stream["speedup_of_reference"]["median"]:.1%})'


def _peak(row: dict) -> int:
  return row['peak_memory_bytes']


def compilation() -> list[str]:
  """Compile times and memory of a train step, of each model and batch."""
  rows = []
  for model, batch, record in _records('compilation'):
    kept, remat = (record['compilation'][how] for how in ('kept', 'remat'))
    seconds = kept['trace_seconds'] + kept['compile_seconds']
    rows.append(
      [
        _with_input(model, record),
        f'{batch}',
        f'{seconds:.0f}',
        *(f'{how["temporary_bytes"] / 2**20:,.0f}' for how in (kept, remat)),
      ]
    )
  header = ['model', 'batch', 'trace and compile, s', 'temporaries, MiB']
  return _table([*header, 'with `remat`, MiB'], rows)


def recurrence(data: str) -> list[str]:
  """Accuracy of the variants of each model's recurrent stage.

  Args:
    data: of `launch/recurrence_study.py`.
  """
  examples = {'temporal': 'clips', 'fer2013': 'images'}[data]
  rows = []
  for record, model in _studied(data):
    plan, scores = record['settings'][model], record['models'][model]
    rows.append(
      [
        f'`{model}`',
        f'{plan["image_size"]} × {plan["image_size"]}',
        f'{plan["steps"]}',
        f'{record[examples]:,}' if record[examples] else 'all',
        f'{record["epochs"]}',
        f'{record["seeds"]}',
        *(
          _accuracy(scores.get(variant), variant == record['difference_to'])
          for variant in VARIANTS
        ),
      ]
    )
  header = ['model', 'size', 'steps', examples, 'epochs', 'seeds']
  return _table([*header, *(f'`{variant}`' for variant in VARIANTS)], rows)


def claims() -> list[str]:
  """Claims of the papers and honest figures, as README.md has them."""
  rows, links = [], []
  for path in sorted((RECORDS / 'claims').glob('*.json')):
    of_record = json.loads(path.read_text())['claims']
    rows += of_record
    links += [f'docs/records/claims/{path.name}'] * len(of_record)
  return claims_table.markdown(rows, links).splitlines()


def _studied(data: str) -> Iterator[tuple[dict, str]]:
  """(record, model) of each model of each record of a study."""
  paths = sorted((RECORDS / 'recurrence').glob('*.json'))
  records = [json.loads(path.read_text()) for path in paths]
  for model in MODELS:
    for record in records:
      if record['data'] == data and model in record['models']:
        yield record, model


def _accuracy(scores: dict | None, is_reference: bool) -> str:
  if scores is None:
    return ''
  mean, difference = f'{100 * scores["mean"]:.1f} %', scores['difference']
  if is_reference:
    return mean
  change = f'{100 * difference["mean"]:+.1f}'.replace('-', '−')
  return f'{mean} ({change} ± {100 * difference["half"]:.1f})'


def _records(folder: str) -> Iterator[tuple[str, int, dict]]:
  """(model, batch size, content) of each record of a folder."""
  for model in MODELS:
    for batch in BATCHES:
      path = RECORDS / folder / f'{model}_{batch}.json'
      if path.exists():
        yield model, batch, json.loads(path.read_text())


def _milliseconds(contender: dict) -> float:
  return 1e3 * contender['seconds_per_step']['median']


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Lines of Markdown."""
  cells = [header, ['---'] * len(header), *rows]
  return [
    ''.join(f'| {cell} ' if cell else '| ' for cell in row) + '|'
    for row in cells
  ]


TABLES = {
  'speed': functools.partial(speed, batches=(64, 4)),
  'speed_other_batches': functools.partial(speed, batches=(256, 32)),
  'speed_xeon': functools.partial(speed, 'models_xeon'),
  'speed_epyc': functools.partial(speed, 'models_epyc'),
  'recurrent': functools.partial(recurrent, 'benchmark_recurrent_avx2.json'),
  'recurrent_xeon': functools.partial(
    recurrent, 'benchmark_recurrent_xeon.json'
  ),
  'recurrent_epyc': functools.partial(recurrent, 'benchmark_recurrent.json'),
  'population': population,
  'sweep': sweep,
  'data': data,
  'compilation': compilation,
  'recurrence_temporal': functools.partial(recurrence, 'temporal'),
  'recurrence_fer2013': functools.partial(recurrence, 'fer2013'),
  'claims': claims,
}

if __name__ == '__main__':
  if len(sys.argv) != 2 or sys.argv[1] not in TABLES:
    sys.exit(f'usage: python launch/tables.py {" | ".join(TABLES)}')
  print('\n'.join(TABLES[sys.argv[1]]()))
