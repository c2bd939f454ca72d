"""The ImageNet networks up to their last map, and what their pixels are.

Each comes in two families, 'keras' and 'torch', which differ in what weights
from either side need: epsilon and momentum of batch normalisation, padding,
initial values, pixel scaling.
"""

from fer_jax.models.backbones.densenet import DenseNet121
from fer_jax.models.backbones.family import FAMILIES
from fer_jax.models.backbones.preprocessing import (
  Preprocessing,
  preprocess,
  preprocessing,
)
from fer_jax.models.backbones.vgg import VGG16
from fer_jax.models.backbones.xception import Xception

BACKBONES = {
  'densenet121': DenseNet121,
  'vgg16': VGG16,
  'xception': Xception,
}

__all__ = [
  'BACKBONES',
  'FAMILIES',
  'VGG16',
  'DenseNet121',
  'Preprocessing',
  'Xception',
  'preprocess',
  'preprocessing',
]
