"""Reading weights: every layout, all or nothing, and files that are wrong.

That the right values land in the right places is tested against whole
networks, in test_backbones_vs_keras.py and test_backbones_vs_torch.py.
"""

import doctest
import zipfile

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from keras.src.legacy.saving import legacy_h5_format

from fer_jax.models import load_pretrained, pretrained
from fer_jax.models.backbones import (
  BACKBONES,
  VGG16,
  DenseNet121,
  Xception,
  preprocess,
  preprocessing,
  vgg,
)
from fer_jax.models.pretrained.layers import backbone_variables

# Keras converts its variables by a means that NumPy 2 deprecates, and asks
# for another format than .h5.
pytestmark = [
  pytest.mark.filterwarnings('ignore:__array__ imp:DeprecationWarning'),
  pytest.mark.filterwarnings('ignore:You are saving your model:UserWarning'),
]
NARROW = ((2, 2), (2, 3), (3, 2), (3, 3), (3, 2))


def abstract(cls, family='keras', **options):
  return nnx.eval_shape(lambda: cls(family=family, rngs=nnx.Rngs(0), **options))


def arrays(module):
  return {
    '.'.join(path): variable.get_value()
    for path, variable in nnx.to_flat_state(nnx.state(module))
  }


def assert_equal(found, expected):
  found, expected = arrays(found), arrays(expected)
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# Layouts of Keras.


@pytest.fixture(scope='module')
def keras_model():
  """Xception with random weights and a head: it has layers of every kind,
  and some that Keras names by itself."""

  def zeros(self, shape, dtype=None):
    del self, dtype
    return jnp.zeros(shape, jnp.float32)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(keras.initializers.GlorotUniform, '__call__', zeros)
    model = keras.applications.Xception(
      weights=None, input_shape=(71, 71, 3), classes=3
    )
  rng = np.random.default_rng(0)
  for variable in model.weights:
    variable.assign(rng.random(variable.shape, np.float32))
  return model


@pytest.fixture(scope='module')
def keras_files(keras_model, tmp_path_factory):
  """The same weights in each layout, by name."""
  folder = tmp_path_factory.mktemp('keras')
  paths = {
    'Keras 3 weights': folder / 'x.weights.h5',
    'Keras 3 model': folder / 'x.keras',
    'legacy weights': folder / 'legacy.h5',
    'legacy model': folder / 'model.h5',
  }
  keras_model.save_weights(paths['Keras 3 weights'])
  keras_model.save(paths['Keras 3 model'])
  keras_model.save(paths['legacy model'])
  with h5py.File(paths['legacy weights'], 'w') as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, keras_model)
  return paths


@pytest.fixture(scope='module')
def expected(keras_model):
  """Xception as Keras' variables say, by way of their names."""
  backbone = abstract(Xception)
  by_name = {
    layer.name: [np.asarray(v.value) for v in layer.weights]
    for layer in keras_model.layers
  }
  # Its own names for shortcuts are not the same in every session.
  shortcuts = [
    layer.name
    for layer in keras_model.layers
    if layer.weights and not layer.name.startswith(('block', 'predictions'))
  ]
  for variable in backbone_variables(backbone).values():
    name = variable.keras_layer
    if name is None:
      block = int(variable.layer.split('.')[0].removeprefix('block'))
      kind = 'conv2d' if variable.kind == 'conv' else 'batch_normalization'
      named = [n for n in shortcuts if n.startswith(kind)]
      name = named[(2, 3, 4, 13).index(block)]
    value = by_name[name][variable.keras_index]
    if variable.kind == 'separable' and variable.keras_index == 0:
      value = value.reshape(3, 3, 1, -1)
    variable.target.set_value(jnp.asarray(value))
  return backbone


@pytest.mark.parametrize(
  'layout',
  ['Keras 3 weights', 'Keras 3 model', 'legacy weights', 'legacy model'],
)
def test_layouts_of_keras(layout, keras_files, expected):
  """Equal to the variables of the model; its head is left out by name."""
  backbone = abstract(Xception)
  loaded = load_pretrained(backbone, keras_files[layout])
  assert_equal(backbone, expected)
  assert loaded.family == 'keras'
  assert loaded.tensors == 234
  assert loaded.left_out == ('predictions',)


