"""The numbers of an evaluation as text for people."""

import math

from ssd_tf.errors import shown
from ssd_tf.evaluation.operating_point import IOU_THRESHOLD

# What is printed under the classes, in this order, where the result has it.
_SUMMARY = {
    "mAP_11_point": "mAP, 11-point (VOC2007)",
    "mAP_area": "mAP, area (VOC2010)",
    "AP": "AP   IoU .50:.95",
    "AP50": "AP   IoU .50",
    "AP75": "AP   IoU .75",
    "APs": "AP   small",
    "APm": "AP   medium",
    "APl": "AP   large",
    "AR1": "AR   1 detection",
    "AR10": "AR   10 detections",
    "AR100": "AR   100 detections",
    "ARs": "AR   small",
    "ARm": "AR   medium",
    "ARl": "AR   large",
}
# Columns of the operating points.
_POINT = ("f1", "precision", "recall")
_HEADS = ("best F1", "precision", "recall", "at score")


def format_table(result):
    """Lays out the numbers of one evaluation.

    Args:
      result: what voc.evaluate or coco.evaluate returns, with or without what operating_point.evaluate returns.

    Returns:
      lines of plain text: AP (and best F1) by class, mAP, the further numbers, and what `n/a` and the numbers
      stand for.
    """
    points = result.get("best_f1_per_class")
    classes = [(shown(name), value, points and points[name]) for name, value in result["per_class"].items()]
    summary = [("mAP", result["mAP"], None)]
    summary += [(label, result[key], None) for key, label in _SUMMARY.items() if key in result]
    width = max(len(row[0]) for row in [("class",), ("all classes",), *classes, *summary])
    head = f"{'class':<{width}}  {'AP':>6}" + "".join(f"{text:>11}" for text in _HEADS if points is not None)
    rows = [_line(row, width, points is not None) for row in classes]
    rule = "-" * len(head)
    lines = [head, rule, *rows, rule]
    if points is not None:
        lines.append(_line(("all classes", "", result["best_f1"]), width, True))
    return "\n".join(lines + [_line(row, width, False) for row in summary] + _notes(result))


def _line(row, width, with_point):
    label, value, point = row
    cells = [f"{_number(value):>6}"]
    if with_point:
        point = point or dict.fromkeys((*_POINT, "threshold"))
        cells += [f"{_number(point[key]):>9}" for key in _POINT] + [f"{_threshold(point['threshold']):>9}"]
    return f"{label:<{width}}  " + "  ".join(cells)


def _number(value):
    return value if value == "" else "n/a" if value is None else f"{value:.4f}"


def _threshold(value):
    """A threshold of three digits, rounded down: as printed it still keeps the detection that it came from."""
    return "n/a" if value is None else f"{math.floor(value * 1000 + 1e-6) / 1000:.3f}"


def _notes(result):
    notes = []
    averages = list(result["per_class"].values())
    if result["mAP"] is None:
        notes.append("n/a: no class has ground truth, so there is no mAP")
    elif None in averages:
        missing = f"{averages.count(None)} of {len(averages)} classes"
        notes.append(f"n/a: {missing} without ground truth, left out of the mean")
    if result["mAP"] is not None and any(result.get(key, 0) is None for key in _SUMMARY):
        notes.append("n/a: no object of that size")
    if "iou_threshold" in result:
        threshold = f"{result['iou_threshold']:g}"
        notes.append(f"a match has IoU >= {threshold}; difficult and crowd objects are ignored")
    if "best_f1" in result:
        notes.append(
            f"best F1 of all score thresholds, at IoU >= {IOU_THRESHOLD:g}; all classes: one for all of them"
        )
    if "implementation" in result:
        notes.append(f"computed by {result['implementation']}")
    return notes
