"""From the network's outputs to boxes, scores and classes (SSD paper, section 3); boxes are clipped first."""

import functools

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import coder, ops
from ssd_tf.inference import nms, nms_tensorflow


def postprocess(outputs, anchors, settings, has_background):
    """Decodes, scores and suppresses a batch.

    Args:
      outputs: {"class_logits": float32 [B, A, C + 1] with background, else [B, A, C],
        "box_deltas": float32 [B, A, 4]}.
      anchors: float32 [A, 4], yxyx normalised.
      settings: config.PostprocessConfig.
      has_background: whether column 0 of the logits is background (config.LossConfig.has_background).

    Returns:
      (boxes float32 [B, D, 4] yxyx normalised and inside the image, scores float32 [B, D], classes int32 [B, D]
      1..C, counts int32 [B]), best first; rows beyond the count are padding.
    """
    boxes, scores = decode_scores(outputs, anchors, has_background, settings.clip == "before")
    boxes, scores, classes, counts = _nms_form(settings)(
        boxes,
        scores,
        settings.score_threshold,
        settings.nms_iou,
        settings.topk_candidates,
        settings.max_detections,
    )
    return ops.clip(boxes, tnp), scores, classes + 1, counts


def decode_scores(outputs, anchors, has_background, clip=True):
    """Turns the network's outputs into boxes and probabilities.

    Args:
      outputs: {"class_logits": float32 [B, A, C + 1] with background, else [B, A, C],
        "box_deltas": float32 [B, A, 4]}.
      anchors: float32 [A, 4], yxyx normalised.
      has_background: True for softmax over background and classes, False for a sigmoid of each class.
      clip: cut the boxes to the image.

    Returns:
      (boxes float32 [B, A, 4] yxyx normalised; scores float32 [B, A, C] without background).
    """
    logits = outputs["class_logits"]
    scores = tf.nn.softmax(logits)[..., 1:] if has_background else tf.sigmoid(logits)
    boxes = coder.decode(outputs["box_deltas"], anchors, tnp)
    return ops.clip(boxes, tnp) if clip else boxes, scores


def _nms_form(settings):
    """The function that suppresses as the settings say, the fastest one here."""
    # The combined op has a CPU kernel only, and is hard and class-wise.
    on_cpu = not tf.config.list_logical_devices("GPU")
    if on_cpu and settings.nms == "hard" and not settings.class_agnostic:
        return nms_tensorflow.class_wise_nms
    form = nms.class_agnostic_nms if settings.class_agnostic else nms.class_wise_nms
    return functools.partial(form, method=settings.nms, sigma=settings.soft_nms_sigma)
