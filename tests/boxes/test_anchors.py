"""Anchors against published totals, hand values and torchvision's own."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ssd_tf.boxes import anchors, ops
from ssd_tf.errors import ConfigError

SSD300_MAPS = [(n, n) for n in (38, 19, 10, 5, 3, 1)]
SSD512_MAPS = [(n, n) for n in (64, 32, 16, 8, 4, 2, 1)]
MOBILE300_MAPS = [(n, n) for n in (19, 10, 5, 3, 2, 1)]
MOBILE320_MAPS = [(n, n) for n in (20, 10, 5, 3, 2, 1)]
TINY_MAPS = [(n, n) for n in (32, 16, 8, 4, 1)]


def centre_size(spec, maps, side):
    made = anchors.make_anchors(spec, maps, (side, side))
    assert made.dtype == np.float32
    return ops.to_centre_size(made.astype(np.float64))


def preset(name, **changes):
    return replace(anchors.PRESETS[name], **changes)


def truncated(name, side):
    """The preset as caffe's prior_box layer reads it: sizes cut to whole pixels."""
    spec = anchors.PRESETS[name]
    sizes, after = (tuple(int(v * side + 1e-6) / side for v in part) for part in (spec.sizes, spec.next_sizes))
    return replace(spec, sizes=sizes, next_sizes=after)


# (spec, maps, side, count, sum of centres, sum of sizes): float64 tables computed apart from this code.
TOTALS = {
    "voc300": (preset("ssd300_voc"), SSD300_MAPS, 300, 8732, 4443.9467, 1510.4293),
    "voc300 clamped": (preset("ssd300_voc", clip="centre_size"), SSD300_MAPS, 300, 8732, 4443.1467, 1510.1480),
    "coco300": (preset("ssd300_coco"), SSD300_MAPS, 300, 8732, 4443.9467, 1172.1980),
    "coco300 clamped": (preset("ssd300_coco", clip="centre_size"), SSD300_MAPS, 300, 8732, 4443.1467, 1171.9677),
    "voc512": (preset("ssd512_voc"), SSD512_MAPS, 512, 24564, 12282.0, 3146.1417),
    "voc512 whole pixels": (truncated("ssd512_voc", 512), SSD512_MAPS, 512, 24564, 12282.0, 3105.5545),
    "voc512 clamped": (preset("ssd512_voc", clip="centre_size"), SSD512_MAPS, 512, 24564, 12282.0, 3144.9986),
    "coco512": (preset("ssd512_coco"), SSD512_MAPS, 512, 24564, 12282.0, 2192.4711),
    "coco512 whole pixels": (truncated("ssd512_coco", 512), SSD512_MAPS, 512, 24564, 12282.0, 2173.6820),
    "coco512 clamped": (preset("ssd512_coco", clip="centre_size"), SSD512_MAPS, 512, 24564, 12282.0, 2191.9388),
    "mobile300": (preset("mobile300", clip="none"), MOBILE300_MAPS, 300, 3000, 1539.4400, 866.9607),
    "mobile300 clamped": (preset("mobile300"), MOBILE300_MAPS, 300, 3000, 1538.64, 862.7490),
    "mobile320": (preset("mobile320", clip="none"), MOBILE320_MAPS, 320, 3234, 1617.0844, 862.1614),
    "mobile320 clamped": (preset("mobile320"), MOBILE320_MAPS, 320, 3234, 1617.0844, 859.4212),
    "tiny256": (preset("tiny256"), TINY_MAPS, 256, 5444, 2722.0, 1527.1527),
    "voc300 on the grid": (preset("ssd300_voc", steps=()), SSD300_MAPS, 300, 8732, 4366.0, 1510.4293),
}


@pytest.mark.parametrize(("spec", "maps", "side", "count", "centres", "sizes"), TOTALS.values(), ids=TOTALS.keys())
def test_published_totals(spec, maps, side, count, centres, sizes):
    boxes = centre_size(spec, maps, side)
    assert len(boxes) == count
    # float32 corners limit the sums; the table itself has four decimals.
    np.testing.assert_allclose(boxes.sum(axis=0), [centres, centres, sizes, sizes], atol=5e-4)


