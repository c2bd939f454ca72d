"""What is drawn, asked of Matplotlib's figure before it becomes a picture."""

import numpy as np
import pytest

from fer_jax.evaluation import plots


@pytest.fixture
def drawn(monkeypatch):
  """The axes of the one plot that is drawn."""
  figures = []
  monkeypatch.setattr(plots, 'png', lambda figure: figures.append(figure))

  def axes():
    (figure,) = figures
    return figure.axes[0]

  return axes


def test_a_band_is_drawn_whole(drawn):
  values, deviation = np.array([2.0, 1.0]), np.array([0.5, 0.1])
  line = plots.Line('three seeds', np.arange(1.0, 3.0), values, deviation)
  plots.curves([line], title='Loss', percent=False)
  assert drawn().get_ylim()[1] > 2.5


def test_a_single_epoch_has_its_number_alone(drawn):
  line = plots.Line('train', np.array([1.0]), np.array([0.5]))
  plots.curves([line], title='Accuracy', percent=True)
  axes = drawn()
  low, high = axes.get_xlim()
  assert [n for n in axes.get_xticks() if low <= n <= high] == [1]


def test_curves_do_not_run_through_the_names_of_classes(drawn):
  points = np.linspace(0, 1, 5)
  curve = {
    'name': 'sad',
    'auc': 0.1,
    'false_positive_rate': points,
    'true_positive_rate': points**9,
  }
  plots.roc([curve])
  legend = drawn().get_legend()
  assert legend is not None
  assert legend.get_frame_on()
  assert legend.get_frame().get_alpha() > 0.8
