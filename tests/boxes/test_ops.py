"""Box geometry: hand values, and the same numbers from every array library."""

import math

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


def test_flip_vertically_mirrors_top_to_bottom_and_is_its_own_inverse(xp):
    check(ops.flip_vertically(array([0.1, 0.2, 0.5, 0.3]), xp), [[0.5, 0.2, 0.9, 0.3]])
    boxes = random_boxes(3, 20)
    check(ops.flip_vertically(ops.flip_vertically(boxes, xp), xp), boxes, atol=1e-6)
    half_turned = ops.flip(ops.flip_vertically(boxes, xp), xp)
    check(half_turned, 1 - boxes[:, [2, 3, 0, 1]], atol=1e-6)


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


VARIANTS = {"giou": ops.generalized_iou, "diou": ops.distance_iou, "ciou": ops.complete_iou}
LOWEST = {"giou": -1.0, "diou": -1.0, "ciou": -1.5}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def brute_variant(name, a, b):
    """The papers' formulas for one pair, in Python's own numbers."""
    (top, left, bottom, right), (above, before, below, after) = map(float, a), map(float, b)
    overlap = brute_iou(tuple(map(float, a)), tuple(map(float, b)))
    height = max(bottom, below) - min(top, above)
    width = max(right, after) - min(left, before)
    if name == "giou":
        areas = (bottom - top) * (right - left) + (below - above) * (after - before)
        union = areas / (1 + overlap)  # overlap = shared / union, areas = union + shared
        return overlap - (height * width - union) / (height * width)
    apart = math.dist(((top + bottom) / 2, (left + right) / 2), ((above + below) / 2, (before + after) / 2))
    diou = overlap - apart**2 / (height**2 + width**2)
    if name == "diou":
        return diou
    angle = math.atan((right - left) / (bottom - top)) - math.atan((after - before) / (below - above))
    aspect = 4 / math.pi**2 * angle**2
    return diou - aspect**2 / (1 - overlap + aspect) if aspect else diou


def test_generalized_iou_by_hand(xp):
    box = array([0, 0, 2, 2])
    others = array([0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 3, 3], [0, 2, 2, 4], [0, 3, 2, 4], [3, 3, 4, 4])
    # Equal; nested: IoU; crossing: 1/7 - 2/9; touching: 0; a gap of 2 in 8; 5 of 16 filled.
    check(ops.generalized_iou(box, others, xp), [1, 1 / 4, 1 / 7 - 2 / 9, 0, -2 / 8, -11 / 16])


def test_distance_iou_by_hand(xp):
    box = array([0, 0, 2, 2])
    others = array([0, 0, 2, 2], [0.5, 0.5, 1.5, 1.5], [0, 0, 1, 1], [1, 1, 3, 3], [0, 3, 2, 4])
    # Equal; nested with one centre: IoU; nested in a corner: .5 of 8; 2 of 18; 2.5 squared of 4 + 16.
    check(ops.distance_iou(box, others, xp), [1, 1 / 4, 1 / 4 - 0.5 / 8, 1 / 7 - 2 / 18, -6.25 / 20])


def test_complete_iou_by_hand(xp):
    root = math.sqrt(3)
    box = array([-1, -1, 1, 1])
    others = array([-1, -1, 1, 1], [-0.5, -0.5, 0.5, 0.5], [0, 0, 2, 2], [-1, -root, 1, root], [9, -1, 11, 1])
    # The fourth has an angle of 60 degrees against 45: 1/36 of a right angle's square; IoU is 1 / root.
    fourth = 1 / root - (1 / 36) ** 2 / (1 - 1 / root + 1 / 36)
    check(ops.complete_iou(box, others, xp), [1, 1 / 4, 1 / 7 - 2 / 18, fourth, -100 / 148])
    # Lines across each other: aspect ratios as different as can be cost 1 * 1 / (1 + 1).
    check(ops.complete_iou(array([0, -1, 0, 1]), array([-1, 0, 1, 0]), xp), [-0.5])


def test_variants_equal_brute_force_for_all_pairs(variant, xp):
    a, b = random_boxes(11, 3, 7), random_boxes(12, 3, 5)
    b[0, 0], b[0, 1] = a[0, 0], a[0, 0] + np.float32([0.01, 0.01, -0.01, -0.01])
    b[1, :2] += 40
    expected = [
        [[brute_variant(variant, x, y) for y in right] for x in left] for left, right in zip(a, b, strict=True)
    ]
    check(VARIANTS[variant](a[:, :, None, :], b[:, None, :, :], xp), expected, rtol=1e-5, atol=2e-6)