def test_anchors_per_level():
    for name, maps, expected in (
        ("ssd300_voc", SSD300_MAPS, (5776, 2166, 600, 150, 36, 4)),
        ("ssd512_voc", SSD512_MAPS, (16384, 6144, 1536, 384, 96, 16, 4)),
    ):
        shapes = anchors.num_anchors_per_cell(anchors.PRESETS[name])
        assert tuple(h * w * s for (h, w), s in zip(maps, shapes, strict=True)) == expected


def test_first_cell_and_last_anchor_of_voc300():
    boxes = centre_size(preset("ssd300_voc"), SSD300_MAPS, 300)
    heights_widths = [[0.1, 0.1], [0.141421, 0.141421], [0.070711, 0.141421], [0.141421, 0.070711]]
    np.testing.assert_allclose(boxes[:4, :2], np.full((4, 2), 0.013333), atol=1e-6)
    np.testing.assert_allclose(boxes[:4, 2:], heights_widths, atol=1e-6)
    np.testing.assert_allclose(boxes[-1], [0.5, 0.5, 1.244508, 0.622254], atol=1e-6)


def test_the_centre_advances_along_the_row_first():
    boxes = centre_size(preset("ssd300_voc"), SSD300_MAPS, 300)
    np.testing.assert_allclose(boxes[4, :2], [4 / 300, 12 / 300], atol=1e-6)
    np.testing.assert_allclose(boxes[4 * 38, :2], [12 / 300, 4 / 300], atol=1e-6)


def test_first_cells_of_coco300_and_voc512():
    boxes = centre_size(preset("ssd300_coco"), SSD300_MAPS, 300)
    expected = [[0.07, 0.07], [0.102470, 0.102470], [0.049497, 0.098995], [0.098995, 0.049497]]
    np.testing.assert_allclose(boxes[:4, 2:], expected, atol=1e-6)
    boxes = centre_size(preset("ssd512_voc"), SSD512_MAPS, 512)
    np.testing.assert_allclose(boxes[:2], [[1 / 128] * 2 + [0.07] * 2, [1 / 128] * 2 + [0.10247] * 2], atol=1e-6)


def test_equal_to_torchvisions_ssd300(golden):
    expected = np.load(golden / "torchvision_ssd_core.npz")["anchors_xyxy_px"]
    made = anchors.make_anchors(preset("ssd300_coco", clip="size"), SSD300_MAPS, (300, 300))
    np.testing.assert_allclose(ops.yxyx_to_xyxy(made) * 300, expected, atol=2e-4)
    np.testing.assert_allclose(
        expected[:2], [[-6.5, -6.5, 14.5, 14.5], [-11.3704, -11.3704, 19.3704, 19.3704]], atol=1e-3
    )


def test_equal_to_torchvisions_ssdlite(golden):
    expected = np.load(golden / "torchvision_ssdlite320_mobilenet_v3_large.npz")["anchors_xyxy_px"]
    spec = anchors.chain((0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), [(2.0, 3.0)] * 6, clip="size")
    made = anchors.make_anchors(spec, MOBILE320_MAPS, (320, 320))
    np.testing.assert_allclose(ops.yxyx_to_xyxy(made) * 320, expected.reshape(-1, 4), atol=2e-4)


@pytest.mark.parametrize(("name", "file"), [("mobile300", "mb1-ssd"), ("ssd300_voc", "vgg16-ssd")])
def test_equal_to_pytorch_ssds_priors(golden, name, file):
    expected = np.load(golden / f"qfgaohao_{file}.npz")["priors_cxcywh"].reshape(-1, 4)
    maps = MOBILE300_MAPS if name == "mobile300" else SSD300_MAPS
    boxes = centre_size(preset(name, clip="centre_size"), maps, 300)
    np.testing.assert_allclose(boxes[:, [1, 0, 3, 2]], expected, atol=1e-6)


