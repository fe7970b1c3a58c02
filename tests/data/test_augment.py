"""Augmentation: pixels and boxes move together, the sampler keeps its promises, every part can be switched off."""

import functools
import io
from dataclasses import replace

import numpy as np
import painted_images
import pytest
import tensorflow as tf
from painted_images import check_painted, make_sample, png
from PIL import Image

from ssd_tf import images
from ssd_tf.boxes import ops
from ssd_tf.config import AugmentConfig
from ssd_tf.data import augment

SIZE = (160, 240)  # of the network input: not square, so that a mix-up of the axes shows
HEIGHT, WIDTH = 300, 200  # of the picture
LYING = {1: (20, 30, 90, 110), 2: (110, 140, 180, 280), 3: (115, 60, 175, 120)}
PAINTED = {1: (30, 20, 110, 90), 2: (140, 110, 280, 180), 3: (60, 115, 120, 175)}  # class: yxyx in pixels
COLORS_OFF = AugmentConfig(color_probability=0.0)
OFF = AugmentConfig(color_probability=0.0, expand_probability=0.0, crop_probability=0.0, flip_probability=0.0)
NOTHING = np.zeros((0, 4), np.float32)


SAMPLE = painted_images.painted_sample(HEIGHT, WIDTH, PAINTED)
PICTURE = np.array(Image.open(io.BytesIO(SAMPLE["image"].numpy())))
NO_IGNORE = tf.zeros([3], tf.bool)


def run(sample=SAMPLE, settings=COLORS_OFF, seed=0, size=SIZE, ignore=None, rule="bilinear"):
    ignore = tf.zeros(tf.shape(sample["classes"]), tf.bool) if ignore is None else tf.constant(ignore)
    key = tf.constant([seed, 17], tf.int64)
    return [part.numpy() for part in augment.augment(sample, ignore, key, size, settings, rule)]


@functools.cache
def traced_draw(settings):
    """draw_window as a graph: hundreds of draws are made."""
    numbers = tf.TensorSpec([None], tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.bool), *[numbers] * 3])
    def traced(boxes, ignore, expand, crop, pick):
        return augment.draw_window(boxes, ignore, settings, expand, crop, pick)

    return traced


def draw(seed, settings, boxes=SAMPLE["boxes"], ignore=None):
    """draw_window with uniform numbers of a NumPy generator."""
    generator = np.random.default_rng(seed)
    ignore = np.zeros(len(boxes), bool) if ignore is None else ignore
    count = (len(settings.crop_min_iou) + 1) * settings.crop_trials * 4
    expand, crop, pick = (tf.constant(generator.uniform(size=n), tf.float32) for n in (4, count, 2))
    return traced_draw(settings)(tf.constant(boxes), tf.constant(ignore), expand, crop, pick).numpy()


def draw_bounded(seed, bound, boxes, free_window):
    """The crop that meets `bound`, or the whole image; the window without a bound is given, as uniform numbers."""
    settings = replace(OFF, crop_probability=1.0, crop_min_iou=(bound,))
    crop = np.random.default_rng(seed).uniform(size=(2, 50, 4))
    crop[1] = free_window
    last_candidate = tf.constant([0.9999, 0.0])
    numbers = tf.zeros([4]) + 0.99, tf.constant(crop.reshape(-1), tf.float32), last_candidate
    window = traced_draw(settings)(tf.constant(boxes), tf.zeros([len(boxes)], tf.bool), *numbers)
    return window.numpy()


# --- pixels and boxes move together -------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_painted_corners_land_on_the_moved_corners(seed):
    image, boxes, classes, _ = run(seed=seed)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    assert len(boxes) >= 1
    check_painted(image, boxes, classes)


@pytest.mark.parametrize("part", ["expand", "crop", "flip"])
def test_painted_corners_with_each_part_alone(part):
    settings = replace(OFF, **{f"{part}_probability": 1.0})
    for seed in range(8):
        image, boxes, classes, _ = run(settings=settings, seed=seed)
        check_painted(image, boxes, classes)


@pytest.mark.parametrize("seed", range(20))
def test_place_render_and_move_boxes_agree(seed):
    window = draw(seed, AugmentConfig())
    placement = augment.place(window, HEIGHT, WIDTH, SIZE)
    image = augment.render(SAMPLE["image"], placement, SIZE, "bilinear", None, None).numpy()
    boxes, kept = augment.move_boxes(SAMPLE, NO_IGNORE, placement, SIZE)
    check_painted(image, boxes.numpy(), np.flatnonzero(kept) + 1)


