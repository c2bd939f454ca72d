"""A config file for the fuzzer's command lines; what it holds is code."""

from fer_jax import config


def get_config(text='residual_bilstm'):
  return config.get_base(model=text)
