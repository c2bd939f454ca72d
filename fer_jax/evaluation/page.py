"""Building blocks of a self-contained HTML page.

Text is escaped wherever it enters; only `Html`, which these functions return,
passes as it is. Images are embedded, nothing is fetched: the page says so to
the browser in its content security policy.
"""

import base64
import html
import re
from collections.abc import Collection, Iterable, Sequence


class Html(str):
  """Text that is markup already and is not escaped again."""

  __slots__ = ()


def text(value: object) -> Html:
  """Escapes a value unless it is markup."""
  return value if isinstance(value, Html) else Html(html.escape(str(value)))


def command(line: str) -> Html:
  """A command to copy, on a line of its own that scrolls sideways."""
  return tag('pre', tag('code', line), tabindex='0')


def join(parts: Iterable[object], separator: str = '') -> Html:
  """Parts one after another, escaped where they are not markup."""
  return Html(separator.join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: str | None) -> Html:
  """An element. `class_` stands for class, `_` in names for `-`."""
  pairs = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
    for key, value in attributes.items()
    if value is not None
  )
  return Html(f'<{name}{pairs}>{join(content)}</{name}>')


def code(value: object) -> Html:
  """Monospaced text that may break anywhere."""
  return tag('code', value)


def section(title: str, *content: object, class_: str | None = None) -> Html:
  """A section under a heading."""
  return tag('section', tag('h2', title), *content, class_=class_)


def folded(title: object, *content: object) -> Html:
  """Content behind a line that opens it."""
  return tag('details', tag('summary', title), *content)


def breakable(value: object) -> Html:
  """A dotted or underscored name that may break between its words."""
  return Html(re.sub(r'([_/=,]+|\.(?=[A-Za-z]))', r'\1<wbr>', text(value)))


def line(content: object) -> Html:
  """A line of its own within a caption."""
  return tag('span', content, class_='line')


def tiles(entries: Iterable[tuple[str, str, str]]) -> Html:
  """Headline figures: (name, value, detail) each."""
  return tag(
    'ul',
    *(
      tag(
        'li',
        tag('span', name, class_='name'),
        tag('span', value, class_='value'),
        tag('span', detail, class_='detail'),
      )
      for name, value, detail in entries
    ),
    class_='tiles',
  )


def table(
  caption: str,
  headers: Sequence[str],
  rows: Iterable[Sequence[object]],
  *,
  words: Collection[int] = (),
) -> Html:
  """A table whose first column heads its rows; wide ones scroll sideways.

  Args:
    caption: says what the table is of.
    headers: of all columns.
    rows: cells, as many as headers.
    words: columns that hold text; the others hold figures, right-aligned.
  """

  def kind(column: int) -> str | None:
    return None if column == 0 or column in words else 'figure'

  head = join(
    tag('th', header, scope='col', class_=kind(column))
    for column, header in enumerate(headers)
  )
  body = join(
    tag(
      'tr',
      tag('th', row[0], scope='row'),
      *(
        tag('td', cell, class_=kind(column))
        for column, cell in enumerate(row[1:], start=1)
      ),
    )
    for row in rows
  )
  content = tag(
    'table',
    tag('caption', caption),
    tag('thead', tag('tr', head)),
    tag('tbody', body),
  )
  return tag(
    'div',
    content,
    class_='scroll',
    role='region',
    aria_label=caption,
    tabindex='0',
  )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
  """Names with their values."""
  return tag(
    'dl',
    *(
      tag('div', tag('dt', name), tag('dd', value), class_='fact')
      for name, value in pairs
    ),
  )


def image(png: bytes, alt: str, *, class_: str | None = None) -> Html:
  """An embedded PNG."""
  data = base64.b64encode(png).decode('ascii')
  kind = f' class="{html.escape(class_)}"' if class_ else ''
  return Html(
    f'<img{kind} alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
  )


def figure(
  png: bytes, alt: str, *caption: object, class_: str | None = None
) -> Html:
  """An embedded PNG over its caption."""
  parts = [image(png, alt)]
  if caption:
    parts.append(tag('figcaption', *caption))
  return tag('figure', *parts, class_=class_)


