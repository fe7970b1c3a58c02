"""torchvision's SSDs, with seeded weights, compute what those compute."""

import numpy as np
import pytest
from golden_cases import XY, assert_near, assert_postprocess, import_seeded, read_shapes, read_values, run

from ssd_tf.inference.postprocess import postprocess
from ssd_tf.pretrained import torchvision
from ssd_tf.pretrained.source import Classes

SSD300, SSDLITE320 = torchvision.SSD300_VGG16, torchvision.SSDLITE320_MOBILENET_V3_LARGE
BACKGROUND = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # COCO's ids that stand for nothing
COLUMNS = tuple(column for column in range(91) if column not in BACKGROUND)
# All columns but the first as classes.
WHOLE = Classes(tuple(f"id{i}" for i in range(1, 91)), tuple(range(1, 91)), (0,), tuple(range(1, 91)), 91)


@pytest.fixture(scope="module", params=[SSD300, SSDLITE320], ids=lambda source: source.about.name)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def shapes(golden, source):
    return read_shapes(golden, source.about.name)


@pytest.fixture(scope="module")
def values(golden, source):
    return read_values(golden, source.about.name)


@pytest.fixture(scope="module")
def outputs(source, shapes, values):
    """{number of classes: (Config, Detector, class logits, box deltas)}."""
    cases = {80: import_seeded(source, shapes), 90: import_seeded(source, shapes, WHOLE)}
    return {number: (*case, *run(case[1], values)) for number, case in cases.items()}


def test_numbers_of_the_file(outputs, values):
    *_, logits, deltas = outputs[90]
    assert_near(logits[:, ::4], values["cls_logits"], "class logits")
    assert_near(deltas, values["bbox_regression"], "box deltas")


def test_columns_without_a_class_are_background(outputs, values):
    """Their probabilities are summed, so that those of the classes stay."""
    *_, logits, deltas = outputs[80]
    raw = values["cls_logits"].astype(np.float64)
    gaps = raw[..., BACKGROUND]
    largest = gaps.max(-1, keepdims=True)
    merged = largest + np.log(np.exp(gaps - largest).sum(-1, keepdims=True))
    assert_near(logits[:, ::4], np.concatenate([merged, raw[..., COLUMNS]], -1), "class logits")
    assert_near(deltas, values["bbox_regression"], "box deltas")


def test_anchors(outputs, values, source):
    config, detector, *_ = outputs[80]
    assert_near(detector.anchors[:, XY] * config.model.image_size[0], values["anchors_xyxy_px"], "anchors", 1e-6)


def test_pixels(outputs, values):
    _, detector, *_ = outputs[80]
    pixels = np.asarray(detector.model.get_layer("preprocess")(values["image_rgb_uint8"]))
    assert_near(pixels[:, ::10, ::10], values["normalised"], "pixels", 1e-5)


def test_size(outputs, shapes):
    """The networks have as many numbers as torchvision says of them."""
    total = sum(np.prod(shape) for name, shape in shapes.items() if "running" not in name)
    weights = outputs[90][1].model.trainable_weights
    assert total in (35_641_826, 3_440_060)
    assert sum(np.prod(weight.shape) for weight in weights) == total


def test_settings(outputs, source):
    kept = {SSD300: (0.01, 0.45, 400, 200), SSDLITE320: (0.001, 0.55, 300, 300)}
    assert_postprocess(outputs[80][0], *kept[source], "before")


def test_file_is_known_by_its_name(source):
    """torchvision puts the first digits of the sum into it."""
    (download,) = source.about.downloads
    assert len(download.sha256) == 64
    assert download.url.endswith(f"_coco-{download.sha256[:8]}.pth")


@pytest.mark.parametrize("source", [SSDLITE320], indirect=True)
def test_detections(outputs, values):
    """Those of torchvision, each with its own score, box and label; equal scores may stand the other way round."""
    config, detector, *_ = outputs[90]
    found = postprocess(
        detector.model(values["image_rgb_uint8"]), detector.anchors, config.postprocess, config.loss.has_background
    )
    boxes, scores, labels, counts = (np.asarray(value)[0] for value in found)
    assert counts == len(values["det_scores"]) == 300
    np.testing.assert_allclose(scores, values["det_scores"], rtol=1e-4)
    boxes = boxes[:, XY] * 320
    same = (
        (labels[:, None] == values["det_labels"])
        & np.isclose(scores[:, None], values["det_scores"], rtol=1e-4)
        & np.isclose(boxes[:, None], values["det_boxes_xyxy_px"], atol=0.01).all(-1)
    )
    np.testing.assert_array_equal(same.sum(0), 1)
    np.testing.assert_array_equal(same.sum(1), 1)
    assert np.abs(same.argmax(1) - np.arange(300)).max() <= 1
