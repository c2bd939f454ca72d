"""A module for each verb; here are the flags that several have."""

from absl import flags


class _Steps(flags.ArgumentParser):
  """A number of steps, or a number by default where the flag stands alone."""

  syntactic_help = 'steps'

  def parse(self, argument: str | int) -> int:
    if argument in ('true', 'false'):
      from fer_jax.training import profile

      return profile.STEPS if argument == 'true' else 0
    steps = int(argument)
    if not 0 <= steps < 2**31:
      raise ValueError(f'allowed is 0 to {2**31 - 1}')
    return steps


def define_dry_run(verb: str, what: str) -> None:
  """Defines --dry_run.

  Args:
    verb: name of its module.
    what: is said of memory and time.
  """
  flags.DEFINE_bool(
    'dry_run',
    False,
    f'Compile, take a few steps on the data, say {what}, and leave nothing '
    'behind; needs no --workdir.',
    module_name=verb,
  )


def define_profile(verb: str, folder: str = 'WORKDIR') -> None:
  """Defines --profile.

  Args:
    verb: name of its module.
    folder: in which the trace is.
  """
  flags.DEFINE_flag(
    flags.Flag(
      _Steps(),
      None,
      'profile',
      0,
      'Write a trace of so many steps (--profile alone: of 10) into '
      f'{folder}/profile, for TensorBoard or Perfetto.',
      boolean=True,  # so that it may stand alone
    ),
    module_name=verb,
  )
