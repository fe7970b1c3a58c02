"""Pictures for objects to stand on: drawn textures with clutter, or parts of photographs."""

import math

import numpy as np
from PIL import Image, ImageDraw

from ssd_tf import images

_MAX_SPAN = 55.0  # largest difference of a texture's colours, in levels a channel: shapes must stay visible
_MAX_GRAIN = 16.0  # half the span of the noise of single pixels, levels
_MAX_CLUTTER = 12
_MIN_CROP = 0.5  # side of the part cut out of a photograph, of its shorter side


def draw_background(rng, image_size):
    """Draws a texture with clutter on it.

    Args:
      rng: numpy.random.Generator.
      image_size: side of the image, pixels.

    Returns:
      PIL RGB image.
    """
    grain = rng.integers(-128, 128, (image_size, image_size), np.int8)
    grain = grain * np.float32(rng.uniform(0, _MAX_GRAIN) / 128)
    planes = grain + rng.uniform(30, 225, (3, 1, 1)).astype(np.float32)
    for _ in range(rng.integers(1, 3)):
        texture = TEXTURES[rng.integers(len(TEXTURES))](rng, image_size)
        planes += texture * rng.uniform(-_MAX_SPAN, _MAX_SPAN, (3, 1, 1)).astype(np.float32)
    image = merge_planes(planes)
    draw_clutter(rng, image)
    return image


def crop_photo(rng, path, image_size):
    """Cuts a random square out of a photograph.

    Args:
      rng: numpy.random.Generator.
      path: image file.
      image_size: side of the result, pixels.

    Returns:
      PIL RGB image; half the photograph's shorter side or more is in it.

    Raises:
      DataError: unreadable or not an image; names the file.
    """
    photo = images.read_rgb(path)
    side = max(1, round(min(photo.shape[:2]) * rng.uniform(_MIN_CROP, 1)))
    top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    part = Image.fromarray(photo[top : top + side, left : left + side])
    return part.resize((image_size, image_size), Image.Resampling.BILINEAR)


def merge_planes(planes):
    """Returns the PIL RGB image of float [3, h, w] planes in 0..255; what lies outside is clipped."""
    # Planes, since NumPy is several times slower on pixels of three channels.
    return Image.merge("RGB", [Image.fromarray(plane) for plane in np.clip(planes, 0, 255).astype(np.uint8)])


def draw_gradient(rng, image_size):
    """Returns float32 [S, S] in [0, 1]: a ramp in a random direction."""
    ramp = project(rng.uniform(0, 2 * math.pi), (image_size, image_size))
    return (ramp - ramp.min()) / (ramp.max() - ramp.min())


def draw_stripes(rng, image_size):
    """Returns float32 [S, S] in [0, 1]: soft parallel stripes."""
    ramp = project(rng.uniform(0, 2 * math.pi), (image_size, image_size))
    return 0.5 + 0.5 * np.sin(ramp * np.float32(2 * math.pi / (image_size * rng.uniform(0.04, 0.3))))


def draw_checks(rng, image_size):
    """Returns float32 [S, S] in [0, 1]: a soft chequerboard."""
    angle, wave = rng.uniform(0, 2 * math.pi), np.float32(2 * math.pi / (image_size * rng.uniform(0.08, 0.4)))
    first, second = (project(angle + turn, (image_size, image_size)) for turn in (0, math.pi / 2))
    return 0.5 + 0.5 * np.sin(first * wave) * np.sin(second * wave)


def draw_blobs(rng, image_size):
    """Returns float32 [S, S] in [0, 1]: large cloudy patches."""
    return _enlarge(rng.uniform(0, 1, (rng.integers(3, 9),) * 2), image_size)


def draw_noise(rng, image_size):
    """Returns float32 [S, S] in [0, 1]: fine cloudy patches."""
    return _enlarge(rng.uniform(0, 1, (rng.integers(16, 65),) * 2), image_size)


TEXTURES = (draw_gradient, draw_stripes, draw_checks, draw_blobs, draw_noise)


def project(angle, shape):
    """Returns float32 [h, w]: each pixel's coordinate along the direction `angle`, in pixels."""
    rows, columns = (np.arange(side, dtype=np.float32) for side in shape)
    return rows[:, None] * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))


def _enlarge(grid, image_size):
    image = Image.fromarray(grid.astype(np.float32))
    return np.clip(np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC)), 0, 1)


def draw_clutter(rng, image):
    """Draws lines, scribbles and specks, too thin or too small for objects, onto a PIL RGB image."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(_MAX_CLUTTER + 1)):
        colour = tuple(rng.integers(256, size=3).tolist())
        kind = rng.integers(3)
        if kind == 2:
            _draw_speck(rng, draw, image.width, colour)
        else:
            points = _draw_line(rng, image.width) if kind == 0 else _draw_scribble(rng, image.width)
            width = max(1, round(image.width * rng.uniform(0.002, 0.009)))
            draw.line(points.ravel().tolist(), fill=colour, width=width)


def _draw_line(rng, image_size):
    return rng.uniform(-0.1, 1.1, (2, 2)) * image_size


def _draw_scribble(rng, image_size):
    start = rng.uniform(0, 1, 2)
    headings = np.cumsum(rng.normal(0, 0.7, rng.integers(6, 20))) + rng.uniform(0, 2 * math.pi)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * rng.uniform(0.01, 0.05)
    return (start + np.cumsum(steps, axis=0)) * image_size


def _draw_speck(rng, draw, image_size, colour):
    left, top = rng.uniform(0, image_size, 2)
    w, h = rng.uniform(0.005, 0.03, 2) * image_size
    paint = draw.ellipse if rng.uniform() < 0.5 else draw.rectangle
    paint((left, top, left + w, top + h), fill=colour)
