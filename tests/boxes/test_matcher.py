"""Matching against torchvision's and against slow NumPy matchers written from the rule."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.boxes import matcher, ops


def brute_match(iou, threshold, forced):
    """The rule in loops: ordinary matches, then each box's claim over them."""
    num_boxes, num_anchors = iou.shape
    matched = np.full(num_anchors, -1)
    for anchor in range(num_anchors):
        for box in range(num_boxes):
            best = iou[matched[anchor], anchor] if matched[anchor] >= 0 else -1
            if iou[box, anchor] >= threshold and iou[box, anchor] > best:
                matched[anchor] = box
    for anchor, box in (argmax_claims if forced == "argmax" else greedy_claims)(iou).items():
        matched[anchor] = box
    return matched


def argmax_claims(iou):
    claims = {}
    for box, row in enumerate(iou):
        anchor = min(range(len(row)), key=lambda a: (-row[a], a))
        rival = claims.get(anchor)
        if row[anchor] > 1e-6 and (rival is None or row[anchor] > iou[rival, anchor]):
            claims[anchor] = box
    return claims


def greedy_claims(iou):
    pairs = [(-iou[b, a], b, a) for b in range(iou.shape[0]) for a in range(iou.shape[1])]
    claims = {}
    for negative, box, anchor in sorted(pairs):
        if -negative > 1e-6 and anchor not in claims and box not in claims.values():
            claims[anchor] = box
    return claims


def match(iou, *arguments, **options):
    return matcher.match(tf.constant(iou, tf.float32), *arguments, **options).numpy()


def random_boxes(generator, count, low, high):
    sizes = generator.uniform(low, high, (count, 2))
    corners = generator.uniform(0, 1, (count, 2)) * (1 - sizes)
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
@pytest.mark.parametrize("image", range(8))
def test_matches_as_torchvision(golden, image, forced):
    stored = np.load(golden / "torchvision_ssd_core.npz")
    # In pixels: divided by 300, three boxes have another best anchor of equal IoU.
    overlaps = ops.iou(
        ops.yxyx_to_xyxy(stored[f"gt_boxes_xyxy_px_{image}"]), ops.yxyx_to_xyxy(stored["anchors_xyxy_px"])
    )
    matched = match(overlaps, 0.5, forced)
    assert matched.dtype == np.int32
    np.testing.assert_array_equal(matched, stored[f"matched_gt_index_{image}"])


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_on_boxes(seed, forced):
    generator = np.random.default_rng(seed)
    anchors = random_boxes(generator, 60, 0.1, 0.6)
    boxes = random_boxes(generator, int(generator.integers(0, 9)), 0.02, 0.8)
    boxes = np.concatenate([boxes, boxes[:2]])  # duplicates
    overlaps = ops.iou(boxes, anchors)
    for threshold in (0.3, 0.5):
        np.testing.assert_array_equal(match(overlaps, threshold, forced), brute_match(overlaps, threshold, forced))


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_where_most_values_are_equal(seed, forced):
    generator = np.random.default_rng(100 + seed)
    shape = int(generator.integers(1, 7)), int(generator.integers(1, 9))
    overlaps = (generator.integers(0, 6, shape) / 8).astype(np.float32)
    np.testing.assert_array_equal(match(overlaps, 0.5, forced), brute_match(overlaps, 0.5, forced))


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_more_boxes_than_anchors(forced):
    overlaps = np.random.default_rng(5).uniform(0, 1, (9, 4)).astype(np.float32)
    matched = match(overlaps, 0.5, forced)
    np.testing.assert_array_equal(matched, brute_match(overlaps, 0.5, forced))
    assert (matched >= 0).all()


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_no_boxes_leave_every_anchor_unmatched(forced):
    np.testing.assert_array_equal(match(np.zeros((0, 5)), 0.5, forced), [-1] * 5)


