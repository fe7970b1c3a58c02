"""Box geometry: hand values, and the same numbers from every array library."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import ops

LIBRARIES = {"numpy": np, "tensorflow": tnp, "keras": keras.ops}


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES.keys())
def xp(request):
    return request.param


def array(*rows):
    return np.array(rows, np.float32)


def random_boxes(seed, *shape):
    corners = np.random.default_rng(seed).uniform(-0.2, 1.2, (*shape, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)


def check(actual, expected, **tolerance):
    actual = np.asarray(actual)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(
        actual, np.asarray(expected, np.float32), **{"rtol": 1e-6, "atol": 1e-7, **tolerance}
    )


def brute_iou(a, b):
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union


def test_area_is_height_times_width_and_never_negative(xp):
    boxes = array([1, 2, 4, 7], [0, 0, 0, 5], [3, 0, 1, 5], [3, 5, 1, 0])
    check(ops.area(boxes, xp), [15, 0, 0, 0])


def test_intersection_by_hand(xp):
    a = array([0, 0, 4, 4], [10, 10, 11, 11])
    b = array([2, 1, 6, 3], [4, 0, 8, 4], [-1, -1, 12, 12])
    check(ops.intersection(a, b, xp), [[4, 0, 16], [0, 0, 1]])


def test_iou_by_hand(xp):
    a = array([0, 0, 2, 2])
    b = array([0, 0, 2, 2], [1, 1, 3, 3], [0, 2, 2, 4], [0, 0, 1, 1], [5, 5, 6, 6])
    check(ops.iou(a, b, xp), [[1, 1 / 7, 0, 1 / 4, 0]])


def test_iou_of_tiny_identical_boxes_is_one(xp):
    box = array([0.5, 0.5, 0.501, 0.501])
    check(ops.iou(box, box, xp), [[1]])


def test_iou_of_empty_boxes_is_zero_not_nan(xp):
    boxes = array([0.5, 0.5, 0.5, 0.5], [0.7, 0.2, 0.3, 0.6])
    check(ops.iou(boxes, boxes, xp), np.zeros((2, 2)))


def test_iou_with_no_boxes_has_no_rows(xp):
    anchors = random_boxes(0, 5)
    assert np.asarray(ops.iou(np.zeros((0, 4), np.float32), anchors, xp)).shape == (0, 5)
    assert np.asarray(ops.iou(anchors, np.zeros((0, 4), np.float32), xp)).shape == (5, 0)


def test_iou_equals_brute_force_and_keeps_leading_axes(xp):
    a, b = random_boxes(1, 3, 7), random_boxes(2, 3, 5)
    expected = [[[brute_iou(x, y) for y in right] for x in left] for left, right in zip(a, b, strict=True)]
    check(ops.iou(a, b, xp), expected, atol=1e-6)


def test_coverage_is_the_share_of_the_box_inside_the_region(xp):
    boxes = array([0, 0, 2, 2], [4, 4, 8, 8], [1, 1, 1, 1])
    regions = array([0, 0, 1, 8], [0, 0, 100, 100])
    check(ops.coverage(boxes, regions, xp), [[0.5, 0, 0], [1, 1, 0]])


def test_clip_cuts_to_the_image(xp):
    check(ops.clip(array([-0.5, 0.2, 0.7, 1.5], [1.2, -3, 2, -1]), xp), [[0, 0.2, 0.7, 1], [1, 0, 1, 0]])


def test_flip_mirrors_left_to_right_and_is_its_own_inverse(xp):
    check(ops.flip(array([0.1, 0.2, 0.5, 0.3]), xp), [[0.1, 0.7, 0.5, 0.8]])
    boxes = random_boxes(3, 20)
    check(ops.flip(ops.flip(boxes, xp), xp), boxes, atol=1e-6)


def test_rescale_makes_the_window_the_unit_square(xp):
    window = np.array([0.2, 0.4, 0.6, 0.5], np.float32)
    boxes = array([0.2, 0.4, 0.6, 0.5], [0.4, 0.45, 0.5, 0.55], [0, 0, 1, 1])
    check(ops.rescale(boxes, window, xp), [[0, 0, 1, 1], [0.5, 0.5, 0.75, 1.5], [-0.5, -4, 2, 6]], rtol=1e-5)


def test_centres_and_centre_size_by_hand(xp):
    boxes = array([0, 2, 4, 3])
    check(ops.centres(boxes, xp), [[2, 2.5]])
    check(ops.to_centre_size(boxes, xp), [[2, 2.5, 4, 1]])


def test_axes_are_exchanged(xp):
    check(ops.yxyx_to_xyxy(array([1, 2, 3, 4]), xp), [[2, 1, 4, 3]])


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_graph_gives_numpys_values(jit):
    a, b = random_boxes(5, 6), random_boxes(6, 9)
    traced = tf.function(lambda x, y: ops.iou(x, y, tnp), jit_compile=jit)
    check(traced(a, b), ops.iou(a, b), atol=1e-6)


def test_iou_inside_a_data_set_map():
    a, b = random_boxes(7, 4, 3), random_boxes(8, 5)
    mapped = tf.data.Dataset.from_tensor_slices(a).map(lambda boxes: ops.iou(boxes, b, tnp))
    check(np.stack(list(mapped.as_numpy_iterator())), ops.iou(a, b[None]), atol=1e-6)
