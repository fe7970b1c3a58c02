"""Logits and deltas to detections: torchvision's, and by hand."""

import numpy as np
import pytest

from ssd_tf.config import PostprocessConfig
from ssd_tf.inference.postprocess import postprocess


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


def test_detections_are_torchvisions(core):
    anchors = core["anchors_xyxy_px"][:, [1, 0, 3, 2]] / np.float32(300)
    settings = PostprocessConfig(score_threshold=0.05, nms_iou=0.45, topk_candidates=400, max_detections=200)
    boxes, scores, classes, counts = (np.asarray(x) for x in postprocess(golden_outputs(), anchors, settings))
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
    found = [np.asarray(x)[0] for x in postprocess(outputs_of(probabilities, deltas), anchors, settings)]
    boxes, scores, classes, count = found
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
    boxes, _, _, counts = (np.asarray(x) for x in postprocess(outputs, anchors, settings))
    assert counts.tolist() == [1]
    np.testing.assert_allclose(boxes[0, 0], [0, 0, 0.5, 0.5], atol=1e-6)


def test_extreme_outputs_stay_finite():
    anchors = np.float32([[0.4, 0.4, 0.6, 0.6]])
    outputs = {"class_logits": np.float32([[[-1e30, 1e30]]]), "box_deltas": np.float32([[[0, 0, 1e30, 1e30]]])}
    boxes, scores, classes, counts = (np.asarray(x) for x in postprocess(outputs, anchors, PostprocessConfig()))
    assert boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert (scores[0, 0], classes[0, 0], counts[0]) == (1, 1, 1)
