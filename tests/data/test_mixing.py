"""Mosaic and mixup: every picture's pixels and boxes move together, and nothing is mixed that need not be."""

import functools
from dataclasses import replace

import numpy as np
import painted_images
import pytest
import tensorflow as tf
from painted_images import check_painted, make_sample, painted_extent, painted_sample

from ssd_tf.config import AugmentConfig
from ssd_tf.data import augment, mixing

SIZE = (160, 240)
OFF = AugmentConfig(
    color_probability=0.0, expand_probability=0.0, crop_probability=0.0, flip_probability=0.0, crop_trials=2
)
FLIPS = replace(OFF, flip_probability=0.5, vertical_flip_probability=0.5)
STYLES = {
    "plain": OFF,
    "turns": replace(OFF, rotate_probability=1.0),
    "turns_and_flips": replace(FLIPS, rotate_probability=0.5),
    "everything": replace(FLIPS, rotate_probability=0.5, expand_probability=0.5, jitter_probability=0.3),
}
NOTHING = np.zeros((0, 4), np.float32)
SHAPES = ((300, 200), (200, 320), (250, 250), (180, 330))


def make_samples():
    """Four records of three rectangles each, twelve classes and colours in all."""
    samples = []
    for place, (height, width) in enumerate(SHAPES):
        parts = [(0.05, 0.06, 0.45, 0.4), (0.5, 0.5, 0.95, 0.9), (0.1, 0.55, 0.4, 0.95)]
        boxes = [np.multiply(part, (height, width) * 2).astype(int) for part in parts]
        samples.append(
            painted_sample(height, width, {3 * place + n: tuple(box) for n, box in enumerate(boxes, 1)})
        )
    return samples


SAMPLES = make_samples()
DIVERSE = [*SAMPLES[:2], make_sample(painted_images.paint(40, 90, []), NOTHING), SAMPLES[3]]


def make_parts(samples=SAMPLES, ignore=None, seed=0):
    """What mixing.mix takes; `ignore` is a class that is ignored."""
    keys = tf.constant([[seed + place, 17] for place in range(4)], tf.int64)
    return [(sample, sample["classes"] == (ignore or -1), key) for sample, key in zip(samples, tf.unstack(keys))]


def numpy_of(drawn):
    return [part.numpy() for part in drawn]


@functools.cache
def traced_mosaic(settings, size):
    """mixing.mosaic as a graph: many are made."""
    scalars = {name: tf.TensorSpec([], tf.int32) for name in ("height", "width")}
    sample = {"image": tf.TensorSpec([], tf.string), "boxes": tf.TensorSpec([None, 4]), **scalars}
    sample["classes"] = tf.TensorSpec([None], tf.int32)
    key = tf.TensorSpec([2], tf.int64)

    @tf.function(input_signature=[[(sample, tf.TensorSpec([None], tf.bool), key)] * 4, key])
    def traced(parts, key):
        return mixing.mosaic(parts, key, size, settings, "bilinear")

    return traced


def draw_mosaic(samples=SAMPLES, settings=OFF, seed=0, size=SIZE, ignore=None):
    key = tf.constant([seed, 5], tf.int64)
    return numpy_of(traced_mosaic(settings, size)(make_parts(samples, ignore), key))


def draw_mix(settings, may_mix=True, samples=SAMPLES, seed=0, size=SIZE, ignore=None):
    return numpy_of(mixing.mix(make_parts(samples, ignore, seed), may_mix, size, settings, "bilinear"))


def greys(*levels):
    """Records of one grey level each, without boxes."""
    return [make_sample(np.full((20 + level % 7, 30, 3), level, np.uint8), NOTHING) for level in levels]


def find_centre(image):
    """Where the four parts of a mosaic of `greys` meet; each must be one rectangle of one level."""
    levels = image[..., 0].astype(int)
    y = np.flatnonzero(np.diff(levels[:, 0]))
    x = np.flatnonzero(np.diff(levels[0]))
    assert len(y) == len(x) == 1
    return y[0] + 1, x[0] + 1


