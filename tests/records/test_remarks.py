"""Oddities of image files that keep nothing from being used."""

import io

import pytest
from PIL import Image

from ssd_tf.records import remarks

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WebP": ".webp"}


def encode(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_other_formats(kind):
    data = encode(kind)
    for other, suffix in FORMATS.items():
        expected = () if other == kind else (f"{kind} named {suffix}: dir/a{suffix}",)
        assert remarks.describe_oddities(data, 8, 8, f"dir/a{suffix}") == expected
    for name in ("a", "jpg", "a.image", ".png"):
        assert remarks.describe_oddities(data, 8, 8, name) == ()


def test_case_of_a_name_says_nothing():
    assert remarks.describe_oddities(encode("JPEG"), 8, 8, "a.JPEG") == ()
    assert remarks.describe_oddities(encode("PNG"), 8, 8, "a.JPG\n") == ()
    assert remarks.describe_oddities(encode("PNG"), 8, 8, "a\n.JPG") == ("PNG named .JPG: a\\n.JPG",)


@pytest.mark.parametrize(
    ("height", "width", "odd"), [(1, 5000, True), (5000, 1, True), (1, 1, False), (20, 1, False), (21, 1, True)]
)
def test_extreme_aspects(height, width, odd):
    expected = (f"extreme aspect ({width}x{height}): a.jpg",) if odd else ()
    assert remarks.describe_oddities(encode("JPEG"), height, width, "a.jpg") == expected
