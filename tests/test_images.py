"""Image files of every kind, broken ones, decoding and resizing."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf import images, jpeg
from ssd_tf.errors import DataError

HEIGHT, WIDTH = 24, 40


def photo(height=HEIGHT, width=WIDTH):
    """A smooth picture with no symmetry, so that JPEG keeps it and turns show."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = (255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7))
    return np.stack(channels, axis=-1).astype(np.uint8)


def encode(image, kind, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder, data, name="image.bin"):
    path = folder / name
    path.write_bytes(data)
    return path


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width, height, depth, color_type, rows=b""):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def stored(picture):
    """The pixels of a Picture as training sees them."""
    pixels = images.decode(tf.constant(picture.data)).numpy()
    assert pixels.shape == (picture.height, picture.width, 3)
    return pixels


def check_near(one, other, mean=3.0):
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).mean() < mean


UNTOUCHED = {
    "jpeg": (encode(photo(), "JPEG"), "jpeg"),
    "progressive jpeg": (encode(photo(), "JPEG", progressive=True), "jpeg"),
    "jpeg 4:2:0": (encode(photo(), "JPEG", subsampling=2), "jpeg"),
    "grey jpeg": (encode(photo()[..., 0], "JPEG"), "jpeg"),
    "png": (encode(photo(), "PNG"), "png"),
    "grey png": (encode(photo()[..., 0], "PNG"), "png"),
    "palette png": (encode(Image.fromarray(photo()).quantize(16), "PNG"), "png"),
    "upright exif": (encode(photo(), "JPEG", exif=exif(1)), "jpeg"),
}


@pytest.mark.parametrize(("data", "kind"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_good_files_keep_their_bytes(data, kind):
    picture = images.standardise(data, "a")
    assert picture == images.Picture(data, kind, HEIGHT, WIDTH)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(stored(picture), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize(("data", "kind"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_reading_a_file_gives_the_pixels_of_its_record(tmp_path, data, kind):
    pixels = images.read_rgb(write(tmp_path, data))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, stored(images.standardise(data, "a")))


def transparent():
    """Left half opaque, right half transparent."""
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, : WIDTH // 2] = 255
    on_white = np.where(alpha == 255, photo(), 255)
    return np.concatenate([photo(), alpha], axis=-1), on_white


def test_transparency_is_put_on_white(tmp_path):
    rgba, on_white = transparent()
    data = encode(rgba, "PNG")
    picture = images.standardise(data, "a.png")
    assert (picture.format, picture.changes) == ("png", ("transparency put on white",))
    np.testing.assert_array_equal(stored(picture), on_white)
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), on_white)


def test_half_transparency_mixes_with_white():
    rgba = np.full((2, 2, 4), (100, 0, 200, 51), np.uint8)  # a fifth
    pixels = stored(images.standardise(encode(rgba, "PNG"), "a.png"))
    np.testing.assert_allclose(pixels[0, 0], [224, 204, 244], atol=1)


def test_grey_with_alpha_and_palette_with_a_transparent_colour():
    grey_alpha = np.dstack([photo()[..., 0], np.full((HEIGHT, WIDTH), 255, np.uint8)])
    picture = images.standardise(encode(grey_alpha, "PNG"), "a.png")
    np.testing.assert_array_equal(stored(picture), np.repeat(photo()[..., :1], 3, -1))
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    picture = images.standardise(encode(palette, "PNG", transparency=0), "a.png")
    expected = np.full((2, 3, 3), 255)
    expected[0, 1] = [0, 0, 255]
    np.testing.assert_array_equal(stored(picture), expected)


def test_sixteen_bit_grey_keeps_the_upper_bits(tmp_path):
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 68).astype(np.uint16)
    data = encode(Image.fromarray(values), "PNG")
    picture = images.standardise(data, "a.png")
    assert picture.changes == ("16-bit reduced",)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(stored(picture), expected)
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), expected)


