"""Claims and their honest twins: configs, runs, and the table.

The runs are of a claim made up here, on rendered faces; those of papers are
for real data alone.
"""

import copy
import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest
import small_config
from asked_to_leave import AskedAfter

from fer_jax import config as config_lib
from fer_jax.claims import Claim, chosen, config_of, running, stated, table
from fer_jax.claims import claim as claim_lib
from fer_jax.data import ledger
from fer_jax.errors import UserError
from fer_jax.training import preemption, records, task

pytestmark = pytest.mark.usefixtures('shared_programs')
PAPERS = pathlib.Path(__file__).parents[2] / 'configs' / 'papers'
CLAIMS = running.load(PAPERS)
LEAKY = {
  'holdout_images',
  'kfold_images',
  'oversample_then_split',
  'downsample_then_split',
  'evaluate_on_train',
}

TINY = (
  stated('data.image_size', 16),
  chosen('data.options.images', 160, 'few'),
  *(chosen(f'model.{k}', v, 'small') for k, v in small_config.MODEL.items()),
  chosen('train.batch_size', 32, 'small'),
  stated('train.epochs', 2),
)


@pytest.fixture
def claim():
  return Claim(
    paper='P9',
    system='residual BiLSTM, rendered faces',
    model='residual_bilstm',
    dataset='synthetic_faces',
    claimed=1.0,
    reading='one_against_rest',
    evidence='Made up.',
    recipe=TINY,
    protocol=(
      stated('data.protocol', 'kfold_images'),
      stated('data.folds', 4),
      stated('data.validation_share', 0.0),
      stated('train.select', 'last'),
    ),
    honest=(chosen('data.protocol', 'kfold_subjects', 'no one twice'),),
    beside={'recall': 0.875},
  )


@pytest.mark.parametrize('name', sorted(CLAIMS))
def test_configs_of_papers_are_valid_and_their_twins_honest(name):
  claim = CLAIMS[name]
  paper, honest = claim.config('paper'), claim.config('honest')
  for config in (paper, honest):
    config_lib.validate(config)
  assert paper.data.protocol in LEAKY
  assert honest.data.protocol not in LEAKY
  # Nothing but the protocol, what selects and how training is balanced.
  differ = {
    line.split(' ')[0] for line in config_lib.differences(paper, honest)
  }
  assert differ <= {
    'data.protocol',
    'data.folds',
    'data.test_share',
    'data.validation_share',
    'data.balance',
    'train.select',
  }
  for mark in (*claim.marks('paper'), *claim.marks('honest')):
    assert mark.source in ('stated', 'inferred', 'chosen')
    assert mark.source == 'stated' or mark.note


def test_every_paper_and_figure_is_there():
  claimed = {name: claim.claimed for name, claim in CLAIMS.items()}
  assert claimed == {
    'p0_fer2013': 0.9985,
    'p0_ferplus': 0.9999,
    'p0_rafdb': 1.0,
    'p0_ckplus': 1.0,
    'p1_ckplus': 1.0,
    'p1_rafdb': 1.0,
    'p1_ferplus': 0.9996,
    'p2_densenet121_gru': 0.9965,
    'p2_vgg16_gru': 0.9758,
    'p2_xception_gru': 0.9827,
    'p3_improved_cnn_training': 0.9889,
    'p3_improved_cnn_validation': 0.899,
    'p3_improved_cnn': 0.89,
    'p3_basic_cnn': 1.0,
    'p3_basic_cnn_validation': 0.7,
    'p3_basic_cnn_test': 0.8875,
    'p4_cnn_model1': 0.7465,
    'p4_cnn_model1_linear': 0.7465,  # another reading of the same
    'p4_cnn_lstm_model2': 0.7979,
    'p4_cnn_lstm_model3': 0.8511,
  }


def test_figures_of_one_network_share_its_runs():
  """P3 prints three figures of each network's one training."""
  folders = {}
  for name, claim in running.select(CLAIMS, ['p3']).items():
    made = {running._folder(claim, claim.config(t)) for t in claim_lib.TWINS}
    assert folders.setdefault(claim.model, made) == made, name
  assert len(folders) == 2


