"""How well a model's anchors fit the boxes of a set."""

import numpy as np
import tensorflow as tf

from ssd_tf.boxes import ops
from ssd_tf.records import reader

_POOR_IOU = 0.3
_CHUNK = 512  # boxes compared with all anchors at a time


def describe(records, anchors, config):
    """Says how many boxes no anchor fits, so that only the forced match trains them.

    Args:
      records: records.reader.RecordSet.
      anchors: float32 [A, 4], yxyx normalised.
      config: Config; matcher.iou_threshold is what an ordinary match needs.

    Returns:
      list of lines: all boxes, then each class that has any. An IoU of normalised boxes is that of the boxes after
      the resize to the network's size.
    """
    bounds = (config.matcher.iou_threshold, _POOR_IOU)
    boxes, classes = _read_boxes(records, config.data.use_difficult)
    best = best_overlaps(boxes, anchors)
    all_boxes = _shares(best, bounds)
    lines = [f"anchors: the best IoU is {all_boxes}; those below {bounds[0]:g} are matched by force alone"]
    for class_id, name in enumerate(records.label_map.names, 1):
        if (classes == class_id).any():
            lines.append(f"  {name}: {_shares(best[classes == class_id], bounds)}")
    return lines


def best_overlaps(boxes, anchors):
    """Returns the IoU of each box with its best anchor.

    Args:
      boxes: float32 [N, 4], yxyx normalised.
      anchors: float32 [A, 4], likewise.

    Returns:
      float32 [N].
    """
    chunks = [boxes[start : start + _CHUNK] for start in range(0, len(boxes), _CHUNK)]
    return np.concatenate([np.zeros(0, np.float32), *(ops.iou(chunk, anchors).max(axis=1) for chunk in chunks)])


def _shares(best, bounds):
    shares = [f"below {bound:g} for {np.mean(best < bound) if len(best) else 0:.1%}" for bound in bounds]
    return f"{' and '.join(shares)} of {len(best):,} boxes"


def _read_boxes(records, use_difficult):
    """float32 [N, 4] yxyx normalised and int32 [N] classes of all objects that are trained on."""

    def objects(serialized):
        sample = reader.parse_checked(serialized, len(records.label_map))
        kept = ~(sample["crowd"] if use_difficult else sample["crowd"] | sample["difficult"])
        return tf.boolean_mask(sample["boxes"], kept), tf.boolean_mask(sample["classes"], kept)

    with reader.record_errors(records):
        rows = list(reader.serialized_records(records).map(objects, tf.data.AUTOTUNE).as_numpy_iterator())
    boxes, classes = zip(*rows)
    return np.concatenate(boxes), np.concatenate(classes)
