"""What every format shares: objects judged one by one, classes chosen, examples and notes collected."""

import collections
import difflib
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.structures import Example, LabelMap, Problem

BAD_ANNOTATION = "bad annotation"
UNKNOWN_CLASS = "unknown class"
_FARTHEST = 1e9  # pixels; the areas of such boxes are still exact enough
BBOX_FORMATS = ("pixel", "normalised")
BOX_FIXES = ("error", "swap")
_FAR = 2  # a fraction of the image beyond this was never meant as one
_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class BoxRules:
    """How boxes are read.

    Attributes:
      bbox_format: "pixel", or "normalised" for fractions of the image.
      fix_boxes: "error" refuses inverted boxes, "swap" exchanges their edges.
    """

    bbox_format: str = "pixel"
    fix_boxes: str = "error"

    def __post_init__(self):
        for name, choices in (("bbox_format", BBOX_FORMATS), ("fix_boxes", BOX_FIXES)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"--{name}: {value!r} is none of {', '.join(choices)}{suggest(value, choices)}")


DEFAULT_RULES = BoxRules()


@dataclass(frozen=True)
class AnnotationSet:
    """All that a reader found.

    Attributes:
      examples: the usable images, sorted by source_id.
      label_map: LabelMap that knows every class name in `examples`.
      problems: one Problem for each image that cannot be used.
      notes: lines about things that keep nothing from being used.
    """

    examples: tuple[Example, ...]
    label_map: LabelMap
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


class AnnotatedObject(NamedTuple):
    """One object as its file states it; at most one of `fault`, `degenerate` and `swapped` is set.

    Attributes:
      name: class name.
      box: (ymin, xmin, ymax, xmax), continuous coordinates from 0; () with a fault.
      fault: why the object cannot be used, its place in the file included.
      degenerate: line that describes a box of zero area.
      swapped: line that describes an inverted box, put right.
      area: as annotated, in pixels, or None where the format has none.
    """

    name: str
    box: tuple = ()
    fault: str = ""
    degenerate: str = ""
    swapped: str = ""
    difficult: bool = False
    crowd: bool = False
    truncated: bool = False
    area: float | None = None


@dataclass(slots=True)
class AnnotatedImage:
    """One image as its file states it, packed: a reader holds one for each image until all classes are known.

    Attributes:
      place: what messages call it, such as "000012.xml".
      source_id, image, size: as in Example.
      names: class name of each object, in file order.
      boxes: float64 [N, 4], as in Example; anything where there is a fault.
      flags: {"difficult" | "crowd" | "truncated": bools, one an object}, those alone that are set anywhere.
      area: float64 [N] in pixels, or None unless all objects have one.
      remarks: {index of the object: AnnotatedObject} of those with a fault, degenerate or swapped.
    """

    place: str
    source_id: str
    image: str
    size: tuple[int, int] | None
    names: tuple[str, ...]
    boxes: np.ndarray
    flags: dict
    area: np.ndarray | None
    remarks: dict


_NOTHING = {}


def pack_image(place, source_id, image, size, objects):
    """Packs an image's objects.

    Args:
      place, source_id, image, size: as in AnnotatedImage.
      objects: AnnotatedObjects in file order.

    Returns:
      AnnotatedImage.
    """
    flags = {}
    for flag in ("difficult", "crowd", "truncated"):
        values = tuple([getattr(item, flag) for item in objects])
        if True in values:
            flags[flag] = values
    remarks = {i: item for i, item in enumerate(objects) if item.fault or item.degenerate or item.swapped}
    areas = [0.0 if item.fault else item.area for item in objects]
    return AnnotatedImage(
        place,
        source_id,
        image,
        size,
        tuple([item.name for item in objects]),
        np.array([item.box or (0.0,) * 4 for item in objects], np.float64),
        flags or _NOTHING,
        np.array(areas, np.float64) if areas and None not in areas else None,
        remarks or _NOTHING,
    )


@dataclass(frozen=True)
class ClassChoice:
    """Which objects are used.

    Attributes:
      label_map: LabelMap of the result.
      kept: names of the classes whose objects are used.
      left_out: names that the user chose not to use; any other name is unknown.
    """

    label_map: LabelMap
    kept: frozenset
    left_out: frozenset = frozenset()


def finite_number(value, what):
    """Returns a number or numeric text as a float.

    Raises:
      DataError: missing or not a finite number; `what` names it.
    """
    if value is None:
        raise DataError(f"{what} is missing")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{what} is not a finite number: {reprlib.repr(value)}")
    return number