# --- mosaic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (200, 150), (128, 128)])
@pytest.mark.parametrize("style", ["plain", "turns", "turns_and_flips"])
def test_painted_corners_of_four_pictures_land_on_the_moved_corners(style, size):
    seen = set()
    for seed in range(4):
        parts, key = make_parts(DIVERSE if seed == 3 else SAMPLES), tf.constant([seed, 5], tf.int64)
        drawn = mixing.mosaic(parts, key, size, STYLES[style], "bilinear")
        image, boxes, classes, ignore = numpy_of(drawn)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert boxes.dtype == np.float32 and classes.dtype == np.int32 and not ignore.any()
        check_painted(image, boxes, classes)
        seen |= {*classes.tolist()}
    assert len(seen) >= 10


@pytest.mark.parametrize("place", range(4))
def test_objects_are_kept_while_their_centre_is_in_their_part(place):
    """Read from pixels alone: a part, being a rectangle, holds a centre where it shows all four quarters."""
    kept = []
    for seed in range(12):
        box = [(20, 10, 120, 90), (150, 80, 300, 200), (100, 50, 260, 140)][seed % 3]
        samples = greys(20, 20, 20, 20)
        samples[place] = painted_images.quartered_sample(300, 200, box)
        image, boxes, classes, _ = draw_mosaic(samples, STYLES["turns_and_flips"], seed)
        assert len(boxes) == len(classes) == painted_images.shows_centre(image), seed
        kept.append(len(boxes))
    assert 0 < sum(kept) < 12


@pytest.mark.parametrize("size", [SIZE, (200, 150)])
def test_four_pictures_fill_their_corners_around_one_point(size):
    centres = []
    for seed in range(40):
        image = draw_mosaic(greys(40, 80, 120, 160), OFF, seed, size)[0]
        y, x = find_centre(image)
        corners = [image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:]]
        assert [np.unique(corner).tolist() for corner in corners] == [[40], [80], [120], [160]]
        centres.append((y / size[0], x / size[1]))
    centres = np.array(centres)
    assert centres.min() > 0.24 and centres.max() < 0.76
    assert (
        (centres.min(0) < 0.35).all()
        and (centres.max(0) > 0.65).all()
        and (abs(centres.mean(0) - 0.5) < 0.1).all()
    )
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.4


@pytest.mark.parametrize("style", ["plain", "turns"])
def test_parts_are_as_large_as_alone_or_smaller_and_squeezed_alike(style):
    """A square of 40 pixels with another of 20 in its middle, which tells whether it is seen whole."""
    pixels = painted_images.paint(240, 160, zip(painted_images.COLORS, [(100, 60, 140, 100), (110, 70, 130, 90)]))
    sample, scales = make_sample(pixels, [(100, 60, 140, 100)]), []
    for seed in range(60):
        samples = [*greys(20, 20, 20, 20), sample, *greys(20, 20, 20)][seed % 4 + 1 :][:4]
        image, boxes, _, _ = draw_mosaic(samples, STYLES[style], seed, (240, 240))
        inner, outer = painted_extent(image, painted_images.COLORS[1]), boxes * 240
        if (
            inner is not None
            and len(outer)
            and np.abs(inner[:2] + inner[2:] - outer[0, :2] - outer[0, 2:]).max() < 3
        ):
            scales.append((outer[0, 2:] - outer[0, :2]) / (40, 60))  # alone on the canvas it has 40 x 60 pixels
    scales = np.array(scales)
    assert len(scales) > 15
    np.testing.assert_allclose(scales[:, 0], scales[:, 1], atol=0.07)
    # Three quarters of the canvas are more than a turned picture fills in its own size: 240 / 160 * .75.
    assert 0.9 < scales.max() < (1.03 if style == "plain" else 1.15) and 0.4 < scales.min() < 0.75


