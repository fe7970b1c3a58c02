"""Class-wise non-maximum suppression by TensorFlow's combined op: the fastest on CPUs, and on CPUs only.

The op looks at every score above the threshold. It gives what inference.nms gives as long as no class has more
of them than topk_candidates; where one has, the best of each class are taken first.
"""

import math

import tensorflow as tf

from ssd_tf.inference import nms


def is_available():
    """Returns whether the op has a kernel for every device here: it has one for CPUs alone."""
    return not tf.config.list_logical_devices("GPU")


def class_wise_nms(boxes, scores, score_threshold, nms_iou, topk_candidates, max_detections):
    """As inference.nms.class_wise_nms, hard, but for the order among equal scores, which the op leaves open."""

    def combined(boxes, scores):
        result = tf.image.combined_non_max_suppression(
            boxes, scores, max_detections, max_detections, nms_iou, score_threshold, clip_boxes=False
        )
        return result.nmsed_boxes, result.nmsed_scores, result.nmsed_classes, result.valid_detections

    def limited():
        best_boxes, best_scores, _ = nms.topk_per_class(boxes, scores, score_threshold, topk_candidates)
        return combined(tf.transpose(best_boxes, [0, 2, 1, 3]), tf.transpose(best_scores, [0, 2, 1]))

    boxes_kept, scores_kept, classes, counts = tf.cond(
        _most_candidates(scores, score_threshold) <= topk_candidates,
        lambda: combined(boxes[:, :, None], scores),
        limited,
    )
    return boxes_kept, scores_kept, tf.cast(classes, tf.int32), counts


def _most_candidates(scores, score_threshold):
    """int32 scalar: the largest number of scores above the threshold that any class of any image has."""
    num_anchors, num_classes = scores.shape[1:]
    fold = math.gcd(num_anchors, 8)  # rows of several anchors side by side are summed faster
    above = tf.cast(scores > score_threshold, tf.int32)
    sums = tf.reduce_sum(tf.reshape(above, [-1, num_anchors // fold, fold * num_classes]), axis=1)
    return tf.reduce_max(tf.reduce_sum(tf.reshape(sums, [-1, fold, num_classes]), axis=1))