TURNED = replace(OFF, rotate_probability=1.0)
ALL = replace(COLORS_OFF, vertical_flip_probability=0.5, rotate_probability=0.5, jitter_probability=0.3)
STYLES = {
    "flip_vertically": replace(OFF, vertical_flip_probability=1.0),
    "turn": TURNED,
    "jitter": replace(OFF, jitter_probability=1.0),
    "turn_and_jitter": replace(TURNED, jitter_probability=1.0),
    "turn_and_flips": replace(TURNED, flip_probability=0.5, vertical_flip_probability=0.5),
    "turn_and_crop": replace(COLORS_OFF, rotate_probability=1.0),
    "all": ALL,
}


@pytest.mark.parametrize("rule", ["bilinear", "bilinear_tf1"])
@pytest.mark.parametrize("style", STYLES)
def test_painted_corners_however_the_picture_is_turned(style, rule):
    found = 0
    for seed in range(12):
        shape = (HEIGHT, WIDTH) if seed % 2 else (WIDTH, HEIGHT)
        sample = painted_images.painted_sample(*shape, PAINTED if seed % 2 else LYING)
        size = (SIZE, SIZE[::-1], (160, 160))[seed % 3]
        image, boxes, classes, _ = run(sample, STYLES[style], seed, size, rule=rule)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        check_painted(image, boxes, classes)
        found += len(boxes)
    assert found == 36 or (found > 12 and style not in ("flip_vertically", "turn", "turn_and_flips"))


@pytest.mark.parametrize("style", ["default", *STYLES])
def test_inside_a_data_set_map(style):
    settings = {"default": COLORS_OFF, **STYLES}[style]

    def move(seed):
        return augment.augment(SAMPLE, NO_IGNORE, tf.stack([seed, 17]), SIZE, settings, "bilinear")

    dataset = tf.data.Dataset.range(8).map(move)
    assert dataset.element_spec[0].shape == (*SIZE, 3)
    for seed, mapped in enumerate(dataset.as_numpy_iterator()):
        check_painted(mapped[0], mapped[1], mapped[2])
        eager = run(settings=settings, seed=seed)
        np.testing.assert_allclose(mapped[1], eager[1], atol=1e-6)
        np.testing.assert_array_equal(mapped[2], eager[2])
        assert np.abs(mapped[0].astype(int) - eager[0]).max() <= 1


def test_objects_are_kept_while_their_centre_is_in_view():
    """Read from pixels alone: a view, being a rectangle, holds a centre where it shows all four quarters."""
    styles = [COLORS_OFF, replace(OFF, jitter_probability=1.0, jitter_scale=(0.8, 2.0)), ALL]
    kept = []
    for seed in range(60):
        sample = painted_images.quartered_sample(HEIGHT, WIDTH, [(20, 10, 120, 90), (150, 80, 300, 200)][seed % 2])
        image, boxes, _, _ = run(sample, styles[seed % 3], seed)
        assert len(boxes) == painted_images.shows_centre(image), seed
        kept.append(len(boxes))
    assert 5 < sum(kept) < 55


def test_geometry_under_xla_equals_eager():
    generator = np.random.default_rng(0)
    settings = AugmentConfig(crop_min_iou=(0.3, 0.7), crop_trials=8)

    def geometry(expand, crop, pick):
        window = augment.draw_window(SAMPLE["boxes"], NO_IGNORE, settings, expand, crop, pick)
        placement = augment.place(window, HEIGHT, WIDTH, SIZE)
        boxes, kept = augment.move_boxes(SAMPLE, NO_IGNORE, placement, SIZE)
        return window, placement.source, placement.target, boxes, kept

    compiled = tf.function(geometry, jit_compile=True)
    for _ in range(10):
        uniforms = [tf.constant(generator.uniform(size=n), tf.float32) for n in (4, 3 * 8 * 4, 2)]
        window, source, target, boxes, kept = compiled(*uniforms)
        eager = geometry(*uniforms)
        np.testing.assert_allclose(window, eager[0], atol=1e-5)
        for name, one, other in zip(("source", "target", "kept"), (source, target, kept), (*eager[1:3], eager[4])):
            np.testing.assert_array_equal(one, other, err_msg=name)
        np.testing.assert_allclose(boxes, eager[3], atol=1e-5)


