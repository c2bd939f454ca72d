"""Draws cartoon faces from action units, in plain vectorised NumPy.

Legend: B faces, C channels, H = W = size pixels, S = 2 sides of a face (the
viewer's left, then right), A action units.

Every face lives in *face coordinates*: x to the viewer's right, y down, the
origin between nose and eyes, one unit from there to the chin at rest. A pose
maps them to pixels; a pixel is coloured by how far it lies from the edge of a
shape, so that edges are soft by about one pixel at every size, and the same
parameters give the same face at 48 or 112 pixels. Large shapes are drawn on
the whole picture, small ones in a window around them, which is what makes a
thousand faces a second possible on one core.

Pixels are made by elementwise arithmetic only: a face does not depend on the
other faces of its batch, down to the last bit. Until the final clipping
colours enter linearly, so a grey picture is the luminance of the coloured one.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]

# The action units drawn, by their FACS numbers, in the order of axis A.
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 14, 15, 16, 20, 23, 26)

# Each property of a person and the range it is drawn from, uniformly. Lengths
# are in face units, the rest are fractions.
IDENTITY = {
  'head_width': (0.70, 0.84),
  'head_top': (1.00, 1.12),
  'jaw_taper': (0.10, 0.42),
  'skin_tone': (0.0, 1.0),
  'skin_hue': (-0.5, 0.5),
  'hair_kind': (0.0, 1.0),
  'hair_light': (0.75, 1.25),
  'hair_line': (-0.86, -0.64),
  'hair_part': (-0.30, 0.30),
  'hair_peak': (-0.10, 0.35),
  'hair_volume': (0.03, 0.16),
  'hair_length': (-0.5, 1.6),
  'ear_size': (0.09, 0.15),
  'brow_height': (-0.39, -0.32),
  'brow_width': (0.18, 0.23),
  'brow_weight': (0.026, 0.055),
  'brow_arch': (0.00, 0.06),
  'brow_tilt': (-0.020, 0.025),
  'brow_ink': (0.65, 0.95),
  'eye_gap': (0.33, 0.39),
  'eye_height': (-0.13, -0.07),
  'eye_width': (0.170, 0.205),
  'eye_opening': (0.070, 0.092),
  'eye_tilt': (-0.10, 0.16),
  'iris_size': (0.078, 0.096),
  'iris_tone': (0.0, 1.0),
  'nose_length': (0.18, 0.28),
  'nose_width': (0.085, 0.135),
  'nose_relief': (0.10, 0.30),
  'mouth_height': (0.50, 0.58),
  'mouth_width': (0.23, 0.29),
  'mouth_curve': (-0.012, 0.016),
  'lip_upper': (0.030, 0.060),
  'lip_lower': (0.045, 0.080),
  'lip_red': (0.10, 0.80),
  'age': (0.0, 1.0),
  'beard': (0.0, 1.0),
  'glasses': (0.0, 1.0),
}

# The same for the circumstances of one picture. Shifts are fractions of the
# picture's side, angles radians, noise in grey levels.
CONDITIONS = {
  'shift_x': (-0.07, 0.07),
  'shift_y': (-0.06, 0.06),
  'scale': (0.43, 0.51),
  'aspect': (0.95, 1.05),
  'roll': (-0.26, 0.26),
  'yaw': (-0.14, 0.14),
  'pitch': (-0.05, 0.05),
  'gaze_x': (-0.045, 0.045),
  'gaze_y': (-0.015, 0.02),
  'lips_part': (0.0, 1.0),
  'light_x': (-0.42, 0.42),
  'light_y': (-0.30, 0.12),
  'light_gain': (0.75, 1.20),
  'light_offset': (-0.06, 0.08),
  'backdrop_red': (0.05, 0.95),
  'backdrop_green': (0.05, 0.95),
  'backdrop_blue': (0.05, 0.95),
  'backdrop_slope_x': (-0.5, 0.5),
  'backdrop_slope_y': (-0.5, 0.5),
  'backdrop_blob': (-0.35, 0.35),
  'backdrop_blob_x': (-0.5, 0.5),
  'cloth_red': (0.05, 0.9),
  'cloth_green': (0.05, 0.9),
  'cloth_blue': (0.05, 0.9),
  'blur': (0.0, 0.8),
  'noise': (1.0, 6.0),
  'occluded': (0.0, 1.0),
  'occluder_angle': (0.0, 1.0),
  'occluder_distance': (0.65, 0.95),
  'occluder_width': (0.10, 0.24),
  'occluder_length': (0.20, 0.55),
  'occluder_roll': (0.0, 1.0),
  'occluder_tone': (0.05, 0.95),
}

# The share of people with a beard or glasses, of pictures with an occluder.
BEARD_SHARE = 0.14
GLASSES_SHARE = 0.14
OCCLUDED_SHARE = 0.10

# Rec. 601 luma, as image libraries convert RGB to grey.
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

_SKIN = np.array(
  [
    [0.96, 0.83, 0.75],
    [0.91, 0.74, 0.62],
    [0.82, 0.63, 0.48],
    [0.70, 0.51, 0.37],
    [0.55, 0.38, 0.27],
    [0.45, 0.31, 0.23],
  ],
  np.float32,
)
_HAIR = np.array(
  [
    [0.07, 0.06, 0.06],
    [0.16, 0.11, 0.08],
    [0.30, 0.19, 0.11],
    [0.55, 0.30, 0.15],
    [0.80, 0.65, 0.38],
    [0.66, 0.66, 0.66],
  ],
  np.float32,
)
_IRIS = np.array(
  [[0.14, 0.09, 0.06], [0.30, 0.20, 0.10], [0.25, 0.42, 0.55]], np.float32
)

# Pixels of one working array: small enough for a core's second-level cache.
_CHUNK_PIXELS = 1 << 17

# A window must hold its part at the largest scale and the steepest roll that
# a caller may ask for, a little beyond CONDITIONS (a clip drifts).
_LARGEST_SCALE = 0.56
_STEEPEST_ROLL = 0.36


def render(
  identity: Columns,
  conditions: Columns,
  action_units: np.ndarray,
  noise: np.ndarray | None = None,
  *,
  size: int = 48,
  channels: int = 1,
) -> np.ndarray:
  """Draws B faces.

  Args:
    identity: the columns of IDENTITY, each (B,).
    conditions: the columns of CONDITIONS, each (B,).
    action_units: float (B, S, A), the strength in [0, 1] of each of
      ACTION_UNITS on each side of the face.
    noise: float (B, size, size) of unit variance, the sensor's noise before
      its gain; none where it is None.
    size: side of the picture in pixels.
    channels: 1 (grey) or 3 (RGB).

  Returns:
    uint8 (B, size, size, channels).

  Raises:
    ValueError: channels is neither 1 nor 3.
  """
  if channels not in (1, 3):
    raise ValueError(f'channels is {channels}, expected 1 or 3')
  count = len(action_units)
  images = np.empty((count, size, size, channels), np.uint8)
  step = max(1, _CHUNK_PIXELS // size**2)
  for start in range(0, count, step):
    rows = slice(start, min(start + step, count))
    sheet = _Sheet(
      {k: v[rows] for k, v in identity.items()}
      | {k: v[rows] for k, v in conditions.items()},
      action_units[rows],
      size,
      channels,
    )
    _draw(sheet)
    images[rows] = sheet.expose(None if noise is None else noise[rows])
  return images


# ---------------------------------------------------------------------------
# The sheet: pixels, coordinates and windows


def _palette(table: np.ndarray, position: np.ndarray) -> np.ndarray:
  """RGB (B, 3) at `position` in [0, 1] along a table of colours."""
  place = position * (len(table) - 1)
  low = np.minimum(place.astype(np.int64), len(table) - 2)
  part = (place - low)[:, None].astype(np.float32)
  return table[low] * (1 - part) + table[low + 1] * part


def _grey(colour: np.ndarray) -> np.ndarray:
  """Luminance (B,) of RGB (B, 3); a matrix product would sum by batch."""
  r, g, b = LUMINANCE
  return colour[:, 0] * r + colour[:, 1] * g + colour[:, 2] * b


def _inside(distance: np.ndarray, edge: np.ndarray) -> np.ndarray:
  """Coverage in [0, 1] of the side where `distance` < 0, soft by `edge`."""
  cover = distance / -edge
  cover += 0.5
  return np.clip(cover, 0, 1, out=cover)


def _stroke(
  distance: np.ndarray, half_width: np.ndarray | float, edge: np.ndarray
) -> np.ndarray:
  """Coverage of a line of `half_width` around `distance` = 0."""
  cover = np.abs(distance)
  np.subtract(half_width, cover, out=cover)
  cover /= edge
  cover += 0.5
  return np.clip(cover, 0, 1, out=cover)


def _bump(radius_squared: np.ndarray) -> np.ndarray:
  """A smooth hill, 1 at 0 and 0 from radius 1 on."""
  hill = 1 - radius_squared
  np.maximum(hill, 0, out=hill)
  hill *= hill
  return hill


@dataclasses.dataclass
class _Layer:
  """A rectangle of every picture: pixels (C, B, h, w), coordinates (B, h, w).

  `x` and `y` are face coordinates relative to the part that is drawn.
  """

  pixels: np.ndarray
  x: np.ndarray
  y: np.ndarray
  index: np.ndarray | None = None

  def paint(self, cover: np.ndarray, colour: np.ndarray) -> None:
    """Lays `colour` (C, B, 1, 1) over the pixels, opaque by `cover`."""
    change = colour - self.pixels
    change *= cover
    self.pixels += change

  def shade(self, amount: np.ndarray) -> None:
    """Darkens by the fraction `amount` (B, h, w); lightens where negative."""
    self.pixels *= 1 - amount


class _Sheet:
  """B pictures in the making, with their parameters as (B, 1, 1) arrays."""

  def __init__(
    self, columns: Columns, action_units: np.ndarray, size: int, channels: int
  ):
    def lift(values):
      return np.asarray(values, np.float32)[:, None, None]

    self.size, self.channels, self.count = size, channels, len(action_units)
    self.flat = {k: np.asarray(v, np.float32) for k, v in columns.items()}
    self.p = {k: lift(v) for k, v in columns.items()}
    # au[12][0] is the strength of AU 12 on the viewer's left, (B, 1, 1).
    self.au = {
      unit: (lift(action_units[:, 0, i]), lift(action_units[:, 1, i]))
      for i, unit in enumerate(ACTION_UNITS)
    }
    self.pixel = np.empty((channels, self.count, size, size), np.float32)
    roll = np.asarray(columns['roll'], np.float64)
    self.cos, self.sin = lift(np.cos(roll)), lift(np.sin(roll))
    # Width of a pixel in face units: the softness of every edge.
    self.edge = 1 / (self.p['scale'] * np.float32(size))
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    self.across = np.broadcast_to(grid[None, None, :], (1, 1, size))
    self.down = np.broadcast_to(grid[None, :, None], (1, size, 1))
    x, y = self._to_face(self.across, self.down)
    self.whole = _Layer(self.pixel, x, y)

  def both(self, unit: int) -> np.ndarray:
    """Mean strength of an action unit over the two sides, (B, 1, 1)."""
    left, right = self.au[unit]
    return (left + right) * 0.5

  def rgb(self, colour: np.ndarray) -> np.ndarray:
    """Colour (B, 3) as (C, B, 1, 1)."""
    if self.channels == 1:
      return _grey(colour)[None, :, None, None]
    return np.ascontiguousarray(colour.T)[:, :, None, None]

  def grey(self, level: float) -> np.ndarray:
    """One grey for all faces, (1, 1, 1, 1)."""
    return np.full((1, 1, 1, 1), level, np.float32)

  def _to_face(self, across, down):
    """Face coordinates of points given in fractions of the picture."""
    p = self.p
    across, down = across - p['shift_x'], down - p['shift_y']
    x = (across * self.cos + down * self.sin) / (p['scale'] * p['aspect'])
    y = (down * self.cos - across * self.sin) / p['scale']
    # A turn of the head moves what is near the viewer, not the outline.
    bulge_x = x / p['head_width']
    bulge_x *= bulge_x
    bulge_y = y * y
    x -= p['yaw'] * np.maximum(1 - bulge_x, 0)
    y -= p['pitch'] * np.maximum(1 - bulge_y, 0)
    return x, y

  def _to_picture(self, x, y):
    """The inverse, near enough to place a window: x, y (B, 1, 1)."""
    p = self.p
    ratio = x / p['head_width']
    x = x + p['yaw'] * np.maximum(1 - ratio * ratio, 0)
    y = y + p['pitch'] * np.maximum(1 - y * y, 0)
    x = x * p['scale'] * p['aspect']
    y = y * p['scale']
    across = x * self.cos - y * self.sin + p['shift_x']
    down = y * self.cos + x * self.sin + p['shift_y']
    return across + 0.5, down + 0.5

  def window(self, x, y, half_width: float, half_height: float, side=1):
    """A layer around the face point x, y; `side` -1 mirrors its x axis."""
    size = self.size
    cos, sin = np.cos(_STEEPEST_ROLL), np.sin(_STEEPEST_ROLL)
    reach = _LARGEST_SCALE * size
    half_w, half_h = half_width * 1.06, half_height * 1.06
    w = min(size, int(np.ceil(2 * reach * (half_w * cos + half_h * sin))) + 2)
    h = min(size, int(np.ceil(2 * reach * (half_h * cos + half_w * sin))) + 2)
    across, down = self._to_picture(x, y)
    # A window is moved to lie within the picture; the coordinates follow.
    left = np.floor(across * size - w / 2).astype(np.int64)
    top = np.floor(down * size - h / 2).astype(np.int64)
    left = np.clip(left, 0, size - w) + np.arange(w)[None, None, :]
    top = np.clip(top, 0, size - h) + np.arange(h)[None, :, None]
    face = np.arange(self.count)[:, None, None]
    index = (face * size + top) * size + left
    local_x, local_y = self._to_face(
      (left.astype(np.float32) + 0.5) / size - 0.5,
      (top.astype(np.float32) + 0.5) / size - 0.5,
    )
    local_x -= x
    local_y -= y
    if side < 0:
      np.negative(local_x, out=local_x)
    pixels = self.pixel.reshape(self.channels, -1)[:, index]
    return _Layer(pixels, local_x, local_y, index)

  def put(self, layer: _Layer) -> None:
    """Writes a window's pixels back."""
    self.pixel.reshape(self.channels, -1)[:, layer.index] = layer.pixels

  def expose(self, noise: np.ndarray | None) -> np.ndarray:
    """Blurs, lights, adds the sensor's noise: uint8 (B, H, W, C)."""
    p = self.p
    # One pass of (1 2 1) / 4 has variance 1/2 pixel: as many passes as keep
    # the blur a fixed part of the picture.
    for _ in range(max(1, round((self.size / 48) ** 2))):
      _blur(self.pixel, p['blur'])
    gain = p['light_gain'] * 255
    offset = p['light_offset'] * 255 + 0.5
    self.pixel *= gain
    self.pixel += offset
    if noise is not None:
      self.pixel += noise * p['noise']
    np.clip(self.pixel, 0, 255, out=self.pixel)
    return np.moveaxis(self.pixel.astype(np.uint8), 0, -1)


