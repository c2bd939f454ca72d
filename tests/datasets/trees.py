"""Sources in miniature: files by their paths, laid out on disk or archived."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
from PIL import Image

FORMS = ('folder', 'zip', 'tar', 'tar.gz')


def pixels(seed: int, size=(6, 5), channels: int = 3) -> np.ndarray:
  """uint8 (H, W, C) noise; `size` is (height, width)."""
  draws = np.random.default_rng(seed).integers(0, 256, (*size, channels))
  return draws.astype(np.uint8)


def picture(image: np.ndarray, form: str = 'PNG') -> bytes:
  """A picture file of (H, W, C)."""
  buffer = io.BytesIO()
  plane = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(plane).save(buffer, form)
  return buffer.getvalue()


def write(
  root: pathlib.Path, files: dict[str, bytes], form: str = 'folder'
) -> pathlib.Path:
  """Writes the files as a folder or archive beside `root`; gives its path."""
  if form == 'folder':
    for name, content in files.items():
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
    return root
  path = root.with_suffix(f'.{form}')
  if form == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for name, content in files.items():
        archive.writestr(name, content)
    return path
  with tarfile.open(path, 'w:gz' if form == 'tar.gz' else 'w') as archive:
    for name, content in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return path
