"""Training targets of one image: what each anchor should say."""

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import coder, matcher, ops

IGNORED = -1
# An unmatched anchor with this share of its area inside an ignore box is neither trained nor mined.
_IGNORE_COVERAGE = 0.5


def build_targets(boxes, classes, ignore, anchors, iou_threshold=0.5, forced="argmax"):
    """Matches boxes to anchors and encodes them.

    Args:
      boxes: float32 [N, 4], yxyx normalised, height and width > 0; N may be 0.
      classes: int32 [N], 1..C.
      ignore: bool [N], boxes that are neither objects nor background.
      anchors: float32 [A, 4], yxyx normalised.
      iou_threshold, forced: see boxes.matcher.match.

    Returns:
      {"class_logits": int32 [A] (0 background, 1..C, -1 ignored),
       "box_deltas": float32 [A, 5] (ty, tx, th, tw, 1 where matched; all 0 elsewhere)}.
    """
    objects = tf.boolean_mask(boxes, ~ignore)
    matched = matcher.match(ops.iou(objects, anchors, tnp), iou_threshold, forced)
    positive = matched >= 0
    labels = tf.concat([tf.boolean_mask(classes, ~ignore), [0]], 0)
    anchor_labels = tf.gather(labels, tf.where(positive, matched, tf.size(labels) - 1))
    anchor_labels = tf.cond(
        tf.reduce_any(ignore),
        lambda: _mark_ignored(anchor_labels, tf.boolean_mask(boxes, ignore), anchors),
        lambda: anchor_labels,
    )
    return {"class_logits": anchor_labels, "box_deltas": _encode_positives(objects, matched, anchors)}


def _mark_ignored(labels, regions, anchors):
    covered = tf.reduce_max(ops.coverage(anchors, regions, tnp), axis=0) >= _IGNORE_COVERAGE
    return tf.where((labels == 0) & covered, IGNORED, labels)


def _encode_positives(objects, matched, anchors):
    """float32 [A, 5]; only the few matched anchors are encoded, the logarithms cost most."""
    places = tf.where(matched >= 0)[:, 0]
    chosen = tf.gather(objects, tf.gather(matched, places))
    deltas = coder.encode(chosen, tf.gather(anchors, places), tnp)
    rows = tf.concat([deltas, tf.ones([tf.size(places), 1])], axis=1)
    return tf.scatter_nd(places[:, None], rows, tf.cast([tf.shape(anchors)[0], 5], tf.int64))
