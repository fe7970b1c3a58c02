import math

import numpy as np
import pytest

from ssd_tf.synthesis import layout
from ssd_tf.synthesis.layout import Placement, draw_layout, find_boxes, map_owners
from ssd_tf.synthesis.shapes import DEFAULT_CLASSES

SIZE = 256


def block(name, top, left, h, w):
    return Placement(name, np.full((h, w), 255, np.uint8), top, left)


def visible_masks(placements, size):
    """Brute force: every object on a large canvas of its own, then minus all later ones."""
    pad = size // 2
    masks = np.zeros((len(placements), size + 2 * pad, size + 2 * pad), bool)
    for mask, placement in zip(masks, placements):
        h, w = placement.coverage.shape
        top, left = placement.top + pad, placement.left + pad
        mask[top : top + h, left : left + w] = placement.coverage >= 128
    totals = masks.sum(axis=(1, 2))
    for number in range(len(masks)):
        masks[number] &= ~masks[number + 1 :].any(axis=0)
    return masks[:, pad : pad + size, pad : pad + size], totals


def scenes(num_scenes, classes=DEFAULT_CLASSES, size=SIZE):
    for number in range(num_scenes):
        yield draw_layout(np.random.default_rng([7, number]), size, classes)


def test_boxes_are_tight_on_visible_pixels_and_follow_the_two_thirds_rule():
    num_hidden = num_partly = 0
    for placements, boxes, names in scenes(120):
        expected, expected_names = [], []
        for mask, total, placement in zip(*visible_masks(placements, SIZE), placements):
            if mask.sum() * 3 < total:
                num_hidden += 1
                continue
            num_partly += mask.sum() < total
            rows, columns = np.nonzero(mask)
            expected.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
            expected_names.append(placement.name)
        np.testing.assert_array_equal(boxes, expected)
        assert names == expected_names
    assert num_partly > 30  # there is occlusion
    assert num_hidden > 0


def test_covered_by_70_percent_has_no_box():
    boxes, names = find_boxes([block("below", 10, 20, 10, 10), block("above", 5, 20, 20, 7)], 64)
    assert names == ["above"]
    np.testing.assert_array_equal(boxes, [(5, 20, 25, 27)])


def test_covered_by_60_percent_has_the_visible_extent():
    boxes, names = find_boxes([block("below", 10, 20, 10, 10), block("above", 5, 20, 20, 6)], 64)
    assert names == ["below", "above"]
    np.testing.assert_array_equal(boxes[0], (10, 26, 20, 30))


@pytest.mark.parametrize(("h", "expected"), [(6, ["below"]), (7, [])])
def test_exactly_two_thirds_hidden_still_has_a_box(h, expected):
    _, names = find_boxes([block("below", 0, 0, 9, 3), block("above", 0, 0, h, 3)], 64)
    assert names[:-1] == expected


@pytest.mark.parametrize(
    ("top", "left", "box"),
    [(-6, 8, (0, 8, 4, 18)), (-7, 8, None), (8, 60, (8, 60, 18, 64)), (8, 61, None), (80, 8, None)],
)
def test_the_border_hides_too(top, left, box):
    boxes, names = find_boxes([block("cut", top, left, 10, 10)], 64)
    assert boxes.tolist() == ([] if box is None else [list(box)])
    assert len(names) == len(boxes)


def test_a_pixel_belongs_to_the_last_object_that_covers_half_of_it():
    faint = Placement("faint", np.array([[127, 128, 255]], np.uint8), 1, 1)
    owners = map_owners([block("below", 0, 0, 3, 5), faint], 5)
    np.testing.assert_array_equal(owners[1], [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(owners[3], [-1] * 5)


@pytest.mark.parametrize("size", [64, 256])
def test_sides_of_drawn_objects_are_8_to_60_percent(size):
    fractions = []
    for placements, _, _ in scenes(120, size=size):
        for placement in placements:
            rows, columns = np.nonzero(placement.coverage >= 128)
            fractions += [np.ptp(rows) + 1, np.ptp(columns) + 1]
    fractions = np.array(fractions) / size
    assert fractions.min() >= 0.08
    assert fractions.max() <= 0.6
    assert np.mean(fractions < 0.16) > 0.1
    assert np.mean(fractions > 0.4) > 0.1


def test_every_scene_has_three_to_seven_objects_three_boxes_and_all_classes_occur():
    seen = set()
    counts = []
    for placements, boxes, names in scenes(80):
        assert 3 <= len(boxes) <= len(placements) <= 7
        counts.append(len(placements))
        seen.update(names)
    assert seen == set(DEFAULT_CLASSES)
    assert {3, 7} <= set(counts)


def test_a_scene_with_too_few_boxes_is_drawn_again(monkeypatch):
    drawn = iter([[block("a", 0, 0, 9, 9)] * 3, [block("a", 0, 20 * k, 9, 9) for k in range(3)]])
    monkeypatch.setattr(layout, "_draw_once", lambda *_: next(drawn))
    placements, boxes, _ = draw_layout(np.random.default_rng(0), 64, ("a",))
    assert [placement.left for placement in placements] == [0, 20, 40]
    assert len(boxes) == 3


def test_arrows_tilt_15_degrees_at_most_and_others_turn_all_round(monkeypatch):
    angles = {}
    posed = layout.pose

    def record(shape, angle, stretch):
        angles.setdefault(shape.max_tilt, []).append(angle)
        return posed(shape, angle, stretch)

    monkeypatch.setattr(layout, "pose", record)
    for _ in scenes(30, ("left_arrow", "right_arrow", "star")):
        pass
    arrows, stars = np.array(angles[math.radians(15)]), np.array(angles[math.pi])
    assert 0.2 < np.abs(arrows).max() <= math.radians(15)
    assert arrows.min() < 0 < arrows.max()
    assert stars.min() < -2.5 and stars.max() > 2.5
