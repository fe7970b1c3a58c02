"""Boxes, pages and curves, pixel by pixel."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ssd_tf.boxes import coder
from ssd_tf.errors import ConfigError
from ssd_tf.inference import drawing
from ssd_tf.inference.drawing import class_color, draw_boxes, encode
from ssd_tf.structures import Detections, Example, LabelMap

GREY = np.full((120, 160, 3), 128, np.uint8)


def changed(picture):
    """(top, left, bottom, right) of the pixels that are not grey any more."""
    rows, columns = np.nonzero(np.any(picture != 128, axis=2))
    return rows.min(), columns.min(), rows.max(), columns.max()


def has_color(pixel, class_id):
    """Edges are drawn smoothed: their middle has nearly the colour."""
    return np.abs(pixel.astype(int) - class_color(class_id)).max() <= 12


def test_edges_have_the_colour_of_the_class():
    picture = draw_boxes(GREY, [[40, 50, 100, 90]], [""], [3])
    for y, x in ((70, 40), (70, 100), (50, 90), (90, 70)):
        assert has_color(picture[y, x], 3)
    assert np.all(picture[60:80, 50:90] == 128)  # inside
    assert np.all(picture[:, :38] == 128)
    assert np.all(picture[93:] == 128)


def test_colours_of_classes_differ_and_stay():
    colours = [class_color(class_id) for class_id in range(1, 21)]
    assert len(set(colours)) == 20
    assert class_color(1) == colours[0]
    distances = [np.abs(np.subtract(a, b)).max() for a, b in itertools.pairwise(colours)]
    assert min(distances) > 60


def test_input_is_not_changed():
    image = GREY.copy()
    image.setflags(write=False)
    picture = draw_boxes(image, [[10, 10, 50, 50]], ["cat 0.9"], [1])
    assert np.all(image == 128)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert np.any(picture != image)


def test_nothing_to_draw():
    assert np.array_equal(draw_boxes(GREY, np.zeros((0, 4)), [], []), GREY)


@pytest.mark.parametrize("classes", [(1, 2), (2, 1)])
def test_best_box_lies_on_top(classes):
    pixel = draw_boxes(GREY, [[40, 50, 100, 90]] * 2, ["", ""], classes)[70, 40].astype(int)
    first, second = (np.abs(pixel - class_color(class_id)).max() for class_id in classes)
    assert first < second / 3  # smoothed edges let a little of the lower one through


def test_caption_stands_above_the_box():
    plain, captioned = (draw_boxes(GREY, [[40, 50, 100, 90]], [text], [4]) for text in ("", "bird 0.87"))
    top, left, bottom, _ = changed(captioned)
    assert top < changed(plain)[0] - 5
    assert left >= 39
    assert bottom <= 92
    row = captioned[(top + 50) // 2, 40:60]
    assert np.any(np.all(row == class_color(4), axis=1))


@pytest.mark.parametrize("box", [[40, 0, 100, 60], [40, -30, 100, 60], [140, 2, 159, 60], [-40, 1, 30, 60]])
def test_caption_at_a_border_stays_inside(box):
    """The pixels of the caption above an ordinary box are found whole."""
    ordinary = draw_boxes(GREY, [[40, 50, 100, 90]], ["bird 0.87"], [4])
    top, left, _, _ = changed(ordinary)
    caption = ordinary[top : top + 9, left : left + 35]
    assert np.any(np.all(caption == class_color(4), axis=2))
    assert np.any(caption.max(axis=2) < 60)  # the letters
    picture = draw_boxes(GREY, [box], ["bird 0.87"], [4])
    places = np.lib.stride_tricks.sliding_window_view(picture, caption.shape)[:, :, 0]
    rows, _ = np.nonzero((places == caption).all(axis=(2, 3, 4)))
    assert rows.tolist() == [0] if box[1] <= 0 else len(rows) == 1


def caption_places(boxes, labels, shape=(300, 300)):
    """The rectangles (x0, y0, x1, y1) that captions are given, best box first."""
    return [place for _, place in drawing._place_captions(boxes, labels, 0.5, shape)]


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_captions_of_equal_boxes_do_not_cover_each_other():
    box = [50, 100, 290, 200]
    places = caption_places([box] * 5, ["bird 0.87"] * 5)
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(places, 2))
    assert places[0][0] == 50 and places[0][3] == 100  # the best one on its box, as ever
    # The picture shows all five: five times the area of one in the class's colour, letters left out.
    counts = [
        np.all(
            draw_boxes(np.zeros((300, 300, 3), np.uint8), [box] * n, ["bird"] * n, [4] * n) == class_color(4), 2
        )
        for n in (1, 5)
    ]
    edges = np.all(draw_boxes(np.zeros((300, 300, 3), np.uint8), [box], [""], [4]) == class_color(4), 2).sum()
    assert counts[1].sum() - edges > 4 * (counts[0].sum() - edges)


def test_where_all_places_are_taken_the_first_is_used():
    places = caption_places([[100, 100, 220, 200]] * 6, ["bird 0.87"] * 6)
    assert places[5] == places[0]


@pytest.mark.parametrize("seed", range(5))
def test_every_caption_lies_inside_the_picture(seed):
    rng = np.random.default_rng(seed)
    boxes = rng.integers(-50, 350, (30, 4))
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    for x0, y0, x1, y1 in caption_places(boxes.tolist(), ["bird 0.87"] * 30):
        assert 0 <= x0 < x1 <= 300 and 0 <= y0 < y1 <= 300


def test_captions_lie_over_all_lines():
    """A later box's edge runs through the caption of an earlier one, below its letters."""
    boxes, labels = [[100, 100, 220, 200], [10, 95, 290, 280]], ["bird 0.87", ""]
    black = np.zeros((300, 300, 3), np.uint8)
    (x0, y0, x1, y1), _ = (
        place for _, place in drawing._place_captions(boxes, ["bird 0.87"] * 2, 0.25 + 300 / 1280, (300, 300))
    )
    assert y0 < 95 < y1
    alone = draw_boxes(black, boxes[:1], labels[:1], [4])[y0:y1, x0:x1]
    for order in (slice(None), slice(None, None, -1)):
        both = draw_boxes(black, boxes[order], labels[order], [4, 9][order])
        assert np.array_equal(both[y0:y1, x0:x1], alone)


