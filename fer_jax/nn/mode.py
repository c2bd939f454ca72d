"""Whether a module trains or evaluates, where a call does not say."""

from flax import nnx


class Mode(nnx.Module):
  """What `train()`, `eval()` and `nnx.view` of NNX set.

  Attributes:
    use_running_average: whether to normalise by running statistics.
  """

  use_running_average: bool

  def set_view(self, use_running_average: bool | None = None) -> None:
    """For `nnx.view`, which hands on what it is given; None for nothing."""
    if use_running_average is not None:
      self.use_running_average = use_running_average

  def trains(self, train: bool | None) -> bool:
    """`train` as a call says it, or where that is None, the module."""
    return not self.use_running_average if train is None else train
