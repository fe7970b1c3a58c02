"""Training targets of one image: labels, deltas, ignored anchors."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.boxes import ops
from ssd_tf.data import targets

# Four anchors side by side, then one over the whole image.
ANCHORS = np.array(
    [[0, 0, 1, 0.25], [0, 0.25, 1, 0.5], [0, 0.5, 1, 0.75], [0, 0.75, 1, 1], [0, 0, 1, 1]], np.float32
)


def build(boxes, classes, ignore=None, anchors=ANCHORS, **options):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.asarray(ignore)
    made = targets.build_targets(
        tf.constant(boxes),
        tf.constant(classes, tf.int32),
        tf.constant(ignore, tf.bool),
        tf.constant(anchors),
        **options,
    )
    labels, deltas = made["class_logits"].numpy(), made["box_deltas"].numpy()
    assert (labels.dtype, deltas.dtype) == (np.int32, np.float32)
    return labels, deltas


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
@pytest.mark.parametrize("image", range(8))
def test_labels_and_deltas_are_torchvisions(golden, image, forced):
    stored = np.load(golden / "torchvision_ssd_core.npz")
    # In pixels, as the stored matches were made.
    boxes = ops.yxyx_to_xyxy(stored[f"gt_boxes_xyxy_px_{image}"])
    anchors = ops.yxyx_to_xyxy(stored["anchors_xyxy_px"])
    classes = stored[f"gt_labels_{image}"]
    labels, deltas = build(boxes, classes, anchors=anchors, forced=forced)
    matched = stored[f"matched_gt_index_{image}"]
    np.testing.assert_array_equal(labels, np.where(matched >= 0, np.append(classes, 0)[matched], 0))
    expected = np.zeros((8732, 5), np.float32)
    if len(boxes):
        positive = stored[f"positive_anchor_{image}"]
        expected[positive, 4] = 1
        expected[positive, :4] = stored[f"encoded_{image}"][:, [1, 0, 3, 2]]
    np.testing.assert_allclose(deltas, expected, atol=1e-4)


def test_no_boxes_are_all_background_and_zero_deltas():
    labels, deltas = build([], [])
    np.testing.assert_array_equal(labels, np.zeros(5))
    np.testing.assert_array_equal(deltas, np.zeros((5, 5)))


def test_each_anchor_gets_the_class_of_its_box():
    labels, deltas = build([[0, 0, 1, 0.25], [0, 0.52, 1, 0.77]], [7, 3])
    np.testing.assert_array_equal(labels, [7, 0, 3, 0, 0])
    np.testing.assert_array_equal(deltas[:, 4], [1, 0, 1, 0, 0])
    np.testing.assert_allclose(deltas[0, :4], np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(deltas[2, :4], [0, 0.02 / 0.25 / 0.1, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(deltas[[1, 3, 4]], np.zeros((3, 5)))


def test_the_threshold_decides_which_anchors_are_positive():
    box = [[0, 0.0, 1, 0.6]]  # IoU with the anchors: .4167, .4167, .13, 0, .6
    assert build(box, [2])[0].tolist() == [0, 0, 0, 0, 2]
    assert build(box, [2], iou_threshold=0.4)[0].tolist() == [2, 2, 0, 0, 2]


def test_anchors_half_inside_an_ignore_box_are_ignored():
    labels, deltas = build([[0, 0.25, 1, 0.63]], [9], [True])
    np.testing.assert_array_equal(labels, [0, -1, -1, 0, 0])  # covered by 0, 1, .52, 0 and .38
    np.testing.assert_array_equal(deltas, np.zeros((5, 5)))


def test_objects_win_over_ignore_boxes():
    labels, deltas = build([[0, 0, 1, 1], [0, 0, 1, 0.25]], [9, 4], [True, False])
    np.testing.assert_array_equal(labels, [4, -1, -1, -1, -1])
    np.testing.assert_array_equal(deltas[:, 4], [1, 0, 0, 0, 0])


def test_the_class_comes_from_the_objects_alone():
    # The ignored row stands first: indices into the objects must not be read as indices into all boxes.
    labels, _ = build([[0, 0.75, 1, 1], [0, 0, 1, 0.25], [0, 0.25, 1, 0.5]], [9, 4, 5], [True, False, False])
    np.testing.assert_array_equal(labels, [4, 5, 0, -1, 0])


def test_an_ignore_box_claims_no_anchor():
    labels, _ = build([[0, 0, 0.1, 0.1]], [9], [True])
    np.testing.assert_array_equal(labels, np.zeros(5))


def test_inside_a_data_set_map():
    rows = [([[0, 0, 1, 0.25]], [7], [False]), ([[0, 0.75, 1, 1]], [2], [True])]
    columns = [
        tf.constant([row[i] for row in rows], kind) for i, kind in enumerate((tf.float32, tf.int32, tf.bool))
    ]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(columns))
    mapped = dataset.map(lambda b, c, i: targets.build_targets(b, c, i, tf.constant(ANCHORS)))
    labels = [made["class_logits"].tolist() for made in mapped.as_numpy_iterator()]
    assert labels == [[7, 0, 0, 0, 0], [0, 0, 0, -1, 0]]