def test_colour_map_and_flip_under_xla_equal_eager():
    uniforms = tf.constant(np.random.default_rng(1).uniform(size=8), tf.float32)
    settings = AugmentConfig(color_probability=1.0)
    eager = augment.draw_color(uniforms, settings)
    compiled = tf.function(lambda u: augment.draw_color(u, settings), jit_compile=True)(uniforms)
    np.testing.assert_allclose(compiled[0], eager[0], atol=1e-5)
    np.testing.assert_allclose(compiled[1], eager[1], atol=1e-4)
    flipped = tf.function(lambda b: ops.flip(b, augment.tnp), jit_compile=True)(SAMPLE["boxes"])
    np.testing.assert_allclose(flipped, ops.flip(SAMPLE["boxes"].numpy()), atol=1e-6)


# --- the window -----------------------------------------------------------------------------------


def test_without_expanding_and_cropping_the_window_is_the_image():
    for seed in range(5):
        np.testing.assert_array_equal(draw(seed, OFF), [0, 0, 1, 1])


def test_expanded_canvas_holds_the_image_and_has_its_aspect():
    settings = replace(OFF, expand_probability=1.0, expand_max=4.0)
    windows = np.array([draw(seed, settings) for seed in range(200)])
    sides = windows[:, 2:] - windows[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1e-5)
    assert (windows[:, :2] <= 1e-6).all() and (windows[:, 2:] >= 1 - 1e-6).all()
    assert 1.0 <= sides.min() < 1.2 and 3.8 < sides.max() <= 4.0  # U(1, 4)
    assert abs(sides[:, 0].mean() - 2.5) < 0.25
    free = -windows[:, :2] / (sides - 1)  # place of the image: uniform, its axes independent
    assert (abs(free.mean(0) - 0.5) < 0.08).all() and abs(np.corrcoef(free.T)[0, 1]) < 0.25


def test_expand_happens_as_often_as_asked():
    settings = replace(OFF, expand_probability=0.3)
    expanded = [not np.array_equal(draw(seed, settings), [0, 0, 1, 1]) for seed in range(300)]
    assert 60 < sum(expanded) < 120


def test_crops_lie_inside_the_image_within_scale_and_aspect():
    settings = replace(OFF, crop_probability=1.0, crop_min_scale=0.4)
    windows = np.array([draw(seed, settings) for seed in range(150)])
    assert windows.min() >= 0 and windows.max() <= 1 + 1e-6
    sides = windows[:, 2:] - windows[:, :2]
    scale = np.sqrt(sides.prod(1))
    aspect = sides[:, 1] / sides[:, 0]
    assert scale.min() >= 0.4 - 1e-5
    assert aspect.min() >= 0.5 - 1e-4 and aspect.max() <= 2 + 1e-4
    assert aspect.min() < 0.7 and aspect.max() > 1.4
    whole = (windows == [0, 0, 1, 1]).all(1)
    assert 5 < whole.sum() < 60  # one candidate of at most seven


BOTTOM_RIGHT = [0.0, 1 / 3, 0.9999, 0.9999]  # a square of .3
MIDDLE = [0.0, 1 / 3, 0.5, 0.5]


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_bound_of_the_chosen_crop_holds(bound):
    box = np.array([[0.1, 0.15, 0.85, 0.9]], np.float32)
    windows = np.array([draw_bounded(seed, bound, box, BOTTOM_RIGHT) for seed in range(80)])
    bounded = windows[(windows != [0, 0, 1, 1]).any(1)]
    assert len(bounded) >= (3 if bound == 0.9 else 75)  # few of the random windows come so close
    overlaps = ops.iou(bounded, box)[:, 0]
    assert overlaps.min() >= bound - 1e-5
    assert overlaps.min() < bound + 0.1  # it is this bound that decided


def test_a_bound_that_no_window_can_meet_rejects_them_all():
    # Bug one: a condition that never rejects. The smallest window has IoU .02 with this box.
    box = np.array([[0.4, 0.4, 0.44, 0.44]], np.float32)
    for seed in range(40):
        np.testing.assert_array_equal(draw_bounded(seed, 0.1, box, BOTTOM_RIGHT), [0, 0, 1, 1])


def test_one_box_that_meets_the_bound_is_enough():
    # Bug two: all boxes must meet it. No window overlaps both of these by .5.
    boxes = np.array([[0.0, 0.0, 0.45, 0.45], [0.55, 0.55, 1.0, 1.0]], np.float32)
    windows = np.array([draw_bounded(seed, 0.5, boxes, MIDDLE) for seed in range(40)])
    overlaps = ops.iou(windows[(windows != [0, 0, 1, 1]).any(1)], boxes)
    assert len(overlaps) > 10
    assert (overlaps.max(1) >= 0.5 - 1e-5).all() and (overlaps.min(1) < 0.5).all()