def test_a_mosaic_of_pictures_without_boxes_has_none():
    image, boxes, classes, ignore = draw_mosaic(greys(40, 80, 120, 160), STYLES["everything"])
    assert (boxes.shape, classes.shape, ignore.shape) == ((0, 4), (0,), (0,))
    assert {*np.unique(image)} == {40, 80, 120, 160}


def test_flags_stay_with_their_boxes_and_ignore_boxes_while_any_part_is_visible():
    cut = 0
    for seed in range(20):
        image, boxes, classes, ignore = draw_mosaic(SAMPLES, STYLES["turns_and_flips"], seed, ignore=5)
        np.testing.assert_array_equal(ignore, classes == 5)
        extent = painted_extent(image, painted_images.COLORS[4])
        assert ignore.any() == (extent is not None), seed
        check_painted(image, boxes, classes)
        cut += ignore.any() and 5 not in draw_mosaic(SAMPLES, STYLES["turns_and_flips"], seed)[2]
    assert cut > 0


def test_parts_have_their_own_colours_flips_and_turns():
    settings = AugmentConfig(color_probability=1.0, flip_probability=0.0)
    image = draw_mosaic(greys(100, 100, 100, 100), settings, 3)[0]
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4
    gradient = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 120, axis=0).repeat(3, axis=2)
    directions = set()
    for seed in range(30):
        parts = [make_sample(gradient, NOTHING)] * 4
        image = draw_mosaic(parts, STYLES["turns_and_flips"], seed)[0][..., 0].astype(int)
        first, last = image[:30, :30], image[-30:, -30:]
        differences = [part[end] - part[0, 0] for part in (first, last) for end in ((0, 29), (29, 0))]
        directions.add(tuple(np.sign(differences).tolist()))
    ways = {(1, 0), (-1, 0), (0, 1), (0, -1)}
    assert {found[:2] for found in directions} == {found[2:] for found in directions} == ways
    assert len(directions) > 8  # of 16


# --- mixup ----------------------------------------------------------------------------------------


def channel_sample(channel, box, value=240, shape=(300, 200)):
    """A record of one object in one channel of a black picture."""
    color = np.eye(3, dtype=int)[channel] * value
    return make_sample(painted_images.paint(*shape, [(color, box)], (0, 0, 0)), [box], [channel + 1])


def check_channels(image, boxes, classes, shares):
    """Each object fills its box in its channel, and is as bright as its picture's share."""
    for box, class_id in zip(boxes, classes, strict=True):
        level = image[..., class_id - 1]
        rows, columns = np.nonzero(level > level.max() / 2)
        extent = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        np.testing.assert_allclose(extent, box * np.tile(image.shape[:2], 2), atol=1.0)
        assert abs(int(level.max()) - 240 * shares[class_id - 1]) <= 1


MIXED = [channel_sample(0, (30, 40, 120, 160)), channel_sample(2, (110, 70, 260, 190))]


@pytest.mark.parametrize("style", ["plain", "turns_and_flips", "jitter"])
def test_blended_pictures_show_both_objects_in_their_shares(style):
    settings = {**STYLES, "jitter": replace(OFF, jitter_probability=1.0, jitter_scale=(1.0, 1.3))}[style]
    seen = []
    for seed in range(8):
        first = augment.augment(*make_parts([MIXED[0]], seed=seed)[0], SIZE, settings, "bilinear")
        key, part = tf.constant([seed, 9], tf.int64), make_parts([MIXED[1]])[0]
        image, boxes, classes, _ = numpy_of(mixing.mixup(first, part, key, SIZE, settings, "bilinear"))
        share = float(mixing.draw_share(tf.random.experimental.stateless_fold_in(key, 1), settings.mixup_alpha))
        assert 0.3 < share < 0.7 and image.dtype == np.uint8 and image.shape == (*SIZE, 3)
        check_channels(image, boxes, classes, {0: share, 2: 1 - share})
        assert not image[..., 1].any()
        seen += classes.tolist()
    assert seen.count(1) >= 6 and seen.count(3) >= 6


