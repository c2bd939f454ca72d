"""Lets a run's config.json be given where a config file is expected."""

from fer_jax import config


def get_config(path: str):
  """The config that a config.json holds."""
  return config.load_json(path)
