"""From the network's outputs to boxes, scores and classes (SSD paper, section 3); boxes are clipped first."""

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import coder, ops
from ssd_tf.inference import nms, nms_tensorflow


def postprocess(outputs, anchors, settings):
    """Decodes, scores and suppresses a batch.

    Args:
      outputs: {"class_logits": float32 [B, A, C + 1], "box_deltas": float32 [B, A, 4]}.
      anchors: float32 [A, 4], yxyx normalised.
      settings: config.PostprocessConfig.

    Returns:
      (boxes float32 [B, D, 4] yxyx normalised and inside the image, scores float32 [B, D], classes int32 [B, D]
      1..C, counts int32 [B]), best first; rows beyond the count are padding.
    """
    boxes, scores = decode_scores(outputs, anchors)
    # The combined op has a CPU kernel only.
    form = nms if tf.config.list_logical_devices("GPU") else nms_tensorflow
    boxes, scores, classes, counts = form.class_wise_nms(
        boxes,
        scores,
        settings.score_threshold,
        settings.nms_iou,
        settings.topk_candidates,
        settings.max_detections,
    )
    return boxes, scores, classes + 1, counts


def decode_scores(outputs, anchors):
    """Turns the network's outputs into boxes and probabilities.

    Returns:
      (boxes float32 [B, A, 4] yxyx normalised, clipped to the image; scores float32 [B, A, C] without background).
    """
    scores = tf.nn.softmax(outputs["class_logits"])[..., 1:]
    return ops.clip(coder.decode(outputs["box_deltas"], anchors, tnp), tnp), scores
