"""Regression targets: inverse, clamp, a worked example, torchvision's values."""

import keras
import numpy as np
import pytest
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import anchors, coder, ops

LIBRARIES = {"numpy": np, "tensorflow": tnp, "keras": keras.ops}
SSD300_MAPS = [(n, n) for n in (38, 19, 10, 5, 3, 1)]


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES.keys())
def xp(request):
    return request.param


def random_boxes(seed, count):
    generator = np.random.default_rng(seed)
    sizes = generator.uniform(0.02, 0.9, (count, 2))
    corners = generator.uniform(-0.1, 1.0, (count, 2))
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)


def test_decode_inverts_encode(xp):
    boxes, references = random_boxes(0, 500), random_boxes(1, 500)
    back = np.asarray(coder.decode(coder.encode(boxes, references, xp), references, xp))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=2e-6)


def test_encode_inverts_decode(xp):
    deltas = np.random.default_rng(2).normal(0, 2, (300, 4)).astype(np.float32)
    references = random_boxes(3, 300)
    back = np.asarray(coder.encode(coder.decode(deltas, references, xp), references, xp))
    np.testing.assert_allclose(back, deltas, atol=1e-3)


def test_encode_by_hand(xp):
    reference = np.array([[0.0, 0.0, 0.4, 0.2]], np.float32)  # centre (.2, .1), size (.4, .2)
    box = np.array([[0.1, 0.1, 0.5, 0.5]], np.float32)  # centre (.3, .3), size (.4, .4)
    expected = [[0.1 / 0.4 / 0.1, 0.2 / 0.2 / 0.1, 0.0, np.log(2) / 0.2]]
    np.testing.assert_allclose(np.asarray(coder.encode(box, reference, xp)), expected, atol=1e-5)


def test_zero_deltas_decode_to_the_anchors_with_leading_axes(xp):
    references = random_boxes(4, 7)
    decoded = np.asarray(coder.decode(np.zeros((3, 7, 4), np.float32), references, xp))
    np.testing.assert_allclose(decoded, np.broadcast_to(references, (3, 7, 4)), atol=1e-6)


def test_sizes_are_clamped_after_the_variance(xp):
    reference = np.array([[0.4, 0.4, 0.6, 0.6]], np.float32)
    limit = np.log(1000 / 16) / 0.2  # in units of the deltas
    deltas = np.array([[[0, 0, limit * 0.999, 0]], [[0, 0, limit + 1, 0]], [[0, 0, 3e38, 3e38]]], np.float32)
    decoded = np.asarray(coder.decode(deltas, reference, xp))
    heights = decoded[:, 0, 2] - decoded[:, 0, 0]
    np.testing.assert_allclose(heights, [0.2 * 62.5**0.999, 12.5, 12.5], rtol=1e-5)
    assert np.isfinite(decoded).all()


def test_smallest_sizes_stay_finite(xp):
    reference = np.array([[0.4, 0.4, 0.6, 0.6]], np.float32)
    decoded = np.asarray(coder.decode(np.full((1, 4), -1e4, np.float32), reference, xp))
    assert np.isfinite(decoded).all() and decoded[0, 2] - decoded[0, 0] == 0


def test_boxes_without_extent_encode_to_finite_numbers(xp):
    reference = np.array([[0.4, 0.4, 0.6, 0.6]], np.float32)
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4]], np.float32)
    assert np.isfinite(np.asarray(coder.encode(boxes, reference, xp))).all()


def test_worked_example_on_the_anchors_of_voc300():
    made = anchors.make_anchors(anchors.PRESETS["ssd300_voc"], SSD300_MAPS, (300, 300))
    box = np.array([[80, 100, 260, 220]], np.float32) / 300
    overlaps = ops.iou(box, made)[0]
    assert overlaps.argmax() == 8617
    np.testing.assert_allclose(overlaps[8617], 0.757370, atol=1e-5)
    assert (overlaps >= 0.5).sum() == 16
    np.testing.assert_allclose(ops.to_centre_size(made[8617]), [0.533333, 0.533333, 0.763675, 0.381838], atol=1e-6)
    expected = [0.436486, 0.0, -1.206065, 0.232345]
    np.testing.assert_allclose(coder.encode(box[0], made[8617]), expected, atol=2e-5)


@pytest.mark.parametrize("image", range(1, 8))
def test_encodes_as_torchvision(golden, image, xp):
    stored = np.load(golden / "torchvision_ssd_core.npz")
    references = ops.yxyx_to_xyxy(stored["anchors_xyxy_px"])[stored[f"positive_anchor_{image}"]]
    matched = stored[f"matched_gt_index_{image}"][stored[f"positive_anchor_{image}"]]
    boxes = ops.yxyx_to_xyxy(stored[f"gt_boxes_xyxy_px_{image}"])[matched]
    deltas = np.asarray(coder.encode(boxes, references, xp))
    np.testing.assert_allclose(deltas[:, [1, 0, 3, 2]], stored[f"encoded_{image}"], atol=1e-4)


def test_decodes_as_torchvision(golden, xp):
    stored = np.load(golden / "torchvision_ssd_core.npz")
    deltas = np.random.default_rng(12).standard_normal((8, 8732, 4)).astype(np.float32)[0]
    references = ops.yxyx_to_xyxy(stored["anchors_xyxy_px"])
    decoded = np.asarray(coder.decode(deltas[:, [1, 0, 3, 2]], references, xp))
    np.testing.assert_allclose(decoded[:, [1, 0, 3, 2]], stored["decoded_image0_xyxy_px"], rtol=1e-5, atol=1e-3)
