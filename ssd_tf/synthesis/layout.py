"""Where the objects of a scene stand and what is to be seen of them; no colours yet.

Objects are in drawing order: a later one hides an earlier one. Each pixel belongs to the last object that covers
it by half or more, so what is visible of an object, and with it the box, follows from one map of owners.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from ssd_tf.errors import ConfigError
from ssd_tf.synthesis.shapes import SHAPES, SOLID, draw_coverage, extent, pose

MIN_SIDE, MAX_SIDE = 0.08, 0.6  # of an object as drawn, as fractions of the image's side
NUM_SHAPES = (3, 7)  # fewest boxes, most objects
NOBODY = -1
_MAX_STRETCH = 1.18
_ROUNDING = 2  # pixels by which a mask's extent may differ from its outline's: sharp tips are lost
_TRIES = 20  # places for an object
_LAYOUTS = 100  # layouts for a picture
_CUT = 0.15  # probability that an object may stick out of the image
# How much of each earlier object must stay visible when an object is placed, and how often that is asked.
_CLEARANCES, _CLEARANCE_ODDS = (0.85, 0.45, 0.0), (0.9, 0.07, 0.03)


@dataclass(frozen=True)
class Placement:
    """An object and its place.

    Attributes:
      name: class.
      coverage: uint8 [h, w], 255 where a pixel is covered wholly.
      top, left: place of coverage[0, 0] in the image, in pixels; may lie outside.
      pixels: uint8 [h, w, 3], RGB of a cut-out; None for a shape, which is painted.
    """

    name: str
    coverage: np.ndarray
    top: int = 0
    left: int = 0
    pixels: np.ndarray | None = None

    @functools.cached_property
    def solid(self):
        """bool [h, w], the object's own pixels, whether inside the image or not."""
        return self.coverage >= SOLID


def find_window(placement, image_size):
    """Returns ((rows, columns) of the image, (rows, columns) of the mask): slices of the part inside."""
    image_slices, mask_slices = [], []
    for start, length in zip((placement.top, placement.left), placement.coverage.shape):
        low, high = max(start, 0), max(min(start + length, image_size), 0)
        image_slices.append(slice(low, high))
        mask_slices.append(slice(low - start, max(high - start, 0)))
    return tuple(image_slices), tuple(mask_slices)


def paint_owner(owners, placement, number):
    """Writes `number` into `owners` (int [S, S], changed in place) where the object covers a pixel."""
    inside, part = find_window(placement, len(owners))
    owners[inside][placement.solid[part]] = number


def map_owners(placements, image_size):
    """Returns int16 [S, S]: the index of the placement seen at each pixel, or NOBODY."""
    owners = np.full((image_size, image_size), NOBODY, np.int16)
    for number, placement in enumerate(placements):
        paint_owner(owners, placement, number)
    return owners


def find_boxes(placements, image_size):
    """Finds the objects of which a third or more is visible.

    Args:
      placements: Placements in drawing order.
      image_size: side of the image, pixels.

    Returns:
      (float64 [N, 4] tight yxyx pixel boxes of what is visible, list of N class names), in drawing order.
    """
    owners = map_owners(placements, image_size)
    boxes, names = [], []
    for number, placement in enumerate(placements):
        inside, _ = find_window(placement, image_size)
        visible = owners[inside] == number
        num_visible = np.count_nonzero(visible)
        if num_visible == 0 or 3 * num_visible < np.count_nonzero(placement.solid):
            continue
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        top, left = inside[0].start, inside[1].start
        boxes.append((top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1))
        names.append(placement.name)
    return np.array(boxes, np.float64).reshape(-1, 4), names


def draw_layout(rng, image_size, classes, num_objects=NUM_SHAPES):
    """Draws shapes and places for them.

    Args:
      rng: numpy.random.Generator.
      image_size: side of the image, pixels.
      classes: names out of SHAPES.
      num_objects: (fewest boxes, most objects).

    Returns:
      (Placements in drawing order, boxes and names as from `find_boxes`).
    """
    draw_object = functools.partial(_draw_shape, image_size=image_size, classes=classes)
    return arrange(rng, image_size, draw_object, num_objects)