def _blur(pixel: np.ndarray, amount: np.ndarray) -> None:
  """Mixes in, by `amount` (B, 1, 1), the (1 2 1) / 4 smoothed picture."""
  quarter = amount * 0.25
  for axis in (-1, -2):
    view = np.moveaxis(pixel, axis, -1)
    step = view[..., 1:] - view[..., :-1]
    step *= quarter
    view[..., :-1] += step
    view[..., 1:] -= step


# ---------------------------------------------------------------------------
# The parts of a picture


def _draw(sheet: _Sheet) -> None:
  """Paints everything, from the backdrop to what is held before the face."""
  skin = _skin(sheet)
  _backdrop(sheet)
  _head(sheet, skin)
  _forehead(sheet)
  for side in (-1, 1):
    _cheek(sheet, side)
    _eye(sheet, side, skin)
  _nose(sheet)
  _mouth(sheet, skin)
  for side in (-1, 1):
    _brow(sheet, side)
  _glasses(sheet)
  _occluder(sheet)


def _skin(sheet: _Sheet) -> np.ndarray:
  """Skin colour (B, 3)."""
  colour = _palette(_SKIN, sheet.flat['skin_tone'])
  hue = 0.06 * sheet.flat['skin_hue'][:, None]
  return colour * (1 + hue * np.array([[0.4, 0.0, -1.0]], np.float32))


