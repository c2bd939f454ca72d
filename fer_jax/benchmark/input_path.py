"""What gather, augmentation and standardisation cost of a training step."""

from fer_jax.benchmark import contest, rounds
from fer_jax.benchmark.contest import Contender, Effort

OWN_MODULE = 'fer_jax.benchmark.contenders.own'


def measure(case: dict, effort: Effort) -> dict:
  """Times whole steps, steps without augmentation, and the input path alone.

  Args:
    case: see `fer_jax.benchmark.contenders`.
    effort: how long is measured.

  Returns:
    What `contest.hold` returns for 'whole', 'without_augmentation' and
    'input_path', with two spreads over rounds of shares of a whole step:
    'input_share', the input path alone over the whole step, and
    'augmentation_share', what a step saves without augmentation.
  """
  result = contest.hold(
    [
      Contender(name, OWN_MODULE, {**case, 'what': what})
      for name, what in (
        ('whole', 'whole'),
        ('without_augmentation', 'train_step'),
        ('input_path', 'input_path'),
      )
    ],
    effort,
    images=case['batch_size'],
  )
  whole, bare, alone = (
    result['contenders'][name]['rounds']
    for name in ('whole', 'without_augmentation', 'input_path')
  )
  return {
    'input_share': rounds.ratios(alone, whole),
    'augmentation_share': rounds.spread(
      [1.0 - b / w for b, w in zip(bare, whole, strict=True)]
    ),
    **result,
  }