def test_without_boxes_the_window_is_the_whole_canvas():
    # Bug three: a crash or an endless loop.
    settings = replace(OFF, crop_probability=1.0)
    for seed in range(10):
        np.testing.assert_array_equal(draw(seed, settings, NOTHING), [0, 0, 1, 1])
        expanded = replace(settings, expand_probability=1.0)
        np.testing.assert_allclose(
            draw(seed, expanded, NOTHING), draw(seed, replace(expanded, crop_probability=0.0), NOTHING), atol=1e-6
        )


def test_ignore_boxes_steer_no_crop():
    settings = replace(OFF, crop_probability=1.0)
    for seed in range(10):
        np.testing.assert_array_equal(draw(seed, settings, ignore=[True] * 3), [0, 0, 1, 1])


def test_crops_are_taken_as_often_as_asked():
    settings = replace(OFF, crop_probability=0.5, crop_min_iou=())
    cropped = [not np.array_equal(draw(seed, settings), [0, 0, 1, 1]) for seed in range(200)]
    assert 30 < sum(cropped) < 70  # half of the times one of two candidates, the other is the whole image


def test_crops_without_bounds_still_keep_an_object():
    settings = replace(OFF, crop_probability=1.0, crop_min_iou=())
    for seed in range(40):
        window = draw(seed, settings)
        centres = ops.centres(SAMPLE["boxes"].numpy())
        assert ((centres > window[:2]) & (centres < window[2:])).all(1).any()


# --- boxes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_kept_boxes_are_those_whose_centre_is_inside(seed):
    placement = augment.place(draw(seed, AugmentConfig()), HEIGHT, WIDTH, SIZE)
    boxes, kept = augment.move_boxes(SAMPLE, NO_IGNORE, placement, SIZE)
    top, left, height, width = (float(value) for value in placement.source)
    centres = ops.centres(np.array(list(PAINTED.values())))
    # Where the image was expanded, the source is the visible part of it and holds every visible centre.
    inside = ((centres > [top, left]) & (centres < [top + height, left + width])).all(1)
    np.testing.assert_array_equal(kept, inside)
    assert boxes.shape == (inside.sum(), 4)
    assert boxes.numpy().min(initial=0) >= 0 and boxes.numpy().max(initial=1) <= 1
    assert (ops.area(boxes.numpy()) > 0).all()


def test_boxes_move_by_hand():
    sample = make_sample(PICTURE, [[10, 20, 110, 60], [0, 0, 20, 300], [200, 150, 300, 200]])
    placement = augment.Placement(tf.constant([50, 20, 100, 80]), tf.constant([16, 24, 80, 160]))
    boxes, kept = augment.move_boxes(sample, NO_IGNORE, placement, SIZE)
    # y: (p - 50) * .8 + 16 over 160; x: (p - 20) * 2 + 24 over 240
    np.testing.assert_array_equal(kept, [True, False, False])
    np.testing.assert_allclose(boxes, [[0, 24 / 240, 64 / 160, 104 / 240]], atol=1e-6)


def test_ignore_boxes_stay_while_any_part_is_visible():
    sample = make_sample(PICTURE, [[0, 0, 100, 100], [200, 100, 300, 200], [0, 0, 100, 100]])
    placement = augment.place(tf.constant([0.3, 0.0, 0.6, 1.0]), HEIGHT, WIDTH, SIZE)  # rows 90..180
    boxes, kept = augment.move_boxes(sample, tf.constant([True, True, False]), placement, SIZE)
    np.testing.assert_array_equal(kept, [True, False, False])
    np.testing.assert_allclose(boxes, [[0, 0, 1 / 9, 0.5]], atol=1e-6)


def test_ignore_boxes_stay_where_the_picture_is_turned():
    # Jitter of this scale shows a quarter of the picture, at times the lower right one alone.
    settings = replace(STYLES["all"], crop_probability=0.0, jitter_probability=1.0, jitter_scale=(2.0, 2.0))
    stayed = 0
    for seed in range(25):
        image, boxes, _, ignore = run(settings=settings, seed=seed, ignore=[False, True, False])
        extent = painted_images.painted_extent(image, painted_images.COLORS[1])
        assert ignore.any() == (extent is not None), seed
        if extent is not None:
            np.testing.assert_allclose(boxes[ignore][0] * np.tile(SIZE, 2), extent, atol=1.5)
            sides = (extent[2:] - extent[:2]) / SIZE
            stayed += sides.min() < 0.25  # less than half of it: no object would be kept
    assert stayed > 2