def test_every_figure_beside_a_claim_is_there():
  """P2's table 1 and P4's table 8."""
  assert {
    name: claim.beside for name, claim in CLAIMS.items() if claim.beside
  } == {
    'p2_densenet121_gru': {'precision': 0.9896, 'recall': 1.0, 'f1': 0.9957},
    'p2_vgg16_gru': {'precision': 0.9695, 'recall': 0.99, 'f1': 0.98},
    'p2_xception_gru': {'precision': 0.9765, 'recall': 0.9923, 'f1': 0.9847},
    'p4_cnn_model1': {'precision': 0.75, 'recall': 0.7486, 'f1': 0.7457},
    'p4_cnn_model1_linear': {
      'precision': 0.75,
      'recall': 0.7486,
      'f1': 0.7457,
    },
    'p4_cnn_lstm_model2': {'precision': 0.8071, 'recall': 0.7986, 'f1': 0.7971},
    'p4_cnn_lstm_model3': {'precision': 0.8528, 'recall': 0.8514, 'f1': 0.85},
  }


def test_what_a_paper_gives_no_value_of_is_not_stated():
  def sources(name, field):
    return [m.source for m in CLAIMS[name].marks('paper') if m.field == field]

  for name in CLAIMS:
    # Flips are stated, how often is not.
    assert sources(name, 'augment.flip') in ([], ['chosen'])
    assert sources(name, 'optim.l2') in ([], ['chosen'])
  # P4 trains model 1 by no recipe of its own, and model 2 for 30 to 100 epochs.
  for name, optimiser, epochs in (
    ('p4_cnn_model1', 'inferred', 'stated'),
    ('p4_cnn_lstm_model2', 'stated', 'inferred'),
    ('p4_cnn_lstm_model3', 'stated', 'stated'),
  ):
    assert sources(name, 'optim.name') == [optimiser]
    assert sources(name, 'train.epochs') == [epochs]


def test_a_config_file_takes_a_claim_and_its_twin():
  claims = {'one': CLAIMS['p4_cnn_model1']}
  assert config_of(claims, 'one').data.protocol == 'oversample_then_split'
  assert config_of(claims, 'one,honest').data.balance == 'oversample'
  with pytest.raises(UserError, match=r"no claim 'onne'.*did you mean 'one'"):
    config_of(claims, 'onne')
  with pytest.raises(UserError, match="no twin 'honset'; there are paper, hon"):
    config_of(claims, 'one,honset')


def test_one_against_rest_counts_true_negatives():
  """P3's own 78 % of four classes, printed as (156 + 556) / 800."""

  class FourClasses:
    class_names = ('a', 'b', 'c', 'd')

  got = running._figure('one_against_rest', 156 / 200, [], FourClasses)
  assert got == pytest.approx((156 + 556) / 800)


def test_selection_by_the_beginning_of_a_name():
  assert len(running.select(CLAIMS, ['p4'])) == 4
  assert list(running.select(CLAIMS, ['p2_vgg16'])) == ['p2_vgg16_gru']
  assert running.select(CLAIMS, []) == CLAIMS
  with pytest.raises(UserError, match='--only=p5: no such claim'):
    running.select(CLAIMS, ['p5'])


def test_folders_without_claims(tmp_path):
  with pytest.raises(UserError, match='no such folder of claims'):
    running.load(tmp_path / 'none')
  with pytest.raises(UserError, match='holds no claims'):
    running.load(tmp_path)
  (tmp_path / 'p.py').write_text('def get_config(): pass\n')
  with pytest.raises(UserError, match='has no CLAIMS'):
    running.load(tmp_path)
  for content, said in (
    ('import nowhere', r'p\.py: ModuleNotFoundError: No module'),
    ('CLAIMS = (', r'p\.py: SyntaxError'),
    ('CLAIMS = {"a": 3}', r"CLAIMS\['a'\] is of int, expected a fer_jax"),
  ):
    (tmp_path / 'p.py').write_text(content)
    with pytest.raises(UserError, match=said):
      running.load(tmp_path)


