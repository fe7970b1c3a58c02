"""COCO: instances files read and written, results files read and written.

A box is [x, y, width, height], continuous pixels from 0. COCO has no flags for difficult and truncated
objects; this module writes them, where set, as keys of those names and reads them back.
"""

import collections
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_tf import fileio
from ssd_tf.annotations.annotation_set import (
    BAD_ANNOTATION,
    DEFAULT_RULES,
    AnnotatedObject,
    assemble,
    check_box,
    choose_classes,
    count_note,
    degenerate_line,
    finite_number,
    finite_numbers,
    is_degenerate,
    pack_image,
    path_prefix,
    read_size,
    refuse_unpaired,
    swapped_line,
)
from ssd_tf.errors import DataError, is_text, shown
from ssd_tf.structures import Problem, refuse_repeated

_TABLES = ("images", "annotations", "categories")
_IMAGE_KEYS = ("id", "file_name", "height", "width")
_PLAIN_NAME = re.compile(r"\w[\w. -]*")  # such a name cannot leave its folder
_SIDES = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Results:
    """Detections of a COCO results file, in file order.

    Attributes:
      image_ids: the image id of each detection, as text.
      category_ids: int64 [N], the data set owner's ids.
      boxes: float64 [N, 4], x, y, width, height in pixels.
      scores: float64 [N].
    """

    image_ids: tuple[str, ...]
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def read(path, images, classes=(), label_map=None, rules=DEFAULT_RULES, require_pairs=False):
    """Reads an instances file.

    Args:
      path: the JSON file.
      images: folder that its file names are relative to; whether an image exists is not checked.
      classes: names of the classes to use, in the order of their ids; () for all, in the order of the
        categories' ids.
      label_map: LabelMap that overrides the ids, or None.
      rules: BoxRules; normalised boxes have no area but their own.
      require_pairs: refuse images without annotations.

    Returns:
      AnnotationSet; boxes yxyx in the rules' format, source ids are the image ids as text. An area that is no
      number >= 0 counts as missing and becomes the box's.

    Raises:
      ConfigError: no such class.
      DataError: not an instances file, duplicated ids, annotations of missing images.
    """
    file = shown(Path(path).name)
    image_rows, annotation_rows, category_rows = _read_tables(path, file)
    names = _read_categories(category_rows, file)
    source_ids = {name: category_id for category_id, name in names.items()}
    found = dict.fromkeys(source_ids, (file,))
    choice = choose_classes(found, file, tuple(classes), label_map, source_ids)
    by_id = _index_images(image_rows, file)
    groups = _group_annotations(annotation_rows, by_id, file)
    del image_rows, annotation_rows  # what is packed can go
    prefix, annotated, problems, empty = path_prefix(images), [], [], []
    for source_id in tuple(by_id):
        row, rows = by_id.pop(source_id), groups.pop(source_id, ())
        place = f"image {source_id if source_id.isprintable() else shown(source_id)} in {file}"
        try:
            image = _image_path(row, prefix)
        except DataError as error:
            problems.append(Problem(BAD_ANNOTATION, place, f"{error}: {place}"))
            continue
        if not rows:
            empty.append(shown(Path(image).name))
        size = read_size(row.get("height"), row.get("width"))
        annotated.append(pack_image(place, source_id, image, size, [_read_object(r, names, rules) for r in rows]))
    notes = count_note("image{s} without annotations", empty)
    if require_pairs:
        refuse_unpaired(notes, file)
    return assemble(annotated, choice, file, problems, notes, rules.bbox_format)


def _read_tables(path, file):
    value = fileio.read_json(path, object_hook=_without_ballast)
    tables = [value.get(name) for name in _TABLES] if isinstance(value, dict) else [None]
    if not all(isinstance(table, list) for table in tables):
        raise DataError(f'{file}: not an instances file: expected the lists "images", "annotations", "categories"')
    for name, table in zip(_TABLES, tables, strict=True):
        for position, row in enumerate(table, 1):
            if not isinstance(row, dict):
                raise DataError(f"{file}: entry {position} of {name} is not an object")
    return tables


def _without_ballast(row):
    """Drops what is never used as soon as it is parsed: outlines alone are most of a real file."""
    if "segmentation" in row:
        del row["segmentation"]
    if "file_name" in row and "image_id" not in row:  # an image, not an annotation
        return {key: row[key] for key in _IMAGE_KEYS if key in row}
    return row


