"""The course's TinySSD, and networks of keras.applications: registered ones and those that are only named."""

import inspect

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import layers, registry
from ssd_tf.models.extractor import feature_extractor

SIZES = {
    (300, 300): [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)],
    (128, 128): [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)],
    (320, 320): [(40, 40), (20, 20), (10, 10), (5, 5), (3, 3), (1, 1)],
    (512, 512): [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)],
    (300, 512): [(38, 64), (19, 32), (10, 16), (5, 8), (3, 6), (1, 4)],
    (1024, 1024): [(side, side) for side in (128, 64, 32, 16, 8, 4, 2, 1)],
}
COURSE_SIZES = {
    (256, 256): [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)],
    (300, 300): [(37, 37), (18, 18), (9, 9), (4, 4), (1, 1)],
    (128, 128): [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)],
    (320, 320): [(40, 40), (20, 20), (10, 10), (5, 5), (1, 1)],
    (512, 512): [(64, 64), (32, 32), (16, 16), (8, 8), (1, 1)],
    (300, 512): [(37, 64), (18, 32), (9, 16), (4, 8), (1, 1)],
    (1024, 1024): [(128, 128), (64, 64), (32, 32), (16, 16), (1, 1)],
}
CASES = [
    *(("tiny_ssd_d2l", size, cells, (64, 128, 128, 128, 128)) for size, cells in COURSE_SIZES.items()),
    *(("mobilenet_v3_large", size, cells, (240, 672, 960, 512)) for size, cells in SIZES.items()),
    *(("efficientnet_b0", size, cells, (240, 672, 1280, 512)) for size, cells in [*SIZES.items()][:5]),
]
RULE = (256,) * 8  # channels of the auxiliary layers after the first


def make_case(backbone, size=(128, 128), **leaves):
    return configs.replace(make_config(backbone), model__image_size=size, **leaves)


def backbone_taps(extractor):
    """The layers that the heads read."""
    return [output._keras_history.operation for output in extractor.get_layer("backbone").outputs]


@pytest.mark.parametrize(("backbone", "size", "cells", "channels"), CASES)
def test_maps(backbone, size, cells, channels):
    extractor = feature_extractor(make_case(backbone, size).model)
    expected = [(*side, depth) for side, depth in zip(cells, channels + RULE, strict=False)]
    assert [output.shape[1:] for output in extractor.outputs] == expected
    names = tuple(tap.name for tap in backbone_taps(extractor))
    assert names == registry.get_backbone(backbone).layouts["default"].taps


def test_course_network_is_as_large_as_the_courses():
    """The convolutions' biases and the batch norms' scales and shifts are in, what they measure is not."""
    config = make_case("tiny_ssd_d2l", (256, 256), model__num_classes=1, anchors__preset="tiny256")
    detector = build.build(config)
    assert detector.anchors.shape == (5444, 4)
    assert sum(weight.value.numpy().size for weight in detector.model.trainable_weights) == 1_010_376
    squares = detector.anchors[[0, 4096, 4096 + 1024, 5376, 5440]]
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], [0.2, 0.37, 0.54, 0.71, 0.88], atol=1e-6)


def test_course_network_pools_all_of_the_last_map():
    """Its last map is the largest value of the one before, wherever that stands."""
    network = registry.get_backbone("tiny_ssd_d2l").build((128, 192, 3), None)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 128, 192, 3)).astype(np.float32)
    before, after = keras.Model(network.inputs[0], [network.get_layer("block6_pool").output, network.output])(
        image
    )
    assert before.shape == (1, 2, 3, 128)
    np.testing.assert_array_equal(after, np.max(before, axis=(1, 2), keepdims=True))


def test_course_network_reads_its_own_weights(tmp_path):
    build_network = registry.get_backbone("tiny_ssd_d2l").build
    first = build_network((64, 64, 3), None)
    first.save_weights(tmp_path / "a.weights.h5")
    second = build_network((128, 64, 3), str(tmp_path / "a.weights.h5"))
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert np.array_equal(one, other)
    message = r"no ImageNet weights for tiny_ssd_d2l to fetch: set model\.weights=none"
    with pytest.raises(ConfigError, match=message):
        feature_extractor(configs.replace(make_case("tiny_ssd_d2l"), model__weights="imagenet").model)


def test_number_of_weights():
    assert registry.get_backbone("efficientnet_b0").build((64, 64, 3), None).count_params() == 4_049_571


