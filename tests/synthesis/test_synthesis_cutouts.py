import collections

import numpy as np
import pytest
from PIL import Image

from ssd_tf.errors import ConfigError, DataError
from ssd_tf.synthesis import backgrounds, cutouts
from ssd_tf.synthesis.cutouts import Pasting, Stock, draw_pasted_layout, pose_cutout, read_cutout, read_stock, trim
from ssd_tf.synthesis.layout import find_boxes
from ssd_tf.synthesis.scene import draw_scene

RED = (255, 0, 0)


def rgba(h, w, box, colour=RED, under=(0, 255, 0)):
    """An image of one opaque box (top, left, bottom, right); `under` is the colour of what is transparent."""
    pixels = np.zeros((h, w, 4), np.uint8)
    pixels[..., :3] = under
    top, left, bottom, right = box
    pixels[top:bottom, left:right] = (*colour, 255)
    return pixels


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def solid_box(image):
    """Brute force: (top, left, bottom, right) of what an image covers by half or more."""
    rows, columns = np.nonzero(np.asarray(image)[..., 3] >= 128)
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def stock_of(image_size=128, pasting=None, **images):
    """A Stock of one PIL image a class."""
    pasting = pasting or Pasting()
    return Stock({name: (name,) for name in images}, images, 2 * image_size, pasting)


def test_trim_keeps_the_object_and_a_quarter_of_its_side_around():
    pixels = rgba(100, 200, (40, 60, 60, 100), under=RED)
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)  # faint dust everywhere
    image = trim(Image.fromarray(pixels))
    assert image.size == (40 + 2 * 10, 20 + 2 * 10)
    assert solid_box(image) == (10, 10, 30, 50)


def test_trim_drops_what_is_wholly_transparent_and_nothing_of_the_object():
    pixels = rgba(100, 200, (40, 60, 60, 100))
    pixels[60:63, 60:100] = (0, 0, 0, 127)  # a soft shadow
    image = trim(Image.fromarray(pixels))
    assert image.size == (40, 23)
    assert solid_box(image) == (0, 0, 20, 40)
    np.testing.assert_array_equal(image, pixels[40:63, 60:100])
    assert trim(Image.fromarray(rgba(9, 9, (0, 0, 0, 0)))) is None


def test_half_covered_pixels_belong_to_the_object():
    pixels = rgba(20, 20, (5, 5, 10, 10))
    pixels[10, 5:10] = (*RED, 128)
    pixels[11, 5:10] = (*RED, 127)
    image = Image.fromarray(pixels)
    assert cutouts.find_solid(image) == (5, 5, 10, 11)
    assert cutouts.measure(image) == (5, 6)
    assert solid_box(image) == (5, 5, 11, 10)


def test_small_cutouts_are_read_as_they_are(tmp_path):
    pixels = rgba(60, 80, (10, 20, 50, 50))
    image = read_cutout(save(tmp_path / "a.png", pixels), 40)
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(image, pixels[10:50, 20:50])


def test_large_cutouts_are_reduced_to_the_longest_side(tmp_path):
    image = read_cutout(save(tmp_path / "a.png", rgba(600, 800, (100, 200, 500, 500))), 100)
    assert cutouts.measure(image) == (75, 100)
    assert max(image.size) <= 1.5 * 100


def test_hidden_colours_do_not_shine_through_the_edges(tmp_path):
    image = read_cutout(save(tmp_path / "a.png", rgba(601, 803, (97, 203, 503, 499))), 50)
    for posed in (pose_cutout(image, 33, 20.0), pose_cutout(image, 90, -50.0)):
        pixels = np.asarray(posed)
        seen = pixels[pixels[..., 3] > 8]
        assert len(np.unique(seen[:, 3])) > 5  # there are soft edges
        assert seen[:, 0].min() >= 225 and seen[:, 1].max() <= 30


