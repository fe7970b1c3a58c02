"""What every format shares: objects judged one by one, classes chosen, examples and notes collected."""

import collections
import difflib
import math
import reprlib
from dataclasses import dataclass

import numpy as np

from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.structures import Example, LabelMap, Problem

BAD_ANNOTATION = "bad annotation"
UNKNOWN_CLASS = "unknown class"


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


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object as its file states it; at most one of `fault` and `degenerate` is set.

    Attributes:
      name: class name.
      box: (ymin, xmin, ymax, xmax), continuous pixels from 0; () with a fault.
      fault: why the object cannot be used, its place in the file included.
      degenerate: line that describes a box of zero area.
      area: as annotated, in pixels, or None where the format has none.
    """

    name: str
    box: tuple = ()
    fault: str = ""
    degenerate: str = ""
    difficult: bool = False
    crowd: bool = False
    truncated: bool = False
    area: float | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as its file states it.

    Attributes:
      place: what messages call it, such as "000012.xml".
      source_id, image, size: as in Example.
      objects: AnnotatedObjects in file order.
    """

    place: str
    source_id: str
    image: str
    size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]


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


def check_box(x0, y0, x1, y1, where):
    """Judges a box as annotated, before any shift of pixels.

    Args:
      x0, y0, x1, y1: numbers or texts.
      where: place of the box, such as "object 3".

    Returns:
      (x0, y0, x1, y1) floats, x1 >= x0 and y1 >= y0; `is_degenerate` tells whether any area is left.

    Raises:
      DataError: not finite or inverted.
    """
    named = {"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1}
    x0, y0, x1, y1 = (finite_number(value, f"{where}: {name}") for name, value in named.items())
    for axis, low, high in (("x", x0, x1), ("y", y0, y1)):
        if high < low:
            raise DataError(f"{where}: {axis}max {high:.10g} < {axis}min {low:.10g}")
    return x0, y0, x1, y1


def is_degenerate(corners):
    """Returns whether (x0, y0, x1, y1) encloses no area."""
    x0, y0, x1, y1 = corners
    return x1 <= x0 or y1 <= y0


def degenerate_line(where, name, values):
    """Returns the line for a box of zero area; `values` are the four numbers as annotated."""
    return f"degenerate box (zero area): {where} {name!r} {' '.join(f'{value:.10g}' for value in values)}"


def read_size(height, width):
    """Returns (height, width) in whole pixels from numbers or texts, or None if they state no size."""
    try:
        size = int(finite_number(height, "height")), int(finite_number(width, "width"))
    except DataError:
        return None
    return size if min(size) > 0 else None


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


def assemble(images, choice, place, problems=(), notes=()):
    """Turns what a format's reader found into the set that travels on.

    Args:
      images: AnnotatedImages.
      choice: ClassChoice.
      place: what errors call the data.
      problems, notes: found before.

    Returns:
      AnnotationSet.

    Raises:
      DataError: the coordinates of all boxes look normalised.
    """
    known = choice.kept | choice.left_out
    unknown = {}
    for image in images:
        names = [item.name for item in image.objects if item.name not in known]
        if names:
            unknown[image.place] = names
    problems = [*problems, *unknown_class_problems(unknown, choice.label_map.names)]
    examples = []
    for image in images:
        if image.place not in unknown:
            try:
                examples.append(_make_example(image, choice.kept))
            except DataError as error:
                problems.append(Problem(BAD_ANNOTATION, image.place, str(error)))
    examples.sort(key=lambda example: example.source_id)
    _refuse_normalised(examples, place)
    notes = (*notes, *_left_out_note(images, choice.left_out), *_duplicates_note(examples))
    return AnnotationSet(tuple(examples), choice.label_map, tuple(problems), notes)


def _make_example(image, kept):
    chosen = [item for item in image.objects if item.name in kept]
    faults = [item.fault for item in chosen if item.fault]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}: {image.place}")
    good = [item for item in chosen if not item.degenerate]
    has_area = bool(good) and all(item.area is not None for item in good)
    return Example(
        source_id=image.source_id,
        image=image.image,
        boxes=[item.box for item in good],
        names=tuple(item.name for item in good),
        size=image.size,
        difficult=[item.difficult for item in good],
        crowd=[item.crowd for item in good],
        truncated=[item.truncated for item in good],
        area=np.array([item.area for item in good], np.float64) if has_area else None,
        dropped=tuple(f"{item.degenerate}: {image.place}" for item in chosen if item.degenerate),
    )


def _refuse_normalised(examples, place):
    num_boxes = sum(len(example.boxes) for example in examples)
    if num_boxes and max(example.boxes.max(initial=0) for example in examples) <= 1:
        raise DataError(f"all {num_boxes:,} boxes ≤ 1: normalised where pixels are expected: {place}")


def _left_out_note(images, left_out):
    counts = collections.Counter(item.name for image in images for item in image.objects if item.name in left_out)
    if not counts:
        return ()
    listed = ", ".join(f"{name!r} {count:,}" for name, count in sorted(counts.items()))
    return (f"{_counted(counts.total(), 'box', 'boxes')} of classes not chosen left out: {listed}",)


def _duplicates_note(examples):
    repeated = {}
    for example in examples:
        distinct = set(zip(example.names, map(tuple, example.boxes.tolist()), strict=True))
        if len(distinct) < len(example.names):
            repeated[example.source_id] = len(example.names) - len(distinct)
    total = sum(repeated.values())
    if not total:
        return ()
    boxes = _counted(total, "duplicate box", "duplicate boxes")
    images = _counted(len(repeated), "image", "images")
    return (f"{boxes} in {images} (first: {shown(next(iter(repeated)))})",)


def _counted(count, one, many):
    return f"{count:,} {one if count == 1 else many}"
