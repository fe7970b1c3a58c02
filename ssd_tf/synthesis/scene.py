"""A scene: a background, then coloured shapes or cut-outs in drawing order."""

import colorsys
import math

import numpy as np
from PIL import Image

from ssd_tf.synthesis.backgrounds import crop_photo, draw_background, merge_planes, project
from ssd_tf.synthesis.cutouts import draw_pasted_layout
from ssd_tf.synthesis.layout import NUM_SHAPES, draw_layout, find_window

_CONTRAST = 110.0  # RGB distance, levels, that most of what an object covers should keep from its colour
_CANDIDATES = 12
_SHADE = 22.0  # largest change of an object's colour across it, levels a channel


def draw_scene(rng, image_size, classes, stock=None, photos=(), num_objects=NUM_SHAPES):
    """Draws one labelled picture.

    Args:
      rng: numpy.random.Generator; decides everything.
      image_size: side of the image, pixels.
      classes: names out of shapes.SHAPES, or of the stock's cut-outs.
      stock: cutouts.Stock to paste from, or None to draw shapes.
      photos: image files to cut the background from, or () to draw it.
      num_objects: (fewest, most) shapes.

    Returns:
      (uint8 [S, S, 3] RGB, float64 [N, 4] yxyx pixel boxes, tight on what is visible, list of N names).

    Raises:
      ConfigError: no room for so many objects.
      DataError: a cut-out or a photograph cannot be read.
    """
    if stock is None:
        placements, boxes, names = draw_layout(rng, image_size, classes, num_objects)
    else:
        placements, boxes, names = draw_pasted_layout(rng, image_size, classes, stock)
    if photos:
        image = crop_photo(rng, photos[rng.integers(len(photos))], image_size)
    else:
        image = draw_background(rng, image_size)
    for placement in placements:
        if placement.pixels is None:
            paint_object(rng, image, placement)
        else:
            paste_object(image, placement)
    return np.asarray(image), boxes, names


def paste_object(image, placement):
    """Pastes a cut-out onto the PIL RGB `image`, as far as it is inside."""
    (rows, columns), part = find_window(placement, image.width)
    pixels, coverage = (Image.fromarray(values[part]) for values in (placement.pixels, placement.coverage))
    image.paste(pixels, (columns.start, rows.start), coverage)


def paint_object(rng, image, placement):
    """Fills an object with a colour that stands out from what it covers; changes the PIL RGB `image`."""
    (rows, columns), part = find_window(placement, image.width)
    covered = np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
    colour = choose_colour(rng, covered[placement.solid[part]])
    planes = _shade(rng, colour, placement.coverage.shape)[:, *part]
    image.paste(merge_planes(planes), (columns.start, rows.start), Image.fromarray(placement.coverage[part]))


def choose_colour(rng, background):
    """Draws a random colour, again until it contrasts with what lies under it.

    Args:
      rng: numpy.random.Generator.
      background: uint8 [P, 3], the pixels to be covered.

    Returns:
      float64 [3], RGB.
    """
    samples = background[:: len(background) // 64 + 1].astype(np.float64)
    best, widest = None, -1.0
    for _ in range(_CANDIDATES):
        hue, saturation, value = rng.uniform((0, 0.15, 0.15), (1, 1, 1))
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
        distances = np.sort(np.linalg.norm(samples - colour, axis=1))
        distance = distances[len(distances) // 6] if len(distances) else _CONTRAST
        if distance > widest:
            best, widest = colour, distance
        if widest >= _CONTRAST:
            break
    return best


def _shade(rng, colour, shape):
    """Returns float32 [3, h, w]: `colour`, a ramp of it, or faint stripes of it."""
    ramp = project(rng.uniform(0, 2 * math.pi), shape) / np.float32(max(shape))
    span = rng.uniform(-_SHADE, _SHADE, (3, 1, 1)).astype(np.float32)
    if rng.uniform() < 0.3:
        ramp = np.sin(ramp * np.float32(2 * math.pi * rng.uniform(2, 6)))
    return ramp * span + colour.astype(np.float32)[:, None, None]