def _run(claim, tmp_path, data_dir, members, **limits):
  return running.run(
    'p9_made_up',
    claim,
    data_dir=str(data_dir),
    workdir=tmp_path,
    limits=running.Limits(**limits),
    members=members,
  )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def test_a_claim_beside_its_twin(claim, tmp_path, data_dir):
  config = claim.config('honest')
  config.data.data_dir = str(data_dir)
  before = len(ledger.read(task.load_dataset(config), ledger.OPENED))
  members = {}
  row = _run(claim, tmp_path, data_dir, members, folds=2)
  paper, honest = row['paper'], row['honest']
  assert paper['protocol']['leaks']
  assert not honest['protocol']['leaks']
  assert (paper['folds'], paper['of_folds']) == (2, 4)
  assert (paper['epochs'], paper['of_epochs']) == (2, 2)
  assert not paper['finished']  # two folds are missing
  assert paper['n'] == 80
  classes = 7
  assert paper['figure'] == pytest.approx(
    1 - 2 * (1 - paper['accuracy']) / classes
  )
  assert paper['audit']['share_of_test_seen']['subject'] > 0
  assert honest['audit']['share_of_test_seen']['subject'] == 0
  assert paper['interval'][0] <= paper['accuracy'] <= paper['interval'][1]
  assert len(members) == 4
  assert json.loads(json.dumps(row))['honest'] == honest
  said = table.text([row, {**row, 'absent': 'no build'}])
  assert 'p9_made_up  100.00' in said
  assert '2/2 in 2/4 folds, 2/2 in 2/10 folds *' in said
  assert 'to finish: the same command again with --folds=0\n' in said
  recalls = [100 * twin['macro']['recall'] for twin in (paper, honest)]
  assert 'recall 87.50\u00a0% claimed; mean over classes' in said
  assert f'classes {recalls[0]:.1f}\u00a0% under its protocol, ' in said
  assert f'{recalls[1]:.1f}\u00a0% honestly' in said
  assert 'not run: no build' in said
  assert not table.finished(row)
  # The reason is of what is pooled, not of its first fold.
  assert '2 of 4 folds: 80 test examples. 2 of 4 folds are reported. ' in said
  assert '2 of 10 folds are reported. ' in said
  assert len(paper['protocol']['digests']) == 2

  names, rule, cells = (
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in table.markdown(
      [row, {**row, 'absent': 'no build'}], ['claims.json'] * 2
    ).splitlines()
  )
  assert names == list(table._PAGE_COLUMNS)
  assert set(rule) == {'---'}
  assert len(cells) == len(names)
  cell = dict(zip(names, cells, strict=True))
  shares = [t['audit']['share_of_test_seen'] for t in (paper, honest)]
  seen = [share['exact_copy'] for share in shares]
  assert cell['measures'] == 'one against rest'
  assert cell['test with a twin in training, its / honest'] == ' / '.join(
    f'{100 * s:.1f}\u00a0%' for s in seen
  )
  assert cell['claim'] == '`p9_made_up` ([record](claims.json))'
  plain = f'(accuracy {100 * paper["accuracy"]:.1f}\u00a0%)'
  assert cell['under its protocol'].endswith(plain)
  assert cell['epochs, its / honest'].endswith('2/10 folds, unfinished')
  nobody = copy.deepcopy(row)
  for twin in ('paper', 'honest'):
    nobody[twin]['audit']['share_of_test_seen']['subject'] = None
  assert 'whose person' in table.markdown([row, nobody])
  assert 'whose person' not in table.markdown([nobody])

  # The same again trains nothing and looks at no test.
  looks = len(ledger.read(task.load_dataset(config), ledger.OPENED))
  assert looks == before + 4
  again = _run(claim, tmp_path, data_dir, {}, folds=2)
  assert again == row
  assert len(ledger.read(task.load_dataset(config), ledger.OPENED)) == looks


def test_what_cannot_be_honest_is_said_before_anything_trains(
  claim, tmp_path, data_dir
):
  honest = (chosen('data.protocol', 'fer2013_dev', 'of another set'),)
  claim = dataclasses.replace(claim, honest=honest)
  row = _run(claim, tmp_path / 'runs', data_dir, {})
  assert row['absent'].startswith('honest: protocol fer2013_dev is for')
  assert 'paper' not in row
  assert not (tmp_path / 'runs').exists()


def test_a_twin_that_fails_leaves_the_papers_figure(
  claim, tmp_path, monkeypatch
):
  twins = []

  def made(claim, config, *_):
    if twins:
      raise UserError('the disk is full')
    twins.append(config)
    return {'figure': 0.75}

  dataset = types.SimpleNamespace(table={'official_split': ['train']})
  monkeypatch.setattr(running, '_twin', made)
  monkeypatch.setattr(running.task, 'load_dataset', lambda config: dataset)
  monkeypatch.setattr(running.task, 'partition_of', lambda *_: None)
  row = _run(claim, tmp_path, tmp_path, {})
  said = table.text([row])
  assert '75.0' in said
  assert 'not run: honest: the disk is full' in said


def test_folds_are_pooled_by_their_size():
  parts = [{'n': 10, 'accuracy': 1.0}, {'n': 30, 'accuracy': 0.5}]
  assert running._pooled([*parts, None, {'n': 0, 'accuracy': None}]) == 25 / 40
  assert running._pooled([None]) is None


