"""The report as a browser gets it: whole, self-contained, escaped, complete."""

import base64
import dataclasses
import io
import re
import subprocess
import sys

import pytest
from PIL import Image
from parsed_page import Page

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.evaluation import page, report, runs, wording


@pytest.fixture(scope='module')
def single(finished):
  return report.render([runs.read(finished)])


@pytest.fixture(scope='module')
def parsed(single):
  return Page(single.html)


def test_nothing_is_fetched(single, parsed):
  assert parsed.links
  assert all(link.startswith('data:image/png;base64,') for link in parsed.links)
  assert not re.search(r'https?://|url\(|@import|<script|<link', single.html)


def test_figures_by_group_are_shown_with_their_gap(finished, parsed):
  metrics = runs.read(finished).evaluations['test'].metrics
  figures = metrics['groups']['age_group']
  assert parsed.says('By age group')
  for name, group in figures['groups'].items():
    assert parsed.says(f'{name} {group["n"]} {100 * group["accuracy"]:.1f} %')
  gap = figures['gap']
  assert parsed.says(
    f'Largest gap: {100 * gap["accuracy"]:.1f} points '
    f'[{100 * gap["interval"][0]:.1f}, {100 * gap["interval"][1]:.1f}], '
    f'{gap["best"]} over {gap["worst"]}.'
  )


def test_images_decode_and_say_what_they_show(parsed):
  assert len(parsed.images) > 20
  for image in parsed.images:
    assert len(image['alt']) > 10
    content = base64.b64decode(image['src'].partition(',')[2], validate=True)
    Image.open(io.BytesIO(content)).verify()


def test_protocol_leak_flag_and_figures_are_there(finished, parsed):
  metrics = runs.read(finished).evaluations['test'].metrics
  assert parsed.says('Protocol fer2013_dev. Leaks: no.')
  assert parsed.says('sha256 ' + 'ab' * 32)
  assert parsed.says('sha256 ' + 'cd' * 32)
  assert parsed.says('3 at exactly these examples')
  assert parsed.says(f'{100 * metrics["accuracy"]:.1f} %')
  low, high = metrics['intervals']['accuracy']
  assert parsed.says(f'{100 * low:.1f}–{100 * high:.1f} %')
  for row in metrics['per_class']:
    assert parsed.says(f'{100 * row["f1"]:.1f}')
  assert parsed.says('without any twins')
  assert parsed.says('0.10.2')
  assert parsed.says('15 min')


def test_every_config_field_is_listed(finished, single):
  plain = single.html.replace('<wbr>', '')
  for name in runs.flatten(runs.read(finished).config):
    assert f'<code>{name}</code>' in plain


def test_text_is_escaped(single, parsed):
  assert 'twins &lt;kept&gt; on one side &amp; counted' in single.html
  assert parsed.says('twins <kept> on one side & counted')


def test_tables_have_headers_and_captions(parsed):
  assert parsed.count['table'] == parsed.count['caption']
  assert parsed.count['table'] >= 9
  assert parsed.count['th'] > parsed.count['table']


def test_all_pictures_are_files_too(single):
  names = {'loss.png', 'accuracy.png'}
  for split in ('test', 'validation'):
    names |= {
      f'{split}_{name}.png'
      for name in (
        'confusion',
        'confusion_normalised',
        'roc',
        'reliability',
        'mistakes',
        'attention',
      )
    }
  assert set(single.figures) == names
  for content in single.figures.values():
    Image.open(io.BytesIO(content)).verify()


def test_a_leak_is_said_aloud_and_missing_pieces_are_named(run_maker, tmp_path):
  path = run_maker(tmp_path / 'a<b', leaks=True, splits=(), epochs=0)
  parsed = Page(report.render([runs.read(path)]).html)
  assert parsed.says('Leaks: yes. Its figures are no estimate')
  assert parsed.says('The test split has not been evaluated.')
  assert parsed.says('--split=validation')
  assert parsed.says('No epoch has been recorded yet')
  assert parsed.says('a<b')


def test_a_run_without_run_json_is_of_unknown_protocol(run_maker, tmp_path):
  path = run_maker(tmp_path / 'run', splits=(), epochs=1)
  (path / 'run.json').unlink()
  parsed = Page(report.render([runs.read(path)]).html)
  assert parsed.says('Protocol unknown. Leaks: unknown.')


def test_clips_show_attention_by_frame(run_maker, tmp_path):
  path = run_maker(tmp_path / 'clips', frames=3, splits=('test',), epochs=1)
  parsed = Page(report.render([runs.read(path)]).html)
  assert parsed.says('Under each frame of the clip')


