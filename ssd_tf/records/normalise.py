"""Annotated boxes against the decoded image: sizes checked, boxes normalised, clipped or dropped."""

from dataclasses import dataclass

import numpy as np

from ssd_tf.boxes import ops
from ssd_tf.errors import DataError, shown

# Boxes may leave the image by this many pixels without a word: VOC's borders are off by one in many tools.
# (A little more, for the rounding of exactly one.)
_SILENT_PIXELS = 1.0 + 1e-6


@dataclass(frozen=True)
class FittedBoxes:
    """Boxes that lie inside the image.

    Attributes:
      boxes: float32 [N, 4], yxyx normalised to [0, 1], height and width > 0.
      kept: int [N], their indices in the Example.
      clipped: one line for each box that reached out of the image by more than a pixel.
      dropped: one line for each box that lies outside.
    """

    boxes: np.ndarray
    kept: np.ndarray
    clipped: tuple[str, ...]
    dropped: tuple[str, ...]


def check_size(example, height, width):
    """Raises DataError if the annotation states another size than the upright image has."""
    if example.size is None or tuple(example.size) == (height, width):
        return
    stated = f"{example.size[1]}x{example.size[0]}"
    hint = " (rotated?)" if tuple(example.size) == (width, height) else ""
    raise DataError(f"size says {stated}, image is {width}x{height}{hint}: {shown(example.image)}")


def fit_boxes(example, height, width):
    """Normalises an example's boxes to its image.

    Args:
      example: Example; boxes in its unit, height and width >= 0.
      height, width: pixels of the upright image.

    Returns:
      FittedBoxes.
    """
    scale = np.array([height, width, height, width], np.float64)
    boxes = example.boxes / scale if example.unit == "pixel" else example.boxes
    if boxes.size and boxes.min() >= 0 and boxes.max() <= 1:  # most images: nothing to clip
        inside = boxes.astype(np.float32)
        if (inside[:, 2:] > inside[:, :2]).all():
            return FittedBoxes(inside, np.arange(len(boxes)), (), ())
    inside = np.clip(boxes, 0, 1).astype(np.float32)
    good = ops.area(inside) > 0
    overhang = np.abs(boxes - np.clip(boxes, 0, 1)) * scale
    reaching = good & (overhang.max(axis=1, initial=0) > _SILENT_PIXELS)
    return FittedBoxes(
        boxes=inside[good],
        kept=np.flatnonzero(good),
        clipped=_lines("box clipped to the image", example, reaching),
        dropped=_lines("box outside the image", example, ~good),
    )


def _lines(what, example, chosen):
    return tuple(
        f"{what}: object {index + 1} {example.names[index]!r} "
        f"{' '.join(f'{value:g}' for value in example.boxes[index, [1, 0, 3, 2]])}: {shown(example.image)}"
        for index in np.flatnonzero(chosen)
    )
