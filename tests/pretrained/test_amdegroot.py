"""ssd.pytorch's SSD300 and its backbone file, with seeded weights, compute what that computes."""

import h5py
import numpy as np
import pytest
import torch_writer
from golden_cases import (
    assert_fills,
    assert_near,
    assert_postprocess,
    centre_size,
    import_seeded,
    read_shapes,
    read_values,
    run,
    seeded,
)

from ssd_tf.errors import DataError
from ssd_tf.models import registry
from ssd_tf.pretrained import amdegroot, places


@pytest.fixture(scope="module")
def shapes(golden):
    return read_shapes(golden, "amdegroot_ssd300_voc")


@pytest.fixture(scope="module")
def values(golden):
    return read_values(golden, "amdegroot_ssd300_voc")


@pytest.fixture(scope="module")
def detector(shapes):
    config, built = import_seeded(amdegroot.SSD300, shapes)
    assert_postprocess(config, 0.01, 0.45, 200, 200, "after")
    return built


def test_outputs(detector, values):
    logits, deltas = run(detector, values)
    assert_near(logits[:, ::2], values["cls_logits"], "class logits")
    assert_near(deltas, values["bbox_regression"], "box deltas")


def test_anchors(detector, values):
    assert_near(centre_size(detector.anchors), values["priors_cxcywh"], "anchors", 1e-6)


def test_pixels(detector, values):
    image = values["image_rgb_uint8"]
    pixels = np.asarray(detector.model.get_layer("preprocess")(image))
    np.testing.assert_array_equal(pixels, image - values["input_mean_rgb"])


def test_backbone_file(detector, shapes):
    """The bare backbone; the L2 normalisation's scale is not in the file and stays 20."""
    source = amdegroot.VGG16_REDUCEDFC
    bare = {name.removeprefix("vgg."): shape for name, shape in shapes.items() if name.startswith("vgg.")}
    assert len(bare) == 30
    targets = source.places(bare)
    model = registry.get_backbone(source.about.backbone).build((300, 300, 3), None)
    assert_fills(targets, model, but={("neck_block4_conv3", "gamma")})
    places.fill(model, targets, bare, lambda name: seeded(f"vgg.{name}", bare[name]))
    whole = detector.model.get_layer("backbone")
    for layer in (layer for layer in model.layers if layer.weights):
        expected = [np.array(weight) for weight in whole.get_layer(layer.name).get_weights()]
        if layer.name == "neck_block4_conv3":
            expected = [np.full(512, 20, np.float32)]
        for found, value in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["bgr", "rgb"])
def test_backbone_files_are_read_for_bgr_whichever_order_they_have(weights, tmp_path, order):
    with h5py.File(weights / "imagenet" / "vgg16_notop.weights.h5") as file:
        kernel = np.transpose(file["layers/conv2d/vars/0"], (3, 2, 0, 1))
    path = tmp_path / "vgg.pth"
    path.write_bytes(torch_writer.write_state({"0.weight": kernel[:, list(order)]}))
    with amdegroot.VGG16_REDUCEDFC.open(path) as (shapes, read):
        assert shapes == {"0.weight": (64, 3, 3, 3)}
        np.testing.assert_array_equal(read("0.weight"), kernel)


def test_columns_are_counted(shapes):
    count = amdegroot.SSD300.count_columns
    assert count(shapes) == 21
    assert count({"conf.0.bias": (8,)}) == 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "conf.0.bias is missing; the file begins with nothing"),
        (
            {"0.weight": (64, 3, 3, 3), "0.bias": (64,)},
            "conf.0.bias is missing; the file begins with 0.weight, 0.bias",
        ),
        ({"conf.0.bias": (85,)}, "conf.0.bias is no row of 4 anchors' classes and background"),
        ({"conf.0.bias": (4,)}, "conf.0.bias is no row of 4 anchors' classes and background"),
        ({"conf.0.bias": (84, 1)}, "conf.0.bias is no row of 4 anchors' classes and background"),
        ({"conf.0.bias": ()}, "conf.0.bias is no row of 4 anchors' classes and background"),
        ({"conf.0.bias": (0,)}, "conf.0.bias is no row of 4 anchors' classes and background"),
    ],
)
def test_file_of_another_network(shapes, message):
    with pytest.raises(DataError) as caught:
        amdegroot.SSD300.count_columns(shapes)
    assert str(caught.value) == f"weights do not fit: {message}"