def _is_text(value):
    """Whether `value` is a non-empty text that can name a file: JSON can hold half a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def _id_text(value):
    """Returns an image id as text, or None if it is neither an integer nor a text."""
    return str(value) if type(value) is int or _is_text(value) else None


def _read_categories(rows, file):
    """Returns {category id: name}, sorted by id."""
    pairs = [(row.get("id"), row.get("name")) for row in rows]
    for position, (category_id, name) in enumerate(pairs, 1):
        if type(category_id) is not int or not is_text(name):
            raise DataError(f"{file}: category {position}: id must be an integer and name a text")
    refuse_repeated(pairs, file, "category")
    return dict(sorted(pairs))


def _refuse_duplicates(ids, what, file):
    twice = [shown(key) for key, count in collections.Counter(ids).items() if count > 1]
    if twice:
        more = ", ..." if len(twice) > 5 else ""
        raise DataError(f"{file}: {len(twice):,} duplicated {what}: {', '.join(twice[:5])}{more}")


def _index_images(rows, file):
    """Returns {source id: row} in file order."""
    ids = [_id_text(row.get("id")) for row in rows]
    if None in ids:
        raise DataError(f"{file}: entry {ids.index(None) + 1} of images: id is neither an integer nor a text")
    _refuse_duplicates(ids, "image ids", file)
    return dict(zip(ids, rows, strict=True))


def _group_annotations(rows, by_id, file):
    """Returns {source id: [(position in the file, row), ...]}."""
    ids = [_id_text(row.get("id")) for row in rows]
    _refuse_duplicates([key for key in ids if key is not None], "annotation ids", file)
    groups, missing = {}, []
    for item in enumerate(rows, 1):
        source_id = _id_text(item[1].get("image_id"))
        if source_id in by_id:
            groups.setdefault(source_id, []).append(item)
        else:
            missing.append(item)
    if missing:
        plural = "s" if len(missing) > 1 else ""
        first = _describe(*missing[0])
        raise DataError(f"{file}: {len(missing):,} annotation{plural} of missing images (first: {first})")
    return groups


def _describe(position, row):
    key = _id_text(row.get("id"))
    return f"entry {position} of annotations" if key is None else f"annotation {shown(key)}"


def _image_path(row, prefix):
    name = row.get("file_name")
    if not _is_text(name):
        raise DataError("no file_name")
    return prefix + name if _PLAIN_NAME.fullmatch(name) else str(fileio.safe_join(prefix, name))


def _read_object(item, names, rules):
    row = item[1]
    category_id = row.get("category_id")
    known = type(category_id) is int and category_id in names
    name = names[category_id] if known else f"category_id {reprlib.repr(category_id)}"
    try:
        fields = _read_box(item, name, rules)
    except DataError as error:
        return AnnotatedObject(name, fault=f"{_describe(*item)}: {error}")
    return AnnotatedObject(
        name,
        **fields,
        crowd=_is_set(row, "iscrowd"),
        difficult=_is_set(row, "difficult"),
        truncated=_is_set(row, "truncated"),
        area=None if rules.bbox_format == "normalised" else _read_area(row.get("area"), fields["box"]),
    )


def _is_set(row, flag):
    return row.get(flag) in (1, "1")


def _read_bbox(row):
    """Returns [x, y, width, height] of an annotation or a detection; sides may be negative."""
    bbox = row.get("bbox")
    if bbox is None:
        raise DataError("no bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise DataError("bbox is not a list of 4 numbers")
    return finite_numbers(bbox, _SIDES)


def _check_sides(bbox):
    for name, side in zip(_SIDES[2:], bbox[2:], strict=True):
        if side < 0:
            raise DataError(f"{name} {side:.10g} < 0")


def _read_box(item, name, rules):
    """Returns the fields box (yxyx), degenerate and swapped of an AnnotatedObject."""
    bbox = _read_bbox(item[1])
    x, y, width, height = bbox
    if rules.fix_boxes == "error" and (width < 0 or height < 0):
        _check_sides(bbox)
    corners, swapped = check_box((x, y, x + width, y + height), "bbox", rules.fix_boxes)
    box = (corners[1], corners[0], corners[3], corners[2])
    if is_degenerate(corners):
        return {"box": box, "degenerate": degenerate_line(_describe(*item), name, bbox)}
    return {"box": box, "swapped": swapped_line(_describe(*item), name, bbox) if swapped else ""}


def _read_area(value, box):
    try:
        area = finite_number(value, "area")
    except DataError:
        area = -1.0
    return area if area >= 0 else (box[2] - box[0]) * (box[3] - box[1])


def write(path, examples, label_map):
    """Writes an instances file, whole or not at all.

    Args:
      path: the JSON file; file names in it are the images' last parts.
      examples: Examples with a size. Image ids are integers where the source id is one, else text.
      label_map: LabelMap; categories get its source ids.

    Raises:
      DataError: no size, a class outside the label map, or two images of one name.
    """
    file = shown(Path(path).name)
    _refuse_duplicates([Path(example.image).name for example in examples], "file names", file)
    annotations = [row for example in examples for row in _annotation_rows(example, label_map)]
    content = {
        "images": [_image_row(example) for example in examples],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, 1)],
        "categories": [
            {"id": source_id, "name": name}
            for source_id, name in zip(label_map.source_ids, label_map.names, strict=True)
        ],
    }
    with fileio.atomic_write(path, "w") as output:
        output.write(json.dumps(content, allow_nan=False))


def _owner_id(source_id):
    """Returns the image id as the data set's owner wrote it: an integer where the text is one."""
    try:
        number = int(source_id)
    except ValueError:
        return source_id
    return number if str(number) == source_id else source_id


