"""From the network's outputs to boxes, scores and classes (SSD paper, section 3); boxes are clipped first.

In keras.ops: on another backend than TensorFlow nothing here needs TensorFlow.
"""

import functools

import keras
from keras import ops

from ssd_tf.boxes import coder
from ssd_tf.boxes import ops as box_ops
from ssd_tf.inference import nms

if keras.backend.backend() == "tensorflow":
    from ssd_tf.inference import nms_tensorflow
else:
    nms_tensorflow = None


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
    return box_ops.clip(boxes, ops), scores, classes + 1, counts


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
    scores = ops.softmax(logits)[..., 1:] if has_background else ops.sigmoid(logits)
    boxes = coder.decode(outputs["box_deltas"], anchors, ops)
    return box_ops.clip(boxes, ops) if clip else boxes, scores


def _nms_form(settings):
    """The function that suppresses as the settings say, the fastest one here."""
    combined = nms_tensorflow and nms_tensorflow.is_available()
    if combined and settings.nms == "hard" and not settings.class_agnostic:  # all that the combined op can
        return nms_tensorflow.class_wise_nms
    form = nms.class_agnostic_nms if settings.class_agnostic else nms.class_wise_nms
    return functools.partial(form, method=settings.nms, sigma=settings.soft_nms_sigma)
