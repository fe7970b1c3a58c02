"""Boxes on pictures, pixel by pixel."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ssd_tf.errors import ConfigError
from ssd_tf.inference.drawing import class_color, draw_boxes, encode

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
