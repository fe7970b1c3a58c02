"""Cut-outs: pictures of objects with transparency around them, turned and scaled to be pasted into scenes."""

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ssd_tf import fileio, images
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.synthesis.layout import Placement, arrange
from ssd_tf.synthesis.shapes import SOLID

_MIN_PIXELS = 4  # longer side of the smallest object
_MAX_OBJECTS = 100
_MARGIN = 0.25  # soft surroundings (shadows) that are kept, of the object's longer side
_SPARE = 2  # cut-outs are kept at this many times their largest use: they are turned before they are scaled
_MEMORY = 256 << 20  # bytes of cut-outs that are kept; the rest is read whenever it is used


@dataclass(frozen=True)
class Pasting:
    """How cut-outs are used.

    Attributes:
      scale: (least, most) longer side of the object as it stands, as a fraction of the image's side.
      num_objects: (fewest, most) objects in an image.
      max_tilt: largest rotation to either side, degrees.
      mirror: mirror every other one.
    """

    scale: tuple[float, float] = (0.1, 0.5)
    num_objects: tuple[int, int] = (1, 5)
    max_tilt: float = 15.0
    mirror: bool = False

    def check(self, image_size):
        """Raises ConfigError unless all values make sense for images of `image_size` pixels."""
        _check_range("scale", self.scale, (int, float), 0, 1)
        check_num_objects(self.num_objects)
        if self.scale[0] * image_size < _MIN_PIXELS:
            raise ConfigError(
                f"scale: {self.scale[0]:g} of {image_size} pixels is less than {_MIN_PIXELS}: nothing to be seen"
            )
        if type(self.max_tilt) not in (int, float) or not 0 <= self.max_tilt <= 180:
            raise ConfigError(f"max_tilt: {self.max_tilt} is outside 0..180 degrees")


def check_num_objects(values):
    """Raises ConfigError unless `values` are a sensible (fewest, most) number of objects in an image."""
    _check_range("num_objects", values, (int,), 0, _MAX_OBJECTS)
    if values[1] < 1:
        raise ConfigError("num_objects: no image would have an object")


def _check_range(name, values, kinds, low, high):
    if len(values) != 2 or any(type(value) not in kinds or not math.isfinite(value) for value in values):
        what = "integers" if kinds == (int,) else "numbers"
        raise ConfigError(f"{name}: expected two {what} (least, most), got {values}")
    for value in values:
        if not low <= value <= high:
            raise ConfigError(f"{name}: {value} is outside {low}..{high}")
    if values[0] > values[1]:
        raise ConfigError(f"{name}: {values[0]} is more than {values[1]} (least comes first)")


@dataclass(frozen=True)
class Stock:
    """Cut-outs at hand.

    Attributes:
      paths: {class: files}.
      loaded: {file: PIL RGBA image} of those that are kept in memory.
      longest: side in pixels that larger cut-outs are reduced to when they are read.
      pasting: Pasting.
    """

    paths: dict
    loaded: dict
    longest: int
    pasting: Pasting


def read_stock(paths, image_size, pasting, memory=_MEMORY):
    """Reads all cut-outs once, so that a bad one is known before any work; keeps what fits into memory.

    Args:
      paths: {class: files}.
      image_size: side of the images they are for, pixels.
      pasting: Pasting.
      memory: bytes to keep, at most.

    Returns:
      Stock.

    Raises:
      DataError: see `read_cutout`.
    """
    longest = math.ceil(_SPARE * pasting.scale[1] * image_size)
    loaded, spent = {}, 0
    for path in (path for files in paths.values() for path in files):
        image = read_cutout(path, longest)
        spent += 4 * image.width * image.height
        if spent <= memory:
            loaded[path] = image
    return Stock(paths, loaded, longest, pasting)


