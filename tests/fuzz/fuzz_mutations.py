"""What disks, networks and hostile people do to good files.

Every function takes a `random.Random` and gives back a changed copy, so that
a case is known by its seed alone.
"""

import io
import json
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

# Deeper than any parser that calls itself gets.
_DEPTH = 100_000

TEXTS = (
  '',
  ' ',
  '0',
  '-1',
  '-0',
  '7',
  '8',
  '256',
  '1e3',
  '1.5',
  '1e999',
  'nan',
  '-inf',
  '0x1F',
  '1_0',
  '9' * 30,
  '9' * 5000,
  '²',
  '٣',
  'İ',
  'ſ',
  'é',
  'e\u0301',
  '\u202e',
  '\u2028',
  '\x00',
  '\x1b[31m',
  '\ufeff',
  '😀' * 40,
  '"',
  '""',
  "'",
  ',',
  ';',
  '\t',
  '\r',
  '\n',
  '%s%n',
  '{}',
  '../../etc/passwd',
  'a' * 70_000,
  '__import__("os").system("true")',
)
"""Fields of a table, lines of a list, values of an option."""

NAMES = (
  '../evil',
  '/evil',
  'a/../../evil',
  'C:/evil',
  'a\\..\\..\\evil',
  'a//b.png',
  './train/angry/x.png',
  'x' * 300,
  'd/' * 300 + 'x.png',
  'line\nbreak.png',
  '\x1b[2J.png',
  '\u202egnp.exe',
  'İ.png',
  'KA.Dİ1.39.tiff',
  '.hidden.png',
  'nul\x00.png',
  ' .png',
  'con.png',
  '.',
  'train/angry/.png',
)
"""Names of an archive's members."""

_WORDS = (
  b'\x00' * 8,
  b'\xff' * 8,
  b'\x7f\xff\xff\xff',
  b'\xff\xff\xff\x7f',
  b'\x80\x00\x00\x00',
  b'\x00\x00\x01\x00',
  b'\xc3\x28',
  b'\xed\xa0\x80',
  b'\xef\xbb\xbf',
  b'\xff\xfe',
  b'\r\n',
  b'\n\n\n',
  b'"',
  b',,',
  b'9' * 40,
  b'-1',
  b'NaN',
  b'PK\x03\x04',
  b'cos\nsystem\n(S"true"\ntR.',
  b'\x80\x04\x95',
)


def _place(rng: random.Random, content: bytes) -> int:
  """Mostly anywhere, often near the beginning or end, where headers are."""
  size = len(content)
  if rng.random() < 0.4:
    near = min(size, 128)
    return rng.randrange(near) if rng.random() < 0.6 else size - near
  return rng.randrange(size)


def _flip(rng: random.Random, content: bytes) -> bytes:
  changed = bytearray(content)
  for _ in range(rng.choice((1, 1, 2, 8, 64))):
    changed[_place(rng, content)] ^= 1 << rng.randrange(8)
  return bytes(changed)


def _random_bytes(rng: random.Random, content: bytes) -> bytes:
  changed = bytearray(content)
  for _ in range(rng.choice((1, 2, 4, 16))):
    changed[_place(rng, content)] = rng.randrange(256)
  return bytes(changed)


def _truncate(rng: random.Random, content: bytes) -> bytes:
  return content[: _place(rng, content)]


def _behead(rng: random.Random, content: bytes) -> bytes:
  return content[_place(rng, content) :]


def _remove(rng: random.Random, content: bytes) -> bytes:
  at = _place(rng, content)
  return content[:at] + content[at + rng.randrange(1, 300) :]


def _repeat(rng: random.Random, content: bytes) -> bytes:
  at = _place(rng, content)
  piece = content[at : at + rng.randrange(1, 300)]
  return content[:at] + piece * rng.choice((2, 3, 50)) + content[at:]


def _insert(rng: random.Random, content: bytes) -> bytes:
  at = _place(rng, content)
  return content[:at] + rng.choice(_WORDS) + content[at:]


def _overwrite(rng: random.Random, content: bytes) -> bytes:
  at, word = _place(rng, content), rng.choice(_WORDS)
  return content[:at] + word + content[at + len(word) :]


