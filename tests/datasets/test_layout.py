"""Reading of layouts: members by the ends of their paths, texts, pictures."""

import io

import numpy as np
import pytest
import trees
from PIL import Image

from fer_jax.datasets import layout
from fer_jax.datasets.sources import Source
from fer_jax.errors import UserError


@pytest.fixture
def opened(tmp_path):
  """Opens a source of the files given."""
  sources = []

  def opened(files, form='folder'):
    path = trees.write(tmp_path / 'in', files, form)
    sources.append(Source(path, spool_dir=tmp_path))
    return sources[-1]

  yield opened
  for source in sources:
    source.close()


@pytest.mark.parametrize('form', trees.FORMS)
def test_a_member_is_found_by_the_end_of_its_path(form, opened):
  files = {
    'set/EmoLabel/List.txt': b'x',
    'set/EmoLabel/NoList.txt': b'x',
    'set/OtherEmoLabel/List.md': b'x',
  }
  source = opened(files, form)
  assert layout.find(source, 'emolabel/list.TXT') == 'set/EmoLabel/List.txt'
  assert layout.find(source, 'List.txt') == 'set/EmoLabel/List.txt'
  assert layout.find(source, 'Label/List.md') is None
  assert layout.find(source, 'a/b/set/EmoLabel/List.txt') is None
  assert layout.require(source, 'List.md', 'it') == 'set/OtherEmoLabel/List.md'
  with pytest.raises(UserError, match=r'in.*: no other.csv in it, the labels'):
    layout.require(source, 'other.csv', 'the labels')


def test_two_members_are_one_too_many(opened):
  source = opened({'a/List.txt': b'x', 'b/list.txt': b'x'})
  with pytest.raises(UserError, match=r'several list.txt: a/List.txt, b/list'):
    layout.find(source, 'list.txt')
  assert layout.find(source, 'b/list.txt') == 'b/list.txt'


def test_a_folder_gives_what_lies_directly_in_it(opened):
  files = {
    'set/Image/Aligned/a.png': b'x',
    'set/Image/Aligned/b.png': b'x',
    'set/Image/Aligned/deeper/c.png': b'x',
    'set/MyImage/aligned/d.png': b'x',
  }
  source = opened(files)
  assert layout.folder(source, 'Image/aligned') == {
    'a.png': 'set/Image/Aligned/a.png',
    'b.png': 'set/Image/Aligned/b.png',
  }
  assert layout.folder(source, 'Image/original') == {}
  assert layout.folder(source, 'Image') == {}
  with pytest.raises(UserError, match=r'several folders aligned: set/Image/Al'):
    layout.folder(source, 'aligned')


def test_lines_keep_their_numbers(opened):
  source = opened({'a.txt': '\ufeffone \r\n\r\n  two\tö\nthree'.encode()})
  assert list(layout.lines(source, 'a.txt')) == [
    ('a.txt line 1', 'one'),
    ('a.txt line 3', 'two\tö'),
    ('a.txt line 4', 'three'),
  ]


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('ö'.encode('latin-1'), r'a.txt: not a text file in UTF-8 \(byte 0\)'),
    (b'one\x00', r'a.txt: not a text file \(it holds null bytes\)'),
  ],
)
def test_what_is_no_text(content, reason, opened):
  source = opened({'a.txt': content})
  with pytest.raises(UserError, match=reason):
    list(layout.lines(source, 'a.txt'))


def test_a_text_of_absurd_size(opened, monkeypatch):
  source = opened({'a.txt': b'0123456789'})
  monkeypatch.setattr(layout, 'LONGEST_TEXT_FILE', 9)
  with pytest.raises(UserError, match=r'a.txt: 10 bytes; .* at most 9'):
    list(layout.lines(source, 'a.txt'))


def test_csv_rows_by_lower_case_names(opened):
  text = b'Extra, PATH,"Label"\n\n1,"a,b.png", happy \n,c.png,sad\n'
  source = opened({'data.csv': text})
  assert list(layout.csv_rows(source, 'data.csv', ('path', 'label'))) == [
    ('data.csv line 3', {'extra': '1', 'path': 'a,b.png', 'label': 'happy'}),
    ('data.csv line 4', {'extra': '', 'path': 'c.png', 'label': 'sad'}),
  ]


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (b'\n\n', 'data.csv: an empty file'),
    (b'path,labels\n', r"line 1: column 'label' is missing; .* path, Label"),
    (b'path,label,Path\n', r"line 1: column 'path' occurs twice"),
    (b'path,label\na,b\na,b,c\n', 'line 3: 3 fields where the header has 2'),
    (b'path,label\na,"b\n', 'line 2: not a csv row'),
  ],
)
def test_what_is_no_table(text, reason, opened):
  source = opened({'data.csv': text})
  with pytest.raises(UserError, match=reason):
    list(layout.csv_rows(source, 'data.csv', ('path', 'Label')))


def test_a_picture_is_kept_as_it_came_where_it_can_be(opened):
  colour, grey = trees.pixels(1), trees.pixels(2, channels=1)
  files = {
    'colour.png': trees.picture(colour),
    'colour.jpg': trees.picture(colour, 'JPEG'),
    'colour.bmp': trees.picture(colour, 'BMP'),
    'grey.png': trees.picture(grey),
  }
  source = opened(files)
  for name in ('colour.png', 'colour.jpg'):
    assert layout.read_picture(source, name, channels=3) == files[name]
    assert layout.read_picture(source, name) == files[name]
  np.testing.assert_array_equal(
    layout.read_picture(source, 'colour.bmp', size=(6, 5)), colour
  )
  assert (
    layout.read_picture(source, 'grey.png', channels=1) == (files['grey.png'])
  )
  np.testing.assert_array_equal(
    layout.read_picture(source, 'grey.png', channels=3),
    np.repeat(grey, 3, axis=-1),
  )
  # Pillow's conversion is the reference for luma.
  with Image.open(io.BytesIO(files['colour.png'])) as image:
    luma = np.asarray(image.convert('L'))[..., None]
  np.testing.assert_array_equal(
    layout.read_picture(source, 'colour.png', channels=1), luma
  )


def test_a_picture_that_is_none(opened, monkeypatch):
  source = opened({'a.png': trees.picture(trees.pixels(1)), 'b.png': b'hello'})
  with pytest.raises(ValueError, match='5x6 pixels where 6x5 are expected'):
    layout.read_picture(source, 'a.png', size=(5, 6))
  with pytest.raises(ValueError, match='not a picture file'):
    layout.read_picture(source, 'b.png')
  monkeypatch.setattr(layout, 'LONGEST_PICTURE_FILE', 10)
  with pytest.raises(ValueError, match=r'a picture file of .* bytes'):
    layout.read_picture(source, 'a.png')


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('a/b.PNG', True),
    ('b.jpeg', True),
    ('b.tiff', True),
    ('b.gif', True),
    ('png', False),
    ('b.png.txt', False),
  ],
)
def test_what_is_named_as_a_picture(name, expected):
  assert layout.is_picture(name) is expected
