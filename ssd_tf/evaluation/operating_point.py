"""Where to put the score threshold: the one with the best F1, by VOC's rules of matching."""

import numpy as np

from ssd_tf.evaluation import tables, voc

IOU_THRESHOLD = 0.5


def evaluate(truths, detections, label_map):
    """Finds the score thresholds that give the best F1, for each class and one for all classes together.

    Detections from the threshold on count; ignored objects are neither right nor wrong. For all together the
    counts of all classes are added, so that detections of a class without objects are wrong too.

    Args:
      truths: sequence of Examples, boxes in pixels.
      detections: {source id: Detections}; an image without an entry has none.
      label_map: LabelMap.

    Returns:
      dict: best_f1 and best_f1_per_class {name: the same}: {"threshold", "f1", "precision", "recall"}, or None
      where no object counts. Where no detection is right the numbers are 0 and the threshold None.

    Raises:
      DataError: an image id that stands twice or is unknown, an unknown class, a number that is not finite.
    """
    all_truths, all_detections = tables.gather(truths, detections, label_map)
    rights, scores, counts, points = [], [], [], {}
    for class_id, name in enumerate(label_map.names, 1):
        objects = tables.rows_of_class(all_truths, class_id)
        right, score = voc.judge(objects, tables.rows_of_class(all_detections, class_id), IOU_THRESHOLD)
        rights.append(right)
        scores.append(score)
        counts.append(np.count_nonzero(~objects.ignored))
        points[name] = best_point(right, score, counts[-1])
    together = best_point(
        np.concatenate([np.zeros(0, bool), *rights]), np.concatenate([np.zeros(0), *scores]), sum(counts)
    )
    return {"best_f1": together, "best_f1_per_class": points}


def best_point(right, scores, num_truths):
    """Returns the threshold of the best F1 among those that tell the given detections apart.

    Args:
      right: bool [N], whether each detection is right.
      scores: float64 [N], in any order.
      num_truths: objects to be found.

    Returns:
      {"threshold", "f1", "precision", "recall"}, see evaluate; of equal F1 the highest threshold. The threshold is
      the score of the worst detection that counts.
    """
    if not num_truths:
        return None
    if not right.any():
        return {"threshold": None, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    order = np.argsort(-scores, kind="stable")
    right, scores = right[order], scores[order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # equal scores are kept or dropped together
    num_right, num_kept = np.cumsum(right)[ends], ends + 1
    f1 = 2 * num_right / (num_kept + num_truths)
    best = int(np.argmax(f1))
    return {
        "threshold": float(scores[ends[best]]),
        "f1": float(f1[best]),
        "precision": float(num_right[best] / num_kept[best]),
        "recall": float(num_right[best] / num_truths),
    }