def test_blended_pixels_by_hand():
    first, second = greys(100, 203)[:2]
    drawn = augment.augment(*make_parts([first])[0], SIZE, OFF, "bilinear")
    for seed in range(5):
        key = tf.constant([seed, 9], tf.int64)
        image = mixing.mixup(drawn, make_parts([second])[0], key, SIZE, OFF, "bilinear")[0].numpy()
        share = float(mixing.draw_share(tf.random.experimental.stateless_fold_in(key, 1), OFF.mixup_alpha))
        assert np.unique(image).tolist() == [round(share * 100 + (1 - share) * 203)]
    white = make_parts(greys(255))[0]
    image = mixing.mixup(augment.augment(*white, SIZE, OFF, "bilinear"), white, key, SIZE, OFF, "bilinear")[0]
    assert np.unique(image).tolist() == [255]


def test_a_mixup_holds_the_objects_and_flags_of_both():
    settings = replace(OFF, mixup_probability=1.0)
    for seed in range(3):
        _, boxes, classes, ignore = draw_mix(settings, seed=seed, ignore=5)
        assert classes.tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_array_equal(ignore, classes == 5)
        expected = np.concatenate([sample["boxes"] for sample in SAMPLES[:2]])
        np.testing.assert_allclose(boxes, expected, atol=1e-6)
    empty = draw_mix(settings, samples=greys(10, 20, 30, 40))
    assert [part.shape for part in empty[1:]] == [(0, 4), (0,), (0,)]
    assert draw_mix(settings, samples=[SAMPLES[0], *greys(20, 30, 40)])[2].tolist() == [1, 2, 3]
    assert draw_mix(settings, samples=[*greys(10), *SAMPLES[1:]])[2].tolist() == [4, 5, 6]


@pytest.mark.parametrize(("alpha", "tolerance"), [(32.0, 0.004), (1.0, 0.02), (0.2, 0.03)])
def test_shares_have_a_beta_distribution(alpha, tolerance):
    keys = tf.stack([tf.range(600, dtype=tf.int64), tf.fill([600], tf.constant(3, tf.int64))], axis=1)
    shares = tf.map_fn(lambda key: mixing.draw_share(key, alpha), keys, fn_output_signature=tf.float32).numpy()
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / np.sqrt(600)
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < tolerance


def test_shares_of_the_smallest_alpha_are_all_or_nothing():
    """Both gamma numbers of Beta(.01, .01) are below float32 one time in six: no reason for a half each."""
    shares = np.array([float(mixing.draw_share(tf.constant([seed, 1], tf.int64), 0.01)) for seed in range(60)])
    assert np.isfinite(shares).all()
    assert (shares < 0.01).sum() > 20 and (shares > 0.99).sum() > 20
    assert ((shares > 0.01) & (shares < 0.99)).sum() < 4  # 4.4 % of them: 2.6


# --- mix ------------------------------------------------------------------------------------------

ALWAYS = replace(STYLES["everything"], mosaic_probability=1.0, mixup_probability=1.0, crop_probability=1.0)


def check_equal(drawn, expected):
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_may_not_be_mixed_is_the_first_picture_alone():
    for seed in range(4):
        alone = augment.augment(*make_parts(seed=seed)[0], SIZE, ALWAYS, "bilinear")
        check_equal(draw_mix(ALWAYS, may_mix=False, seed=seed), alone)
        never = replace(ALWAYS, mosaic_probability=0.0, mixup_probability=0.0)
        check_equal(draw_mix(never, seed=seed), alone)


def test_a_mosaic_can_be_blended_with_another_picture():
    settings = replace(OFF, mosaic_probability=1.0, mixup_probability=1.0)
    for seed in range(4):
        image, boxes, classes, _ = draw_mix(
            settings, samples=[*greys(100), SAMPLES[1], *greys(100, 100)], seed=seed
        )
        whole = classes[-3:].tolist()
        assert whole == [4, 5, 6]  # the blended one, seen whole; before it what the mosaic shows of the same
        np.testing.assert_allclose(boxes[-3:], SAMPLES[1]["boxes"], atol=1e-6)
        assert {*classes[:-3].tolist()} <= {4, 5, 6} and image.shape == (*SIZE, 3)