def _hair(sheet: _Sheet) -> np.ndarray:
  """Hair colour (B, 3)."""
  colour = _palette(_HAIR, sheet.flat['hair_kind'])
  return colour * sheet.flat['hair_light'][:, None]


def _backdrop(sheet: _Sheet) -> None:
  """A wall with a gradient and one soft blotch."""
  p, flat = sheet.p, sheet.flat
  wall = np.stack([flat[f'backdrop_{c}'] for c in ('red', 'green', 'blue')], 1)
  # Less gaudy: halfway to its own grey.
  wall = sheet.rgb(0.5 * wall + 0.5 * _grey(wall)[:, None])
  tint = (
    1
    + p['backdrop_slope_x'] * sheet.across
    + p['backdrop_slope_y'] * sheet.down
  )
  off = (sheet.across - p['backdrop_blob_x']) * 3
  tint = tint + p['backdrop_blob'] * _bump(off * off)
  np.multiply(wall, tint, out=sheet.pixel)


def _head(sheet: _Sheet, skin: np.ndarray) -> None:
  """Shoulders, neck, hair, ears and the head with its light and beard."""
  p, flat, edge, layer = sheet.p, sheet.flat, sheet.edge, sheet.whole
  x, y = layer.x, layer.y
  width = p['head_width']
  hair = sheet.rgb(_hair(sheet))
  skin_colour = sheet.rgb(skin)
  dark_skin = sheet.rgb(skin * 0.72)
  beside = np.abs(x)

  # Hair behind the head: an ellipse, and a curtain down to its length.
  volume = p['hair_volume']
  ratio = x / (width + volume)
  rise = np.minimum(y, 0) / (p['head_top'] + volume)
  radius = np.sqrt(ratio * ratio + rise * rise)
  behind = _inside((radius - 1) * 0.8, edge)
  behind *= _inside(y - p['hair_length'], edge * 2)
  layer.paint(behind, hair)

  cloth = sheet.rgb(
    np.stack([flat[f'cloth_{c}'] for c in ('red', 'green', 'blue')], 1)
  )
  layer.paint(_inside(1.12 + 0.45 * (beside - 0.4) - y, edge), cloth)
  neck = _inside(beside - 0.62 * width, edge)
  neck *= _inside(0.3 - y, edge)
  neck *= _inside(y - 1.2 + 0.35 * beside, edge)
  layer.paint(neck, dark_skin)

  ear_x = (beside - width + 0.02) / p['ear_size']
  ear_y = (y + 0.02) / (p['ear_size'] * 1.7)
  ear = np.sqrt(ear_x * ear_x + ear_y * ear_y)
  layer.paint(_inside((ear - 1) * p['ear_size'], edge), sheet.rgb(skin * 0.86))

  # The jaw is narrower than the brow and drops with AU 26.
  low = np.maximum(y, 0)
  chin = 1 + 0.11 * sheet.both(26)
  fall = low / chin
  ratio = x / (width * (1 - p['jaw_taper'] * fall * fall))
  rise = np.minimum(y, 0) / p['head_top'] + fall
  squared = ratio * ratio + rise * rise
  head = _inside((np.sqrt(squared) - 1) * 0.8, edge)
  layer.paint(head, skin_colour)

  # Lambert's law on a rounded head.
  light = p['light_x'] * ratio + p['light_y'] * rise
  light -= 0.22 * squared
  light += 0.08
  light *= head
  layer.pixels *= 1 + light

  bearded = (p['beard'] < BEARD_SHARE) * np.float32(0.65)
  if bearded.any():
    # From the sideburns down and around under the nose.
    jaw = 0.36 - 0.9 * np.maximum(beside - 0.35, 0)
    shadow = _inside(jaw - y, edge * 3)
    shadow *= head
    layer.paint(shadow * bearded, hair)

  # The fringe, parted to one side.
  aside = x - p['hair_part']
  line = p['hair_line'] + p['hair_peak'] * np.abs(aside) + 0.42 * x * x
  fringe = _inside(y - line, edge)
  fringe *= behind
  layer.paint(fringe, hair)


