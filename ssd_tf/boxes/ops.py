"""Box geometry. Boxes are float32 [..., 4], yxyx; the unit is the caller's unless stated.

One body serves NumPy, keras.ops and tf.experimental.numpy: `xp` is the array library.
"""

import math

import numpy as np

# Far below the area of any real box in either unit, far above float32's smallest number.
_TINY_AREA = 1e-30
_TINY_SIZE = 1e-15


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
    return _shared(xp.expand_dims(a, -2), xp.expand_dims(b, -3), xp)


def iou(a, b, xp=np):
    """Returns intersection over union (the Jaccard overlap) of each pair.

    Args:
      a: float [..., N, 4], yxyx.
      b: float [..., M, 4], yxyx.
      xp: array library.

    Returns:
      float [..., N, M] in [0, 1]; 0 where both boxes are empty.
    """
    shared, union = _shared_and_union(xp.expand_dims(a, -2), xp.expand_dims(b, -3), xp)
    return shared / union


def generalized_iou(a, b, xp=np):
    """Returns the GIoU (arXiv 1902.09630) of boxes with boxes: IoU less the empty share of the box around both.

    Args:
      a: float [..., 4], yxyx.
      b: float [..., 4], yxyx, broadcast against `a`: all pairs are a[..., :, None, :], b[..., None, :, :].
      xp: array library.

    Returns:
      float [...] in [-1, 1]: 1 for equal boxes, towards -1 for boxes far apart; 0 for equal empty ones.
    """
    shared, union = _shared_and_union(a, b, xp)
    sizes = _enclosing_sizes(a, b, xp)
    # Rounding may leave the box around both smaller than what it holds.
    around = xp.maximum(sizes[..., 0] * sizes[..., 1], union)
    return shared / union - (around - union) / around


def distance_iou(a, b, xp=np):
    """Returns the DIoU (arXiv 1911.08287) of boxes with boxes: IoU less the distance of the centres, squared.

    The distance is in diagonals of the smallest box around both.

    Args:
      a: float [..., 4], yxyx.
      b: float [..., 4], yxyx, broadcast against `a`: all pairs are a[..., :, None, :], b[..., None, :, :].
      xp: array library.

    Returns:
      float [...] in [-1, 1]: 1 for equal boxes, towards -1 for boxes far apart; 0 for equal empty ones.
    """
    shared, union = _shared_and_union(a, b, xp)
    return shared / union - _squared_centre_distances(a, b, xp)


def complete_iou(a, b, xp=np, as_constant=None):
    """Returns the CIoU (arXiv 1911.08287) of boxes with boxes: DIoU less the difference of the aspect ratios.

    Args:
      a: float [..., 4], yxyx.
      b: float [..., 4], yxyx, broadcast against `a`: all pairs are a[..., :, None, :], b[..., None, :, :].
      xp: array library.
      as_constant: the stop_gradient of `xp`, for a loss: the paper differentiates the difference of the aspect
        ratios, not its weight (alpha). None: the weight is differentiated too, if anything is.

    Returns:
      float [...] in [-1.5, 1]: 1 for equal boxes; the aspect ratios alone cost up to 0.5.
    """
    shared, union = _shared_and_union(a, b, xp)
    overlaps = shared / union
    differences = xp.square((_angles(a, xp) - _angles(b, xp)) * (2 / math.pi))
    rest = 1 - overlaps + differences
    weights = differences / xp.maximum(rest, _scalar(_TINY_AREA, rest, xp))
    weights = as_constant(weights) if as_constant else weights
    return overlaps - _squared_centre_distances(a, b, xp) - weights * differences


def _shared(a, b, xp):
    """The area of a and b in common, box by box."""
    heights = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0])
    widths = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1])
    zero = _scalar(0, a, xp)
    return xp.maximum(heights, zero) * xp.maximum(widths, zero)


def _shared_and_union(a, b, xp):
    """Areas of intersection and union, box by box; the union is never 0."""
    shared = _shared(a, b, xp)
    areas = xp.maximum(area(a, xp), _scalar(_TINY_AREA, shared, xp))
    return shared, areas + area(b, xp) - shared


def _enclosing_sizes(a, b, xp):
    """(height, width) of the smallest box around each two."""
    return xp.maximum(a[..., 2:], b[..., 2:]) - xp.minimum(a[..., :2], b[..., :2])


def _squared_centre_distances(a, b, xp):
    """Distance of the centres over the diagonal of the box around both, squared: in [0, 1]."""
    distances = _squared_lengths(centres(a, xp) - centres(b, xp), xp)
    diagonals = _squared_lengths(_enclosing_sizes(a, b, xp), xp)
    # Rounding may leave the diagonal shorter than the distance.
    diagonals = xp.maximum(xp.maximum(diagonals, distances), _scalar(_TINY_AREA, distances, xp))
    return distances / diagonals


def _squared_lengths(vectors, xp):
    return xp.square(vectors[..., 0]) + xp.square(vectors[..., 1])


def _angles(boxes, xp):
    """Angle of each box's diagonal with the vertical in radians, 0..pi / 2; pi / 4 for a point."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    sizes = xp.maximum(sizes, _scalar(_TINY_SIZE, sizes, xp))  # the gradient at (0, 0) is 0 / 0
    return xp.arctan2(sizes[..., 1], sizes[..., 0])


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


def flip_vertically(boxes, xp=np):
    """Returns normalised boxes mirrored top to bottom; its own inverse."""
    return xp.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)


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
