"""Average precision as the Pascal VOC development kit defines it, 11-point (2007) and area (since 2010).

As in the MATLAB kit a match needs IoU >= the threshold. Boxes are continuous coordinates (x1 = xmax,
x0 = xmin - 1 of the annotation), so no pixel is added to widths: the IoU equals the kit's.
"""

import numpy as np

from ssd_tf.boxes import ops
from ssd_tf.evaluation import tables


def evaluate(truths, detections, label_map, use_07_metric, iou_threshold=0.5):
    """Scores detections by VOC's rules.

    Args:
      truths: sequence of Examples, boxes in pixels.
      detections: {source id: Detections}; an image without an entry has none.
      label_map: LabelMap.
      use_07_metric: whether mAP and per_class are the 11-point averages, else the areas.
      iou_threshold: least IoU of a match, in (0, 1].

    Returns:
      dict: mAP (0..1), per_class {name: AP}, mAP_11_point, mAP_area, iou_threshold. An AP is None for
      a class without ground truth (difficult and crowd objects do not count), which is left out of the means;
      a mean is None where no class has any.

    Raises:
      DataError: an image id that stands twice or is unknown, an unknown class, a number that is not finite.
    """
    all_truths, all_detections = tables.gather(truths, detections, label_map)
    eleven_point, area = {}, {}
    for class_id, name in enumerate(label_map.names, 1):
        curve = recall_precision_curve(
            tables.rows_of_class(all_truths, class_id),
            tables.rows_of_class(all_detections, class_id),
            iou_threshold,
        )
        eleven_point[name] = None if curve is None else average_precision_11_point(*curve)
        area[name] = None if curve is None else average_precision_area(*curve)
    chosen = eleven_point if use_07_metric else area
    return {
        "mAP": _mean(chosen),
        "per_class": chosen,
        "mAP_11_point": _mean(eleven_point),
        "mAP_area": _mean(area),
        "iou_threshold": float(iou_threshold),
    }


def recall_precision_curve(truths, detections, iou_threshold):
    """Returns recall and precision after each detection of one class, best score first.

    Args:
      truths: TruthTable of the class.
      detections: DetectionTable of the class.
      iou_threshold: least IoU of a match, in (0, 1].

    Returns:
      (recalls, precisions), float64 [N]; detections of ignored objects have no entry. None without any
      object that counts.
    """
    num_truths = np.count_nonzero(~truths.ignored)
    if not num_truths:
        return None
    right, _ = judge(truths, detections, iou_threshold)
    num_right = np.cumsum(right)
    return num_right / num_truths, num_right / np.arange(1, len(right) + 1)


def average_precision_11_point(recalls, precisions):
    """Returns VOC2007's average: the mean of the best precision at recall >= 0, .1, ... 1.

    Args:
      recalls: float64 [N], not decreasing.
      precisions: float64 [N].

    Returns:
      float in [0, 1]; 0.0 without detections.
    """
    # k / 10 rounds as 3 found of 10 does; multiples of 0.1 would miss a recall that equals the level.
    levels = np.arange(11) / 10
    best = np.append(_envelope(precisions), 0.0)
    return float(best[np.searchsorted(recalls, levels)].mean())


def average_precision_area(recalls, precisions):
    """Returns VOC2010's average: the area under the precision made monotone.

    Args:
      recalls: float64 [N], not decreasing.
      precisions: float64 [N].

    Returns:
      float in [0, 1]; 0.0 without detections.
    """
    return float(np.sum(np.diff(recalls, prepend=0.0) * _envelope(precisions)))


def _envelope(precisions):
    """Returns the best precision at each detection or any later one."""
    return np.maximum.accumulate(precisions[::-1])[::-1]


def judge(truths, detections, iou_threshold):
    """Tells which detections of one class are right, best score first, those of ignored objects left out.

    An object is found once: by the best of the detections that overlap it most. A further one is wrong, even
    where it overlaps another, free object.

    Args:
      truths: TruthTable of the class.
      detections: DetectionTable of the class.
      iou_threshold: least IoU of a match, in (0, 1].

    Returns:
      (right bool [N], scores float64 [N], not increasing).
    """
    # Stable: equal scores stay in the table's order, by image id and place in the image.
    order = np.argsort(-detections.scores, kind="stable")
    nearest, overlaps = _nearest_truths(truths, detections)
    nearest, matched = nearest[order], overlaps[order] >= iou_threshold
    ignored = np.append(truths.ignored, False)  # row 0 exists even without any object
    counted = ~(matched & ignored[nearest])
    nearest, matched = nearest[counted], matched[counted]
    candidates = np.flatnonzero(matched)
    _, firsts = np.unique(nearest[candidates], return_index=True)
    right = np.zeros(len(matched), bool)
    right[candidates[firsts]] = True
    return right, detections.scores[order][counted]


def _nearest_truths(truths, detections):
    """Returns each detection's truth of the highest IoU in its image, and that IoU.

    Returns:
      (rows of `truths` int64 [N], IoUs float64 [N]); row 0 and IoU 0 where it overlaps none.
    """
    starts, ends = (np.searchsorted(truths.images, detections.images, side) for side in ("left", "right"))
    nearest, overlaps = np.zeros(len(starts), np.int64), np.zeros(len(starts))
    # All detections against the first truth of their image, then those that have a second, and so on.
    for offset in range(np.max(ends - starts, initial=0)):
        rows = np.flatnonzero(ends - starts > offset)
        others = starts[rows] + offset
        found = ops.iou(detections.boxes[rows, None], truths.boxes[others, None])[:, 0, 0]
        better = found > overlaps[rows]
        nearest[rows[better]], overlaps[rows[better]] = others[better], found[better]
    return nearest, overlaps


def _mean(averages):
    known = [average for average in averages.values() if average is not None]
    return sum(known) / len(known) if known else None