def test_letters_and_lines_grow_with_the_picture():
    extents = []
    for side in (200, 800, 3200):
        picture = draw_boxes(
            np.full((side, side, 3), 128, np.uint8), [[side / 4] * 2 + [side / 2] * 2], ["bird"], [4]
        )
        row = np.any(picture[side * 3 // 8] != 128, axis=1)
        extents.append((side // 4 - changed(picture)[0], row.sum()))  # height above the box, both edges
    (first, thin), (second, middle), (third, thick) = extents
    assert thin == 2 and middle == pytest.approx(8, abs=2) and thick == pytest.approx(32, abs=2)
    assert 1.6 < second / first < 4 and 2.5 < third / second < 4


def test_fit_keeps_proportions():
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, 100:] = 255
    picture, factors = drawing.fit(image, 100, 100)
    assert picture.shape == (25, 100, 3) and factors.tolist() == [0.5, 0.5]
    assert picture[:, :49].max() == 0 and picture[:, 51:].min() == 255
    # A square made of a picture of twice the width is drawn with that width again.
    square, factors = drawing.fit(np.zeros((64, 64, 3), np.uint8), 100, 100, size=(300, 600))
    assert square.shape == (50, 100, 3)
    np.testing.assert_allclose(factors, [50 / 300, 100 / 600])
    sliver, _ = drawing.fit(np.zeros((2, 4000, 3), np.uint8), 100, 100)
    assert sliver.shape == (1, 100, 3)


def flat(color, height=40, width=40):
    return np.full((height, width, 3), color, np.uint8)


def test_pictures_of_any_size_stand_in_their_cells():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [flat(color, *size) for color, size in zip(colors, [(40, 40), (20, 80), (300, 100)])]
    page = drawing.picture_grid(pictures, ["", "", ""], 2, "", cell=(100, 100))
    step_y, step_x = 100 + drawing._CAPTION + drawing._GAP, 100 + drawing._GAP
    assert page.shape == (drawing._HEADER + 2 * step_y, drawing._GAP + 2 * step_x, 3)
    sizes = [(100, 100), (25, 100), (100, 33)]
    for index, (color, (height, width)) in enumerate(zip(colors, sizes)):
        rows, columns = np.nonzero(np.all(page == color, axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
        centre = rows.mean(), columns.mean()
        top = drawing._HEADER + index // 2 * step_y + drawing._CAPTION
        assert centre[0] == pytest.approx(top + 49.5, abs=0.6)
        assert centre[1] == pytest.approx(drawing._GAP + index % 2 * step_x + 49.5, abs=0.6)


def test_captions_and_title_stay_out_of_the_pictures():
    pictures = [flat((0, 200, 0))] * 3
    long = "a very long caption with descenders: gjpqy " * 4
    page = drawing.picture_grid(pictures, [long] * 3, 3, long * 3, cell=(100, 100))
    plain = drawing.picture_grid(pictures, [""] * 3, 3, "", cell=(100, 100))
    rows, columns = np.nonzero(np.any(page != plain, axis=2))
    assert rows.min() < drawing._HEADER / 2 and rows.max() < drawing._HEADER + drawing._CAPTION
    assert columns.max() < page.shape[1] - drawing._GAP + 2
    captions = np.any(page != plain, axis=2)[drawing._HEADER : drawing._HEADER + drawing._CAPTION]
    for cell in range(3):
        left = drawing._GAP + cell * (100 + drawing._GAP)
        assert (
            captions[:, left : left + 100].any() and not captions[:, left + 102 : left + 100 + drawing._GAP].any()
        )


ANCHORS = np.array(
    [[0, 0, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.2, 0.6, 0.4, 0.9], [0, 0, 1, 1]], np.float32
)
OBJECTS = np.array([[0.1, 0.05, 0.45, 0.5], [0.5, 0.55, 0.9, 0.95]], np.float32)


def targets_of(matched, classes):
    """Targets of one image whose anchors learn OBJECTS[matched], -1 for none."""
    deltas = np.zeros((len(ANCHORS), 5), np.float32)
    labels = np.zeros(len(ANCHORS), np.int32)
    for anchor, index in enumerate(matched):
        if index >= 0:
            deltas[anchor, :4] = coder.encode(OBJECTS[index], ANCHORS[anchor])
            deltas[anchor, 4] = 1
            labels[anchor] = classes[index]
    return labels, deltas


def test_targets_give_each_object_once():
    labels, deltas = targets_of([0, 0, 1, -1, 0], [2, 1])
    labels[3] = -1  # ignored
    boxes, classes = drawing.decode_targets(labels, deltas, ANCHORS)
    np.testing.assert_allclose(boxes, OBJECTS, atol=1e-6)
    assert classes.tolist() == [2, 1]
    boxes, classes = drawing.decode_targets(*targets_of([-1] * 5, [2, 1]), ANCHORS)
    assert boxes.shape == (0, 4) and classes.shape == (0,)


def test_two_objects_of_one_place_and_two_classes_are_both_given():
    labels, deltas = targets_of([0, 0, -1, -1, -1], [2, 1])
    labels[1] = 3
    _, classes = drawing.decode_targets(labels, deltas, ANCHORS)
    assert classes.tolist() == [2, 3]


def test_batch_shows_boxes_where_the_targets_put_them():
    labels, deltas = targets_of([0, 0, 1, -1, -1], [2, 1])
    nothing = targets_of([-1] * 5, [2, 1])
    targets = {"class_logits": np.stack([nothing[0], labels]), "box_deltas": np.stack([nothing[1], deltas])}
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    page = drawing.draw_batch(images, targets, ANCHORS, LabelMap(("a", "b")))
    empty, full = cells(page, 2)
    assert np.all(empty == 128)
    for box, class_id in zip(OBJECTS, (2, 1)):
        rows, columns = np.nonzero(np.all(full == class_color(class_id), axis=2))
        bottom, right = rows.max() / 320, columns.max() / 320
        assert (bottom, right) == pytest.approx(tuple(box[2:]), abs=0.006)
    assert (
        drawing.draw_batch(images, targets, ANCHORS, LabelMap(("a", "b")), most=1).shape[1] < page.shape[1] * 0.6
    )


def cells(page, count):
    """The pictures of the first row of a page."""
    top, side = drawing._HEADER + drawing._CAPTION, drawing._CELL
    lefts = [drawing._GAP + index * (side + drawing._GAP) for index in range(count)]
    return [page[top : top + side, left : left + side] for left in lefts]


def test_validation_shows_truth_beside_detections():
    # The network saw a square; the picture is twice as wide as high.
    truth = Example("7", "", [[20, 40, 80, 160]], ("b",), size=(100, 200))
    found = Detections(
        np.array([[40, 20, 160, 80], [4, 4, 20, 20]], np.float32),
        np.array([0.9, 0.4], np.float32),
        np.array([1, 2]),
    )
    page = drawing.draw_validation(
        np.full((1, 64, 64, 3), 128, np.uint8), [truth], [found], LabelMap(("a", "b")), 0.5, 1000
    )
    left, right = cells(page, 2)
    for cell, class_id, other in ((left, 2, 1), (right, 1, 2)):
        assert not np.any(np.all(cell == class_color(other), axis=2))  # nothing below the threshold either
        rows, columns = np.nonzero(np.all(cell == class_color(class_id), axis=2))
        # Scaled by 320 / 200; the picture of 160 rows begins at row 80.
        assert rows.max() == pytest.approx(80 + 80 * 1.6, abs=2)
        assert (columns.min(), columns.max()) == pytest.approx((40 * 1.6, 160 * 1.6), abs=2)
        assert np.all(cell[:70] == drawing._EMPTY) and np.all(cell[90:100, 5:20] == 128)


@pytest.mark.parametrize(("num_truths", "shown"), [(1, 8), (5, 10)])
def test_of_many_detections_the_best_are_drawn(num_truths, shown, monkeypatch):
    counts = []
    draw = drawing.draw_boxes
    monkeypatch.setattr(
        drawing, "draw_boxes", lambda *rest: counts.append([len(part) for part in rest[1:]]) or draw(*rest)
    )
    truth = Example("7", "", [[20, 40, 80, 160]] * num_truths, ("b",) * num_truths, size=(100, 200))
    scores = np.linspace(0.9, 0.2, 50).astype(np.float32)
    found = Detections(np.tile(np.float32([40, 20, 160, 80]), (50, 1)), scores, np.full(50, 1))
    drawing.draw_validation(np.zeros((1, 64, 64, 3), np.uint8), [truth], [found], LabelMap(("a", "b")), 0.5, 9)
    assert counts == [[num_truths] * 3, [shown] * 3]


def test_validation_marks_ignored_objects():
    examples = [
        Example("7", "", [[20, 40, 80, 160]], ("b",), size=(100, 200), difficult=[flag]) for flag in (True, False)
    ]
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    widths = []
    for example in examples:
        page = drawing.draw_validation(
            np.full((1, 64, 64, 3), 128, np.uint8), [example], [nothing], LabelMap(("a", "b")), 0.5, 1000
        )
        top = cells(page, 1)[0][: 80 + 32 - 4]  # above the box
        widths.append(np.any(np.all(top == class_color(2), axis=2), axis=0).sum())
    assert widths[0] > 3 * widths[1]  # "b (ignored)" beside "b"


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (12.6, [0, 5, 10, 15]),
        (0.03, [0, 0.01, 0.02, 0.03]),
        (511, [0, 200, 400, 600]),
        (1e-5, [0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]),
        (0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (120000, [0, 50000, 100000, 150000]),
    ],
)
def test_ticks_are_round_numbers(highest, expected):
    assert drawing.axis_ticks(highest) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_reach_the_highest_value_in_few_steps(seed):
    highest = float(10 ** np.random.default_rng(seed).uniform(-8, 8))
    ticks = drawing.axis_ticks(highest)
    assert ticks[0] == 0 and ticks[-2] < highest <= ticks[-1] * (1 + 1e-9)
    assert 3 <= len(ticks) <= 6
    np.testing.assert_allclose(np.diff(ticks), ticks[1])


def line_heights(page, color, panel):
    """Highest row of a colour in the axes of a panel, for each column; a large number where it is not."""
    width, height = drawing._PANEL_SIZE
    left, top, right, bottom = drawing._MARGINS
    first = drawing._HEADER + panel * height + top
    axes = page[first : first + height - top - bottom + 1, left : width - right + 1]
    near = np.abs(axes.astype(int) - color).max(axis=2) < 40
    return np.where(near.any(axis=0), near.argmax(axis=0), 10_000)


def test_curves_pass_through_their_values():
    rows = [{"step": step, "loss": 10 - step / 100, "class_loss": 4.0} for step in range(0, 1001, 10)]
    rows += [{"step": 500, "mAP": 0.5}, {"step": 1000, "mAP": None}]
    page = drawing.draw_curves(rows, "run")
    width, height = drawing._PANEL_SIZE
    assert page.shape == (drawing._HEADER + 2 * height, width, 3)  # no learning rate, no panel of it
    tall = height - drawing._MARGINS[1] - drawing._MARGINS[3]
    loss = line_heights(page, drawing._LINE_COLORS[0], 0)
    wide = len(loss) - 1
    for share in (0.1, 0.25, 0.5, 0.75):  # 0 to 10: the axis ends at 10
        assert loss[round(share * wide)] == pytest.approx(share * tall, abs=3)
    flat_line = line_heights(page, drawing._LINE_COLORS[1], 0)
    assert flat_line[round(0.3 * wide)] == pytest.approx(0.6 * tall, abs=3)
    score = line_heights(page, drawing._LINE_COLORS[0], 1)
    (columns,) = np.nonzero(score < 10_000)
    assert columns.mean() == pytest.approx(0.5 * wide, abs=2)  # one dot, halfway
    assert score.min() == pytest.approx(0, abs=1)  # the axis ends at .5


def test_curves_of_one_step_and_of_none():
    row = {"step": 2, "loss": 12345.6, "class_loss": 0.0, "box_loss": 45.6, "learning_rate": 1.2e-5}
    width, height = drawing._PANEL_SIZE
    assert drawing.draw_curves([row], "run").shape == (drawing._HEADER + 2 * height, width, 3)
    assert drawing.draw_curves([], "run").shape == (drawing._HEADER, width, 3)


@pytest.mark.parametrize("last", [7, 999, 120_000, 1_000_000])
def test_numbers_of_the_axes_are_not_cut_off(last):
    rows = [{"step": step, "loss": value} for step, value in ((1, 123456.0), (last, 0.0))]
    page = drawing.draw_curves(rows, "x" * 500)
    dark = np.all(page < 200, axis=2)
    assert not dark[:, :3].any() and not dark[:, -3:].any() and not dark[-3:].any()


def test_encode_keeps_colours():
    red = np.zeros((8, 6, 3), np.uint8)
    red[..., 0] = 250
    decoded = np.asarray(Image.open(io.BytesIO(encode(red, "a/b.PNG"))))
    assert np.array_equal(decoded, red)
    jpeg = Image.open(io.BytesIO(encode(red, "b.jpg")))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg).astype(int) - red).max() < 8


@pytest.mark.parametrize(("path", "named"), [("x.xyz", r"a \.xyz:"), ("x", "picture without suffix")])
def test_unknown_suffix(path, named):
    with pytest.raises(ConfigError, match=named):
        encode(GREY, path)
