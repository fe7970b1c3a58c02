"""ResNet V1 and V2: maps, anchors, weights, and the places of strides in TF-slim and in NVIDIA's SSD300."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config
from keras import ops

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models import layers, registry
from ssd_tf.models.extractor import feature_extractor

# Image size -> cells of the maps, fine to coarse, and number of anchors.
STANDARD = {
    (300, 300): ([(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)], 8732),
    (128, 128): ([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], 1524),
    (320, 320): ([(40, 40), (20, 20), (10, 10), (5, 5), (3, 3), (1, 1)], 9590),
    (512, 512): ([(64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], 24_564),
    (300, 512): ([(38, 64), (19, 32), (10, 16), (5, 8), (3, 6), (1, 4)], 14_664),
}
LARGE = {(1024, 1024): ([(side, side) for side in (128, 64, 32, 16, 8, 4, 2, 1)], 98_292)}
CASES = [
    *(("resnet50", "default", size, *case) for size, case in (STANDARD | LARGE).items()),
    *(("resnet50_v2", "default", size, *case) for size, case in STANDARD.items()),
    ("resnet50", "c4", (300, 300), *STANDARD[300, 300]),
    ("resnet50_v2", "seed", (300, 300), [(19, 19), (10, 10), (10, 10), (5, 5), (3, 3), (1, 1)], 2834),
    ("resnet50", "seed", (512, 512), [(32, 32), (16, 16), (16, 16), (8, 8), (6, 6), (4, 4)], 7760),
]
CHANNELS = {
    "default": (512, 1024, 2048, 512, 256, 256, 256, 256),
    "seed": (512, 1024, 2048, 256, 256, 256),
    "c4": (1024, 512, 512, 256, 256, 256),
}
DEPTHS = {  # parameters without classifier, as Keras' documentation has them, and what the heads read
    "resnet101": (42_658_176, ("conv3_block4_out", "conv4_block23_out", "conv5_block3_out")),
    "resnet152": (58_370_944, ("conv3_block8_out", "conv4_block36_out", "conv5_block3_out")),
    "resnet101_v2": (42_626_560, ("conv3_block4_preact_relu", "conv4_block23_preact_relu", "post_relu")),
    "resnet152_v2": (58_331_648, ("conv3_block8_preact_relu", "conv4_block36_preact_relu", "post_relu")),
}
SMALL = (96, 96)


def make_case(backbone, size=SMALL, **leaves):
    return configs.replace(make_config(backbone), model__image_size=size, **leaves)


def maps_of(detector):
    """(rows, columns, channels) of the maps that the heads read."""
    levels = sum(layer.name.endswith("box_deltas_rows") for layer in detector.model.layers)
    heads = [detector.model.get_layer(f"head_{level}_box_deltas") for level in range(1, levels + 1)]
    return [head.input.shape[1:] for head in heads]


def tap_names(backbone):
    return tuple(output._keras_history.operation.name for output in backbone.outputs)


@pytest.mark.parametrize(("backbone", "layout", "size", "cells", "num_anchors"), CASES)
def test_maps_and_anchors(backbone, layout, size, cells, num_anchors):
    detector = build.build(make_case(backbone, size, model__layout=layout))
    channels = CHANNELS[layout]
    assert maps_of(detector) == [(*side, depth) for side, depth in zip(cells, channels, strict=False)]
    assert detector.anchors.shape == (num_anchors, 4)
    # Of every build in this session: no name depends on what was built before.
    network = detector.model.get_layer("backbone")
    assert tap_names(network) == registry.get_backbone(backbone).layouts[layout].taps
    if layout == "c4":
        assert not any(layer.name.startswith("conv5") for layer in network.layers)
    else:
        assert network.count_params() == {"resnet50": 23_587_712, "resnet50_v2": 23_564_800}[backbone]


@pytest.mark.parametrize("backbone", DEPTHS)
def test_deeper_variants(backbone):
    num_weights, taps = DEPTHS[backbone]
    extractor = feature_extractor(make_case(backbone, (300, 300)).model)
    cells, _ = STANDARD[300, 300]
    expected = [(*side, depth) for side, depth in zip(cells, CHANNELS["default"], strict=False)]
    assert [output.shape[1:] for output in extractor.outputs] == expected
    network = extractor.get_layer("backbone")
    assert tap_names(network) == taps
    assert network.count_params() == num_weights
    depth = backbone.removeprefix("resnet").removesuffix("_v2")
    assert registry.get_backbone(backbone).summary.startswith(f"ResNet-{depth}")


def test_seed_layout_at_300():
    """The two maps of 10 cells do not have the same anchors."""
    detector = build.build(make_case("resnet50", (300, 300), model__layout="seed"))
    cells = [(19, 19), (10, 10), (10, 10), (5, 5), (3, 3), (1, 1)]
    assert maps_of(detector) == [(*side, depth) for side, depth in zip(cells, CHANNELS["seed"], strict=True)]
    counts = [19 * 19 * 4, 100 * 6, 100 * 6, 25 * 6, 9 * 4, 4]
    assert len(detector.anchors) == sum(counts) == 2834
    first = detector.anchors[np.cumsum([0, *counts[:-1]])]  # every level's first shape is its square
    np.testing.assert_allclose(first[:, 2] - first[:, 0], [0.15, 0.3, 0.4, 0.55, 0.71, 0.88], atol=1e-6)
    kernels = [detector.model.get_layer(name).kernel.shape for name in ("extra_1_reduce", "extra_1", "extra_3")]
    assert kernels == [(1, 1, 2048, 128), (3, 3, 128, 256), (3, 3, 128, 256)]


def make_twin(application, folder):
    """(keras.applications' own with batch norms that do something, a file of its weights)."""
    keras.utils.set_random_seed(0)
    model = application(include_top=False, weights=None, input_shape=(*SMALL, 3))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    path = folder / "twin.weights.h5"
    model.save_weights(path)
    return model, str(path)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return make_twin(keras.applications.ResNet50, tmp_path_factory.mktemp("v1"))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (1, *SMALL, 3), np.uint8)