def _image_row(example):
    if example.size is None:
        raise DataError(f"image {shown(example.source_id)} has no size")
    height, width = example.size
    name = Path(example.image).name
    return {"id": _owner_id(example.source_id), "file_name": name, "width": int(width), "height": int(height)}


def _annotation_rows(example, label_map):
    boxes = example.boxes
    if example.unit == "normalised":
        boxes = boxes * np.array([*example.size, *example.size])
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    if example.area is not None:
        areas = np.where(np.isfinite(example.area), example.area, areas)
    for index, name in enumerate(example.names):
        (y, x), (height, width) = boxes[index, :2].tolist(), sides[index].tolist()
        row = {
            "image_id": _owner_id(example.source_id),
            "category_id": label_map.source_ids[label_map.id(name) - 1],
            "bbox": [x, y, width, height],
            "area": float(areas[index]),
            "iscrowd": int(example.crowd[index]),
        }
        yield row | {flag: 1 for flag in ("difficult", "truncated") if getattr(example, flag)[index]}


def read_results(path):
    """Reads a results file: a list of {"image_id", "category_id", "bbox", "score"}.

    Returns:
      Results.

    Raises:
      DataError: malformed; the message counts the entries from 1.
    """
    file = shown(Path(path).name)
    rows = fileio.read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{file}: not a results file: expected a list of detections")
    image_ids, category_ids, boxes, scores = [], [], [], []
    for position, row in enumerate(rows, 1):
        try:
            image_id, category_id = _read_ids(row)
            boxes.append(_read_bbox(row))
            _check_sides(boxes[-1])
            scores.append(finite_number(row.get("score"), "score"))
        except DataError as error:
            raise DataError(f"{file}: entry {position}: {error}") from None
        image_ids.append(image_id)
        category_ids.append(category_id)
    return Results(
        tuple(image_ids),
        np.array(category_ids, np.int64),
        np.array(boxes, np.float64).reshape(len(rows), 4),
        np.array(scores, np.float64),
    )


def _read_ids(row):
    if not isinstance(row, dict):
        raise DataError("not an object")
    image_id, category_id = _id_text(row.get("image_id")), row.get("category_id")
    if image_id is None:
        raise DataError("image_id is neither an integer nor a text")
    if type(category_id) is not int or abs(category_id) >= 2**63:
        raise DataError(f"category_id is not an integer: {reprlib.repr(category_id)}")
    return image_id, category_id


def write_results(path, detections: Mapping, label_map):
    """Writes a results file, whole or not at all.

    Args:
      path: the JSON file.
      detections: {source id: Detections}; image ids are integers where the source id is one, else text.
      label_map: LabelMap; category ids are its source ids.
    """
    rows = (row for source_id, found in detections.items() for row in _result_rows(source_id, found, label_map))
    with fileio.atomic_write(path, "w") as output:
        output.write("[")
        for position, row in enumerate(rows):
            output.write((",\n" if position else "\n") + json.dumps(row, allow_nan=False))
        output.write("\n]\n")


def _result_rows(source_id, detections, label_map):
    # In float64 the differences of float32 corners are exact, so reading back gives the same corners.
    corners = np.asarray(detections.boxes, np.float64).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    for box, score, class_id in zip(boxes.tolist(), detections.scores, detections.classes, strict=True):
        yield {
            "image_id": _owner_id(source_id),
            "category_id": label_map.source_ids[int(class_id) - 1],
            "bbox": box,
            "score": float(score),
        }