@pytest.mark.parametrize(("name", "mode"), [("a.png", "P"), ("a.gif", "P"), ("a.png", "LA"), ("a.webp", "RGBA")])
def test_every_kind_of_transparency_is_read(tmp_path, name, mode):
    grey = np.zeros((40, 40, 2), np.uint8)
    grey[10:30, 5:35] = (200, 255)
    image = Image.fromarray(grey, "LA")
    options = {"lossless": True} if name.endswith("webp") else {}
    if mode == "P":
        image = Image.fromarray(grey[..., 0]).convert("P")
        options["transparency"] = image.getpixel((0, 0))
    image.convert(mode).save(tmp_path / name, **options)
    pixels = np.asarray(read_cutout(tmp_path / name, 100))
    assert pixels.shape == (20, 30, 4)
    np.testing.assert_array_equal(pixels[..., 3], 255)
    assert np.abs(pixels[..., :3].astype(int) - 200).max() <= 3


def test_cutouts_stand_upright_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = save(tmp_path / "a.png", rgba(30, 60, (5, 10, 15, 50)), exif=exif)
    assert read_cutout(path, 100).size == (10, 40)


def test_cutouts_that_cannot_be_used(tmp_path):
    def message(name, content=None, longest=64):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            save(tmp_path / name, content)
        with pytest.raises(DataError) as error:
            read_cutout(tmp_path / name, longest)
        assert "\n" not in str(error.value)
        return str(error.value).replace(f"{tmp_path}/", "")

    opaque = rgba(9, 9, (0, 0, 9, 9))
    hint = "(a cut-out is transparent around the object)"
    assert message("photo.png", opaque[..., :3]) == f"no alpha channel: photo.png {hint}"
    assert message("photo.jpg", opaque[..., :3]) == f"no alpha channel: photo.jpg {hint}"
    nothing = "nothing to be seen: no pixel covers half or more: clear.png"
    assert message("clear.png", rgba(9, 9, (0, 0, 0, 0))) == nothing
    faint = opaque.copy()
    faint[..., 3] = 127
    assert message("clear.png", faint) == nothing
    thin = np.zeros((1000, 1000, 4), np.uint8)
    thin[np.arange(1000), np.arange(1000)] = 255
    assert message("hair.png", thin, 50) == "too thin to be seen at 50 pixels: hair.png"
    save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (50, 50, 4), np.uint8))
    half = (tmp_path / "whole.png").read_bytes()[:4000]
    assert message("half.png", half).startswith("bad image: truncated PNG (got 4,000")
    assert message("text.png", b"hello there") == "bad image: not an image (starts with 'hello the'): text.png"
    assert message("empty.png", b"") == "bad image: empty file: empty.png"
    assert message("gone.png") == "no such file: gone.png"


def test_poses_turn_anticlockwise_after_mirroring():
    pixels = rgba(20, 40, (0, 0, 20, 40))
    pixels[:10, :20, :3] = (0, 0, 255)  # blue at the top left
    image = Image.fromarray(pixels)
    corners = {"top left": (3, 3), "top right": (3, -4), "bottom left": (-4, 3), "bottom right": (-4, -4)}

    def blue_corner(posed):
        values = np.asarray(posed)
        return [name for name, place in corners.items() if values[place][2] > 200]

    assert blue_corner(pose_cutout(image, 40)) == ["top left"]
    assert blue_corner(pose_cutout(image, 40, mirror=True)) == ["top right"]
    turned = pose_cutout(image, 40, 90.0)
    assert blue_corner(turned) == ["bottom left"]
    assert cutouts.measure(turned) == (20, 40)
    assert blue_corner(pose_cutout(image, 40, 90.0, mirror=True)) == ["top left"]


@pytest.mark.parametrize("side", [9, 40, 150])
def test_the_longer_side_is_the_one_asked_for_at_any_rotation(side):
    image = Image.fromarray(rgba(60, 110, (5, 5, 55, 105)))
    for angle in (0, 7, 33, 90, 121, -45, 180):
        top, left, bottom, right = solid_box(pose_cutout(image, side, angle))
        assert abs(max(bottom - top, right - left) - side) <= max(1, side / 100) + 0.5, angle
        radians = np.radians(angle)
        sides = np.abs([[np.sin(radians), np.cos(radians)], [np.cos(radians), np.sin(radians)]]) @ (100, 50)
        assert (bottom - top) / (right - left) == pytest.approx(sides[0] / sides[1], rel=3 / side + 0.05)


def test_what_turning_makes_invisible_is_nothing():
    speck = Image.fromarray(np.full((2, 2, 4), 140, np.uint8))
    assert pose_cutout(speck, 10, 45.0) is None
    assert solid_box(pose_cutout(speck, 10, 90.0))


