"""Checks of what layers are handed.

What will not do is a ValueError that names the argument, what it may be, and
what it is. NumPy's numbers do for Python's.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def is_int(value: Any) -> bool:
  """True for an int that is no bool."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_share(value: Any) -> bool:
  """True for a number in [0, 1) that is no bool."""
  if not isinstance(value, numbers.Real) or isinstance(value, bool):
    return False
  return 0 <= float(value) < 1


def refuse(name: str, expected: str, value: Any) -> NoReturn:
  """Raises the ValueError."""
  got = repr(value)
  if '\n' in got:  # such as arrays and modules
    got = f'a {type(value).__name__}'
  raise ValueError(f'{name} must be {expected}, got {got}')


def positive(name: str, value: Any) -> int:
  """`value`, if it is a positive int."""
  if not is_int(value) or value < 1:
    refuse(name, 'a positive int', value)
  return int(value)


def positives(name: str, value: Any) -> tuple[int, ...]:
  """`value`, if it is a tuple of positive ints."""
  if not isinstance(value, tuple) or not all(
    is_int(n) and n > 0 for n in value
  ):
    refuse(name, 'a tuple of positive ints', value)
  return tuple(map(int, value))


def twice(value: Any) -> tuple[Any, Any] | None:
  """Two values, an int being both; None of what is neither."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if is_int(value):
    return value, value
  if isinstance(value, tuple | list) and len(value) == 2:
    return value[0], value[1]
  return None


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
  """One positive int for both axes, or two."""
  values = twice(value)
  if values is None or not all(is_int(n) and n > 0 for n in values):
    refuse(name, 'one or two positive ints', value)
  return int(values[0]), int(values[1])


def share(name: str, value: Any) -> float:
  """`value`, if it is a number in [0, 1)."""
  if not is_share(value):
    refuse(name, 'a number in [0, 1)', value)
  return float(value)


def flag(name: str, value: Any) -> bool:
  """`value`, if it is a bool."""
  if not isinstance(value, bool | np.bool_):
    refuse(name, 'True or False', value)
  return bool(value)


def floating(name: str, value: Any) -> Any:
  """`value` as a dtype, if it names one of floating numbers; None is None."""
  if value is None:
    return None
  if value is float:  # JAX's own, of whichever width
    value = jnp.result_type(float)
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    refuse(name, "a floating dtype, such as 'bfloat16'", value)
  return dtype


def check_rngs(rngs: Any) -> None:
  """Raises ValueError for what gives no keys for parameters."""
  if not callable(getattr(rngs, 'params', None)):
    expected = "nnx.Rngs with a stream 'params', such as nnx.Rngs(0)"
    refuse('rngs', expected, rngs)


def check_key(key: Any) -> None:
  """Raises ValueError for what is no PRNG key; None is none."""
  if key is not None and not isinstance(key, jax.Array | np.ndarray):
    refuse('key', 'a PRNG key, such as jax.random.key(0)', key)


def parameter(
  name: str,
  initializer: Callable[..., jax.Array],
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  dtype: Any,
) -> nnx.Param:
  """The parameter `name`, drawn."""
  if not callable(initializer):
    refuse(f'the initialiser of {name}', 'a function', initializer)
  check_rngs(rngs)
  dtype = floating('param_dtype', dtype)
  return nnx.Param(initializer(rngs.params(), shape, dtype))


def shape_of(array: Any) -> tuple[int, ...]:
  """Its shape; () of what is no array."""
  return getattr(array, 'shape', ())


def described(value: Any) -> str:
  """What messages say of what may be an array."""
  if hasattr(value, 'shape'):
    return str(value.shape)
  if isinstance(value, tuple | list):
    return f'a {type(value).__name__} of {len(value)}'
  return repr(value)


def check_shape(takes: str, array: Any, shape: tuple[int | None, ...]) -> None:
  """Raises ValueError for another shape, in which None stands for any size.

  Args:
    takes: what the message begins with.
    array: may be no array.
    shape: expected.
  """
  found = shape_of(array)
  if len(found) != len(shape) or any(
    size is not None and size != n for size, n in zip(shape, found, strict=True)
  ):
    raise ValueError(f'{takes}, got {described(array)}')


def check_floating(takes: str, array: Any) -> None:
  """Raises ValueError for what is no array of floating numbers."""
  dtype = getattr(array, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    got = described(array) if dtype is None else dtype
    raise ValueError(f'{takes} of floating numbers, got {got}')


def check_sequence(layer: str, x_btd: Any, mask_bt: Any, features: int) -> None:
  """Raises ValueError for another sequence or mask than (B, T, `features`) and
  (B, T); no mask is None."""
  check_shape(
    f'{layer} takes a sequence (B, T, {features})',
    x_btd,
    (None, None, features),
  )
  if mask_bt is not None:
    expected = x_btd.shape[:2]
    check_shape(
      f'the mask of a sequence {x_btd.shape} must be {expected}',
      mask_bt,
      expected,
    )
