"""Sweeps for tests and their processes."""

import optuna
from small_config import small_config

from fer_jax.tuning import search, study, sweep


def config(data_dir):
  """At 8 x 8, with a model smaller still."""
  made = small_config(
    data_dir, stem_filters=(2,), filters=(2,), units=2, head=()
  )
  made.data.image_size = 8
  return made


def settings(**values):
  """No finalists unless they are asked for."""
  searched = {
    k: values.pop(k) for k in ('search', 'prune', 'seed') if k in values
  }
  return sweep.Settings(
    searching=search.Settings(**searched), **{'seeds': 0, **values}
  )


def stored(content):
  """The study of a sweep.json, as Optuna opens it."""
  return optuna.load_study(
    study_name=content['study'], storage=study.database(content['storage'])
  )
