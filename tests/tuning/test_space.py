"""Spaces: what is searched, what it is checked against, in which order."""

import pathlib
import runpy

import pytest

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.tuning import (
  Space,
  choice,
  integer,
  log_uniform,
  space,
  uniform,
)

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
SWEEPS = CONFIGS / 'sweeps'


@pytest.fixture(scope='module')
def base():
  return config_lib.get_base(model='residual_gru')


def _first(field, domain):
  return domain.extremes()[0]


@pytest.mark.parametrize(
  'path', sorted(SWEEPS.glob('*.py')), ids=lambda p: p.stem
)
def test_the_sweeps_of_the_package_are_valid(path):
  config = runpy.run_path(str(path))['get_config']()
  config_lib.validate(config)
  made = Space(space.load(path), config)
  assert made.has_shapes
  files.digest(made.to_json())  # is JSON
  if 'grid' in path.stem:
    assert len(made.grid()) == 27


def test_p0_is_searched_with_its_models_on_its_four_sets():
  """Reference: P0's abstract; sizes and channels are those of its claims."""
  get_config = runpy.run_path(str(SWEEPS / 'p0.py'))['get_config']
  claims = runpy.run_path(str(CONFIGS / 'papers' / 'p0.py'))['CLAIMS']
  assert len(claims) == 4
  for model in ('residual_lstm', 'residual_gru', 'residual_bilstm'):
    for dataset, claim in claims.items():
      config = get_config(f'{model},{dataset}')
      config_lib.validate(config)
      assert (config.model.name, config.data.name) == (model, dataset)
      claimed = claim.config('honest').data
      assert config.data.image_size == claimed.image_size
      assert config.data.channels == claimed.channels
  assert get_config('residual_gru').data.name == 'fer2013'
  with pytest.raises(UserError, match="not on 'rafbd'; did you mean 'rafdb'"):
    get_config('residual_gru,rafbd')


def test_fields_that_make_the_shape_come_first_and_conditions_after(base):
  made = Space(
    {
      'optim.learning_rate': log_uniform(1e-4, 1e-2),
      'optim.momentum': uniform(0.8, 0.9, when={'optim.name': 'sgd'}),
      'optim.weight_decay': uniform(
        0, 1e-2, when={'optim.name': ['sgd', 'adamw']}
      ),
      'optim.name': choice('adam', 'sgd', 'adamw'),
      'model.filters': choice((8, 16, 32), (16, 32, 64)),
    },
    base,
  )
  assert list(made.domains) == [
    'optim.name',
    'optim.momentum',
    'model.filters',
    'optim.learning_rate',
    'optim.weight_decay',
  ]
  params = made.suggest(_first)
  assert 'optim.momentum' not in params
  assert 'optim.weight_decay' not in params
  params = made.suggest(
    lambda f, d: d.extremes()[min(1, len(d.extremes()) - 1)]
  )
  assert params['optim.name'] == 'sgd'
  assert params['optim.momentum'] == 0.9
  assert made.shape_text(params) == (
    "optim.name='sgd' optim.momentum=0.9 model.filters=(16,32,64)"
  )
  config = made.config_of(params)
  assert config.model.filters == (16, 32, 64)
  assert base.model.filters == (64, 128, 256)
  config_lib.validate(config)


def test_what_is_stored_comes_back():
  domain = choice((8, 16), [4, (2, 3)])
  assert domain.labels == ('(8, 16)', '(4, (2, 3))')
  assert domain.value(domain.stored((4, (2, 3)))) == (4, (2, 3))
  assert domain.stored((9,)) is None
  assert choice(1, 2).stored(1.0) is None
  assert uniform(0.0, 1.0).stored(2.0) is None
  assert integer(1, 3).stored(True) is None


def test_a_grid_has_every_combination_once_and_shapes_together(base):
  made = Space(
    {
      'model.dropout': choice(0.1, 0.2),
      'optim.momentum': choice(0.8, 0.9, when={'optim.name': 'sgd'}),
      'optim.name': choice('adam', 'sgd'),
    },
    base,
  )
  grid = made.grid()
  assert len(grid) == 2 + 2 * 2
  assert len({tuple(sorted(params.items())) for params in grid}) == len(grid)
  shapes = [made.shape_text(params) for params in grid]
  assert len(set(shapes)) == 3
  assert shapes == sorted(shapes, key=shapes.index)


def test_the_search_begins_at_the_config_where_that_lies_in_the_space(base):
  inside = {'model.dropout': uniform(0.0, 0.6), 'model.units': choice(64, 128)}
  assert Space(inside, base).stored_base() == {
    'model.units': 128,
    'model.dropout': 0.5,
  }
  outside = {**inside, 'model.units': choice(32, 64)}
  assert Space(outside, base).stored_base() is None
  assert Space(outside, base).outside() == {'model.units': 128}
  # Not searched at the config's own optimiser, so in nobody's way.
  momentum = uniform(0.1, 0.2, when={'optim.name': 'sgd'})
  inside['optim.momentum'] = momentum
  assert Space(inside, base).outside() == {}
  inside['optim.name'] = choice('adam', 'sgd')
  assert Space(inside, base).stored_base() == {
    'model.units': 128,
    'optim.name': 'adam',
    'model.dropout': 0.5,
  }


