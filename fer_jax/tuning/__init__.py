"""Searches for hyperparameters: a space, a study, populations of trials.

`space` says what is varied, `study` holds Optuna's part, `queue` hands trials
to workers and takes back those of killed ones, `shapes` chooses what is worth
compiling, `worker` trains populations of trials in the places of `seats`,
`sweep` does it all and `summary` writes what came of it.

A sweep file names its ranges with the functions below.
"""

from fer_jax.tuning.space import (
  Domain,
  Space,
  choice,
  integer,
  log_uniform,
  uniform,
)

__all__ = ['Domain', 'Space', 'choice', 'integer', 'log_uniform', 'uniform']
