"""Truths and detections of all images as flat arrays, in an order that no caller can change.

Rows stand by class, then by image id, then as they stood within the image: the numbers of an evaluation
follow from the annotations and the detections alone, never from the order of the images.
"""

import collections
from dataclasses import dataclass, fields

import numpy as np

from ssd_tf.boxes import ops
from ssd_tf.errors import DataError, shown, suggest


@dataclass(frozen=True)
class TruthTable:
    """Annotated objects.

    Attributes:
      images: int64 [N], positions in the sorted image ids.
      classes: int64 [N], ids 1..C.
      boxes: float64 [N, 4], yxyx in pixels.
      areas: float64 [N], as annotated, else of the box; in pixels.
      ignored: bool [N], difficult or crowd: neither to be found nor wrong to find.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class DetectionTable:
    """Detected objects.

    Attributes:
      images: int64 [N], positions in the sorted image ids.
      classes: int64 [N], ids 1..C.
      boxes: float64 [N, 4], yxyx in pixels.
      scores: float64 [N].
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def gather(truths, detections, label_map):
    """Lays the truths and detections of all images side by side.

    Args:
      truths: sequence of Examples, boxes in pixels, one an image.
      detections: {source id: Detections}; an image without an entry has none.
      label_map: LabelMap.

    Returns:
      (TruthTable, DetectionTable), rows by class, image id and place in the image.

    Raises:
      DataError: an image id that stands twice or is unknown, an unknown class, a number that is not finite.
    """
    image_ids = sorted((truth.source_id for truth in truths), key=_image_order)
    _check_image_ids(image_ids, detections)
    truths = sorted(truths, key=lambda truth: _image_order(truth.source_id))
    return _truth_table(truths, label_map), _detection_table(image_ids, detections, label_map)


def _image_order(image_id):
    """Sorts numbers by value, as COCO's tools do (ties between images depend on it), then texts."""
    is_number = image_id.isascii() and image_id.isdigit()
    return (0, int(image_id), image_id) if is_number else (1, 0, image_id)


def rows_of_class(table, class_id):
    """Returns the part of a table that belongs to one class."""
    rows = slice(*np.searchsorted(table.classes, (class_id, class_id + 1)))
    return type(table)(*(getattr(table, field.name)[rows] for field in fields(table)))


def _check_image_ids(image_ids, detections):
    twice = [image_id for image_id, count in collections.Counter(image_ids).items() if count > 1]
    if twice:
        raise DataError(f"image id {shown(twice[0])} stands twice in the data set{_others(twice)}")
    unknown = sorted(str(image_id) for image_id in set(detections) - set(image_ids))
    if unknown:
        raise DataError(f"detections for an unknown image id: {shown(unknown[0])}{_others(unknown)}")


def _others(names):
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""


def _truth_table(truths, label_map):
    ids = {name: class_id for class_id, name in enumerate(label_map.names, 1)}
    for truth in truths:
        unknown = [name for name in truth.names if name not in ids]
        if unknown:
            near = suggest(unknown[0], label_map.names)
            raise DataError(f"unknown class {unknown[0]!r}{near}: image {shown(truth.source_id)}")
    # Rounded: a last digit must not move a box over COCO's bounds of size.
    areas = [np.round(ops.area(truth.boxes), 6) if truth.area is None else truth.area for truth in truths]
    return _by_class(
        TruthTable(
            images=_positions([truth.names for truth in truths]),
            classes=np.array([ids[name] for truth in truths for name in truth.names], np.int64),
            boxes=_joined([truth.boxes for truth in truths]).reshape(-1, 4),
            areas=_joined(areas),
            ignored=_joined([truth.difficult | truth.crowd for truth in truths]).astype(bool),
        )
    )


def _detection_table(image_ids, detections, label_map):
    present = [position for position, image_id in enumerate(image_ids) if image_id in detections]
    found = [detections[image_ids[position]] for position in present]
    table = DetectionTable(
        images=np.array(present, np.int64)[_positions([item.scores for item in found])],
        classes=_joined([item.classes for item in found]).astype(np.int64),
        boxes=ops.yxyx_to_xyxy(_joined([item.boxes for item in found]).reshape(-1, 4)),
        scores=_joined([item.scores for item in found]),
    )
    _check_detections(table, image_ids, len(label_map))
    return _by_class(table)


def _check_detections(table, image_ids, num_classes):
    unknown = np.flatnonzero((table.classes < 1) | (table.classes > num_classes))
    if len(unknown):
        image = shown(image_ids[table.images[unknown[0]]])
        raise DataError(f"class id {table.classes[unknown[0]]} is not in 1..{num_classes}: image {image}")
    wild = np.flatnonzero(~(np.isfinite(table.scores) & np.isfinite(table.boxes).all(axis=1)))
    if len(wild):
        image = shown(image_ids[table.images[wild[0]]])
        raise DataError(f"a detection's box or score is not a finite number: image {image}")


def _positions(rows):
    """Returns the number of its list for each element of a list of lists: int64 [N]."""
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows])


def _joined(arrays):
    """Returns the arrays end to end as float64; an empty array for none."""
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays] or [np.zeros(0)])


def _by_class(table):
    order = np.argsort(table.classes, kind="stable")
    return type(table)(*(getattr(table, field.name)[order] for field in fields(table)))
