"""The report of a sweep, of any number of trials in any state."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from parsed_page import Page

from fer_jax.errors import UserError
from fer_jax.evaluation import report, sweeps, wording

SPACE = {
  'model.filters': {
    'kind': 'choice',
    'choices': [[16, 32], [32, 64], [32, 64, 128]],
    'low': None,
    'high': None,
    'log': False,
    'when': None,
  },
  'optim.name': {'kind': 'choice', 'choices': ['adamw', 'sgd']},
  'optim.learning_rate': {
    'kind': 'log_uniform',
    'low': 1e-4,
    'high': 1e-1,
    'log': True,
  },
  'optim.momentum': {
    'kind': 'uniform',
    'low': 0.8,
    'high': 0.99,
    'when': {'optim.name': 'sgd'},
  },
  'model.units': {'kind': 'integer', 'low': 16, 'high': 128},
  'train.batch_size': {'kind': 'choice', 'choices': [64]},
}


def make_sweep(count, *, metric='accuracy', states=('complete', 'pruned')):
  """The content of sweep.json of made-up trials.

  Args:
    count: trials.
    metric: that is searched by.
    states: those of trials, in turn.
  """
  rng = np.random.default_rng(0)
  trials = []
  for number in range(count):
    state = states[number % len(states)]
    filters = SPACE['model.filters']['choices'][number % 3]
    params = {
      'model.filters': filters,
      'optim.name': ('adamw', 'sgd')[number % 2],
      'optim.learning_rate': float(10 ** rng.uniform(-4, -1)),
      'model.units': int(rng.integers(16, 129)),
      'train.batch_size': 64,
    }
    if params['optim.name'] == 'sgd':
      params['optim.momentum'] = float(rng.uniform(0.8, 0.99))
    peak = 0.6 - 0.05 * (math.log10(params['optim.learning_rate']) + 2.5) ** 2
    epochs = {'complete': 8, 'pruned': 3, 'running': 4}.get(state, 0)
    values = {
      str(epoch): peak * (1 - math.exp(-epoch / 2)) + rng.normal(0, 0.005)
      for epoch in range(1, epochs + 1)
    }
    trials.append(
      {
        'number': number,
        'state': state,
        'value': list(values.values())[-1] if values else None,
        'params': params,
        'values': values,
        'epoch': epochs,
        'epochs': 8,
        'device_seconds': 20.0 * epochs,
        'shape': f'model.filters={tuple(filters)}, train.batch_size=64',
        'workdir': f'trials/{number:04d}',
        'started': '2025-01-02T03:04:05+00:00',
        'ended': None,
      }
    )
  return {
    'space': SPACE,
    'config': {
      'model': {'name': 'residual_bilstm'},
      'data': {'name': 'fer2013'},
    },
    'search': {
      'search': 'tpe',
      'prune': 'halving',
      'population': 4,
      'trials': count,
      'seed': 0,
    },
    'metric': metric,
    'trials': trials,
    'importance': {'optim.learning_rate': 0.75, 'model.units': 0.25}
    if count > 1
    else None,
    'finalists': [
      {
        'trial': 0,
        'params': {},
        'runs': [
          {'seed': seed, 'value': 0.5 + 0.01 * seed, 'workdir': f'f/{seed}'}
          for seed in range(3)
        ],
        'mean': 0.51,
        'sd': 0.01,
      },
      {
        'trial': 2,
        'params': {},
        'runs': [{'seed': 0, 'value': 0.49, 'workdir': 'f/9'}],
        'mean': 0.49,
        'sd': None,
      },
    ]
    if count > 2
    else [],
    'best': {'trial': 0, 'value': 0.5, 'config': 'best.json'},
    'cost': {'device_minutes': 12.5, 'compilations': 3, 'shapes': 3},
    'storage': 'postgresql+psycopg://me:se<cret@db:5432/sweeps',
    'study': 'P0 <first>',
  }


@pytest.fixture
def write(tmp_path):
  """Writes the content of a sweep.json; the workdir."""

  def written(content, name='sweep'):
    (tmp_path / name).mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name / 'sweep.json').write_text(text)
    return tmp_path / name

  return written


def _page(workdir):
  return Page(report.write_report([workdir]).read_text())


def test_a_sweep_is_shown_whole(write, run_maker):
  content = make_sweep(
    18, states=('complete', 'pruned', 'complete', 'failed', 'running')
  )
  workdir = write(content, 'a<b')
  run_maker(workdir / 'trials' / '0000', splits=())
  parsed = _page(workdir)
  for said in (
    'a<b',
    'Sweep of residual_bilstm on fer2013, 18 trials',
    'Protocol fer2013_dev. Leaks: no.',
    'no test example was opened',
    '3 trials under way or waiting',
    '8 complete, 4 pruned, 3 failed, 3 under way',
    '2,871 examples',
    '51.0 ± 1.0 %',
    'log uniform',
    'one of (16, 32), (32, 64), (32, 64, 128)',
    'optim.name is sgd',
    '3 compilations, 3 shapes',
    'P0 <first>',
    'postgresql+psycopg://me:***@db:5432/sweeps',
    'best.json',
    'All 18 trials',
  ):
    assert parsed.says(said), said
  page = (workdir / 'report.html').read_text()
  assert 'cret' not in page
  assert {link[:22] for link in parsed.links} == {'data:image/png;base64,'}
  names = {path.name for path in (workdir / 'figures').iterdir()}
  assert names == {
    'history.png',
    'learning_curves.png',
    'parallel.png',
    'importance.png',
    'finalists.png',
    'cost.png',
    *(f'slice_{number}.png' for number in range(len(SPACE))),
  }
  for path in (workdir / 'figures').iterdir():
    Image.open(io.BytesIO(path.read_bytes())).verify()
  assert all(len(image['alt']) > 10 for image in parsed.images)


def test_a_sweep_that_has_barely_begun_is_shown(write):
  for name, content, said in (
    ('none', make_sweep(0) | {'best': None}, 'No trial has trained to its end'),
    ('one', make_sweep(1), '1 trial'),
    (
      'failed',
      make_sweep(2, states=('failed',)) | {'best': None},
      '2 failed',
    ),
  ):
    assert _page(write(content, name)).says(said)


@pytest.mark.parametrize('count', [1, 2])
def test_finalists_that_failed_are_said(write, count):
  content = make_sweep(3)
  why = 'the loss is not finite'
  for finalist in content['finalists'][:count]:
    finalist |= {'mean': None, 'sd': None}
    finalist['runs'][0] |= {'value': None, 'failure': why}
  content['best']['trial'] = 2 if count == 1 else 0
  parsed = _page(write(content))
  assert parsed.says(
    f'51.0 % (seed 1), 52.0 % (seed 2), failed (seed 0): {why}'
  )
  assert parsed.says('A finalist that failed under another seed is left out')
  alone = 'it was selected by, which no other seed confirms: every finalist'
  assert parsed.says(alone) == (count == 2)
  assert parsed.says('trial 0, 2 seeds, 1 failed') == (count == 2)


def test_the_best_is_the_least_of_losses_and_best_so_far_falls(write):
  content = make_sweep(5, metric='loss', states=('complete',))
  for trial, value in zip(
    content['trials'], (0.9, math.nan, 0.4, 0.7, 0.4), strict=True
  ):
    trial['value'] = value
  content['best'] = None
  sweep = sweeps.read(write(content))
  assert sweep.best_trial.number == 2
  assert [t.number for t in sweep.complete] == [0, 2, 3, 4]
  parsed = _page(sweep.path)
  assert parsed.says('Trial 2, validation loss 0.400')
  assert parsed.says('Best so far')


def test_the_best_stands_beside_the_config_and_failures_say_why(write):
  content = make_sweep(6, states=('complete', 'failed'))
  for name, value in content['trials'][4]['params'].items():
    section, leaf = name.split('.')
    content['config'].setdefault(section, {})[leaf] = value
  content['search']['trials'] = 9
  content['trials'][1]['failure'] = 'the loss is not finite'
  for finalist in content['finalists']:
    for run in finalist['runs']:
      run['device_seconds'] = 90.0
  parsed = _page(write(content))
  own = wording.percent(content['trials'][4]['value']).replace('\xa0', ' ')
  for said in (
    'fer2013, 6 of 9 trials',
    'In the config',
    'Named best for its mean under seeds that it was not selected by.',
    f"With the config's own values, trial 4, it is {own}.",
    'failed: the loss is not finite',
    'finalists under other seeds 4 – 6.0',
  ):
    assert parsed.says(said), said
  content['finalists'] = []
  content['best']['trial'] = 4
  parsed = _page(write(content, 'alone'))
  assert parsed.says('it was repeated under no other seed. It has the config')


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda c: c.pop('metric'), 'metric is missing'),
    (lambda c: c['trials'][1].update(state='lost'), r'trials\[1\].state is'),
    (lambda c: c['trials'][0]['values'].update(x=1), r'trials\[0\].values is'),
    (
      lambda c: c['trials'][0]['params'].update({'model.units': math.inf}),
      'params.model.units is inf',
    ),
    (lambda c: c['finalists'][0]['runs'][0].pop('seed'), 'seed is missing'),
    (lambda c: c['finalists'][0].update(sd=-1.0), 'sd is -1.0, expected a num'),
    (lambda c: c.update(space=[]), 'space is a list'),
  ],
)
def test_a_damaged_sweep_is_named(write, change, said):
  content = make_sweep(3)
  change(content)
  with pytest.raises(UserError, match=f'sweep.json: .*{said}'):
    sweeps.read(write(content))


def test_passwords_are_not_read_out(write):
  for url, shown in (
    ('sqlite:////disk/a@b/study.db', 'sqlite:////disk/a@b/study.db'),
    ('postgresql://me@db/x', 'postgresql://me@db/x'),
    ('postgresql://me:a@b:c@db/x', 'postgresql://me:***@db/x'),
    ('postgresql://db/x?user=me&password=p&a=b',
     'postgresql://db/x?user=me&password=***&a=b'),
  ):  # fmt: skip
    content = make_sweep(0) | {'storage': url}
    name = f'w{len(url)}'
    assert sweeps.read(write(content, name)).storage == shown