def test_classes_and_flags_stay_with_their_boxes():
    for seed in range(20):
        _, boxes, classes, ignore = run(SAMPLE, ALL if seed % 2 else COLORS_OFF, seed, ignore=[False, True, False])
        assert len(boxes) == len(classes) == len(ignore)
        np.testing.assert_array_equal(ignore, classes == 2)


def test_an_image_without_boxes_passes_all_parts():
    sample = make_sample(PICTURE, NOTHING)
    for seed in range(10):
        image, boxes, classes, ignore = run(sample, ALL if seed % 2 else AugmentConfig(), seed)
        assert image.shape == (*SIZE, 3)
        assert (boxes.shape, classes.shape, ignore.shape) == ((0, 4), (0,), (0,))


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["bilinear", "bilinear_tf1"])
def test_all_parts_off_is_a_plain_resize(rule):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    sample = make_sample(pixels, [[9, 7, 45, 35]])
    image, boxes, classes, ignore = run(sample, OFF, 5, rule=rule)
    np.testing.assert_array_equal(image, images.to_uint8(images.resize(tf.constant(pixels), SIZE, rule)))
    np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.5, 0.5]], atol=1e-6)
    assert (classes.tolist(), ignore.tolist()) == ([1], [False])


def test_flip_alone_mirrors_pixels_and_boxes_and_is_an_involution():
    always, never = replace(OFF, flip_probability=1.0), OFF
    plain, boxes, _, _ = run(settings=never, size=(HEIGHT, WIDTH))
    mirrored, moved, _, _ = run(settings=always, size=(HEIGHT, WIDTH))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    np.testing.assert_allclose(moved, boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, 1, 0, 1], atol=1e-6)
    again = make_sample(mirrored, moved * np.array([HEIGHT, WIDTH] * 2))
    back, original, _, _ = run(again, always, size=(HEIGHT, WIDTH))
    np.testing.assert_array_equal(back, PICTURE)
    np.testing.assert_allclose(original, SAMPLE["boxes"], atol=1e-6)


def test_vertical_flip_alone_mirrors_top_to_bottom():
    plain, boxes, _, _ = run(settings=OFF, size=(HEIGHT, WIDTH))
    mirrored, moved, _, _ = run(settings=STYLES["flip_vertically"], size=(HEIGHT, WIDTH))
    np.testing.assert_array_equal(mirrored, plain[::-1])
    np.testing.assert_allclose(moved, boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0], atol=1e-6)


def poses(flip, flip_vertically, turn, side):
    """The pose of one vector of uniform numbers, where every probability is a half."""
    settings = AugmentConfig(flip_probability=0.5, vertical_flip_probability=0.5, rotate_probability=0.5)
    return augment.draw_pose(tf.constant([flip, flip_vertically, turn, side], tf.float32), settings)


POSED = {  # uniform numbers: what they do
    (0.6, 0.6, 0.6, 0.3): lambda p: p,
    (0.6, 0.6, 0.6, 0.8): lambda p: p,
    (0.4, 0.6, 0.6, 0.3): lambda p: p[:, ::-1],
    (0.6, 0.4, 0.6, 0.3): lambda p: p[::-1],
    (0.4, 0.4, 0.6, 0.3): lambda p: np.rot90(p, 2),
    (0.6, 0.6, 0.4, 0.3): lambda p: np.rot90(p, 1),
    (0.6, 0.6, 0.4, 0.8): lambda p: np.rot90(p, -1),
    (0.4, 0.6, 0.4, 0.3): lambda p: np.rot90(p, 1)[:, ::-1],
    (0.6, 0.4, 0.4, 0.3): lambda p: np.rot90(p, 1)[::-1],
    (0.4, 0.4, 0.4, 0.8): lambda p: np.rot90(np.rot90(p, -1), 2),
}


@pytest.mark.parametrize("uniforms", POSED, ids=str)
def test_pictures_are_turned_to_either_side_and_mirrored(uniforms):
    pixels, pose = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), poses(*uniforms)
    expected = POSED[uniforms](pixels)
    marked = np.zeros((4, 6), np.uint8)
    marked[1:3, 0:4] = 1
    rows, columns = np.nonzero(POSED[uniforms](marked))
    corners = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    image, boxes = augment.turn_over(tf.constant(pixels), tf.constant([[1 / 4, 0, 3 / 4, 4 / 6]]), pose)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_allclose(boxes, [corners / np.tile(expected.shape[:2], 2)], atol=1e-6)
    assert augment.size_before(expected.shape[:2], pose).numpy().tolist() == [4, 6]


