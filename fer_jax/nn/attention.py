"""Additive attention over a sequence.

Legend: B batch, T steps, D features.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.nn import arguments
from fer_jax.nn.dtypes import as_bool, sum_dtype


class AdditiveAttention(nnx.Module):
  """Pools a sequence by weights that it learns to give to each step.

      e_t = v' tanh(W h_t + b)     alpha = softmax(e)     z = sum_t alpha_t h_t

  The source prints `tan` in the first equation; the additive attention that it
  cites uses the hyperbolic tangent.

  Example:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from fer_jax.nn import AdditiveAttention
    >>> pool = AdditiveAttention(features=8, units=4, rngs=nnx.Rngs(0))
    >>> context, weights = jax.jit(pool)(jnp.ones((2, 5, 8)))
    >>> context.shape, weights.shape
    ((2, 8), (2, 5))

  Args:
    features: D.
    units: width of the hidden layer.
    dtype: what to compute the hidden layer in; the softmax is float32.
    rngs: the stream `params` draws the parameters.

  Source: Munsarif and Ku-Mahamud, Deep residual bidirectional long short-term
  memory fusion (2025), eqs. 8-10; Bahdanau et al., arXiv 1409.0473.
  """

  def __init__(
    self, features: int, units: int, *, dtype: Any = None, rngs: nnx.Rngs
  ):
    features = arguments.positive('features', features)
    units = arguments.positive('units', units)
    dtype = arguments.floating('dtype', dtype)
    arguments.check_rngs(rngs)
    glorot = nnx.initializers.glorot_uniform()
    self.hidden = nnx.Linear(
      features, units, kernel_init=glorot, dtype=dtype, rngs=rngs
    )
    self.score = nnx.Linear(
      units, 1, use_bias=False, kernel_init=glorot, dtype=dtype, rngs=rngs
    )
    self.features = features

  def __call__(
    self, h_btd: jax.Array, mask_bt: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns context (B, D) and weights (B, T).

    Args:
      h_btd: the sequence.
      mask_bt: True for steps that take part. The weights of the others are 0,
        whatever the sequence holds there; where no step takes part, so are all
        weights and the context.

    Raises:
      ValueError: for shapes that do not fit.
    """
    arguments.check_sequence('attention', h_btd, mask_bt, self.features)
    arguments.check_floating('attention takes a sequence', h_btd)
    if mask_bt is not None:
      mask_bt = as_bool(mask_bt)
      # A weight of 0 times what is no number would be none either.
      h_btd = jnp.where(mask_bt[..., None], h_btd, 0)
    scores_bt = self.score(jnp.tanh(self.hidden(h_btd)))[..., 0]
    scores_bt = scores_bt.astype(sum_dtype(h_btd.dtype))
    if mask_bt is not None:
      # Finite, so that a sequence without any step gives no NaN.
      scores_bt = jnp.where(mask_bt, scores_bt, -1e30)
    weights_bt = jax.nn.softmax(scores_bt, -1)
    if mask_bt is not None:
      weights_bt = jnp.where(mask_bt, weights_bt, 0)
    context_bd = jnp.sum(
      weights_bt[..., None] * h_btd.astype(weights_bt.dtype), 1
    )
    return context_bd.astype(h_btd.dtype), weights_bt