def write_legacy(path, layers):
  """The layout that Keras documents, names as they were with Keras 1 and 2."""
  with h5py.File(path, 'w') as file:
    # Long lists of names are in numbered attributes.
    names = [name.encode() for name, _ in layers]
    file.attrs['layer_names0'] = names[:3]
    file.attrs['layer_names1'] = names[3:]
    for name, values in layers:
      group = file.create_group(name)
      weights = [f'{name}/w_{n}:0' for n in range(len(values))]
      group.attrs['weight_names'] = [w.encode() for w in weights]
      for weight, value in zip(weights, values, strict=True):
        group.create_dataset(weight, data=value)


def test_names_of_older_files(keras_model, expected, tmp_path):
  """Automatic names of Keras 1, and slashes as DenseNet's old files have."""
  old = {'conv2d': 'convolution2d', 'batch_normalization': 'batchnormalization'}
  layers = []
  for layer in keras_model.layers:
    name, _, number = layer.name.rpartition('_')
    name = old.get(name, name) if number.isdigit() else layer.name
    if name in old.values() or layer.name in old:
      name = f'{old.get(layer.name, name)}_{len(layers)}'
    elif layer.name.startswith('block'):
      name = layer.name.replace('_', '/', 1)
    else:
      name = layer.name
    layers.append((name, [np.asarray(v.value) for v in layer.weights]))
  assert any(name.startswith('convolution2d_') for name, _ in layers)
  write_legacy(tmp_path / 'old.h5', layers)
  backbone = abstract(Xception)
  load_pretrained(backbone, tmp_path / 'old.h5')
  assert_equal(backbone, expected)


def test_files_without_names_go_by_order(keras_files, expected, tmp_path):
  """Early files of Keras 3 have no names, and another root."""
  path = tmp_path / 'early.weights.h5'
  path.write_bytes(keras_files['Keras 3 weights'].read_bytes())
  with h5py.File(path, 'r+') as file:
    file.move('layers', '_layer_checkpoint_dependencies')
    for layer in file['_layer_checkpoint_dependencies'].values():
      layer['vars'].attrs.pop('name', None)
  backbone = abstract(Xception)
  load_pretrained(backbone, path)
  assert_equal(backbone, expected)


def test_file_of_another_network(keras_files):
  with pytest.raises(
    ValueError,
    match=r'does not fit VGG16: it lacks block2_conv1;.* and 7 more; '
    r'block1_conv1 holds 1 tensors, .*; it adds .* and \d+ more$',
  ):
    load_pretrained(abstract(VGG16), keras_files['Keras 3 weights'])


# A narrow VGG16: all or nothing.


@pytest.fixture
def narrow(monkeypatch):
  monkeypatch.setattr(vgg, 'BLOCKS', NARROW)


def vgg_arrays(**replaced):
  """A state dict of the narrow VGG16, of torch's names and layout."""
  rng = np.random.default_rng(0)
  state = {}
  for variable in backbone_variables(abstract(VGG16, 'torch')).values():
    shape = variable.file_shape('torch')
    state[variable.torch_name] = rng.normal(size=shape).astype(np.float32)
  state['classifier.0.weight'] = np.zeros((4, 8), np.float32)
  state.update({name.replace('__', '.'): v for name, v in replaced.items()})
  return {name: value for name, value in state.items() if value is not None}


def save(path, state):
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(v) for name, v in state.items()}, path
  )
  return path


def vgg_layers():
  """Layers of the narrow VGG16 for `write_legacy`."""
  rng = np.random.default_rng(0)
  layers = {}
  for variable in backbone_variables(abstract(VGG16)).values():
    value = rng.normal(size=variable.file_shape('keras')).astype(np.float32)
    layers.setdefault(variable.keras_layer, []).append(value)
  return layers