def test_turns_alone_are_whole_pictures_turned():
    sides = set()
    for seed in range(8):
        image, boxes, _, _ = run(settings=TURNED, seed=seed, size=(WIDTH, HEIGHT))
        turned = {side: np.rot90(PICTURE, side) for side in (1, -1)}
        sides |= {side for side in turned if np.array_equal(image, turned[side])}
        assert any(np.array_equal(image, picture) for picture in turned.values())
        assert len(boxes) == 3
    assert sides == {1, -1}


def test_parts_happen_as_often_as_asked():
    """Told by the order of a picture's four pixels: each of the eight poses has its own."""
    settings = replace(OFF, flip_probability=0.25, vertical_flip_probability=0.2, rotate_probability=0.4)
    # Jitter of this scale shows one pixel alone.
    settings = replace(settings, jitter_probability=0.3, jitter_scale=(2.0, 2.0), crop_trials=1)
    pixels = np.repeat(np.array([[[10], [60]], [[110], [160]]], np.uint8), 3, axis=2)
    sample, no_ignore = make_sample(pixels, NOTHING), tf.zeros([0], tf.bool)

    def order(seed):
        drawn = augment.augment(sample, no_ignore, tf.stack([seed, 17]), (2, 2), settings, "bilinear")
        return tf.reshape(drawn[0][..., 0], [4])

    orders = [tuple(values) for values in tf.data.Dataset.range(1000).map(order).as_numpy_iterator()]
    jittered = [values for values in orders if len({*values}) == 1]
    posed = [values for values in orders if len({*values}) == 4]
    assert len(posed) + len(jittered) == 1000 and abs(len(jittered) - 300) < 60
    assert len({*jittered}) == 4 and len({*posed}) == 8
    plain, across, down, half = (10, 60, 110, 160), (60, 10, 160, 110), (110, 160, 10, 60), (160, 110, 60, 10)
    left, right = (60, 160, 10, 110), (110, 10, 160, 60)
    # Turned to one side and mirrored both ways is turned to the other: .4 * (.5 * .75 * .8 + .5 * .25 * .2).
    shares = {plain: 0.36, across: 0.12, down: 0.09, half: 0.03, left: 0.13, right: 0.13}
    for values, expected in shares.items():
        assert abs(posed.count(values) / len(posed) - expected) < 0.04


def test_jittered_windows_by_hand():
    settings = AugmentConfig(jitter_scale=(0.5, 3.5))
    half_size = augment.jittered_window(tf.constant([0.0, 0.25, 0.75]), tf.ones([2]), settings)
    np.testing.assert_allclose(half_size, [-0.25, -0.75, 1.75, 1.25], atol=1e-6)
    double = augment.jittered_window(tf.constant([0.5, 0.0, 0.5]), tf.constant([0.4, 2.5]), settings)
    np.testing.assert_allclose(double, [0.0, -0.125, 0.2, 1.125], atol=1e-6)


def test_jittered_pictures_are_scaled_within_the_range_and_keep_their_shape():
    settings = replace(OFF, jitter_probability=1.0, jitter_scale=(0.4, 1.6))
    alone = np.array([80 / HEIGHT * SIZE[0], 60 / WIDTH * SIZE[1]])
    sample = painted_images.painted_sample(HEIGHT, WIDTH, {1: (110, 70, 190, 130)})
    scales = []
    for seed in range(40):
        extent = painted_images.painted_extent(run(sample, settings, seed)[0], painted_images.COLORS[0])
        scales.append(
            (extent[2:] - extent[:2]) / alone if extent[:2].all() and (extent[2:] < SIZE).all() else [1, 1]
        )
    scales = np.array(scales)
    np.testing.assert_allclose(scales[:, 0], scales[:, 1], atol=2 / alone.min())
    assert 0.35 < scales.min() < 0.55 and 1.4 < scales.max() < 1.65


@pytest.mark.parametrize("size", [(200, 200), (150, 240)])
def test_jittered_pictures_are_squeezed_as_unturned_ones_are(size):
    settings = replace(TURNED, jitter_probability=1.0, jitter_scale=(0.7, 1.0))
    sample = painted_images.painted_sample(400, 200, {1: (160, 60, 240, 140)})  # a square
    plain = painted_images.painted_extent(run(sample, OFF, size=size)[0], painted_images.COLORS[0])
    height, width = plain[2:] - plain[:2]
    assert (height, width) == (size[0] / 5, size[1] / 2.5)
    whole = 0
    for seed in range(20):
        extent = painted_images.painted_extent(run(sample, settings, seed, size)[0], painted_images.COLORS[0])
        if extent is not None and extent[:2].all() and (extent[2:] < size).all():
            scale = (extent[2:] - extent[:2]) / (height, width)
            assert abs(scale[0] - scale[1]) < 2 / height and scale.min() > 0.65 and scale.max() < 1.05
            whole += 1
    assert whole > 8


