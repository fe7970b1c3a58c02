"""Image bytes to upright RGB pixels: the one place where images are judged, decoded and resized.

Pillow looks at files from outside (headers first, within limits); TensorFlow decodes what records hold, and
is imported by the functions that do: converting needs none of it. Both give the same pixels: measured,
TensorFlow's "INTEGER_ACCURATE" equals Pillow's decoder.
"""

import contextlib
import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ssd_tf import fileio, jpeg, png
from ssd_tf.errors import DataError, shown

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 1 << 30
EXIF_MODES = ("apply", "ignore", "error")
VERIFY_MODES = ("structure", "decode")
RGB_MEAN = (123, 117, 104)  # caffe SSD's mean image, rounded, as RGB

_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"}  # of ISO media files
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC")
_PHOTOGRAPHIC = ("jpeg", "webp")  # encoded again as JPEG where needed; the others as PNG
_ORIENTATION_TAG = 0x0112
_QUALITY = 95


@dataclass(frozen=True)
class Picture:
    """An image file made fit for a record: upright RGB or grey, 8 bits, JPEG or PNG.

    Attributes:
      data: encoded bytes; the file's own where they were fit already.
      format: "jpeg" or "png".
      height, width: pixels, upright.
      changes: what was done to the file, such as "rotated by EXIF"; empty if nothing.
    """

    data: bytes
    format: str
    height: int
    width: int
    changes: tuple[str, ...] = ()


def read_rgb(path, max_pixels=MAX_PIXELS):
    """Reads an image file.

    Args:
      path: JPEG, PNG, BMP, GIF (first frame) or WebP file.
      max_pixels: larger images are refused before they are decoded.

    Returns:
      uint8 [H, W, 3], RGB, upright by EXIF, on white where it was transparent.

    Raises:
      DataError: unreadable, not an image, truncated or too large; names the file.
    """
    data = fileio.read_bytes(path, MAX_FILE_BYTES)
    with _open(data, path, max_pixels) as image:
        return np.asarray(upright_rgb(_load(image, data, path)))


def upright_rgb(image):
    """Returns a Pillow image as 8-bit RGB: first frame, rotated by EXIF, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: keep the upper 8, Pillow would clip
        pixels = np.asarray(image).astype(np.int64)
        return Image.fromarray((pixels >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def standardise(data, name, exif="apply", max_pixels=MAX_PIXELS, verify="structure"):
    """Checks an image file and makes it fit for a record, changing its bytes only where it must.

    Args:
      data: the file's bytes.
      name: the file's name, for messages.
      exif: "apply" rotates as displayed, "ignore" keeps the pixels as stored, "error" refuses rotated files.
      max_pixels: larger images are refused before they are decoded.
      verify: "structure" follows a JPEG from marker to marker and decodes only what looks wrong; "decode"
        decodes every file, which takes many times as long. A PNG's pixels are always unpacked.

    Returns:
      Picture.

    Raises:
      DataError: not an image, truncated, too large or unsupported; the message names the file.
    """
    head = jpeg.follow(data) if data[:2] == b"\xff\xd8" else None
    if verify == "structure" and head is not None and not head.has_metadata and len(head.components) in (1, 3):
        _check_pixels(*head.size, max_pixels, name)
        return Picture(data, "jpeg", *head.size)
    with _open(data, name, max_pixels) as image:
        kind = _FORMATS[image.format]
        changes = _needed_changes(image, data, exif, name)
        if not changes and kind in ("jpeg", "png"):
            width, height = image.size
            whole = png.is_strict(png.read_chunks(data, name)) if kind == "png" else head is not None
            if verify == "decode":
                _verify(data, name, max_pixels)
            if whole:
                return Picture(data, kind, height, width)
            changes = (f"decoded with lib{kind} warnings, encoded again",)
        image = _load(image, data, name)
        if exif == "ignore":
            image.getexif().pop(_ORIENTATION_TAG, None)
            image.info.pop("exif", None)
        upright = upright_rgb(image)
    stored = "jpeg" if kind in _PHOTOGRAPHIC else "png"
    changes = changes or (f"{kind} encoded as {stored}",)
    return Picture(_encode(upright, stored), stored, upright.height, upright.width, changes)


def read_size(data, name, max_pixels=MAX_PIXELS):
    """Returns (height, width) as an image file's header states them; DataError if it is none or too large."""
    with _open(data, name, max_pixels) as image:
        return image.height, image.width


def _open(data, name, max_pixels):
    """Opens an image without decoding it; header and size are judged here."""
    if not data:
        raise DataError(f"bad image: empty file: {shown(name)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if kind := _foreign_kind(data):
            raise _unsupported(kind, name) from None
        start = data[:9].decode("ascii", "replace").encode("ascii", "replace").decode()
        raise DataError(f"bad image: not an image (starts with {start!r}): {shown(name)}") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r"\d+", str(error)).group())
        raise _too_large(pixels, max_pixels, name) from None
    except Exception as error:  # Pillow's header readers raise whatever a broken header makes them trip on
        raise _unreadable(error, name) from None
    if image.format not in _FORMATS:
        raise _unsupported(image.format, name)
    _check_pixels(image.height, image.width, max_pixels, name)
    return image


def _unsupported(kind, name):
    return DataError(f"bad image: {kind} is not supported; convert it first: {shown(name)}")


