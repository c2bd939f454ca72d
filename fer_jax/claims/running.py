"""Trains and measures claims and their honest twins.

A run is an ordinary workdir: `train --config=WORKDIR/config.json` repeats it
bit for bit, on as many devices, and a claim that was stopped goes on where it
was. Claims whose configs are equal, as two readings of one training, share
their runs.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax import config as config_lib
from fer_jax import files, forms
from fer_jax.claims.claim import READINGS, TWINS, Claim
from fer_jax.data import audit, protocol
from fer_jax.errors import UserError, nearest
from fer_jax.evaluation import evaluate, scores, summary
from fer_jax.training import cores, loop, preemption, records, task


class LeftError(Exception):
  """Asked to leave amid a claim; the same command goes on with it."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much of each claim is run.

  Attributes:
    max_seconds: of training, for each run; 0 is no limit.
    folds: of k-fold protocols; 0 is all.
    weights: files of published weights by model, for the papers that start
      from such.
  """

  max_seconds: float = 0.0
  folds: int = 1
  weights: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(folder: pathlib.Path) -> dict[str, Claim]:
  """The claims of all config files in a folder, as 'p4_cnn_model1'.

  The files are Python, and run.

  Raises:
    UserError: no such folder, a file that does not run, or one without CLAIMS.
  """
  if not folder.is_dir():
    raise UserError(f'{folder}: no such folder of claims (--configs)')
  claims = {}
  for path in sorted(folder.glob('*.py')):
    spec = importlib.util.spec_from_file_location(f'claims_{path.stem}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
      spec.loader.exec_module(module)
    except UserError:
      raise
    except Exception as error:  # whatever a user's Python file may raise
      raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    if not isinstance(getattr(module, 'CLAIMS', None), dict):
      raise UserError(f'{path} has no CLAIMS')
    for name, claim in module.CLAIMS.items():
      if not isinstance(claim, Claim):
        raise UserError(
          f'{path}: CLAIMS[{name!r}] is of {type(claim).__name__}, expected a '
          'fer_jax.claims.Claim'
        )
      claims[f'{path.stem}_{name}'] = claim
  if not claims:
    raise UserError(f'{folder} holds no claims')
  return claims


def select(claims: dict[str, Claim], only: Sequence[str]) -> dict[str, Claim]:
  """The claims whose names begin with one of `only`; all where it is empty.

  Raises:
    UserError: nothing begins so.
  """
  for prefix in only:
    if not any(name.startswith(prefix) for name in claims):
      raise UserError(
        f'--only={prefix}: no such claim; there are {", ".join(claims)}'
        f'{nearest(prefix, claims)}'
      )
  return {
    name: claim
    for name, claim in claims.items()
    if not only or name.startswith(tuple(only))
  }


def require_weights(
  claims: dict[str, Claim], weights: Mapping[str, str]
) -> None:
  """Checks that files of weights are of claims that start from some.

  Raises:
    UserError: a model of no such claim, or a file that is not there.
  """
  models = sorted({c.model for c in claims.values() if c.pretrained})
  for model, path in weights.items():
    if model not in models:
      raise UserError(
        f'--pretrained={model}={path}: no claim that is run starts '
        f'{model} from weights; those that do are of '
        f'{", ".join(models) or "no model"}'
      )
    if not pathlib.Path(path).expanduser().is_file():
      raise UserError(f'--pretrained={model}={path}: there is no such file')


def spread(claims: Iterable[Claim]) -> None:
  """Makes the devices of all runs of some claims, as `cores.spread`."""
  sizes = []
  for claim in claims:
    with contextlib.suppress(UserError):  # told where it is run
      sizes += [claim.config(twin).train.batch_size for twin in TWINS]
  cores.spread(max(map(cores.parts_of_batch, sizes), default=1))


def run(
  name: str,
  claim: Claim,
  *,
  data_dir: str,
  workdir: pathlib.Path,
  limits: Limits,
  members: dict[str, Any],
  notice: preemption.Notice | None = None,
) -> dict[str, Any]:
  """One claim beside its honest twin.

  Args:
    name: of the claim.
    claim: what is claimed.
    data_dir: folder of all builds.
    workdir: folder of all runs.
    limits: how much is run.
    members: runs that other claims have made within the same limits, by
      folder; those of this claim are added.
    notice: leaves the run under way once it is asked.

  Returns:
    The row of the table: what is claimed and counted, and under 'paper' and
    'honest' what `_twin` gives; 'absent' says why where one could not be run.
    Nothing is trained where the data does not do for both.

  Raises:
    LeftError: it was asked to.
  """
  notice = notice or preemption.Notice()
  row: dict[str, Any] = {
    'claim': name,
    'system': claim.system,
    'claimed': claim.claimed,
    'reading': claim.reading,
    'counts': READINGS[claim.reading].counts,
    'evidence': claim.evidence,
    'pretrained': claim.pretrained,
    'beside': dict(claim.beside),
    'marks': {
      twin: [dataclasses.asdict(mark) for mark in claim.marks(twin)]
      for twin in TWINS
    },
  }
  twin, configs = TWINS[0], {}
  try:
    for twin in TWINS:
      config = claim.config(twin)
      config.data.data_dir = data_dir
      if claim.pretrained:
        config.train.pretrained = limits.weights.get(claim.model, '')
      dataset = task.load_dataset(config)
      fit(config, dataset)
      task.partition_of(config, dataset)
      configs[twin] = config, dataset
    for twin, (config, dataset) in configs.items():
      with summary.shown_if_unsaved():
        row[twin] = _twin(
          claim, config, dataset, workdir, limits, members, notice
        )
  except UserError as error:
    # The other claims are run all the same.
    return row | {'absent': f'{twin}: {error}'}
  return row


def fit(config: config_lib.Config, dataset: Any) -> None:
  """FER2013 without PrivateTest reports PublicTest instead.

  The challenge's own file has PrivateTest; a run without it is of another
  protocol, and says so.
  """
  held_back = 'test' not in dataset.table['official_split']
  if (
    config.data.protocol == 'official'
    and config.data.name in protocol.CHALLENGE
    and held_back
  ):
    config.data.protocol = 'fer2013_dev'


def _twin(
  claim: Claim,
  config: config_lib.Config,
  dataset: Any,
  workdir: pathlib.Path,
  limits: Limits,
  made: dict[str, Any],
  notice: preemption.Notice,
) -> dict[str, Any]:
  """What one protocol gives.

  Returns:
    'protocol' (see `protocol.facts_of_folds`), 'folds' run and
    'of_folds', 'epochs' run and 'of_epochs', 'finished', 'figure' as the
    paper counts it, 'accuracy' with its 'interval', 'macro' (see
    `scores.all_scores`), 'without_twins', 'n', 'pretrained', the file of
    weights or '', 'audit' of all these folds (see `_pooled_audit`) and the
    'workdirs'.
  """
  folded = protocol.divides_into_folds(config.data.protocol)
  of_folds = config.data.folds if folded else 1
  folds = min(limits.folds or of_folds, of_folds)
  members = []
  for fold in range(folds):
    member = config.copy_and_resolve_references()
    if of_folds > 1:
      member.data.fold = fold
    folder = workdir / _folder(claim, member)
    if str(folder) not in made:
      made[str(folder)] = _member(member, dataset, folder, limits, notice)
    members.append(made[str(folder)])
  logits = np.concatenate([m['logits'] for m in members])
  labels = np.concatenate([m['labels'] for m in members])
  units = np.concatenate([m['units'] for m in members])
  together = scores.all_scores(logits, labels, dataset.class_names, units=units)
  epochs = min(m['epoch'] for m in members)
  return {
    'protocol': protocol.facts_of_folds(
      [m['protocol'] for m in members], of_folds
    ),
    'folds': folds,
    'of_folds': of_folds,
    'epochs': epochs,
    'of_epochs': config.train.epochs,
    'finished': folds == of_folds
    and all(m['finished'] for m in members)
    and bool(config.train.pretrained or not claim.pretrained),
    'pretrained': config.train.pretrained,
    'figure': _figure(claim.reading, together['accuracy'], members, dataset),
    'accuracy': together['accuracy'],
    'interval': together['intervals']['accuracy'],
    'macro': together['macro'],
    'without_twins': _pooled([m['without_twins'] for m in members]),
    'n': together['n'],
    'audit': _pooled_audit(members),
    'seconds': sum(m['seconds'] for m in members),
    'workdirs': [m['workdir'] for m in members],
  }


def _member(config, dataset, folder, limits, notice) -> dict[str, Any]:
  outcome = loop.train(
    config,
    folder,
    max_seconds=limits.max_seconds,
    notice=notice,
    devices=cores.of_run(config.train.batch_size),
  )
  if notice.asked:
    raise LeftError
  notice.starting = True  # whatever is left amid is begun again
  evaluation = evaluate.evaluate_once(folder, 'test')
  metrics = evaluation.metrics
  epochs = records.read_metrics(folder)
  return {
    'protocol': metrics['protocol'],
    'epoch': outcome.epoch,
    'finished': outcome.finished,
    'units': evaluation.resampled,
    'logits': evaluation.logits,
    'labels': evaluation.labels,
    'train_accuracy': epochs[-1]['train']['accuracy'],
    'without_twins': metrics['slices'].get('without_twins'),
    'audit': _audited(folder, config, dataset, metrics['protocol']['digest']),
    'seconds': sum(epoch['seconds'] for epoch in epochs),
    'workdir': folder.name,
  }


def _folder(claim: Claim, config: config_lib.Config) -> str:
  """One name for equal configs, whatever claims they serve."""
  content = config_lib.to_json(config)
  del content['data']['data_dir']
  digest = files.digest(content)[:8]
  leaks = config.data.protocol
  return f'{claim.paper.lower()}_{claim.model}_{leaks}_{digest}'


def _audited(folder, config, dataset, digest: str) -> dict[str, Any]:
  """The audit of a run's protocol, kept in its workdir."""
  path = folder / 'audit.json'
  if path.exists():
    kept = _read_audit(path)
    if kept['digest'] == digest:
      return kept['figures']
  _, lists = protocol.open_all(
    dataset,
    config.data.protocol,
    run=str(folder),
    **config_lib.protocol_options(config),
  )
  figures, _ = audit.of_protocol(dataset, lists)
  files.write_json(path, {'digest': digest, 'figures': figures})
  return figures


