"""A page as a browser reads it."""

import html.parser

VOID = {'meta', 'img', 'wbr', 'br'}


class Page(html.parser.HTMLParser):
  """Collects text, attributes and images; refuses badly nested tags."""

  def __init__(self, source: str):
    super().__init__()
    self.open: list[str] = []
    self.text: list[str] = []
    self.images: list[dict] = []
    self.links: list[str] = []
    self.count: dict[str, int] = {}
    self.feed(source)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.count[tag] = self.count.get(tag, 0) + 1
    for name in ('src', 'href', 'srcset', 'action', 'data'):
      if name in attributes:
        self.links.append(attributes[name])
    if tag == 'img':
      self.images.append(attributes)
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open, f'stray </{tag}>'
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] != 'style':
      self.text.append(data)

  def says(self, words: str) -> bool:
    whole = ' '.join(' '.join(self.text).replace('\xa0', ' ').split())
    return words in whole