def _forehead(sheet: _Sheet) -> None:
  """Horizontal lines of AU 1 and 2, vertical furrows of AU 4."""
  p, edge = sheet.p, sheet.edge
  inner, outer, lower = sheet.both(1), sheet.both(2), sheet.both(4)
  top = p['brow_height'] - 0.22
  layer = sheet.window(np.zeros_like(top), top, 0.42, 0.13)
  x, y = layer.x, layer.y
  reach = x * x / 0.16
  depth = (inner * (1 - np.minimum(reach, 1)) + outer * _bump(reach)) * 0.5
  for level in (-0.055, 0.03):
    line = _stroke(y - level + 0.25 * x * x, 0.014, edge)
    line *= 0.34 * depth
    layer.shade(line)
  sheet.put(layer)

  layer = sheet.window(np.zeros_like(top), p['brow_height'] + 0.04, 0.13, 0.17)
  x, y = layer.x, layer.y
  strength = np.minimum(lower + 0.4 * sheet.both(9), 1)
  furrow = _stroke(np.abs(x) - 0.045 - 0.10 * (y - 0.05), 0.014, edge)
  furrow *= _bump(y * y / 0.0289)
  furrow *= 0.50 * strength
  layer.shade(furrow)
  sheet.put(layer)


def _cheek(sheet: _Sheet, side: int) -> None:
  """The raised cheek (AU 6, 12) and the fold from nose to mouth corner."""
  p, edge, s = sheet.p, sheet.edge, (side + 1) // 2
  smile, raised = sheet.au[12][s], sheet.au[6][s]
  wrinkle, depress = sheet.au[9][s], sheet.au[15][s]
  centre = np.full_like(smile, side * 0.36)
  layer = sheet.window(centre, np.full_like(smile, 0.28), 0.27, 0.36, side)
  x, y = layer.x, layer.y
  apple_y = y + 0.10 + 0.04 * raised
  hill = _bump(x * x / 0.05 + apple_y * apple_y / 0.025)
  layer.pixels *= 1 + hill * (0.10 * raised + 0.08 * smile)
  # Along the fold `down` runs from 0 at the wing of the nose to 1.
  down = (y + 0.13) / 0.38
  bow = 0.10 + 0.07 * smile + 0.03 * wrinkle
  path = x + 0.17 - bow * down - 0.06 * smile * down * (1 - down) * 2
  fold = _stroke(path, 0.016, edge)
  fold *= _bump((2 * down - 1) * (2 * down - 1))
  strength = 0.05 + 0.12 * p['age'] + 0.34 * smile + 0.34 * wrinkle
  fold *= strength + 0.12 * raised + 0.10 * depress
  layer.shade(fold)
  sheet.put(layer)


