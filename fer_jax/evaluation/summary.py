"""The figures of one evaluation as a table for the terminal."""

import contextlib
from collections.abc import Iterator
from typing import Any

from fer_jax import files
from fer_jax.evaluation import wording
from fer_jax.evaluation.workdir import UnsavedError

_LEAKS = {
  True: 'LEAKS',
  False: 'does not leak',
  None: 'not known whether it leaks',
}


def text(metrics: dict[str, Any]) -> str:
  """Lines of figures, most wanted first.

  Args:
    metrics: content of metrics_SPLIT.json.
  """
  facts, checkpoint = metrics['protocol'], metrics['checkpoint']
  lines = [
    f'{metrics["split"]} of {metrics["dataset"]["name"]}, protocol '
    f'{facts["name"]} ({_LEAKS[facts["leaks"]]}: {facts["reason"]})',
    f'{metrics["n"]} examples, checkpoint of epoch {checkpoint["epoch"]} (step '
    f'{checkpoint["step"]}), views {"+".join(metrics["views"])}',
    *_choices(metrics),
    '',
    f'[95 % interval, each {metrics["unit"]} resampled as a whole]',
    *_scores(metrics),
    '',
    *_classes(metrics),
    *_groups(metrics),
  ]
  if metrics['absent_classes']:
    lines.append(
      f'no example of {", ".join(metrics["absent_classes"])}: left out of '
      'macro figures'
    )
  if 'class_map' in metrics:
    lines += _mapped(metrics)
  if 'looks' in metrics:
    lines += [
      '',
      f'look {metrics["looks"]} at exactly these examples of '
      f'{metrics["dataset"]["name"]}, recorded',
    ]
  return '\n'.join(lines)


@contextlib.contextmanager
def shown_if_unsaved(json: str | None = None) -> Iterator[None]:
  """Prints the figures of an evaluation that cannot be written to its workdir.

  Args:
    json: a file of the flag --json that is to have them as well.
  """
  try:
    yield
  except UnsavedError as error:
    print(text(error.metrics))
    files.write_result(json, error.metrics)
    raise


def _choices(metrics: dict[str, Any]) -> list[str]:
  """What was chosen or left out by rule, where there is such a thing."""
  dataset, chosen = metrics['dataset'], metrics['protocol'].get('options')
  filtered = dataset.get('notes', {}).get('filtered')
  lines = []
  if filtered is not None:
    counts = ', '.join(f'{n:,} {why}' for why, n in filtered.items())
    lines.append(
      f'rule {dataset["notes"]["rule"]}: {dataset["examples"]:,} examples '
      f'kept, left out {counts}'
    )
  if chosen:
    lines.append(f'protocol options {wording.plain(chosen)}')
  return lines


def _mapped(metrics: dict[str, Any]) -> list[str]:
  """How the classes of another data set became those of the run."""
  other = metrics['dataset']['name']
  changed = [
    f'{theirs} counts as {ours}'
    for theirs, ours in metrics['class_map'].items()
    if ours != theirs and theirs not in metrics['left_out']
  ]
  changed += [
    f'{theirs} is left out ({count})'
    for theirs, count in metrics['left_out'].items()
  ]
  lines = [f'{other}: {", ".join(changed)}'] if changed else []
  return [
    *lines,
    f'{metrics["predicted_elsewhere"]} of {metrics["n"]} predictions are '
    f'classes that no class of {other} counts as',
  ]


def _scores(metrics: dict[str, Any]) -> list[str]:
  auc = metrics['auc_macro']
  rows = [
    ('accuracy', metrics['accuracy'], _interval(metrics, 'accuracy')),
    (
      'balanced accuracy',
      metrics['balanced_accuracy'],
      _interval(metrics, 'balanced_accuracy'),
    ),
    ('macro F1', metrics['macro']['f1'], _interval(metrics, 'macro_f1')),
    ('weighted F1', metrics['weighted']['f1'], ''),
    ('calibration error', metrics['expected_calibration_error'], ''),
  ]
  rows += [
    (
      f'accuracy {name.replace("_", " ")}',
      part['accuracy'],
      f'{_interval(part, "accuracy")} n={part["n"]}',
    )
    for name, part in metrics['slices'].items()
    if part['n']
  ]
  width = max(len(name) for name, *_ in rows)
  lines = [
    f'{name:<{width}}  {100 * value:6.2f} %  {note}'.rstrip()
    for name, value, note in rows
  ]
  lines.insert(
    4, f'{"macro AUC":<{width}}  {"-" if auc is None else f"{auc:.4f}":>6}'
  )
  return [*lines, f'{"cross-entropy":<{width}}  {metrics["loss"]:6.4f}']


def _classes(metrics: dict[str, Any]) -> list[str]:
  width = max(len('class'), *map(len, metrics['class_names']))
  lines = [f'{"class":<{width}}       n  precision  recall      F1     AUC']
  for row in metrics['per_class']:
    cells = (
      _cell(row['precision'], 9, percent=True),
      _cell(row['recall'], 6, percent=True),
      _cell(row['f1'], 6, percent=True),
      _cell(row['auc'], 6),
    )
    lines.append(
      f'{row["name"]:<{width}}  {row["support"]:>6}  ' + '  '.join(cells)
    )
  return lines


def _groups(metrics: dict[str, Any]) -> list[str]:
  """Accuracy and macro F1 by group of each attribute, with the gap."""
  lines = []
  for attribute, figures in metrics['groups'].items():
    width = max(map(len, [attribute, *figures['groups']]))
    lines += ['', f'{attribute:<{width}}       n  accuracy, %']
    for name, group in figures['groups'].items():
      lines.append(
        f'{name:<{width}}  {group["n"]:>6}  {100 * group["accuracy"]:6.2f} '
        f'{_interval(group, "accuracy")}, macro F1 '
        f'{100 * group["macro_f1"]:.2f} {_interval(group, "macro_f1")}'
      )
    lines.append(wording.gap(figures['gap']))
  return lines


def _interval(figures: dict[str, Any], name: str) -> str:
  bounds = figures['intervals'][name]
  if bounds is None:
    return '[no interval: one unit, or all alike]'
  return f'[{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]'


def _cell(value: float | None, width: int, *, percent: bool = False) -> str:
  if value is None:
    return '-'.rjust(width)
  return f'{100 * value:{width}.1f}' if percent else f'{value:{width}.3f}'
