"""P1, deep residual BiLSTM fusion (2025): three claims and honest twins.

Ten folds over images, 200 epochs at batch 4. Its confusion matrix of CK+ counts
185 happy and 121 anger images: the nine training folds of three frames a
sequence have 186 and 121 or 122, so what is reported there was trained on. The
twin of CK+ keeps people apart; those of RAF-DB and FERPlus take the published
splits.

Cost     200 epochs a fold, ten folds; not run yet
Score    none yet; `claims` shows claimed and honest side by side
Data     CK+, RAF-DB, FERPlus, each built from what you downloaded
Command  python -m fer_jax claims --only=p1
         python -m fer_jax train --workdir=runs/p1 \
           --config=configs/papers/p1.py:ckplus
           (its twin: configs/papers/p1.py:ckplus,honest)
"""

from fer_jax.claims import Claim, chosen, config_of, inferred, stated

UNDONE = 'stated, no amount; standardising the image undoes most of it'

RECIPE = (
  stated('optim.name', 'adam'),
  stated('optim.learning_rate', 1e-3),
  chosen('optim.l2', 1e-4, 'L2 on the weights is stated, no amount'),
  stated('train.batch_size', 4),
  stated('train.epochs', 200),
  stated('augment.rotation', 30.0),
  chosen('augment.flip', 0.5, 'horizontal flips are stated, no probability'),
  chosen('augment.crop', 0.8, 'crop and resize back is stated, no amount'),
  chosen('augment.brightness', 0.2, UNDONE),
  chosen('augment.contrast', 0.2, UNDONE),
  chosen('augment.saturation', 0.2, 'stated, no amount'),
  chosen('augment.hue', 0.05, 'stated, no amount'),
)

FOLDS = (
  stated('data.folds', 10),
  inferred('data.validation_share', 0.0, 'the test fold is the validation set'),
  inferred('train.select', 'last', 'no selection is mentioned'),
)
ON_TRAIN = (
  inferred(
    'data.protocol', 'evaluate_on_train', 'figure 4a counts the training folds'
  ),
  *FOLDS,
)
ON_IMAGES = (
  inferred('data.protocol', 'kfold_images', 'no other unit is mentioned'),
  *FOLDS,
)
OFFICIAL = (chosen('data.protocol', 'official', 'the published splits'),)
SUBJECTS = (
  chosen('data.protocol', 'kfold_subjects', 'no person on two sides'),
)
SIZE_100 = stated('data.image_size', 100)


def _claim(
  system: str,
  dataset: str,
  claimed: float,
  evidence: str,
  protocol,
  honest,
  *more,
) -> Claim:
  return Claim(
    paper='P1',
    system=f'residual BiLSTM, {system}',
    model='residual_bilstm',
    dataset=dataset,
    claimed=claimed,
    reading='accuracy',
    evidence=evidence,
    recipe=RECIPE + more,
    protocol=protocol,
    honest=honest,
  )


CLAIMS = {
  'ckplus': _claim(
    'CK+',
    'ckplus',
    1.0,
    'Figure 4a counts 185 happy and 121 anger correct: nine tenths of 207 and '
    '135, the training folds. The AUCs of figure 5a, 0.58 to 0.73, are not '
    'those of a perfect classifier.',
    ON_TRAIN,
    SUBJECTS,
    stated('data.image_size', 48),
  ),
  'rafdb': _claim(
    'RAF-DB',
    'rafdb',
    1.0,
    'Ten folds over images, the published test set among them. The class '
    'counts of table 1 match no release, and the AUCs of figure 5b, 0.85 at '
    'best, are not those of a perfect classifier.',
    ON_IMAGES,
    OFFICIAL,
    SIZE_100,
    inferred('data.channels', 3, 'saturation and hue are changed'),
  ),
  'ferplus': _claim(
    'FERPlus',
    'ferplus',
    0.9996,
    'Ten folds over images. The class counts of table 1 sum to more images '
    'than FERPlus has, and the AUCs of figure 5c, 0.97 at best, are not those '
    'of one that is right 9,996 times in 10,000.',
    ON_IMAGES,
    OFFICIAL,
    SIZE_100,
  ),
}


def get_config(which='ckplus'):
  return config_of(CLAIMS, which)