def test_anchors_of_the_tf_api():
    """The 1917 of its 300 x 300 SSDs: published count, corner sums, first cell and last anchor."""
    spec = anchors.resolve_spec(6, "tf_od")
    assert anchors.num_anchors_per_cell(spec) == (3, 6, 6, 6, 6, 6)
    made = anchors.make_anchors(spec, MOBILE300_MAPS, (300, 300))
    assert made.shape == (1917, 4) and made.dtype == np.float32
    sums = made.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(sums, [674.216, 674.219, 1242.784, 1242.781], atol=6e-4)
    first = [
        [-0.023684, -0.023684, 0.076316, 0.076316],
        [-0.044395, -0.115106, 0.097026, 0.167737],
        [-0.115106, -0.044395, 0.167737, 0.097026],
    ]
    np.testing.assert_allclose(made[:3], first, atol=1e-6)
    np.testing.assert_allclose(made[-1], [0.01266, 0.01266, 0.98734, 0.98734], atol=1e-5)
    # The first cell of the second level, by hand: height and width from size .35 and ratios 1, 2, 1/2, 3, .3333.
    second = ops.to_centre_size(made[3 * 19 * 19 :][:6].astype(np.float64))
    np.testing.assert_allclose(second[:, :2], np.full((6, 2), 0.05), atol=1e-6)
    roots = np.sqrt([1, 2, 0.5, 3, 0.3333])
    expected = [*zip(0.35 / roots, 0.35 * roots), (np.sqrt(0.35 * 0.5),) * 2]
    np.testing.assert_allclose(second[:, 2:], expected, atol=1e-6)


def test_lowest_level_of_the_tf_api_has_three_shapes_whatever_its_ratios():
    spec = anchors.resolve_spec(2, "tf_od", sizes=(0.2, 0.4, 0.9), ratios=((2.0, 3.0), (2.0,)))
    assert anchors.num_anchors_per_cell(spec) == (3, 4)
    boxes = centre_size(spec, [(2, 2), (1, 1)], 64)
    assert len(boxes) == 4 * 3 + 4
    root = math.sqrt(2)
    reduced = [[0.1, 0.1], [0.2 / root, 0.2 * root], [0.2 * root, 0.2 / root]]
    np.testing.assert_allclose(boxes[:3, 2:], reduced, atol=1e-7)
    wide_and_tall = [[0.4, 0.4], [0.4 / root, 0.4 * root], [0.4 * root, 0.4 / root], [0.6, 0.6]]
    np.testing.assert_allclose(boxes[12:, 2:], wide_and_tall, atol=1e-7)


def test_unknown_order_is_named():
    with pytest.raises(ConfigError, match="anchors: order 'tf' is none of caffe, tf_od"):
        anchors.chain((0.1, 0.2), [()], order="tf")


def test_non_square_images_keep_shapes_square_in_pixels():
    spec = anchors.chain((0.5, 0.5), [(4.0,)])
    boxes = anchors.make_anchors(spec, [(1, 2)], (100, 200)) * [100, 200, 100, 200]
    # Around (50, 50): squares of half the shorter side, then 25 x 100 and 100 x 25 (height x width).
    expected = [[25, 25, 75, 75], [25, 25, 75, 75], [37.5, 0, 62.5, 100], [0, 37.5, 100, 62.5]]
    np.testing.assert_allclose(boxes[:4], expected, atol=1e-4)
    np.testing.assert_allclose(boxes[4:], np.add(expected, [0, 100, 0, 100]), atol=1e-4)


