"""Records of pictures with painted rectangles, and where their pixels are after augmentation."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

BACKGROUND = (20, 20, 20)
# As far apart as twelve are that neither the background nor the fill blends into.
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
COLORS += [(255, 128, 0), (255, 0, 128), (128, 0, 255), (0, 128, 255), (128, 255, 0), (0, 255, 128)]


def png(pixels):
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def paint(height, width, rectangles, background=BACKGROUND):
    """uint8 [height, width, 3] with (colour, (top, left, bottom, right)) painted one over the other."""
    pixels = np.full((height, width, 3), background, np.uint8)
    for color, (top, left, bottom, right) in rectangles:
        pixels[top:bottom, left:right] = color
    return pixels


def make_sample(pixels, boxes, classes=None):
    """A parsed record of these pixels; boxes are yxyx in pixels, their classes count from 1 unless given."""
    height, width = pixels.shape[:2]
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4) / np.array([height, width] * 2, np.float32)
    classes = range(1, len(boxes) + 1) if classes is None else classes
    return {
        "image": tf.constant(png(pixels)),
        "height": tf.constant(height),
        "width": tf.constant(width),
        "boxes": tf.constant(boxes),
        "classes": tf.constant(list(classes), tf.int32),
    }


def painted_sample(height, width, rectangles):
    """A record of painted rectangles {class: yxyx in pixels}, each in COLORS[class - 1]."""
    pixels = paint(height, width, [(COLORS[class_id - 1], box) for class_id, box in rectangles.items()])
    return make_sample(pixels, list(rectangles.values()), rectangles)


def painted_extent(image, color):
    """yxyx of the pixels that are more than half of this colour, in whole pixels; None where there are none."""
    blend, direction = image - np.array(BACKGROUND, float), np.subtract(color, BACKGROUND)
    share = blend @ direction / (direction @ direction)
    strong = (share > 0.5) & (np.linalg.norm(blend - share[..., None] * direction, axis=-1) < 45)
    if not strong.any():
        return None
    rows, columns = np.nonzero(strong)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def check_painted(image, boxes, classes):
    """The rectangles painted in the classes' colours lie where the boxes say, to a pixel."""
    assert np.isfinite(boxes).all() and boxes.min(initial=0) >= 0 and boxes.max(initial=1) <= 1
    for box, class_id in zip(boxes, classes, strict=True):
        extent = painted_extent(image, COLORS[class_id - 1])
        assert extent is not None, f"class {class_id} is nowhere"
        np.testing.assert_allclose(extent, box * np.tile(image.shape[:2], 2), atol=1.0)


QUARTERS = COLORS[:4]


def quartered_sample(height, width, box):
    """A record of one object whose quarters are painted in QUARTERS: its centre is in view where all four are."""
    top, left, bottom, right = box
    y, x = (top + bottom) // 2, (left + right) // 2
    quarters = [(top, left, y, x), (top, x, y, right), (y, left, bottom, x), (y, x, bottom, right)]
    return make_sample(paint(height, width, zip(QUARTERS, quarters, strict=True)), [box])


def shows_centre(image):
    """Whether the centre of a quartered object is in view."""
    return all(painted_extent(image, color) is not None for color in QUARTERS)
