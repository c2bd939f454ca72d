"""LSTM, GRU, both directions, stacks: see `layers`; backends: see `cells`."""

from fer_jax.nn.recurrent.backends import BACKENDS, choose_backend
from fer_jax.nn.recurrent.layers import GRU, LSTM, Bidirectional, Stacked

__all__ = [
  'BACKENDS',
  'GRU',
  'LSTM',
  'Bidirectional',
  'Stacked',
  'choose_backend',
]
