"""Which anchor learns which box, on TensorFlow tensors (SSD paper, section 2.2).

Written on TensorFlow because it runs for every training image inside tf.data.
"""

import tensorflow as tf

# Caffe's floor: a box that overlaps no anchor at all is not forced onto one.
_LEAST_FORCED_IOU = 1e-6


def match(iou, iou_threshold=0.5, forced="argmax", valid=None):
    """Assigns ground-truth boxes to anchors.

    An anchor takes the box of its highest IoU if that reaches the threshold; besides, every box takes its
    best anchor whatever the IoU. Ties go to the lower index.

    Args:
      iou: float32 [N, A], boxes by anchors; N may be 0.
      iou_threshold: least IoU of an ordinary match, inclusive.
      forced: "argmax": each box claims its best anchor; of two that claim the same the higher IoU has it.
        "greedy": caffe's bipartite matching, the largest remaining IoU first, so that every box gets one.
      valid: bool [N], False for padding; None if all rows are boxes.

    Returns:
      int32 [A], index of the matched box or -1.
    """
    if valid is not None:
        iou = tf.where(valid[:, None], iou, -1.0)
    # A row that never matches makes zero boxes an ordinary case.
    iou = tf.cond(tf.shape(iou)[0] > 0, lambda: iou, lambda: tf.fill([1, tf.shape(iou)[1]], -1.0))
    matched = _match_ordinarily(iou, iou_threshold)
    claims = _claim_best(iou) if forced == "argmax" else _claim_greedily(iou)
    return tf.where(claims >= 0, claims, matched)


def _match_ordinarily(iou, iou_threshold):
    """int32 [A]: the box of each anchor's highest IoU where that reaches the threshold, or -1.

    Few anchors do, and finding the box is slower than finding the maximum: it is done for these alone.
    """
    places = tf.where(tf.reduce_max(iou, axis=0) >= iou_threshold)
    best = tf.argmax(tf.gather(iou, places[:, 0], axis=1), axis=0, output_type=tf.int32)
    return tf.tensor_scatter_nd_update(tf.fill([tf.shape(iou)[1]], -1), places, best)


def _claim_best(iou):
    """int32 [A]: the box that has this anchor as its best, or -1."""
    anchors = tf.argmax(iou, axis=1, output_type=tf.int32)
    ious = tf.gather(iou, anchors, batch_dims=1)
    boxes = tf.range(tf.shape(iou)[0])
    stronger = (ious > ious[:, None]) | ((ious == ious[:, None]) & (boxes < boxes[:, None]))
    beaten = tf.reduce_any((anchors == anchors[:, None]) & stronger, axis=1)
    winners = tf.where(beaten | (ious <= _LEAST_FORCED_IOU), -1, boxes)
    return tf.tensor_scatter_nd_max(tf.fill([tf.shape(iou)[1]], -1), anchors[:, None], winners)


def _claim_greedily(iou):
    """int32 [A]: bipartite matching, one anchor a box, largest IoU first."""
    num_boxes, num_anchors = tf.shape(iou)[0], tf.shape(iou)[1]
    claims = tf.fill([num_anchors], -1)

    def claim(_, claims, left):
        place = tf.argmax(tf.reshape(left, [-1]), output_type=tf.int32)
        box, anchor = place // num_anchors, place % num_anchors
        taken = (tf.range(num_boxes) == box)[:, None] | (tf.range(num_anchors) == anchor)
        enough = left[box, anchor] > _LEAST_FORCED_IOU
        claims = tf.where((tf.range(num_anchors) == anchor) & enough, box, claims)
        return enough, claims, tf.where(taken, -1.0, left)

    _, claims, _ = tf.while_loop(
        lambda more, *_: more, claim, (tf.constant(True), claims, iou), maximum_iterations=num_boxes
    )
    return claims


def batch_weight(num_positives, batch_size, min_negatives=0):
    """Returns the sample weight that turns Keras' mean over images into the paper's normaliser.

    The loss of a batch is then the sum over its images divided by all its positives.

    Args:
      num_positives: float32 scalar, matched anchors of the whole batch.
      batch_size: images in the batch.
      min_negatives: negatives mined in an image without positives; they count as a third of a positive.

    Returns:
      float32 scalar, B / max(positives, 1), or B / max(positives, B * min_negatives / 3, 1).
    """
    batch_size = tf.cast(batch_size, tf.float32)
    return batch_size / tf.maximum(tf.maximum(num_positives, batch_size * min_negatives / 3.0), 1.0)
