"""P0, optimised residual recurrent fusion (2026): four claims, honest twins.

Only the abstract is at hand: three models, seven tuned hyperparameters, no
protocol, no epochs, no best values. What it leaves open follows P1, by the same
authors; where P1 gives a kind and no amount, the amount is chosen. Its figures
are 99.85 to 100 %; people agree with FER2013's labels about two times out of
three.

Cost     200 epochs a fold, ten folds; not run yet
Score    none yet; `claims` shows claimed and honest side by side
Data     FER2013, FERPlus, RAF-DB, CK+, each built from what you downloaded
Command  python -m fer_jax claims --only=p0
         python -m fer_jax train --workdir=runs/p0 \
           --config=configs/papers/p0.py:fer2013
           (its twin: configs/papers/p0.py:fer2013,honest)
"""

from fer_jax.claims import Claim, chosen, config_of, inferred

RECIPE = (
  inferred('optim.name', 'adam', "P1's"),
  inferred('optim.learning_rate', 1e-3, "P1's; the abstract says it is tuned"),
  chosen('optim.l2', 1e-4, "P1's kind of the weight decay that is tuned"),
  inferred('train.batch_size', 4, "P1's; the abstract says it is tuned"),
  inferred('train.epochs', 200, "P1's"),
  inferred('augment.rotation', 30.0, "P1's"),
  chosen('augment.flip', 0.5, "P1's kind"),
  chosen('augment.crop', 0.8, "P1's kind"),
  chosen('augment.brightness', 0.2, "P1's kind"),
  chosen('augment.contrast', 0.2, "P1's kind"),
  chosen('augment.saturation', 0.2, "P1's kind"),
  chosen('augment.hue', 0.05, "P1's kind"),
)

PROTOCOL = (
  inferred('data.protocol', 'kfold_images', "P1's ten folds over images"),
  inferred('data.folds', 10, "P1's"),
  inferred('data.validation_share', 0.0, "P1's"),
  inferred('train.select', 'last', "P1's"),
)

OFFICIAL = (chosen('data.protocol', 'official', 'the published splits'),)
SUBJECTS = (
  chosen('data.protocol', 'kfold_subjects', 'no person on two sides'),
)


def _claim(system: str, dataset: str, claimed: float, honest, *more) -> Claim:
  return Claim(
    paper='P0',
    system=f'residual BiLSTM, {system}',
    model='residual_bilstm',
    dataset=dataset,
    claimed=claimed,
    reading='accuracy',
    evidence='The text at hand gives no method. Which of the three models '
    'reached it is not said.',
    recipe=RECIPE + more,
    protocol=PROTOCOL,
    honest=honest,
  )


SIZE_100 = inferred('data.image_size', 100, "P1's for this set")

CLAIMS = {
  'fer2013': _claim(
    'FER2013',
    'fer2013',
    0.9985,
    OFFICIAL,
    inferred('data.image_size', 48, "the pictures' own"),
  ),
  'ferplus': _claim('FERPlus', 'ferplus', 0.9999, OFFICIAL, SIZE_100),
  'rafdb': _claim(
    'RAF-DB',
    'rafdb',
    1.0,
    OFFICIAL,
    SIZE_100,
    inferred('data.channels', 3, 'the set is in colour'),
  ),
  'ckplus': _claim(
    'CK+',
    'ckplus',
    1.0,
    SUBJECTS,
    inferred('data.image_size', 48, "P1's for this set"),
  ),
}


def get_config(which='fer2013'):
  return config_of(CLAIMS, which)
