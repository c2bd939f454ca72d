"""The base config: every mistake is one line that names field and value."""

import json

import pytest

from fer_jax import config as config_lib
from fer_jax import datasets
from fer_jax.errors import UserError


def _base():
  return config_lib.get_base()


def test_the_base_config_is_valid_and_every_field_is_described():
  config = _base()
  config_lib.validate(config)
  for name, field in config_lib.FIELDS.items():
    assert field.check(field.default) is None, name
    assert len(field.meaning) > 5, name


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('optim.learning_rate', -1.0, 'optim.learning_rate is -1.0; allowed is'),
    ('optim.learning_rate', float('nan'), 'a number above 0'),
    ('train.batch_size', 0, 'a whole number of at least 1'),
    ('augment.crop', 1.5, 'above 0 and at most 1'),
    ('train.patience', 2**31, 'at least 0 and at most 2147483647'),
    ('optim.plateau_patience', 2**31, 'at least 1 and at most 2147483647'),
    ('optim.name', 'adan', 'one of adam, adamw, sgd'),
    ('data.channels', 2, 'one of 1, 3'),
    ('train.loss', 'hinge', 'cross_entropy'),
    ('data.name', 'fer2014', 'fer2013'),
    ('model.name', 'residual_bilstn', "did you mean 'residual_bilstm'"),
    ('model.dropout', 1.5, 'dropout'),
    ('model.kernel_size', 4, 'kernel_size'),
    ('optim.step_epochs', (-1.0,), 'epochs above 0'),
    ('data.protocol', 'offical', 'one of'),
    ('optim.freeze', ('backbone..conv1',), "paths of parameters, as ('backb"),
    ('optim.freeze', ('backbone', 3), 'paths of parameters'),
    ('optim.unfreeze_epochs', (2.5,), 'whole epochs above 0'),
    ('optim.unfreeze_epochs', (5,), 'each of the 0 paths of optim.freeze'),
    # What the command line makes of None, and what a file does.
    ('train.pretrained', 'None', "'None'; allowed is a text, '' for none"),
    ('train.pretrained', None, "None; allowed is a text, '' for none"),
    ('data.data_dir', 'None', "a text, '' for none"),
    ('data.checksum', 'None', "a text, '' for none"),
  ],
)
def test_a_value_out_of_range_names_field_and_what_is_allowed(
  field, value, said
):
  config = _base()
  section, leaf = field.split('.')
  config[section][leaf] = value
  with pytest.raises(UserError) as caught:
    config_lib.validate(config)
  assert said in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', datasets.names())
def test_every_field_has_its_meaning(name):
  config = config_lib.get_base(dataset=name)
  for line in config_lib.describe_fields(config).splitlines():
    field, _, told = line.partition('  ')
    assert told.strip().partition('[')[0], field
  taken = datasets.builder_module(name).OPTIONS
  assert datasets.option_meanings(name).keys() == taken.keys()


def test_fields_of_an_unknown_model_are_not_told():
  config = _base()
  assert 'model.filters' in config_lib.describe_fields(config)
  config.model.name = 'residual_bilstn'
  with pytest.raises(UserError, match="did you mean 'residual_bilstm'"):
    config_lib.describe_fields(config)


def test_an_unknown_field_names_the_nearest():
  config = _base()
  with config.unlocked():
    config.optim.learning_rat = 1.0
  with pytest.raises(UserError, match=r'optim\.learning_rat; did you mean'):
    config_lib.validate(config)


def test_weight_decay_under_plain_adam_is_refused():
  config = _base()
  config.optim.name = 'adam'
  config.optim.weight_decay = 0.1
  with pytest.raises(UserError, match=r'adamw, or optim\.l2'):
    config_lib.validate(config)


def test_balancing_classes_twice_is_refused():
  config = _base()
  config.train.sampling = 'class_balanced'
  config_lib.validate(config)
  config.train.class_weights = 'balanced'
  with pytest.raises(UserError, match='rare classes twice'):
    config_lib.validate(config)


def test_warmup_longer_than_the_run_is_refused():
  config = _base()
  config.train.epochs = 5
  config.optim.warmup_epochs = 5.0
  with pytest.raises(UserError, match=r'fewer than train\.epochs, 5'):
    config_lib.validate(config)


@pytest.mark.parametrize('epochs', [(), (3.0, 3.0), (1.0,), (10.0,)])
def test_step_epochs_that_would_be_lost_are_refused(epochs):
  config = _base()
  config.optim.schedule = 'step'
  config.optim.warmup_epochs = 1.0
  config.train.epochs = 10
  config.optim.step_epochs = epochs
  with pytest.raises(UserError, match=r'optim\.step_epochs is .*rising'):
    config_lib.validate(config)


@pytest.mark.parametrize('epochs', [(5, 3), (3, 10), (10,)])
def test_unfreezing_that_would_not_happen_in_turn_is_refused(epochs):
  config = _base()
  config.train.epochs = 10
  config.optim.freeze = ('backbone.residual1', 'backbone')
  config.optim.unfreeze_epochs = (3, 3)
  config_lib.validate(config)
  config.optim.unfreeze_epochs = epochs
  with pytest.raises(UserError, match=r'rise or stay, below train\.epochs, 10'):
    config_lib.validate(config)


def test_json_round_trip_keeps_every_value_and_type():
  config = _base()
  config.optim.step_epochs = (10.0, 20.0)
  config.optim.freeze = ('backbone.conv1', 'backbone')
  config.optim.unfreeze_epochs = (3,)
  config.train.pretrained = 'vgg16.h5'
  config.model.filters = (8, 16, 32)
  text = json.dumps(config_lib.to_json(config))
  again = config_lib.from_json(json.loads(text), source='config.json')
  assert dict(config_lib.flatten(again)) == dict(config_lib.flatten(config))
  assert config_lib.differences(config, again) == []


def test_json_with_an_unknown_field_names_file_and_field():
  value = config_lib.to_json(_base())
  value['train']['batchsize'] = 3
  with pytest.raises(UserError, match=r'here\.json: .*train\.batchsize'):
    config_lib.from_json(value, source='here.json')


def test_differences_name_both_values_and_leave_out_what_changes_nothing():
  here, there = _base(), _base()
  here.optim.learning_rate = 0.5
  here.train.block_steps = 7
  here.data.data_dir = 'elsewhere'
  assert config_lib.differences(there, here) == [
    'optim.learning_rate is 0.001 there and 0.5 here'
  ]
