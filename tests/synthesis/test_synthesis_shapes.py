import math

import numpy as np
import pytest

from ssd_tf.synthesis import shapes


def draw(name, side, angle=0.0, stretch=1.0):
    posed = shapes.pose(shapes.SHAPES[name], angle, stretch)
    return shapes.draw_coverage(posed, side / shapes.extent(posed).max())


def solid(name, side, angle=0.0):
    mask = draw(name, side, angle) >= shapes.SOLID
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("circle", math.pi / 4),
        ("square", 1.0),
        ("triangle", 0.5),
        ("cross", 1 - 0.7**2),
        ("ring", math.pi / 4 * (1 - 0.55**2)),
    ],
)
def test_area_of_the_mask_is_the_formula(name, fraction):
    mask = solid(name, 200)
    assert mask.mean() == pytest.approx(fraction, abs=0.015)


def test_holes_are_empty_and_centres_are_full():
    for name in shapes.SHAPES:
        mask = solid(name, 100)
        h, w = mask.shape
        assert mask[h // 2, w // 2] == (name != "ring"), name


def test_pose_turns_clockwise_and_stretches_upwards():
    upright = shapes.pose(shapes.SHAPES["square"], 0.0, 1.21)
    np.testing.assert_allclose(shapes.extent(upright), (2.2, 2 / 1.1))
    turned = solid("right_arrow", 120, math.pi / 2)  # now it points downwards: narrow at the bottom
    assert turned[-5].sum() < turned[60].sum()
    np.testing.assert_array_equal(turned.sum(axis=1) > 0, True)
    assert turned.shape[0] > turned.shape[1]


def test_edges_are_antialiased_at_every_size():
    for side in (20, 150, 400):
        coverage = draw("square", side, 0.4)
        assert len(np.unique(coverage)) > 3
        assert coverage.max() == 255
        assert not coverage[[0, -1]].any() and not coverage[:, [0, -1]].any()


def test_arrows_mirror_each_other_and_point_where_they_say():
    left, right = solid("left_arrow", 90), solid("right_arrow", 90)
    assert overlap(left, right[:, ::-1]) > 0.95
    assert overlap(left, right) < 0.75
    assert left[:, :10].sum() < left[:, -10:].sum()  # the tip is thinner than the tail
    assert shapes.SHAPES["left_arrow"].max_tilt == shapes.SHAPES["right_arrow"].max_tilt == math.radians(15)


@pytest.mark.parametrize("stretch", [0.85, 1.0, 1.18])
@pytest.mark.parametrize("angle", [-15, -4, 0, 9, 15])
def test_a_mirrored_arrow_is_an_arrow_of_the_other_class_in_every_pose(angle, stretch):
    tilt = math.radians(angle)
    left = shapes.pose(shapes.SHAPES["left_arrow"], tilt, stretch)
    other = shapes.pose(shapes.SHAPES["right_arrow"], -tilt, stretch)
    mirrored = np.stack([left.outline[:, 0], shapes.extent(left)[1] - left.outline[:, 1]], axis=1)
    np.testing.assert_allclose(mirrored, other.outline, atol=1e-12)
    masks = [shapes.draw_coverage(shape, 40.0) >= shapes.SOLID for shape in (left, other)]
    assert overlap(masks[0][:, ::-1], masks[1]) > 0.95
    assert overlap(masks[0][:, ::-1], masks[0]) < 0.75


def test_default_classes_are_eight_without_the_arrows():
    assert len(set(shapes.DEFAULT_CLASSES)) == 8
    assert set(shapes.SHAPES) - set(shapes.DEFAULT_CLASSES) == {"left_arrow", "right_arrow"}


def overlap(first, second, side=64):
    """IoU of two masks, each stretched over the same square."""
    grids = [
        mask[np.arange(side)[:, None] * mask.shape[0] // side, np.arange(side) * mask.shape[1] // side]
        for mask in (first, second)
    ]
    return np.count_nonzero(grids[0] & grids[1]) / np.count_nonzero(grids[0] | grids[1])


def test_default_classes_differ_at_every_rotation():
    turned = {
        name: [solid(name, 64, math.radians(angle)) for angle in range(0, 360, 30)]
        for name in shapes.DEFAULT_CLASSES
    }
    for first in shapes.DEFAULT_CLASSES:
        for second in shapes.DEFAULT_CLASSES:
            if first < second:
                closest = max(overlap(turned[first][0], mask) for mask in turned[second])
                assert closest < 0.9, (first, second)