@pytest.mark.usefixtures('narrow')
class TestNarrow:
  def test_sets_a_built_model_in_place(self, tmp_path):
    """A backbone inside a model; tensors, dtypes, and what is left out."""
    state = vgg_arrays()
    state['features.5.weight'] = state['features.5.weight'].astype(jnp.bfloat16)
    state['features.7.bias'] = state['features.7.bias'].astype(np.float16)

    class Model(nnx.Module):
      def __init__(self, rngs):
        self.parts = nnx.List([VGG16(family='torch', rngs=rngs)])
        self.logits = nnx.Linear(2, 3, rngs=rngs)

    model = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    before = arrays(model.logits)
    # Once over what was only shapes, once over arrays.
    other = {name: np.zeros_like(value) for name, value in vgg_arrays().items()}
    load_pretrained(model, save(tmp_path / 'zeros.safetensors', other))
    loaded = load_pretrained(model, save(tmp_path / 'v.safetensors', state))
    block1, block2 = model.parts[0].block1, model.parts[0].block2
    for kernel, name in (
      (block1.conv1.kernel, 'features.0'),
      (block2.conv1.kernel, 'features.5'),
    ):
      expected = np.asarray(state[f'{name}.weight'], np.float32)
      np.testing.assert_array_equal(kernel[...], expected.transpose(2, 3, 1, 0))
      assert kernel[...].dtype == jnp.float32
    np.testing.assert_array_equal(
      block2.conv2.bias[...], state['features.7.bias'].astype(np.float32)
    )
    assert arrays(model.logits) == before
    assert loaded.left_out == ('classifier.0.weight',)
    assert loaded.tensors == 26

  @pytest.mark.parametrize(
    ('replaced', 'message'),
    [
      ({'features__28__bias': None}, 'VGG16: it lacks features.28.bias$'),
      ({'features__30__bias': np.zeros(2)}, 'it adds features.30.bias$'),
      ({'stem__weight': np.zeros(2)}, 'it adds stem.weight$'),
      (
        {'features__0__num_batches_tracked': np.zeros(1), 'x': np.zeros(1)},
        'it adds x$',
      ),
      (
        {'features__0__weight': np.zeros((2, 1, 3, 3), np.float32)},
        r'features.0.weight is \(2, 1, 3, 3\) and not \(2, 3, 3, 3\), as '
        r'block1.conv1.kernel is$',
      ),
      (
        {'features__0__weight': np.zeros((2, 3, 3, 3), np.int8)},
        'features.0.weight is I8 and not floating$',
      ),
      (
        {'features__28__bias': np.array([1, np.nan], np.float32)},
        'features.28.bias has values that are not finite$',
      ),
      (
        {f'extra{n}': np.zeros(1) for n in range(7)},
        'extra0; it adds extra1; it adds extra2; it adds extra3; and 3 more$',
      ),
      (
        {f'features__{n}__bias': None for n in (0, 2, 5, 7, 10)}
        | {f'module__{n}': np.zeros(1) for n in range(5)},
        'features.0.bias; .* features.7.bias; and 1 more; it adds module.0; '
        '.* module.3; and 1 more$',
      ),
      (
        {
          'features__1__running_mean': np.zeros(2, np.float32),
          'features__1__running_var': np.zeros(2, np.float32),
        },
        'looks like vgg16_bn, which is another network',
      ),
    ],
    ids=lambda value: '' if isinstance(value, dict) else value[:20],
  )
  def test_all_or_nothing(self, replaced, message, tmp_path):
    path = save(tmp_path / 'v.safetensors', vgg_arrays(**replaced))
    backbone = abstract(VGG16, 'torch')
    load_pretrained(backbone, save(tmp_path / 'g.safetensors', vgg_arrays()))
    before = arrays(backbone)
    with pytest.raises(ValueError, match=message) as raised:
      load_pretrained(backbone, path)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)
    after = arrays(backbone)
    for name, value in before.items():
      np.testing.assert_array_equal(after[name], value)

  @pytest.mark.parametrize(
    ('change', 'message'),
    [
      (lambda la: la.pop('block5_conv3'), 'it lacks block5_conv3$'),
      (
        lambda la: la.update(block6_conv1=la['block5_conv3']),
        'it adds block6_conv1$',
      ),
      (
        lambda la: la.update(block1_conv1=la['block1_conv1'][:1]),
        'block1_conv1 holds 1 tensors, block1.conv1 has 2$',
      ),
      (
        lambda la: la.update(block2_conv1=la['block1_conv1']),
        r'w_0:0 is \(3, 3, 3, 2\) and not \(3, 3, 2, 3\)',
      ),
      (
        lambda la: la.update({'block1/conv1': la['block1_conv1']}),
        'it has two layers block1_conv1; it adds',
      ),
    ],
  )
  def test_all_or_nothing_of_keras_layers(self, change, message, tmp_path):
    layers = vgg_layers()
    change(layers)
    write_legacy(tmp_path / 'v.h5', list(layers.items()))
    with pytest.raises(ValueError, match=message):
      load_pretrained(abstract(VGG16), tmp_path / 'v.h5')

  def test_family_belongs_to_the_file(self, tmp_path):
    path = save(tmp_path / 'v.safetensors', vgg_arrays())
    with pytest.raises(ValueError, match="build it with family='torch'"):
      load_pretrained(abstract(VGG16), path)
    with pytest.raises(ValueError, match="for family='torch', not 'keras'"):
      load_pretrained(abstract(VGG16, 'torch'), path, family='keras')
    with pytest.raises(ValueError, match="did you mean 'torch'"):
      load_pretrained(abstract(VGG16, 'torch'), path, family='pytorch')
    load_pretrained(abstract(VGG16, 'torch'), path, family='torch')

  def test_grey_backbones_are_refused(self, tmp_path):
    path = save(tmp_path / 'v.safetensors', vgg_arrays())
    with pytest.raises(ValueError, match=r'for 1 channels .*repeat grey'):
      load_pretrained(abstract(VGG16, 'torch', in_features=1), path)

  def test_a_model_has_one_backbone(self, tmp_path):
    path = tmp_path / 'v.safetensors'
    for model, count in (
      (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), 0),
      (nnx.List([abstract(VGG16), abstract(VGG16)]), 2),
    ):
      with pytest.raises(ValueError, match=f'exactly one of .* holds {count}'):
        load_pretrained(model, path)

  @pytest.mark.parametrize('suffix', ['.safetensors', '.h5', '.keras'])
  @pytest.mark.parametrize('damage', ['truncated', 'garbage', 'empty'])
  def test_damaged_files(self, suffix, damage, tmp_path):
    path = tmp_path / f'v{suffix}'
    if suffix == '.safetensors':
      save(path, vgg_arrays())
    else:
      write_legacy(tmp_path / 'good.h5', list(vgg_layers().items()))
      path.write_bytes((tmp_path / 'good.h5').read_bytes())
    if suffix == '.keras':
      with zipfile.ZipFile(path, 'w') as archive:
        archive.write(tmp_path / 'good.h5', 'model.weights.h5')
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    path.write_bytes(
      {
        'truncated': content[: len(content) // 2],
        'garbage': rng.bytes(3000),
        'empty': b'',
      }[damage]
    )
    family = 'torch' if suffix == '.safetensors' else 'keras'
    with pytest.raises(ValueError, match='file, or not all of one') as raised:
      load_pretrained(abstract(VGG16, family), path)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)

  def test_flipped_bits_in_an_archive_are_found(self, tmp_path):
    write_legacy(tmp_path / 'good.h5', list(vgg_layers().items()))
    path = tmp_path / 'v.keras'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.write(tmp_path / 'good.h5', 'model.weights.h5')
    load_pretrained(abstract(VGG16), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='Bad CRC-32'):
      load_pretrained(abstract(VGG16), path)

  @pytest.mark.parametrize(
    ('link', 'message'),
    [
      (h5py.SoftLink('/block1_conv2'), "'block1_conv1' in / is a link"),
      (h5py.ExternalLink('other.h5', '/a'), "'block1_conv1' in / is a link"),
      (None, "/ lacks 'block1_conv1', which the file lists"),
    ],
  )
  def test_links_are_not_followed(self, link, message, tmp_path):
    path = tmp_path / 'v.h5'
    write_legacy(path, list(vgg_layers().items()))
    write_legacy(tmp_path / 'other.h5', list(vgg_layers().items()))
    with h5py.File(path, 'r+') as file:
      del file['block1_conv1']
      if link is not None:
        file['block1_conv1'] = link
    with pytest.raises(ValueError, match=message):
      load_pretrained(abstract(VGG16), path)

  @pytest.mark.parametrize('virtual', [True, False])
  def test_values_in_other_files_are_refused(self, virtual, tmp_path):
    path = tmp_path / 'v.h5'
    write_legacy(path, list(vgg_layers().items()))
    (tmp_path / 'secret').write_bytes(bytes(8))
    with h5py.File(path, 'r+') as file:
      group = file['block1_conv1/block1_conv1']
      del group['w_1:0']
      if virtual:
        layout = h5py.VirtualLayout((2,), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / 'o.h5'), 'a', (2,))
        group.create_virtual_dataset('w_1:0', layout)
      else:
        group.create_dataset(
          'w_1:0',
          (2,),
          np.float32,
          external=[(str(tmp_path / 'secret'), 0, 8)],
        )
    with pytest.raises(ValueError, match='are in another file'):
      load_pretrained(abstract(VGG16), path)

  def test_a_declared_size_is_not_believed(self, tmp_path):
    """A dataset of a terabyte that stores nothing is refused by its shape."""
    path = tmp_path / 'v.h5'
    write_legacy(path, list(vgg_layers().items()))
    with h5py.File(path, 'r+') as file:
      group = file['block1_conv1/block1_conv1']
      del group['w_1:0']
      group.create_dataset('w_1:0', (2**38,), np.float32, chunks=(1024,))
    with pytest.raises(ValueError, match=r'is \(274877906944,\) and not'):
      load_pretrained(abstract(VGG16), path)

  def test_files_of_other_programs(self, tmp_path):
    path = tmp_path / 'other.h5'
    with h5py.File(path, 'w') as file:
      file['a'] = np.zeros(2)
    with pytest.raises(ValueError, match='no layers as Keras writes them'):
      load_pretrained(abstract(VGG16), path)
    path = tmp_path / 'other.keras'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('config.json', '{}')
    with pytest.raises(ValueError, match=r'holds no model\.weights\.h5'):
      load_pretrained(abstract(VGG16), path)

  @pytest.mark.parametrize(
    ('name', 'message'),
    [
      ('v.pth', 'v.pth is a pickle, .*weights_only=True.*save_file'),
      ('pytorch_model.bin', 'is a pickle'),
      ('v.npz', 'must end in one of'),
      ('missing.h5', 'cannot read .*missing.h5: there is no such file'),
      ('folder.h5', 'there is no such file'),
    ],
  )
  def test_names_of_files(self, name, message, tmp_path):
    (tmp_path / 'v.pth').write_bytes(b'')
    (tmp_path / 'folder.h5').mkdir()
    with pytest.raises(ValueError, match=message):
      load_pretrained(abstract(VGG16), tmp_path / name)

  @pytest.mark.parametrize(
    ('package', 'name'),
    [('h5py', 'v.h5'), ('h5py', 'v.keras'), ('safetensors', 'v.safetensors')],
  )
  def test_missing_packages_are_named(
    self, package, name, tmp_path, monkeypatch
  ):
    monkeypatch.setitem(__import__('sys').modules, package, None)
    (tmp_path / name).write_bytes(b'x')
    with pytest.raises(ImportError, match=rf'{package}: .*\[pretrained\]'):
      load_pretrained(abstract(VGG16, 'torch'), tmp_path / name)


