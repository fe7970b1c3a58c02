"""model.weights takes a file of the backbone's own network, whatever Keras' files it takes besides."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import DataError
from ssd_tf.models import registry
from ssd_tf.models.vgg import vgg16

DEEPER = ("resnet101", "resnet152", "resnet101_v2", "resnet152_v2")  # of the same function as those of 50 layers
BACKBONES = [
    name
    for name in registry.list_backbones()
    if registry.get_backbone(name).build.__module__.startswith("ssd_tf.") and name not in DEEPER
]


def randomize(model):
    """Gives batch norms and biases numbers that do something; kernels have some."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 1:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def with_weights(config, path):
    return configs.replace(config, model__weights=str(path))


@pytest.mark.parametrize("name", BACKBONES)
def test_own_weights_come_back(name, tmp_path):
    path, config = tmp_path / "own.weights.h5", make_config(name)
    own = randomize(registry.get_backbone(name).build((128, 128, 3), None))
    own.save_weights(path)
    found = build.build(with_weights(config, path)).model.get_layer("backbone")
    layers = [own.get_layer(tap) for tap in registry.get_backbone(name).layouts["default"].taps]
    image = np.random.default_rng(1).normal(size=(1, 128, 128, 3)).astype(np.float32)
    expected = keras.Model(own.inputs[0], [layer.output for layer in layers])(image, training=False)
    for one, other in zip(found(image, training=False), expected, strict=True):
        assert np.std(other) > 1e-3
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.max(np.abs(other)))


def test_nothing_of_vgg16_starts_anew(tmp_path):
    """fc6, fc7 and the scale of the normalisation are in its own file, which Keras' have not."""
    saved = randomize(vgg16((64, 64, 3), None))
    saved.save_weights(tmp_path / "own.weights.h5")
    found = vgg16((64, 64, 3), str(tmp_path / "own.weights.h5"))
    for one, other in zip(saved.weights, found.weights, strict=True):
        assert np.array_equal(one, other), one.path
    assert float(found.get_layer("neck_block4_conv3").gamma[0]) != 20


@pytest.mark.parametrize(
    ("name", "leaf", "value", "line"),
    [
        ("vgg16", "model__tap_norm", "bn", "weights do not fit vgg16: neck_block4_conv3/gamma is missing; "),
        (
            "mobilenet_v1",
            "model__width",
            0.5,
            "weights do not fit mobilenet_v1: conv1/kernel is 3x3x3x32 in the file, expected 3x3x3x16; ",
        ),
    ],
)
def test_own_weights_of_another_recipe(name, leaf, value, line, tmp_path):
    path, config = tmp_path / "own.weights.h5", make_config(name)
    registry.get_backbone(name).build((128, 128, 3), None).save_weights(path)
    with pytest.raises(DataError) as caught:
        build.build(configs.replace(with_weights(config, path), **{leaf: value}))
    assert str(caught.value).startswith(line) and str(caught.value).endswith(f"more: {path}")


def test_differences_are_those_from_the_nearer_network(tmp_path, monkeypatch):
    """One with fc6 and fc7 is ours, less a weight; one without is Keras', less a layer: no classifier is built."""
    own = vgg16((64, 64, 3), None)
    keras_own = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    shorter = keras.Model(keras_own.inputs[0], keras_own.get_layer("block5_conv2").output)
    longer = keras.Model(own.inputs[0], own.get_layer("fc7").output)
    application, lines = keras.applications.VGG16, []

    def small(include_top, **options):
        assert not include_top
        return application(include_top=False, **options)

    small.__name__ = "VGG16"
    monkeypatch.setattr(keras.applications, "VGG16", small)
    for index, model in enumerate((shorter, longer)):
        path = tmp_path / f"{index}.weights.h5"
        model.save_weights(path)
        with pytest.raises(DataError) as caught:
            vgg16((64, 64, 3), str(path))
        lines.append(str(caught.value).removesuffix(f": {path}"))
    assert lines == [
        "weights do not fit VGG16: block5_conv3/kernel is missing; block5_conv3/bias is missing",
        "weights do not fit vgg16: neck_block4_conv3/gamma is missing",
    ]


def test_function_of_a_plugin_reads_its_file_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    given = []

    @registry.register_backbone("own_small", taps=("map",))
    def own_small(image_shape, weights):
        given.append(weights)
        image = keras.Input(image_shape)
        return keras.Model(image, keras.layers.Conv2D(2, 3, strides=8, padding="same", name="map")(image))

    path = tmp_path / "own.weights.h5"
    own_small((32, 32, 3), None).save_weights(path)
    given.clear()
    build.build(with_weights(make_config("own_small"), path))
    assert str(path) in given