def _eye(sheet: _Sheet, side: int, skin: np.ndarray) -> None:
  """Lids, eyeball, iris; AU 5, 6, 7 and 9 move the lids."""
  p, edge, s = sheet.p, sheet.edge, (side + 1) // 2
  wide, tight = sheet.au[5][s], sheet.au[7][s]
  cheek, wrinkle = sheet.au[6][s], sheet.au[9][s]
  lower_brow = sheet.au[4][s]
  half = p['eye_width']
  layer = sheet.window(side * p['eye_gap'], p['eye_height'], 0.31, 0.20, side)
  x, y = layer.x, layer.y
  y = y + p['eye_tilt'] * x
  t = x / half
  arc = np.maximum(1 - t * t, 0)
  arch = np.sqrt(arc)
  upper = p['eye_opening'] * (
    1 + 0.80 * wide - 0.30 * tight - 0.25 * wrinkle - 0.12 * lower_brow
  )
  lower = p['eye_opening'] * (
    0.80 + 0.25 * wide - 0.50 * tight - 0.66 * cheek - 0.45 * wrinkle
  )
  upper = np.maximum(upper, 0.018)
  lower = np.maximum(lower, 0.004)
  top, bottom = -upper * arch, lower * arch
  within = _inside(np.abs(x) - half, edge)

  # The socket, and the bag that AU 6 and 7 push up under the eye.
  layer.shade(0.10 * _bump(x * x / 0.07 + y * y / 0.028))
  bag = _stroke(y - bottom - 0.05 + 0.012 * cheek, 0.014, edge)
  bag *= arc * (0.05 + 0.10 * p['age'] + 0.26 * cheek + 0.22 * tight)
  layer.shade(bag)
  crease = _stroke(y - top * 1.05 + 0.042, 0.010, edge)
  crease *= arc * (0.30 - 0.12 * wide)
  layer.shade(crease)

  ball = _inside(top - y, edge) * _inside(y - bottom, edge) * within
  layer.paint(ball, sheet.grey(0.93))
  gaze_x = x - side * p['gaze_x']
  gaze_y = y - p['gaze_y'] + 0.006
  radius = np.sqrt(gaze_x * gaze_x + gaze_y * gaze_y)
  iris = _inside(radius - p['iris_size'], edge)
  iris *= ball
  layer.paint(iris, sheet.rgb(_palette(_IRIS, sheet.flat['iris_tone'])))
  pupil = _inside(radius - 0.45 * p['iris_size'], edge)
  pupil *= ball
  layer.paint(pupil, sheet.grey(0.03))
  glint_x, glint_y = gaze_x + side * 0.025, gaze_y + 0.03
  glint = _inside(np.sqrt(glint_x * glint_x + glint_y * glint_y) - 0.02, edge)
  glint *= ball
  layer.paint(glint * 0.8, sheet.grey(1.0))

  lash = _stroke(y - top, 0.020, edge)
  lash *= within
  layer.paint(lash * 0.85, sheet.grey(0.06))
  rim = _stroke(y - bottom, 0.010, edge)
  rim *= within
  layer.paint(rim * 0.55, sheet.rgb(skin * 0.42))

  # Crow's feet: three short lines fanning out from the outer corner.
  out = x - half - 0.05
  length = _bump(out * out / 0.0049)
  for slope in (-0.6, 0.0, 0.6):
    foot = _stroke(y - slope * (out + 0.05), 0.010, edge)
    foot *= length
    foot *= 0.42 * cheek
    layer.shade(foot)
  sheet.put(layer)


