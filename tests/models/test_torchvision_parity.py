"""SSD300-VGG16 with seeded weights gives what torchvision's gives with the same weights."""

import json
import zlib

import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models.detector import all_layers

MEAN = (0.48235, 0.45882, 0.40784)  # torchvision's, of pixels in [0, 1]; its deviation is 1 / 255
BODY = [
    f"block{block}_conv{conv}" for block, count in ((1, 2), (2, 2), (3, 3), (4, 3)) for conv in range(1, count + 1)
]
CONVOLUTIONS = {
    **{f"backbone.features.{i}": name for i, name in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), BODY, strict=True)},
    "backbone.extra.0.1": "block5_conv1",
    "backbone.extra.0.3": "block5_conv2",
    "backbone.extra.0.5": "block5_conv3",
    "backbone.extra.0.7.1": "fc6",
    "backbone.extra.0.7.3": "fc7",
    **{f"backbone.extra.{level}.0": f"extra_{level}_reduce" for level in range(1, 5)},
    **{f"backbone.extra.{level}.2": f"extra_{level}" for level in range(1, 5)},
    **{f"head.classification_head.module_list.{i}": f"head_{i + 1}_class_logits" for i in range(6)},
    **{f"head.regression_head.module_list.{i}": f"head_{i + 1}_box_deltas" for i in range(6)},
}
TO_YXHW = [1, 0, 3, 2]  # torchvision regresses (x, y, w, h)


def seeded(key, shape):
    """The golden files' weights: a function of key and shape alone."""
    value = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key == "backbone.scale_weight":
        return 21 + np.float32(0.1) * value
    if len(shape) == 1:
        return np.float32(0.05) * value
    return value * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def swap_axes_of_boxes(values):
    """Reorders the last axis in groups of four from (x, y, w, h) to (y, x, h, w)."""
    return values.reshape(*values.shape[:-1], -1, 4)[..., TO_YXHW].reshape(values.shape)


def fill(model, shapes):
    """Puts the seeded weights into the model; returns the keys used."""
    named = {layer.name: layer for layer in all_layers(model)}
    for key, name in CONVOLUTIONS.items():
        kernel = seeded(f"{key}.weight", shapes[f"{key}.weight"]).transpose(2, 3, 1, 0)
        bias = seeded(f"{key}.bias", shapes[f"{key}.bias"])
        if name.endswith("box_deltas"):
            kernel, bias = swap_axes_of_boxes(kernel), swap_axes_of_boxes(bias)
        named[name].set_weights([kernel, bias])
    scale = "backbone.scale_weight"
    named["neck_block4_conv3"].set_weights([seeded(scale, shapes[scale])])
    return {f"{key}.{part}" for key in CONVOLUTIONS for part in ("weight", "bias")} | {scale}


@pytest.fixture(scope="module")
def reference(golden):
    with np.load(golden / "torchvision_ssd300_vgg16.npz") as values:
        return dict(values)


@pytest.fixture(scope="module")
def detector(golden):
    config = configs.replace(
        configs.Config(),
        model__backbone="vgg16",
        model__image_size=(300, 300),
        model__num_classes=90,
        model__weights="none",
        model__input_mean=tuple(255 * mean for mean in MEAN),
        model__preprocessing="custom",
        anchors__preset="ssd300_coco",
        anchors__clip="size",
    )
    built = build.build(config)
    shapes = json.loads((golden / "torchvision_ssd300_vgg16_state_dict_shapes.json").read_text())
    assert fill(built.model, shapes) == set(shapes)
    return built


def test_all_weights_are_mapped(detector):
    assert detector.model.count_params() == 35_641_826


def test_preprocessing(detector, reference):
    pixels = np.asarray(detector.model.get_layer("preprocess")(reference["image_rgb_uint8"]))
    np.testing.assert_allclose(pixels[:, ::10, ::10], reference["normalised"], atol=1e-3)


def test_outputs(detector, reference):
    outputs = {key: np.asarray(value) for key, value in detector.model(reference["image_rgb_uint8"]).items()}
    for name, found, expected in (
        ("cls_logits", outputs["class_logits"][:, ::4], reference["cls_logits"]),
        ("bbox_regression", outputs["box_deltas"][..., TO_YXHW], reference["bbox_regression"]),
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_anchors(detector, reference):
    pixels = detector.anchors[:, [1, 0, 3, 2]] * 300
    np.testing.assert_allclose(pixels, reference["anchors_xyxy_px"], atol=1e-3)