@pytest.mark.parametrize(
  ('domains', 'says'),
  [
    ({}, 'expected config fields with ranges'),
    ({'optim.learning_rat': uniform(0, 1)}, "mean 'optim.learning_rate'"),
    ({'optim.learning_rate': (1, 2)}, r'rate is \(1, 2\); expected unif'),
    ({'optim.learning_rate': uniform(1, 1)}, r'\(1, 1\); expected the smaller'),
    ({'optim.learning_rate': uniform(2, 1)}, r'\(2, 1\); expected the smaller'),
    ({'optim.learning_rate': uniform(0, float('nan'))}, 'expected two finite'),
    ({'optim.learning_rate': uniform('a', 1)}, 'expected two finite numbers'),
    ({'optim.learning_rate': log_uniform(0, 1)}, 'expected numbers above 0'),
    ({'model.units': integer(1, 2**63)}, 'expected numbers of at most 9007'),
    ({'model.units': integer(1.5, 3)}, 'expected two whole numbers'),
    ({'model.units': choice()}, 'expected at least one value'),
    ({'model.units': choice(8, 8)}, 'expected every value once'),
    ({'model.units': choice(8, None)}, 'expected numbers, texts'),
    ({'model.units': choice(8, 0)}, 'units must be a positive int of at'),
    ({'model.units': choice(8, 2**40)}, 'units must be a positive int of at'),
    ({'model.units': uniform(8, 16)}, 'model.units'),
    ({'model.dropout': uniform(0, 1)}, 'dropout'),
    ({'train.batch_size': choice(0, 8)}, 'size may be 0; allowed is a whole'),
    ({'optim.weight_decay': uniform(0, 1)}, 'optim.name adam has none'),
    ({'data.fold': choice(0, 1)}, 'fold cannot be searched: it changes who'),
    ({'data.protocol': choice('official')}, 'data.protocol cannot be searched'),
    ({'data.options.images': choice(160)}, 'cannot be searched'),
    ({'train.select': choice('loss')}, 'trials are compared by it'),
    ({'train.block_steps': choice(10)}, 'it changes no result'),
    ({'model.name': choice('residual_gru')}, 'one sweep a model'),
    (
      {'model.units': choice(8, when={'optim.nam': 'adam'})},
      r'condition on optim.nam, which is no config field; did you mean',
    ),
    ({'model.units': choice(8, when='adam')}, 'expected values of other f'),
    (
      {
        'model.units': choice(8, 16, when={'optim.name': 'sdg'}),
        'optim.name': choice('adam', 'sgd'),
      },
      "condition optim.name='sdg', which is not among",
    ),
    (
      {
        'model.units': choice(8, 16, when={'train.ema_decay': 0.5}),
        'train.ema_decay': choice(0.5, when={'model.units': 8}),
      },
      'depend on each other',
    ),
    (
      {
        'model.units': choice(8, 16, when={'model.dropout': 0.5}),
        'model.dropout': choice(0.5, 0.1),
      },
      'changes what is compiled and has a condition on model.dropout',
    ),
  ],
)  # fmt: skip
def test_mistakes_are_one_line_each(base, domains, says):
  with pytest.raises(UserError, match=says) as raised:
    Space(domains, base)
  assert '\n' not in str(raised.value)


def test_a_sweep_needs_something_that_selects(base):
  config = base.copy_and_resolve_references()
  config.train.select = 'last'
  with pytest.raises(UserError, match=r"train\.select is 'last'"):
    Space({'model.dropout': uniform(0.0, 0.5)}, config)


def test_the_loss_that_selects_is_one(base):
  """Of soft targets one loss is never above the other."""
  losses = {'train.loss': choice('cross_entropy', 'multi_target')}
  assert Space(losses, base).domains
  config = base.copy_and_resolve_references()
  config.train.select = 'loss'
  with pytest.raises(UserError, match=r"train\.loss cannot .*select is 'loss'"):
    Space(losses, config)
  # What validation leaves out of its loss may be searched.
  others = {
    'train.label_smoothing': uniform(0.0, 0.2),
    'train.class_weights': choice('none', 'balanced'),
  }
  assert Space(others, config).domains


def test_a_grid_that_has_no_end_or_multiplies_beyond_measure(base):
  with pytest.raises(UserError, match=r'model\.dropout is uniform, and'):
    Space({'model.dropout': uniform(0.0, 0.5)}, base).grid()
  large = {
    'seed': integer(0, 10**9),
    'model.units': integer(1, 10**6),
  }
  with pytest.raises(UserError, match='more than 100,000 combinations'):
    Space(large, base).grid()


def test_files_that_are_no_sweeps(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text('def get_config(): pass\n')
  with pytest.raises(UserError, match=r'has no get_space\(\)'):
    space.load(path)
  path.write_text('def get_space(): return 1 / 0\n')
  with pytest.raises(UserError, match='ZeroDivisionError'):
    space.load(path)
  with pytest.raises(UserError, match='is no sweep file'):
    space.load(tmp_path / 'config.json')