def test_several_runs_are_compared_by_group(run_maker, tmp_path):
  paths = [
    run_maker(tmp_path / 'a', seed=0, splits=('test',), epochs=2),
    run_maker(tmp_path / 'b', seed=1, splits=(), epochs=2),
    run_maker(tmp_path / 'c', seed=0, learning_rate=0.1, splits=(), epochs=2),
  ]
  members = runs.read_all(paths)
  made = report.render(members)
  parsed = Page(made.html)
  assert parsed.says('3 runs compared')
  assert parsed.says('All runs: fer2013, protocol fer2013_dev. Leaks: no.')
  spread = runs.spread(
    [runs.best_validation(run)['accuracy'] for run in members[:2]]
  )
  assert parsed.says(
    f'{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f} %'
  )
  # Which is the highest one only where accuracy selects.
  assert parsed.says('Validation accuracy of the best epoch')
  assert parsed.says('the one that its train.select prefers')
  assert parsed.says('2 of 3 runs have not been evaluated on the test split.')
  assert {
    'compared_validation_accuracy.png',
    'compared_validation_loss.png',
    'compared_train_accuracy.png',
    'compared_train_loss.png',
    'a_loss.png',
    'c_loss.png',
  } <= set(made.figures)


def test_pictures_of_runs_of_like_names_are_files_of_their_own(finished):
  run = runs.read(finished)
  names = ('a/b', 'a_b', 'A_B', 'compared')
  members = [dataclasses.replace(run, name=name) for name in names]
  assert report._file_stems(members) == ['a_b', 'a_b_2', 'A_B_3', 'compared_2']


def test_what_has_no_examples_is_not_to_be_evaluated(run_maker, tmp_path):
  path = run_maker(tmp_path / 'a run', splits=(), epochs=1)
  facts = (path / 'run.json').read_text().replace(': 2871', ': 0')
  (path / 'run.json').write_text(facts)
  parsed = Page(report.render([runs.read(path)]).html)
  assert parsed.says(f"evaluate '--workdir={path}' --split=test")
  assert not parsed.says('The validation split has not been evaluated')


def test_runs_on_other_data_are_not_ranked(run_maker, tmp_path):
  paths = [
    run_maker(tmp_path / name, splits=(), epochs=0) for name in ('a', 'b')
  ]
  facts = (paths[1] / 'run.json').read_text().replace('ab' * 32, 'ef' * 32)
  (paths[1] / 'run.json').write_text(facts)
  parsed = Page(report.render(runs.read_all(paths)).html)
  assert parsed.says('do not rank them')


def test_the_report_is_written_beside_the_run_or_where_told(
  run_maker, tmp_path
):
  path = run_maker(tmp_path / 'run', splits=(), epochs=1)
  assert report.write_report([path]) == path / 'report.html'
  assert (path / 'figures' / 'loss.png').exists()
  elsewhere = report.write_report([path], tmp_path / 'out' / 'deep')
  assert elsewhere == tmp_path / 'out' / 'deep' / 'report.html'
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write the report'):
    report.write_report([path], tmp_path / 'file')


def test_a_comparison_leaves_the_pages_of_its_runs_alone(run_maker, tmp_path):
  paths = [
    run_maker(tmp_path / name, splits=(), epochs=1) for name in ('a', 'b')
  ]
  for path in paths:
    report.write_report([path])
  before = {f: f.read_bytes() for f in tmp_path.rglob('*') if f.is_file()}
  written = report.write_report(paths)
  assert written == paths[0] / 'comparison' / 'report.html'
  assert (written.parent / 'figures' / 'compared_train_loss.png').exists()
  assert Page(written.read_text()).says('2 runs compared')
  assert {file: file.read_bytes() for file in before} == before
  told = report.write_report(paths, tmp_path / 'out')
  assert told == tmp_path / 'out' / 'report.html'
  assert report.write_report([paths[1]] * 2) == paths[1] / 'report.html'


def test_a_full_disk_is_found_before_anything_is_drawn(
  run_maker, tmp_path, monkeypatch
):
  path = run_maker(tmp_path / 'run', splits=(), epochs=1)

  def refuse(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', refuse)
  monkeypatch.setattr(report, 'render', None)
  with pytest.raises(UserError, match=r'the report.*No space'):
    report.write_report([path])


def test_reporting_does_not_import_jax():
  code = (
    'import sys; import fer_jax.evaluation.report; '
    "print([m for m in ('jax', 'flax', 'ml_collections', 'matplotlib.pyplot') "
    'if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_attributes_and_content_are_escaped():
  made = page.tag('p', '<b>&', title='"><script>', class_='x')
  assert made == (
    '<p title="&quot;&gt;&lt;script&gt;" class="x">&lt;b&gt;&amp;</p>'
  )
  assert page.breakable('a.b_c=0.01') == 'a.<wbr>b_<wbr>c=<wbr>0.01'


@pytest.mark.parametrize(
  ('seconds', 'said'),
  [(12.4, '12 s'), (89, '89 s'), (600, '10 min'), (5460, '1 h 31 min')],
)
def test_durations(seconds, said):
  assert wording.duration(seconds) == said