def read_cutout(path, longest):
    """Reads a cut-out.

    Args:
      path: image file with an alpha channel or transparent colour.
      longest: side in pixels that a larger object is reduced to.

    Returns:
      PIL RGBA image, cut to the object and its soft surroundings.

    Raises:
      DataError: unreadable, without transparency, or nothing to be seen in it; names the file.
    """
    images.read_rgb(path)  # judges the file; where it is transparent, its colours are lost
    with Image.open(io.BytesIO(fileio.read_bytes(path))) as image:
        if not image.has_transparency_data:
            raise DataError(f"no alpha channel: {shown(path)} (a cut-out is transparent around the object)")
        image = trim(ImageOps.exif_transpose(image).convert("RGBA"))
    if image is None:
        raise DataError(f"nothing to be seen: no pixel covers half or more: {shown(path)}")
    factor = longest / max(measure(image))
    image = image if factor >= 1 else trim(_scale(image, factor))
    if image is None:
        raise DataError(f"too thin to be seen at {longest} pixels: {shown(path)}")
    return image


def find_solid(image):
    """Returns (left, top, right, bottom) of what an RGBA image covers by half or more, or None if nothing."""
    return image.getchannel("A").point(lambda alpha: 255 * (alpha >= SOLID)).getbbox()


def measure(image):
    """Returns (width, height) in pixels of what an RGBA image covers by half or more, which must be something."""
    left, top, right, bottom = find_solid(image)
    return right - left, bottom - top


def trim(image):
    """Cuts an RGBA image to its object and the soft pixels near it; None if it covers no pixel by half."""
    solid, seen = find_solid(image), image.getchannel("A").getbbox()
    if solid is None:
        return None
    margin = round(_MARGIN * max(solid[2] - solid[0], solid[3] - solid[1]))
    low = [max(edge - margin, limit) for edge, limit in zip(solid[:2], seen[:2], strict=True)]
    high = [min(edge + margin, limit) for edge, limit in zip(solid[2:], seen[2:], strict=True)]
    return image.crop((*low, *high))


def _scale(image, factor):
    size = [max(1, round(side * factor)) for side in image.size]
    # Pillow premultiplies alpha here, so what is transparent lends no colour to the edges.
    return image.resize(size, Image.Resampling.BILINEAR)


def pose_cutout(image, side, angle=0.0, mirror=False):
    """Turns and scales a cut-out.

    Args:
      image: PIL RGBA image from `read_cutout`.
      side: longer side of the object afterwards, pixels.
      angle: rotation, degrees, anticlockwise in the picture.
      mirror: mirror it first.

    Returns:
      PIL RGBA image cut to the object and its soft surroundings, or None where it is too thin to be seen.
    """
    image = ImageOps.expand(ImageOps.mirror(image) if mirror else image, 1)  # a clear border: soft edges
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    if find_solid(image) is None:
        return None
    return trim(_scale(image, side / max(measure(image))))


def draw_pasted_layout(rng, image_size, classes, stock):
    """Draws cut-outs and places for them.

    Args:
      rng: numpy.random.Generator.
      image_size: side of the image, pixels.
      classes: names out of the stock's; each is as likely as any other.
      stock: Stock.

    Returns:
      (Placements in drawing order, boxes and names as from `layout.find_boxes`).

    Raises:
      ConfigError: there is no room for so many.
    """
    draw_object = functools.partial(_draw_cutout, image_size=image_size, classes=classes, stock=stock)
    return arrange(rng, image_size, draw_object, stock.pasting.num_objects)


def _draw_cutout(rng, image_size, classes, stock):
    """Returns the Placement of a cut-out in a random pose and size."""
    pasting = stock.pasting
    name = classes[rng.integers(len(classes))]
    path = stock.paths[name][rng.integers(len(stock.paths[name]))]
    least, most = pasting.scale
    side = image_size * least * (most / least) ** rng.uniform()  # small ones as often as large ones
    angle, mirror = rng.uniform(-pasting.max_tilt, pasting.max_tilt), rng.uniform() < 0.5
    image = stock.loaded[path] if path in stock.loaded else read_cutout(path, stock.longest)
    image = pose_cutout(image, side, angle, mirror and pasting.mirror)
    if image is None:
        return Placement(name, np.zeros((1, 1), np.uint8), pixels=np.zeros((1, 1, 3), np.uint8))
    pixels = np.asarray(image)
    return Placement(name, pixels[..., 3], pixels=pixels[..., :3])