def test_what_scaling_makes_invisible_is_not_placed():
    line = np.zeros((100, 100, 4), np.uint8)
    line[np.arange(100), np.arange(100)] = 255
    assert pose_cutout(Image.fromarray(line), 20) is None
    stock = stock_of(pasting=Pasting((0.1, 0.2), (1, 3)), line=Image.fromarray(line))
    with pytest.raises(
        ConfigError, match=r"^no room for 1 visible objects in an image: make them fewer or smaller$"
    ):
        draw_pasted_layout(np.random.default_rng(0), 128, ("line",), stock)


def layouts(stock, count, image_size=128, seed=3):
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        yield draw_pasted_layout(rng, image_size, tuple(stock.paths), stock)


def test_objects_have_the_scales_and_numbers_asked_for():
    block, bar = (Image.fromarray(rgba(h, w, (0, 0, h, w))) for h, w in ((50, 50), (30, 90)))
    stock = stock_of(pasting=Pasting((0.1, 0.4), (2, 6), max_tilt=30), block=block, bar=bar)
    sides, counts = [], set()
    for placements, boxes, names in layouts(stock, 120):
        assert 2 <= len(boxes) <= len(placements) <= 6
        assert len(names) == len(boxes)
        counts.add(len(placements))
        for placement in placements:
            rows, columns = np.nonzero(placement.solid)
            sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert counts == {2, 3, 4, 5, 6}
    sides = np.array(sides) / 128
    assert sides.min() >= 0.1 - 1.5 / 128 and sides.max() <= 0.4 + 1.5 / 128
    assert sides.min() < 0.11 and sides.max() > 0.36
    assert 0.4 < np.mean(sides < 0.2) < 0.65  # even over the logarithm, but large ones find fewer places


def test_one_number_of_objects_and_one_scale():
    stock = stock_of(pasting=Pasting((0.25, 0.25), (3, 3), 0), block=Image.fromarray(rgba(50, 50, (0, 0, 50, 50))))
    for placements, boxes, _ in layouts(stock, 20):
        assert len(boxes) == 3
        for placement in placements:
            rows, columns = np.nonzero(placement.solid)
            assert {np.ptp(rows) + 1, np.ptp(columns) + 1} <= {31, 32, 33}


def test_images_without_objects_where_none_are_allowed():
    stock = stock_of(pasting=Pasting(num_objects=(0, 1)), block=Image.fromarray(rgba(50, 50, (0, 0, 50, 50))))
    counts = collections.Counter(len(boxes) for _, boxes, _ in layouts(stock, 60))
    assert set(counts) == {0, 1} and min(counts.values()) > 15


def test_an_object_as_large_as_the_image_stays_in_it():
    pixels = rgba(200, 200, (20, 20, 180, 180))
    pixels[:20] = pixels[180:] = (0, 0, 0, 100)  # soft surroundings beyond the image
    stock = stock_of(pasting=Pasting((1.0, 1.0), (1, 1), 0), block=trim(Image.fromarray(pixels)))
    num_whole = 0
    for placements, boxes, _ in layouts(stock, 20, image_size=64):
        assert placements[0].coverage.shape[0] > 64
        assert boxes.min() >= 0 and boxes.max() <= 64 and len(boxes) == 1
        num_whole += np.ptp(boxes[0, [0, 2]]) > 48
    assert num_whole > 10


def test_too_many_large_objects_have_no_room():
    pasting = Pasting((0.9, 1.0), (5, 5), 0)
    stock = stock_of(64, pasting, block=Image.fromarray(rgba(50, 50, (0, 0, 50, 50))))
    with pytest.raises(ConfigError, match=r"^no room for 5 visible objects in an image"):
        draw_pasted_layout(np.random.default_rng(0), 64, ("block",), stock)


