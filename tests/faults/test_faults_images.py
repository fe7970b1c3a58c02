"""Images that are wrong, row by row of the table of faults: exit code and first line of the converter."""

import hashlib
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fault_helpers import COCO, coco_box, draw, fault, succeed, visible, voc_xml
from PIL import Image

from ssd_tf import config as configs
from ssd_tf import fileio, images
from ssd_tf.data import pipeline
from ssd_tf.records import overlap, reader, schema

WIDTH, HEIGHT = 64, 48


def list_images(*names, box=(8, 8, 16, 16)):
    """Writes coco.json: the named images, in this order, each with one box; their sizes are not stated."""
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [coco_box(number, list(box), image_id=number) for number in range(len(names))],
        "categories": [{"id": 1, "name": "red"}],
    }
    Path("coco.json").write_text(json.dumps(content))


def convert(*names, options=(), **more):
    """Lines that the converter prints for these images; it must succeed."""
    list_images(*names, **more)
    return succeed("convert", *COCO, "--overwrite", *options).splitlines()


def refused(*names, options=()):
    """First line of the converter for these images; it must leave no records."""
    list_images(*names)
    message = fault("convert", *COCO, *options, code=3)
    assert visible(Path("rec")) == ["convert_report.json"]
    return message


def refused_again(name):
    list_images(name)
    return fault("convert", *COCO, "--overwrite", code=3)


def write_images(**contents):
    """Writes files NAME.jpg of bytes or text."""
    for name, content in contents.items():
        Path(f"{name}.jpg").write_bytes(content if isinstance(content, bytes) else content.encode())


def records():
    """The keys of each record, in order: {key: value or list of values}."""
    rows = []
    for file in reader.open_records("rec").files:
        for serialized in tf.data.TFRecordDataset(file):
            feature = tf.train.Example.FromString(serialized.numpy()).features.feature
            rows.append(
                {key: list(getattr(value, value.WhichOneof("kind")).value) for key, value in feature.items()}
            )
    return rows


def pixels(row):
    """uint8 [H, W, 3] of a record, as evaluation sees it."""
    return images.decode(tf.constant(row[schema.ENCODED][0])).numpy()


