"""Drawn faces on disk, laid out as each data set is published.

A few faces are rendered once, brought to the published size and file format,
and shown again and again: what reading costs depends on the kind and size of
a file, not on whose face is in it. Noise as a camera's is added, or the files
would be far shorter than those of photographs.
"""

import functools
import io
import pathlib

import numpy as np
from PIL import Image

from fer_jax.datasets import fer2013 as fer2013_lib
from fer_jax.datasets import ferplus as ferplus_lib
from fer_jax.datasets import oahega as oahega_lib
from fer_jax.datasets import synthetic_faces

FACES = 32
FRAMES = 18
"""Of a sequence of CK+, about as many as the labelled ones have on average."""

_SIDE = 112
_NOISE = 5
# So that CK+ has about as many files as the other sets.
_EXAMPLES_A_SEQUENCE = 16


def fer2013(folder: pathlib.Path, count: int) -> None:
  """`count` rows of 48 x 48 pixels in fer2013.csv."""
  texts = [
    ' '.join(map(str, pixels.reshape(-1)))
    for pixels in _pixels(min(count, FACES), (48, 48), 1)
  ]
  rows = ['emotion,pixels,Usage']
  for i, usage in enumerate(_usages(count)):
    label = i % len(fer2013_lib.CLASS_NAMES)
    rows.append(f'{label},{texts[i % len(texts)]},{usage}')
  _write(folder / 'fer2013.csv', '\n'.join([*rows, '']).encode())


def ferplus(folder: pathlib.Path, count: int) -> None:
  """As `fer2013`, with ten votes for one emotion on every row."""
  fer2013(folder, count)
  emotions = len(ferplus_lib.CLASS_NAMES)
  rows = [
    ','.join(['Usage', 'Image name', *ferplus_lib.CLASS_NAMES, 'unknown', 'NF'])
  ]
  for i, usage in enumerate(_usages(count)):
    votes = ['0'] * (emotions + 2)
    votes[i % emotions] = '10'
    rows.append(','.join([usage, f'fer{i:07d}.png', *votes]))
  _write(folder / ferplus_lib.VOTES_NAME, '\n'.join([*rows, '']).encode())


def rafdb(folder: pathlib.Path, count: int) -> None:
  """`count` aligned JPEG of 100 x 100, with labels and annotations."""
  files = _files('JPEG', min(count, FACES), (100, 100), 3)
  labels = []
  for i in range(count):
    stem = f'{"test" if i % 5 == 4 else "train"}_{i + 1:05d}'
    labels.append(f'{stem}.jpg {1 + i % 7}\n')
    _write(
      folder / 'Image' / 'aligned' / f'{stem}_aligned.jpg',
      files[i % len(files)],
    )
    _write(
      folder / 'Annotation' / 'manual' / f'{stem}_manu_attri.txt',
      b'48.5\t52.25\n' * 5 + b'%d\n%d\n%d\n' % (i % 3, i % 3, i % 5),
    )
  _write(
    folder / 'EmoLabel' / 'list_patition_label.txt', ''.join(labels).encode()
  )


def ckplus(folder: pathlib.Path, count: int) -> None:
  """`count` / 16 sequences, two at least, of grey PNG of 640 x 490."""
  files = _files('PNG', min(count, FACES), (490, 640), 1)
  for i in range(max(2, count // _EXAMPLES_A_SEQUENCE)):
    subject, number = f'S{1 + i // 10:03d}', f'{1 + i % 10:03d}'
    place = f'{subject}/{number}/{subject}_{number}_'
    for frame in range(FRAMES):
      _write(
        folder / 'cohn-kanade-images' / f'{place}{frame + 1:08d}.png',
        files[(i + frame) % len(files)],
      )
    _write(
      folder / 'Emotion' / f'{place}{FRAMES:08d}_emotion.txt',
      b'   %d.0000000e+00\n' % (1 + i % 7),
    )


def jaffe(folder: pathlib.Path, count: int) -> None:
  """`count` grey TIFF of 256 x 256."""
  files = _files('TIFF', min(count, FACES), (256, 256), 1)
  expressions = ('AN', 'DI', 'FE', 'HA', 'SA', 'SU', 'NE')
  for i in range(count):
    person, place = divmod(i, 3 * len(expressions))
    take, expression = divmod(place, len(expressions))
    name = f'{chr(65 + person // 26 % 26)}{chr(65 + person % 26)}'
    _write(
      folder / f'{name}.{expressions[expression]}{take + 1}.{i + 1}.tiff',
      files[i % len(files)],
    )


def oahega(folder: pathlib.Path, count: int) -> None:
  """`count` RGB PNG of 180 to 220 pixels a side, with data.csv."""
  files = _files('PNG', min(count, FACES), (200, 200), 3, vary=20)
  rows = [',path,label']
  for i in range(count):
    name = oahega_lib.CLASS_NAMES[i % len(oahega_lib.CLASS_NAMES)]
    path = f'{name}/{name.lower()}{i}.png'
    rows.append(f'{i},{path},{name}')
    _write(folder / path, files[i % len(files)])
  _write(folder / 'data.csv', '\n'.join([*rows, '']).encode())


def image_folder(folder: pathlib.Path, count: int) -> None:
  """`count` RGB JPEG of 224 x 224 in folders by split and class."""
  files = _files('JPEG', min(count, FACES), (224, 224), 3)
  for i in range(count):
    split = 'test' if i % 5 == 4 else 'train'
    name = fer2013_lib.CLASS_NAMES[i % len(fer2013_lib.CLASS_NAMES)]
    _write(folder / split / name / f'{i:06d}.jpg', files[i % len(files)])


def _usages(count: int) -> list[str]:
  """The csv's third column: eight tenths to train, then the two tests."""
  tenth = count // 10
  usages = ['PublicTest'] * tenth + ['PrivateTest'] * tenth
  return ['Training'] * (count - len(usages)) + usages


@functools.cache
def _faces() -> list[np.ndarray]:
  look = synthetic_faces.Look(size=_SIDE, channels=3)
  samples = synthetic_faces.draw(look, np.arange(FACES))
  return synthetic_faces.render(look, samples)


def _pixels(
  count: int, size: tuple[int, int], channels: int, vary: int = 0
) -> list[np.ndarray]:
  """Faces as uint8 (H, W, C).

  Args:
    count: at most FACES.
    size: (H, W), each changed by up to `vary` pixels.
    channels: 1 or 3.
    vary: see `size`.
  """
  draw = np.random.default_rng(0)
  images = []
  for face in _faces()[:count]:
    height, width = size + draw.integers(-vary, vary + 1, 2)
    image = Image.fromarray(face).resize((int(width), int(height)))
    if channels == 1:
      image = image.convert('L')
    pixels = np.asarray(image, np.int16).reshape(height, width, channels)
    noise = draw.integers(-_NOISE, _NOISE + 1, pixels.shape, np.int16)
    images.append(np.clip(pixels + noise, 0, 255).astype(np.uint8))
  return images


def _files(
  form: str, count: int, size: tuple[int, int], channels: int, vary: int = 0
) -> list[bytes]:
  """What `_pixels` gives, as files of a format that Pillow knows."""
  files = []
  for pixels in _pixels(count, size, channels, vary):
    buffer = io.BytesIO()
    plane = pixels[..., 0] if channels == 1 else pixels
    Image.fromarray(plane).save(buffer, form)
    files.append(buffer.getvalue())
  return files


def _write(path: pathlib.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