def _number(rng: random.Random, content: bytes) -> bytes:
  """A size, count or offset of another value."""
  form = rng.choice('BHIQ')
  bits = 8 * struct.calcsize(form)
  value = rng.choice(
    (0, 1, 2**bits - 1, 2 ** (bits - 1), rng.getrandbits(bits))
  )
  word = struct.pack(rng.choice('<>') + form, value)
  at = _place(rng, content)
  return content[:at] + word + content[at + len(word) :]


def _splice(rng: random.Random, content: bytes) -> bytes:
  a, b = _place(rng, content), _place(rng, content)
  return content[:a] + content[b : b + rng.randrange(1, 2000)] + content[a:]


def _nest(rng: random.Random, content: bytes) -> bytes:
  at = _place(rng, content)
  piece = rng.choice((b'[', b'{"a":', b'(', b'"'))
  return content[:at] + piece * rng.choice((3, _DEPTH)) + content[at:]


_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
  _flip,
  _flip,
  _random_bytes,
  _truncate,
  _behead,
  _remove,
  _repeat,
  _insert,
  _overwrite,
  _number,
  _number,
  _splice,
  _nest,
)


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
  """One change, at times several."""
  for _ in range(rng.choice((1, 1, 1, 2, 5))):
    if content:
      content = rng.choice(_CHANGES)(rng, content)
  return content


def changed_text(rng: random.Random, content: bytes) -> bytes:
  """A table or list: a field, a line or bytes of it."""
  if rng.random() < 0.3 or not content:
    return changed_bytes(rng, content)
  lines = content.split(b'\n')
  at = rng.randrange(len(lines))
  what = rng.random()
  if what < 0.5:
    comma = b',' if b',' in lines[at] else b' '
    fields = lines[at].split(comma)
    fields[rng.randrange(len(fields))] = rng.choice(TEXTS).encode(
      'utf-8', 'surrogatepass'
    )
    lines[at] = comma.join(fields)
  elif what < 0.6:
    del lines[at]
  elif what < 0.7:
    lines.insert(at, rng.choice(lines))
  elif what < 0.8:
    rng.shuffle(lines)
  elif what < 0.9:
    lines.insert(at, rng.choice(TEXTS).encode())
  else:
    lines[at] = lines[at] * rng.choice((2, 100))
  return b'\n'.join(lines)


def _odd_value(rng: random.Random) -> Any:
  return rng.choice(
    (
      None,
      True,
      False,
      0,
      -1,
      2**31,
      2**70,
      10**400,
      0.5,
      1e308,
      float('inf'),
      float('nan'),
      [],
      {},
      [[]],
      [None],
      {'': {}},
      {'a': [1, {'b': 2}]},
      [1, 2, 3],
      ['a', 'b'],
      '\ud800',
      *TEXTS,
    )
  )


def changed_value(rng: random.Random, value: Any) -> Any:
  """A JSON value with something inside it replaced, removed or added."""
  if isinstance(value, dict) and value and rng.random() < 0.9:
    changed = dict(value)
    key = rng.choice(list(changed))
    what = rng.random()
    if what < 0.8:
      changed[key] = changed_value(rng, changed[key])
    elif what < 0.9:
      del changed[key]
    else:
      changed[rng.choice((key + '_', '', 'a.b', *TEXTS[:20]))] = _odd_value(rng)
    return changed
  if isinstance(value, list) and value and rng.random() < 0.8:
    changed = list(value)
    at = rng.randrange(len(changed))
    what = rng.random()
    if what < 0.7:
      changed[at] = changed_value(rng, changed[at])
    elif what < 0.85:
      del changed[at]
    else:
      changed.insert(at, _odd_value(rng))
    return changed
  return _odd_value(rng)


def changed_json(rng: random.Random, content: bytes) -> bytes:
  """A JSON file with another value, or other bytes."""
  if rng.random() < 0.3:
    return changed_bytes(rng, content)
  value = json.loads(content)
  for _ in range(rng.choice((1, 1, 3))):
    value = changed_value(rng, value)
  return json.dumps(value).encode()