def test_sixteen_bit_colour_keeps_the_upper_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = png_file(7, 5, 16, 2, rows)
    expected = (values >> 8).astype(np.uint8)
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), expected)
    np.testing.assert_allclose(stored(images.standardise(data, "a.png")), expected, atol=1)


def test_one_bit_images():
    bits = Image.fromarray(photo()[..., 0]).convert("1")
    pixels = stored(images.standardise(encode(bits, "PNG"), "a.png"))
    np.testing.assert_array_equal(pixels, np.asarray(bits.convert("RGB")))


def test_cmyk_is_converted(tmp_path):
    cmyk = Image.fromarray(photo()).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    picture = images.standardise(data, "a.jpg")
    assert (picture.format, picture.changes) == ("jpeg", ("CMYK converted to RGB",))
    check_near(stored(picture), photo())
    check_near(images.read_rgb(write(tmp_path, data)), photo())


TURNED = {  # what the pixels as stored must become, by the EXIF standard
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    data = encode(photo(), kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as opened:
        expected = TURNED[orientation](np.asarray(opened))
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), expected)
    picture = images.standardise(data, "a")
    assert (picture.height, picture.width) == expected.shape[:2]
    assert picture.changes == (() if orientation == 1 else ("rotated by EXIF",))
    check_near(stored(picture), expected, 0.001 if kind == "PNG" else 1.5)
    with Image.open(io.BytesIO(picture.data)) as opened:
        assert opened.getexif().get(0x0112, 1) == 1  # nobody turns it again


def test_exif_orientation_can_be_ignored_or_refused():
    data = encode(photo(), "JPEG", exif=exif(6), quality=95)
    picture = images.standardise(data, "a.jpg", exif="ignore")
    assert (picture.height, picture.width) == (HEIGHT, WIDTH)
    assert picture.changes == ("EXIF orientation removed",)
    check_near(stored(picture), photo())
    with Image.open(io.BytesIO(picture.data)) as opened:
        assert opened.getexif().get(0x0112, 1) == 1
    with pytest.raises(DataError, match=r"^bad image: EXIF orientation 6 \(--exif=error\): a\.jpg$"):
        images.standardise(data, "a.jpg", exif="error")


@pytest.mark.parametrize(("kind", "format", "mean"), [("BMP", "png", 0.001), ("WEBP", "jpeg", 3.0)])
def test_other_formats_are_encoded_again(tmp_path, kind, format, mean):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(photo(), kind, **options)
    picture = images.standardise(data, "a")
    assert picture.format == format
    assert picture.changes == (f"{kind.lower()} encoded as {format}",)
    check_near(stored(picture), photo(), mean)
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), photo())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(tmp_path, kind):
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = images.standardise(data, "a.gif")
    assert "first frame of an animation" in picture.changes
    check_near(stored(picture), np.full((6, 8, 3), (255, 0, 0)), 2)
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data)), np.full((6, 8, 3), (255, 0, 0)))


def test_a_lying_extension_is_seen_through(tmp_path):
    data = encode(photo(), "PNG")
    assert images.standardise(data, "a.jpg").format == "png"
    np.testing.assert_array_equal(images.read_rgb(write(tmp_path, data, "a.jpg")), photo())


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_sizes_are_accepted(size):
    pixels = np.full((*size, 3), 90, np.uint8)
    for kind in ("PNG", "JPEG"):
        picture = images.standardise(encode(pixels, kind), "a")
        assert (picture.height, picture.width) == size
        assert (stored(picture) == 90).all()


# --- broken files ---------------------------------------------------------------------------------