def awkward_boxes():
    """Points, lines, slivers, boxes inside out, and ordinary ones, in an image or far outside."""
    lines = array([0.2, 0.2, 0.2, 0.2], [0.7, 0.1, 0.7, 0.1], [0.3, 0.1, 0.3, 0.8], [0.1, 0.4, 0.9, 0.4])
    slivers = array([0.3, 0.1, 0.3 + 1e-7, 0.8], [0, 0, 1e-20, 1e-20], [0, 0, 1e-12, 1e-25], [0, 0, 1e9, 1e-9])
    wrong = array([0.8, 0.2, 0.3, 0.6], [0.8, 0.6, 0.3, 0.2])
    return np.concatenate([lines, slivers, wrong, random_boxes(13, 6), random_boxes(14, 2) * np.float32(1e8)])


def test_variants_are_finite_and_in_range_for_awkward_boxes(variant, xp):
    boxes = awkward_boxes()
    values = np.asarray(VARIANTS[variant](boxes[:, None], boxes[None], xp))
    assert np.all((values >= LOWEST[variant]) & (values <= 1))  # neither holds for NaN
    np.testing.assert_allclose(values, values.T, rtol=1e-5, atol=1e-6)
    assert np.all(np.diag(values)[:4] == 0)  # equal and empty


def test_variants_of_equal_boxes_are_exactly_one_and_of_others_never_more(variant):
    boxes = random_boxes(15, 2000)
    equal = VARIANTS[variant](boxes, boxes)
    assert np.all(equal == 1)
    shaken = boxes * np.random.default_rng(16).uniform(1 - 2e-7, 1 + 2e-7, boxes.shape).astype(np.float32)
    assert np.all(VARIANTS[variant](boxes, shaken) <= 1)
    assert np.all(VARIANTS[variant](boxes, shaken) > 0.5)


def test_giou_of_nested_boxes_is_at_most_their_iou():
    outer = random_boxes(17, 2000)
    inner = outer.copy()
    inner[:, 2:] -= (outer[:, 2:] - outer[:, :2]) * np.float32(1e-3)
    assert np.all(ops.generalized_iou(outer, inner) <= ops.iou(outer[:, None], inner[:, None])[:, 0, 0])


def test_diou_falls_to_minus_one_and_ciou_to_minus_one_and_a_half():
    lying, standing = array([0, 0, 0, 1]), array([1e6, 1e6, 1e6 + 1, 1e6])
    check(ops.distance_iou(lying, standing), [-1], atol=1e-5)
    check(ops.complete_iou(lying, standing), [-1.5], atol=1e-5)
    check(ops.generalized_iou(lying, standing), [-1])


def variant_gradient(variant, boxes, others, **options):
    boxes = tf.constant(boxes)
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        total = tf.reduce_sum(VARIANTS[variant](boxes, tf.constant(others), keras.ops, **options))
    return np.asarray(tape.gradient(total, boxes))


def test_gradients_are_finite_for_awkward_and_equal_boxes(variant):
    boxes = awkward_boxes()
    for other in boxes:
        assert np.all(np.isfinite(variant_gradient(variant, boxes, other[None])))
    # Nothing but the overlap moves equal boxes: the distance and the aspect ratios are at their minimum.
    points = boxes[:2]
    assert not np.any(variant_gradient(variant, points, points))


def test_gradients_equal_finite_differences(variant):
    boxes, others = random_boxes(18, 12).astype(np.float64), random_boxes(19, 12).astype(np.float64)
    gradient = variant_gradient(variant, boxes, others)
    step, expected = 1e-6, np.zeros_like(boxes)
    for k in range(4):
        shift = np.eye(4)[k] * step
        plus, minus = (VARIANTS[variant](moved, others) for moved in (boxes + shift, boxes - shift))
        expected[:, k] = (plus - minus) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_ciou_can_hold_the_weight_of_the_aspect_ratios_constant():
    boxes, others = random_boxes(20, 12).astype(np.float64), random_boxes(21, 12).astype(np.float64)
    held = variant_gradient("ciou", boxes, others, as_constant=keras.ops.stop_gradient)

    def aspects(boxes):
        angle = np.arctan2(*(boxes[:, [3, 2]] - boxes[:, [1, 0]]).T)
        other = np.arctan2(*(others[:, [3, 2]] - others[:, [1, 0]]).T)
        return 4 / np.pi**2 * (angle - other) ** 2

    overlaps = ops.iou(boxes[:, None], others[:, None])[:, 0, 0]
    weights = aspects(boxes) / (1 - overlaps + aspects(boxes))
    step, expected = 1e-6, np.zeros_like(boxes)
    for k in range(4):
        ends = [boxes + np.eye(4)[k] * step, boxes - np.eye(4)[k] * step]
        plus, minus = (ops.distance_iou(end, others) - weights * aspects(end) for end in ends)
        expected[:, k] = (plus - minus) / (2 * step)
    np.testing.assert_allclose(held, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(held - variant_gradient("ciou", boxes, others)).max() > 1e-2
    singles = [values.astype(np.float32) for values in (boxes, others)]
    values = ops.complete_iou(*singles, keras.ops, keras.ops.stop_gradient)
    check(values, ops.complete_iou(*singles), atol=1e-6)