@pytest.mark.parametrize("mirror", [False, True])
def test_tilts_and_mirroring_are_those_asked_for(monkeypatch, mirror):
    calls = []
    posed = pose_cutout
    monkeypatch.setattr(cutouts, "pose_cutout", lambda *values: calls.append(values[2:]) or posed(*values))
    block = Image.fromarray(rgba(50, 50, (0, 0, 50, 50)))
    for _ in layouts(stock_of(pasting=Pasting(max_tilt=40, mirror=mirror), block=block), 60):
        pass
    angles, mirrored = np.array(calls).T
    assert np.abs(angles).max() <= 40 and angles.min() < -35 and angles.max() > 35
    assert 0.3 < mirrored.mean() < 0.7 if mirror else not mirrored.any()


def test_classes_are_equally_frequent_whatever_their_number_of_files(tmp_path):
    paths = {"rare": [save(tmp_path / "rare.png", rgba(20, 20, (0, 0, 20, 20)))], "common": []}
    for number in range(9):
        colour = (0, 0, 20 * number)
        paths["common"].append(save(tmp_path / f"{number}.png", rgba(20, 20, (0, 0, 20, 20), colour)))
    stock = read_stock(paths, 64, Pasting(num_objects=(1, 1)))
    names, colours = [], set()
    for placements, _, found in layouts(stock, 200, 64):
        names += found
        middle = placements[0].pixels[placements[0].pixels.shape[0] // 2, placements[0].pixels.shape[1] // 2]
        colours.add(tuple(middle.tolist()))
    assert 70 < names.count("rare") < 130
    assert len(colours) == 10  # every file is used


def test_a_stock_beyond_its_memory_gives_the_same_layouts(tmp_path):
    paths = {"a": [], "b": []}
    for number in range(6):
        pixels = rgba(90, 90, (5, 5, 85, 50 + number))
        paths["ab"[number % 2]].append(save(tmp_path / f"{number}.png", pixels))
    pasting = Pasting(num_objects=(2, 4))
    stocks = [read_stock(paths, 64, pasting, memory) for memory in (0, 2 * 4 * 80 * 60, 1 << 20)]
    assert len(stocks[0].loaded) == 0 and 0 < len(stocks[1].loaded) < 6 and len(stocks[2].loaded) == 6
    for pictures in zip(*(layouts(stock, 5, 64) for stock in stocks), strict=True):
        for placements, boxes, names in pictures[1:]:
            np.testing.assert_array_equal(boxes, pictures[0][1])
            assert names == pictures[0][2]
            for one, other in zip(placements, pictures[0][0], strict=True):
                np.testing.assert_array_equal(one.pixels, other.pixels)


def test_cutouts_in_memory_are_no_larger_than_twice_their_largest_use(tmp_path):
    paths = {"a": [save(tmp_path / "a.png", rgba(900, 900, (0, 0, 900, 900)))]}
    stock = read_stock(paths, 100, Pasting((0.1, 0.3)))
    assert stock.longest == 60
    assert stock.loaded[paths["a"][0]].size == (60, 60)


def test_boxes_are_tight_on_the_colours_of_the_objects(tmp_path):
    """On black each object has its own full channel, so a channel of 128 or more is half covered or more."""
    black = save(tmp_path / "black.png", np.zeros((80, 80, 3), np.uint8))
    disc = Image.new("RGBA", (200, 200))
    rows, columns = np.mgrid[:200, :200]
    pixels = np.asarray(disc).copy()
    pixels[(rows - 100) ** 2 + (columns - 100) ** 2 < 90**2] = (255, 0, 0, 255)
    images = {"disc": Image.fromarray(pixels), "bar": Image.fromarray(rgba(60, 20, (5, 2, 55, 18), (0, 255, 0)))}
    stock = stock_of(96, Pasting((0.1, 0.6), (1, 3), max_tilt=40), **images)
    num_boxes = 0
    for number in range(60):
        rng = np.random.default_rng([1, number])
        image, boxes, names = draw_scene(rng, 96, ("disc", "bar"), stock, (black,))
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        for box, name in zip(boxes, names, strict=True):
            if names.count(name) > 1:
                continue  # their colours cannot be told apart
            mask = image[..., ("disc", "bar").index(name)] >= 128
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
            np.testing.assert_allclose(box, found, atol=1)  # where two edges meet, colours mix
            num_boxes += 1
        if len(names) == 1:
            np.testing.assert_array_equal(box, found)
    assert num_boxes > 60


def test_a_scene_has_the_boxes_and_pixels_of_its_layout(tmp_path):
    grey = save(tmp_path / "grey.png", np.full((50, 70, 3), 90, np.uint8))
    stock = stock_of(96, Pasting((0.3, 0.4), (2, 3)), block=Image.fromarray(rgba(50, 50, (0, 0, 50, 50))))
    for number in range(10):
        image, boxes, _ = draw_scene(np.random.default_rng(number), 96, ("block",), stock, (grey,))
        placements, expected, _ = draw_pasted_layout(np.random.default_rng(number), 96, ("block",), stock)
        np.testing.assert_array_equal(boxes, expected)
        np.testing.assert_array_equal(boxes, find_boxes(placements, 96)[0])
        touched, full = np.zeros((2, 288, 288), bool)
        for placement in placements:
            h, w = placement.coverage.shape
            top, left = placement.top + 96, placement.left + 96
            place = slice(top, top + h), slice(left, left + w)
            touched[place] |= placement.coverage > 0
            full[place] |= placement.coverage == 255
        touched, full = touched[96:192, 96:192], full[96:192, 96:192]
        assert np.all(image[~touched] == 90) and np.all(image[full] == RED)
        assert 500 < np.count_nonzero(full) < np.count_nonzero(touched) < 0.9 * touched.size


def test_photos_are_cropped_to_squares_of_half_to_all_of_their_shorter_side(tmp_path):
    """Red counts the columns and green the rows of the photograph, so a part tells where it was cut out."""
    rows, columns = np.mgrid[:100, :160]
    path = save(tmp_path / "p.png", np.stack([columns, rows, np.full_like(rows, 7)], axis=-1).astype(np.uint8))
    corners, sides = [], []
    for number in range(60):
        image = np.asarray(backgrounds.crop_photo(np.random.default_rng(number), path, 64), float)
        assert image.shape == (64, 64, 3)
        np.testing.assert_allclose(image[..., 2], 7, atol=1)
        assert np.ptp(image[..., 0], axis=0).max() <= 1 and np.ptp(image[..., 1], axis=1).max() <= 1
        w, h = image[0, -1, 0] - image[0, 0, 0], image[-1, 0, 1] - image[0, 0, 1]
        assert abs(w - h) <= 2
        sides.append(w + 2)
        corners.append((image[0, 0, 1], image[0, 0, 0]))
    assert 48 <= min(sides) < 60 and 90 < max(sides) <= 101
    top, left = np.array(corners).max(axis=0)
    assert 25 < top <= 50 and 60 < left <= 110


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 0.1)}, "scale: 0.5 is more than 0.1 (least comes first)"),
        ({"scale": (0.1, 1.5)}, "scale: 1.5 is outside 0..1"),
        ({"scale": (-0.1, 0.5)}, "scale: -0.1 is outside 0..1"),
        ({"scale": (0.01, 0.5)}, "scale: 0.01 of 256 pixels is less than 4: nothing to be seen"),
        ({"scale": (0.1, float("nan"))}, "scale: expected two numbers (least, most), got (0.1, nan)"),
        ({"scale": (0.1,)}, "scale: expected two numbers (least, most), got (0.1,)"),
        ({"num_objects": (3, 1)}, "num_objects: 3 is more than 1 (least comes first)"),
        ({"num_objects": (-1, 1)}, "num_objects: -1 is outside 0..100"),
        ({"num_objects": (1, 101)}, "num_objects: 101 is outside 0..100"),
        ({"num_objects": (0, 0)}, "num_objects: no image would have an object"),
        ({"num_objects": (1.0, 2.0)}, "num_objects: expected two integers (least, most), got (1.0, 2.0)"),
        ({"max_tilt": 181.0}, "max_tilt: 181.0 is outside 0..180 degrees"),
        ({"max_tilt": -1}, "max_tilt: -1 is outside 0..180 degrees"),
        ({"max_tilt": float("nan")}, "max_tilt: nan is outside 0..180 degrees"),
        ({"max_tilt": "15"}, "max_tilt: 15 is outside 0..180 degrees"),
    ],
)
def test_wrong_ways_of_pasting(options, message):
    with pytest.raises(ConfigError) as error:
        Pasting(**options).check(256)
    assert str(error.value) == message
    Pasting().check(64)
    Pasting((0.1, 1), (0, 100), 180, True).check(64)