def document(title: str, *content: object) -> str:
  """The whole page."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src '
    "'none'; img-src data:; style-src 'unsafe-inline'\">\n"
    f'<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
    f'<body>\n<main>\n{join(content, chr(10))}\n</main>\n</body>\n</html>\n'
  )


_STYLE = """
:root {
  --paper: #ffffff; --raised: #f6f7f9; --ink: #1f2328; --muted: #59616b;
  --line: #dfe3e8; --good: #00664a; --good-paper: #e8f5f0;
  --bad: #9a3b00; --bad-paper: #fdf0e6; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --raised: #1e2227; --ink: #e6e8eb; --muted: #a1a9b3;
    --line: #343a42; --good: #7fd6b6; --good-paper: #12291f;
    --bad: #ffb27a; --bad-paper: #33200f; --accent: #6db8e8;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "DejaVu Sans", sans-serif;
}
main { max-width: 70rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 {
  font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2;
  margin: .5rem 0 .25rem; overflow-wrap: anywhere;
}
h2 {
  font-size: 1.25rem; line-height: 1.3; margin: 0 0 .75rem;
  padding-top: 1.25rem; border-top: 1px solid var(--line);
}
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 44rem; }
section { margin-top: 2.25rem; }
.lead, figcaption, caption, .small { color: var(--muted); }
.lead { margin-top: 0; }
.small, figcaption { font-size: .85rem; line-height: 1.4; }
code {
  font: .86em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
    monospace; overflow-wrap: anywhere;
}
pre {
  margin: .25rem 0 .75rem; padding: .4rem .6rem; overflow-x: auto;
  background: var(--raised); border-radius: 6px; line-height: 1.4;
}
pre code { overflow-wrap: normal; }
.notice {
  border-left: 4px solid var(--muted); background: var(--raised);
  padding: .75rem 1rem; margin: 1rem 0; border-radius: 0 6px 6px 0;
}
.notice p { max-width: none; }
.notice dl { margin-bottom: 0; }
.notice.clean { border-color: var(--good); background: var(--good-paper); }
.notice.leaks { border-color: var(--bad); background: var(--bad-paper); }
.notice.clean strong { color: var(--good); }
.notice.leaks strong { color: var(--bad); }
dl { margin: .75rem 0; }
.fact {
  display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: 1rem;
  padding: .3rem 0; border-bottom: 1px solid var(--line);
}
.fact:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.tiles {
  display: grid; gap: .75rem; margin: 1.25rem 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
.tiles li {
  background: var(--raised); border-radius: 8px; padding: .75rem .9rem;
}
.tiles .name, .tiles .detail {
  display: block; color: var(--muted); font-size: .82rem; line-height: 1.35;
}
.tiles .value {
  display: block; font-size: 1.5rem; font-weight: 650; line-height: 1.35;
  font-variant-numeric: tabular-nums;
}
.scroll { overflow-x: auto; margin: 1rem 0; }
[tabindex]:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px;
}
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding-bottom: .4rem; font-size: .85rem; }
th, td {
  padding: .35rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th:first-child { padding-left: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tbody th {
  font-weight: 500; position: sticky; left: 0; background: var(--paper);
  min-width: 5.5rem;
}
td code { overflow-wrap: anywhere; }
.figure { text-align: right; font-variant-numeric: tabular-nums; }
td.figure { white-space: nowrap; }
.columns {
  display: grid; gap: 0 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
.columns > div { min-width: 0; }
.line { display: block; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
.plots {
  display: grid; gap: 1.25rem; margin: 1rem 0; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
.plots img { background: #fff; max-width: 36rem; }
.faces {
  display: grid; gap: 1rem .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr));
}
.faces.wide {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
}
.faces img { image-rendering: pixelated; }
.faces figcaption { margin-top: .3rem; overflow-wrap: anywhere; }
.faces strong { color: var(--ink); font-weight: 600; }
details {
  border-bottom: 1px solid var(--line); padding: .35rem 0;
}
summary { cursor: pointer; padding: .35rem 0; font-weight: 550; }
@media (max-width: 30rem) {
  .fact { grid-template-columns: 1fr; gap: 0; }
  th, td { padding-left: .35rem; padding-right: .35rem; }
  table { font-size: .86rem; }
}
"""