def test_mosaic_and_mixup_happen_as_often_as_asked():
    """Told by the grey levels: the first picture's alone, one level between two, four levels, or all of it."""
    settings = replace(OFF, mosaic_probability=0.4, mixup_probability=0.25)
    samples = greys(10, 210, 90, 130)

    def levels(seed):
        parts = [(sample, tf.zeros([0], tf.bool), tf.stack([seed, 17])) for sample in samples]
        corners = mixing.mix(parts, tf.constant(True), (8, 8), settings, "bilinear")[0][::7, ::7, 0]
        return tf.reshape(corners, [4])

    drawn = [tuple(values) for values in tf.data.Dataset.range(500).map(levels).as_numpy_iterator()]
    alone = drawn.count((10, 10, 10, 10))
    mosaic = drawn.count((10, 210, 90, 130))
    mixup = sum(len({*values}) == 1 for values in drawn) - alone
    both = sum(len({*values}) == 4 for values in drawn) - mosaic
    assert alone + mosaic + mixup + both == 500
    for count, share in ((alone, 0.45), (mosaic, 0.3), (mixup, 0.15), (both, 0.1)):
        assert abs(count / 500 - share) < 0.05


def test_the_first_ones_seed_decides_everything():
    parts = make_parts(seed=4)
    drawn = numpy_of(mixing.mix(parts, True, SIZE, ALWAYS, "bilinear"))
    others = [parts[0], *((*part[:2], part[2] + 100) for part in parts[1:])]
    tf.random.set_seed(3)
    check_equal(mixing.mix(others, True, SIZE, ALWAYS, "bilinear"), drawn)
    other = mixing.mix(make_parts(seed=5), True, SIZE, ALWAYS, "bilinear")
    assert not np.array_equal(other[0], drawn[0])


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_inside_a_data_set_map(mosaic):
    style = "turns_and_flips" if mosaic else "everything"
    settings = replace(STYLES[style], mosaic_probability=mosaic, mixup_probability=1.0 - mosaic)

    def move(number):
        parts = [(*part[:2], part[2] + [number, 0]) for part in make_parts()]
        return mixing.mix(parts, number < 4, SIZE, settings, "bilinear")

    dataset = tf.data.Dataset.range(6).map(move)
    assert dataset.element_spec[0].shape == (*SIZE, 3)
    for number, mapped in enumerate(dataset.as_numpy_iterator()):
        parts = [(*part[:2], part[2] + [number, 0]) for part in make_parts()]
        eager = numpy_of(mixing.mix(parts, number < 4, SIZE, settings, "bilinear"))
        assert np.abs(mapped[0].astype(int) - eager[0]).max() <= 1
        np.testing.assert_allclose(mapped[1], eager[1], atol=1e-6)
        check_equal(mapped[2:], eager[2:])
        if mosaic:
            check_painted(*mapped[:3])
        assert (mapped[2] > 3).any() == (number < 4)


def test_pictures_of_one_row_or_pixel_work():
    shapes = ((1, 200), (200, 1), (1, 1), (3, 150))
    samples = [make_sample(np.full((*shape, 3), 77, np.uint8), [(0, 0, *shape)]) for shape in shapes]
    for seed in range(6):
        for settings in (ALWAYS, replace(ALWAYS, mixup_probability=0.0, rotate_probability=1.0)):
            image, boxes, classes, ignore = draw_mix(settings, samples=samples, seed=seed)
            assert image.shape == (*SIZE, 3) and (image == 77).any()
            assert np.isfinite(boxes).all() and ((boxes >= 0) & (boxes <= 1)).all()
            assert len(boxes) == len(classes) == len(ignore)
