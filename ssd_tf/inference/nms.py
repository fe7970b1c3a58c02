"""Non-maximum suppression in keras.ops alone: static shapes, any backend, any accelerator.

Class-wise or over all classes, by one of METHODS. The candidates are taken best first. The "hard" form is iterated
to its fixed point, which is the greedy algorithm's result: the fate of candidate i depends on better ones only, so
every pass settles at least one more of them. The others take one box after another (see soften).
"""

from keras import ops

from ssd_tf.boxes import ops as box_ops


def class_wise_nms(
    boxes, scores, score_threshold, nms_iou, topk_candidates, max_detections, method="hard", sigma=0.5
):
    """Suppresses overlapping boxes of the same class.

    Args:
      boxes: float32 [B, A, 4], yxyx, any unit.
      scores: float32 [B, A, C].
      score_threshold: a box counts if its score is higher than this.
      nms_iou: a box is suppressed by a better one of its class if their overlap is higher than this: IoU, or DIoU
        for "diou". For "soft_linear", the IoU above which scores fall; "soft_gaussian" takes no notice.
      topk_candidates: best boxes of each class that are looked at.
      max_detections: boxes kept in an image, over all classes.
      method: one of METHODS.
      sigma: "soft_gaussian" multiplies scores by exp(-IoU^2 / sigma), as its paper does; TensorFlow's
        soft_nms_sigma is half of it.

    Returns:
      (boxes float32 [B, D, 4], scores float32 [B, D], classes int32 [B, D] 0..C-1, counts int32 [B]), best first;
      equal scores in the order of (class, index). Soft suppression gives the scores that it lowered, and among
      equal ones of a class puts first what was better before. Rows beyond the count are 0.
    """
    candidates, best, _ = topk_per_class(boxes, scores, score_threshold, topk_candidates)
    kept = _rescore(candidates, best, method, nms_iou, sigma, score_threshold, max_detections)
    chosen, kept_scores, places = _take_best(candidates, kept, max_detections)
    classes = ops.cast(places // candidates.shape[2], "int32")
    return _pad(chosen, kept_scores, classes, max_detections)


def class_agnostic_nms(
    boxes, scores, score_threshold, nms_iou, topk_candidates, max_detections, method="hard", sigma=0.5
):
    """Suppresses overlapping boxes whatever their classes: one place, one label.

    Each box competes once, by its best class. Had all pairs of (box, class) competed, the other classes of a box
    would have gone at once, as it overlaps itself by 1. Where that does not hold, a box has one label all the
    same: with nms_iou = 1 (nothing overlaps by more: all classes would stay), with "soft_gaussian" (the other
    classes would stay with lower scores, and lower the neighbours' once more), and for boxes without area (they
    overlap nothing, themselves included).

    Args:
      boxes: float32 [B, A, 4], yxyx, any unit.
      scores: float32 [B, A, C].
      score_threshold: a box counts if its best score is higher than this.
      nms_iou: as for class_wise_nms, but a better box of any class counts.
      topk_candidates: best boxes of an image that are looked at, over all classes.
      max_detections: boxes kept in an image.
      method: one of METHODS.
      sigma: as for class_wise_nms.

    Returns:
      as class_wise_nms; equal scores in the order of the index, and of equal classes of a box the first.
    """
    best = ops.max(scores, axis=2, keepdims=True)
    candidates, best, anchors = topk_per_class(boxes, best, score_threshold, topk_candidates)
    kept = _rescore(candidates, best, method, nms_iou, sigma, score_threshold, max_detections)
    chosen, kept_scores, places = _take_best(candidates, kept, max_detections)
    indices = ops.take_along_axis(ops.squeeze(anchors, 1), places, axis=1)
    rows = ops.take_along_axis(scores, ops.expand_dims(indices, -1), axis=1)
    labels = ops.squeeze(ops.top_k(rows, 1)[1], 2)
    return _pad(chosen, kept_scores, ops.cast(labels, "int32"), max_detections)


def topk_per_class(boxes, scores, score_threshold, topk_candidates):
    """Takes the best boxes of each class.

    Returns:
      (boxes float32 [B, C, K, 4], scores float32 [B, C, K], best first; 0 where not above the threshold;
      indices int32 [B, C, K] of the boxes in 0..A-1).
    """
    by_class = ops.transpose(scores, (0, 2, 1))
    best, places = ops.top_k(by_class, min(topk_candidates, by_class.shape[2]))
    batch, classes, topk = (ops.shape(best)[0], *best.shape[1:])
    flat = ops.reshape(places, (batch, classes * topk, 1))
    chosen = ops.take_along_axis(boxes, flat, axis=1)
    return ops.reshape(chosen, (batch, classes, topk, 4)), ops.where(best > score_threshold, best, 0.0), places


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


def soften(boxes, scores, decay, score_threshold, max_detections):
    """Takes the best box left again and again, which lowers the scores of the others: Soft-NMS (arXiv 1704.04503).

    A box whose score falls to the threshold goes, and lowers no others' scores. A round takes one box of each
    class that has any left, for B * C * K overlaps: no matrix of them is held. There are as many rounds as the
    fullest class needs, at most min(K, max_detections): no box taken later could be among the best.

    Args:
      boxes: float32 [B, C, K, 4].
      scores: float32 [B, C, K].
      decay: function (box taken [B, C, 1, 4], boxes [B, C, K, 4]) -> float32 [B, C, K], factors of the scores.
      score_threshold: a box counts while its score is higher than this.
      max_detections: boxes taken of a class.

    Returns:
      float32 [B, C, K], the scores with which the boxes were taken; 0 for those that were not. Equal scores are
      taken in the order given.
    """
    count = boxes.shape[2]
    places = ops.arange(count, dtype="int32")

    def more(waiting, _):
        return ops.any(waiting > score_threshold)

    def step(waiting, taken):
        is_highest = waiting == ops.max(waiting, axis=2, keepdims=True)
        # The first of the highest; Keras' argmax has an operation that LiteRT has not.
        best = ops.min(ops.where(is_highest, places, count), axis=2, keepdims=True)
        is_best = places == best
        taken = ops.where(is_best & (waiting > score_threshold), waiting, taken)
        box = ops.take_along_axis(boxes, ops.expand_dims(best, -1), axis=2)
        return ops.where(is_best, 0.0, waiting * decay(box, boxes)), taken

    start = (scores, ops.zeros_like(scores))
    return ops.while_loop(more, step, start, maximum_iterations=min(count, max_detections))[1]


# NaN is never higher: boxes that are no numbers overlap nothing, as in suppress.
def _drop_by_distance_iou(box, boxes, nms_iou, _):
    return ops.where(box_ops.distance_iou(box, boxes, ops) > nms_iou, 0.0, 1.0)


def _soften_gaussian(box, boxes, _, sigma):
    overlaps = _iou_with(box, boxes)
    return ops.where(overlaps > 0, ops.exp(-ops.square(overlaps) / sigma), 1.0)


def _soften_linear(box, boxes, nms_iou, _):
    overlaps = _iou_with(box, boxes)
    return ops.where(overlaps > nms_iou, 1 - overlaps, 1.0)


def _iou_with(box, boxes):
    return ops.squeeze(box_ops.iou(box, boxes, ops), 2)


_DECAYS = {"diou": _drop_by_distance_iou, "soft_gaussian": _soften_gaussian, "soft_linear": _soften_linear}
METHODS = ("hard", *_DECAYS)


def _rescore(boxes, scores, method, nms_iou, sigma, score_threshold, max_detections):
    """The scores [B, C, K] after suppression, 0 for the boxes that go; both inputs best first."""
    if method == "hard":
        return ops.where(suppress(boxes, scores > 0, nms_iou), scores, 0.0)

    def decay(box, boxes):
        return _DECAYS[method](box, boxes, nms_iou, sigma)

    return soften(boxes, scores, decay, score_threshold, max_detections)


def _take_best(boxes, scores, max_detections):
    """The best of [B, C, K] boxes over all classes: boxes [B, N, 4], scores [B, N], places in C * K [B, N]."""
    batch, classes, topk = (ops.shape(scores)[0], *scores.shape[1:])
    best, places = ops.top_k(ops.reshape(scores, (batch, classes * topk)), min(max_detections, classes * topk))
    flat = ops.reshape(boxes, (batch, classes * topk, 4))
    return ops.take_along_axis(flat, ops.expand_dims(places, -1), axis=1), best, places


def _pad(boxes, scores, classes, max_detections):
    """Clears the rows without a score, adds rows up to max_detections, and counts the rest."""
    valid = scores > 0
    outputs = ops.where(ops.expand_dims(valid, -1), boxes, 0.0), scores, ops.where(valid, classes, 0)
    missing = max_detections - scores.shape[1]
    padded = [ops.pad(x, [[0, 0], [0, missing]] + [[0, 0]] * (len(x.shape) - 2)) for x in outputs]
    return (*padded, ops.sum(ops.cast(valid, "int32"), axis=1))