def _brow(sheet: _Sheet, side: int) -> None:
  """A brow: AU 1 lifts its inner end, 2 its outer end, 4 lowers and joins."""
  p, edge, s = sheet.p, sheet.edge, (side + 1) // 2
  inner_up, outer_up = sheet.au[1][s], sheet.au[2][s]
  lowered, wrinkle = sheet.au[4][s], sheet.au[9][s]
  half = p['brow_width']
  centre = side * (p['eye_gap'] + 0.01 - 0.035 * lowered)
  layer = sheet.window(centre, p['brow_height'], 0.28, 0.26, side)
  x, y = layer.x, layer.y
  t = np.clip(x / half, -1, 1)
  inner = (1 - t) * 0.5
  inner *= inner
  outer = (1 + t) * 0.5
  line = -p['brow_arch'] * (1 - t * t) - p['brow_tilt'] * t
  line -= (0.165 * inner + 0.040) * inner_up
  line -= (0.140 * outer + 0.025) * outer_up
  # With AU 1 the brows are drawn together more than down.
  down = lowered * (1 - 0.65 * inner_up)
  line += (0.130 * down + 0.055 * wrinkle) * inner
  line += 0.045 * down + 0.025 * wrinkle
  line += 0.060 * inner_up * lowered * outer
  weight = p['brow_weight'] * (1.15 - 0.55 * outer * outer)
  brow = _stroke(y - line, weight, edge)
  brow *= _inside(np.abs(x) - half, edge)
  brow *= p['brow_ink']
  layer.paint(brow, sheet.rgb(_hair(sheet) * 0.75))
  sheet.put(layer)


