"""Class-wise NMS and the whole post-processing, beside TensorFlow's combined op alone.

python scripts/benchmark_postprocess.py [--batch=8] [--anchors=8732] [--classes=20]
"""

import argparse

import numpy as np
import tensorflow as tf
import timing

from ssd_tf import config as configs
from ssd_tf.inference import nms_tensorflow, postprocess

_OBJECTS = 15  # per image; each excites a few dozen anchors, as a trained detector's do


def main():
    """Prints milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--anchors", type=int, default=8732)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    settings = configs.PostprocessConfig()
    outputs, anchors = trained_outputs(options.batch, options.anchors, options.classes)
    boxes, scores = (tf.constant(part) for part in postprocess.decode_scores(outputs, anchors, True))
    limits = (settings.max_detections, settings.max_detections, settings.nms_iou, settings.score_threshold)

    @tf.function
    def combined():
        return tf.image.combined_non_max_suppression(boxes[:, :, None], scores, *limits, clip_boxes=False)

    @tf.function
    def ours():
        return nms_tensorflow.class_wise_nms(
            boxes,
            scores,
            settings.score_threshold,
            settings.nms_iou,
            settings.topk_candidates,
            settings.max_detections,
        )

    @tf.function
    def whole(logits, deltas):
        values = {"class_logits": logits, "box_deltas": deltas}
        return postprocess.postprocess(values, anchors, settings, True)

    works = {
        "combined": combined,
        "nms": ours,
        "postprocess": lambda: whole(outputs["class_logits"], outputs["box_deltas"]),
    }
    seconds = timing.alternate(works, options.rounds, warm_up=5)
    timing.report(
        "postprocess",
        **{f"{name}_ms": value * 1e3 for name, value in timing.median(seconds).items()},
        nms_over_combined=timing.ratio(seconds, "nms", "combined"),
        postprocess_over_nms=timing.ratio(seconds, "postprocess", "nms"),
        shape=[options.batch, options.anchors, options.classes],
        most_candidates=int(tf.reduce_max(tf.reduce_sum(tf.cast(scores > settings.score_threshold, tf.int32), 1))),
    )


def trained_outputs(batch, num_anchors, num_classes):
    """Logits and deltas like a trained detector's: background almost everywhere, clusters around objects."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 1, (num_anchors, 2)).astype(np.float32)
    sides = rng.uniform(0.05, 0.4, (num_anchors, 2)).astype(np.float32)
    logits = rng.standard_normal((batch, num_anchors, num_classes + 1)).astype(np.float32)
    logits[..., 0] += 9
    for image in range(batch):
        for _ in range(_OBJECTS):
            near = np.argsort(np.square(centres - rng.uniform(0, 1, 2)).sum(1))[:30]
            logits[image, near, rng.integers(1, num_classes + 1)] += 11
    deltas = rng.standard_normal((batch, num_anchors, 4)).astype(np.float32)
    anchors = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return {"class_logits": tf.constant(logits), "box_deltas": tf.constant(deltas)}, tf.constant(anchors)


if __name__ == "__main__":
    main()
