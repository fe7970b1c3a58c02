"""Inception V4 and Inception-ResNet V2: maps, anchors, weights, names."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import registry
from ssd_tf.models.detector import all_layers

STANDARD = [(35, 384), (17, 1024), (8, 1536), (4, 512), (2, 256), (1, 256)]


def build_detector(backbone, image_size, layout="default"):
    config = make_config(backbone, model__layout=layout)
    return build.build(configs.replace(config, model__image_size=image_size))


def level_shapes(model):
    """(rows, columns, channels) of the maps that the heads read, fine to coarse."""
    names = [f"head_{level}_class_logits" for level in range(1, 13)]
    return [model.get_layer(name).input.shape[1:] for name in names if name in [x.name for x in model.layers]]


def squares(levels):
    return [(cells, cells, channels) for cells, channels in levels]


@pytest.mark.parametrize(
    ("image_size", "cells", "count"),
    [
        ((128, 128), [(13, 13), (6, 6), (2, 2), (1, 1)], 912),
        ((299, 299), [(35, 35), (17, 17), (8, 8), (4, 4), (2, 2), (1, 1)], 7134),
        ((320, 320), [(37, 37), (18, 18), (8, 8), (4, 4), (2, 2), (1, 1)], 7920),
        ((512, 512), [(61, 61), (30, 30), (14, 14), (7, 7), (4, 4), (2, 2), (1, 1)], 21870),
        # By hand: 35*61*4 + (17*30 + 8*14 + 4*7) * 6 + (2*5 + 1*4) * 4.
        ((300, 512), [(35, 61), (17, 30), (8, 14), (4, 7), (2, 5), (1, 4)], 12496),
    ],
)
def test_maps_and_anchors_of_inception_v4(image_size, cells, count):
    detector = build_detector("inception_v4", image_size)
    assert [shape[:2] for shape in level_shapes(detector.model)] == cells
    assert detector.anchors.shape == (count, 4)
    assert detector.model.output["box_deltas"].shape == (None, count, 4)


@pytest.fixture(scope="module")
def default_v4():
    return build_detector("inception_v4", (300, 300))


def test_inception_v4_at_300(default_v4):
    assert level_shapes(default_v4.model) == squares(STANDARD)
    assert len(default_v4.anchors) == 7134


def test_weights_of_inception_v4(default_v4):
    """timm's has 42,679,816 with a classifier of 1536 x 1000 + 1000; the statistics of batch norms come on top."""
    backbone = default_v4.model.get_layer("backbone")
    trainable = sum(np.prod(weight.shape) for weight in backbone.trainable_weights)
    assert trainable == 42_679_816 - 1_537_000
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 149
    assert backbone.count_params() == trainable + 2 * sum(layer.gamma.shape[0] for layer in norms) == 41_205_984
    assert {layer.epsilon for layer in norms} == {1e-3}


def test_layers_of_inception_v4_have_slims_names(default_v4):
    """The paths of slim's checkpoint, "/" as "_", with their kernels; by hand."""
    backbone = default_v4.model.get_layer("backbone")
    kernels = {
        "Conv2d_2b_3x3": (3, 3, 32, 64),
        "Mixed_3a_Branch_1_Conv2d_0a_3x3": (3, 3, 64, 96),
        "Mixed_4a_Branch_1_Conv2d_0b_1x7": (1, 7, 64, 64),
        "Mixed_5a_Branch_0_Conv2d_1a_3x3": (3, 3, 192, 192),
        "Mixed_5e_Branch_2_Conv2d_0c_3x3": (3, 3, 96, 96),
        "Mixed_6a_Branch_1_Conv2d_1a_3x3": (3, 3, 224, 256),
        "Mixed_6h_Branch_2_Conv2d_0e_1x7": (1, 7, 224, 256),
        "Mixed_7a_Branch_1_Conv2d_0c_7x1": (7, 1, 256, 320),
        "Mixed_7d_Branch_2_Conv2d_0e_3x1": (3, 1, 512, 256),
        "Mixed_7d_Branch_3_Conv2d_0b_1x1": (1, 1, 1536, 256),
    }
    assert {name: tuple(backbone.get_layer(name).kernel.shape) for name in kernels} == kernels
    assert len({layer.name for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)}) == 149
    assert {registry.layer_group(layer) for layer in all_layers(backbone)} == {"backbone"}


def test_average_pools_leave_the_padding_out(default_v4):
    pools = [
        x for x in default_v4.model.get_layer("backbone").layers if isinstance(x, keras.layers.AveragePooling2D)
    ]
    assert len(pools) == 4 + 7 + 3
    for pool in pools:
        assert np.array_equal(pool(np.ones((1, 4, 5, 2), np.float32)), np.ones((1, 4, 5, 2)))


def test_seed_layout_of_inception_v4():
    detector = build_detector("inception_v4", (300, 300), "seed")
    levels = [(17, 1024), (17, 1024), (8, 1536), (8, 1536), (4, 256), (2, 256)]
    assert level_shapes(detector.model) == squares(levels)
    assert len(detector.anchors) == 3738
    taps = [x._keras_history.operation.name for x in detector.model.get_layer("backbone").outputs]
    assert taps == ["Mixed_6d", "Mixed_6h", "Mixed_7b", "Mixed_7d"]


def test_inception_v4_has_no_imagenet_weights_of_keras():
    with pytest.raises(ConfigError) as caught:
        build.check(configs.replace(make_config("inception_v4", 300), model__weights="imagenet"))
    assert "timm's inception_v4.tf_in1k" in str(caught.value)
    assert "model.weights=/path/model.safetensors" in str(caught.value)
    assert "model.weights=none" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_too_small_for_inception_v4():
    with pytest.raises(ConfigError, match="inception_v4 cannot be built at 64x64: "):
        build_detector("inception_v4", (64, 64))


def test_inception_resnet_v2_at_300():
    detector = build_detector("inception_resnet_v2", (300, 300))
    assert level_shapes(detector.model) == squares([(35, 320), (17, 1088), *STANDARD[2:]])
    assert len(detector.anchors) == 7134
    assert (
        detector.model.get_layer("backbone").count_params() == 54_336_736
    )  # keras.applications' without classifier


def test_maps_of_inception_resnet_v2_that_are_not_square():
    """A side of 128 has maps of 13, 6 and 2 cells, one of 320 of 37, 18 and 8."""
    detector = build_detector("inception_resnet_v2", (128, 320))
    cells = [(13, 37), (6, 18), (2, 8), (1, 7)]
    assert [shape[:2] for shape in level_shapes(detector.model)] == cells
    assert len(detector.anchors) == 13 * 37 * 4 + 6 * 18 * 6 + 2 * 8 * 4 + 7 * 4


def test_seed_layout_of_inception_resnet_v2():
    detector = build_detector("inception_resnet_v2", (300, 300), "seed")
    levels = [(71, 192), (35, 192), (17, 1088), (8, 2080), (4, 256), (2, 256)]
    assert level_shapes(detector.model) == squares(levels)
    assert len(detector.anchors) == 29_712
    # The auxiliary layers follow conv_7b (1536 channels), not the last tap (2080).
    assert tuple(detector.model.get_layer("extra_1_reduce").kernel.shape) == (1, 1, 1536, 128)
    first, last = detector.anchors[0], detector.anchors[-4]  # the first shape of a cell is the level's own square
    np.testing.assert_allclose([first[2] - first[0], last[2] - last[0]], [0.05, 0.71], rtol=1e-5)
    assert detector.model.get_layer("backbone").count_params() == 54_336_736
