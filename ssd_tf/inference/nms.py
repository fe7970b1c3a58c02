"""Exact class-wise non-maximum suppression in keras.ops alone: static shapes, any backend, any accelerator.

The candidates of each class are taken best first; suppression is iterated to its fixed point, which is the
greedy algorithm's result: the fate of candidate i depends on better ones only, so every pass settles at
least one more of them.
"""

from keras import ops

from ssd_tf.boxes import ops as box_ops


def class_wise_nms(boxes, scores, score_threshold, nms_iou, topk_candidates, max_detections):
    """Suppresses overlapping boxes of the same class.

    Args:
      boxes: float32 [B, A, 4], yxyx, any unit.
      scores: float32 [B, A, C].
      score_threshold: a box counts if its score is higher than this.
      nms_iou: a box is suppressed by a better one of its class if their IoU is higher than this.
      topk_candidates: best boxes of each class that are looked at.
      max_detections: boxes kept in an image, over all classes.

    Returns:
      (boxes float32 [B, D, 4], scores float32 [B, D], classes int32 [B, D] 0..C-1, counts int32 [B]), best first;
      equal scores in the order of (class, index). Rows beyond the count are 0.
    """
    candidates, kept_scores = topk_per_class(boxes, scores, score_threshold, topk_candidates)
    kept_scores = ops.where(suppress(candidates, kept_scores > 0, nms_iou), kept_scores, 0.0)
    batch, classes, topk = (ops.shape(kept_scores)[0], *kept_scores.shape[1:])
    num_kept = min(max_detections, classes * topk)
    best, places = ops.top_k(ops.reshape(kept_scores, (batch, classes * topk)), num_kept)
    flat = ops.reshape(candidates, (batch, classes * topk, 4))
    chosen = ops.take_along_axis(flat, ops.expand_dims(places, -1), axis=1)
    valid = best > 0
    labels = ops.where(valid, ops.cast(places // topk, "int32"), 0)
    outputs = ops.where(ops.expand_dims(valid, -1), chosen, 0.0), best, labels
    missing = max_detections - num_kept
    padded = [ops.pad(x, [[0, 0], [0, missing]] + [[0, 0]] * (len(x.shape) - 2)) for x in outputs]
    return (*padded, ops.sum(ops.cast(valid, "int32"), axis=1))


def topk_per_class(boxes, scores, score_threshold, topk_candidates):
    """Takes the best boxes of each class.

    Returns:
      (boxes float32 [B, C, K, 4], scores float32 [B, C, K], best first; 0 where not above the threshold).
    """
    by_class = ops.transpose(scores, (0, 2, 1))
    best, places = ops.top_k(by_class, min(topk_candidates, by_class.shape[2]))
    batch, classes, topk = (ops.shape(best)[0], *best.shape[1:])
    flat = ops.reshape(places, (batch, classes * topk, 1))
    chosen = ops.take_along_axis(boxes, flat, axis=1)
    return ops.reshape(chosen, (batch, classes, topk, 4)), ops.where(best > score_threshold, best, 0.0)


def suppress(boxes, valid, nms_iou):
    """Runs greedy suppression on sorted boxes.

    Args:
      boxes: float32 [B, C, K, 4], best first.
      valid: bool [B, C, K].
      nms_iou: IoU above which the worse of two boxes goes.

    Returns:
      bool [B, C, K], True for the boxes that stay.
    """
    count = boxes.shape[2]
    earlier = ops.triu(ops.ones((count, count), "float32"), 1)  # [i, j]: i stands before j
    overlapping = ops.cast(box_ops.iou(boxes, boxes, ops) > nms_iou, "float32") * earlier

    def more(_, changed):
        return changed

    def step(kept, _):
        row = ops.expand_dims(ops.cast(kept, "float32"), 2)
        hit = ops.squeeze(ops.matmul(row, overlapping), 2) > 0
        after = valid & ~hit
        return after, ops.any(after != kept)

    kept, _ = ops.while_loop(more, step, (valid, ops.any(valid)), maximum_iterations=count + 1)
    return kept
