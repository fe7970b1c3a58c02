"""Regression targets and back: offsets to anchors in units of the variances."""

import math

import numpy as np

from ssd_tf.boxes import ops

# Caffe SSD's prior variances, in the order (y, x, h, w).
VARIANCES = (0.1, 0.1, 0.2, 0.2)
# torchvision's clamp of the log sizes, so that finite deltas decode to finite boxes.
MAX_LOG_SIZE = math.log(1000.0 / 16)
# Keeps the logarithm finite for boxes with no extent.
_TINY_SIZE = 1e-8


def encode(boxes, anchors, xp=np):
    """Turns boxes into regression targets (SSD paper, equation 2).

    Args:
      boxes: float32 [..., 4], yxyx.
      anchors: float32 [..., 4], yxyx in the same unit, height and width > 0.
      xp: array library.

    Returns:
      float32 [..., 4], (ty, tx, th, tw) in units of the variances; finite for every finite box.
    """
    boxes, anchors = ops.to_centre_size(boxes, xp), ops.to_centre_size(anchors, xp)
    shifts = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    sizes = xp.maximum(boxes[..., 2:], xp.full_like(boxes[..., 2:], _TINY_SIZE))
    logs = xp.log(sizes / anchors[..., 2:])
    return xp.concatenate([shifts / VARIANCES[0], logs / VARIANCES[2]], axis=-1)


def decode(deltas, anchors, xp=np):
    """Turns predicted deltas into boxes.

    Args:
      deltas: float32 [..., A, 4], (ty, tx, th, tw) in units of the variances.
      anchors: float32 [A, 4], yxyx normalised, height and width > 0.
      xp: array library.

    Returns:
      float32 [..., A, 4] yxyx normalised, not clipped; finite for finite input.
    """
    anchors = ops.to_centre_size(anchors, xp)
    sizes = anchors[..., 2:]
    # One product over all four columns: the rest depends on the anchors alone and is folded in a graph.
    scales = xp.concatenate([sizes * VARIANCES[0], xp.full_like(sizes, VARIANCES[2])], axis=-1)
    scaled = deltas * scales
    middles = scaled[..., :2] + anchors[..., :2]
    logs = scaled[..., 2:]
    halves = xp.exp(xp.minimum(logs, xp.full_like(logs, MAX_LOG_SIZE))) * (sizes / 2)
    return xp.concatenate([middles - halves, middles + halves], axis=-1)