def _foreign_kind(data):
    """Names a format that Pillow may not know, "" if it is none of those either."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return "SVG" if start.startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg")) and b"<svg" in start else ""


def _check_pixels(height, width, max_pixels, name):
    if height * width > max_pixels:
        raise _too_large(height * width, max_pixels, name)


def _too_large(pixels, max_pixels, name):
    return DataError(
        f"bad image: {_millions(pixels)} Mpx exceeds --max_pixels={_millions(max_pixels)}M: {shown(name)}"
    )


def _millions(count):
    return f"{count / 1e6:,.0f}" if count >= 1e9 else f"{count / 1e6:.6g}"


def _unreadable(error, name):
    unlimited = "too large" in str(error) or "MAX_TEXT_MEMORY" in str(error)
    reason = "metadata too large" if unlimited else (str(error) or type(error).__name__)
    return DataError(f"bad image: {reason.splitlines()[0][:120]}: {shown(name)}")


def _needed_changes(image, data, exif, name):
    changes = []
    orientation = _orientation(image)
    if orientation != 1 and exif == "error":
        raise DataError(f"bad image: EXIF orientation {orientation} (--exif=error): {shown(name)}")
    if orientation != 1:
        changes.append("rotated by EXIF" if exif == "apply" else "EXIF orientation removed")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        changes.append("first frame of an animation")
    if image.mode.startswith("I") or image.mode == "F" or (image.format == "PNG" and png.bit_depth(data) == 16):
        changes.append("16-bit reduced")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        changes.append("transparency put on white")
    elif image.mode not in ("RGB", "L", "P", "F") and not image.mode.startswith("I"):
        changes.append(f"{image.mode} converted to RGB")
    return tuple(changes)


def _orientation(image):
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    if image.format == "JPEG" and image.info.keys().isdisjoint(("exif", "xmp")):
        return 1
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels
        return image.getexif().get(_ORIENTATION_TAG, 1) or 1
    return 1


def _verify(data, name, max_pixels):
    """Decodes for the errors' sake; a JPEG at an eighth of its size, which still reads every byte."""
    with _open(data, name, max_pixels) as image:
        image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))  # formats without scales ignore it
        _load(image, data, name)


def _load(image, data, name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # broken data: Pillow's decoders raise several kinds
        if "truncated" in str(error) or "unexpected end" in str(error).lower():
            size = f"got {len(data):,}{_whole_size(data, image.format)} bytes"
            raise DataError(f"bad image: truncated {image.format} ({size}): {shown(name)}") from None
        raise _unreadable(error, name) from None
    return image


def _whole_size(data, kind):
    """Guesses " of about N" from the rows that a cut JPEG still holds; "" where they do not tell."""
    if kind not in ("JPEG", "MPO"):
        return ""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        if image.info.get("progressive"):  # every pass holds all rows
            return ""
        image.draft("L", (image.width // 8 or 1, image.height // 8 or 1))
        with _truncated_images_allowed():
            rows = np.flatnonzero(np.ptp(np.asarray(image), axis=1))  # what is missing is one grey
        if len(rows) and rows[-1] + 1 < image.height:
            return f" of about {round(len(data) * image.height / (int(rows[-1]) + 1) / 1000) * 1000:,}"
    return ""


@contextlib.contextmanager
def _truncated_images_allowed():
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _encode(image, kind):
    buffer = io.BytesIO()
    options = {"quality": _QUALITY, "subsampling": 0} if kind == "jpeg" else {}
    image.save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def decode(encoded):
    """Decodes a record's image as other libraries do, for evaluation.

    Args:
      encoded: string scalar tensor, JPEG or PNG bytes.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    import tensorflow as tf

    image = tf.cond(
        is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(encoded, channels=3),
    )
    return tf.ensure_shape(image, [None, None, 3])


def decode_window(encoded, window):
    """Decodes a part of a record's image, in the decoder's fastest form, for training.

    Args:
      encoded: string scalar tensor, JPEG or PNG bytes.
      window: int32 [4], (top, left, height, width) in pixels, inside the image.

    Returns:
      uint8 [height, width, 3], RGB.
    """
    import tensorflow as tf

    image = tf.cond(
        is_jpeg(encoded),
        lambda: tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_FAST"),
        lambda: tf.slice(
            tf.io.decode_png(encoded, channels=3),
            tf.concat([window[:2], [0]], 0),
            tf.concat([window[2:], [3]], 0),
        ),
    )
    return tf.ensure_shape(image, [None, None, 3])


def is_jpeg(encoded):
    """Returns a bool scalar tensor: the bytes start as a JPEG's do."""
    import tensorflow as tf

    return tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"


def resize(image, size, rule="bilinear"):
    """Resizes to a fixed size, ignoring the aspect ratio.

    Args:
      image: uint8 [H, W, 3].
      size: (height, width) in pixels; ints or int32 tensor.
      rule: "bilinear" (half-pixel centres, no antialiasing: OpenCV's and torch's), or "bilinear_tf1"
        (corner-anchored, as models trained under TensorFlow 1 expect).

    Returns:
      float32 [height, width, 3], 0..255.
    """
    import tensorflow as tf

    if rule == "bilinear_tf1":
        image = tf.cast(image, tf.float32)[None]
        return tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=False)[0]
    return tf.image.resize(image, size)


def to_uint8(image):
    """Rounds float32 pixels of any range to uint8 0..255."""
    import tensorflow as tf

    return tf.saturate_cast(tf.round(image), tf.uint8)