def test_the_canvas_is_filled_with_the_mean_colour():
    settings = replace(OFF, expand_probability=1.0)
    sample = make_sample(np.full((40, 40, 3), 250, np.uint8), [[0, 0, 40, 40]])
    for seed in range(10):
        image, boxes, _, _ = run(sample, settings, seed, size=(80, 80))
        top, left, bottom, right = np.round(boxes[0] * 80).astype(int)
        outside = np.ones((80, 80), bool)
        outside[top:bottom, left:right] = False
        assert (image[outside] == images.RGB_MEAN).all()
        assert (image[~outside] == 250).all()
        assert outside.any()


def test_the_fill_keeps_its_colour_when_colours_change():
    settings = AugmentConfig(color_probability=1.0, expand_probability=1.0, expand_max=4.0, crop_probability=0.0)
    sample = make_sample(np.full((40, 40, 3), 250, np.uint8), [[0, 0, 40, 40]])
    image, boxes, _, _ = run(sample, settings, 3, size=(80, 80))
    assert boxes[0, 0] > 0.05 or boxes[0, 2] < 0.95
    corner = image[0, 0] if boxes[0, 0] > 0.05 else image[-1, -1]
    np.testing.assert_array_equal(corner, images.RGB_MEAN)


def test_placements_have_at_least_one_pixel():
    sliver = augment.place(tf.constant([0.5, 0.5, 0.5001, 0.5001]), 30, 20, (64, 64))
    assert sliver.source.numpy().tolist()[2:] == [1, 1]
    tiny = augment.place(tf.constant([-500.0, -500.0, 501.0, 501.0]), 30, 20, (64, 64))
    assert tiny.target.numpy().tolist()[2:] == [1, 1]
    edge = augment.place(tf.constant([0.999, 0.0, 1.0, 1.0]), 30, 20, (64, 64))
    assert edge.source.numpy().tolist() == [29, 0, 1, 20]


def test_images_of_one_row_or_pixel_work():
    for shape in ((1, 1, 3), (1, 200, 3), (500, 1, 3)):
        pixels = np.full(shape, 77, np.uint8)
        sample = make_sample(pixels, [[0, 0, shape[0], shape[1]]])
        for seed in range(10):
            image, boxes, _, _ = run(sample, ALL if seed % 2 else COLORS_OFF, seed)
            assert np.isfinite(boxes).all()
            assert (image == 77).all(-1).any()


# --- colours --------------------------------------------------------------------------------------


def color(signed, **widths):
    """The colour map of draws in -1..1 (brightness, contrast, saturation, hue), all of them on."""
    settings = AugmentConfig(**{"color_probability": 1.0, **widths})
    uniforms = np.concatenate([np.zeros(4), (np.asarray(signed) + 1) / 2])
    return [part.numpy() for part in augment.draw_color(tf.constant(uniforms, tf.float32), settings)]


PIXELS = np.array([[250, 10, 30], [0, 200, 90], [128, 128, 128], [255, 255, 255], [5, 60, 255]], np.float32)


def test_neutral_draws_change_nothing():
    matrix, shift = color([0, 0, 0, 0])
    np.testing.assert_allclose(PIXELS @ matrix + shift, PIXELS, atol=1e-3)


def test_brightness_adds():
    matrix, shift = color([0.5, 0, 0, 0], brightness=32.0)
    np.testing.assert_allclose(PIXELS @ matrix + shift, PIXELS + 16, atol=1e-2)


def test_contrast_multiplies():
    matrix, shift = color([0, -0.5, 0, 0], contrast=0.5)
    np.testing.assert_allclose(PIXELS @ matrix + shift, PIXELS * 0.75, atol=1e-2)


@pytest.mark.parametrize("signed", [[0, 0, 1, 0], [0, 0, -1, 0], [0, 0, 0, 1], [0, 0, 0, -1], [0, 0, 0.3, 0.6]])
def test_grey_stays_grey_under_saturation_and_hue(signed):
    matrix, shift = color(signed)
    grey = np.repeat(np.array([[0], [60], [255]], np.float32), 3, axis=1)
    np.testing.assert_allclose(grey @ matrix + shift, grey, atol=0.5)  # YIQ's rounded coefficients
    assert np.abs(PIXELS @ matrix + shift - PIXELS).max() > 10