def changed_png(rng: random.Random, content: bytes) -> bytes:
  """A PNG whose chunks have right checksums, so that its decoder is reached."""
  chunks, at = [], 8
  while at + 8 <= len(content):
    (size,) = struct.unpack('>I', content[at : at + 4])
    chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
    at += 12 + size
  place = rng.randrange(len(chunks))
  kind, body = chunks[place]
  what = rng.random()
  if what < 0.6:
    chunks[place] = kind, changed_bytes(rng, body)
  elif what < 0.75:
    chunks.insert(place, chunks[rng.randrange(len(chunks))])
  elif what < 0.85:
    kind = rng.choice((b'acTL', b'tRNS', b'PLTE', b'iCCP', b'zTXt', b'eXIf'))
    chunks.insert(place, (kind, zlib.compress(bytes(rng.randrange(1 << 20)))))
  else:
    del chunks[place]
  parts = [content[:8]]
  for kind, body in chunks:
    checksum = struct.pack('>I', zlib.crc32(kind + body))
    parts += [struct.pack('>I', len(body)), kind, body, checksum]
  return b''.join(parts)


def changed_zip(
  rng: random.Random,
  content: bytes,
  change: Callable[[random.Random, bytes], bytes] = changed_bytes,
) -> bytes:
  """A zip with another member, whole as an archive, or with other bytes."""
  if rng.random() < 0.3:
    return changed_bytes(rng, content)
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = [(name, archive.read(name)) for name in archive.namelist()]
  return zip_of(rng, _changed_members(rng, members, change))


def _changed_members(
  rng: random.Random,
  members: list[tuple[str, bytes]],
  change: Callable[[random.Random, bytes], bytes],
) -> list[tuple[str, bytes]]:
  members = list(members)
  at = rng.randrange(len(members))
  name, body = members[at]
  what = rng.random()
  if what < 0.6:
    members[at] = name, change(rng, body)
  elif what < 0.7:
    del members[at]
  elif what < 0.8:
    members.append((name, change(rng, body)))
  elif what < 0.9:
    members[at] = rng.choice(NAMES), body
  else:
    members.append((rng.choice(NAMES), body))
  return members


def zip_of(rng: random.Random, members: Sequence[tuple[str, bytes]]) -> bytes:
  """A zip of any compression; at times with a link in it, or a lie."""
  buffer = io.BytesIO()
  method = rng.choice(
    (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
  )
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, body in members:
      entry = zipfile.ZipInfo(name)
      entry.compress_type = method
      if rng.random() < 0.02:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        body = b'/etc/passwd'
      if name not in archive.NameToInfo:
        archive.writestr(entry, body)
  packed = buffer.getvalue()
  if rng.random() < 0.1:
    # The central directory claims another size than the member has.
    at = packed.rfind(b'PK\x01\x02') + 24
    claimed = struct.pack('<I', rng.choice((0, 1, 2**31, 2**32 - 2)))
    packed = packed[:at] + claimed + packed[at + 4 :]
  return packed


def tar_of(
  rng: random.Random, members: Sequence[tuple[str, bytes]], mode: str
) -> bytes:
  """A tar in some form; at times with links, devices or lies in it."""
  buffer = io.BytesIO()
  form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
  with tarfile.open(fileobj=buffer, mode=f'w:{mode}', format=form) as archive:
    for name, body in members:
      entry = tarfile.TarInfo(name)
      entry.size = len(body)
      if rng.random() < 0.03:
        entry.type = rng.choice(
          (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
        )
        entry.linkname = rng.choice(('/etc/passwd', '../..', name))
      elif rng.random() < 0.03:
        entry.pax_headers = {
          'size': rng.choice(('-1', '9' * 30, 'x', str(2**40)))
        }
      archive.addfile(entry, io.BytesIO(body))
  return buffer.getvalue()


def changed_archive(
  rng: random.Random,
  form: str,
  members: Sequence[tuple[str, bytes]],
  change: Callable[[random.Random, bytes], bytes],
) -> bytes:
  """An archive ('zip', 'tar', 'tar.gz', ...) that is wrong in some way."""
  members = list(members)
  if rng.random() < 0.7:
    members = _changed_members(rng, members, change)
  if form == 'zip':
    packed = zip_of(rng, members)
  else:
    packed = tar_of(rng, members, form.partition('.')[2])
  return changed_bytes(rng, packed) if rng.random() < 0.3 else packed
