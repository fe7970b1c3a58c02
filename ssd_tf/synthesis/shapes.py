"""The objects that can be drawn: outlines in a unit system, and their coverage masks.

An outline is float64 [P, 2], (y, x) with y downwards, of any scale: drawing scales it. The default classes
look the same mirrored and can be told apart at any rotation. The two arrows cannot: they are each other's
mirror image, and exist so that a user can see what flips do to classes that know left from right.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SOLID = 128  # an object owns the pixels that it covers by half or more
_FINE_EXTENT = 256  # objects up to this many pixels are drawn 4 times as large and averaged, larger ones 2 times
_ARC_POINTS = 96


@dataclass(frozen=True)
class Shape:
    """One drawable class.

    Attributes:
      outline: float64 [P, 2], (y, x) of the polygon.
      hole: the same of what is cut out of it, or None.
      max_tilt: largest rotation to either side, radians.
    """

    outline: np.ndarray
    hole: np.ndarray | None = None
    max_tilt: float = math.pi


def _arc(start, stop, radius=1.0, centre=(0.0, 0.0)):
    angles = np.linspace(start, stop, _ARC_POINTS)
    return np.stack([centre[0] + radius * np.sin(angles), centre[1] + radius * np.cos(angles)], axis=1)


def _circle(radius):
    return _arc(0.0, 2 * math.pi, radius)


def _star(points=5, waist=0.42):
    angles = np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2, waist, 1.0)
    return np.stack([-radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(half_width=0.3):
    w = half_width
    quarter = np.array([(-w, -1.0), (-1.0, -w), (-1.0, w), (-w, 1.0), (w, 1.0), (1.0, w), (1.0, -w), (w, -1.0)])
    corners = np.array([(-w, -w), (-w, w), (w, w), (w, -w)])
    order = (quarter[0], corners[0], quarter[1], quarter[2], corners[1], quarter[3])
    return np.array([*order, quarter[4], corners[2], quarter[5], quarter[6], corners[3], quarter[7]])


def _crescent(shift=0.62, inner=0.8):
    # The two circles meet where the distances to both centres are 1 and `inner`.
    x = (1 + shift**2 - inner**2) / (2 * shift)
    tip = math.acos(x)
    inner_tip = math.atan2(math.sqrt(1 - x**2), x - shift)
    return np.concatenate(
        [_arc(tip, 2 * math.pi - tip), _arc(2 * math.pi - inner_tip, inner_tip, inner, (0.0, shift))]
    )


def _heart():
    t = np.linspace(0, 2 * math.pi, _ARC_POINTS)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([-y, 16 * np.sin(t) ** 3], axis=1)


def _arrow(direction):
    points = np.array([(-0.3, -1.0), (-0.3, 0.1), (-0.8, 0.1), (0.0, 1.0), (0.8, 0.1), (0.3, 0.1), (0.3, -1.0)])
    return points * (1.0, direction)


_TRIANGLE = _star(3, 0.5)  # a star whose inner corners lie on the straight sides
_SQUARE = np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, 1.0), (1.0, -1.0)])
_ARROW_TILT = math.radians(15)

SHAPES = {
    "circle": Shape(_circle(1.0)),
    "square": Shape(_SQUARE),
    "triangle": Shape(_TRIANGLE),
    "star": Shape(_star()),
    "cross": Shape(_cross()),
    "ring": Shape(_circle(1.0), hole=_circle(0.55)),
    "crescent": Shape(_crescent()),
    "heart": Shape(_heart()),
    "left_arrow": Shape(_arrow(-1.0), max_tilt=_ARROW_TILT),
    "right_arrow": Shape(_arrow(1.0), max_tilt=_ARROW_TILT),
}
DEFAULT_CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")


def pose(shape, angle, stretch):
    """Turns and stretches a shape.

    Args:
      shape: Shape.
      angle: rotation in radians, clockwise in the picture.
      stretch: height over width, applied before the rotation.

    Returns:
      Shape whose outline touches y = 0 and x = 0.
    """
    scale = np.array([math.sqrt(stretch), 1 / math.sqrt(stretch)])
    sine, cosine = math.sin(angle), math.cos(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])  # applied to rows (y, x)
    outline = shape.outline * scale @ turn
    corner = outline.min(axis=0)
    hole = None if shape.hole is None else shape.hole * scale @ turn - corner
    return Shape(outline - corner, hole, shape.max_tilt)


def extent(shape):
    """Returns float64 [2], the (height, width) of a posed shape's outline."""
    return shape.outline.max(axis=0)


def draw_coverage(shape, scale):
    """Draws a posed shape.

    Args:
      shape: Shape from `pose`.
      scale: pixels per unit of the outline.

    Returns:
      uint8 [h, w], how much of each pixel is covered (255 = all), with an empty border of a pixel or more.
    """
    h, w = extent(shape) * scale
    fine = 4 if max(h, w) <= _FINE_EXTENT else 2
    size = (math.ceil(w) + 3) * fine, (math.ceil(h) + 3) * fine
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for polygon, value in ((shape.outline, 255), (shape.hole, 0)):
        if polygon is not None:
            draw.polygon(((polygon[:, ::-1] * scale + 1.5) * fine).ravel().tolist(), fill=value)
    return np.asarray(mask.reduce(fine))
