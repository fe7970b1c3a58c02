"""COCO's twelve numbers, computed by faster-coco-eval (the interface and the numbers of pycocotools).

Difficult objects are treated as COCO treats crowds, the only way its rules know to ignore an object: they
need not be found, any number of detections may lie on them, and overlap is the share of the detection's area.
"""

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, __version__

from ssd_tf.evaluation import tables

# The order of COCOeval's `stats`.
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(truths, detections, label_map):
    """Scores detections by COCO's rules.

    Args:
      truths: sequence of Examples, boxes in pixels; sizes (small, medium, large) go by the annotated area
        where there is one, else by the box's.
      detections: {source id: Detections}; an image without an entry has none.
      label_map: LabelMap.

    Returns:
      dict: mAP (AP at IoU .5 to .95), the twelve NUMBERS, per_class {name: AP}, each 0..1 or None
      where no object counts, and implementation (name and version of the library).

    Raises:
      DataError: an image id that stands twice or is unknown, an unknown class, a number that is not finite.
    """
    truth_table, detection_table = tables.gather(truths, detections, label_map)
    evaluator = _evaluator(
        _data_set(_truth_rows(truth_table), len(truths), label_map),
        _data_set(_detection_rows(detection_table), len(truths), label_map),
    )
    numbers = {name: _number(value) for name, value in zip(NUMBERS, evaluator.stats, strict=True)}
    return {
        "mAP": numbers["AP"],
        **numbers,
        "per_class": _per_class(evaluator.eval["precision"], label_map),
        "implementation": f"faster-coco-eval {__version__}",
    }


def _evaluator(truths, detections):
    evaluator = COCOeval_faster(truths, detections, "bbox", print_function=_say_nothing)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def _data_set(annotations, num_images, label_map):
    """Returns the library's form of a data set; the library wants integer image ids."""
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(label_map.names, 1)]
    images = [{"id": image} for image in range(num_images)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    return COCO(content, print_function=_say_nothing)


def _truth_rows(table):
    flags = table.ignored.astype(int).tolist()
    return _rows(table, area=table.areas.tolist(), iscrowd=flags)


def _detection_rows(table):
    sides = _sides(table.boxes)
    areas = (sides[:, 0] * sides[:, 1]).tolist()
    return _rows(table, area=areas, iscrowd=[0] * len(areas), score=table.scores.tolist())


def _rows(table, **columns):
    """Returns a table as the library's list of annotations."""
    top_left, sides = table.boxes[:, 1::-1], _sides(table.boxes)[:, ::-1]
    columns = {
        # From 1: the library takes a match with annotation 0 for none.
        "id": range(1, len(table.images) + 1),
        "image_id": table.images.tolist(),
        "category_id": table.classes.tolist(),
        "bbox": np.concatenate([top_left, sides], axis=1).tolist(),
        **columns,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _sides(boxes):
    """(height, width) of yxyx boxes, free of the last digits that (x + w) - x adds: area limits are exact."""
    return np.round(boxes[:, 2:] - boxes[:, :2], 9)


def _per_class(precisions, label_map):
    """Returns {name: AP} from precisions [IoU, recall, class, area range, detections an image]."""
    averages = {}
    for index, name in enumerate(label_map.names):
        values = precisions[:, :, index, 0, -1]
        known = values[values > -1]
        averages[name] = float(known.mean()) if known.size else None
    return averages


def _number(value):
    """Returns one of the library's numbers, whose -1 means that there is nothing to average."""
    return None if value < 0 else float(value)


def _say_nothing(*_):
    """Takes the place of the library's printing."""