def test_no_saturation_is_the_grey_of_the_luma():
    matrix, shift = color([0, 0, -1, 0], saturation=1.0)
    luma = PIXELS @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(PIXELS @ matrix + shift, np.repeat(luma[:, None], 3, 1), atol=0.5)


def test_hue_turns_towards_the_neighbouring_colour_and_keeps_luma():
    red = np.array([[200, 40, 40]], np.float32)
    turned = [(red @ m + s)[0] for m, s in (color([0, 0, 0, sign], hue=36.0) for sign in (-1, 1))]
    assert (turned[0][1] > turned[0][2] + 20) != (
        turned[1][1] > turned[1][2] + 20
    )  # one to yellow, one to magenta
    weights = np.array([0.299, 0.587, 0.114])
    for pixel in turned:
        assert pixel @ weights == pytest.approx(red[0] @ weights, abs=0.5)


def test_hue_and_its_opposite_cancel():
    (one, _), (other, _) = color([0, 0, 0, 0.7]), color([0, 0, 0, -0.7])
    np.testing.assert_allclose(one @ other, np.eye(3), atol=1e-3)


@pytest.mark.parametrize("part", range(4))
def test_each_colour_part_happens_by_its_own_draw(part):
    uniforms = np.concatenate([np.full(4, 0.6), np.full(4, 0.9)])
    settings = AugmentConfig(color_probability=0.5)
    matrix, shift = augment.draw_color(tf.constant(uniforms, tf.float32), settings)
    np.testing.assert_allclose(PIXELS @ matrix + shift, PIXELS, atol=1e-3)
    uniforms[part] = 0.4
    matrix, shift = augment.draw_color(tf.constant(uniforms, tf.float32), settings)
    assert np.abs(PIXELS @ matrix + shift - PIXELS).max() > 5


def test_colours_off_give_no_map():
    assert augment.draw_color(tf.zeros([8]), OFF) == (None, None)
    still = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    assert augment.draw_color(tf.zeros([8]), still) == (None, None)


def test_colours_saturate_instead_of_wrapping():
    placement = augment.place(tf.constant([0.0, 0.0, 1.0, 1.0]), 2, 1, (2, 1))
    encoded = tf.constant(png([[[250, 250, 250]], [[5, 5, 5]]]))
    for signed, expected in ((32.0, [[255], [37]]), (-32.0, [[218], [0]])):
        image = augment.render(encoded, placement, (2, 1), "bilinear", tf.eye(3), tf.fill([3], signed))
        np.testing.assert_array_equal(image.numpy()[..., 0], expected)


def test_colours_leave_boxes_alone():
    colored = replace(OFF, color_probability=1.0)
    image, boxes, _, _ = run(settings=colored, seed=2)
    plain, expected, _, _ = run(settings=OFF, seed=2)
    np.testing.assert_array_equal(boxes, expected)
    assert np.abs(image.astype(int) - plain).max() > 10


# --- seeds ----------------------------------------------------------------------------------------


def test_the_seed_decides_everything():
    settings = replace(ALL, color_probability=0.5)
    first, again, other = (run(settings=settings, seed=seed) for seed in (8, 8, 9))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_global_seeds_decide_nothing():
    tf.random.set_seed(1)
    first = run(settings=AugmentConfig(), seed=8)
    tf.random.set_seed(2)
    second = run(settings=AugmentConfig(), seed=8)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


DRAWN_BEFORE = {  # seed: class of each box, the boxes, sum of each channel; of the paper's augmentation alone
    1: ([1], [[0.76298, 0.12459, 0.98093, 0.39713]], [4622608, 3896317, 3510649]),
    2: (
        [1, 2, 3],
        [
            [0.0, 0.38682, 0.29183, 0.64696],
            [0.40856, 0.72128, 0.95331, 0.98142],
            [0.09728, 0.73986, 0.33074, 0.96284],
        ],
        [2577059, 2796961, 2162500],
    ),
}


@pytest.mark.parametrize("seed", DRAWN_BEFORE)
def test_parts_that_are_off_move_no_random_numbers(seed):
    classes, boxes, sums = DRAWN_BEFORE[seed]
    drawn = run(settings=AugmentConfig(), seed=seed)
    assert drawn[2].tolist() == classes
    np.testing.assert_allclose(drawn[1], boxes, atol=1e-5)
    np.testing.assert_allclose(drawn[0].reshape(-1, 3).sum(0), sums, rtol=1e-3)