def arrange(rng, image_size, draw_object, num_objects):
    """Draws objects and places, again and again until enough of them have boxes.

    Args:
      rng: numpy.random.Generator.
      image_size: side of the image, pixels.
      draw_object: function (rng) -> Placement anywhere.
      num_objects: (fewest boxes, most objects).

    Returns:
      (Placements in drawing order, boxes and names as from `find_boxes`).

    Raises:
      ConfigError: there is no room for so many.
    """
    for _ in range(_LAYOUTS):
        placements = _draw_once(rng, image_size, draw_object, num_objects)
        boxes, names = find_boxes(placements, image_size)
        if len(boxes) >= num_objects[0]:
            return placements, boxes, names
    raise ConfigError(f"no room for {num_objects[0]} visible objects in an image: make them fewer or smaller")


def _draw_once(rng, image_size, draw_object, num_objects):
    objects = [draw_object(rng) for _ in range(rng.integers(num_objects[0], num_objects[1] + 1))]
    # Large ones come first more often than not, or they would find no place.
    objects.sort(key=lambda item: -max(item.coverage.shape) * rng.uniform(0.6, 1.6))
    placements, owners = [], np.full((image_size, image_size), NOBODY, np.int16)
    sizes, visible = np.zeros((2, len(objects)), np.int64)
    for item in objects:
        clearance = _CLEARANCES[rng.choice(len(_CLEARANCES), p=_CLEARANCE_ODDS)]
        placement, hidden = _find_place(rng, owners, visible - clearance * sizes, item)
        if placement is not None:
            number = len(placements)
            paint_owner(owners, placement, number)
            sizes[number] = np.count_nonzero(placement.solid)
            visible[number] = np.count_nonzero(placement.solid[find_window(placement, image_size)[1]])
            visible -= hidden
            placements.append(placement)
    return placements


def _draw_shape(rng, image_size, classes):
    """Returns the Placement of a shape in a random pose and size."""
    name = classes[rng.integers(len(classes))]
    shape = SHAPES[name]
    stretch = math.exp(rng.uniform(-1, 1) * math.log(_MAX_STRETCH))
    posed = pose(shape, rng.uniform(-shape.max_tilt, shape.max_tilt), stretch)
    sides = extent(posed)
    smallest = (MIN_SIDE * image_size + _ROUNDING) / sides.min()
    largest = (MAX_SIDE * image_size - _ROUNDING) / sides.max()
    # Spread over the logarithm, somewhat towards the large ones: those are the ones that find no place.
    scale = smallest * (largest / smallest) ** (rng.uniform() ** 0.75)
    return Placement(name, draw_coverage(posed, scale))


def _find_place(rng, owners, spare, item):
    """Looks for a place that hides no more than `spare` [N] pixels of each earlier object.

    Returns:
      (Placement, int [N] pixels that it hides of each object), or (None, None) if no place was found.
    """
    cut = rng.uniform() < _CUT
    for _ in range(_TRIES):
        top, left = _draw_corner(rng, len(owners), item.coverage.shape, cut)
        placement = replace(item, top=top, left=left)
        inside, part = find_window(placement, len(owners))
        beneath = owners[inside][placement.solid[part]]
        hidden = np.bincount(beneath + 1, minlength=len(spare) + 1)[1:]
        if np.all((hidden == 0) | (hidden <= spare)):
            return placement, hidden
    return None, None


def _draw_corner(rng, image_size, shape, cut):
    """Returns (top, left): wholly inside the image where it fits, or with `cut` only the centre inside."""
    if cut:
        return [int(rng.integers(image_size)) - side // 2 for side in shape]
    spare = [image_size - side for side in shape]
    return [int(rng.integers(min(room, 0), max(room, 0) + 1)) for room in spare]
