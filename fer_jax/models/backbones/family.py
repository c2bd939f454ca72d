"""Where a backbone's conventions come from: Keras, or torchvision and timm."""

from fer_jax.errors import nearest

FAMILIES = ('keras', 'torch')


def check_family(family: str) -> str:
  """`family`, if it is one.

  Raises:
    ValueError: naming the nearest.
  """
  if family not in FAMILIES:
    raise ValueError(
      f'family must be one of {FAMILIES}, got {family!r}'
      f'{nearest(family, FAMILIES)}'
    )
  return family