def _nose(sheet: _Sheet) -> None:
  """Bridge, tip and nostrils; AU 9 draws it up and wrinkles its root."""
  p, edge = sheet.p, sheet.edge
  wrinkle = sheet.both(9)
  half = p['nose_width'] * (1 + 0.18 * wrinkle)
  tip = p['nose_length'] - 0.045 * wrinkle
  layer = sheet.window(np.zeros_like(tip), 0.5 * tip - 0.05, 0.22, 0.32)
  x, y = layer.x, layer.y
  y = y + 0.5 * tip - 0.05
  relief = p['nose_relief']
  # The side turned from the light is the dark one.
  toward = np.where(p['light_x'] > 0, np.float32(-1), np.float32(1))
  along = np.clip((y + 0.18) / (tip + 0.18), 0, 1)
  flank = x * toward - (0.035 + 0.045 * along)
  ridge = _stroke(flank, 0.022, edge * 1.5)
  ridge *= _inside(y - tip, edge) * _inside(-0.24 - y, edge)
  ridge *= relief * (0.4 + 0.6 * along)
  layer.shade(ridge)
  drop = (y - tip + 0.02) / 0.075
  layer.pixels *= 1 + 0.5 * relief * _bump(x * x / 0.0049 + drop * drop)
  beneath = _stroke(y - tip - 0.035 + 1.2 * x * x, 0.014, edge)
  beneath *= _inside(np.abs(x) - 0.8 * half, edge)
  layer.shade(beneath * 0.35)
  hole_x = (np.abs(x) - 0.55 * half) / 0.036
  hole_y = (y - tip - 0.018) / 0.022
  hole = _bump((hole_x * hole_x + hole_y * hole_y) * 0.4)
  layer.shade(hole * 0.75)
  wing = np.abs(x) - half
  wing = _stroke(wing + 6.0 * (y - tip + 0.01) * (y - tip + 0.01), 0.013, edge)
  wing *= _bump((y - tip + 0.01) * (y - tip + 0.01) / 0.0064)
  layer.shade(wing * (0.28 + 0.30 * wrinkle))
  for level in (-0.13, -0.05, 0.03):
    fold = _stroke(y - level - 1.5 * x * x, 0.012, edge)
    fold *= _bump(x * x / 0.0144)
    fold *= 0.50 * wrinkle
    layer.shade(fold)
  sheet.put(layer)


def _mouth(sheet: _Sheet, skin: np.ndarray) -> None:
  """Lips, opening and teeth: AU 12, 14, 15, 16, 20, 23 and 26."""
  p, edge = sheet.p, sheet.edge
  jaw, press, down = sheet.both(26), sheet.both(23), sheet.both(16)
  stretch, lifted = sheet.both(20), sheet.both(9)
  smile = sheet.both(12)
  halves, lifts = [], []
  for s in (0, 1):
    halves.append(
      p['mouth_width']
      + 0.100 * sheet.au[12][s]
      + 0.095 * sheet.au[20][s]
      + 0.030 * sheet.au[14][s]
      + 0.010 * sheet.au[15][s]
      - 0.045 * press
      - 0.090 * jaw * (1 - stretch)
    )
    lifts.append(
      p['mouth_curve']
      + 0.190 * sheet.au[12][s]
      + 0.020 * sheet.au[14][s]
      - 0.150 * sheet.au[15][s]
      - 0.075 * sheet.au[20][s]
    )
  height = p['mouth_height'] - 0.01 * lifted + 0.02 * jaw
  layer = sheet.window(np.zeros_like(height), height + 0.06, 0.50, 0.34)
  x, y = layer.x, layer.y
  y = y + 0.06
  right = x > 0
  half = np.where(right, halves[1], halves[0])
  lift = np.where(right, lifts[1], lifts[0])
  t = x / half
  square = np.minimum(t * t, 1.6)
  arc = np.maximum(1 - square, 0)
  # An ellipse, squarer where the lips are stretched.
  round_ = np.sqrt(arc)
  round_ += stretch * (np.sqrt(round_) - round_)
  mean_lift = (lifts[0] + lifts[1]) * 0.5
  middle = 0.28 * mean_lift - lift * square
  within = _inside(np.abs(x) - half, edge)

  parted = 0.20 * np.maximum(smile - 0.30, 0) * p['lips_part']
  shut = 1 - 0.9 * press
  open_up = (
    0.085 * jaw * (1 - 0.4 * stretch) + 0.030 * stretch + 0.035 * lifted * down
  )
  open_low = 0.230 * jaw * (1 - 0.55 * stretch) + 0.085 * down
  open_low += 0.035 * stretch
  open_up = (open_up + 0.2 * parted) * shut
  open_low = (open_low + parted) * shut
  top = middle - (0.009 + open_up) * round_
  bottom = middle + (0.009 + open_low) * round_
  thin = 1 - 0.62 * press - 0.22 * smile
  upper = p['lip_upper'] * thin * (1 + 0.3 * lifted)
  lower = p['lip_lower'] * (thin + 0.15 * down)
  # Cupid's bow: the upper lip dips at its middle.
  bow = upper * arc * (1 - 0.30 * _bump(t * t * 9))
  lip_top = top - bow
  lip_bottom = bottom + lower * round_ * arc

  red = np.array([[1.0, 0.52, 0.50]], np.float32)
  blend = sheet.flat['lip_red'][:, None]
  lips = skin * (0.86 * (1 - blend) + blend * red * 0.82)
  lip = _inside(lip_top - y, edge) * _inside(y - lip_bottom, edge)
  lip *= within
  layer.paint(lip, sheet.rgb(lips))
  hollow = _inside(top - y, edge) * _inside(y - bottom, edge)
  hollow *= within
  layer.paint(hollow * 0.92, sheet.rgb(skin * np.float32(0.12)))

  # Upper teeth show in a smile and in fear, lower ones where AU 16 bares them.
  shown = np.minimum(open_up + open_low, 0.075)
  white = _inside(y - top - 0.75 * shown * round_, edge)
  white *= hollow
  white *= np.minimum(18 * shown, 1) * (1 - 0.45 * jaw + 0.3 * stretch)
  layer.paint(np.minimum(white * 0.9, 1), sheet.grey(0.90))
  white = _inside(bottom - 0.065 * down * round_ - y, edge)
  white *= hollow
  white *= down
  layer.paint(white * 0.9, sheet.grey(0.86))

  # The shadow under the lip, the bulge of the chin, the corners.
  under = _bump((y - lip_bottom - 0.06) * (y - lip_bottom - 0.06) / 0.0025)
  under *= arc
  layer.shade(under * (0.12 + 0.16 * press + 0.10 * sheet.both(15)))
  for s, side in enumerate((-1, 1)):
    dimple, depress, up = sheet.au[14][s], sheet.au[15][s], sheet.au[12][s]
    corner_x = x * side - halves[s] - 0.025
    corner_y = y - 0.28 * mean_lift + lifts[s]
    spot = _bump(corner_x * corner_x / 0.0049 + corner_y * corner_y / 0.0081)
    layer.shade(spot * (0.12 + 0.55 * dimple + 0.15 * up))
    droop = corner_y - 0.06 - 0.5 * corner_x
    line = _stroke(corner_x - 0.35 * droop, 0.012, edge)
    line *= _bump(droop * droop / 0.0049)
    layer.shade(line * 0.45 * depress)
  sheet.put(layer)


