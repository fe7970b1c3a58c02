"""Heads of three kinds, the pyramid neck, and the count of multiply-adds."""

import math

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models import detector, heads, necks, registry
from ssd_tf.models.extractor import feature_extractor


def two_maps(channels=(3, 5)):
    """Symbolic maps of 4x4 and 2x2 cells, and the model from an image to them."""
    image = keras.Input((8, 8, 3))
    fine = keras.layers.Conv2D(channels[0], 3, strides=2, padding="same")(image)
    coarse = keras.layers.Conv2D(channels[1], 3, strides=2, padding="same")(fine)
    return image, [fine, coarse]


def test_shared_head_gives_the_first_shapes_where_there_are_fewer():
    image, maps = two_maps((3, 3))
    rows = heads.add_heads(maps, (2, 3), 4, "box_deltas", "shared")
    model = keras.Model(image, [*maps, rows])
    values = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    fine, coarse, found = (np.asarray(output) for output in model(values))
    kernel, bias = model.get_layer("head_shared_box_deltas").get_weights()
    assert kernel.shape == (1, 1, 3, 12)
    expected = [
        (feature @ kernel[0, 0] + bias)[..., : count * 4].reshape(1, -1, 4)
        for feature, count in ((fine, 2), (coarse, 3))
    ]
    assert found.shape == (1, 4 * 4 * 2 + 2 * 2 * 3, 4)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-6)


def test_projections_are_of_each_map_alone():
    _, maps = two_maps()
    projected = heads.project(maps, 7)
    assert [x.shape[1:] for x in projected] == [(4, 4, 7), (2, 2, 7)]


@pytest.mark.parametrize("kind", ["conv", "lite", "shared"])
def test_class_bias_is_what_the_scores_start_from(kind):
    image, maps = two_maps((3, 3))
    rows = heads.add_heads(maps, (1, 1), 2, "class_logits", kind, bias=-4.5)
    found = keras.Model(image, rows)(np.zeros((1, 8, 8, 3), np.float32))
    np.testing.assert_allclose(found, np.full((1, 20, 2), -4.5), atol=1e-6)


def test_focal_loss_starts_from_its_prior():
    config = make_config("tiny_ssd", 192, loss__classification="focal", loss__focal_prior=0.02)
    built = build.build(config)
    assert built.model.output["class_logits"].shape[-1] == 3  # no background
    logits = np.asarray(built.model(np.full((1, 192, 192, 3), 127, np.uint8))["class_logits"])
    np.testing.assert_allclose(np.median(1 / (1 + np.exp(-logits))), 0.02, rtol=0.3)
    biases = [w for w in built.model.weights if "class_logits" in w.path and w.path.endswith("bias")]
    assert len(biases) == 5  # maps of 23, 11, 5, 2 and 1 cells
    for bias in biases:
        np.testing.assert_allclose(bias, math.log(0.02 / 0.98), rtol=1e-6)


def test_pyramid_adds_coarse_maps_to_finer_ones():
    image, maps = two_maps()
    merged = necks.add_fpn(maps, 6)
    assert [x.shape[1:] for x in merged] == [(4, 4, 6), (2, 2, 6)]
    model = keras.Model(image, merged)
    laterals = [model.get_layer(f"neck_{level}_lateral_bn").output for level in (1, 2)]
    probe = keras.Model(image, [*laterals, model.get_layer("neck_1_add").output])
    image_values = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    fine, coarse, added = (np.asarray(output) for output in probe(image_values))
    np.testing.assert_allclose(added, fine + coarse.repeat(2, axis=1).repeat(2, axis=2), atol=1e-6)


def test_pyramid_over_odd_maps_keeps_their_sizes_and_the_extras():
    settings = make_config("mobilenet_v2", 300, model__neck="fpn", model__neck_channels=32).model
    extractor = feature_extractor(settings)
    shapes = [output.shape[1:] for output in extractor.outputs]
    assert shapes[:3] == [(38, 38, 32), (19, 19, 32), (10, 10, 32)]
    assert shapes[3:] == [(5, 5, 512), (3, 3, 256), (1, 1, 256)]  # behind the backbone's own last map
    groups = {registry.layer_group(layer) for layer in extractor.layers if layer.name.startswith("neck_")}
    assert groups == {"neck"}


def test_multiply_adds_by_hand():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)  # 16 places x 9 x 3 x 4
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)  # 16 x 9 x 4
    shared = keras.layers.Conv2D(4, 1, use_bias=True)  # 16 x 4 x 4, twice
    inner = keras.Model(image, shared(shared(x)))
    y = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(inner(image)))  # 4 x 5
    assert detector.count_multiply_adds(keras.Model(image, y)) == 16 * 108 + 16 * 36 + 2 * 16 * 16 + 20


def test_multiply_adds_of_ssd300_are_the_published_ones():
    config = configs.replace(make_config("vgg16", 300), model__num_classes=90)
    assert round(detector.count_multiply_adds(build.build(config).model) / 1e9, 2) == 34.86  # torchvision's