def _read_audit(path: pathlib.Path) -> dict[str, Any]:
  """What `_audited` has kept: 'digest' and 'figures'.

  Raises:
    UserError: it is damaged.
  """
  kept = files.read_json(path)
  wrong = forms.misfit(kept, _AUDIT)
  if wrong:
    raise UserError(f'{path}: {wrong}; delete it, to be made again')
  return kept


# What the table shows of an audit.
_SEEN = ('itself', 'exact_copy', 'twin', 'subject')
_AUDIT = {
  'digest': forms.text,
  'figures': {
    'share_of_test_seen': {
      **dict.fromkeys(_SEEN, forms.optional(forms.number)),
      'exact_copy': forms.number,
    },
    'nearest_neighbour': {'accuracy': forms.number},
  },
}


def _figure(reading: str, accuracy: float, members, dataset) -> float:
  """The figure as the paper counts it."""
  if reading == 'train_accuracy':
    return _mean(members, 'train_accuracy') or 0.0
  if reading == 'one_against_rest':
    return 1 - 2 * (1 - accuracy) / len(dataset.class_names)
  return accuracy


def _pooled(parts: Sequence[dict[str, Any] | None]) -> float | None:
  """Accuracy over the examples of all folds' slices, as it is without them."""
  known = [part for part in parts if part and part['n']]
  n = sum(part['n'] for part in known)
  return sum(part['n'] * part['accuracy'] for part in known) / n if n else None


def _pooled_audit(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What the table shows of the folds' audits, over all their test examples;
  what one of them does not know is not known."""
  weights = [len(m['labels']) for m in members]
  audits = [m['audit'] for m in members]
  mean = functools.partial(audit.over_folds, sizes=weights)
  return {
    'share_of_test_seen': {
      kind: mean([one['share_of_test_seen'][kind] for one in audits])
      for kind in _SEEN
    },
    'nearest_neighbour': {
      'accuracy': mean([one['nearest_neighbour']['accuracy'] for one in audits])
    },
  }


def _mean(members, key: str) -> float | None:
  values = [m[key] for m in members if m[key] is not None]
  return float(np.mean(values)) if values else None
