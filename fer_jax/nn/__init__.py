"""Layers for anyone's JAX code; importing them pulls in JAX and Flax only.

What a layer cannot take is a ValueError that names the argument, what it may
be, and what it is.
"""

from fer_jax.nn.attention import AdditiveAttention
from fer_jax.nn.conv import Conv, conv2d
from fer_jax.nn.dropout import Dropout
from fer_jax.nn.normalization import BatchNorm
from fer_jax.nn.pooling import avg_pool, max_pool
from fer_jax.nn.recurrent import GRU, LSTM, Bidirectional, Stacked
from fer_jax.nn.residual import ResidualBlock
from fer_jax.nn.separable import (
  DepthwiseConv,
  SeparableConv,
  depthwise_conv2d,
)

__all__ = [
  'GRU',
  'LSTM',
  'AdditiveAttention',
  'BatchNorm',
  'Bidirectional',
  'Conv',
  'DepthwiseConv',
  'Dropout',
  'ResidualBlock',
  'SeparableConv',
  'Stacked',
  'avg_pool',
  'conv2d',
  'depthwise_conv2d',
  'max_pool',
]
