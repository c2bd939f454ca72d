"""P2, ImageNet backbones and a GRU on OAHEGA: three claims and honest twins.

No split, optimiser, epochs or input size is given, and the head has seven units
for six classes; the data set's six are taken. OAHEGA names no person and has
no official split: the twin holds out a fifth with the copies of a photograph
kept on one side.

P2 calls VGG16 pre-trained, says of no network on what, and of none whether it
is frozen. Taken are ImageNet's weights, for all three, and all train. They are
yours to download, see docs/models.md; without them both twins train from random
ones, and the claim counts as unfinished. How precision, recall and F1 are
averaged is not said either: means over classes stand beside them.

Cost     hours on an accelerator; not run yet
Score    none yet; `claims` shows claimed and honest side by side
Data     OAHEGA: python -m fer_jax data build --dataset=oahega --source=...
Command  python -m fer_jax claims --only=p2 --pretrained=vgg16_gru=FILE
         python -m fer_jax train --workdir=runs/p2 \
           --config=configs/papers/p2.py:vgg16_gru \
           --config.train.pretrained=FILE
           (its twin: configs/papers/p2.py:vgg16_gru,honest)
"""

from fer_jax.claims import Claim, chosen, config_of, inferred

RECIPE = (
  inferred('data.channels', 3, 'the pictures are RGB'),
  chosen('data.image_size', 96, "no size is given; Keras' Xception takes 71"),
  chosen('optim.name', 'adam', 'no optimiser is given'),
  chosen('optim.learning_rate', 1e-4, 'usual where weights are pretrained'),
  chosen('train.batch_size', 32, 'none is given'),
  chosen('train.epochs', 30, 'none is given'),
  inferred('augment.enabled', False, 'no augmentation is mentioned'),
  chosen('optim.freeze', (), 'whether the networks train is not said'),
)

PROTOCOL = (
  chosen('data.protocol', 'holdout_images', 'no split is given'),
  chosen('data.test_share', 0.2, 'none is given'),
  chosen('data.validation_share', 0.0, 'the test set is the validation set'),
  chosen('train.select', 'last', 'nothing is said'),
)

HONEST = (
  chosen('data.protocol', 'holdout', 'copies stay on one side'),
  chosen('data.test_share', 0.2, 'as its twin'),
)


def _claim(model: str, system: str, claimed: float, **beside: float) -> Claim:
  return Claim(
    paper='P2',
    system=f'{system}+GRU, OAHEGA',
    model=model,
    dataset='oahega',
    claimed=claimed,
    reading='accuracy',
    evidence='No split, optimiser, epochs or input size is given. DenseNet121 '
    'has recall 100 % beside accuracy 99.65 %: were all of every class found, '
    'nothing would be wrong.',
    recipe=RECIPE,
    protocol=PROTOCOL,
    honest=HONEST,
    pretrained=True,
    beside=beside,
  )


CLAIMS = {
  'densenet121_gru': _claim(
    'densenet121_gru',
    'DenseNet121',
    0.9965,
    precision=0.9896,
    recall=1.0,
    f1=0.9957,
  ),
  'vgg16_gru': _claim(
    'vgg16_gru', 'VGG16', 0.9758, precision=0.9695, recall=0.99, f1=0.98
  ),
  'xception_gru': _claim(
    'xception_gru',
    'Xception',
    0.9827,
    precision=0.9765,
    recall=0.9923,
    f1=0.9847,
  ),
}


def get_config(which='densenet121_gru'):
  return config_of(CLAIMS, which)