def make_twin(application):
    """Keras' own network, the norms of which do something."""
    keras.utils.set_random_seed(0)
    twin = application(include_top=False, weights=None, input_shape=(128, 128, 3))
    generator = np.random.default_rng(0)
    for layer in twin.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
        elif isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.float32([0.5, 0.4, 0.3]), np.float32([0.05, 0.06, 0.07]), np.int32(0)])
            layer.finalize_state()
    return twin


def read_maps(backbone, path, images):
    """The maps that a recipe with a weights file reads from uint8 images."""
    settings = make_case(backbone, model__weights=str(path), model__levels=3).model
    return [np.asarray(output) for output in feature_extractor(settings)(images)]


def test_registered_application_is_keras_own(tmp_path):
    """With the weights of Keras' network, and pixels as that one takes them: 0..255."""
    twin = make_twin(keras.applications.EfficientNetB0)
    twin.save_weights(tmp_path / "a.weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    found = read_maps("efficientnet_b0", tmp_path / "a.weights.h5", images)
    outputs = [twin.layers[tap].output for tap in (77, 164, -1)]
    expected = keras.Model(twin.inputs[0], outputs)(images.astype(np.float32))
    for one, other in zip(found, expected, strict=True):
        assert np.std(other) > 0.01
        np.testing.assert_allclose(one, other, atol=1e-5 * np.max(np.abs(other)))


def test_no_width_where_it_is_fixed():
    with pytest.raises(ConfigError, match=r"^model\.width=0\.5: efficientnet_b0 has no such option$"):
        feature_extractor(make_case("efficientnet_b0", model__width=0.5).model)


PREPROCESSING = {
    "caffe": ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"),
    "tf": ("ResNet50V2", "ResNet101V2", "ResNet152V2", "MobileNet", "MobileNetV2", "InceptionV3", "Xception")
    + ("InceptionResNetV2", "NASNetLarge", "NASNetMobile"),
    "torch": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "none": ("MobileNetV3Large", "MobileNetV3Small", *(f"EfficientNetB{variant}" for variant in range(8)))
    + tuple(f"EfficientNetV2{variant}" for variant in ("B0", "B1", "B2", "B3", "S", "M", "L"))
    + tuple(f"ConvNeXt{variant}" for variant in ("Tiny", "Small", "Base", "Large", "XLarge")),
}


def test_preprocessing_of_every_application():
    models = {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    found = {name: registry.get_backbone(name).preprocessing for name in models}
    assert found == {name: mode for mode, names in PREPROCESSING.items() for name in names}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3)).astype(np.float32)
    for module in (value for value in vars(keras.applications).values() if inspect.ismodule(value)):
        if model := next((name for name in models if hasattr(module, name)), None):
            expected = module.preprocess_input(pixels.copy())
            np.testing.assert_allclose(layers.make_preprocess(found[model])(pixels), expected, atol=1e-4)


def test_application_that_is_only_named():
    """With taps it is as complete as a registered one: auxiliary layers and preprocessing follow."""
    extractor = feature_extractor(make_case("DenseNet121", model__taps=("pool3_relu", "pool4_relu", "relu")).model)
    maps = [(16, 16, 512), (8, 8, 1024), (4, 4, 1024), (2, 2, 512), (1, 1, 256)]
    assert [output.shape[1:] for output in extractor.outputs] == maps
    assert extractor.get_layer("backbone").count_params() == 7_037_504
    assert (extractor.get_layer("preprocess").mean[0], extractor.get_layer("preprocess").reverse) == (
        123.675,
        False,
    )


def test_application_whose_layers_have_counted_names():
    """MobileNetV3Small, built twice: the indices of the message are those of the same activations."""
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"for example model\.taps=37,111,156$"):
            feature_extractor(make_case("MobileNetV3Small").model)
    extractor = feature_extractor(make_case("MobileNetV3Small", model__taps=("37", "111", "156")).model)
    maps = [(16, 16, 96), (8, 8, 288), (4, 4, 576), (2, 2, 512), (1, 1, 256)]
    assert [output.shape[1:] for output in extractor.outputs] == maps


@pytest.mark.parametrize(
    ("application", "taps"),
    [
        ("MobileNet", "conv_pw_5_relu,conv_pw_11_relu,conv_pw_13_relu"),  # a padded map is nearer to 300 / 16
        ("VGG16", "block4_conv3,block5_conv3,block5_pool"),
    ],
)
def test_application_without_taps(application, taps):
    """The message has some to copy."""
    with pytest.raises(ConfigError) as error:
        feature_extractor(make_case(application, (300, 300)).model)
    assert str(error.value) == (
        f"{application} comes without taps: name the layers to tap, fine to coarse, for example model.taps={taps}"
    )