TRUNCATED_JPEG = encode(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8), "JPEG")[:2345]
TRUNCATED_PNG = encode(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8), "PNG")[:5000]
BAD = {
    "truncated jpeg": (TRUNCATED_JPEG, r"^bad image: truncated JPEG \(got 2,345 of about 4,000 bytes\): x\.jpg$"),
    "truncated png": (TRUNCATED_PNG, r"^bad image: truncated PNG \(got 5,000 bytes\): x\.jpg$"),
    "empty": (b"", r"^bad image: empty file: x\.jpg$"),
    "html": (b"<!DOCTYPE html><html>", r"^bad image: not an image \(starts with '<!DOCTYPE'\): x\.jpg$"),
    "noise": (bytes(range(128, 200)), r"^bad image: not an image \(starts with .*\): x\.jpg$"),
    "tiff": (encode(photo(), "TIFF"), r"^bad image: TIFF is not supported; convert it first: x\.jpg$"),
    "bomb": (
        png_file(40_000, 40_000, 8, 2),
        r"^bad image: 1,600 Mpx exceeds --max_pixels=64M: x\.jpg$",
    ),
    "large": (png_file(9_000, 9_000, 8, 2), r"^bad image: 81 Mpx exceeds --max_pixels=64M: x\.jpg$"),
    "header alone": (encode(photo(), "JPEG")[:12], r"^bad image: .*: x\.jpg$"),
    "huge text": (
        png_file(4, 4, 8, 2)[:33]
        + png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (1 << 26)))
        + png_file(4, 4, 8, 2)[33:],
        r"^bad image: metadata too large: x\.jpg$",
    ),
    "no rows": (png_file(4, 4, 8, 2), r"^bad image: .*: x\.jpg$"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_broken_files_are_named_with_their_fault(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        images.standardise(data, "x.jpg")
    path = write(tmp_path, data, "x.jpg")
    with pytest.raises(DataError) as caught:
        images.read_rgb(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_limit_of_pixels_can_be_moved():
    data = encode(photo(), "PNG")
    assert images.standardise(data, "a", max_pixels=HEIGHT * WIDTH).width == WIDTH
    with pytest.raises(DataError, match="exceeds --max_pixels"):
        images.standardise(data, "a", max_pixels=HEIGHT * WIDTH - 1)


def test_names_are_printed_escaped():
    with pytest.raises(DataError) as caught:
        images.standardise(b"", "a\nb \udce9.jpg")
    assert str(caught.value) == r"bad image: empty file: a\nb \udce9.jpg"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, words in (("", "not a regular file"), ("pipe", "not a regular file"), ("link", "no such file")):
        with pytest.raises(DataError, match=words):
            images.read_rgb(tmp_path / name)


# --- decoding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(bccd):
    paths = sorted((bccd / "JPEGImages").glob("*.jpg"))
    return [path.read_bytes() for path in paths[:: len(paths) // 6]]


def test_decoding_equals_pillow_on_photographs(photographs, bccd):
    for data in photographs:
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB"))
        np.testing.assert_array_equal(images.decode(tf.constant(data)), expected)


def test_photographs_keep_their_bytes(photographs):
    for data in photographs:
        assert images.standardise(data, "a.jpg").data == data


WINDOWS = [
    (0, 0, 480, 640),
    (0, 0, 17, 23),
    (101, 203, 77, 155),
    (33, 7, 400, 600),
    (479, 639, 1, 1),
    (9, 0, 471, 640),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_a_slice_of_the_whole_photograph(photographs, window):
    top, left, height, width = window
    for data in photographs[:2]:
        whole = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_FAST").numpy()
        part = images.decode_window(tf.constant(data), tf.constant(window)).numpy()
        expected = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(part[:, 1:-1], expected[:, 1:-1])
        # libjpeg-turbo interpolates the colours of a cut's outer columns without their neighbours.
        assert np.abs(part.astype(int) - expected).max() <= 8


@pytest.mark.parametrize(("data", "kind"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_a_window_of_any_kind_is_near_the_slice(data, kind):
    part = images.decode_window(tf.constant(data), tf.constant([3, 5, 16, 30])).numpy()
    check_near(part, images.decode(tf.constant(data)).numpy()[3:19, 5:35], 1.5)


def test_decoding_inside_a_data_set_map():
    encoded = [data for data, _ in UNTOUCHED.values()]
    for data, pixels in zip(encoded, tf.data.Dataset.from_tensor_slices(encoded).map(images.decode), strict=True):
        np.testing.assert_array_equal(pixels, images.decode(tf.constant(data)))


# --- resizing -------------------------------------------------------------------------------------


def columns(*values):
    return tf.constant(np.repeat(np.array(values, np.uint8)[..., None], 3, -1))


def test_resize_by_hand():
    square = columns(*np.arange(16).reshape(4, 4))
    half_pixel = images.resize(square, (2, 2))
    legacy = images.resize(square, (2, 2), "bilinear_tf1")
    assert half_pixel.dtype == legacy.dtype == tf.float32
    np.testing.assert_allclose(half_pixel[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(legacy[..., 2], [[0, 2], [8, 10]])


def test_enlarging_by_hand():
    pair = columns([0, 80])
    np.testing.assert_allclose(images.resize(pair, (1, 4))[0, :, 0], [0, 20, 60, 80])
    np.testing.assert_allclose(images.resize(pair, (1, 4), "bilinear_tf1")[0, :, 0], [0, 40, 80, 80])


@pytest.mark.parametrize("rule", ["bilinear", "bilinear_tf1"])
def test_resize_to_a_size_known_at_run_time(rule):
    pixels = tf.constant(photo())
    graph = tf.function(lambda size: images.resize(pixels, size, rule))
    np.testing.assert_allclose(graph(tf.constant([7, 11])), images.resize(pixels, (7, 11), rule), atol=1e-4)
    np.testing.assert_array_equal(images.resize(pixels, (HEIGHT, WIDTH), rule), photo())


def test_to_uint8_rounds_and_saturates():
    values = tf.constant([-3.0, 0.4, 0.6, 254.6, 255.4, 300.0])
    assert images.to_uint8(values).numpy().tolist() == [0, 0, 1, 255, 255, 255]


def test_damaged_files_keep_their_size_when_every_file_is_decoded():
    data = encode(photo(), "JPEG")
    for damaged in (data, data[:20] + b"\0\1" + data[20:]):  # bytes between two segments
        for verify in images.VERIFY_MODES:
            picture = images.standardise(damaged, "a.jpg", verify=verify)
            assert (picture.height, picture.width) == stored(picture).shape[:2] == photo().shape[:2]
            assert (picture.data is damaged) == (damaged is data)


def segment(data, kind):
    """(start, end) of the first JPEG segment of a kind, marker included."""
    at = 2
    while data[at + 1] != kind:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return at, at + 2 + int.from_bytes(data[at + 2 : at + 4])


def test_fill_bytes_before_a_marker_change_nothing():
    data = encode(photo(), "JPEG")
    filled = data[:2] + b"\xff\xff" + data[2:]
    assert images.standardise(filled, "a.jpg").data is filled


@pytest.mark.parametrize("fault", ["one component twice", "more blocks than a unit holds", "no such table"])
def test_scans_that_decoders_refuse_are_seen(fault):
    data = bytearray(encode(photo(), "JPEG"))
    scan, _ = segment(data, 0xDA)
    frame, _ = segment(data, 0xC0)
    if fault == "one component twice":
        data[scan + 7] = data[scan + 5]
    elif fault == "more blocks than a unit holds":
        data[frame + 11] = data[frame + 14] = 0x44
    else:
        data[scan + 6] = 0x33
    assert jpeg.follow(bytes(data)) is None
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_jpeg(bytes(data))


def test_16_bits_of_a_coloured_png_are_counted():
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (6, 8, 3), np.uint16)
    data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    picture = images.standardise(data, "a.png")
    assert picture.changes == ("16-bit reduced",)
    np.testing.assert_array_equal(stored(picture), pixels >> 8)
