"""P3, basic and improved CNN (four classes of FER2013): claims, honest twins.

Cuts angry, happy, neutral and sad to the size of the smallest, takes a fifth
of the images as test, and trains for 100 epochs. Its 98.89 % is training
accuracy, its 89.9 % validation accuracy, on that fifth; its 89 % counts true
negatives: of 200 test images 156 are right. A network's figures share one
training. The twin trains, selects and reports on the official lists and cuts
training alone.

Cost     100 epochs of 15,849 images; docs/records/claims has what was run
Score    docs/records/claims: claimed and honest side by side
Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
Command  python -m fer_jax claims --only=p3
         python -m fer_jax train --workdir=runs/p3 \
           --config=configs/papers/p3.py:improved_cnn
           (its twin: configs/papers/p3.py:improved_cnn,honest)
"""

from fer_jax.claims import Claim, chosen, config_of, inferred, stated

RECIPE = (
  stated('data.classes', ('angry', 'happy', 'neutral', 'sad')),
  stated('optim.name', 'adam'),
  stated('optim.learning_rate', 1e-3),
  stated('train.batch_size', 16),
  stated('train.epochs', 100),
  inferred('augment.enabled', False, 'no augmentation is mentioned'),
)

PROTOCOL = (
  stated('data.protocol', 'downsample_then_split'),
  stated('data.test_share', 0.2),
  inferred('data.validation_share', 0.0, 'the test set is the validation set'),
  inferred('train.select', 'last', 'no selection is mentioned'),
)

HONEST = (
  chosen('data.protocol', 'official', 'selects on PublicTest'),
  stated('data.balance', 'downsample', 'of the training list alone'),
)


def _claim(
  model: str, system: str, claimed: float, reading: str, evidence: str
) -> Claim:
  return Claim(
    paper='P3',
    system=f'{system}, FER2013 (4 classes)',
    model=model,
    dataset='fer2013',
    claimed=claimed,
    reading=reading,
    evidence=evidence,
    recipe=RECIPE,
    protocol=PROTOCOL,
    honest=HONEST,
  )


CLAIMS = {
  'improved_cnn_training': _claim(
    'improved_cnn',
    'improved CNN',
    0.9889,
    'train_accuracy',
    'The paper itself calls 98.89 % training accuracy.',
  ),
  'improved_cnn_validation': _claim(
    'improved_cnn',
    'improved CNN',
    0.899,
    'accuracy',
    'Section 2.3 validates on the fifth that is held out. Of the 200 images '
    'that the paper tests beside it 78 % are right.',
  ),
  'improved_cnn': _claim(
    'improved_cnn',
    'improved CNN',
    0.89,
    'one_against_rest',
    '89 % is (156 + 556) / 800, true negatives counted: 156 of 200 test images '
    'are right, 78 %.',
  ),
  'basic_cnn': _claim(
    'basic_cnn',
    'basic CNN',
    1.0,
    'train_accuracy',
    'Training accuracy reached 100 % (figure 8); of 202 test images 155 were '
    'right, 77 %.',
  ),
  'basic_cnn_validation': _claim(
    'basic_cnn',
    'basic CNN',
    0.7,
    'accuracy',
    'Section 2.3 validates on the fifth that is held out.',
  ),
  'basic_cnn_test': _claim(
    'basic_cnn',
    'basic CNN',
    0.8875,
    'one_against_rest',
    '88.75 % is (155 + 555) / 800, true negatives counted: 155 of 200 test '
    'images, or of 202 by its false negatives, are right.',
  ),
}


def get_config(which='improved_cnn'):
  return config_of(CLAIMS, which)