def finite_numbers(values, names, where=""):
    """Returns a box's numbers or numeric texts as floats; the first that cannot be one is a DataError.

    Args:
      values: a list or tuple.
      names: what they are called.
      where: what messages begin with, such as "object 3: ".
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if all(abs(number) <= _FARTHEST for number in numbers) and bool not in map(type, values):
        return numbers
    for name, number in zip(names, numbers):
        if _FARTHEST < abs(number) < math.inf:
            raise DataError(f"{where}{name} is far outside of any image: {number:g}")
    return [finite_number(value, f"{where}{name}") for value, name in zip(values, names, strict=True)]


def check_box(corners, where, fix_boxes="error"):
    """Judges a box as annotated, before any shift of pixels.

    Args:
      corners: x0, y0, x1, y1 as numbers or texts.
      where: place of the box, such as "object 3".
      fix_boxes: as in BoxRules.

    Returns:
      (x0, y0, x1, y1) floats, x1 >= x0 and y1 >= y0; `is_degenerate` tells whether any area is left. And
      whether edges were exchanged for that.

    Raises:
      DataError: not finite, or inverted unless that is to be fixed.
    """
    x0, y0, x1, y1 = finite_numbers(corners, _EDGES, f"{where}: ")
    if x1 >= x0 and y1 >= y0:
        return (x0, y0, x1, y1), False
    if fix_boxes == "swap":
        return (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), True
    axis, low, high = ("x", x0, x1) if x1 < x0 else ("y", y0, y1)
    raise DataError(f"{where}: {axis}max {high:.10g} < {axis}min {low:.10g}")


def is_degenerate(corners):
    """Returns whether (x0, y0, x1, y1) encloses no area."""
    x0, y0, x1, y1 = corners
    return x1 <= x0 or y1 <= y0


def degenerate_line(where, name, values):
    """Returns the line for a box of zero area; `values` are the four numbers as annotated."""
    return f"degenerate box (zero area): {where} {name!r} {_listed(values)}"


def swapped_line(where, name, values):
    """Returns the line for an inverted box that was put right; `values` are the four numbers as annotated."""
    return f"inverted box, edges swapped: {where} {name!r} {_listed(values)}"


def _listed(values):
    return " ".join(f"{float(value):.10g}" for value in values)


def read_size(height, width):
    """Returns (height, width) in whole pixels from numbers or texts, or None if they state no size."""
    try:
        size = int(finite_number(height, "height")), int(finite_number(width, "width"))
    except DataError:
        return None
    return size if min(size) > 0 else None


def path_prefix(folder):
    """Returns the text that, put before a plain file name, makes the path of that file in `folder`."""
    return str(Path(folder, "_"))[:-1]


def count_note(what, names):
    """Returns ("13 WHAT (first: a.jpg)",), or () for no names; `what` may hold a {s} for the plural."""
    if not names:
        return ()
    plural = "" if len(names) == 1 else "s"
    return (f"{len(names):,} {what.replace('{s}', plural)} (first: {names[0]})",)


def choose_classes(found, place, classes=(), label_map=None, source_ids=None):
    """Decides which classes are used and which ids they get.

    Args:
      found: {class name: places where it occurs}, in the order of the ids to be given.
      place: what errors call the data.
      classes: names to use, in the order of their ids; () for all.
      label_map: LabelMap that overrides the ids, or None.
      source_ids: {class name: the owner's id}, or None where the format has none.

    Returns:
      ClassChoice.

    Raises:
      ConfigError: a chosen class does not exist or is given twice.
      DataError: two names differ only by case or spaces.
    """
    known = found if label_map is None else label_map.names
    for position, name in enumerate(classes):
        if name in classes[:position]:
            raise ConfigError(f"class {name!r} is chosen twice")
        if name not in known:
            raise ConfigError(f"unknown class {name!r}{suggest(name, known)}: {place}")
    if label_map is None:
        if not classes:
            _refuse_variants(found)
        names = tuple(classes or found)
        label_map = LabelMap(names, tuple(source_ids[name] for name in names) if source_ids else ())
    if classes:
        return ClassChoice(label_map, frozenset(classes), frozenset(found) - frozenset(classes))
    return ClassChoice(label_map, frozenset(label_map.names))


def _plain(name):
    return "".join(name.split()).casefold()


def _refuse_variants(found):
    first = {}
    for name in sorted(found, key=lambda name: -len(found[name])):
        common = first.setdefault(_plain(name), name)
        if common != name:
            raise DataError(
                f"class {name!r} differs from {common!r} only by case or spaces "
                f"(did you mean {common!r}?): {found[name][0]}"
            )


def unknown_class_problems(unknown, known):
    """Names the images with classes that the label map does not have.

    Args:
      unknown: {place: its unknown class names}.
      known: the label map's names.

    Returns:
      list of Problems, one an image; each tells in how many files its classes occur.
    """
    num_files = collections.Counter(name for names in unknown.values() for name in set(names))
    texts = {name: _unknown_text(name, count, known) for name, count in num_files.items()}
    return [
        Problem(UNKNOWN_CLASS, place, "; ".join(texts[name] for name in sorted(set(names))) + f": {place}")
        for place, names in unknown.items()
    ]


def _unknown_text(name, count, known):
    plain = {_plain(other): other for other in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    hint = f" (near: {plain[near[0]]!r})" if near else ""
    return f"unknown class {name!r} in {_counted(count, 'file', 'files')}{hint}"


def assemble(images, choice, place, problems=(), notes=(), bbox_format="pixel"):
    """Turns what a format's reader found into the set that travels on.

    Args:
      images: AnnotatedImages.
      choice: ClassChoice.
      place: what errors call the data.
      problems, notes: found before.
      bbox_format: as in BoxRules.

    Returns:
      AnnotationSet.

    Raises:
      DataError: the coordinates look like those of the other format.
    """
    known = choice.kept | choice.left_out
    unknown = {
        image.place: [name for name in image.names if name not in known]
        for image in images
        if not known.issuperset(image.names)
    }
    problems = [*problems, *unknown_class_problems(unknown, choice.label_map.names)]
    examples, shared = [], {}
    for image in images:
        if image.place not in unknown:
            try:
                examples.append(_make_example(image, choice.kept, bbox_format, shared))
            except DataError as error:
                problems.append(Problem(BAD_ANNOTATION, image.place, str(error)))
    examples.sort(key=lambda example: example.source_id)
    _refuse_other_format(examples, bbox_format, place, images)
    notes = (*notes, *_left_out_note(images, choice.left_out), *_duplicates_note(examples))
    return AnnotationSet(tuple(examples), choice.label_map, tuple(problems), notes)


def _make_example(image, kept, bbox_format, shared):
    """`shared` holds names and sizes that came before, to be stored once."""
    remarks = [item for item in image.remarks.values() if item.name in kept]
    faults = [item.fault for item in remarks if item.fault]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}: {image.place}")
    names, boxes, area, flags = image.names, image.boxes, image.area, image.flags
    dropped = {index for index, item in image.remarks.items() if item.degenerate}
    if dropped or not kept.issuperset(names):
        good = [index for index, name in enumerate(names) if name in kept and index not in dropped]
        names, boxes = tuple([names[index] for index in good]), boxes[good] if good else ()
        area = area[good] if area is not None and good else None
        flags = {flag: [values[index] for index in good] for flag, values in flags.items()}
    return Example(
        image.source_id,
        image.image,
        boxes,
        shared.setdefault(names, names),
        bbox_format,
        shared.setdefault(image.size, image.size),
        **flags,
        area=area,
        dropped=tuple([f"{item.degenerate}: {image.place}" for item in remarks if item.degenerate]),
        swapped=tuple([f"{item.swapped}: {image.place}" for item in remarks if item.swapped]),
    )


def _refuse_other_format(examples, bbox_format, place, images):
    """Raises DataError if pixels look like fractions of the image, or fractions like pixels."""
    num_boxes = sum(len(example.names) for example in examples)
    if bbox_format == "pixel":
        if num_boxes and not any(example.boxes.max(initial=0) > 1 for example in examples):
            raise DataError(f"all {num_boxes:,} boxes ≤ 1: did you mean --bbox_format=normalised?: {place}")
        return
    far = [(example, index) for example in examples for index in _far_boxes(example)]
    if far:
        example, index = far[0]
        box = _listed(example.boxes[index, [1, 0, 3, 2]])
        place = next(image.place for image in images if image.source_id == example.source_id)
        raise DataError(
            f"{len(far):,} of {num_boxes:,} boxes far above 1: did you mean --bbox_format=pixel? "
            f"(first: {example.names[index]!r} {box}): {place}"
        )


def _far_boxes(example):
    return np.flatnonzero(np.abs(example.boxes).max(axis=1, initial=0) > _FAR).tolist()


def _left_out_note(images, left_out):
    if not left_out:
        return ()
    counts = collections.Counter(name for image in images for name in image.names if name in left_out)
    if not counts:
        return ()
    listed = ", ".join(f"{name!r} {count:,}" for name, count in sorted(counts.items()))
    return (f"{_counted(counts.total(), 'box', 'boxes')} of classes not chosen left out: {listed}",)


def _duplicates_note(examples):
    repeated = {}
    for example in examples:
        if len(example.names) > 1:
            distinct = set(zip(example.names, map(tuple, example.boxes.tolist()), strict=True))
            if len(distinct) < len(example.names):
                repeated[example.source_id] = len(example.names) - len(distinct)
    total = sum(repeated.values())
    if not total:
        return ()
    boxes = _counted(total, "duplicate box", "duplicate boxes")
    images = _counted(len(repeated), "image", "images")
    return (f"{boxes} in {images} (first: {shown(next(iter(repeated)))})",)


def refuse_unpaired(notes, place):
    """Raises DataError if there are notes about images without annotations, or annotations without images."""
    if notes:
        raise DataError(f"{', '.join(notes)} (--require_pairs): {place}")


def _counted(count, one, many):
    return f"{count:,} {one if count == 1 else many}"
