"""The numbers of an evaluation as text for people."""

from ssd_tf.errors import shown

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


def format_table(result):
    """Lays out the numbers of one evaluation.

    Args:
      result: what voc.evaluate or coco.evaluate returns.

    Returns:
      lines of plain text: AP by class, mAP, the further numbers, and what `n/a` and the numbers stand for.
    """
    classes = [(shown(name), value) for name, value in result["per_class"].items()]
    summary = [(label, result[key]) for key, label in _SUMMARY.items() if key in result]
    width = max(len(label) for label, _ in [("class", None), *classes, *summary])
    rule = "-" * (width + 8)
    lines = [f"{'class':<{width}}  {'AP':>6}", rule]
    lines += [_line(row, width) for row in classes]
    lines += [rule, _line(("mAP", result["mAP"]), width)]
    lines += [_line(row, width) for row in summary]
    return "\n".join(lines + _notes(result))


def _line(row, width):
    label, value = row
    return f"{label:<{width}}  {'n/a' if value is None else f'{value:.4f}':>6}"


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
    if "implementation" in result:
        notes.append(f"computed by {result['implementation']}")
    return notes