def photo(width=640, height=480, seed=0):
    """Pixels with detail everywhere and no noise, as a photo's."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_row_1_jpeg_cut_in_the_middle(folder, share):
    whole = encode(photo())
    size = int(len(whole) * share)
    write_images(a=whole[:size])
    found = re.fullmatch(
        r"bad image: truncated JPEG \(got ([\d,]+) of about ([\d,]+) bytes\): a\.jpg", refused("a.jpg")
    )
    got, about = (int(number.replace(",", "")) for number in found.groups())
    assert got == size and abs(about - len(whole)) < 0.1 * len(whole)
    write_images(b=whole)
    out = convert("a.jpg", "b.jpg", options=("--on_error=skip", "--max_skipped=1"))
    assert found[0] in out and out[-2].startswith("1 examples, ")


def test_row_2_random_bytes_that_decoders_do_not_notice(folder):
    data = bytearray(encode(photo()))
    noise = np.random.default_rng(0).integers(0, 255, 40, np.uint8).tobytes()  # 255 would start a marker
    data[len(data) // 2 : len(data) // 2 + 40] = noise
    write_images(a=bytes(data))
    assert convert("a.jpg")[0].startswith("1 examples, ")
    assert records()[0][schema.ENCODED] == [bytes(data)]
    assert overlap.read_digests("rec") == {hashlib.sha256(data).hexdigest(): "0"}


def test_row_2_random_bytes_that_decoders_warn_of(folder):
    data = bytearray(encode(photo()))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\x01"  # no marker that belongs there
    write_images(a=bytes(data))
    assert convert("a.jpg")[0] == "decoded with libjpeg warnings, encoded again: a.jpg"
    (row,) = records()
    assert pixels(row).shape == (480, 640, 3) and row[schema.ENCODED] != [bytes(data)]
    assert overlap.read_digests("rec") == {hashlib.sha256(data).hexdigest(): "0"}


@pytest.mark.parametrize("marker", [b"\xff\x55", b"\xff\xdd\x00\x07"])
def test_row_2_random_bytes_that_no_decoder_accepts(folder, marker):
    data = bytearray(encode(photo()))
    data[len(data) // 2 : len(data) // 2 + len(marker)] = marker
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(bytes(data)))
    write_images(a=bytes(data))
    assert refused("a.jpg") == "bad image: broken data stream when reading image file: a.jpg"


def test_row_3_empty_file(folder):
    write_images(a=b"")
    assert refused("a.jpg") == "bad image: empty file: a.jpg"


def test_row_4_page_saved_as_an_image(folder):
    write_images(a="<!DOCTYPE html><title>404</title>")
    assert refused("a.jpg") == "bad image: not an image (starts with '<!DOCTYPE'): a.jpg"


def isobmff(brand):
    return struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, b"mif1") + bytes(100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(Image.new("RGB", (8, 8)), "TIFF"), "TIFF"),
        (isobmff(b"heic"), "HEIC"),
        (isobmff(b"mif1"), "HEIC"),
        (isobmff(b"avif"), "AVIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg></svg>', "SVG"),
        (encode(Image.new("RGB", (8, 8)), "PPM"), "PPM"),
    ],
)
def test_row_5_formats_that_are_not_supported(folder, data, kind):
    write_images(a=data)
    assert refused("a.jpg") == f"bad image: {kind} is not supported; convert it first: a.jpg"


def test_row_6_name_that_lies(folder):
    data = encode(photo(WIDTH, HEIGHT), "PNG")
    write_images(a=data, b=encode(photo(WIDTH, HEIGHT, 1)))
    Path("c.jpeg").write_bytes(encode(photo(WIDTH, HEIGHT, 2)))
    Path("d.png").write_bytes(encode(photo(WIDTH, HEIGHT, 3)))
    out = convert("a.jpg", "b.jpg", "c.jpeg", "d.png")
    assert out[:2] == ["PNG named .jpg: a.jpg", "JPEG named .png: d.png"] and out[2].startswith("4 examples, ")
    rows = records()
    assert [row[schema.FORMAT] for row in rows] == [[b"png"], [b"jpeg"], [b"jpeg"], [b"jpeg"]]
    assert rows[0][schema.ENCODED] == [data]


def test_row_7_cmyk(folder):
    color = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))  # red
    write_images(a=encode(color))
    assert convert("a.jpg")[0] == "CMYK converted to RGB: a.jpg"
    np.testing.assert_allclose(pixels(records()[0])[5, 5], (255, 0, 0), atol=8)


def test_row_8_16_bit_png(folder):
    grey = np.full((HEIGHT, WIDTH), 0x9C80, np.uint16)
    write_images(a=encode(Image.fromarray(grey), "PNG"))
    out = convert("a.jpg")
    assert [line for line in out if "16-bit" in line] == ["16-bit reduced: a.jpg"]
    assert np.unique(pixels(records()[0])).tolist() == [0x9C]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("P", 1, (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_row_9_channels_of_png(folder, mode, color, expected):
    image = Image.new(mode, (WIDTH, HEIGHT), color)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30])
    Path("a.png").write_bytes(encode(image, "PNG"))
    out = convert("a.png")
    assert (out[0] == "transparency put on white: a.png") == (mode in ("RGBA", "LA"))
    stored = pixels(records()[0])
    assert stored.shape == (HEIGHT, WIDTH, 3)
    assert np.unique(stored.reshape(-1, 3), axis=0).tolist() == [list(expected)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_row_10_animations(folder, kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ((255, 0, 0), (0, 0, 255))]
    name = f"a.{kind.lower()}"
    Path(name).write_bytes(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert convert(name)[0] == f"first frame of an animation: {name}"
    stored = pixels(records()[0])
    assert stored.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(stored[9, 9], (255, 0, 0), atol=8)


def write_rotated(orientation):
    """An image whose upright upper left quarter is white, stored turned as EXIF says; returns its upright size."""
    upright = np.zeros((HEIGHT, WIDTH), np.uint8)
    upright[: HEIGHT // 2, : WIDTH // 2] = 255
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    Path("a.jpg").write_bytes(encode(stored, exif=exif, quality=95))
    return stored.size


@pytest.mark.parametrize("orientation", range(2, 9))
def test_row_11_rotation_by_exif(folder, orientation):
    width, height = write_rotated(orientation)
    assert refused("a.jpg", options=("--exif=error",)) == (
        f"bad image: EXIF orientation {orientation} (--exif=error): a.jpg"
    )
    assert convert("a.jpg", box=(0, 0, 32, 24))[0] == "rotated by EXIF: a.jpg"
    (row,) = records()
    stored = pixels(row)
    assert stored.shape == (HEIGHT, WIDTH, 3)
    corner = stored[: HEIGHT // 2, : WIDTH // 2]  # the box, as displayed
    assert corner.mean() > 240 and stored.mean() < 70
    assert [row[key] for key in schema.CORNERS] == [[0], [0], [0.5], [0.5]]
    assert convert("a.jpg", options=("--exif=ignore",))[0] == "EXIF orientation removed: a.jpg"
    assert pixels(records()[0]).shape == (height, width, 3)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def test_row_12_header_that_claims_too_many_pixels(folder, monkeypatch):
    def never(*arguments, **more):
        raise AssertionError("decoded")

    write_images(a=png(40_000, 40_000, png_chunk(b"IDAT", zlib.compress(bytes(10)))), b=png(8_001, 8_000))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    assert refused("a.jpg") == "bad image: 1,600 Mpx exceeds --max_pixels=64M: a.jpg"
    assert refused("b.jpg") == "bad image: 64.008 Mpx exceeds --max_pixels=64M: b.jpg"
    write_images(a=encode(photo(WIDTH, HEIGHT)))
    message = refused("a.jpg", options=("--max_pixels=3071",))
    assert message == "bad image: 0.003072 Mpx exceeds --max_pixels=0.003071M: a.jpg"
    monkeypatch.undo()
    os.chdir(folder)
    convert("a.jpg", options=("--max_pixels=3072",))


@pytest.mark.parametrize("count", [1, 80])
def test_row_13_metadata_that_unpacks_without_end(folder, count):
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20 if count == 1 else 1_000_000)))
    image = encode(photo(WIDTH, HEIGHT), "PNG")
    end = image.index(b"IDAT") - 4
    write_images(a=image[:end] + text * count + image[end:])
    assert refused("a.jpg") == "bad image: metadata too large: a.jpg"


def test_row_14_extreme_shapes(folder):
    shapes = [(1, 5000), (5000, 1), (1, 1)]
    for number, shape in enumerate(shapes):
        Path(f"{number}.png").write_bytes(encode(photo(*(max(side, 4) for side in shape)).resize(shape), "PNG"))
    out = convert("0.png", "1.png", "2.png", box=(0, 0, 1, 2))
    assert out[:2] == ["extreme aspect (1x5000): 0.png", "extreme aspect (5000x1): 1.png"]
    assert out[2].startswith("3 examples, 3 boxes (red 3); 0 skipped, ")
    config = configs.load_config(None, ["model.image_size=96", "train.batch_size=3"])
    anchors = np.array([[0, 0, 1, 1], [0, 0, 1e-3, 1], [0.5, 0.5, 0.6, 0.6]], np.float32)
    stream = pipeline.training_stream(reader.open_records("rec"), anchors, config)
    for pictures, targets, weights in stream.take(2):
        assert pictures.shape == (3, 96, 96, 3)
        assert np.isfinite(targets["box_deltas"]).all() and np.isfinite(weights).all()
    _, targets, _ = next(iter(pipeline.validation_batches(reader.open_records("rec"), anchors, config)))
    assert np.all(np.max(targets["class_logits"], axis=1) == 1)  # each box has an anchor
    assert np.isfinite(targets["box_deltas"]).all()


@pytest.mark.parametrize(
    ("stem", "escaped"),
    [
        ("with space", "with space"),
        ("line\nbreak", "line\\nbreak"),
        ("tab\tquote'", "tab\\tquote'"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\udce9"),
    ],
)
def test_row_15_odd_names(folder, stem, escaped):
    (folder / "flat").mkdir()
    Path(f"flat/{stem}.xml").write_text(voc_xml([("red", 5, 5, 30, 20)]))
    draw(Path("flat") / "plain.jpg")
    os.rename("flat/plain.jpg", f"flat/{stem}.jpg")
    argv = ("--format=voc", "--input=flat", "--output=rec")
    succeed("convert", *argv)
    assert [example.source_id for example in reader.read_examples(reader.open_records("rec"))] == [stem]
    assert records()[0][schema.FILENAME] == [os.fsencode(f"{stem}.jpg")]
    Path(f"flat/{stem}.jpg").write_bytes(b"")
    message = fault("convert", *argv, "--overwrite", code=3)
    assert message == f"bad image: empty file: flat/{escaped}.jpg"
    assert json.loads(Path("rec/convert_report_failed.json").read_text())["skipped"][0]["message"] == message


def test_row_15_long_names(folder):
    longest = "n" * 251 + ".jpg"
    draw(folder / "a.jpg")
    os.rename("a.jpg", longest)
    convert(longest)
    assert records()[0][schema.FILENAME] == [longest.encode()]
    assert refused_again("n" * 300 + ".jpg") == f"cannot read: file name too long: {'n' * 300}.jpg"


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_row_16_what_is_no_file(folder, kind):
    if kind == "directory":
        Path("a.jpg").mkdir()
    elif kind == "fifo":
        os.mkfifo("a.jpg")
    else:
        os.symlink("/dev/zero", "a.jpg")
    assert refused("a.jpg") == "not a regular file: a.jpg"


def test_row_17_files_that_may_not_be_read(folder, monkeypatch):
    draw(folder / "a.jpg")
    true_open = os.open

    def open_others(path, *rest, **more):  # the superuser may read everything
        if os.fspath(path) == "a.jpg":
            raise PermissionError(13, "Permission denied", path)
        return true_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", open_others)
    assert refused("a.jpg") == "cannot read: permission denied: a.jpg"


def test_row_17_links_to_nothing(folder):
    os.symlink("gone.jpg", "a.jpg")
    assert refused("a.jpg") == "no such file: a.jpg"
    os.symlink("b.jpg", "b.jpg")
    assert refused_again("b.jpg").startswith("cannot read: too many levels of symbolic links: b.jpg")


def test_row_18_same_bytes_under_two_ids(folder):
    draw(folder / "a.jpg")
    draw(folder / "b.jpg")
    write_images(c=Path("a.jpg").read_bytes())
    out = convert("a.jpg", "b.jpg", "c.jpg")
    assert out[0] == "same image bytes under two ids: 0 and 2" and out[1].startswith("3 examples, ")


def test_row_18_image_that_is_in_another_set(folder):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(folder / name)
    convert("a.jpg", "b.jpg")
    os.rename("rec", "other")
    list_images("c.jpg", "b.jpg")
    content = json.loads(Path("coco.json").read_text())
    for row, owner in zip(content["images"] + content["annotations"], (70, 71, 70, 71), strict=True):
        row["id" if "file_name" in row else "image_id"] = owner
    Path("coco.json").write_text(json.dumps(content))
    message = fault("convert", *COCO, "--check_overlap=other", code=3)
    assert message == "1 image is in the other records too (here = there): 71 = 1"
    assert visible(Path("rec")) == ["convert_report.json"]
    convert("c.jpg", options=("--check_overlap=other",))
    assert (
        fault("convert", *COCO, "--overwrite", "--check_overlap=gone", code=3) == "no such records directory: gone"
    )


def test_row_19_image_that_changes_while_it_is_read(folder, monkeypatch):
    draw(folder / "a.jpg")
    data, reads, true_read = Path("a.jpg").read_bytes(), [], fileio.read_bytes

    def read_and_change(path, *rest):
        found = true_read(path, *rest)
        if str(path) == "a.jpg":
            reads.append(path)
            Path("a.jpg").write_bytes(b"changed")
        return found

    monkeypatch.setattr(fileio, "read_bytes", read_and_change)
    convert("a.jpg")
    assert len(reads) == 1
    assert records()[0][schema.ENCODED] == [data]
    assert overlap.read_digests("rec") == {hashlib.sha256(data).hexdigest(): "0"}