def test_oldest_names_of_densenet(tmp_path):
  """`norm.1` for `norm1`, counters, and a classifier, as in torchvision's
  first file."""
  backbone = abstract(DenseNet121, 'torch')
  state = {
    variable.torch_name: np.full(variable.file_shape('torch'), n, np.float32)
    for n, variable in enumerate(backbone_variables(backbone).values())
  }
  norms = [n for n in state if n.endswith('running_mean')]
  for name in norms:
    name = name.replace('running_mean', 'num_batches_tracked')
    state[name] = np.zeros((), np.int64)
  state['classifier.bias'] = np.zeros(3, np.float32)
  save(tmp_path / 'new.safetensors', state)
  new = abstract(DenseNet121, 'torch')
  load_pretrained(new, tmp_path / 'new.safetensors')
  marks = {
    float(np.asarray(value).ravel()[0]) for value in arrays(new).values()
  }
  assert len(marks) == len(arrays(new))

  def old_name(name):
    for part in ('norm', 'conv'):
      for n in '12':
        name = name.replace(f'.{part}{n}.', f'.{part}.{n}.')
    return name

  old = {old_name(name): value for name, value in state.items()}
  assert 'features.denseblock4.denselayer16.conv.2.weight' in old
  save(tmp_path / 'old.safetensors', old)
  loaded = load_pretrained(backbone, tmp_path / 'old.safetensors')
  assert_equal(backbone, new)
  assert loaded.left_out == ('classifier.bias',)
  twice = 'features.denseblock1.denselayer1.norm1.weight'
  save(tmp_path / 'both.safetensors', {**old, twice: state[twice]})
  with pytest.raises(ValueError, match=r'it names .*norm.?1.weight twice'):
    load_pretrained(backbone, tmp_path / 'both.safetensors')


