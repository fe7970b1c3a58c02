"""Logits and deltas to detections: torchvision's, and by hand."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.config import PostprocessConfig
from ssd_tf.inference import nms, nms_tensorflow
from ssd_tf.inference.postprocess import decode_scores, postprocess


@pytest.fixture(scope="module")
def core(golden):
    with np.load(golden / "torchvision_ssd_core.npz") as values:
        return dict(values)


def golden_outputs():
    """The outputs of `post_note`; deltas in our order (y, x, h, w)."""
    logits = 3 * np.random.default_rng(13).standard_normal((2, 8732, 21))
    deltas = np.random.default_rng(12).standard_normal((8, 8732, 4)).astype(np.float32)
    deltas = np.float32(0.5) * deltas[:2, :, [1, 0, 3, 2]]
    return {"class_logits": logits.astype(np.float32), "box_deltas": deltas}


def run(outputs, anchors, settings, has_background=True):
    return [np.asarray(x) for x in postprocess(outputs, anchors, settings, has_background)]


def test_detections_are_torchvisions(core):
    anchors = core["anchors_xyxy_px"][:, [1, 0, 3, 2]] / np.float32(300)
    settings = PostprocessConfig(score_threshold=0.05, nms_iou=0.45, topk_candidates=400, max_detections=200)
    boxes, scores, classes, counts = run(golden_outputs(), anchors, settings)
    assert counts.tolist() == [200, 200]
    for i in range(2):
        np.testing.assert_allclose(scores[i], core[f"post_scores_{i}"], rtol=1e-5)
        assert np.array_equal(classes[i], core[f"post_labels_{i}"])
        np.testing.assert_allclose(boxes[i][:, [1, 0, 3, 2]] * 300, core[f"post_boxes_{i}"], atol=2e-3)


def outputs_of(probabilities, deltas):
    """Outputs of one image whose softmax gives these probabilities."""
    logits = np.log(np.float32(probabilities)) + 5  # a constant does not matter
    return {"class_logits": logits[None], "box_deltas": np.float32(deltas)[None]}


def test_one_image_by_hand():
    anchors = np.float32([[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.75, 0.75], [0.5, 0, 1, 0.25], [0, 0, 0.5, 0.5]])
    probabilities = [[0.1, 0.7, 0.2], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [0.98, 0.01, 0.01]]
    deltas = np.zeros((4, 4))
    deltas[2] = [2, 0, 5 * np.log(2), 0]  # moved down by .1, twice as high: .35 .. 1.35, cut at 1
    settings = PostprocessConfig(score_threshold=0.15, nms_iou=0.45, topk_candidates=10, max_detections=5)
    boxes, scores, classes, count = (x[0] for x in run(outputs_of(probabilities, deltas), anchors, settings))
    # The second anchor of class 1 is suppressed by the first; other classes are not.
    assert count == 4
    assert classes[:4].tolist() in ([1, 2, 2, 1], [1, 2, 1, 2])  # the two at .2 are equal
    np.testing.assert_allclose(scores[:4], [0.7, 0.6, 0.2, 0.2], rtol=1e-5)
    np.testing.assert_allclose(boxes[:2], [[0.25, 0.25, 0.75, 0.75], [0.35, 0, 1, 0.25]], atol=1e-6)


def test_boxes_are_clipped_before_they_are_compared():
    """Outside the image the two differ a lot, inside they are the same box."""
    anchors = np.float32([[-1, -1, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    settings = PostprocessConfig(score_threshold=0.1, nms_iou=0.45, topk_candidates=10, max_detections=5)
    outputs = outputs_of([[0.2, 0.8], [0.3, 0.7]], np.zeros((2, 4)))
    boxes, _, _, counts = run(outputs, anchors, settings)
    assert counts.tolist() == [1]
    np.testing.assert_allclose(boxes[0, 0], [0, 0, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"nms": "diou"}, {"class_agnostic": True}])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Equal inside the image; with what lies outside, .25 / 2.25 of their union is common.
        ([(-1, 0.5), (0, 0.5)], {"before": [0.5], "after": [0.5, 0.5]}),
        # Inside .1 / .4 is common, with what lies outside 3.1 / 3.4.
        ([(-3, 0.1), (-3, 0.4)], {"before": [0.1, 0.4], "after": [0.1]}),
    ],
)
def test_boxes_can_be_clipped_after_they_are_compared(rows, expected, options):
    """As the TF Object Detection API does; either way what comes out is inside the image."""
    columns = {-1: (-1, 0.5), 0: (0, 0.5), -3: (0, 0.5)}
    anchors = np.float32([[top, columns[top][0], bottom, columns[top][1]] for top, bottom in rows])
    outputs = outputs_of([[0.2, 0.8], [0.3, 0.7]], np.zeros((2, 4)))
    for clip, bottoms in expected.items():
        settings = PostprocessConfig(score_threshold=0.1, nms_iou=0.45, max_detections=5, clip=clip, **options)
        boxes, scores, _, counts = (x[0] for x in run(outputs, anchors, settings))
        assert counts == len(bottoms)
        np.testing.assert_allclose(boxes[:counts], [[0, 0, bottom, 0.5] for bottom in bottoms], atol=1e-6)
        np.testing.assert_allclose(scores[:counts], [0.8, 0.7][:counts], rtol=1e-5)
        assert boxes.min() >= 0 and boxes.max() <= 1


def test_decoded_boxes_are_cut_only_where_asked():
    anchors = np.float32([[-0.5, 0.25, 0.5, 1.5]])
    outputs = {"class_logits": np.zeros((1, 1, 2), np.float32), "box_deltas": np.zeros((1, 1, 4), np.float32)}
    for clip, expected in ((True, [0, 0.25, 0.5, 1]), (False, [-0.5, 0.25, 0.5, 1.5])):
        boxes, _ = decode_scores(outputs, anchors, True, clip)
        np.testing.assert_allclose(boxes[0, 0], expected, atol=1e-6)


def test_extreme_outputs_stay_finite():
    anchors = np.float32([[0.4, 0.4, 0.6, 0.6]])
    outputs = {"class_logits": np.float32([[[-1e30, 1e30]]]), "box_deltas": np.float32([[[0, 0, 1e30, 1e30]]])}
    boxes, scores, classes, counts = run(outputs, anchors, PostprocessConfig())
    assert boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert (scores[0, 0], classes[0, 0], counts[0]) == (1, 1, 1)


def test_sigmoid_scores_by_hand():
    """Every column is a class: 1 / (1 + exp(-logit)), and nothing adds up to 1."""
    anchors = np.float32([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    logits = np.float32([[[np.log(4), 0], [-np.log(9), np.log(3)]]])
    outputs = {"class_logits": logits, "box_deltas": np.zeros((1, 2, 4), np.float32)}
    _, scores = decode_scores(outputs, anchors, False)
    np.testing.assert_allclose(scores, [[[0.8, 0.5], [0.1, 0.75]]], rtol=1e-6)
    settings = PostprocessConfig(score_threshold=0.2, max_detections=4)
    boxes, scores, classes, counts = (x[0] for x in run(outputs, anchors, settings, False))
    assert counts == 3
    assert classes[:3].tolist() == [1, 2, 2]
    np.testing.assert_allclose(scores[:3], [0.8, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(boxes[:3], anchors[[0, 1, 0]], atol=1e-6)
    _, as_softmax = decode_scores(outputs, anchors, True)
    np.testing.assert_allclose(as_softmax, [[[1 / 5], [27 / 28]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0.75, 1), (0.5, 2)]),
        ({"nms": "diou"}, [(0.75, 1), (0.6, 1), (0.5, 2)]),  # DIoU = 1/2 - (1/16) / (5/4) = .45 is not above
        ({"nms": "soft_linear"}, [(0.75, 1), (0.5, 2), (0.3, 1)]),  # .6 (1 - 1/2)
        ({"nms": "soft_gaussian"}, [(0.75, 1), (0.5, 2), (0.6 * np.exp(-0.5), 1)]),
        ({"nms": "soft_gaussian", "soft_nms_sigma": 0.25}, [(0.75, 1), (0.5, 2), (0.6 * np.exp(-1), 1)]),
        ({"class_agnostic": True}, [(0.75, 1)]),
        ({"nms": "diou", "class_agnostic": True}, [(0.75, 1), (0.6, 1)]),
        ({"nms": "soft_linear", "class_agnostic": True}, [(0.75, 1), (0.3, 1)]),
        ({"nms": "soft_gaussian", "class_agnostic": True}, [(0.75, 1), (0.6 * np.exp(-0.5), 1)]),
    ],
)
def test_settings_choose_the_suppression(options, expected):
    """Two boxes of IoU 1/2: scores of the classes .75 and .5 for the first, .6 and .1 for the second."""
    anchors = np.float32([[0, 0, 1, 0.5], [0, 0, 0.5, 0.5]])
    probabilities = np.array([[0.75, 0.5], [0.6, 0.1]])
    logits = np.log(probabilities / (1 - probabilities)).astype(np.float32)
    outputs = {"class_logits": logits[None], "box_deltas": np.zeros((1, 2, 4), np.float32)}
    settings = PostprocessConfig(score_threshold=0.15, nms_iou=0.46, max_detections=5, **options)
    _, scores, classes, counts = (x[0] for x in run(outputs, anchors, settings, False))
    assert counts == len(expected)
    np.testing.assert_allclose(scores[:counts], [score for score, _ in expected], rtol=1e-5)
    assert classes[:counts].tolist() == [label for _, label in expected]


def test_the_combined_op_serves_what_it_can_and_on_cpus_alone(monkeypatch):
    anchors = np.float32([[0, 0, 1, 0.5]])
    outputs = {"class_logits": np.float32([[[0, 2]]]), "box_deltas": np.zeros((1, 1, 4), np.float32)}
    called = []
    for module, names in ((nms, ("class_wise_nms", "class_agnostic_nms")), (nms_tensorflow, ("class_wise_nms",))):
        for name in names:
            label = f"{module.__name__.rpartition('.')[2]}.{name}"
            function = getattr(module, name)

            def record(*arguments, label=label, function=function, **options):
                called.append(label)
                return function(*arguments, **options)

            monkeypatch.setattr(module, name, record)
    choices = ({}, {"nms": "diou"}, {"nms": "soft_linear"}, {"class_agnostic": True})
    for devices in ([], ["a GPU"]):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind, found=devices: found)
        for options in choices:
            postprocess(outputs, anchors, PostprocessConfig(**options), True)
    others = ["nms.class_wise_nms"] * 2 + ["nms.class_agnostic_nms"]
    assert called == ["nms_tensorflow.class_wise_nms", *others, "nms.class_wise_nms", *others]