def test_clip_modes_by_hand():
    spec = anchors.chain((1.0, 1.44), [()])
    made = {
        clip: anchors.make_anchors(replace(spec, clip=clip, offset=1.5), [(1, 1)], (64, 64))[1]
        for clip in anchors.CLIP_MODES
    }
    np.testing.assert_allclose(made["none"], [0.9, 0.9, 2.1, 2.1], atol=1e-6)
    np.testing.assert_allclose(made["corners"], [0.9, 0.9, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(made["size"], [1.0, 1.0, 2.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(made["centre_size"], [0.5, 0.5, 1.5, 1.5], atol=1e-6)


def test_offset_moves_centres_by_a_part_of_the_cell():
    spec = anchors.chain((0.1, 0.2), [()])
    made = [ops.centres(anchors.make_anchors(replace(spec, offset=o), [(4, 4)], (64, 64))) for o in (0.0, 0.5)]
    np.testing.assert_allclose(made[1] - made[0], np.full((32, 2), 0.125), atol=1e-6)
    np.testing.assert_allclose(made[0][0], [0, 0], atol=1e-6)


def test_pixel_steps_hold_only_where_they_cover_the_image():
    spec = anchors.chain((0.1, 0.2), [()], steps=(16.0,))
    # 16 x 19 = 304 is within one step of 300; 16 x 20 = 320 of 340 not.
    assert anchors.steps_fit(spec, [(19, 19)], (300, 300))
    assert anchors.steps_fit(spec, [(20, 20)], (336, 336))
    assert not anchors.steps_fit(spec, [(20, 20)], (340, 340))
    assert not anchors.steps_fit(spec, [(19, 30)], (300, 300))
    kept = ops.centres(anchors.make_anchors(spec, [(19, 19)], (300, 300)))
    np.testing.assert_allclose(kept[-1], [18.5 * 16 / 300] * 2, atol=1e-6)
    grid = ops.centres(anchors.make_anchors(spec, [(20, 20)], (400, 400)))
    np.testing.assert_allclose(grid[-1], [19.5 / 20] * 2, atol=1e-6)
    fixed = ops.centres(anchors.make_anchors(replace(spec, fixed_steps=True), [(20, 20)], (400, 400)))
    np.testing.assert_allclose(fixed[-1], [19.5 * 16 / 400] * 2, atol=1e-6)


def test_default_sizes_follow_caffes_rule():
    six, seven = anchors.default_spec(6), anchors.default_spec(7)
    np.testing.assert_allclose((*six.sizes, six.next_sizes[-1]), [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05])
    np.testing.assert_allclose((*seven.sizes, seven.next_sizes[-1]), [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05])
    assert six.ratios == ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))


@pytest.mark.parametrize("num_levels", range(1, 10))
def test_default_sizes_increase_for_any_number_of_levels(num_levels):
    spec = anchors.resolve_spec(num_levels)
    sizes = (*spec.sizes, spec.next_sizes[-1])
    assert len(sizes) == num_levels + 1
    assert (np.diff(sizes) > 0).all()
    assert spec.next_sizes[:-1] == spec.sizes[1:]
    assert sizes[0] > 0 and max(spec.sizes) <= 0.9
    made = anchors.make_anchors(spec, [(2, 3)] * num_levels, (96, 96))
    assert len(made) == 6 * sum(anchors.num_anchors_per_cell(spec))
    assert np.isfinite(made).all() and (ops.area(made) > 0).all()


def test_a_recipe_replaces_parts_of_a_preset():
    spec = anchors.resolve_spec(
        6,
        "ssd300_voc",
        sizes=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        ratios=((2.0,),) * 6,
        steps=(1.0,) * 6,
        clip="size",
    )
    assert spec.sizes == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert spec.next_sizes == (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert (spec.ratios, spec.steps, spec.clip) == (((2.0,),) * 6, (1.0,) * 6, "size")
    unchanged = anchors.resolve_spec(6, "ssd300_voc")
    assert unchanged == anchors.PRESETS["ssd300_voc"]
    assert anchors.resolve_spec(6, "mobile300", offset=0.25).offset == 0.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_levels": 6, "preset": "ssd300_vco"}, ["anchors.preset", "ssd300_vco", "did you mean ssd300_voc?"]),
        ({"num_levels": 5, "preset": "ssd300_voc"}, ["6 levels given, the model has 5"]),
        ({"num_levels": 6, "sizes": (0.1, 0.2)}, ["anchors", "1 sizes", "6 ratios"]),
        ({"num_levels": 6, "ratios": ((2.0,),) * 5}, ["anchors", "5 ratios"]),
        ({"num_levels": 6, "steps": (8.0,) * 4}, ["anchors", "4 steps"]),
        ({"num_levels": 6, "clip": "corner"}, ["anchors.clip", "corner", "corners"]),
    ],
)
def test_wrong_settings_are_named(arguments, words):
    with pytest.raises(ConfigError) as caught:
        anchors.resolve_spec(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_big_square_is_the_geometric_mean():
    boxes = centre_size(anchors.chain((0.2, 0.8), [(2.0,)]), [(1, 1)], 64)
    root = math.sqrt(2)
    expected = [[0.2, 0.2], [0.4, 0.4], [0.2 / root, 0.2 * root], [0.2 * root, 0.2 / root]]
    np.testing.assert_allclose(boxes[:, 2:], expected, atol=1e-6)