# Backbones: what can be said without a reference.


@pytest.mark.parametrize(
  ('name', 'size', 'least', 'of_48'),
  [
    ('densenet121', 7_037_504, 29, (1, 1)),
    ('vgg16', 14_714_688, 32, (1, 1)),
    ('xception', 20_861_480, 7, (2, 2)),
  ],
)
@pytest.mark.parametrize('family', ['keras', 'torch'])
def test_sizes(name, size, least, of_48, family):
  """References: sizes that keras.applications gives without its tops; maps by
  tracing, down to the smallest image."""
  cls = BACKBONES[name]
  backbone = abstract(cls, family)
  assert sum(a.size for a in jax.tree.leaves(nnx.state(backbone))) == size
  assert cls.output_size(48, 48, family) == of_48
  graphdef, state = nnx.split(backbone)

  def trace(height, width):
    return jax.eval_shape(
      lambda state, x: nnx.merge(graphdef, state)(x),
      state,
      jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
    ).shape[1:]

  # Tracing takes seconds, and the family makes a difference to one alone.
  sizes = ((least, least + 1), (71, 68))
  for height, width in sizes if 'xception' in name or family == 'keras' else ():
    expected = (*cls.output_size(height, width, family), backbone.out_features)
    assert trace(height, width) == expected
  assert cls.output_size(least, least, family) == (1, 1)
  for call in (lambda *s: cls.output_size(*s, family), trace):
    with pytest.raises(
      ValueError, match=f'at least {least}x{least}, got 99x{least - 1}'
    ):
      call(99, least - 1)


@pytest.mark.parametrize('name', sorted(BACKBONES))
def test_unknown_names(name):
  with pytest.raises(ValueError, match="did you mean 'keras'"):
    abstract(BACKBONES[name], 'kears')
  with pytest.raises(ValueError, match="did you mean 'torch'"):
    preprocessing(name, 'torchvision')
  with pytest.raises(ValueError, match=r"\['densenet121', .* got 'vgg'"):
    preprocessing('vgg', 'keras')
  with pytest.raises(ValueError, match=r'\(\.\.\., H, W, 3\), got \(2, 4, 4\)'):
    preprocess(jnp.zeros((2, 4, 4)), preprocessing(name, 'keras'))


@pytest.mark.usefixtures('narrow')
def test_examples_run():
  results = doctest.testmod(pretrained)
  assert results.attempted > 2
  assert results.failed == 0