def _member(size: int, share: float) -> dict:
  """What a run gives whose audit has one share everywhere, twins unknown."""
  return {
    'protocol': {
      'name': 'made_up',
      'reason': 'Fold 1 of 4 is reported. All of it is made up.',
      'options': {'fold': 0},
      'digest': 'c0ffee',
    },
    'epoch': 2,
    'finished': True,
    'units': np.arange(size).astype(str),
    'logits': np.eye(3)[np.arange(size) % 3],
    'labels': np.arange(size) % 3,
    'train_accuracy': 1.0,
    'without_twins': None,
    'audit': {
      'share_of_test_seen': dict.fromkeys(running._SEEN, share)
      | {'twin': None},
      'nearest_neighbour': {'accuracy': share},
    },
    'seconds': 1.0,
    'workdir': 'run',
  }


def test_audits_of_folds_are_pooled_and_weights_of_a_paper_count(
  claim, tmp_path, monkeypatch
):
  members = iter([_member(10, 0.2), _member(30, 0.6)] + 2 * [_member(9, 0.1)])
  monkeypatch.setattr(running, '_member', lambda *_: next(members))
  dataset = types.SimpleNamespace(class_names=('a', 'b', 'c'))

  def made(claim, twin, **fields):
    config = claim.config(twin)
    config.train.update(fields)
    limits_and_rest = running.Limits(folds=2), {}, preemption.Notice()
    return running._twin(claim, config, dataset, tmp_path, *limits_and_rest)

  found = made(claim, 'paper')['audit']
  assert found['nearest_neighbour']['accuracy'] == pytest.approx(20 / 40)
  assert found['share_of_test_seen']['exact_copy'] == pytest.approx(20 / 40)
  assert found['share_of_test_seen']['twin'] is None

  official = (chosen('data.protocol', 'official', 'one part'),)
  claim = dataclasses.replace(claim, pretrained=True, honest=official)
  assert not made(claim, 'honest')['finished']
  assert made(claim, 'honest', pretrained='weights.h5')['finished']


def test_files_of_weights_are_of_claims_that_start_from_some(tmp_path):
  papers = {claim.paper for claim in CLAIMS.values() if claim.pretrained}
  assert papers == {'P2'}
  for model, said in (
    ('cnn_model1', 'no claim that is run starts cnn_model1 from weights; '),
    ('vgg16_gru', 'there is no such file'),
  ):
    weights = {model: str(tmp_path / 'w.h5')}
    with pytest.raises(UserError, match=said):
      running.require_weights(CLAIMS, weights)
  (tmp_path / 'w.h5').touch()
  running.require_weights(CLAIMS, weights)


def test_an_audit_that_is_not_ours_is_named(tmp_path):
  (tmp_path / 'audit.json').write_text('{}')
  with pytest.raises(UserError, match=r'audit\.json: digest is missing; del'):
    running._audited(tmp_path, None, None, 'abc')
  # The table shows the larger of two shares, so one has to be known.
  shares = dict.fromkeys(running._SEEN)
  figures = {
    'share_of_test_seen': shares,
    'nearest_neighbour': {'accuracy': 0.5},
  }
  content = json.dumps({'digest': 'abc', 'figures': figures})
  (tmp_path / 'audit.json').write_text(content)
  with pytest.raises(UserError, match='exact_copy is None, expected a finite'):
    running._audited(tmp_path, None, None, 'abc')


def test_a_claim_that_is_asked_leaves_and_evaluates_nothing(
  claim, tmp_path, data_dir, capsys
):
  notice = AskedAfter(2)
  with pytest.raises(running.LeftError):
    running.run(
      'p9_made_up',
      claim,
      data_dir=str(data_dir),
      workdir=tmp_path,
      limits=running.Limits(),
      members={},
      notice=notice,
    )
  (left,) = tmp_path.iterdir()
  assert records.read_metrics(left) == []
  assert not list(left.glob('metrics_*'))
  row = _run(claim, tmp_path, data_dir, {})
  assert f'resuming {left}' in capsys.readouterr().out
  assert row['paper']['epochs'] == 2


def test_time_limits_leave_a_claim_unfinished(claim, tmp_path, data_dir):
  row = _run(claim, tmp_path, data_dir, {}, max_seconds=1e-6)
  assert row['paper']['epochs'] == 1
  assert not row['honest']['finished']


def test_data_that_is_not_there_is_said(tmp_path):
  row = running.run(
    'p4_cnn_model1',
    CLAIMS['p4_cnn_model1'],
    data_dir=str(tmp_path),
    workdir=tmp_path,
    limits=running.Limits(),
    members={},
  )
  assert 'no build of fer2013' in row['absent']
  assert 'data build --dataset=fer2013' in table.text([row])
