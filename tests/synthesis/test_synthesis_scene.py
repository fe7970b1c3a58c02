import numpy as np
import pytest
from PIL import Image

from ssd_tf.synthesis import backgrounds, scene
from ssd_tf.synthesis.layout import Placement, draw_layout
from ssd_tf.synthesis.shapes import DEFAULT_CLASSES, SHAPES, draw_coverage, pose


def test_scene_has_the_boxes_of_its_layout():
    pixels, boxes, names = scene.draw_scene(np.random.default_rng(3), 128, DEFAULT_CLASSES)
    _, expected, expected_names = draw_layout(np.random.default_rng(3), 128, DEFAULT_CLASSES)
    assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(boxes, expected)
    assert boxes.dtype == np.float64
    assert names == expected_names


@pytest.mark.parametrize(("top", "left"), [(20, 30), (-15, 30), (80, -20)])
def test_painted_pixels_are_those_of_the_mask(top, left):
    coverage = draw_coverage(pose(SHAPES["star"], 0.3, 1.0), 25.0)
    image = Image.new("RGB", (100, 100), (120, 120, 120))
    scene.paint_object(np.random.default_rng(0), image, Placement("star", coverage, top, left))
    changed = np.abs(np.asarray(image, int) - 120).max(axis=2) > 40
    expected = np.zeros((300, 300), bool)
    expected[top + 100 : top + 100 + coverage.shape[0], left + 100 : left + 100 + coverage.shape[1]] = (
        coverage >= 128
    )
    expected = expected[100:200, 100:200]
    assert np.count_nonzero(expected) > 100
    assert np.count_nonzero(changed != expected) < 0.1 * np.count_nonzero(expected)


def test_objects_stand_out_from_what_they_cover():
    rng = np.random.default_rng(5)
    distances = []
    for _ in range(200):
        under = rng.uniform(0, 255, 3)
        colour = scene.choose_colour(rng, np.tile(under, (50, 1)).astype(np.uint8))
        distances.append(np.linalg.norm(colour - under))
    assert np.mean(np.array(distances) >= 100) > 0.95
    assert min(distances) > 60


def test_colour_over_two_backgrounds_differs_from_both():
    rng = np.random.default_rng(6)
    under = np.repeat(np.array([(20, 20, 20), (230, 60, 60)], np.uint8), 40, axis=0)
    for _ in range(50):
        colour = scene.choose_colour(rng, under)
        assert np.linalg.norm(under - colour, axis=1).min() >= 100


def test_colour_of_nothing_covered_is_a_colour():
    colour = scene.choose_colour(np.random.default_rng(0), np.empty((0, 3), np.uint8))
    assert colour.shape == (3,) and colour.min() >= 0 and colour.max() <= 255


def test_colours_do_not_give_the_class_away():
    brightness = {}
    for number in range(100):
        rng = np.random.default_rng([11, number])
        pixels, boxes, names = scene.draw_scene(rng, 96, ("square", "star"))
        for box, name in zip(boxes, names):
            top, left, bottom, right = box.astype(int)
            brightness.setdefault(name, []).append(pixels[(top + bottom) // 2, (left + right) // 2])
    means = [np.mean(values, axis=0) for values in brightness.values()]
    assert len(means) == 2
    assert np.abs(means[0] - means[1]).max() < 25  # levels; the standard error is about 6


@pytest.mark.parametrize("texture", backgrounds.TEXTURES)
def test_textures_fill_zero_to_one_and_vary(texture):
    for number in range(10):
        field = texture(np.random.default_rng(number), 80)
        assert field.shape == (80, 80) and field.dtype == np.float32
        assert field.min() >= 0 and field.max() <= 1
        assert np.ptp(field) > 0.5


def test_texture_is_weaker_than_the_contrast_of_objects():
    for number in range(30):
        plain = np.asarray(backgrounds.draw_background(np.random.default_rng(number), 96), float)
        assert 1 < np.linalg.norm(plain.std(axis=(0, 1))) < 80


def test_project_measures_pixels_along_the_direction():
    np.testing.assert_allclose(backgrounds.project(0.0, (2, 3)), [[0, 1, 2], [0, 1, 2]], atol=1e-6)
    np.testing.assert_allclose(backgrounds.project(np.pi / 2, (2, 3)), [[0, 0, 0], [1, 1, 1]], atol=1e-6)


def test_planes_become_clipped_pixels():
    planes = np.array([[[-5.0, 300.0]], [[10.0, 20.0]], [[30.5, 40.0]]], np.float32)
    np.testing.assert_array_equal(backgrounds.merge_planes(planes), [[(0, 10, 30), (255, 20, 40)]])


def test_clutter_changes_few_pixels():
    for number in range(20):
        image = Image.new("RGB", (200, 200), (90, 90, 90))
        backgrounds.draw_clutter(np.random.default_rng(number), image)
        changed = np.any(np.asarray(image) != 90, axis=2).mean()
        assert changed < 0.12