def run(model, names, image):
    """The outputs of some layers, NumPy arrays."""
    outputs = keras.Model(model.inputs[0], [model.get_layer(name).output for name in names])(image)
    return [np.asarray(output) for output in outputs]


def read_backbone(backbone, path, layout="default"):
    """The network of a recipe with the weights of a file."""
    settings = make_case(backbone, model__layout=layout, model__weights=path).model
    return feature_extractor(settings).get_layer("backbone")


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def assert_taps_near(network, pixels, model, taps):
    for found, expected in zip(network(pixels), run(model, taps, pixels), strict=True):
        assert_near(np.asarray(found), expected)


def test_version_1_is_keras_own(twin, image):
    model, path = twin
    taps = ("conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    pixels = keras.applications.resnet.preprocess_input(image.astype(np.float32))
    mode = registry.get_backbone("resnet50").preprocessing
    np.testing.assert_allclose(layers.make_preprocess(mode)(image), pixels, atol=1e-4)
    assert_taps_near(read_backbone("resnet50", path), pixels, model, taps)


def test_version_2_is_keras_own(image, tmp_path):
    model, path = make_twin(keras.applications.ResNet50V2, tmp_path)
    pixels = keras.applications.resnet_v2.preprocess_input(image.astype(np.float32))
    mode = registry.get_backbone("resnet50_v2").preprocessing
    np.testing.assert_allclose(layers.make_preprocess(mode)(image), pixels, atol=1e-6)
    taps = ("conv3_block4_preact_relu", "conv4_block6_preact_relu", "post_relu")
    assert_taps_near(read_backbone("resnet50_v2", path), pixels, model, taps)


def last_unit_with_stride(model, unit, x):
    """A unit of `model` as slim builds the last one of a stage: stride 2 in its middle, a pool beside it."""

    def convolve(y, part, **options):
        layer = model.get_layer(f"{unit}_{part}_conv")
        y = ops.conv(y, layer.kernel, data_format="channels_last", **options) + layer.bias
        return model.get_layer(f"{unit}_{part}_bn")(y, training=False)

    y = ops.relu(convolve(x, 1))
    y = ops.relu(convolve(ops.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), 2, strides=2, padding="valid"))
    return np.asarray(ops.relu(x[:, ::2, ::2] + convolve(y, 3)))


def test_seed_layout_has_the_maps_of_slim(twin, image):
    model, path = twin
    network = read_backbone("resnet50", path, "seed")
    pixels = layers.make_preprocess("caffe")(image)
    names = ("conv1_relu", "conv2_block1_out", "conv3_block3_out", "conv4_block5_out", "conv5_block3_out")
    expected = run(model, names, pixels)
    for found, before in zip(run(network, names[:2], pixels), expected, strict=False):
        assert_near(found, before)
    fine, middle, coarse = (np.asarray(output) for output in network(pixels))
    assert [found.shape[1] for found in (fine, middle, coarse)] == [6, 3, 3]
    assert_near(fine, last_unit_with_stride(model, "conv3_block4", expected[2]))
    assert_near(middle, last_unit_with_stride(model, "conv4_block6", expected[3]))
    assert_near(coarse, expected[4])


def test_c4_layout_takes_the_stride_of_conv4_out(twin, image):
    model, path = twin
    network = read_backbone("resnet50", path, "c4")
    assert network.outputs[0].shape == (None, 12, 12, 1024)
    pixels = layers.make_preprocess("caffe")(image)
    names = ("conv3_block4_out", "conv4_block1_1_relu", "conv4_block1_0_bn")
    ours, theirs = run(network, names, pixels), run(model, names, pixels)
    assert_near(ours[0], theirs[0])
    for found, expected in zip(ours[1:], theirs[1:], strict=True):  # the same, at twice as many places
        assert_near(found[:, ::2, ::2], expected)