def _subset(sheet: _Sheet, rows: np.ndarray) -> tuple[_Layer, dict, np.ndarray]:
  """A copy of some whole pictures, with their parameters and edges."""
  whole = sheet.whole
  layer = _Layer(whole.pixels[:, rows], whole.x[rows], whole.y[rows])
  return layer, {k: v[rows] for k, v in sheet.p.items()}, sheet.edge[rows]


def _glasses(sheet: _Sheet) -> None:
  """Two rings and a bridge, on the few who wear them."""
  rows = np.flatnonzero(sheet.flat['glasses'] < GLASSES_SHARE)
  if not rows.size:
    return
  layer, p, edge = _subset(sheet, rows)
  x, y = layer.x, layer.y - p['eye_height']
  beside = np.abs(x)
  lens_x, lens_y = (beside - p['eye_gap']) / 0.27, y / 0.20
  ring = (np.sqrt(lens_x * lens_x + lens_y * lens_y) - 1) * 0.22
  frame = _stroke(ring, 0.016, edge)
  bridge = _stroke(y + 0.03, 0.014, edge) * _inside(beside - 0.09, edge)
  temple = _stroke(y + 0.05, 0.014, edge)
  temple *= _inside(0.61 - beside, edge) * _inside(beside - 0.78, edge)
  layer.paint(np.maximum(np.maximum(frame, bridge), temple), sheet.grey(0.1))
  sheet.pixel[:, rows] = layer.pixels


def _occluder(sheet: _Sheet) -> None:
  """A rounded bar held before the rim of the face, in a few pictures."""
  rows = np.flatnonzero(sheet.flat['occluded'] < OCCLUDED_SHARE)
  if not rows.size:
    return
  layer, p, edge = _subset(sheet, rows)
  angle = 2 * np.pi * p['occluder_angle']
  x = layer.x - p['occluder_distance'] * np.cos(angle) * 0.8
  y = layer.y - p['occluder_distance'] * np.sin(angle)
  roll = np.pi * p['occluder_roll']
  along = x * np.cos(roll) + y * np.sin(roll)
  aside = y * np.cos(roll) - x * np.sin(roll)
  beyond = np.maximum(np.abs(along) - p['occluder_length'], 0)
  gap = np.sqrt(beyond * beyond + aside * aside) - p['occluder_width']
  layer.paint(_inside(gap, edge), p['occluder_tone'][None])
  sheet.pixel[:, rows] = layer.pixels