def test_the_threshold_is_inclusive():
    np.testing.assert_array_equal(match([[0.9, 0.5, 0.4999]]), [0, 0, -1])


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_a_box_below_the_threshold_is_still_forced(forced):
    np.testing.assert_array_equal(match([[0.0, 0.01, 0.2, 0.1]], 0.5, forced), [-1, -1, 0, -1])


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_a_box_that_overlaps_nothing_is_not_forced(forced):
    np.testing.assert_array_equal(match([[0.0, 0.0, 0.0], [0.0, 0.6, 0.0]], 0.5, forced), [-1, 1, -1])


def test_two_boxes_want_one_anchor():
    overlaps = [[0.2, 0.3, 0.1], [0.1, 0.4, 0.3]]
    np.testing.assert_array_equal(match(overlaps), [-1, 1, -1])  # the higher IoU has it
    np.testing.assert_array_equal(match(overlaps, forced="greedy"), [0, 1, -1])  # the other its next best
    np.testing.assert_array_equal(match(overlaps[::-1]), [-1, 0, -1])


def test_two_boxes_want_one_anchor_with_equal_overlap():
    overlaps = [[0.2, 0.4, 0.1], [0.1, 0.4, 0.3]]
    np.testing.assert_array_equal(match(overlaps), [-1, 0, -1])  # the lower index
    np.testing.assert_array_equal(match(overlaps, forced="greedy"), [-1, 0, 1])


def test_a_forced_match_overrides_an_ordinary_one():
    # Anchor 0 overlaps box 0 more, but it is the only one box 1 can have.
    overlaps = [[0.8, 0.9], [0.6, 0.0]]
    np.testing.assert_array_equal(match(overlaps), [1, 0])


def test_of_equally_good_anchors_the_lowest_is_forced():
    np.testing.assert_array_equal(match([[0.1, 0.3, 0.3]]), [-1, 0, -1])


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_padding_rows_never_match(forced):
    generator = np.random.default_rng(3)
    overlaps = generator.uniform(0, 1, (4, 10)).astype(np.float32)
    padded = np.concatenate([overlaps, np.ones((3, 10), np.float32)])
    valid = tf.constant([True] * 4 + [False] * 3)
    np.testing.assert_array_equal(match(padded, 0.5, forced, valid), match(overlaps, 0.5, forced))
    nothing = match(padded, 0.5, forced, tf.zeros([7], tf.bool))
    np.testing.assert_array_equal(nothing, [-1] * 10)


@pytest.mark.parametrize("forced", ["argmax", "greedy"])
def test_inside_a_data_set_map_with_changing_numbers_of_boxes(forced):
    generator = np.random.default_rng(4)
    sets = [generator.uniform(0, 1, (count, 6)).astype(np.float32) for count in (3, 0, 1, 8)]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(sets), output_signature=tf.TensorSpec([None, 6], tf.float32)
    )
    mapped = dataset.map(lambda iou: matcher.match(iou, 0.5, forced))
    for overlaps, matched in zip(sets, mapped.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(matched, brute_match(overlaps, 0.5, forced))


def test_batch_weight_divides_by_all_positives_of_the_batch():
    def weight(*arguments):
        return float(matcher.batch_weight(*arguments))

    assert weight(16.0, 8) == 0.5
    assert weight(1.0, 8) == 8
    assert weight(0.0, 8) == 8  # no positives: as one
    assert weight(0.0, 8, 3) == 1  # 24 negatives stand for 8 positives
    assert weight(4.0, 8, 3) == 1
    assert weight(16.0, 8, 3) == 0.5
    assert matcher.batch_weight(tf.constant(3.0), tf.constant(4)).dtype == tf.float32


def test_batch_weight_gives_the_papers_normaliser():
    losses, positives = np.array([3.0, 0.0, 5.0, 2.0]), np.array([2.0, 0.0, 1.0, 2.0])
    weights = np.full(4, float(matcher.batch_weight(positives.sum(), 4)))
    assert np.mean(losses * weights) == pytest.approx(losses.sum() / positives.sum())
