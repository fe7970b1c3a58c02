"""Box geometry. Boxes are float32 [..., 4], yxyx; the unit is the caller's unless stated.

One body serves NumPy, keras.ops and tf.experimental.numpy: `xp` is the array library.
"""

import numpy as np

# Far below the area of any real box in either unit, far above float32's smallest number.
_TINY_AREA = 1e-30


def _scalar(value, like, xp):
    """A constant of the dtype of `like`: a bare number would turn float32 into float64 in some libraries."""
    return xp.full((), value, dtype=like.dtype)


def area(boxes, xp=np):
    """Returns the area of each box.

    Args:
      boxes: float [..., 4], yxyx.
      xp: array library.

    Returns:
      float [...], 0 for boxes with negative height or width.
    """
    heights, widths = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    zero = _scalar(0, boxes, xp)
    return xp.maximum(heights, zero) * xp.maximum(widths, zero)


def intersection(a, b, xp=np):
    """Returns the area shared by each box of `a` and each box of `b`.

    Args:
      a: float [..., N, 4], yxyx.
      b: float [..., M, 4], yxyx.
      xp: array library.

    Returns:
      float [..., N, M].
    """
    a, b = xp.expand_dims(a, -2), xp.expand_dims(b, -3)
    heights = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0])
    widths = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1])
    zero = _scalar(0, a, xp)
    return xp.maximum(heights, zero) * xp.maximum(widths, zero)


def iou(a, b, xp=np):
    """Returns intersection over union (the Jaccard overlap) of each pair.

    Args:
      a: float [..., N, 4], yxyx.
      b: float [..., M, 4], yxyx.
      xp: array library.

    Returns:
      float [..., N, M] in [0, 1]; 0 where both boxes are empty.
    """
    shared = intersection(a, b, xp)
    areas = xp.maximum(area(a, xp), _scalar(_TINY_AREA, shared, xp))  # then no union is 0
    return shared / (xp.expand_dims(areas, -1) + xp.expand_dims(area(b, xp), -2) - shared)


def coverage(boxes, regions, xp=np):
    """Returns the share of each box that lies inside each region.

    Args:
      boxes: float [..., N, 4], yxyx.
      regions: float [..., M, 4], yxyx.
      xp: array library.

    Returns:
      float [..., M, N] in [0, 1]: rows are regions.
    """
    areas = xp.expand_dims(area(boxes, xp), -2)
    return intersection(regions, boxes, xp) / xp.maximum(areas, _scalar(_TINY_AREA, areas, xp))


def clip(boxes, xp=np):
    """Returns normalised boxes cut to the image, [0, 1]."""
    zeros = xp.zeros_like(boxes)
    return xp.minimum(xp.maximum(boxes, zeros), zeros + 1)


def flip(boxes, xp=np):
    """Returns normalised boxes mirrored left to right; its own inverse."""
    return xp.stack([boxes[..., 0], 1 - boxes[..., 3], boxes[..., 2], 1 - boxes[..., 1]], axis=-1)


def rescale(boxes, window, xp=np):
    """Returns boxes in the coordinates of a window: its corners become (0, 0) and (1, 1).

    Args:
      boxes: float [..., 4], yxyx.
      window: float [4], yxyx in the same unit, height and width > 0.
      xp: array library.

    Returns:
      float [..., 4], yxyx, not clipped.
    """
    origin = xp.stack([window[0], window[1], window[0], window[1]])
    size = xp.stack([window[2] - window[0], window[3] - window[1]] * 2)
    return (boxes - origin) / size


def centres(boxes, xp=np):
    """Returns the (y, x) centre of each box: [..., 4] to [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def to_centre_size(boxes, xp=np):
    """Returns (centre y, centre x, height, width) of each yxyx box: [..., 4] to [..., 4]."""
    return xp.concatenate([centres(boxes, xp), boxes[..., 2:] - boxes[..., :2]], axis=-1)


def yxyx_to_xyxy(boxes, xp=np):
    """Returns boxes with the two axes exchanged; its own inverse."""
    return xp.stack([boxes[..., 1], boxes[..., 0], boxes[..., 3], boxes[..., 2]], axis=-1)
