"""The peers of the extra `bench`: as many parameters as the arithmetic says,
the shapes of the logits, and steps that train, or take gradients."""

import importlib.util
import math

import pytest

from fer_jax import models
from fer_jax.benchmark import architecture, translation
from fer_jax.benchmark.worker import Worker

SMALL = {
  'input_shape': (12, 12, 1),
  'stem_filters': (4,),
  'filters': (4, 6),
  'blocks': (1, 1),
  'units': 5,
  'head': (8,),
}
NETWORKS = {
  'residual_bilstm': {},
  'residual_gru': {'attention': False, 'recurrent_layers': 2},
}
SEQUENCES = {'seed': 0, 'batch': 2, 'steps': 3, 'inputs': 4, 'units': 5}
GATES = {'lstm': 4, 'gru': 3}
BENCH = 'needs the extra bench'


def case(name):
  overrides = {**SMALL, **NETWORKS[name]}
  layers = translation.layers(models.specify(name, **overrides), num_classes=7)
  return {
    'layers': layers,
    'input_shape': [12, 12, 1],
    'num_classes': 7,
    'batch_size': 3,
    'steps_per_epoch': 2,
    'learning_rate': 1e-3,
    'seed': 0,
  }


@pytest.mark.parametrize('name', NETWORKS)
def test_torch(name):
  torch = pytest.importorskip('torch', reason=BENCH)
  from fer_jax.benchmark.contenders import pytorch

  built = case(name)
  run, info = pytorch.prepare(built)
  assert info['parameters'] == architecture.parameter_count(built['layers'])
  assert math.isfinite(run(2))
  logits = pytorch.stack(built['layers'])(torch.zeros(3, 1, 12, 12))
  assert logits.shape == (3, 7)


@pytest.mark.skipif(importlib.util.find_spec('keras') is None, reason=BENCH)
@pytest.mark.parametrize('name', NETWORKS)
def test_keras(name):
  # In a process of its own, as Keras takes one back end a process.
  built = case(name)
  with Worker(
    'fer_jax.benchmark.contenders.keras_3',
    environment={'KERAS_BACKEND': 'jax'},
  ) as worker:
    info = worker.prepare(built)
    assert info['backend'] == 'jax'
    assert info['parameters'] == architecture.parameter_count(built['layers'])
    assert info['steps_per_dispatch'] == 2
    assert worker.run(2) > 0


@pytest.mark.parametrize('cell', GATES)
def test_recurrent_torch(cell):
  pytest.importorskip('torch', reason=BENCH)
  from fer_jax.benchmark.contenders import recurrent_torch

  run, info = recurrent_torch.prepare({'cell': cell, **SEQUENCES})
  # In both directions kernel, recurrent kernel and two biases.
  assert info['parameters'] == 2 * GATES[cell] * 5 * (4 + 5 + 2)
  assert run(2) > 0
